//! Several signers on one queue.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use serde_json::Value;

use crate::stage::{BINARY, CONTRACT, LONG, QUEUE, Stage, calldata, wait_log, wait_log_times};
use crate::support::contracts::{REVERTS_ON_FF, SINK};
use crate::support::{ACCOUNTS, Amqp, Worker, WorkerConfig, WorkerHome, headers, wait_until, with_id};

const KEYS: [&str; 6] = ["anna", "ben", "cleo", "dora", "emil", "fritz"];

/// Numbers by account, in the order of their nonces.
async fn written(stage: &Stage, count: usize) -> Vec<Vec<usize>> {
    let number_of: BTreeMap<_, _> =
        (0..count).map(|number| (calldata(number.to_string().as_bytes()), number)).collect();
    let mut all = Vec::new();
    for account in 0..2 {
        all.push(stage.transactions_of(account).await.iter().map(|(_, data, _)| number_of[data]).collect());
    }
    all
}

/// Each key's messages are written by one account, in the order of the queue.
#[tokio::test]
async fn requests_of_one_ordering_key_keep_their_order_on_the_chain() {
    const COUNT: usize = 60;
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage
        .config()
        .with("request", "order_by = \"header:customer\"")
        .with("signer", format!("key = {:?}", ACCOUNTS[0].1))
        .with("signer", format!("key = {:?}", ACCOUNTS[1].1));
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for number in 0..COUNT {
        let properties =
            with_id(&format!("m-{number}")).with_headers(headers(&[("customer", KEYS[number % KEYS.len()])]));
        stage.amqp.publish(QUEUE, properties, number.to_string().as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written = written(&stage, COUNT).await;
    assert_eq!(written.iter().map(Vec::len).sum::<usize>(), COUNT);
    for numbers in &written {
        assert!(numbers.is_sorted(), "{numbers:?}");
    }
    let keys = |numbers: &Vec<usize>| numbers.iter().map(|number| number % KEYS.len()).collect::<BTreeSet<_>>();
    let (first, second) = (keys(&written[0]), keys(&written[1]));
    assert!(first.is_disjoint(&second), "{first:?} {second:?}");
    assert!(!first.is_empty() && !second.is_empty(), "both accounts work");
}

#[tokio::test]
async fn requests_without_a_key_go_to_the_account_with_the_least_to_do() {
    const COUNT: usize = 40;
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage
        .config()
        .with("signer", format!("key = {:?}", ACCOUNTS[0].1))
        .with("signer", format!("key = {:?}", ACCOUNTS[1].1));
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for number in 0..COUNT {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), number.to_string().as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let shares: Vec<_> = written(&stage, COUNT).await.iter().map(Vec::len).collect();
    assert_eq!(shares.iter().sum::<usize>(), COUNT);
    assert!(shares.iter().all(|share| *share >= COUNT / 4), "{shares:?}");
}

fn strict(config: WorkerConfig) -> WorkerConfig {
    config.with("request", "order_by = \"header:customer\"\nordering = \"strict\"")
}

fn quick_retries(config: WorkerConfig, max_attempts: u32) -> WorkerConfig {
    config
        .with("retry", format!("max_attempts = {max_attempts}"))
        .with("retry", "initial_delay = \"1s\"\nmultiplier = 1.0\nmax_delay = \"1s\"")
}

/// The id begins with its key; the body is the id unless it is to revert.
async fn publish_for(stage: &Stage, id: &str, body: &[u8]) {
    let properties = with_id(id).with_headers(headers(&[("customer", &id[..1])]));
    stage.amqp.publish(QUEUE, properties, body).await;
}

fn block_of(status: &Value) -> u64 {
    let transactions = status["transactions"].as_array().unwrap();
    transactions.last().unwrap()["block_number"].as_u64().unwrap()
}

/// One that reverts at first holds what comes behind it, of its key alone; each is signed when the one before it is final.
#[tokio::test]
async fn under_strict_ordering_a_retry_holds_those_behind_it_and_no_other_key() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = quick_retries(strict(stage.config_for(REVERTS_ON_FF).await), 50);
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    for (id, body) in [("a1", &b"\xff"[..]), ("b1", b"b1"), ("a2", b"a2"), ("a3", b"a3"), ("b2", b"b2")] {
        publish_for(&stage, id, body).await;
    }
    let b1 = stage.wait_state(&home, "b1", "final").await;
    let b2 = stage.wait_state(&home, "b2", "final").await;
    assert!(block_of(&b2) >= block_of(&b1) + 2, "finality is two blocks");
    wait_log_times(&worker, "request failed, it will be tried again", 2).await;
    for id in ["a2", "a3"] {
        let held = stage.status(&home, id).await;
        assert!(held["state"] == "accepted" && held["transactions"] == serde_json::json!([]), "{held}");
    }
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    let a3 = stage.wait_state(&home, "a3", "final").await;
    let (a1, a2) = (stage.status(&home, "a1").await, stage.status(&home, "a2").await);
    assert!(block_of(&a2) >= block_of(&a1) + 2 && block_of(&a3) >= block_of(&a2) + 2, "{a1} {a2} {a3}");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

#[tokio::test]
async fn under_strict_ordering_a_dead_letter_lets_the_next_one_go() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = quick_retries(strict(stage.config_for(REVERTS_ON_FF).await), 2);
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    for (id, body) in [("a1", &b"\xff"[..]), ("a2", b"a2")] {
        publish_for(&stage, id, body).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_state(&home, "a2", "final").await;
    assert_eq!(stage.status(&home, "a1").await["state"], "dead");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let events: Vec<_> = stage.kept_events().await.into_iter().map(|(id, kind, _)| format!("{id} {kind}")).collect();
    assert_eq!(events, ["a1 retry", "a1 dead", "a2 final"]);
}

/// More wait for one that failed than may be held or open at once: its retry comes in all the same, once some are parked.
#[tokio::test]
async fn a_retry_comes_in_though_those_behind_it_fill_the_prefetch_and_more() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = quick_retries(strict(stage.config_for(REVERTS_ON_FF).await), 50)
        .with("broker", "prefetch = 3\nmax_hold = \"2s\"\npark_delay = \"1s\"")
        .with("worker", "max_open = 2")
        .with("chain", "finality = 0");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    publish_for(&stage, "a0", b"\xff").await;
    for number in 1..9 {
        publish_for(&stage, &format!("a{number}"), number.to_string().as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    wait_log_times(&worker, "request failed, it will be tried again", 2).await;
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    stage.wait_state(&home, "a8", "final").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written = stage.transactions_of(0).await;
    let numbers: Vec<usize> = written.iter().skip(1).map(|(_, data, _)| number_in(data)).collect();
    assert_eq!(numbers, (1..9).collect::<Vec<_>>());
}

/// One of two instances takes all messages, until it stops; each key keeps the queue's order through that.
#[tokio::test]
async fn a_single_active_consumer_takes_all_messages_and_another_takes_over() {
    const COUNT: usize = 12;
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = strict(stage.config()).with("broker", "single_active_consumer = true").with("chain", "finality = 0");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut first = home.start(BINARY);
    wait_log(&first, "deliveries flow").await;
    let second = home.start(BINARY);
    wait_log(&second, "deliveries flow").await;
    let publish = async |numbers: std::ops::Range<usize>| {
        for number in numbers {
            publish_for(&stage, &format!("{}{number}", ["a", "b", "c"][number % 3]), number.to_string().as_bytes())
                .await;
        }
    };
    publish(0..COUNT).await;
    stage.wait_empty(QUEUE).await;
    let taken = |worker: &Worker| worker.log().matches("verdict=Accept").count();
    let (one, two) = (taken(&first), taken(&second));
    assert_eq!(one + two, COUNT);
    let mut owner_of_all = if two > one { second } else { std::mem::replace(&mut first, second) };
    assert_eq!(owner_of_all.stop().await.code(), Some(0));
    publish(COUNT..2 * COUNT).await;
    stage.wait_empty(QUEUE).await;
    let written = stage.transactions_of(0).await;
    let numbers: Vec<usize> = written.iter().map(|(_, data, _)| number_in(data)).collect();
    assert_eq!(numbers.len(), 2 * COUNT);
    for key in 0..3 {
        let of_key: Vec<_> = numbers.iter().filter(|number| *number % 3 == key).collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
}

/// The number in the calldata, which are its digits.
fn number_in(calldata: &str) -> usize {
    let bytes = calldata.trim_start_matches("0x").as_bytes();
    let digits = bytes.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
    String::from_utf8(digits.collect()).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_queue_without_a_single_active_consumer_is_named_and_left_as_it_is() {
    let Some(stage) = Stage::set().await else { return };
    stage.topology(&WorkerHome::new(&stage.config())).await;
    let home = WorkerHome::new(&stage.config().with("broker", "single_active_consumer = true"));
    let (code, text) = home.command(BINARY, &["topology", "apply"]).await;
    assert!(code == 69 && text.contains("x-single-active-consumer"), "{code}: {text}");
    assert!(text.contains("it exists with other arguments: move its messages away, delete it"), "{text}");
}

/// What order rests on: RabbitMQ gives what a lost session held to the next one before all that came later, in its order.
#[tokio::test]
async fn what_a_lost_session_held_comes_first_and_in_its_order() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("broker", "single_active_consumer = true"));
    stage.topology(&home).await;
    for limit in [None, Some(20)] {
        if let Some(limit) = limit {
            let policy = format!("{{\"delivery-limit\":{limit}}}");
            stage.rabbit.ctl(&["set_policy", "-p", &stage.vhost, "limit", "writes$", &policy]).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        }
        for number in 0..8 {
            stage.amqp.publish(QUEUE, with_id(&number.to_string()), b"").await;
        }
        let (lost, mut consumer) = consume(&stage, 4).await;
        assert_eq!(consumer.by_ref().take(4).map(id_of).collect::<String>().await, "0123");
        lost.channel.close(200, "".into()).await.unwrap();
        wait_until("they are given back", LONG, async || stage.depth(QUEUE).await == (8, 0)).await;
        let (next, consumer) = consume(&stage, 8).await;
        let order: String = consumer.take(8).map(id_of).collect().await;
        next.channel.basic_ack(0, lapin::options::BasicAckOptions { multiple: true }).await.unwrap();
        stage.wait_empty(QUEUE).await;
        assert_eq!(order, "01234567", "{limit:?}");
    }
}

fn id_of(delivery: lapin::Result<lapin::message::Delivery>) -> String {
    delivery.unwrap().properties.message_id().as_ref().unwrap().to_string()
}

async fn consume(stage: &Stage, prefetch: u16) -> (Amqp, lapin::Consumer) {
    let session = Amqp::connect(&stage.rabbit.uri(&stage.vhost)).await;
    session.channel.basic_qos(prefetch, lapin::options::BasicQosOptions::default()).await.unwrap();
    let (options, arguments) = (lapin::options::BasicConsumeOptions::default(), lapin::types::FieldTable::default());
    let consumer = session.channel.basic_consume(QUEUE.into(), "test".into(), options, arguments).await.unwrap();
    (session, consumer)
}
