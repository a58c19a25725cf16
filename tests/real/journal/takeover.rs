//! How long an account stands still when its owner dies, freezes, or loses its database: a dead owner is replaced at once, one
//! that lives keeps its lease.

use std::time::{Duration, Instant};

use crate::journal::databases::{line, shared_journal, stage};
use crate::journal::instances::{assert_written_once, publish};
use crate::stage::{BINARY, LONG, QUEUE, Stage, wait_log, wait_log_times};
use crate::support::{Postgres, PostgresConfig, Worker, WorkerConfig, WorkerHome, postgres_is_here, wait_until};

/// Much longer than a test waits.
const LEASE: Duration = Duration::from_secs(120);
/// Enough on a busy host, and far from the lease.
const AT_ONCE: Duration = Duration::from_secs(6);
const WORKS: &str = "the lane owns its account";

fn with_lease(config: WorkerConfig, ttl: Duration) -> WorkerConfig {
    config.with("lease", format!("ttl = \"{}s\"", ttl.as_secs()))
}

async fn on_postgres(config: WorkerConfig) -> Option<WorkerConfig> {
    Some(config.with("journal", shared_journal().await?))
}

/// Returns how many instances the commands show.
async fn instances(home: &WorkerHome) -> usize {
    let (code, text) = home.command(BINARY, &["status", "--instances", "--json"]).await;
    assert_eq!(code, 0, "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    report["instances"].as_array().unwrap().len()
}

async fn works_within(worker: &Worker, limit: Duration) {
    let began = Instant::now();
    wait_log(worker, WORKS).await;
    assert!(began.elapsed() < limit, "{:?}", began.elapsed());
}

/// Two workers: the first owns the account, the second stands by.
async fn pair(stage: &Stage, config: WorkerConfig) -> (WorkerHome, Worker, Worker) {
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let first = home.start(BINARY);
    wait_log(&first, WORKS).await;
    let second = home.start(BINARY);
    wait_log(&second, "standing by").await;
    (home, first, second)
}

/// The only worker is killed and started again at once.
async fn restart_the_only_one(stage: Stage, config: WorkerConfig) {
    let home = WorkerHome::new(&with_lease(config, LEASE));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, WORKS).await;
    for round in 0..3 {
        publish(&stage, round * 5..(round + 1) * 5).await;
        worker.kill().await;
        wait_until("no instance is left", AT_ONCE, async || instances(&home).await == 0).await;
        worker = home.start(BINARY);
        works_within(&worker, AT_ONCE).await;
        assert_eq!(instances(&home).await, 1);
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_written_once(&stage, 15).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_and_started_again_works_at_once() {
    let Some(stage) = stage().await else { return };
    let config = stage.config();
    restart_the_only_one(stage, config).await;
}

#[tokio::test]
async fn a_worker_that_is_killed_and_started_again_works_at_once_on_postgres() {
    let Some(stage) = stage().await else { return };
    let Some(config) = on_postgres(stage.config()).await else { return };
    restart_the_only_one(stage, config).await;
}

async fn kill_the_owner(stage: Stage, config: WorkerConfig) {
    let (home, mut first, mut second) = pair(&stage, with_lease(config, LEASE)).await;
    publish(&stage, 0..10).await;
    first.kill().await;
    works_within(&second, AT_ONCE).await;
    assert_eq!(instances(&home).await, 1);
    publish(&stage, 10..20).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(second.stop().await.code(), Some(0));
    assert_written_once(&stage, 20).await;
}

#[tokio::test]
async fn an_owner_that_is_killed_is_replaced_at_once() {
    let Some(stage) = stage().await else { return };
    let config = stage.config();
    kill_the_owner(stage, config).await;
}

#[tokio::test]
async fn an_owner_that_is_killed_is_replaced_at_once_on_postgres() {
    let Some(stage) = stage().await else { return };
    let Some(config) = on_postgres(stage.config()).await else { return };
    kill_the_owner(stage, config).await;
}

/// Its last renewal is at most a third of the lease ago.
async fn freeze_the_owner(stage: Stage, config: WorkerConfig) {
    let ttl = Duration::from_secs(9);
    let (_home, mut first, mut second) = pair(&stage, with_lease(config, ttl)).await;
    first.signal("STOP");
    tokio::time::sleep(ttl / 2).await;
    assert!(!second.log().contains(WORKS), "a frozen owner keeps its lease");
    wait_log(&second, WORKS).await;
    first.signal("CONT");
    wait_log_times(&first, "standing by", 1).await;
    publish(&stage, 0..10).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!((first.stop().await.code(), second.stop().await.code()), (Some(0), Some(0)));
    assert_written_once(&stage, 10).await;
}

#[tokio::test]
async fn an_owner_that_freezes_keeps_its_account_as_long_as_its_lease() {
    let Some(stage) = stage().await else { return };
    let config = stage.config();
    freeze_the_owner(stage, config).await;
}

#[tokio::test]
async fn an_owner_that_freezes_keeps_its_account_as_long_as_its_lease_on_postgres() {
    let Some(stage) = stage().await else { return };
    let Some(config) = on_postgres(stage.config()).await else { return };
    freeze_the_owner(stage, config).await;
}

/// All sessions end with the server, although the processes live. Afterwards a dead owner is replaced at once as before.
#[tokio::test]
async fn an_owner_keeps_its_account_when_the_database_restarts() {
    if !postgres_is_here() {
        return;
    }
    let Some(stage) = stage().await else { return };
    let mut server = Postgres::start(PostgresConfig::default()).await;
    let config = with_lease(stage.config().with("journal", line(&server.new_schema().await)), LEASE);
    let (home, mut first, mut second) = pair(&stage, config).await;
    for is_clean in [true, false] {
        if is_clean {
            server.stop().await;
        } else {
            server.kill().await;
        }
        server.start_again().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        server.cut_all().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(first.is_running() && second.is_running());
        assert!(!second.log().contains(WORKS), "the owner lives");
    }
    wait_until("both are shown again", LONG, async || instances(&home).await == 2).await;
    publish(&stage, 0..5).await;
    stage.wait_empty(QUEUE).await;
    first.kill().await;
    works_within(&second, AT_ONCE).await;
    publish(&stage, 5..10).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(second.stop().await.code(), Some(0));
    assert_written_once(&stage, 10).await;
}

/// A shell with `BEGIN EXCLUSIVE`, here this very process, for longer than any timeout of the worker's.
#[tokio::test]
async fn a_worker_waits_for_a_process_that_locks_its_journal_and_names_it() {
    let Some(stage) = stage().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, WORKS).await;
    let shell = rusqlite::Connection::open(home.journal_file()).unwrap();
    shell.execute_batch("BEGIN EXCLUSIVE").unwrap();
    publish(&stage, 0..5).await;
    wait_log(&worker, &format!("(pid {})", std::process::id())).await;
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert!(worker.is_running() && worker.log().contains("another process locks the journal's file"));
    shell.execute_batch("COMMIT").unwrap();
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    // With this mode, the worker cannot even read the file.
    drop(shell);
    let shell = rusqlite::Connection::open(home.journal_file()).unwrap();
    shell.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    let mut next = home.start(BINARY);
    wait_log(&next, "another process locks the journal's file").await;
    assert!(next.is_running());
    drop(shell);
    wait_log(&next, WORKS).await;
    publish(&stage, 5..10).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(next.stop().await.code(), Some(0));
    assert_written_once(&stage, 10).await;
}
