//! Writes that the chain refuses: counted retries with growing delays, and a dead letter that says why.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::stage::{BINARY, CONTRACT, DEAD, LONG, QUEUE, Stage, calldata, kinds_of};
use crate::support::contracts::{
    ALWAYS_REVERTS, NOT_ALLOWED_SELECTOR, PANICS, REVERTS_CUSTOM, REVERTS_ON_FF, REVERTS_UNLESS_FLAG, SINK,
};
use crate::support::{ACCOUNTS, Taken, Watch, WorkerConfig, WorkerHome, with_id};

const RETRY: &str = "acme.writes.retry";
const SHORT_WAIT: &str = "acme.writes.wait.1s";
const LONG_WAIT: &str = "acme.writes.wait.2s";
/// Nothing is simulated, so what reverts does so on the chain.
const FIXED_GAS: &str = "gas = 200000";

fn tries(config: WorkerConfig, max_attempts: u32) -> WorkerConfig {
    config
        .with("retry", format!("max_attempts = {max_attempts}"))
        .with("retry", "initial_delay = \"1s\"\nmultiplier = 2.0\nmax_delay = \"10s\"")
}

/// Sees retries and dead letters as they pass through their exchanges.
async fn watch_copies(stage: &Stage) -> Watch {
    stage.amqp.watch(&[(RETRY, SHORT_WAIT), (RETRY, LONG_WAIT), (DEAD, "#")]).await
}

/// What every copy must say, whatever it failed for.
fn assert_explained(copy: &Taken, attempt: u32, reason: &str, detail: &str) {
    let header = |name: &str| copy.header(name).unwrap_or_else(|| panic!("no {name} in {copy:?}"));
    assert_eq!(copy.id(), "order-1");
    assert_eq!(header("cw-attempt"), attempt.to_string());
    assert_eq!(header("cw-error-class"), "rejected");
    assert_eq!(header("cw-error-reason"), reason);
    assert_eq!(header("cw-error-detail"), detail);
    assert_eq!((header("cw-original-exchange").as_str(), header("cw-original-routing-key").as_str()), ("", QUEUE));
    assert!(header("cw-worker").starts_with("acme/"), "{copy:?}");
    assert_eq!(*copy.properties.delivery_mode(), Some(2), "copies survive the broker");
    let of_the_broker: Vec<_> = copy.properties.headers().as_ref().unwrap().inner().keys().cloned().collect();
    assert!(!of_the_broker.iter().any(|name| name.as_str().starts_with("x-")), "{of_the_broker:?}");
}

/// Covers C30: no gas is spent, each retry waits longer, the dead letter explains itself. What is measured is when the
/// broker passes the copies on; the lower bounds count from before the first publish, so a slow machine cannot break them.
#[tokio::test]
async fn a_reverting_simulation_is_retried_at_growing_delays_and_then_a_dead_letter() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(ALWAYS_REVERTS).await, 3));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut copies = watch_copies(&stage).await;
    let mut worker = home.start(BINARY);
    let began = Instant::now();
    stage.amqp.publish(QUEUE, with_id("order-1").with_correlation_id("c-1".into()), b"\x00body\xff").await;
    let first = copies.next(LONG).await;
    assert_eq!((first.exchange.as_str(), first.routing_key.as_str()), (RETRY, SHORT_WAIT));
    let second = copies.next(LONG).await;
    assert_eq!((second.exchange.as_str(), second.routing_key.as_str()), (RETRY, LONG_WAIT));
    assert!(began.elapsed() >= Duration::from_secs(1), "the first retry waited its second");
    let dead = copies.next(LONG).await;
    assert_eq!((dead.exchange.as_str(), dead.routing_key.as_str()), (DEAD, "rejected.reverted"));
    assert!(began.elapsed() >= Duration::from_secs(3), "the second retry waited its two seconds");
    assert!(began.elapsed() < Duration::from_secs(30), "and not for ever");
    for (copy, attempt) in [(&first, 1), (&second, 2), (&dead, 2)] {
        assert_explained(copy, attempt, "reverted", "not today");
        assert_eq!(copy.body, b"\x00body\xff");
        assert_eq!(copy.properties.correlation_id().as_ref().map(ToString::to_string).as_deref(), Some("c-1"));
        assert_eq!(copy.texts("cw-tx-hash"), Vec::<String>::new(), "nothing was ever signed");
        assert_eq!(copy.header("cw-first-failed-at"), first.header("cw-first-failed-at"), "the first time stays");
    }
    stage.wait_empty(QUEUE).await;
    let status = stage.wait_state(&home, "order-1", "dead").await;
    assert_eq!(status["attempt"], 2);
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(DEAD).await, (1, 0));
    assert_eq!((stage.depth(SHORT_WAIT).await, stage.depth(LONG_WAIT).await), ((0, 0), (0, 0)));
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(0), "no gas was spent");
    let events = stage.kept_events().await;
    assert_eq!(kinds_of(&events, "order-1"), ["retry", "retry", "dead"]);
    let told: Vec<_> = events.iter().map(|(.., event)| event["data"]["delay_ms"].as_u64()).collect();
    assert_eq!(told, [Some(1000), Some(2000), None]);
    for (.., event) in &events {
        assert_eq!(event["data"]["error"]["detail"], "not today");
    }
    let ids: BTreeSet<_> = events.iter().map(|(.., event)| event["id"].to_string()).collect();
    assert_eq!(ids.len(), 3, "each outcome has an id of its own");
}

/// Covers C30 for each encoding of a revert.
#[tokio::test]
async fn with_one_attempt_there_is_no_retry_and_the_dead_letter_tells_each_kind_of_revert() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(ALWAYS_REVERTS).await, 1));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    let custom = format!("custom error {NOT_ALLOWED_SELECTOR} with data 0x{:064x}", 42);
    let kinds = [
        (ALWAYS_REVERTS, "reverted", "not today"),
        (PANICS, "panicked", "Panic(0x11): arithmetic overflow"),
        (REVERTS_CUSTOM, "reverted_custom", custom.as_str()),
    ];
    for (number, (code, reason, detail)) in kinds.into_iter().enumerate() {
        stage.anvil.set_code(CONTRACT, code).await.unwrap();
        stage.amqp.publish(QUEUE, with_id(&format!("order-{number}")), b"").await;
        let dead = stage.amqp.wait_for(DEAD, LONG).await;
        assert_eq!(dead.id(), format!("order-{number}"));
        assert_eq!(dead.routing_key, format!("rejected.{reason}"));
        assert_eq!(dead.header("cw-error-detail").as_deref(), Some(detail));
        assert_eq!(dead.header("cw-attempt").as_deref(), Some("0"));
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let kinds: Vec<_> = stage.kept_events().await.into_iter().map(|(_, kind, _)| kind).collect();
    assert_eq!(kinds, ["dead", "dead", "dead"], "no retry was told of");
}

/// Covers C29, and C50 as it is documented, a retry comes after what was behind it: both tries use a nonce, the dead letter names both transactions, the message between them is written.
#[tokio::test]
async fn a_revert_on_chain_uses_its_nonce_and_leaves_the_next_message_alone() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = tries(stage.config_for(REVERTS_ON_FF).await, 2).with("write", FIXED_GAS);
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut copies = watch_copies(&stage).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"\xffbad").await;
    stage.amqp.publish(QUEUE, with_id("order-2"), b"good").await;
    let mut worker = home.start(BINARY);
    let retry = copies.next(LONG).await;
    assert_eq!(retry.routing_key, SHORT_WAIT);
    assert_explained(&retry, 1, "reverted", "not today");
    assert_eq!(retry.texts("cw-tx-hash").len(), 1);
    let dead = copies.next(LONG).await;
    assert_eq!(dead.routing_key, "rejected.reverted");
    assert_explained(&dead, 1, "reverted", "not today");
    let hashes: BTreeSet<_> = dead.texts("cw-tx-hash").into_iter().collect();
    assert_eq!(hashes.len(), 2);
    let mut nonces = Vec::new();
    for hash in &hashes {
        let receipt = stage.anvil.receipt(hash).await.unwrap();
        assert_eq!(receipt["status"], "0x0", "{receipt}");
        let depth = stage.anvil.block_number().await.unwrap() - number(&receipt["blockNumber"]);
        assert!(depth >= 2, "a revert counts only when it is final");
        let transaction = stage.anvil.call("eth_getTransactionByHash", serde_json::json!([hash])).await.unwrap();
        nonces.push(number(&transaction["nonce"]));
    }
    nonces.sort_unstable();
    assert_eq!(nonces, [0, 2]);
    stage.wait_empty(QUEUE).await;
    let good = stage.wait_state(&home, "order-2", "final").await;
    assert_eq!(good["transactions"].as_array().unwrap().len(), 1);
    assert_eq!(worker.stop().await.code(), Some(0));
    let bodies: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(bodies, [calldata(b"\xffbad"), calldata(b"good"), calldata(b"\xffbad")]);
    let events = stage.kept_events().await;
    assert_eq!(kinds_of(&events, "order-1"), ["retry", "dead"]);
    assert_eq!(kinds_of(&events, "order-2"), ["final"]);
}

/// The second try is a transaction of its own, and only after the first has failed for good.
#[tokio::test]
async fn a_contract_that_opens_between_two_tries_gets_its_write() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = tries(stage.config_for(REVERTS_UNLESS_FLAG).await, 3).with("write", FIXED_GAS);
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut copies = watch_copies(&stage).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"please").await;
    let retry = copies.next(LONG).await;
    assert_explained(&retry, 1, "reverted", "closed");
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    stage.anvil.set_storage(CONTRACT, 0, 1).await.unwrap();
    let status = stage.wait_state(&home, "order-1", "final").await;
    assert_eq!(status["attempt"], 1);
    let states: Vec<_> = status["transactions"].as_array().unwrap().iter().map(|tx| tx["state"].clone()).collect();
    assert_eq!(states, ["reverted", "succeeded"]);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 2);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
    assert_eq!(kinds_of(&stage.kept_events().await, "order-1"), ["retry", "final"]);
}

/// The same without a transaction for the first try.
#[tokio::test]
async fn a_simulation_that_succeeds_at_the_second_try_leads_to_one_transaction() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(ALWAYS_REVERTS).await, 2));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut copies = watch_copies(&stage).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"please").await;
    assert_eq!(copies.next(LONG).await.routing_key, SHORT_WAIT);
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    stage.wait_state(&home, "order-1", "final").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await, [(0, calldata(b"please"), CONTRACT.to_owned())]);
    assert_eq!(kinds_of(&stage.kept_events().await, "order-1"), ["retry", "final"]);
}

fn number(quantity: &serde_json::Value) -> u64 {
    u64::from_str_radix(quantity.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}
