//! The journal in PostgreSQL: the whole way, a database that goes and comes back, a worker that gives way.

use std::time::{Duration, Instant};

use crate::journal::instances::{assert_written_once, publish};
use crate::stage::{BINARY, LONG, QUEUE, Stage, wait_log, wait_log_times};
use crate::support::{
    AnvilConfig, Postgres, PostgresConfig, WorkerConfig, WorkerHome, postgres, postgres_is_here, wait_until, with_id,
};

/// A schema of the test's own in the database that all tests share, as a line for `[journal]`. `None` where PostgreSQL is
/// missing and nobody insists.
pub async fn shared_journal() -> Option<String> {
    Some(line(&postgres::shared().await?.new_schema().await))
}

pub fn line(url: &str) -> String {
    format!("url = {url:?}")
}

/// With a chain that goes on by itself.
pub async fn stage() -> Option<Stage> {
    let blocks = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
    Stage::with_chain(blocks).await
}

#[tokio::test]
async fn everything_is_written_once_and_the_commands_tell_it() {
    let (Some(stage), Some(journal)) = (stage().await, shared_journal().await) else { return };
    let home = WorkerHome::new(&stage.config().with("journal", journal));
    let (code, text) = home.command(BINARY, &["status", "m-0"]).await;
    assert!(code == 74 && text.contains("there is no journal"), "{code}: {text}");
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    publish(&stage, 0..20).await;
    stage.amqp.publish(QUEUE, with_id("m-0"), b"message 0").await;
    stage.wait_empty(QUEUE).await;
    let (code, text) = home.command(BINARY, &["check", "--connect"]).await;
    assert!(code == 0 && text.contains("ok    journal: postgres://tester@127.0.0.1"), "{code}: {text}");
    assert_eq!(stage.status(&home, "m-7").await["state"], "final");
    let (code, text) = home.command(BINARY, &["cancel", "m-7"]).await;
    assert!(code == 2 && text.contains("it was written"), "{code}: {text}");
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_written_once(&stage, 20).await;
}

/// The lease would hold for another minute, and whoever stands by looks every twenty seconds.
#[tokio::test]
async fn who_stands_by_takes_over_at_once_when_the_owner_stops() {
    let (Some(stage), Some(journal)) = (stage().await, shared_journal().await) else { return };
    let config = stage.config().with("journal", journal).with("lease", "ttl = \"60s\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut first = home.start(BINARY);
    wait_log(&first, "the lane owns its account").await;
    let mut second = home.start(BINARY);
    wait_log(&second, "standing by").await;
    publish(&stage, 0..5).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(first.stop().await.code(), Some(0));
    let gave_way = Instant::now();
    wait_log(&second, "the lane owns its account").await;
    assert!(gave_way.elapsed() < Duration::from_secs(5), "{:?}", gave_way.elapsed());
    publish(&stage, 5..10).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(second.stop().await.code(), Some(0));
    assert_written_once(&stage, 10).await;
}

/// A delivery that another instance settles is acked at once, not when it is looked at next.
#[tokio::test]
async fn an_instance_that_owns_nothing_acks_as_soon_as_the_owner_has_settled() {
    let (Some(stage), Some(journal)) = (Stage::set().await, shared_journal().await) else { return };
    let config = stage.config().with("journal", journal);
    let owners_home = WorkerHome::new(&config);
    stage.topology(&owners_home).await;
    let mut owner = owners_home.start(BINARY);
    wait_log(&owner, "the lane owns its account").await;
    // It takes in nothing more once a request is open.
    let others_home = WorkerHome::new(&config);
    let mut other = others_home.start(BINARY);
    wait_log(&other, "deliveries flow").await;
    stage.anvil.set_auto_mine(false).await.unwrap();
    publish(&stage, 0..10).await;
    wait_until("all are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((10, 0))).await;
    // Held for so long that the next look would come many seconds later.
    tokio::time::sleep(Duration::from_secs(9)).await;
    stage.anvil.mine(3).await.unwrap();
    wait_until("the owner has settled", LONG, async || stage.status(&others_home, "m-9").await["state"] == "final")
        .await;
    let settled = Instant::now();
    stage.wait_empty(QUEUE).await;
    assert!(settled.elapsed() < Duration::from_secs(3), "{:?}", settled.elapsed());
    assert_eq!((owner.stop().await.code(), other.stop().await.code()), (Some(0), Some(0)));
    assert_written_once(&stage, 10).await;
}

/// Stopped and killed, for so short that calls wait for it.
#[tokio::test]
async fn a_database_that_restarts_in_the_middle_costs_nothing() {
    if !postgres_is_here() {
        return;
    }
    let Some(stage) = stage().await else { return };
    let mut server = Postgres::start(PostgresConfig { fsync: true, ..PostgresConfig::default() }).await;
    let journal = line(&server.new_schema().await);
    let home = WorkerHome::new(&stage.config().with("journal", journal));
    stage.topology(&home).await;
    let mut workers = [home.start(BINARY), home.start(BINARY)];
    for worker in &workers {
        wait_log(worker, "connected to the broker").await;
    }
    for round in 0..4 {
        publish(&stage, round * 20..(round + 1) * 20).await;
        if round % 2 == 0 {
            server.stop().await
        } else {
            server.kill().await
        }
        server.start_again().await;
        server.cut_all().await;
        // One whose commit went without an answer cannot tell, and begins anew; its supervisor starts it again.
        for worker in &mut workers {
            if !worker.is_running() {
                assert_eq!(worker.exit().await.code(), Some(74));
                assert!(worker.log().contains("could not commit"), "{}", worker.log());
                *worker = home.start(BINARY);
            }
        }
    }
    for _ in 0..200 {
        if stage.depth(QUEUE).await == (0, 0) {
            break;
        }
        for worker in &mut workers {
            if !worker.is_running() {
                *worker = home.start(BINARY);
            }
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stage.wait_empty(QUEUE).await;
    for worker in &mut workers {
        if worker.is_running() {
            assert_eq!(worker.stop().await.code(), Some(0));
        }
    }
    assert_written_once(&stage, 80).await;
}

/// Invariant 9: a worker whose journal stays away ends; the next one waits for it, says so, and carries on.
#[tokio::test]
async fn a_worker_without_its_database_ends_and_the_next_one_waits_for_it() {
    if !postgres_is_here() {
        return;
    }
    let Some(stage) = stage().await else { return };
    let mut server = Postgres::start(PostgresConfig::default()).await;
    let config: WorkerConfig = stage.config().with("journal", line(&server.new_schema().await));
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "the lane owns its account").await;
    server.stop().await;
    publish(&stage, 0..5).await;
    assert_eq!(worker.exit().await.code(), Some(74));
    let (code, text) = home.command(BINARY, &["status", "m-0"]).await;
    assert!(code == 74 && text.contains("check that the database runs"), "{code}: {text}");
    let mut next = home.start(BINARY);
    wait_log_times(&next, "waiting for the journal's database", 2).await;
    assert!(next.is_running());
    server.start_again().await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(next.stop().await.code(), Some(0));
    assert_written_once(&stage, 5).await;
}
