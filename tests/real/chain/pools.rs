//! Many transactions of one account and the pool of a real Geth, with the configuration that a worker has by default.

use std::time::Duration;

use serde_json::json;

use crate::stage::{BINARY, DEAD, QUEUE, Stage};
use crate::support::{Geth, GethConfig, Worker, WorkerConfig, WorkerHome, geth, wait_until, with_id};

/// For all messages of a test, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);
/// A key of its own, with little money, and its address.
const POOR: (&str, &str) = (
    "0x1111111111111111111111111111111111111111111111111111111111111111",
    "0x19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A",
);

/// A worker of a Geth with a block each second, and the time that many messages took it.
struct Run {
    stage: Stage,
    geth: Geth,
    home: WorkerHome,
    worker: Worker,
    /// Blocks from the first write to the last.
    blocks: u64,
}

/// Nothing where RabbitMQ, Anvil or Geth is missing.
#[allow(clippy::print_stderr, reason = "it says what is skipped")]
async fn stage(options: &[&str]) -> Option<(Stage, Geth)> {
    if !geth::is_here() {
        return None;
    }
    let stage = Stage::set().await?;
    let extra_args = ["--dev.gaslimit", "60000000"].iter().chain(options).map(|option| (*option).to_owned()).collect();
    Some((stage, Geth::start(GethConfig { period: 1, extra_args }).await))
}

/// Writes so many messages as the account, which has sent nothing before.
async fn write(
    (stage, geth): (Stage, Geth),
    account: &str,
    messages: usize,
    lines: impl FnOnce(WorkerConfig) -> WorkerConfig,
) -> Run {
    let endpoint = geth.url();
    // What tests set otherwise is as it is by default.
    let config = WorkerConfig { endpoint, ..stage.config() }.with("chain", "id = 1337\npoll_interval = \"500ms\"");
    let home = WorkerHome::new(&lines(config.with("log", "level = \"info\"")));
    stage.topology(&home).await;
    for number in 0..messages {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), format!("body {number}").as_bytes()).await;
    }
    let worker = home.start(BINARY);
    let nonce = async || geth.nonce(account, "latest").await.unwrap();
    wait_until("the first is written", PATIENCE, async || nonce().await > 0).await;
    let begun = geth.block_number().await.unwrap();
    wait_until("all are written", PATIENCE, async || nonce().await == messages as u64).await;
    let blocks = geth.block_number().await.unwrap() - begun;
    wait_until("all are acked", PATIENCE, async || stage.depth(QUEUE).await == (0, 0)).await;
    assert_eq!(stage.depth(DEAD).await, (0, 0));
    Run { stage, geth, home, worker, blocks }
}

/// Invariant 17
#[tokio::test]
async fn an_account_is_as_fast_as_geth_without_a_word_in_the_configuration() {
    const MESSAGES: usize = 2_000;
    let Some(parts) = stage(&[]).await else { return };
    let run = write(parts, crate::support::ACCOUNTS[0].0, MESSAGES, |config| config).await;
    // A window of 64 would take 31.
    assert!(run.blocks <= 16, "{} blocks; {}", run.blocks, run.worker.log());
    let pool = run.geth.call("txpool_status", json!([])).await.unwrap();
    assert_eq!((pool["pending"].as_str(), pool["queued"].as_str()), (Some("0x0"), Some("0x0")));
}

/// Lack of room makes nothing more expensive, and costs no empty blocks.
#[tokio::test]
async fn a_small_pool_is_filled_again_with_each_block_at_the_same_price() {
    const MESSAGES: usize = 120;
    let Some(parts) = stage(&["--txpool.accountslots", "4", "--txpool.globalslots", "16"]).await else { return };
    let run =
        write(parts, crate::support::ACCOUNTS[0].0, MESSAGES, |config| config.with("chain", "replace_after = \"2s\""))
            .await;
    assert!(run.blocks <= 30, "{} blocks; {}", run.blocks, run.worker.log());
    for number in [0, 17, 60, MESSAGES - 1] {
        let status = run.stage.status(&run.home, &format!("m-{number}")).await;
        assert_eq!(status["transactions"][0]["attempts"].as_array().map(Vec::len), Some(1), "{status}");
    }
    assert!(!run.worker.log().contains("another attempt"), "{}", run.worker.log());
}

/// What is committed counts: the node never has to say that the account cannot pay.
#[tokio::test]
async fn no_more_is_sent_at_once_than_the_account_can_pay() {
    let Some((stage, geth)) = stage(&[]).await else { return };
    let (key, account) = POOR;
    let developer = geth.call("eth_accounts", json!([])).await.unwrap()[0].clone();
    // Each may cost some 3 milliether and costs a fiftieth of that.
    let funds = json!([{ "from": developer, "to": account, "value": format!("{:#x}", 30_000_000_000_000_000_u64) }]);
    geth.call("eth_sendTransaction", funds).await.unwrap();
    wait_until("it has money", PATIENCE, async || geth.balance(account).await.is_ok_and(|balance| balance > 0)).await;
    let run = write((stage, geth), account, 60, |config| {
        config.with("signer", format!("key = {key:?}")).with("write", "gas = 1000000")
    })
    .await;
    let log = run.worker.log();
    assert!(!log.contains("insufficient") && !log.contains("the lane pauses"), "{log}");
    assert!(run.blocks <= 40, "{} blocks; {log}", run.blocks);
}
