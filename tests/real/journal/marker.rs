//! The broker remembers which journal serves a queue, and the journal forgets only what the broker has given back.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions};
use lapin::types::FieldTable;

use crate::journal::databases::shared_journal;
use crate::operators::host::clock_library;
use crate::stage::{BINARY, LONG, QUEUE, Stage, wait_log};
use crate::support::{WorkerConfig, WorkerHome, wait_until, with_id};

const MARKER: &str = "acme.writes.journal";

/// Messages stay in the queue, and nothing more is written.
async fn assert_takes_nothing(stage: &Stage, messages: u64) {
    let written = stage.transactions_of(0).await.len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.depth(QUEUE).await, (messages, 0));
    assert_eq!(stage.transactions_of(0).await.len(), written);
}

async fn a_second_journal(stage: Stage, first: WorkerConfig, second: WorkerConfig) {
    let (first, second) = (WorkerHome::new(&first), WorkerHome::new(&second));
    stage.topology(&first).await;
    let mut worker = first.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    stage.wait_state(&first, "order-1", "final").await;
    let mut other = second.start(BINARY);
    wait_log(&other, "is not the one that serves this queue").await;
    assert!(other.log().contains("ERROR") && other.log().contains("chainwriter recover --adopt"), "{}", other.log());
    let (code, text) = second.command(BINARY, &["recover", "--adopt"]).await;
    assert!(code == 70 && text.contains("stop that worker first"), "{code} {text}");
    assert_eq!(worker.stop().await.code(), Some(0));
    // Published once more, as a producer does that has lost its confirm: the first journal knows it.
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    assert_takes_nothing(&stage, 1).await;
    assert!(other.is_running(), "a restart would change nothing");
    let mut worker = first.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);

    let (code, text) = second.command(BINARY, &["recover", "--adopt"]).await;
    assert!(code == 0 && text.contains("takes the queue over from journal"), "{code} {text}");
    stage.amqp.publish(QUEUE, with_id("order-2"), b"two").await;
    wait_log(&other, "the journal takes the queue over").await;
    stage.wait_empty(QUEUE).await;
    let worker = first.start(BINARY);
    wait_log(&worker, "is not the one that serves this queue").await;
    assert_eq!(other.stop().await.code(), Some(0));
    stage.amqp.publish(QUEUE, with_id("order-2"), b"two").await;
    assert_takes_nothing(&stage, 1).await;
}

/// Instances that wait for their turn send probes, and the one before may have taken this one's away.
#[tokio::test]
async fn a_worker_gets_its_turn_among_the_probes_of_others() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let channel = &stage.amqp.channel;
    let mut before = channel.basic_consume(MARKER.into(), "before".into(), options, arguments).await.unwrap();
    let mut worker = home.start(BINARY);
    let probe = before.next().await.unwrap().unwrap();
    probe.ack(BasicAckOptions::default()).await.unwrap();
    channel.basic_cancel("before".into(), BasicCancelOptions::default()).await.unwrap();
    let others = BasicProperties::default().with_type("chainwriter.probe".into());
    wait_until("it serves the queue", LONG, async || {
        stage.amqp.publish(MARKER, others.clone(), b"").await;
        worker.log().contains("the journal serves the queue")
    })
    .await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// C10
#[tokio::test]
async fn a_second_journal_takes_nothing_from_a_queue_until_an_operator_says_so() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config();
    a_second_journal(stage, config.clone(), config).await;
}

/// C10
#[tokio::test]
async fn a_second_database_takes_nothing_from_a_queue_until_an_operator_says_so() {
    let (Some(stage), Some(journal)) = (Stage::with_blocks().await, shared_journal().await) else { return };
    let (first, second) = (stage.config(), stage.config().with("journal", journal));
    a_second_journal(stage, first, second).await;
}

fn copy_journal(from: &Path, to: &Path) {
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(to.with_file_name(format!("{}{end}", to.file_name().unwrap().display())));
    }
    std::fs::copy(from, to).unwrap();
}

/// C10: the copy was made before the last start, and does not know what was written since.
#[tokio::test]
async fn an_older_copy_of_the_journal_takes_nothing_in() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let backup = home.folder().join("backup.db");
    copy_journal(&home.journal_file(), &backup);
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    stage.wait_state(&home, "order-1", "final").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let newest = home.folder().join("newest.db");
    copy_journal(&home.journal_file(), &newest);
    copy_journal(&backup, &home.journal_file());
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "is an older copy").await;
    assert_takes_nothing(&stage, 1).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    copy_journal(&newest, &home.journal_file());
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1, "the newest copy knows it");
}

/// C10: the marker's queue is purged, and somebody else's message is in it.
#[tokio::test]
async fn a_marker_that_is_gone_is_made_anew_with_a_warning() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    stage.wait_state(&home, "order-1", "final").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(MARKER).await, (1, 0), "it stays when the worker stops");
    stage.rabbit.ctl(&["purge_queue", "-p", &stage.vhost, MARKER]).await.unwrap();
    stage.amqp.publish(MARKER, with_id("stray"), b"{\"journal\":\"j\\u001b[2J\"}").await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "it is made anew").await;
    wait_log(&worker, "a message that is no marker").await;
    stage.amqp.publish(QUEUE, with_id("order-2"), b"two").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(MARKER).await, (1, 0), "the stray message is gone");
}

/// Starts many times and is killed each time: no start uses up the marker's deliveries.
#[tokio::test]
async fn the_marker_outlives_starts_that_are_killed() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let policy =
        ["set_policy", "-p", &stage.vhost, "limit", "^acme\\.writes", "{\"delivery-limit\":3}", "--apply-to", "queues"];
    stage.rabbit.ctl(&policy).await.unwrap();
    // The marker is taken out and put back within some milliseconds of the connection.
    let moments = [None, Some(0), Some(2), Some(4), Some(8), Some(12), Some(16), Some(24), None];
    for (round, moment) in moments.into_iter().enumerate() {
        let mut worker = home.start(BINARY);
        if let Some(milliseconds) = moment {
            wait_log(&worker, "connected to the broker").await;
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        } else {
            wait_log(&worker, "the journal serves the queue").await;
        }
        assert!(round == 0 || !worker.log().contains("made anew"), "round {round}");
        worker.kill().await;
        // A probe, or the new marker beside the old one, may be left.
        let is_back = async || matches!(stage.depth(MARKER).await, (1.., 0));
        wait_until("the marker is back", LONG, is_back).await;
    }
    assert_eq!(stage.depth(MARKER).await, (1, 0), "the last start has cleared up");
}

/// C58: a message was redelivered while no worker ran for longer than requests are kept. At the next start the clock says that
/// its request is old, and the message is still in the queue.
#[tokio::test]
async fn what_the_queue_still_holds_is_not_forgotten_at_a_start_long_after() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let Some(clock) = clock_library() else { return };
    let home = WorkerHome::new(&stage.config().with("journal", "retention = \"1h\""));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    for number in 0..3 {
        stage.amqp.publish(QUEUE, with_id(&format!("order-{number}")), format!("{number}").as_bytes()).await;
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    for number in 0..3 {
        stage.amqp.publish(QUEUE, with_id(&format!("order-{number}")), format!("{number}").as_bytes()).await;
    }
    // One of them is held by another consumer when the worker starts, and comes back later.
    let held = stage.amqp.channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await.unwrap().unwrap();
    let environment = [("LD_PRELOAD", clock.as_str()), ("FAKETIME", "+40d"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    // The chain's clock agrees, so that the worker trusts its own.
    stage.anvil.rpc().call("evm_increaseTime", serde_json::json!([40 * 86_400])).await.unwrap();
    let mut worker = home.start_with(BINARY, &environment);
    wait_until("the others are acked", LONG, async || stage.depth(QUEUE).await == (0, 1)).await;
    // Longer than it is from one step of upkeep to the next.
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert!(!worker.log().contains("nothing is forgotten meanwhile"), "{}", worker.log());
    let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
    held.delivery.acker.nack(back).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 3, "each is written once");
}
