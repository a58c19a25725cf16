//! SIGHUP: what a running worker takes over from its file, and what not.

use crate::stage::{BINARY, QUEUE, Stage, wait_log, wait_log_times};
use crate::support::{WorkerHome, with_id};

/// Covers B39. The account pauses because of a cap that is too low, and goes on without a restart.
#[tokio::test]
async fn an_invalid_file_changes_nothing_and_a_valid_one_what_is_safe() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let quiet = || stage.config().with("log", "level = \"info\"");
    let too_low = quiet().with("fees", "max_fee = \"1\"");
    let home = WorkerHome::new(&too_low);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    wait_log(&worker, "fee_above_cap").await;

    home.configure(&quiet().with("fees", "max_fee = \"a lot\"").with("retry", "max_attempts = 0"));
    worker.signal("HUP");
    wait_log_times(&worker, "nothing of it is taken over, all stays as it is", 2).await;
    let faults: Vec<_> = worker.log().lines().filter(|line| line.contains("has a fault")).map(str::to_owned).collect();
    assert!(faults.iter().any(|fault| fault.contains("fees.max_fee")), "{faults:#?}");
    assert!(faults.iter().any(|fault| fault.contains("retry.max_attempts")), "{faults:#?}");
    assert_ne!(stage.depth(QUEUE).await, (0, 0), "it waits still");
    assert!(!worker.log().contains("DEBUG"));

    let mended = stage.config().with("fees", "max_fee = \"100 gwei\"").with("log", "level = \"debug\"");
    home.configure(&mended.with("broker", "prefetch = 7"));
    worker.signal("HUP");
    wait_log(&worker, "changes are taken over keys=\"fees.max_fee, log.level\"").await;
    let needs_restart = "these changes need a restart, and stay as they were until then keys=\"broker.prefetch\"";
    wait_log(&worker, needs_restart).await;
    stage.wait_empty(QUEUE).await;
    wait_log(&worker, "DEBUG").await;

    worker.signal("HUP");
    wait_log_times(&worker, needs_restart, 2).await;
    assert!(worker.is_running());
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
}
