//! Messages that end the process, and the neighbours that must not go down with them.

use std::time::{Duration, Instant};

use lapin::types::{AMQPValue, FieldArray, FieldTable};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata};
use crate::support::{WorkerHome, wait_until, with_id};

/// Too little for the client library to read the deepest headers: such a message ends the process before any of our code
/// has seen it.
const SHALLOW_STACKS: (&str, &str) = ("RUST_MIN_STACK", "1048576");
/// Enough for that; RabbitMQ itself takes long to deliver deeper ones again.
const LEVELS: usize = 4_000;
/// Deliveries before the broker gives up, less one.
const LIMIT: usize = 8;
const NEIGHBOURS: usize = 20;

/// An operator's limit, as RabbitMQ 4 has one by itself.
async fn limit_deliveries(stage: &Stage, limit: usize) {
    let definition = format!("{{\"delivery-limit\":{limit}}}");
    let arguments = ["set_policy", "-p", &stage.vhost, "limit", "^acme\\.writes$", &definition, "--apply-to", "queues"];
    stage.rabbit.ctl(&arguments).await.unwrap();
}

fn deadly() -> lapin::BasicProperties {
    let nested = (0..LEVELS).fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(FieldArray::from(vec![inner])));
    let mut table = FieldTable::default();
    table.insert("deep".into(), nested);
    with_id("deadly").with_headers(table)
}

fn body(number: usize) -> Vec<u8> {
    format!("neighbour {number}").into_bytes()
}

/// C41, C41b, C47, B19: each crash counts against all that was unacked. The neighbours are put out of its reach, the
/// message is left to the broker, which gives up on it and keeps it.
#[tokio::test]
async fn a_message_that_ends_the_process_takes_no_neighbour_with_it() {
    if std::env::var_os("RUST_MIN_STACK").is_none() {
        eprintln!("skipped: set RUST_MIN_STACK=536870912, as `make test` does");
        return;
    }
    let Some(stage) = Stage::set().await else { return };
    // Nothing becomes final: all deliveries stay unacked.
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("broker", "prefetch = 50\npark_delay = \"1s\""));
    stage.topology(&home).await;
    limit_deliveries(&stage, LIMIT).await;
    for number in 0..NEIGHBOURS {
        stage.amqp.publish(QUEUE, with_id(&format!("n-{number}")), &body(number)).await;
        if number == NEIGHBOURS / 2 {
            stage.amqp.publish(QUEUE, deadly(), b"").await;
        }
    }
    let (mut crashes, began) = (0, Instant::now());
    // As systemd does.
    let mut worker = loop {
        let mut worker = home.start_with(BINARY, &[SHALLOW_STACKS]);
        while worker.is_running() && stage.depth(DEAD).await == (0, 0) {
            assert!(began.elapsed() < LONG, "it neither crashes nor gets rid of the message");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if worker.is_running() {
            break worker;
        }
        crashes += 1;
        assert!(crashes <= LIMIT + 1, "the broker gives up on it after {LIMIT} returns");
    };
    assert_eq!(crashes, LIMIT + 1);
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.wait_nonce(0, NEIGHBOURS as u64).await;
    wait_until("all copies came back and are acked", LONG, async || {
        stage.depth("acme.writes.wait.1s").await == (0, 0) && stage.depth(QUEUE).await == (0, 0)
    })
    .await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let dead = stage.amqp.take_all(DEAD).await;
    let letters: Vec<_> = dead.iter().map(|dead| (dead.id(), dead.routing_key.clone())).collect();
    assert_eq!(letters, [("deadly".to_owned(), "broker.undeliverable".to_owned())], "no neighbour is among them");
    let mut written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let mut expected: Vec<_> = (0..NEIGHBOURS).map(|number| calldata(&body(number))).collect();
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
}
