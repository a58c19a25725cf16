//! Many messages, and what may die while they are written: the node, the worker, one of two workers.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::stage::{BINARY, EVENTS, LONG, QUEUE, Stage, calldata, wait_log};
use crate::support::{
    ACCOUNTS, AnvilConfig, Mode, TcpProxy, WorkerConfig, WorkerHome, next_event, wait_until, with_id,
};

/// Bodies of mixed size, each of its own.
fn body(number: usize) -> Vec<u8> {
    let filler = (number * 37) % 2_000;
    let mut body = format!("message {number} ").into_bytes();
    body.resize(body.len() + filler, b'.');
    body
}

async fn publish(stage: &Stage, numbers: std::ops::Range<usize>) {
    for number in numbers {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), &body(number)).await;
    }
}

/// Every body is in the chain exactly once, at nonces without a gap.
async fn assert_written_once(stage: &Stage, count: usize) {
    let transactions = stage.transactions_of(0).await;
    let nonces: Vec<u64> = transactions.iter().map(|(nonce, ..)| *nonce).collect();
    assert_eq!(nonces, (0..count as u64).collect::<Vec<_>>(), "nonces without a gap");
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, data, _) in &transactions {
        *times.entry(data).or_default() += 1;
    }
    for number in 0..count {
        assert_eq!(times.get(calldata(&body(number)).as_str()), Some(&1), "message {number} is written once");
    }
}

fn fast(stage: &Stage) -> WorkerConfig {
    stage.config().with("chain", "in_flight = 500\nfinality = 2").with("log", "level = \"info\"")
}

fn chain_with_fast_blocks() -> AnvilConfig {
    AnvilConfig { block_time: Some(Duration::from_secs(1)), gas_limit: 300_000_000, ..AnvilConfig::default() }
}

#[tokio::test]
async fn a_thousand_messages_become_a_thousand_transactions_in_queue_order() {
    let Some(stage) = Stage::with_chain(chain_with_fast_blocks()).await else { return };
    let home = WorkerHome::new(&fast(&stage));
    stage.topology(&home).await;
    let mut events = stage.amqp.listen(EVENTS).await;
    publish(&stage, 0..1000).await;
    let worker = home.start(BINARY);
    let mut highest_final = 0;
    for _ in 0..1000 {
        let (kind, event) = next_event(&mut events, LONG).await;
        assert_eq!(kind, "final", "{event}");
        highest_final = highest_final.max(event["data"]["transaction"]["block_number"].as_u64().unwrap());
        // What the broker counts as gone was acked; nothing beyond finality can be.
        assert!(stage.anvil.block_number().await.unwrap() >= highest_final + 2);
    }
    stage.wait_empty(QUEUE).await;
    assert_written_once(&stage, 1000).await;
    for (number, (_, data, _)) in stage.transactions_of(0).await.iter().enumerate() {
        assert_eq!(*data, calldata(&body(number)), "queue order is nonce order");
    }
    drop(worker);
}

#[tokio::test]
async fn deliveries_stay_unacked_until_their_blocks_are_final() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&fast(&stage));
    stage.topology(&home).await;
    publish(&stage, 0..20).await;
    let _worker = home.start(BINARY);
    wait_until("all are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((20, 0))).await;
    for _ in 0..2 {
        stage.anvil.mine(1).await.unwrap();
        stage.wait_nonce(0, 20).await;
        // The worker has seen the block; one on top is not two.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(stage.depth(QUEUE).await, (0, 20), "not final: every delivery is unacked");
    }
    stage.anvil.mine(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
}

/// C11, C12, C20, C25: whatever the way to the node does, the same bytes go on and nothing counts as an attempt.
#[tokio::test]
async fn a_node_that_fails_in_every_way_loses_nothing_and_uses_no_attempt() {
    let Some(stage) = Stage::with_chain(chain_with_fast_blocks()).await else { return };
    let proxy = TcpProxy::start(stage.anvil.address()).await;
    let mut config =
        fast(&stage).with("chain", "timeout = \"500ms\"\nresend_after = \"1s\"").with("retry", "max_attempts = 1");
    config.endpoint = proxy.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    let garbage = |body: &str| Mode::HttpAnswer { status: 200, body: body.to_owned(), retry_after: None };
    let faults = [
        Mode::Refuse,
        Mode::DropAnswers,
        Mode::ResetAfterRequest,
        Mode::Swallow,
        garbage("<html>please log in</html>"),
        garbage("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":null}"),
        garbage("[{\"jsonrpc\":"),
        Mode::HttpAnswer { status: 502, body: "bad gateway".to_owned(), retry_after: None },
        Mode::HttpAnswer { status: 429, body: String::new(), retry_after: Some(1) },
    ];
    let rounds = faults.len();
    for (round, fault) in faults.into_iter().enumerate() {
        publish(&stage, round * 20..round * 20 + 10).await;
        proxy.set_mode(fault);
        publish(&stage, round * 20 + 10..(round + 1) * 20).await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        proxy.set_mode(Mode::Pass);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stage.wait_empty(QUEUE).await;
    assert_written_once(&stage, rounds * 20).await;
    assert_eq!(stage.depth(crate::stage::DEAD).await, (0, 0), "an outage is no failure of a message");
    assert!(worker.log().contains("the lane resumes"), "the outage was seen");
}

/// C3, C4, C5: killed at moments that nobody chose, it carries on from the journal.
#[tokio::test]
async fn a_worker_killed_again_and_again_writes_everything_once() {
    let Some(stage) = Stage::with_chain(chain_with_fast_blocks()).await else { return };
    let home = WorkerHome::new(&fast(&stage).with("chain", "in_flight = 40"));
    stage.topology(&home).await;
    publish(&stage, 0..300).await;
    for round in 0..12_u64 {
        let mut worker = home.start(BINARY);
        tokio::time::sleep(Duration::from_millis(250 + 170 * round)).await;
        worker.kill().await;
    }
    let _worker = home.start(BINARY);
    // After so many returns deliveries are parked as soon as they are journalled: the queue is empty before all is written.
    stage.wait_empty(QUEUE).await;
    stage.wait_nonce(0, 300).await;
    assert_written_once(&stage, 300).await;
}

/// C51, C53: two processes on one journal and one key share the deliveries; one of them writes, the other takes over.
#[tokio::test]
async fn two_workers_on_one_journal_write_everything_once_also_when_the_owner_dies() {
    let Some(stage) = Stage::with_chain(chain_with_fast_blocks()).await else { return };
    let config = fast(&stage).with("broker", "prefetch = 50").with("chain", "in_flight = 40");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut events = stage.amqp.listen(EVENTS).await;
    let mut first = home.start(BINARY);
    wait_log(&first, "the lane owns its account").await;
    let second = home.start(BINARY);
    publish(&stage, 0..150).await;
    wait_until("some are in the chain", LONG, async || {
        stage.anvil.nonce(ACCOUNTS[0].0, "latest").await.is_ok_and(|nonce| nonce > 20)
    })
    .await;
    assert!(!second.log().contains("the lane owns its account"), "one account, one lane");
    first.kill().await;
    wait_log(&second, "the lane owns its account").await;
    stage.wait_empty(QUEUE).await;
    assert_written_once(&stage, 150).await;
    let mut ids: BTreeMap<String, String> = BTreeMap::new();
    while ids.len() < 150 {
        let (_, event) = next_event(&mut events, LONG).await;
        let subject = event["subject"].as_str().unwrap().to_owned();
        let id = event["id"].as_str().unwrap().to_owned();
        assert_eq!(*ids.entry(subject).or_insert_with(|| id.clone()), id, "one final event id for a request");
    }
}

/// C57
#[tokio::test]
async fn a_worker_that_is_asked_to_stop_gives_back_what_is_not_final_and_exits_with_0() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&fast(&stage).with("worker", "drain_deadline = \"10s\""));
    stage.topology(&home).await;
    publish(&stage, 0..30).await;
    let mut worker = home.start(BINARY);
    wait_until("all are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((30, 0))).await;
    let asked = std::time::Instant::now();
    let status = worker.stop().await;
    assert_eq!(status.code(), Some(0), "{}", worker.log());
    assert!(asked.elapsed() < Duration::from_secs(10), "within its deadline");
    wait_until("all deliveries are back", LONG, async || stage.depth(QUEUE).await == (30, 0)).await;
    stage.anvil.set_auto_mine(true).await.unwrap();
    stage.anvil.mine(3).await.unwrap();
    let _worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_written_once(&stage, 30).await;
}

/// The newest block had less room than the next one has; Anvil takes a transaction with too little gas, and drops it
/// without a word.
#[tokio::test]
async fn a_small_newest_block_takes_no_gas_from_an_estimate() {
    let Some(stage) = Stage::set().await else { return };
    let set_block_gas = async |gas: u64| {
        let set = stage.anvil.call("evm_setBlockGasLimit", serde_json::json!([format!("{gas:#x}")])).await;
        assert_eq!(set, Ok(true.into()));
    };
    set_block_gas(33_000).await;
    stage.anvil.mine(1).await.unwrap();
    set_block_gas(30_000_000).await;
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    // Takes more than 33,000 gas.
    stage.amqp.publish(QUEUE, with_id("long"), &[b'x'; 400]).await;
    stage.wait_nonce(0, 1).await;
    drop(worker);
}
