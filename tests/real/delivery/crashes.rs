//! `kill -9` at chosen moments: between two steps of the way of a message.

use rusqlite::Connection;

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, kinds_of, wait_log};
use crate::support::contracts::ALWAYS_REVERTS;
use crate::support::{ACCOUNTS, AnvilConfig, Mode, TcpProxy, Worker, WorkerConfig, WorkerHome, wait_until, with_id};

const WAIT: &str = "acme.writes.wait.5s";
const RETRY: &str = "acme.writes.retry";
const GWEI: u64 = 1_000_000_000;

/// While it is held, nobody else can write to the journal.
struct JournalLock(Connection);

impl JournalLock {
    fn take(file: &std::path::Path) -> Self {
        let connection = Connection::open(file).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self(connection)
    }

    fn release(self) {
        self.0.close().unwrap();
    }
}

async fn assert_written_once(stage: &Stage, bodies: &[&[u8]]) {
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, bodies.iter().map(|body| calldata(body)).collect::<Vec<_>>());
}

/// The transaction's hashes, oldest first.
async fn hashes(stage: &Stage, home: &WorkerHome, id: &str) -> Vec<String> {
    let status = stage.status(home, id).await;
    let attempts = status["transactions"][0]["attempts"].as_array().cloned().unwrap_or_default();
    attempts.iter().map(|attempt| attempt["hash"].as_str().unwrap().to_owned()).collect()
}

/// C1: the delivery is here, and the journal can write nothing of it.
#[tokio::test]
async fn killed_before_anything_is_written_it_takes_the_message_in_again() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    wait_log(&worker, "the lane owns its account").await;
    let lock = JournalLock::take(&home.journal_file());
    stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
    wait_until("it is delivered", LONG, async || stage.depth(QUEUE).await == (0, 1)).await;
    worker.kill().await;
    lock.release();
    assert_eq!(stage.status(&home, "order-1").await, serde_json::Value::Null, "nothing is known of it");
    let _worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_written_once(&stage, &[b"once"]).await;
}

/// C3: the bytes are journalled and no node has them. The next process sends the very same.
#[tokio::test]
async fn killed_before_the_broadcast_it_sends_the_same_bytes() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (node, home) = stage.behind_a_deaf_node().await;
    node.be_deaf();
    stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
    let mut worker = home.start(BINARY);
    wait_until("it is signed", LONG, async || !hashes(&stage, &home, "order-1").await.is_empty()).await;
    worker.kill().await;
    let signed = hashes(&stage, &home, "order-1").await;
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(0), "no node has it");
    node.hear();
    let _worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.status(&home, "order-1").await["transactions"][0]["final_hash"], signed[0].as_str());
    assert_eq!(hashes(&stage, &home, "order-1").await, signed, "nothing else was ever signed");
    assert_written_once(&stage, &[b"once"]).await;
}

/// C4, C14: a node has the bytes and its answer is lost; or they are in a block by the time of the restart.
#[tokio::test]
async fn killed_after_the_broadcast_it_finds_its_transaction_in_the_pool_or_in_a_block() {
    for mined_meanwhile in [false, true] {
        let Some(stage) = Stage::set().await else { return };
        stage.anvil.set_auto_mine(false).await.unwrap();
        let (node, home) = stage.behind_a_deaf_node().await;
        node.keep_answers();
        stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
        let mut worker = home.start(BINARY);
        wait_until("the node has it", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
        worker.kill().await;
        if mined_meanwhile {
            stage.anvil.mine(1).await.unwrap();
        }
        node.hear();
        let worker = home.start(BINARY);
        wait_log(&worker, "the lane owns its account").await;
        stage.anvil.set_interval_mining(1).await.unwrap();
        stage.wait_empty(QUEUE).await;
        assert_eq!(hashes(&stage, &home, "order-1").await.len(), 1);
        assert_written_once(&stage, &[b"once"]).await;
    }
}

/// C5: killed while its block is not final yet.
#[tokio::test]
async fn killed_between_the_block_and_finality_it_acks_without_another_transaction() {
    let Some(stage) = Stage::set().await else { return };
    let (home, mut worker) = stage.one_in_the_pool().await;
    stage.anvil.mine(1).await.unwrap();
    stage.wait_nonce(0, 1).await;
    worker.kill().await;
    stage.anvil.mine(5).await.unwrap();
    let _worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.status(&home, "order-1").await["state"], "final");
    assert_eq!(stage.anvil.pool_size().await, Ok((0, 0)));
    assert_written_once(&stage, &[b"once"]).await;
}

/// C6: the replacement is journalled and either no node has it, or a node has it and did not say so.
#[tokio::test]
async fn killed_around_a_replacement_it_knows_both_hashes_and_writes_once() {
    for node_has_it in [false, true] {
        let chain = AnvilConfig { base_fee: Some(GWEI), ..AnvilConfig::default() };
        let Some(stage) = Stage::with_chain(chain).await else { return };
        stage.anvil.set_auto_mine(false).await.unwrap();
        let (node, home) = stage.behind_a_deaf_node().await;
        stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
        let mut worker = home.start(BINARY);
        wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
        let first = stage.anvil.call("txpool_content", serde_json::json!([])).await.unwrap();
        if node_has_it {
            node.keep_answers()
        } else {
            node.be_deaf()
        }
        stage.anvil.set_next_base_fee(20 * GWEI).await.unwrap();
        stage.anvil.mine(1).await.unwrap();
        wait_until("it is signed anew", LONG, async || hashes(&stage, &home, "order-1").await.len() == 2).await;
        if node_has_it {
            wait_until("the node has the new one", LONG, async || {
                stage.anvil.call("txpool_content", serde_json::json!([])).await.unwrap() != first
            })
            .await;
        }
        worker.kill().await;
        let signed = hashes(&stage, &home, "order-1").await;
        node.hear();
        let _worker = home.start(BINARY);
        stage.anvil.set_interval_mining(1).await.unwrap();
        stage.wait_empty(QUEUE).await;
        let known = hashes(&stage, &home, "order-1").await;
        assert!(signed.iter().all(|hash| known.contains(hash)), "{signed:?} in {known:?}");
        assert_written_once(&stage, &[b"once"]).await;
    }
}

fn failing(config: WorkerConfig) -> WorkerConfig {
    config.with("retry", "max_attempts = 2\ninitial_delay = \"5s\"\nmax_delay = \"5s\"")
}

/// C7, B3: the copy has its confirm and the journal says so; the ack is lost with the process.
#[tokio::test]
async fn killed_between_the_confirm_of_a_retry_and_the_ack_it_acks_the_original_as_stale() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let proxy = TcpProxy::start(stage.rabbit.address()).await;
    let mut config = failing(stage.config_for(ALWAYS_REVERTS).await).with("write", "gas = 200000");
    config.broker_uri = stage.rabbit.uri_through(proxy.addr(), &stage.vhost);
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    // The topology's connection came first, then the one that consumes, then the one that publishes.
    assert_eq!(proxy.accepted(), 3);
    proxy.set_mode_of(1, Mode::Swallow);
    stage.anvil.mine(3).await.unwrap();
    stage.wait_state(&home, "order-1", "retry_waiting").await;
    assert_eq!(stage.depth(QUEUE).await, (0, 1), "the broker knows of no ack");
    worker.kill().await;
    proxy.cut_all();
    let mut worker = home.start(BINARY);
    wait_log(&worker, "verdict=Stale").await;
    stage.anvil.set_interval_mining(1).await.unwrap();
    assert_one_retry(&stage, &mut worker).await;
}

/// C7, B4: the copy is at the broker and the journal does not say so. It is published once more; one of the two counts.
#[tokio::test]
async fn killed_before_the_confirm_of_a_retry_is_noted_it_has_two_copies_and_acts_on_one() {
    let Some(stage) = Stage::set().await else { return };
    let config = failing(stage.config_for(ALWAYS_REVERTS).await).with("broker", "topology = \"verify\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    stage.amqp.unbind(WAIT, RETRY, WAIT).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    wait_log(&worker, "no queue takes messages").await;
    let lock = JournalLock::take(&home.journal_file());
    stage.amqp.bind(WAIT, RETRY, WAIT).await;
    wait_until("the copy waits", LONG, async || stage.depth(WAIT).await == (1, 0)).await;
    worker.kill().await;
    lock.release();
    assert_eq!(stage.status(&home, "order-1").await["state"], "retry_pending");
    let mut worker = home.start(BINARY);
    wait_until("two copies wait", LONG, async || stage.depth(WAIT).await == (2, 0)).await;
    assert_one_retry(&stage, &mut worker).await;
}

async fn assert_one_retry(stage: &Stage, worker: &mut Worker) {
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!(dead.header("cw-attempt").as_deref(), Some("1"));
    stage.wait_empty(WAIT).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(DEAD).await, (0, 0), "one dead letter");
    assert_eq!(kinds_of(&stage.kept_events().await, "order-1"), ["retry", "dead"], "one retry, tried once");
}
