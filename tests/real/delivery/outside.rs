//! What producers, consumers and contracts send, and what it must not lead to: replies to the worker's own queues, queues that
//! refuse, headers that are made up or too large, another route than the producer's, text that forges a line.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};

use crate::delivery::refusals::with_value;
use crate::stage::{BINARY, CONTRACT, DEAD, EVENTS, LONG, QUEUE, Stage, calldata, kinds_of, wait_log};
use crate::support::contracts::{ALWAYS_REVERTS, SINK, reverts_with};
use crate::support::{Amqp, WorkerConfig, WorkerHome, headers, wait_until, with_id};

const RETRY: &str = "acme.writes.retry";
const WAIT: &str = "acme.writes.wait.1s";
const ORDERS: &str = "orders";
/// Far less than what a queue that refuses may hold up others for, and more than a busy machine needs.
const SOON: Duration = Duration::from_secs(20);

fn tries(config: WorkerConfig, max_attempts: u32) -> WorkerConfig {
    config.with("retry", format!("max_attempts = {max_attempts}\ninitial_delay = \"1s\"\nmax_delay = \"1s\""))
}

/// Makes a queue that takes nothing.
async fn declare_full(stage: &Stage, queue: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    stage.amqp.channel.queue_declare(queue.into(), durable, arguments).await.unwrap();
    stage.amqp.publish(queue, with_id("fills it"), b"").await;
}

/// Makes an exchange of producers, from which the work queue gets all that begins with `pay.` or `eat.`.
async fn with_orders(stage: &Stage, config: WorkerConfig) -> WorkerHome {
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared =
        stage.amqp.channel.exchange_declare(ORDERS.into(), ExchangeKind::Topic, durable, FieldTable::default());
    declared.await.unwrap();
    let home = WorkerHome::new(
        &config.with("bind", format!("exchange = \"{ORDERS}\"\nrouting_keys = [\"pay.#\", \"eat.#\"]")),
    );
    stage.topology(&home).await;
    home
}

async fn written(stage: &Stage) -> Vec<String> {
    stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect()
}

/// No outcome becomes a request, a dead letter or a marker.
#[tokio::test]
async fn a_reply_never_reaches_a_queue_of_the_workers_own() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    let markers = stage.depth("acme.writes.journal").await.0;
    let own = [QUEUE, DEAD, "acme.writes.journal", "acme.writes.events.unrouted", "acme.writes.wait.5s"];
    for queue in own {
        stage.amqp.publish(QUEUE, with_id(queue).with_reply_to(queue.into()), queue.as_bytes()).await;
    }
    for id in own {
        stage.wait_state(&home, id, "final").await;
    }
    wait_log(&worker, "a message asks for a reply that is not allowed").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let mut data = written(&stage).await;
    data.sort();
    let mut expected: Vec<_> = own.iter().map(|queue| calldata(queue.as_bytes())).collect();
    expected.sort();
    assert_eq!(data, expected, "nothing else is written");
    for queue in [DEAD, "acme.writes.events.unrouted", "acme.writes.wait.5s"] {
        assert_eq!(stage.depth(queue).await, (0, 0), "{queue}");
    }
    assert_eq!(stage.depth("acme.writes.journal").await.0, markers);
    assert_eq!(stage.kept_events().await.len(), own.len(), "each has its event");
}

#[tokio::test]
async fn an_operator_decides_which_queues_get_replies() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config().with("request", "reply_to = [\"replies.\"]"));
    stage.topology(&home).await;
    stage.keep_events().await;
    for queue in ["replies.shop", "bank"] {
        stage.amqp.declare(queue).await;
        stage.amqp.publish(QUEUE, with_id(queue).with_reply_to(queue.into()), b"").await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!((stage.depth("replies.shop").await.0, stage.depth("bank").await.0), (1, 0));
    assert_eq!(stage.kept_events().await.len(), 2);
    home.configure(&stage.config().with("request", "reply_to = \"off\""));
    stage.amqp.publish(QUEUE, with_id("last").with_reply_to("replies.shop".into()), b"").await;
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth("replies.shop").await.0, 1);
    assert_eq!(kinds_of(&stage.kept_events().await, "last"), ["final"]);
}

/// The broker puts a receiver's address into `reply_to`, which a retry carries on. A receiver that is gone holds up nothing.
#[tokio::test]
async fn direct_replies_reach_the_channel_that_asked_while_it_is_there() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(ALWAYS_REVERTS).await, 9));
    stage.topology(&home).await;
    stage.keep_events().await;
    let direct = |id: &str| with_id(id).with_reply_to("amq.rabbitmq.reply-to".into()).with_correlation_id("c".into());
    let gone = Amqp::connect(&stage.rabbit.uri(&stage.vhost)).await;
    let unread = gone.watch_direct_replies().await;
    gone.publish(QUEUE, direct("gone"), b"gone").await;
    drop((unread, gone));
    let mut replies = stage.amqp.watch_direct_replies().await;
    stage.amqp.publish(QUEUE, direct("here"), b"here").await;
    let mut worker = home.start(BINARY);
    for id in ["gone", "here"] {
        stage.wait_state(&home, id, "retry_waiting").await;
    }
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|kind| kind != "io.chainwriter.request.final.v1") {
        let reply = replies.next(LONG).await;
        assert_eq!(reply.properties.correlation_id().as_ref().map(|id| id.as_str()), Some("c"));
        assert_eq!(reply.json()["subject"], "here");
        kinds.push(reply.json()["type"].as_str().unwrap().to_owned());
    }
    assert!(kinds.len() > 1, "one for the retry, too: {kinds:?}");
    stage.wait_state(&home, "gone", "final").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert!(!worker.log().contains("the broker refused a message"), "{}", worker.log());
    let events = stage.kept_events().await;
    for id in ["gone", "here"] {
        assert_eq!(kinds_of(&events, id).last(), Some(&"final"), "{id}: the event stays on the exchange");
    }
}

#[tokio::test]
async fn a_queue_that_refuses_its_replies_delays_no_other_and_is_given_up() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config().with("request", "reply_timeout = \"3s\""));
    stage.topology(&home).await;
    stage.keep_events().await;
    stage.amqp.declare("answers").await;
    declare_full(&stage, "full").await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    let refused: Vec<_> = (0..20).map(|number| format!("refused-{number}")).collect();
    for id in &refused {
        stage.amqp.publish(QUEUE, with_id(id).with_reply_to("full".into()), id.as_bytes()).await;
    }
    wait_log(&worker, "the broker refused a message").await;
    for number in 0..5 {
        let id = format!("answered-{number}");
        stage.amqp.publish(QUEUE, with_id(&id).with_reply_to("answers".into()), id.as_bytes()).await;
        stage.wait_state(&home, &id, "final").await;
        let began = Instant::now();
        while stage.amqp.take("answers").await.is_none() {
            assert!(began.elapsed() < Duration::from_secs(4), "{id}: its reply waits for others");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    wait_log(&worker, "replies given up").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let events = stage.kept_events().await;
    for id in &refused {
        assert_eq!(kinds_of(&events, id), ["final"], "{id}: its event came once");
    }
}

/// The events of another listener are not held up either.
#[tokio::test]
async fn a_listener_that_refuses_delays_no_other_kind_of_event_and_loses_none() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    declare_full(&stage, "full").await;
    stage.amqp.bind("full", EVENTS, "dead").await;
    let mut finals = stage.amqp.watch(&[(EVENTS, "final")]).await;
    let mut worker = home.start(BINARY);
    for _ in 0..3 {
        stage.amqp.publish(QUEUE, BasicProperties::default(), b"no id").await;
    }
    wait_log(&worker, "the broker refused a message").await;
    for number in 0..3 {
        let id = format!("order-{number}");
        stage.amqp.publish(QUEUE, with_id(&id), id.as_bytes()).await;
        stage.wait_state(&home, &id, "final").await;
        assert_eq!(finals.next(Duration::from_secs(4)).await.json()["subject"], id.as_str());
    }
    assert_eq!(stage.amqp.take("full").await.unwrap().id(), "fills it");
    let dead = stage.amqp.wait_for("full", LONG).await;
    assert_eq!((dead.routing_key.as_str(), &dead.json()["data"]["refused"]), ("dead", &true.into()));
    assert_eq!(worker.stop().await.code(), Some(0));
}

#[tokio::test]
async fn one_id_in_two_queues_of_an_organisation_gives_two_events() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let other = WorkerConfig { queue: "acme.other".to_owned(), account: 1, ..stage.config() };
    let (home, other) = (WorkerHome::new(&stage.config()), WorkerHome::new(&other));
    stage.topology(&home).await;
    stage.topology(&other).await;
    let mut events = stage.amqp.watch(&[(EVENTS, "#"), ("acme.other.events", "#")]).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    stage.amqp.publish("acme.other", with_id("order-1"), b"").await;
    let mut workers = [home.start(BINARY), other.start(BINARY)];
    let events = [events.next(LONG).await.json(), events.next(LONG).await.json()];
    let ids: BTreeSet<_> = events.iter().map(|event| event["id"].to_string()).collect();
    let sources: BTreeSet<_> = events.iter().map(|event| event["source"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(sources, BTreeSet::from(["/chainwriter/acme/31337/acme.other", "/chainwriter/acme/31337/acme.writes"]));
    for worker in &mut workers {
        assert_eq!(worker.stop().await.code(), Some(0));
    }
}

/// The scope survives a retry, a dead letter and its replay, each of which is another publish by the worker's own user.
#[tokio::test]
async fn one_id_of_two_users_of_the_broker_is_two_requests() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = tries(stage.config_for(ALWAYS_REVERTS).await, 2).with("request", "scope = \"user_id\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("a").with_user_id("guest".into()), b"one").await;
    stage.amqp.publish(QUEUE, with_id("a"), b"other").await;
    stage.wait_state(&home, "guest/a", "dead").await;
    stage.wait_state(&home, "/a", "dead").await;
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    let (code, text) = home.command(BINARY, &["dead", "replay", "guest/a", "--wait", "--yes"]).await;
    assert!(code == 0 && text.contains("final"), "{code} {text}");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(written(&stage).await, [calldata(b"one")]);
    let mut events: Vec<_> = stage.kept_events().await.into_iter().map(|(id, kind, _)| (id, kind)).collect();
    events.sort();
    let expected = [("/a", "dead"), ("/a", "retry"), ("guest/a", "dead"), ("guest/a", "final"), ("guest/a", "retry")];
    assert_eq!(events, expected.map(|(id, kind)| (id.to_owned(), kind.to_owned())));
    let (_, letters) = home.command(BINARY, &["dead", "list", "--items"]).await;
    assert!(letters.contains(" /a") && !letters.contains("guest/a"), "{letters}");
}

/// More retries than there are places for publishes on their way.
#[tokio::test]
async fn a_wait_queue_that_takes_nothing_holds_up_no_dead_letter() {
    let Some(stage) = Stage::set().await else { return };
    let config = tries(stage.config_for(ALWAYS_REVERTS).await, 2).with("broker", "publish_channels = 2");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    stage.amqp.unbind(WAIT, RETRY, WAIT).await;
    let ids: Vec<_> = (0..8).map(|number| format!("order-{number}")).collect();
    for id in &ids {
        stage.amqp.publish(QUEUE, with_id(id), b"").await;
    }
    for id in &ids {
        stage.wait_state(&home, id, "retry_pending").await;
    }
    wait_log(&worker, "no queue takes messages").await;
    stage.amqp.publish(QUEUE, BasicProperties::default(), b"no id").await;
    assert_eq!(stage.amqp.wait_for(DEAD, SOON).await.routing_key, "invalid.missing_id");
    let retries = (0, ids.len() as u64);
    wait_until("the letter's delivery is acked", SOON, async || stage.depth(QUEUE).await == retries).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.depth(QUEUE).await, retries, "no retry is acked");
    stage.amqp.bind(WAIT, RETRY, WAIT).await;
    let mut dead = BTreeSet::new();
    for _ in &ids {
        dead.insert(stage.amqp.wait_for(DEAD, LONG).await.id());
    }
    assert_eq!(dead, ids.into_iter().collect());
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}

/// The header with the id is the largest of very many.
#[tokio::test]
async fn a_message_with_too_many_headers_is_a_dead_letter_that_keeps_its_id() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config().with("request", "id = \"header:order\""));
    stage.topology(&home).await;
    let id = "o".repeat(200);
    let mut table = headers(&[("order", &id)]);
    for number in 0..2000 {
        table.insert(format!("h{number}").into(), AMQPValue::LongString("0123456789".into()));
    }
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(table);
    stage.amqp.publish(QUEUE, properties, b"{}").await;
    let good = BasicProperties::default().with_delivery_mode(2).with_headers(headers(&[("order", "good")]));
    stage.amqp.publish(QUEUE, good, b"good").await;
    let mut worker = home.start(BINARY);
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!(dead.routing_key, "invalid.too_large");
    assert_eq!(dead.header("order"), Some(id));
    assert!(dead.header("cw-dropped-headers").is_some_and(|names| names.contains("h1")), "{:?}", dead.properties);
    stage.wait_state(&home, "good", "final").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(written(&stage).await, [calldata(b"good")]);
}

/// A producer that may publish to an exchange alone.
#[tokio::test]
async fn headers_of_ours_that_a_producer_makes_up_count_for_nothing() {
    let Some(stage) = Stage::set().await else { return };
    let home = with_orders(&stage, tries(stage.config_for(ALWAYS_REVERTS).await, 2)).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    let made_up = [
        ("cw-replay-count", AMQPValue::LongLongInt(u32::MAX.into())),
        ("cw-attempt", AMQPValue::LongLongInt(77)),
        ("cw-request-id", AMQPValue::LongString("victim".into())),
        ("cw-dead-letter-key", AMQPValue::LongString("invalid.schema".into())),
        ("cw-original-routing-key", AMQPValue::LongString("eat.now".into())),
        ("cw-passage", AMQPValue::LongString("token".into())),
        ("cw-dropped-headers", AMQPValue::LongString("tenant".into())),
        // The broker counts from the second delivery on, and this is the first.
        ("x-delivery-count", AMQPValue::LongLongInt(50)),
    ];
    let properties = made_up.iter().fold(with_id("order-1"), |all, (name, value)| with_value(all, name, value.clone()));
    stage.amqp.publish_to(ORDERS, "pay.now", properties, b"{}").await;
    let status = stage.wait_state(&home, "order-1", "dead").await;
    assert!(!status["incidents"].to_string().contains("parked"), "it was no suspect: {status}");
    let (code, text) = home.command(BINARY, &["dead", "show", "order-1"]).await;
    assert!(code == 0 && text.contains("safe to replay") && text.contains("rejected.reverted"), "{code} {text}");
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    stage.anvil.set_interval_mining(1).await.unwrap();
    let replayed = ["dead", "replay", "order-1", "--wait", "--yes"];
    let (code, text) = home.command(BINARY, &replayed).await;
    assert!(code == 0 && text.contains("sent back as replay 1") && text.contains("final"), "{code} {text}");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(written(&stage).await, [calldata(b"{}")]);
    assert_eq!(kinds_of(&stage.kept_events().await, "order-1"), ["retry", "dead", "final"]);
}

/// What a producer may set in the default exchange is bounded all the same.
#[tokio::test]
async fn a_replay_count_that_leaves_no_room_for_a_replay_is_refused() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let count = AMQPValue::LongLongInt(u32::MAX.into());
    stage.amqp.publish(QUEUE, with_value(with_id("order-1"), "cw-replay-count", count), b"").await;
    let mut worker = home.start(BINARY);
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!(dead.routing_key, "invalid.bad_headers");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert!(written(&stage).await.is_empty());
}

/// The routes of two producers, each to a contract of its own.
fn with_two_routes(config: WorkerConfig) -> WorkerConfig {
    let route = |name: &str, key: &str, to: &str| format!("name = \"{name}\"\nrouting_key = \"{key}\"\nto = \"{to}\"");
    let eaten = "0x00000000000000000000000000000000000000ea";
    config.with("route", route("eat", "eat.#", eaten)).with("route", route("pay", "pay.#", CONTRACT))
}

#[tokio::test]
async fn a_dead_letter_of_a_route_by_key_goes_back_by_that_route() {
    let Some(stage) = Stage::set().await else { return };
    let home = with_orders(&stage, with_two_routes(tries(stage.config_for(ALWAYS_REVERTS).await, 1))).await;
    let mut worker = home.start(BINARY);
    // Its own header is no way to another producer's route.
    let forged = with_value(with_id("order-1"), "cw-original-routing-key", AMQPValue::LongString("eat.now".into()));
    stage.amqp.publish_to(ORDERS, "pay.now", forged, b"one").await;
    stage.wait_state(&home, "order-1", "dead").await;
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    stage.anvil.set_interval_mining(1).await.unwrap();
    let (code, text) = home.command(BINARY, &["dead", "show", "order-1"]).await;
    assert!(code == 0 && text.contains("safe to replay"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["dead", "replay", "order-1", "--wait", "--yes"]).await;
    assert!(code == 0 && text.contains("final"), "{code} {text}");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, to)| (data, to)).collect();
    assert_eq!(written, [(calldata(b"one"), CONTRACT.to_owned())]);
}

/// Their time ran out in the work queue while no worker was there.
#[tokio::test]
async fn a_letter_that_the_broker_made_goes_back_by_the_route_of_its_first_key() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = with_orders(&stage, with_two_routes(stage.config())).await;
    let expiring = |id: &str| with_id(id).with_expiration("1".into());
    stage.amqp.publish_to(ORDERS, "pay.now", expiring("order-1"), b"one").await;
    let forged = with_value(expiring("order-2"), "cw-original-routing-key", AMQPValue::LongString("eat.now".into()));
    let forged = with_value(forged, "cw-error-class", AMQPValue::LongString("rejected".into()));
    let forged = with_value(forged, "cw-error-reason", AMQPValue::LongString("reverted".into()));
    stage.amqp.publish_to(ORDERS, "pay.now", forged, b"two").await;
    wait_until("both have expired", LONG, async || stage.depth(DEAD).await.0 == 2).await;
    // One that says nothing of its way.
    let table = headers(&[("tenant", "north")]);
    stage.amqp.publish_to(DEAD, "broker.undeliverable", with_id("order-3").with_headers(table), b"three").await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    let (code, text) = home.command(BINARY, &["dead", "replay", "--all", "--wait", "--yes"]).await;
    assert!(code != 0 && text.contains("with which routing key it was published"), "{code} {text}");
    for id in ["order-1", "order-2"] {
        stage.wait_state(&home, id, "final").await;
    }
    let (_, text) = home.command(BINARY, &["dead", "list", "--items"]).await;
    assert!(text.contains("order-3") && !text.contains("order-1") && !text.contains("order-2"), "{text}");
    // An operator knows where one came from.
    let table = headers(&[("cw-original-routing-key", "eat.now")]);
    stage.amqp.publish_to(DEAD, "broker.undeliverable", with_id("order-4").with_headers(table), b"four").await;
    let (code, text) = home.command(BINARY, &["dead", "replay", "order-4", "--yes"]).await;
    assert!(code != 0 && text.contains("--trust-origin"), "{code} {text}");
    let trusting = ["dead", "replay", "order-4", "--trust-origin", "--even-forgotten", "--wait", "--yes"];
    let (code, text) = home.command(BINARY, &trusting).await;
    assert!(code == 0 && text.contains("final"), "{code} {text}");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, to)| (data, to)).collect();
    assert_eq!(written.len(), 3);
    assert_eq!(written[..2], [(calldata(b"one"), CONTRACT.to_owned()), (calldata(b"two"), CONTRACT.to_owned())]);
    assert!(written[2].0 == calldata(b"four") && written[2].1 != CONTRACT, "by the route of its own word");
}

/// In the log, in `status`, in a dead letter and in an event.
#[tokio::test]
async fn text_of_a_contract_forges_nothing() {
    const FORGED: &str = "no\u{1b}[2J\nERROR all is lost\nWATCHDOG=trigger\u{9b}31m\u{202e}";
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(&reverts_with(FORGED)).await, 1));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    // An id and a type, which keep their bytes.
    let odd = with_id("order\u{2028}2\u{202e}").with_type("a\u{1b}[31m".into());
    stage.amqp.publish(QUEUE, odd, b"").await;
    wait_until("both are dead letters", LONG, async || stage.depth(DEAD).await.0 == 2).await;
    let mut shown = Vec::new();
    for arguments in
        [&["status", "order-1"][..], &["dead", "list", "--items"], &["dead", "show", "order-1"], &["status"]]
    {
        shown.push(home.command(BINARY, arguments).await.1);
    }
    shown.push(home.command(BINARY, &["dead", "list", "--items", "--json"]).await.1);
    assert_eq!(worker.stop().await.code(), Some(0));
    shown.push(worker.log());
    let steers = |c: char| c != '\n' && (c.is_control() || matches!(c, '\u{2028}' | '\u{202e}'));
    for text in &shown {
        assert!(!text.contains(steers), "{text:?}");
        let forged = text.lines().find(|line| line.starts_with("ERROR all") || line.starts_with("WATCHDOG"));
        assert_eq!(forged, None, "{text}");
    }
    assert!(shown[..3].iter().all(|text| text.contains("no [2J ERROR all is lost")), "{shown:?}");
    let letters = stage.amqp.take_all(DEAD).await;
    let letter = letters.iter().find(|letter| letter.id() == "order-1").unwrap();
    assert_eq!(letter.header("cw-error-detail").as_deref(), Some("no [2J ERROR all is lost WATCHDOG=trigger 31m "));
    let odd = letters.iter().find(|letter| letter.id() != "order-1").unwrap();
    assert_eq!(odd.id(), "order\u{2028}2\u{202e}", "an id keeps its bytes");
}

#[tokio::test]
async fn what_is_held_unacked_has_no_more_bytes_than_the_operator_allows() {
    const BODY: usize = 60_000;
    const MESSAGES: u64 = 60;
    let Some(stage) = Stage::set().await else { return };
    // Nothing becomes final: all deliveries stay unacked.
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home =
        WorkerHome::new(&stage.config().with("broker", "prefetch_bytes = \"1 MiB\"").with("write", "gas = 5000000"));
    stage.topology(&home).await;
    for number in 0..MESSAGES {
        stage.amqp.publish(QUEUE, with_id(&format!("order-{number}")), &vec![0x11; BODY]).await;
    }
    let mut worker = home.start(BINARY);
    let most = (1 << 20) / BODY as u64;
    wait_until("it holds what it may", LONG, async || stage.depth(QUEUE).await.1 >= most - 1).await;
    // It has time to take more.
    for _ in 0..20 {
        let (ready, unacked) = stage.depth(QUEUE).await;
        assert!(unacked <= most + 1, "{ready} ready, {unacked} unacked");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.wait_nonce(0, MESSAGES).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
}
