//! A journal that fails stops everything: its files torn, full or cut off, a write refused, a version too new.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rusqlite::Connection;

use crate::stage::{BINARY, LONG, QUEUE, Stage, calldata, wait_log};
use crate::support::{ACCOUNTS, Mode, TcpProxy, WorkerHome, wait_until, with_id};

/// `EX_IOERR`
const JOURNAL_FAILED: i32 = 74;
/// A newer version has changed it.
const OTHER_JOURNAL: i32 = 76;

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
    crate::stage::wait_log(&worker, "the lane owns its account").await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// Invariants 1 and 9; C2, C9: the nonce is taken in the commit that stores the bytes, so it is not taken either.
#[tokio::test]
async fn bytes_that_the_journal_cannot_keep_go_to_no_node() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 0"));
    made(&stage, &home).await;
    let_inserts_fail(&home, "signed_transactions", true);
    stage.amqp.publish(QUEUE, with_id("a"), b"kept").await;
    for _ in 0..2 {
        let mut worker = home.start(BINARY);
        assert_eq!(worker.exit().await.code(), Some(JOURNAL_FAILED), "{}", worker.log());
        assert!(worker.log().contains("the disk is full"), "{}", worker.log());
        assert_eq!(stage.anvil.pool_size().await, Ok((0, 0)), "nothing was sent");
        assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(0));
        wait_until("the delivery is back", LONG, async || stage.depth(QUEUE).await == (1, 0)).await;
    }
    let_inserts_fail(&home, "signed_transactions", false);
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
    assert_eq!(worker.exit().await.code(), Some(OTHER_JOURNAL));
    assert!(worker.log().contains("newer chainwriter"), "{}", worker.log());
    assert_eq!(stage.depth(QUEUE).await, (1, 0));
}

fn log_file(home: &WorkerHome) -> PathBuf {
    home.folder().join("journal.db-wal")
}

/// C8: the power goes while a record is written. What was committed before is there, and its bytes are sent on.
#[tokio::test]
async fn a_torn_last_record_takes_nothing_with_it_that_was_committed() {
    let Some(stage) = Stage::set().await else { return };
    let (home, mut worker) = stage.one_in_the_pool().await;
    worker.kill().await;
    // Half of a record like the ones before it, which has a checksum.
    let records = std::fs::read(log_file(&home)).unwrap();
    let half = &records[records.len() - 4120..records.len() - 2000];
    std::fs::OpenOptions::new().append(true).open(log_file(&home)).unwrap().write_all(half).unwrap();
    let _worker = home.start(BINARY);
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
    let status = stage.status(&home, "order-1").await;
    assert_eq!(status["transactions"][0]["attempts"].as_array().map(Vec::len), Some(1), "{status}");
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(b"once")]);
}

/// C8: the torn record is the one that took the message in. The broker has the message still.
#[tokio::test]
async fn a_torn_admission_is_made_again_from_the_next_delivery() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let node = TcpProxy::start(stage.anvil.address()).await;
    let mut config = stage.config().with("chain", "timeout = \"60s\"");
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    // Nothing is signed, so the admission is the last that is written of the message.
    node.set_mode(Mode::Swallow);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
    wait_log(&worker, "verdict=Accept").await;
    worker.kill().await;
    let length = std::fs::metadata(log_file(&home)).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(log_file(&home)).unwrap().set_len(length - 1000).unwrap();
    node.set_mode(Mode::Pass);
    let worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert!(worker.log().contains("verdict="), "{}", worker.log());
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(b"once")]);
}

/// C9: the files may not grow any more. Nothing goes to a node that is not in the journal, nothing is acked, and with room
/// it goes on.
#[tokio::test]
async fn a_full_disk_ends_the_process_before_it_sends_what_it_cannot_keep() {
    const MESSAGES: usize = 60;
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("log", "level = \"info\""));
    stage.topology(&home).await;
    let confined = home.folder().join("confined.sh");
    // 400 KiB for a file; a program that ignores the signal gets an error, as from a full disk.
    let script = format!("#!/bin/bash\ntrap '' XFSZ\nulimit -f 400\nexec {BINARY} \"$@\"\n");
    std::fs::write(&confined, script).unwrap();
    std::fs::set_permissions(&confined, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut worker = home.start(confined.to_str().unwrap());
    wait_log(&worker, "deliveries flow").await;
    let body = |number: usize| format!("{number}:{}", "x".repeat(10_000)).into_bytes();
    for number in 0..MESSAGES {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), &body(number)).await;
    }
    assert_eq!(worker.exit().await.code(), Some(JOURNAL_FAILED), "{}", worker.log());
    let (sent, _) = stage.anvil.pool_size().await.unwrap();
    assert!(sent < MESSAGES as u64, "it ended before the end");
    wait_until("all deliveries are back", LONG, async || stage.depth(QUEUE).await == (MESSAGES as u64, 0)).await;
    // What the node has is what the journal has.
    let mut journalled = 0;
    for number in 0..MESSAGES {
        let status = stage.status(&home, &format!("m-{number}")).await;
        journalled += status["transactions"].as_array().map_or(0, Vec::len) as u64;
    }
    assert!(sent <= journalled, "{sent} sent, {journalled} journalled");
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(sent));
    let _worker = home.start(BINARY);
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
    let mut written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let mut expected: Vec<_> = (0..MESSAGES).map(|number| calldata(&body(number))).collect();
    written.sort();
    expected.sort();
    assert!(written == expected, "{} written", written.len());
}
