//! SIGTERM at every step of a message's way.

use std::time::{Duration, Instant};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, wait_log, wait_log_times};
use crate::support::contracts::REVERTS_ON_FF;
use crate::support::{Mode, TcpProxy, Worker, WorkerHome, wait_until, with_id};

const WAIT: &str = "acme.writes.wait.1s";
const RETRY: &str = "acme.writes.retry";
const DEADLINE: Duration = Duration::from_secs(3);

async fn stop_in_time(worker: &mut Worker, step: &str) {
    let asked = Instant::now();
    assert_eq!(worker.stop().await.code(), Some(0), "{step}");
    assert!(asked.elapsed() < DEADLINE + Duration::from_secs(4), "{step}: {:?}", asked.elapsed());
}

/// B38, C57: it exits with 0 in time wherever it is, what it holds goes back at once, and the next process finishes it.
#[tokio::test]
async fn a_stop_at_every_step_ends_in_time_and_loses_nothing() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let node = TcpProxy::start(stage.anvil.address()).await;
    let config = stage.config_for(REVERTS_ON_FF).await.with("write", "gas = 200000");
    let config = config.with("worker", "drain_deadline = \"3s\"").with("broker", "topology = \"verify\"");
    let config = config.with("chain", "timeout = \"1s\"");
    let mut config = config.with("retry", "max_attempts = 2\ninitial_delay = \"1s\"\nmax_delay = \"1s\"");
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;

    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    stop_in_time(&mut worker, "idle").await;

    // Taken in, and the node is away.
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    node.set_mode(Mode::Swallow);
    stage.amqp.publish(QUEUE, with_id("good"), b"good").await;
    wait_log(&worker, "verdict=Accept").await;
    stop_in_time(&mut worker, "accepted").await;
    wait_until("it is back", LONG, async || stage.depth(QUEUE).await == (1, 0)).await;
    node.set_mode(Mode::Pass);

    let mut worker = home.start(BINARY);
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    stop_in_time(&mut worker, "in the pool").await;
    wait_until("it is back", LONG, async || stage.depth(QUEUE).await == (1, 0)).await;

    let mut worker = home.start(BINARY);
    wait_log(&worker, "verdict=Join").await;
    stage.anvil.mine(1).await.unwrap();
    stage.wait_nonce(0, 1).await;
    stop_in_time(&mut worker, "in a block").await;
    wait_until("it is back", LONG, async || stage.depth(QUEUE).await == (1, 0)).await;

    // A retry that no queue takes.
    stage.amqp.publish(QUEUE, with_id("bad"), b"\xffbad").await;
    let mut worker = home.start(BINARY);
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    stage.amqp.unbind(WAIT, RETRY, WAIT).await;
    stage.anvil.mine(3).await.unwrap();
    wait_log_times(&worker, "no queue takes messages", 2).await;
    stop_in_time(&mut worker, "a copy without its confirm").await;
    wait_until("only the failed one is back", LONG, async || stage.depth(QUEUE).await == (1, 0)).await;

    stage.amqp.bind(WAIT, RETRY, WAIT).await;
    stage.anvil.set_interval_mining(1).await.unwrap();
    let mut worker = home.start(BINARY);
    assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.id(), "bad");
    stage.wait_empty(QUEUE).await;
    stop_in_time(&mut worker, "done").await;
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(b"good"), calldata(b"\xffbad"), calldata(b"\xffbad")], "one try and one retry");
    assert_eq!((stage.depth(DEAD).await, stage.depth(WAIT).await), ((0, 0), (0, 0)));
}

/// C57: what is under way at a stop is finished over the broker's connections, which outlive intake.
#[tokio::test]
async fn a_copy_that_is_taken_during_a_stop_is_noted_and_its_delivery_acked() {
    let Some(stage) = Stage::set().await else { return };
    let config = stage.config_for(REVERTS_ON_FF).await.with("broker", "topology = \"verify\"");
    let config = config.with("worker", "drain_deadline = \"60s\"");
    let home = WorkerHome::new(&config.with("retry", "max_attempts = 2\ninitial_delay = \"1s\"\nmax_delay = \"1s\""));
    stage.topology(&home).await;
    stage.keep_events().await;
    stage.amqp.unbind(WAIT, RETRY, WAIT).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("bad"), b"\xffbad").await;
    wait_log(&worker, "no queue takes messages").await;
    worker.signal("TERM");
    // Intake has gone, and the copy is tried again.
    wait_log(&worker, "stopping").await;
    let before = worker.log().matches("no queue takes messages").count();
    wait_log_times(&worker, "no queue takes messages", before + 1).await;
    stage.amqp.bind(WAIT, RETRY, WAIT).await;
    let asked = Instant::now();
    assert_eq!(worker.exit().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(40), "{:?}", asked.elapsed());
    assert!(!worker.log().contains("not everything was finished"), "{}", worker.log());
    assert_eq!(stage.status(&home, "bad").await["state"], "retry_waiting");
    let events = stage.kept_events().await;
    assert_eq!(crate::stage::kinds_of(&events, "bad"), ["retry"], "the producer was told");
    wait_until("only the copy is left", LONG, async || stage.depth(QUEUE).await == (1, 0)).await;
    assert_eq!(stage.amqp.take(QUEUE).await.unwrap().header("cw-attempt").as_deref(), Some("1"));
}
