//! A journal that is behind the chain: an older copy that comes back, a wrong count, another program with the same key.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use rusqlite::Connection;
use serde_json::json;

use crate::journal::instances::publish;
use crate::stage::{BINARY, DEAD, LONG, QUEUE, SINK, Stage, calldata, wait_log};
use crate::support::{ACCOUNTS, Reply, ScriptedNode, Worker, WorkerConfig, WorkerHome, wait_until, with_id};

/// Copies the journal as it is at this moment, while the worker goes on.
fn copy(home: &WorkerHome) {
    let copy = home.folder().join("copy.db");
    let journal = Connection::open(home.journal_file()).unwrap();
    journal.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
}

/// Puts the copy in the journal's place.
fn restore(home: &WorkerHome) {
    let journal = home.journal_file();
    for file in ["journal.db", "journal.db-wal", "journal.db-shm"].map(|name| home.folder().join(name)) {
        let _ = std::fs::remove_file(file);
    }
    std::fs::copy(home.folder().join("copy.db"), journal).unwrap();
}

async fn all_final(stage: &Stage, count: u64) {
    stage.wait_nonce(0, count).await;
    stage.wait_empty(QUEUE).await;
}

async fn is_paused(worker: &Worker) {
    wait_log(worker, "the lane pauses until an operator acts").await;
    let log = worker.log();
    let line = log.lines().find(|line| line.contains("until an operator acts")).unwrap();
    assert!(
        line.contains("ERROR") && line.contains("journal_is_behind") && line.contains("chainwriter recover"),
        "{line}"
    );
}

/// Each body is in the chain once.
async fn assert_once(stage: &Stage, numbers: std::ops::Range<usize>) {
    let mut found: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let mut expected: Vec<_> = numbers.map(|number| calldata(format!("message {number}").as_bytes())).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

fn is_new(file: &Path) -> bool {
    !file.exists()
}

/// C10: five are written when the copy is made, ten more after it, and the producer sends all ten again.
#[tokio::test]
async fn an_older_copy_of_the_journal_writes_nothing_until_an_operator_recovers() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 1"));
    stage.topology(&home).await;
    assert!(is_new(&home.journal_file()));
    let mut worker = home.start(BINARY);
    publish(&stage, 0..5).await;
    all_final(&stage, 5).await;
    copy(&home);
    publish(&stage, 5..15).await;
    all_final(&stage, 15).await;
    worker.kill().await;

    restore(&home);
    let mut worker = home.start(BINARY);
    wait_log(&worker, "another program uses this account").await;
    publish(&stage, 5..15).await;
    is_paused(&worker).await;
    let (code, text) = home.command(BINARY, &["recover", "--from-block", "0"]).await;
    assert!(code == 70 && text.contains("stop it first"), "{code} {text}");
    assert_eq!(worker.stop().await.code(), Some(0));
    let mut worker = home.start(BINARY);
    is_paused(&worker).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_once(&stage, 0..15).await;

    let (code, text) = home.command(BINARY, &["recover", "--from-block", "9999"]).await;
    assert!(code == 70 && text.contains("is not final yet"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["recover", "--from-block", "0"]).await;
    assert!(code == 0 && text.contains("the journal is ready"), "{code} {text}");
    let mut worker = home.start(BINARY);
    wait_log(&worker, "a recovery is on").await;
    publish(&stage, 15..16).await;
    wait_until("all have ended", LONG, async || stage.depth(QUEUE).await == (0, 0) && stage.depth(DEAD).await.0 == 10)
        .await;
    assert_once(&stage, 0..16).await;

    // A header that anyone may set is no operator's decision.
    let mut forged = FieldTable::default();
    forged.insert("cw-replay-count".into(), AMQPValue::LongLongInt(7));
    stage.amqp.publish(QUEUE, with_id("m-7").with_headers(forged), b"message 7").await;
    wait_until("it is a dead letter again", LONG, async || stage.depth(DEAD).await.0 == 11).await;
    assert_once(&stage, 0..16).await;
    let (code, text) = home.command(BINARY, &["dead", "replay", "m-8", "--yes", "--even-forgotten", "--wait"]).await;
    assert!(code == 0, "{code} {text}");
    assert_eq!(stage.transactions_of(0).await.len(), 17, "an operator wanted it once more");
    let (code, text) = home.command(BINARY, &["recover", "--end"]).await;
    assert!(code == 0 && text.contains("has ended"), "{code} {text}");
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// C10, with an empty queue: the copy itself holds requests that are written.
#[tokio::test]
async fn a_copy_with_open_requests_stops_before_it_signs_them() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 1\nin_flight = 4"));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    publish(&stage, 0..10).await;
    wait_until("four are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((4, 0))).await;
    wait_until("all are taken in", LONG, async || stage.depth(QUEUE).await == (0, 10)).await;
    copy(&home);
    stage.anvil.set_interval_mining(1).await.unwrap();
    all_final(&stage, 10).await;
    worker.kill().await;

    restore(&home);
    let mut worker = home.start(BINARY);
    is_paused(&worker).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_once(&stage, 0..10).await;
    let (code, text) = home.command(BINARY, &["recover", "--from-block", "0"]).await;
    assert!(code == 0, "{code} {text}");
    let mut worker = home.start(BINARY);
    wait_until("what was open is a dead letter", LONG, async || stage.depth(DEAD).await.0 >= 6).await;
    assert_once(&stage, 0..10).await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// The commands of the documented procedure, in their order, without the program's name.
fn documented() -> Vec<Vec<&'static str>> {
    let page = include_str!("../../../docs/operations/lost-journal.md");
    let procedure =
        &page[page.find("\n1. Stop all instances").unwrap()..page.find("You may kill the command").unwrap()];
    let commands = procedure.split('`').filter_map(|part| part.strip_prefix("chainwriter "));
    commands.map(|command| command.split(' ').collect()).collect()
}

/// Runs one of them with what an operator puts in the place of `ID`, and further options.
async fn run(home: &WorkerHome, command: &[&'static str], ids: &[&str], options: &[&str]) -> String {
    let mut arguments = Vec::new();
    for argument in command {
        match *argument {
            "N" => arguments.push("0"),
            "TEXT" => arguments.push("decided"),
            "ID" => arguments.extend(ids),
            argument => arguments.push(argument),
        }
    }
    arguments.extend(options);
    let (code, text) = home.command(BINARY, &arguments).await;
    assert_eq!(code, 0, "{arguments:?}: {text}");
    text
}

/// C10: the database's file without its log, as `cp` of a journal in use brings it: what was committed last is missing. The
/// documented procedure, word for word, brings everything to an end.
#[tokio::test]
async fn a_file_copied_without_its_log_is_put_right_by_the_documented_procedure() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 1"));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    publish(&stage, 0..5).await;
    all_final(&stage, 5).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let mut worker = home.start(BINARY);
    publish(&stage, 5..8).await;
    all_final(&stage, 8).await;
    std::fs::copy(home.journal_file(), home.folder().join("copy.db")).unwrap();
    publish(&stage, 8..12).await;
    all_final(&stage, 12).await;
    worker.kill().await;

    restore(&home);
    // The producer sends everything again, one that is new, and one that has another's body.
    publish(&stage, 0..13).await;
    stage.amqp.publish(QUEUE, with_id("twin"), b"message 6").await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "is an older copy").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.depth(QUEUE).await, (14, 0), "nothing is taken in");
    assert_once(&stage, 0..12).await;
    assert_eq!(worker.stop().await.code(), Some(0));

    let [recover, list, discard, replay, end] = documented().try_into().unwrap();
    run(&home, &recover, &[], &[]).await;
    let mut worker = home.start(BINARY);
    wait_until("all have ended", LONG, async || stage.depth(QUEUE).await == (0, 0) && stage.depth(DEAD).await.0 == 8)
        .await;
    assert_once(&stage, 0..13).await;
    let listed = run(&home, &list, &[], &[]).await;
    let written: Vec<_> = (5..12).map(|number| format!("m-{number}")).collect();
    assert!(written.iter().all(|id| listed.contains(id.as_str())) && listed.contains("twin"), "{listed}");
    let written: Vec<_> = written.iter().map(String::as_str).collect();
    run(&home, &discard, &written, &["--yes"]).await;
    run(&home, &replay, &["twin"], &["--yes", "--wait"]).await;
    assert_eq!(stage.depth(DEAD).await, (0, 0));
    let found = stage.transactions_of(0).await;
    assert_eq!(found.len(), 14);
    assert_eq!(
        found.iter().filter(|(_, data, _)| *data == calldata(b"message 6")).count(),
        2,
        "its own and the twin's"
    );
    assert!(run(&home, &end, &[], &[]).await.contains("has ended"));
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// C10, C38: two journals of one account, each with a queue of its own. Each sees the other's transactions, and signs nothing
/// that one of them may have written.
#[tokio::test]
async fn two_journals_of_one_account_write_each_message_once_and_stop_where_they_cannot_know() {
    const OTHER: &str = "acme.other";
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("chain", "finality = 1");
    let first = WorkerHome::new(&config);
    let second = WorkerHome::new(&WorkerConfig { queue: OTHER.to_owned(), ..config });
    stage.topology(&first).await;
    stage.topology(&second).await;
    let mut workers = [first.start(BINARY), second.start(BINARY)];
    for worker in &workers {
        wait_log(worker, "deliveries flow").await;
    }
    let to = async |queue: &str, number: usize| {
        stage.amqp.publish(queue, with_id(&format!("m-{number}")), format!("message {number}").as_bytes()).await;
    };
    for number in 0..20 {
        to(if number % 2 == 0 { QUEUE } else { OTHER }, number).await;
        if number < 4 {
            stage.wait_empty(QUEUE).await;
            stage.wait_empty(OTHER).await;
        }
    }
    stage.wait_empty(QUEUE).await;
    stage.wait_empty(OTHER).await;
    assert_once(&stage, 0..20).await;
    for worker in &workers {
        wait_log(worker, "another program uses this account").await;
    }
    // What the first has written is published to the second: only an operator knows whether that is another message.
    to(QUEUE, 20).await;
    stage.wait_empty(QUEUE).await;
    to(OTHER, 20).await;
    is_paused(&workers[1]).await;
    assert_once(&stage, 0..21).await;
    for worker in &mut workers {
        assert_eq!(worker.stop().await.code(), Some(0));
    }
}

/// C18: a count that no block shows.
#[tokio::test]
async fn wrong_counts_of_a_node_cost_nothing() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let wrong = Arc::new(AtomicUsize::new(0));
    let left = Arc::clone(&wrong);
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, _| {
        let is_wrong = method == "eth_getTransactionCount"
            && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        async move { if is_wrong { Reply::Result(json!("0x3e8")) } else { Reply::Pass } }
    })
    .await;
    let mut config = stage.config().with("chain", "finality = 1");
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    publish(&stage, 0..3).await;
    all_final(&stage, 3).await;
    for (times, count) in [(1, 4), (2, 5), (8, 6)] {
        wrong.store(times, Ordering::Relaxed);
        wait_until("they were given", LONG, async || wrong.load(Ordering::Relaxed) == 0).await;
        publish(&stage, count - 1..count).await;
        all_final(&stage, count as u64).await;
    }
    assert_once(&stage, 0..6).await;
    assert!(!worker.log().contains("fills it"), "{}", worker.log());
    wait_log(&worker, "a node's transaction count is wrong").await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// C38: another program sends just what a message asks for, on purpose: only an operator can say so.
#[tokio::test]
async fn what_an_operator_calls_foreign_is_compared_no_more() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 1"));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    publish(&stage, 0..1).await;
    all_final(&stage, 1).await;
    let foreign = json!([{ "from": ACCOUNTS[0].0, "to": SINK, "data": calldata(b"message 1") }]);
    stage.anvil.rpc().call("eth_sendTransaction", foreign).await.unwrap();
    wait_log(&worker, "another program uses this account").await;
    publish(&stage, 1..2).await;
    is_paused(&worker).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let (code, text) = home.command(BINARY, &["recover", "--foreign-below", "9"]).await;
    assert!(code == 70 && text.contains("no endpoint shows transactions of"), "{code} {text}");
    stage.anvil.mine(3).await.unwrap();
    let (code, text) = home.command(BINARY, &["recover", "--foreign-below", "2", "--account", ACCOUNTS[0].0]).await;
    assert!(code == 0 && text.contains("1 call compared with no more"), "{code} {text}");
    let mut worker = home.start(BINARY);
    all_final(&stage, 3).await;
    assert_eq!(stage.transactions_of(0).await.len(), 3);
    assert_eq!(worker.stop().await.code(), Some(0));
}
