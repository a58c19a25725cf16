//! Gas rules of forks, caps on prices, and what a rollup takes for L1. What Anvil lacks, a filter in front of it says as other nodes do.

use std::time::Duration;

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::stage::{BINARY, DEAD, EVENTS, LONG, QUEUE, Stage};
use crate::support::{
    ACCOUNTS, AnvilConfig, Geth, GethConfig, Reply, ScriptedNode, WorkerConfig, WorkerHome, free_port, geth,
    next_event, wait_until, with_id,
};

/// Uses up about fifteen million gas: counts down from 576,000.
const COUNTS_DOWN: &str = "0x6208ca005b600190038060045700";
const GWEI: u64 = 1_000_000_000;
const ETHER: u64 = 1_000_000_000_000_000_000;
/// The most gas of one transaction since Osaka (EIP-7825).
const MOST_GAS: u64 = 1 << 24;
/// The predeploy of the OP stack that estimates what L1 takes.
const GAS_PRICE_ORACLE: &str = "0x420000000000000000000000000000000000000f";

fn hardfork(name: &str) -> AnvilConfig {
    let extra_args = vec!["--hardfork".to_owned(), name.to_owned()];
    AnvilConfig { block_time: Some(Duration::from_secs(1)), extra_args, ..AnvilConfig::default() }
}

/// As go-ethereum answers `eth_config` at Osaka (EIP-7910), with the next fork in the year 2100.
fn osaka_before(next_contracts: Value) -> Value {
    let part = |time: u64, contracts: Value| {
        json!({
            "activationTime": time, "chainId": "0x7a69", "forkId": "0x0929e24e",
            "blobSchedule": { "target": 6, "max": 9, "baseFeeUpdateFraction": 5_007_716 },
            "precompiles": { "BLS12_G1ADD": "0x000000000000000000000000000000000000000b", "P256VERIFY": "0x0000000000000000000000000000000000000100" },
            "systemContracts": contracts,
        })
    };
    let history = json!({ "HISTORY_STORAGE_ADDRESS": "0x0000f90827f1c53a10cb7a02335b175320002935" });
    json!({ "current": part(1, history), "next": part(4_102_444_800, next_contracts), "last": null })
}

fn with_type(id: &str, kind: &str) -> BasicProperties {
    with_id(id).with_type(kind.into())
}

fn number(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// The margin of 20 percent would take it past what Osaka allows, and nodes would refuse it.
#[tokio::test]
async fn a_margin_ends_at_what_osaka_allows_one_transaction() {
    let Some(stage) = Stage::with_chain(hardfork("osaka")).await else { return };
    let config = stage.config_for(COUNTS_DOWN).await;
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let _worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("heavy"), b"x").await;
    let status = stage.wait_state(&home, "heavy", "final").await;
    let hash = status["transactions"][0]["final_hash"].clone();
    let transaction = stage.anvil.call("eth_getTransactionByHash", json!([hash])).await.unwrap();
    assert_eq!(number(&transaction["gas"]), MOST_GAS);
    assert!(status["transactions"][0]["gas_used"].as_u64().unwrap() > 14_000_000, "{status}");
    assert_eq!(status["transactions"][0]["attempts"].as_array().unwrap().len(), 1);
}

/// Gas that a route sets is known to be wrong before anything is signed; `doctor` and the log say which route's.
#[tokio::test]
async fn gas_that_the_fork_never_takes_is_named_at_the_start_and_fails_without_a_nonce() {
    let Some(stage) = Stage::with_chain(hardfork("osaka")).await else { return };
    let builders = json!({ "BUILDER_DEPOSIT_CONTRACT_ADDRESS": "0x0000bff46984e3725691fa540a8c7589300d8282" });
    let config_of = osaka_before(builders);
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, _| {
        let says = method == "eth_config";
        std::future::ready(if says { Reply::Result(config_of.clone()) } else { Reply::Pass })
    })
    .await;
    let config = stage.config().with("route", format!("name = \"huge\"\ntype = \"huge\"\ngas = {}", MOST_GAS + 1));
    let config = config.with("route", "name = \"small\"\ntype = \"small\"\ngas = 25000");
    let config = config.with("route", "name = \"rest\"");
    let home = WorkerHome::new(&WorkerConfig { endpoint: node.url(), ..config });
    stage.topology(&home).await;
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert_eq!(code, 69, "{text}");
    let line = |level: &str, parts: &[&str]| {
        let fits =
            |line: &&str| line.starts_with(&format!("{level} gas: ")) && parts.iter().all(|part| line.contains(part));
        assert_eq!(text.lines().filter(fits).count(), 1, "{level} {parts:?} in:\n{text}");
    };
    line("ok   ", &["fork Osaka (eth_config)", "10 to 40 gas a byte", "16777216 gas at most"]);
    line("fail ", &["no message of huge can be written", "16777216"]);
    line("warn ", &["from 2100-01-01", "(Amsterdam)", "the 25000 of small may be too little"]);
    let worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_type("huge", "huge"), b"x").await;
    stage.amqp.publish(QUEUE, with_type("long", "small"), &[b'x'; 256]).await;
    stage.amqp.publish(QUEUE, with_type("short", "small"), b"x").await;
    stage.wait_state(&home, "short", "final").await;
    let mut dead = [stage.amqp.wait_for(DEAD, LONG).await, stage.amqp.wait_for(DEAD, LONG).await];
    dead.sort_by_key(|letter| letter.id());
    let keys: Vec<_> = dead.iter().map(|letter| (letter.id(), letter.routing_key.clone())).collect();
    let key = |id: &str, key: &str| (id.to_owned(), key.to_owned());
    assert_eq!(keys, [key("huge", "invalid.gas_above_limit"), key("long", "invalid.gas_too_low")]);
    assert!(dead[1].header("cw-error-detail").unwrap().contains("31240 gas"), "EIP-7623: 21,000 and 40 a byte");
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "latest").await, Ok(1), "nothing was signed for the others");
    assert!(worker.log().contains("no message of this route can be written"), "{}", worker.log());
}

/// Others pass what its own route keeps back, no attempt is used, and `status` says what it waits for.
#[tokio::test]
async fn a_route_with_a_cap_waits_for_its_price_and_others_pass_it() {
    let chain =
        AnvilConfig { block_time: Some(Duration::from_secs(1)), base_fee: Some(50 * GWEI), ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(chain).await else { return };
    let listen = free_port();
    let config = stage
        .config()
        .with("fees", "max_fee = \"200 gwei\"")
        .with("http", format!("listen = \"127.0.0.1:{listen}\""))
        .with("route", "name = \"cheap\"\ntype = \"cheap\"\nmax_fee = \"5 gwei\"")
        .with("route", "name = \"rest\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let _worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_type("cheap", "cheap"), b"x").await;
    for id in ["a", "b"] {
        stage.amqp.publish(QUEUE, with_id(id), b"x").await;
    }
    for id in ["a", "b"] {
        stage.wait_state(&home, id, "final").await;
    }
    let (_, text) = home.command(BINARY, &["status", "cheap"]).await;
    assert!(text.contains("accepted") && text.contains("waits for  its own turn: the chain asks for"), "{text}");
    assert!(text.contains("the max_fee of its route is 5 gwei"), "{text}");
    stage.anvil.set_next_base_fee(GWEI).await.unwrap();
    let status = stage.wait_state(&home, "cheap", "final").await;
    assert_eq!(
        (status["attempt"].as_u64(), status["transactions"][0]["attempts"].as_array().unwrap().len()),
        (Some(0), 1)
    );
}

/// As op-geth answers: receipts have `l1Fee`, and the GasPriceOracle's predeploy estimates it.
#[tokio::test]
async fn what_a_rollup_takes_for_l1_counts_before_signing_and_stands_in_event_and_status() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let upstream = stage.anvil.rpc();
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, params| async move {
        match method.as_str() {
            "eth_getBlockReceipts" => Reply::error(-32601, "the method eth_getBlockReceipts does not exist"),
            "eth_getTransactionReceipt" => {
                let mut receipt = upstream.call("eth_getTransactionReceipt", params).await.unwrap();
                if receipt.is_object() {
                    receipt["l1Fee"] = json!("0x2d2f52b4");
                }
                Reply::Result(receipt)
            }
            "eth_call" if params[0]["to"] == GAS_PRICE_ORACLE => Reply::Result(json!(format!("0x{ETHER:064x}"))),
            _ => Reply::Pass,
        }
    })
    .await;
    let config = WorkerConfig { endpoint: node.url(), ..stage.config() };
    // The gas alone costs less than a thousandth of it.
    let home = WorkerHome::new(
        &config.clone().with("policy", "fee_per_day = \"0.9 ether\"").with("retry", "max_attempts = 1"),
    );
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("expensive"), b"x").await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("expensive", "policy.fee_per_day"));
    worker.stop().await;
    home.configure(&config);
    let mut events = stage.amqp.listen(EVENTS).await;
    let _worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("a"), b"x").await;
    let (kind, event) = next_event(&mut events, LONG).await;
    assert_eq!((kind.as_str(), &event["data"]["transaction"]["l1_fee"]), ("final", &json!("758076084")));
    let status = stage.wait_state(&home, "a", "final").await;
    assert_eq!(status["transactions"][0]["l1_fee"], json!("758076084"), "{status}");
    let (_, text) = home.command(BINARY, &["status", "a"]).await;
    assert!(text.contains("gas used and 0.758076084 gwei for L1"), "{text}");
}

/// `status` follows it from the pool into a block and up to finality.
#[tokio::test]
async fn status_says_what_a_write_still_waits_for() {
    let chain = AnvilConfig { extra_args: vec!["--no-mining".to_owned()], ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(chain).await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 3"));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("a"), b"x").await;
    let waits = async |part: &str| {
        let text = format!("it waits for {part:?}");
        wait_until(&text, LONG, async || stage.status(&home, "a").await["waits_for"].to_string().contains(part)).await;
    };
    waits("a block: it is in none up to 0, and a node has it in its pool").await;
    stage.anvil.mine(2).await.unwrap();
    waits("confirmations: it is in block 1; blocks on top of it: 1 of 3").await;
    worker.stop().await;
    stage.anvil.mine(2).await.unwrap();
    waits("the worker: block 1 is final").await;
    let _worker = home.start(BINARY);
    let status = stage.wait_state(&home, "a", "final").await;
    assert_eq!(status["waits_for"], json!([]));
}

/// Geth in developer mode has all forks that it knows from its first block, and not all of their rules: its estimates correct them.
#[tokio::test]
async fn the_fork_of_a_real_geth_is_named_and_its_estimates_count() {
    if !geth::is_here() {
        return;
    }
    let Some(stage) = Stage::set().await else { return };
    let node = Geth::start(GethConfig { period: 1, ..GethConfig::default() }).await;
    let config = WorkerConfig { endpoint: node.url(), ..stage.config() };
    let home = WorkerHome::new(&config.with("chain", format!("id = {}", geth::CHAIN_ID)));
    stage.topology(&home).await;
    let (_, text) = home.command(BINARY, &["doctor"]).await;
    let gas = text.lines().find(|line| line.starts_with("ok    gas: ")).unwrap_or_else(|| panic!("{text}"));
    let said = "fork Amsterdam (eth_config): calldata takes 10 to 40 gas a byte at least and 131072 bytes at most";
    assert!(gas.ends_with(said), "{gas}");
    let _worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("a"), b"x").await;
    stage.amqp.publish(QUEUE, with_id("large"), &vec![b'x'; 131_500]).await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("large", "invalid.too_large"));
    stage.wait_state(&home, "a", "final").await;
    assert_eq!(node.nonce(ACCOUNTS[0].0, "pending").await, Ok(1), "nothing was signed for it");
}
