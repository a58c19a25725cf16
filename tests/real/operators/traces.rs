//! A producer's trace goes with its message: into copies, dead letters and events, through a restart too.

use lapin::types::FieldTable;

use crate::stage::{BINARY, DEAD, EVENTS, LONG, QUEUE, Stage};
use crate::support::contracts::ALWAYS_REVERTS;
use crate::support::{Taken, WorkerHome, headers, with_id};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STATE: &str = "acme=1,other=2";

fn traced() -> FieldTable {
    headers(&[("traceparent", PARENT), ("tracestate", STATE)])
}

/// As whoever gets a message sees it: in its headers.
fn trace_of(taken: &Taken) -> (Option<String>, Option<String>) {
    (taken.header("traceparent"), taken.header("tracestate"))
}

fn whole() -> (Option<String>, Option<String>) {
    (Some(PARENT.to_owned()), Some(STATE.to_owned()))
}

fn assert_traced_event(event: &Taken) {
    assert_eq!(trace_of(event), whole(), "{event:?}");
    assert_eq!(event.header("cloudEvents:traceparent").as_deref(), Some(PARENT));
    assert_eq!(event.header("cloudEvents:tracestate").as_deref(), Some(STATE));
    let document = event.json();
    assert_eq!((document["traceparent"].as_str(), document["tracestate"].as_str()), (Some(PARENT), Some(STATE)));
}

#[tokio::test]
async fn a_trace_goes_through_a_retry_to_the_dead_letter_and_its_events() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config_for(ALWAYS_REVERTS).await;
    let config = config.with("retry", "max_attempts = 2\ninitial_delay = \"1s\"\nmax_delay = \"1s\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut retries = stage.amqp.watch(&[("acme.writes.retry", "acme.writes.wait.1s")]).await;
    let mut events = stage.amqp.watch(&[(EVENTS, "#")]).await;
    stage.amqp.publish(QUEUE, with_id("order-1").with_headers(traced()), b"body").await;
    // What is refused never becomes a request: its event is made from the message alone.
    stage.amqp.publish(QUEUE, with_id("").with_headers(traced()), b"body").await;
    let mut worker = home.start(BINARY);
    assert_eq!(trace_of(&retries.next(LONG).await), whole());
    for _ in 0..2 {
        assert_eq!(trace_of(&stage.amqp.wait_for(DEAD, LONG).await), whole());
    }
    for _ in 0..3 {
        assert_traced_event(&events.next(LONG).await);
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// The second worker has nothing but the journal when it makes the event.
#[tokio::test]
async fn the_event_of_a_write_has_the_trace_even_when_another_worker_makes_it() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut events = stage.amqp.watch(&[(EVENTS, "final")]).await;
    stage.amqp.publish(QUEUE, with_id("order-1").with_headers(traced()), b"one").await;
    let malformed = headers(&[("traceparent", "00-1-2-01"), ("tracestate", STATE)]);
    stage.amqp.publish(QUEUE, with_id("order-2").with_headers(malformed), b"two").await;
    let mut first = home.start(BINARY);
    let in_pool = async || stage.anvil.pool_size().await == Ok((2, 0));
    crate::support::wait_until("both are in the pool", LONG, in_pool).await;
    first.kill().await;
    stage.anvil.mine(5).await.unwrap();
    let mut second = home.start(BINARY);
    let event = events.next(LONG).await;
    assert_eq!(event.json()["subject"], "order-1");
    assert_traced_event(&event);
    let event = events.next(LONG).await;
    assert_eq!(event.json()["subject"], "order-2");
    assert_eq!(trace_of(&event), (None, None), "what is no trace is not told, and refuses nothing");
    assert_eq!((event.json().get("traceparent"), event.json().get("tracestate")), (None, None));
    assert_eq!(second.stop().await.code(), Some(0));
}
