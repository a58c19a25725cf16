//! Several endpoints, and what may be wrong with one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chainwriter::testing::transaction_hash;
use serde_json::{Value, json};

use crate::chain::nodes::{assert_written_once_in_order, publish};
use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, wait_log};
use crate::support::{
    ACCOUNTS, Anvil, AnvilConfig, Reply, ScriptedNode, WorkerConfig, WorkerHome, wait_until, with_id,
};

/// A worker's configuration with these endpoints, whose messages are final at once and fail at the first failure.
fn config(stage: &Stage, endpoints: &[String]) -> WorkerConfig {
    let endpoints = format!("endpoints = {endpoints:?}\nfinality = 0");
    stage.config().with("chain", endpoints).with("retry", "max_attempts = 1")
}

/// A node that passes everything on while the switch is off, and answers by the script while it is on.
async fn node_with_switch(
    stage: &Stage,
    script: impl Fn(&Value) -> Reply + Send + Sync + 'static,
) -> (ScriptedNode, Arc<AtomicBool>) {
    let switch = Arc::new(AtomicBool::new(false));
    let is_on = Arc::clone(&switch);
    let script = move |request: &Value| if is_on.load(Ordering::Relaxed) { script(request) } else { Reply::Pass };
    (ScriptedNode::start(Some(stage.anvil.address()), script).await, switch)
}

/// C12, C59
#[tokio::test]
async fn the_worker_moves_to_another_endpoint_and_back_without_a_pause() {
    let Some(stage) = Stage::set().await else { return };
    let (first, is_broken) =
        node_with_switch(&stage, |_| Reply::Http(503, String::new(), "down for a while".to_owned())).await;
    let home = WorkerHome::new(&config(&stage, &[first.url(), stage.anvil.url()]));
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    publish(&stage, 3).await;
    stage.wait_nonce(0, 3).await;
    stage.wait_empty(QUEUE).await;
    is_broken.store(true, Ordering::Relaxed);
    wait_log(&worker, "the endpoint is not used for now").await;
    for number in 3..6 {
        stage.amqp.publish(QUEUE, with_id(&format!("n-{number}")), format!("body {number}").as_bytes()).await;
    }
    stage.wait_nonce(0, 6).await;
    stage.wait_empty(QUEUE).await;
    is_broken.store(false, Ordering::Relaxed);
    wait_log(&worker, "the endpoint serves again").await;
    let looks = first.times("eth_getBlockByNumber");
    wait_until("the first is used again", LONG, async || first.times("eth_getBlockByNumber") > looks + 5).await;
    assert_written_once_in_order(&stage, 6).await;
    assert!(!worker.log().contains("the lane pauses"), "{}", worker.log());
}

/// C18, C23: a node that stands still is left for one that does not, and used again when it has caught up.
#[tokio::test]
async fn an_endpoint_that_is_behind_is_not_used_until_it_has_caught_up() {
    let Some(stage) = Stage::set().await else { return };
    let old = stage.anvil.call("eth_getBlockByNumber", json!(["latest", false])).await.unwrap();
    let (first, is_frozen) = node_with_switch(&stage, move |call| {
        let asks_newest = call["method"] == "eth_getBlockByNumber" && call["params"][0] == "latest";
        if asks_newest { Reply::Result(old.clone()) } else { Reply::Pass }
    })
    .await;
    is_frozen.store(true, Ordering::Relaxed);
    stage.anvil.mine(20).await.unwrap();
    let home = WorkerHome::new(&config(&stage, &[first.url(), stage.anvil.url()]));
    stage.topology(&home).await;
    publish(&stage, 5).await;
    let worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 5).await;
    assert!(worker.log().contains("the endpoint is not used until it has caught up"), "{}", worker.log());
    is_frozen.store(false, Ordering::Relaxed);
    wait_log(&worker, "the endpoint has caught up").await;
}

/// C12
#[tokio::test]
async fn a_node_that_asks_for_a_pause_gets_it_and_no_message_fails() {
    let Some(stage) = Stage::set().await else { return };
    let left = Arc::new(AtomicUsize::new(0));
    let refusals = Arc::clone(&left);
    let node = ScriptedNode::start(Some(stage.anvil.address()), move |_| {
        let is_refused = |left: usize| left.checked_sub(1);
        match refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_refused) {
            Ok(_) => Reply::Http(429, "retry-after: 1\r\n".to_owned(), String::new()),
            Err(_) => Reply::Pass,
        }
    });
    let node = node.await;
    let home = WorkerHome::new(&config(&stage, &[node.url()]));
    stage.topology(&home).await;
    publish(&stage, 2).await;
    let worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    let asked = Instant::now();
    left.store(4, Ordering::Relaxed);
    wait_until("four requests were refused", LONG, async || left.load(Ordering::Relaxed) == 0).await;
    assert!(asked.elapsed() >= Duration::from_secs(3), "a second between one and the next");
    assert!(worker.log().contains("the endpoint asks for fewer calls"), "{}", worker.log());
    assert!(!worker.log().contains("the lane pauses"), "{}", worker.log());
    stage.amqp.publish(QUEUE, with_id("n-2"), b"body 2").await;
    stage.wait_nonce(0, 3).await;
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 3).await;
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}

/// A provider that takes 20 calls a second, and 20 at once, each call of a batch counted, and says no more than 429.
#[tokio::test]
async fn a_hundred_messages_get_through_a_limit_of_twenty_calls_a_second() {
    const PER_SECOND: f64 = 20.0;
    const MESSAGES: usize = 100;
    let blocks = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(blocks).await else { return };
    let node = ScriptedNode::limited(stage.anvil.address(), PER_SECOND).await;
    let home = WorkerHome::new(&config(&stage, &[node.url()]));
    stage.topology(&home).await;
    publish(&stage, MESSAGES).await;
    let began = Instant::now();
    let worker = home.start(BINARY);
    stage.wait_nonce(0, MESSAGES as u64).await;
    stage.wait_empty(QUEUE).await;
    // Three calls for each message, and as many again for the blocks that it takes.
    let allowed = 6.0 * MESSAGES as f64 / PER_SECOND;
    assert!(began.elapsed().as_secs_f64() < allowed * 2.0, "{:?}: {}", began.elapsed(), worker.log());
    assert_written_once_in_order(&stage, MESSAGES).await;
    assert_eq!(stage.depth(DEAD).await, (0, 0));
    assert!(!worker.log().contains("the lane pauses"), "{}", worker.log());
}

#[tokio::test]
async fn a_node_without_batches_is_good_enough() {
    let blocks = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(blocks).await else { return };
    let node = ScriptedNode::start(Some(stage.anvil.address()), |request| match request.is_array() {
        true => Reply::Http(405, String::new(), "one call at a time".to_owned()),
        false => Reply::Pass,
    });
    let node = node.await;
    let home = WorkerHome::new(&config(&stage, &[node.url()]));
    stage.topology(&home).await;
    publish(&stage, 40).await;
    let worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 40).await;
    assert_eq!(worker.log().matches("longer batches are refused").count(), 1, "{}", worker.log());
    assert!(node.batches() < 5, "batches are tried at first only, not {} times", node.batches());
}

/// C22
#[tokio::test]
async fn an_endpoint_of_another_chain_gets_nothing_and_the_other_serves() {
    let Some(stage) = Stage::set().await else { return };
    let other = Anvil::start(AnvilConfig { chain_id: 5, ..AnvilConfig::default() }).await;
    let home = WorkerHome::new(&config(&stage, &[other.url(), stage.anvil.url()]));
    stage.topology(&home).await;
    publish(&stage, 3).await;
    let worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 3).await;
    assert_eq!(other.nonce(ACCOUNTS[0].0, "pending").await, Ok(0));
    assert!(worker.log().contains("serves chain 5, chain.id is 31337"), "{}", worker.log());
}

/// C19: the first node takes the bytes, answers well, and never passes them on.
#[tokio::test]
async fn what_one_node_takes_and_forgets_reaches_the_chain_through_another() {
    let Some(stage) = Stage::set().await else { return };
    let taking = ScriptedNode::start(Some(stage.anvil.address()), |call| {
        if call["method"] != "eth_sendRawTransaction" {
            return Reply::Pass;
        }
        let raw = hex::decode(call["params"][0].as_str().unwrap().trim_start_matches("0x")).unwrap();
        Reply::Result(json!(transaction_hash(&raw)))
    });
    let taking = taking.await;
    let home = WorkerHome::new(&config(&stage, &[taking.url(), stage.anvil.url()]));
    stage.topology(&home).await;
    publish(&stage, 10).await;
    let _worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 10).await;
    assert!(taking.times("eth_sendRawTransaction") >= 10);
}

/// C23: a node that says it is syncing is not asked for anything else, and nothing fails for it.
#[tokio::test]
async fn a_syncing_node_pauses_the_lane_until_it_has_caught_up() {
    let Some(stage) = Stage::set().await else { return };
    let (node, is_syncing) = node_with_switch(&stage, |call| match call["method"] == "eth_syncing" {
        true => Reply::Result(json!({ "currentBlock": "0x1", "highestBlock": "0x64" })),
        false => Reply::Pass,
    })
    .await;
    is_syncing.store(true, Ordering::Relaxed);
    let home = WorkerHome::new(&config(&stage, &[node.url()]));
    stage.topology(&home).await;
    publish(&stage, 2).await;
    let worker = home.start(BINARY);
    wait_log(&worker, "node_syncing").await;
    assert_eq!(stage.depth(QUEUE).await, (2, 0), "deliveries wait at the broker");
    is_syncing.store(false, Ordering::Relaxed);
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 2).await;
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}

/// C36: what a node says and nobody knows is in the log; the configuration can say what it means.
#[tokio::test]
async fn texts_that_nobody_knows_are_told_and_can_be_explained_by_the_configuration() {
    let Some(stage) = Stage::set().await else { return };
    let (node, is_locked) = node_with_switch(&stage, |call| match call["method"] == "eth_sendRawTransaction" {
        true => Reply::error(-32000, "The Vault is locked for your kind"),
        false => Reply::Pass,
    })
    .await;
    is_locked.store(true, Ordering::Relaxed);
    let home = WorkerHome::new(&config(&stage, &[node.url()]));
    stage.topology(&home).await;
    publish(&stage, 1).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "The Vault is locked for your kind").await;
    assert!(worker.log().contains("[chain.errors] can say what it means"), "{}", worker.log());
    worker.stop().await;
    let explained = config(&stage, &[node.url()]).with("chain.errors", "not_permitted = [\"vault is LOCKED\"]");
    home.configure(&explained);
    let worker = home.start(BINARY);
    wait_log(&worker, "not_permitted").await;
    is_locked.store(false, Ordering::Relaxed);
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 1).await;
}

const SEND: &str = "eth_sendRawTransaction";

/// A relay that takes transactions for the node behind it, and answers nothing else.
async fn relay(stage: &Stage) -> ScriptedNode {
    ScriptedNode::start(Some(stage.anvil.address()), |request| {
        let is_send = |call: &Value| call["method"] == SEND;
        match request.as_array().map_or_else(|| is_send(request), |calls| calls.iter().all(is_send)) {
            true => Reply::Pass,
            false => Reply::Http(403, String::new(), "this relay takes transactions".to_owned()),
        }
    })
    .await
}

#[tokio::test]
async fn a_relay_gets_the_transactions_and_another_node_is_read() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let relay = relay(&stage).await;
    let read = ScriptedNode::start(Some(stage.anvil.address()), |_| Reply::Pass).await;
    let config = stage.config().with("chain", "finality = 0");
    let config = config.with("chain.endpoint", format!("url = {:?}\nrole = \"send\"", relay.url()));
    let home = WorkerHome::new(&config.with("chain.endpoint", format!("url = {:?}\nrole = \"read\"", read.url())));
    stage.topology(&home).await;
    publish(&stage, 20).await;
    let worker = home.start(BINARY);
    stage.wait_nonce(0, 20).await;
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 20).await;
    assert_eq!(read.times(SEND), 0);
    assert!(relay.times(SEND) >= 20, "{}", relay.times(SEND));
    assert!(relay.times("eth_chainId") + relay.times("eth_getBlockByNumber") == 0, "it is asked for nothing else");
    assert!(!worker.log().contains("the lane pauses"), "{}", worker.log());
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert_eq!(code, 0, "{text}");
    for part in [" takes transactions; it is asked for nothing else", ", which gets no transactions"] {
        assert!(text.lines().any(|line| line.starts_with("ok    node: ") && line.contains(part)), "{part}: {text}");
    }
}

/// First sends, resends, replacements, cancellations: the public node sees none of them.
#[tokio::test]
async fn while_a_private_endpoint_is_there_no_other_gets_a_transaction() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let keeps = Arc::new(AtomicBool::new(true));
    let is_kept = Arc::clone(&keeps);
    // While it keeps what it gets, nothing reaches the chain.
    let private = ScriptedNode::start(Some(stage.anvil.address()), move |request| match request["method"].as_str() {
        Some(SEND) if is_kept.load(Ordering::Relaxed) => Reply::Result(hash_of(request)),
        _ => Reply::Pass,
    });
    let (private, public) = (private.await, ScriptedNode::start(Some(stage.anvil.address()), |_| Reply::Pass).await);
    let times = "finality = 0\nresend_after = \"1s\"\nreplace_after = \"2s\"";
    let config = stage.config().with("chain", times);
    let config = config.with("chain.endpoint", format!("url = {:?}", public.url()));
    let private_lines = format!("url = {:?}\nrole = \"send\"\nprivate = true", private.url());
    let home = WorkerHome::new(&config.with("chain.endpoint", private_lines));
    stage.topology(&home).await;
    publish(&stage, 3).await;
    let worker = home.start(BINARY);
    wait_until("they went out, again, and at a higher price", LONG, async || {
        // Its blocks do not hold what it has never seen.
        stage.anvil.mine(1).await.unwrap();
        worker.log().contains("another attempt at the nonce")
    })
    .await;
    let (code, text) = home.command(BINARY, &["cancel", "n-0"]).await;
    assert_eq!(code, 0, "{text}");
    wait_log(&worker, "tx.kind=\"cancel\"").await;
    assert!(private.times(SEND) > 6, "{}", private.times(SEND));
    assert_eq!(stage.anvil.pool_size().await, Ok((0, 0)));
    keeps.store(false, Ordering::Relaxed);
    stage.anvil.set_auto_mine(true).await.unwrap();
    stage.wait_nonce(0, 3).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(public.times(SEND), 0);
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, ["0x".to_owned(), calldata(b"body 1"), calldata(b"body 2")]);
}

/// Anvil announces its blocks at the same port. Without that the second message would be final after a minute.
#[tokio::test]
async fn a_websocket_that_announces_blocks_hastens_polls() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let socket = stage.anvil.url().replace("http://", "ws://");
    let endpoints = format!("endpoints = [{:?}, {socket:?}]\npoll_interval = \"1m\"", stage.anvil.url());
    let home = WorkerHome::new(&stage.config().with("chain", endpoints));
    stage.topology(&home).await;
    publish(&stage, 1).await;
    let worker = home.start(BINARY);
    wait_log(&worker, "the endpoint announces new blocks").await;
    let began = Instant::now();
    stage.wait_empty(QUEUE).await;
    stage.amqp.publish(QUEUE, with_id("n-1"), b"body 1").await;
    stage.wait_nonce(0, 2).await;
    stage.wait_empty(QUEUE).await;
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    assert_written_once_in_order(&stage, 2).await;
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(
        code == 0 && text.lines().any(|line| line.starts_with("ok    node: ") && line.contains("announces new blocks")),
        "{text}"
    );
}

fn hash_of(call: &Value) -> Value {
    let raw = hex::decode(call["params"][0].as_str().unwrap().trim_start_matches("0x")).unwrap();
    json!(transaction_hash(&raw))
}
