//! A journal that fails stops everything: nothing is sent, nothing is acked, and nothing is lost.

use rusqlite::Connection;

use crate::stage::{BINARY, LONG, QUEUE, Stage, calldata};
use crate::support::{ACCOUNTS, WorkerHome, wait_until, with_id};

/// `EX_IOERR`
const JOURNAL_FAILED: i32 = 74;

/// Lets every insert into this table fail, as a full disk would; or no longer.
fn let_inserts_fail(home: &WorkerHome, table: &str, fail: bool) {
    let statement = if fail {
        format!("CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
    } else {
        "DROP TRIGGER full".to_owned()
    };
    Connection::open(home.journal_file()).unwrap().execute_batch(&statement).unwrap();
}

/// Makes the journal by letting a worker run for a moment.
async fn made(stage: &Stage, home: &WorkerHome) {
    stage.topology(home).await;
    let mut worker = home.start(BINARY);
    wait_until("the journal is there", LONG, async || home.journal_file().exists()).await;
    crate::stage::wait_log(&worker, "the lane works").await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// Invariants 1 and 9; C2, C9: the nonce is taken in the commit that stores the bytes, so it is not taken either.
#[tokio::test]
async fn bytes_that_the_journal_cannot_keep_go_to_no_node() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 0"));
    made(&stage, &home).await;
    let_inserts_fail(&home, "attempts", true);
    stage.amqp.publish(QUEUE, with_id("a"), b"kept").await;
    for _ in 0..2 {
        let mut worker = home.start(BINARY);
        assert_eq!(worker.exit().await.code(), Some(JOURNAL_FAILED), "{}", worker.log());
        assert!(worker.log().contains("the disk is full"), "{}", worker.log());
        assert_eq!(stage.anvil.pool_size().await, Ok((0, 0)), "nothing was sent");
        assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(0));
        wait_until("the delivery is back", LONG, async || stage.depth(QUEUE).await == (1, 0)).await;
    }
    let_inserts_fail(&home, "attempts", false);
    stage.anvil.set_auto_mine(true).await.unwrap();
    let _worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await, [(0, calldata(b"kept"), crate::stage::SINK.to_owned())]);
}

/// Invariants 7a and 9: the write is final, but its event cannot be stored.
#[tokio::test]
async fn a_delivery_whose_outcome_the_journal_cannot_keep_is_not_acked() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 0"));
    made(&stage, &home).await;
    let_inserts_fail(&home, "outbox", true);
    stage.amqp.publish(QUEUE, with_id("a"), b"kept").await;
    let mut worker = home.start(BINARY);
    assert_eq!(worker.exit().await.code(), Some(JOURNAL_FAILED), "{}", worker.log());
    wait_until("the delivery is back", LONG, async || stage.depth(QUEUE).await == (1, 0)).await;
    let_inserts_fail(&home, "outbox", false);
    let _worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await.len(), 1, "written once");
    assert_eq!(stage.status(&home, "a").await["state"], "final");
}

/// C60
#[tokio::test]
async fn a_journal_of_a_newer_version_is_refused_before_anything_is_taken_in() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    made(&stage, &home).await;
    let newer = "UPDATE counters SET value = 99 WHERE name = 'oldest_schema'; PRAGMA user_version = 99";
    Connection::open(home.journal_file()).unwrap().execute_batch(newer).unwrap();
    stage.amqp.publish(QUEUE, with_id("a"), b"kept").await;
    let mut worker = home.start(BINARY);
    assert_eq!(worker.exit().await.code(), Some(JOURNAL_FAILED));
    assert!(worker.log().contains("newer chainwriter"), "{}", worker.log());
    assert_eq!(stage.depth(QUEUE).await, (1, 0));
}
