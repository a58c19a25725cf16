//! Several hosts of one broker: the loss of the connected one costs little.

use std::time::{Duration, Instant};

use crate::stage::{BINARY, QUEUE, Stage, wait_log_times};
use crate::support::{Mode, TcpProxy, WorkerConfig, WorkerHome, wait_until, with_id};

/// From the loss of a host to a session at the next one, and from a start beside a host that does not answer.
const LIMIT: Duration = Duration::from_secs(2);

fn config(stage: &Stage, ways: &[&TcpProxy]) -> WorkerConfig {
    let uris: Vec<_> = ways.iter().map(|way| stage.rabbit.uri_through(way.addr(), &stage.vhost)).collect();
    // With a long pause before another try, so that none may come before the next host.
    let lines = format!("uris = {uris:?}\nreconnect_initial = \"30s\"\nreconnect_max = \"30s\"");
    stage.config().with("broker", lines)
}

/// Covers B36, for the worker's part.
#[tokio::test]
async fn a_lost_host_is_replaced_by_the_next_one_within_two_seconds() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (one, two) = (TcpProxy::start(stage.rabbit.address()).await, TcpProxy::start(stage.rabbit.address()).await);
    let home = WorkerHome::new(&config(&stage, &[&one, &two]));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    for (round, (lost, left)) in [(&one, &two), (&two, &one), (&one, &two)].into_iter().enumerate() {
        let id = format!("order-{round}");
        stage.amqp.publish(QUEUE, with_id(&id), id.as_bytes()).await;
        stage.wait_state(&home, &id, "final").await;
        left.set_mode(Mode::Pass);
        lost.set_mode(Mode::Refuse);
        let began = Instant::now();
        lost.cut_all();
        wait_log_times(&worker, "connected to the broker", round + 2).await;
        assert!(began.elapsed() <= LIMIT, "{:?}: {}", began.elapsed(), worker.log());
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 3);
}

/// A host that takes connections and never answers delays a start by a second.
#[tokio::test]
async fn a_host_that_is_silent_is_passed_by() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (silent, good) = (TcpProxy::start(stage.rabbit.address()).await, TcpProxy::start(stage.rabbit.address()).await);
    silent.set_mode(Mode::Swallow);
    let home = WorkerHome::new(&config(&stage, &[&silent, &good]));
    stage.topology(&home).await;
    let began = Instant::now();
    let mut worker = home.start(BINARY);
    wait_log_times(&worker, "connected to the broker", 1).await;
    assert!(began.elapsed() <= LIMIT + Duration::from_secs(1), "{:?}: {}", began.elapsed(), worker.log());
    // With no host left it waits, and says what each of them did.
    good.set_mode(Mode::Refuse);
    silent.set_mode(Mode::Refuse);
    good.cut_all();
    let says = || {
        let log = worker.log();
        [silent.addr(), good.addr()]
            .iter()
            .all(|address| log.contains(&format!("cannot connect at {address} (virtual host ")))
    };
    wait_until("it names both hosts", LIMIT * 5, async || says()).await;
    assert_eq!(worker.stop().await.code(), Some(0));
}
