//! Messages that go well: one by one, for a later time, ten thousand at once.

use std::time::{Duration, Instant, SystemTime};

use crate::stage::{BINARY, DEAD, EVENTS, LONG, QUEUE, Stage, calldata, wait_log};
use crate::support::{ACCOUNTS, AnvilConfig, Mode, TcpProxy, WorkerHome, headers, next_event, wait_until, with_id};

#[tokio::test]
async fn a_message_becomes_a_transaction_and_is_acked_when_that_is_final() {
    let slow_blocks = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(slow_blocks).await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut events = stage.amqp.listen(EVENTS).await;
    stage.amqp.declare("answers").await;
    let properties = with_id("order-1").with_reply_to("answers".into()).with_correlation_id("c-1".into());
    stage.amqp.publish(QUEUE, properties, b"hello chain").await;
    let worker = home.start(BINARY);
    wait_log(&worker, "signed").await;
    stage.wait_nonce(0, 1).await;
    assert_eq!(stage.depth(QUEUE).await, (0, 1), "it is in a block, but not final: unacked");
    let (kind, event) = next_event(&mut events, LONG).await;
    assert_eq!(kind, "final");
    assert_eq!(event["subject"], "order-1");
    let included = event["data"]["transaction"]["block_number"].as_u64().unwrap();
    assert!(stage.anvil.block_number().await.unwrap() >= included + 2, "two blocks stand on top of it");
    stage.wait_empty(QUEUE).await;
    let answer = stage.amqp.wait_for("answers", LONG).await;
    assert_eq!(answer.properties.correlation_id().as_ref().map(ToString::to_string).as_deref(), Some("c-1"));
    assert_eq!(answer.json()["id"], event["id"], "the same event, for the one who asked");
    assert_eq!(stage.transactions_of(0).await, [(0, calldata(b"hello chain"), crate::stage::SINK.to_owned())]);
    let status = stage.status(&home, "order-1").await;
    assert_eq!(status["state"], "final");
    assert_eq!(status["transactions"][0]["attempts"].as_array().unwrap().len(), 1);
}

/// So far ahead that one hop does not do.
const AHEAD: Duration = Duration::from_secs(12);

fn in_seconds(ahead: Duration) -> String {
    humantime::format_rfc3339_millis(SystemTime::now() + ahead).to_string()
}

/// No delivery is held for it meanwhile, and a worker that is killed and started again loses nothing.
#[tokio::test]
async fn a_message_for_a_later_time_waits_at_the_broker_and_is_written_then() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let waits = "initial_delay = \"1s\"\nmultiplier = 2.0\nmax_delay = \"10s\"\nmax_attempts = 2";
    let home = WorkerHome::new(&stage.config().with("retry", waits));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    let (published, time) = (Instant::now(), in_seconds(AHEAD));
    let input = b"{\"id\":\"order-1\"}";
    let (code, text) =
        home.command_with_input(BINARY, &["publish", "--id", "/id", "--not-before", &time, "-"], input).await;
    assert_eq!(code, 0, "{text}");
    stage.amqp.publish(QUEUE, with_id("order-2"), b"now").await;
    wait_until("the other one is written", LONG, async || stage.transactions_of(0).await.len() == 1).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await.len(), 1, "no delivery is held for what is not yet written");
    worker.kill().await;
    let mut worker = home.start(BINARY);
    wait_until("it is written too", LONG, async || stage.transactions_of(0).await.len() == 2).await;
    assert!(published.elapsed() >= AHEAD, "after {:?}", published.elapsed());
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await[1].1, calldata(input));
    assert_eq!(stage.status(&home, "order-1").await["state"], "final");
    assert_eq!(worker.stop().await.code(), Some(0));
}

#[tokio::test]
async fn a_time_that_is_none_makes_a_dead_letter_that_says_so() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let _worker = home.start(BINARY);
    let properties = with_id("order-1").with_headers(headers(&[("cw-not-before", "tomorrow")]));
    stage.amqp.publish(QUEUE, properties, b"body").await;
    wait_until("it is a dead letter", LONG, async || stage.depth(DEAD).await.0 == 1).await;
    let dead = stage.amqp.take_all(DEAD).await.remove(0);
    assert_eq!(dead.routing_key, "invalid.bad_headers");
    let detail = dead.header("cw-error-detail").unwrap();
    assert!(detail.contains("cw-not-before is \"tomorrow\"; expected RFC 3339"), "{detail}");
    assert_eq!(stage.transactions_of(0).await.len(), 0);
}

const MESSAGES: u64 = 10_000;
const PREFETCH: u64 = 200;

/// The most memory the process ever used, in MiB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// C49, B20: ten thousand messages wait at the start. They are taken in a prefetch at a time, in bounded memory; while the
/// node is away nothing more comes in, nothing goes round in circles, and no attempt is used.
#[tokio::test]
async fn a_large_backlog_is_drained_in_bounded_memory_and_stands_still_while_the_node_is_away() {
    let chain =
        AnvilConfig { block_time: Some(Duration::from_secs(1)), gas_limit: 300_000_000, ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(chain).await else { return };
    let node = TcpProxy::start(stage.anvil.address()).await;
    let config = stage.config().with("broker", format!("prefetch = {PREFETCH}")).with("retry", "max_attempts = 1");
    let mut config = config.with("chain", "timeout = \"1s\"\nfinality = 1\nin_flight = 400");
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let lines: String = (0..MESSAGES).map(|number| format!("{{\"id\":\"m-{number}\"}}\n")).collect();
    let (code, text) = home.command_with_input(BINARY, &["publish", "--id", "/id", "-"], lines.as_bytes()).await;
    assert_eq!(code, 0, "{text}");
    let mut worker = home.start(BINARY);
    wait_until("a part is written", LONG, async || {
        let (_, unacked) = stage.depth(QUEUE).await;
        assert!(unacked <= PREFETCH, "{unacked} are unacked");
        stage.anvil.nonce(ACCOUNTS[0].0, "latest").await.is_ok_and(|nonce| nonce >= 5 * PREFETCH)
    })
    .await;
    node.set_mode(Mode::Refuse);
    wait_until("deliveries are paused", LONG, async || stage.consumers().await == 0).await;
    let deliveries = || worker.log().matches("verdict=").count();
    wait_until("what was on its way is taken in", LONG, async || {
        let before = deliveries();
        tokio::time::sleep(Duration::from_millis(500)).await;
        deliveries() == before
    })
    .await;
    let (before, began) = (deliveries(), std::time::Instant::now());
    let (ready, _) = stage.depth(QUEUE).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(deliveries() - before < 4, "{} deliveries within {:?}", deliveries() - before, began.elapsed());
    assert_eq!((stage.depth(QUEUE).await.0, stage.depth(DEAD).await), (ready, (0, 0)), "they wait at the broker");
    let peak = peak_memory(worker.pid());
    assert!(peak < 256, "{peak} MiB");
    node.set_mode(Mode::Pass);
    wait_until("it goes on", LONG, async || stage.depth(QUEUE).await.0 < ready - PREFETCH).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written = stage.transactions_of(0).await;
    let bodies: std::collections::BTreeSet<_> = written.iter().map(|(_, data, _)| data).collect();
    assert_eq!(bodies.len(), written.len(), "each once");
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}
