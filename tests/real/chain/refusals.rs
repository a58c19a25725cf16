//! What nodes refuse for ever, and what they call too cheap: each ends, says why, and costs little. A filter in front of Anvil
//! says what other nodes say.

use std::time::Duration;

use serde_json::{Value, json};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, pool_holds, wait_log};
use crate::support::{
    ACCOUNTS, AnvilConfig, Reply, ScriptedNode, Worker, WorkerConfig, WorkerHome, highest_fee_of, rpc, wait_until,
    with_id,
};

const GWEI: u64 = 1_000_000_000;

/// A worker behind a node that answers to some transactions what the rule says.
async fn start(
    stage: &Stage,
    config: WorkerConfig,
    rule: impl Fn(&str) -> Option<String> + Clone + Send + Sync + 'static,
) -> (ScriptedNode, WorkerHome, Worker) {
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, params| {
        let refused = (method == "eth_sendRawTransaction").then(|| rule(params[0].as_str().unwrap_or_default()));
        std::future::ready(refused.flatten().map_or(Reply::Pass, Reply::refusal))
    })
    .await;
    let home = WorkerHome::new(&WorkerConfig { endpoint: node.url(), ..config });
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    (node, home, worker)
}

fn has(raw: &str, part: &[u8]) -> bool {
    raw.contains(&part.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// A transfer to the account itself: its receiver, behind the length of an address.
fn is_transfer(raw: &str) -> bool {
    raw.contains(&format!("94{}", ACCOUNTS[0].0.to_lowercase().trim_start_matches("0x")))
}

async fn publish(stage: &Stage, ids: &[&str]) {
    for id in ids {
        stage.amqp.publish(QUEUE, with_id(id), format!("body of {id}").as_bytes()).await;
    }
}

fn signed(status: &Value) -> usize {
    status["transactions"][0]["attempts"].as_array().map_or(0, Vec::len)
}

/// The others wait for it no longer than for any refusal, and the letter says what the node said.
#[tokio::test]
async fn a_refusal_in_unknown_words_is_cancelled_and_the_letter_has_the_words() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("retry", "max_attempts = 1").with("chain", "refused_after = \"2s\"\nfinality = 0");
    let (_node, _home, worker) =
        start(&stage, config, |raw| has(raw, b"body of bad").then(|| "the sequencer does not like it".to_owned()))
            .await;
    publish(&stage, &["a", "bad", "b", "c"]).await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("bad", "rejected.refused_by_node"));
    let detail = dead.header("cw-error-detail").unwrap();
    assert!(detail.ends_with("the sequencer does not like it"), "{detail}");
    stage.wait_empty(QUEUE).await;
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    for id in ["a", "b", "c"] {
        assert_eq!(written.iter().filter(|data| **data == calldata(format!("body of {id}").as_bytes())).count(), 1);
    }
    assert!(worker.log().contains("request.id=bad"), "{}", worker.log());
}

/// Invariant 13: a firewall, a provider's rule or a permission that concerns one transaction stops no other, in whatever shape
/// the node says so.
#[tokio::test]
async fn what_a_node_fails_at_for_one_transaction_alone_ends_in_its_cancellation() {
    let shapes = [
        (Reply::Http(403, String::new(), "blocked by the firewall".to_owned()), "blocked by the firewall"),
        (Reply::Http(503, String::new(), "no backend".to_owned()), "no backend"),
        (Reply::refusal("access denied"), "access denied"),
        (Reply::refusal("Sender account not authorized to send transactions"), "not authorized to send"),
    ];
    for (shape, words) in shapes {
        let Some(stage) = Stage::with_blocks().await else { return };
        let node = ScriptedNode::start(Some(stage.anvil.address()), move |request| {
            let is_it = |call: &Value| {
                call["method"] == "eth_sendRawTransaction"
                    && has(call["params"][0].as_str().unwrap_or_default(), b"body of bad")
            };
            match (request.as_array(), shape.clone()) {
                (Some(calls), reply @ Reply::Http(..)) if calls.iter().any(is_it) => reply,
                (None, reply) if is_it(request) => reply,
                _ => Reply::Pass,
            }
        })
        .await;
        let config =
            stage.config().with("retry", "max_attempts = 1").with("chain", "refused_after = \"3s\"\nfinality = 0");
        let home = WorkerHome::new(&WorkerConfig { endpoint: node.url(), ..config });
        stage.topology(&home).await;
        let worker = home.start(BINARY);
        publish(&stage, &["a", "bad", "b", "c"]).await;
        let dead = stage.amqp.wait_for(DEAD, LONG).await;
        assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("bad", "rejected.refused_by_node"), "{words}");
        let detail = dead.header("cw-error-detail").unwrap();
        assert!(detail.contains(words), "{words}: {detail}");
        stage.wait_empty(QUEUE).await;
        let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
        for id in ["a", "b", "c"] {
            let count = written.iter().filter(|data| **data == calldata(format!("body of {id}").as_bytes())).count();
            assert_eq!(count, 1, "{words}: {id}");
        }
        drop(worker);
    }
}

/// Where the node takes nothing at all, one cancellation shows it, and the account says so.
#[tokio::test]
async fn a_node_that_takes_nothing_pauses_the_account_and_costs_one_cancellation() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("chain", "refused_after = \"1s\"\nfinality = 0");
    let (_node, home, worker) = start(&stage, config, |_| Some("the sequencer is away".to_owned())).await;
    publish(&stage, &["a", "b", "c"]).await;
    wait_log(&worker, "pause.reason=refused").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let counts = [stage.status(&home, "a").await, stage.status(&home, "b").await].map(|status| signed(&status));
    assert_eq!(counts, [2, 1], "{}", worker.log());
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}

/// A cancellation takes more gas there than a transfer elsewhere.
#[tokio::test]
async fn a_cancellation_gets_the_gas_that_the_node_asks_for() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("retry", "max_attempts = 1").with("chain", "refused_after = \"1s\"\nfinality = 0");
    let (_node, home, worker) = start(&stage, config, |raw| {
        let of_21000 = is_transfer(raw) && raw.contains("825208");
        let low = of_21000.then(|| "intrinsic gas too low: gas 21000, minimum needed 60000".to_owned());
        low.or_else(|| has(raw, b"body of bad").then(|| "exceeds block gas limit".to_owned()))
    })
    .await;
    publish(&stage, &["bad", "a"]).await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("bad", "rejected.refused_by_node"));
    assert!(dead.header("cw-error-detail").unwrap().ends_with("exceeds block gas limit"));
    stage.wait_empty(QUEUE).await;
    assert_eq!(signed(&stage.status(&home, "bad").await), 3, "the write and two cancellations");
    assert!(worker.log().contains("refuses the cancellation"), "{}", worker.log());
}

/// No waiting makes a transaction smaller, and the next one is not signed.
#[tokio::test]
async fn a_transaction_that_is_too_large_is_cancelled_at_once_and_the_next_one_costs_nothing() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("chain", "refused_after = \"1h\"\nfinality = 0");
    let (_node, home, _worker) = start(&stage, config, |raw| {
        let bytes = raw.len() / 2 - 1;
        (bytes > 2000).then(|| format!("oversized data: transaction size {bytes}, limit 2000"))
    })
    .await;
    let large = vec![b'x'; 3000];
    stage.amqp.publish(QUEUE, with_id("large"), &large).await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("large", "invalid.too_large"));
    stage.amqp.publish(QUEUE, with_id("larger"), &[large.as_slice(), b"x"].concat()).await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("larger", "invalid.too_large"));
    assert_eq!(stage.status(&home, "larger").await["transactions"].as_array().map(Vec::len), Some(0));
    publish(&stage, &["a"]).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await.len(), 2, "one cancellation and one write");
}

/// What the node names, in one step, for all that follow.
#[tokio::test]
async fn a_least_tip_that_the_node_names_is_offered_in_one_step() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("fees", "max_fee = \"50 gwei\"").with("chain", "finality = 0");
    let (_node, home, _worker) = start(&stage, config, |raw| {
        // RLP of 2 gwei. A transaction has it as its tip alone.
        (!raw.contains("8477359400"))
            .then(|| "transaction gas price below minimum: gas tip cap 1, minimum needed 2000000000".to_owned())
    })
    .await;
    publish(&stage, &["a", "b", "c"]).await;
    stage.wait_empty(QUEUE).await;
    publish(&stage, &["d"]).await;
    stage.wait_empty(QUEUE).await;
    for (id, most) in [("a", 2), ("b", 2), ("c", 2), ("d", 1)] {
        let status = stage.status(&home, id).await;
        assert!(signed(&status) <= most, "{status}");
    }
}

/// A price that the cap does not let rise is a pause with its reason.
#[tokio::test]
async fn a_tip_above_the_cap_is_a_pause_that_says_so() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("fees", "max_fee = \"5 gwei\"").with("chain", "finality = 0");
    let (_node, home, worker) =
        start(&stage, config, |_| Some("transaction underpriced: tip too low".to_owned())).await;
    publish(&stage, &["a"]).await;
    wait_log(&worker, "pause.reason=price_stuck").await;
    let count = signed(&stage.status(&home, "a").await);
    assert!(count <= 33, "{count}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(signed(&stage.status(&home, "a").await), count);
}

/// A foreign transaction holds the nonce, at a price below the cap.
#[tokio::test]
async fn a_foreign_transaction_in_the_pool_is_replaced_in_one_step_where_the_cap_allows() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let price = rpc::hex(40 * GWEI);
    let foreign = json!([{ "from": ACCOUNTS[0].0, "to": ACCOUNTS[1].0, "value": "0x1", "gas": rpc::hex(21_000),
        "maxFeePerGas": price, "maxPriorityFeePerGas": price }]);
    let home = WorkerHome::new(&stage.config().with("fees", "max_fee = \"100 gwei\"").with("chain", "finality = 0"));
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    // What is in the pool at the start is waited for.
    wait_log(&worker, "the lane owns its account").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.anvil.call("eth_sendTransaction", foreign).await.unwrap();
    publish(&stage, &["a"]).await;
    wait_until("it is signed twice", LONG, async || signed(&stage.status(&home, "a").await) == 2).await;
    stage.anvil.mine(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_eq!(signed(&stage.status(&home, "a").await), 2);
    assert_eq!(stage.transactions_of(0).await.len(), 1, "ours");
}

/// A chain with a base fee of 6.7 gwei, a worker whose transactions have 50,000 gas, and a node with this cap on a fee.
async fn with_fee_cap(cap: u64) -> Option<(Stage, ScriptedNode, WorkerHome, Worker)> {
    let stage = Stage::with_chain(AnvilConfig { base_fee: Some(10 * GWEI), ..AnvilConfig::default() }).await?;
    stage.anvil.set_auto_mine(false).await.unwrap();
    stage.anvil.mine(3).await.unwrap();
    let config = stage.config().with("write", "gas = 50000").with("retry", "max_attempts = 1");
    let (node, home, worker) = start(&stage, config.with("chain", "finality = 0"), move |raw| {
        let ether = |wei: u64| format!("{}.{:06} ether", wei / 10_u64.pow(18), wei % 10_u64.pow(18) / 10_u64.pow(12));
        let fee = highest_fee_of(raw);
        (fee > cap).then(|| format!("tx fee ({}) exceeds the configured cap ({})", ether(fee), ether(cap)))
    })
    .await;
    Some((stage, node, home, worker))
}

/// The node's cap on what a transaction may cost takes the headroom away that the price has, and the next one has less.
#[tokio::test]
async fn a_price_with_its_headroom_above_the_nodes_fee_cap_goes_out_without_it() {
    let Some((stage, _node, home, _worker)) = with_fee_cap(500_000 * GWEI).await else { return };
    publish(&stage, &["a"]).await;
    pool_holds(&stage, 1).await;
    publish(&stage, &["b"]).await;
    pool_holds(&stage, 2).await;
    let counts = [stage.status(&home, "a").await, stage.status(&home, "b").await].map(|status| signed(&status));
    assert_eq!(counts, [2, 1]);
    stage.anvil.mine(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_eq!((stage.transactions_of(0).await.len(), stage.depth(DEAD).await), (2, (0, 0)));
}

/// Where even the next block's price is above it, the account says so, and waits until gas is cheaper.
#[tokio::test]
async fn a_price_above_the_nodes_fee_cap_is_a_pause_that_ends_when_gas_is_cheaper() {
    let Some((stage, _node, home, worker)) = with_fee_cap(100_000 * GWEI).await else { return };
    publish(&stage, &["a", "b"]).await;
    wait_log(&worker, "pause.reason=price_stuck").await;
    let log = worker.log();
    let said = log.lines().find(|line| line.contains("price_stuck")).unwrap_or_default();
    assert!(said.contains("request a") && said.contains("its nodes take 99900 gwei at most"), "{said}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((signed(&stage.status(&home, "a").await), stage.depth(DEAD).await), (1, (0, 0)));
    stage.anvil.set_next_base_fee(GWEI / 10).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    pool_holds(&stage, 2).await;
    stage.anvil.mine(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_eq!((stage.transactions_of(0).await.len(), stage.depth(DEAD).await), (2, (0, 0)));
}
