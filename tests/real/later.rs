//! Messages for a later time.

use std::time::{Duration, Instant, SystemTime};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata};
use crate::support::{WorkerHome, headers, wait_until, with_id};

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
