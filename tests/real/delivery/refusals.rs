//! Messages that can never be a request, and what a copy of a message may not carry on.

use std::collections::BTreeSet;
use std::io::Write;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, kinds_of};
use crate::support::amqp10::{Amqp10, binary, described, list, text};
use crate::support::contracts::{ALWAYS_REVERTS, REVERTS_AT_LENGTH};
use crate::support::{WorkerConfig, WorkerHome, free_port, headers, with_id};

/// A message that must be refused, and why.
struct Bad {
    properties: BasicProperties,
    body: Vec<u8>,
    reason: &'static str,
    /// A part of the explanation.
    detail: &'static str,
}

fn bad(properties: BasicProperties, body: &[u8], reason: &'static str, detail: &'static str) -> Bad {
    Bad { properties, body: body.to_vec(), reason, detail }
}

pub fn with_value(properties: BasicProperties, name: &str, value: AMQPValue) -> BasicProperties {
    let mut table = properties.headers().clone().unwrap_or_default();
    table.insert(name.into(), value);
    properties.with_headers(table)
}

fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

/// Publishes a good message, the bad ones, and another good one; each bad one must become a dead letter, byte for byte
/// and with its reason, and both good ones must be written.
async fn assert_refused(stage: &Stage, config: WorkerConfig, good: [(BasicProperties, &[u8]); 2], all_bad: Vec<Bad>) {
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let [(first, first_body), (last, last_body)] = good;
    stage.amqp.publish(QUEUE, first, first_body).await;
    for Bad { properties, body, .. } in &all_bad {
        stage.amqp.publish(QUEUE, properties.clone(), body).await;
    }
    stage.amqp.publish(QUEUE, last, last_body).await;
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let mut dead = stage.amqp.take_all(DEAD).await;
    for Bad { properties, body, reason, detail } in &all_bad {
        let place = dead.iter().position(|dead| {
            dead.body == *body
                && dead.routing_key == format!("invalid.{reason}")
                && dead.properties.message_id() == properties.message_id()
                && dead.header("cw-error-detail").is_some_and(|found| found.contains(detail))
        });
        let place = place.unwrap_or_else(|| panic!("{reason}: {detail} is not among {dead:?}"));
        let letter = dead.remove(place);
        assert_eq!(letter.header("cw-error-class").as_deref(), Some("invalid"));
        assert_eq!(letter.header("cw-error-reason").as_deref(), Some(*reason));
        assert_eq!(letter.header("cw-original-routing-key").as_deref(), Some(QUEUE));
        assert!(letter.header("cw-first-failed-at").is_some());
    }
    assert!(dead.is_empty(), "{dead:?}");
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(first_body), calldata(last_body)]);
    let events = stage.kept_events().await;
    let count = |wanted: &str| events.iter().filter(|(_, kind, _)| kind == wanted).count();
    assert_eq!((count("final"), count("dead"), count("retry")), (2, all_bad.len(), 0));
    let ids: BTreeSet<_> = events.iter().map(|(.., event)| event["id"].to_string()).collect();
    assert_eq!(ids.len(), events.len(), "each has an event of its own");
}

/// Covers B21, B22, C46: no id, an id that is none, a body too long, counts that are none.
#[tokio::test]
async fn messages_that_are_no_requests_are_dead_letters_and_their_neighbours_are_written() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("broker", "max_body = \"1 KiB\"");
    let binary: Vec<u8> = (0..=255).collect();
    let all_bad = vec![
        bad(persistent(), &binary, "missing_id", "message_id"),
        bad(with_id(""), b"empty id", "missing_id", "message_id"),
        bad(with_id("large"), &vec![0xfe; 1025], "too_large", "1025 bytes"),
        bad(persistent(), &vec![0xfd; 2000], "too_large", "2000 bytes"),
        bad(with_id("text").with_headers(headers(&[("cw-attempt", "1")])), b"text", "bad_headers", "cw-attempt"),
        bad(with_value(with_id("below"), "cw-attempt", AMQPValue::LongInt(-1)), b"-1", "bad_headers", "cw-attempt"),
        bad(
            with_value(with_id("much"), "cw-attempt", AMQPValue::LongLongInt(i64::MAX)),
            b"much",
            "bad_headers",
            "cw-attempt",
        ),
        bad(
            with_value(with_id("replay"), "cw-replay-count", AMQPValue::Boolean(true)),
            b"replay",
            "bad_headers",
            "cw-replay-count",
        ),
    ];
    let longest = vec![0x11; 1024];
    let good = [(with_id("good-1"), longest.as_slice()), (with_id("good-2"), b"".as_slice())];
    assert_refused(&stage, config, good, all_bad).await;
}

pub fn nested(levels: usize) -> AMQPValue {
    (0..levels).fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(FieldArray::from(vec![inner])))
}

/// Covers B22: the journal keeps headers as JSON, whose readers take so many levels and no more.
#[tokio::test]
async fn headers_nested_too_deeply_are_refused() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let all_bad = vec![
        bad(with_value(with_id("deep-1"), "deep", nested(17)), b"17", "bad_headers", "levels"),
        bad(with_value(with_id("deep-2"), "deep", nested(70)), b"70", "bad_headers", "levels"),
    ];
    let good = [
        (with_value(with_id("good-1"), "deep", nested(16)), b"one".as_slice()),
        (with_id("good-2"), b"two".as_slice()),
    ];
    assert_refused(&stage, stage.config(), good, all_bad).await;
}

/// Covers B22, B19: one such message ends the process, whenever it is delivered.
#[tokio::test]
async fn headers_nested_as_deeply_as_a_frame_allows_do_not_end_the_process() {
    // The client library's own side of such a message needs as deep a stack.
    if std::env::var_os("RUST_MIN_STACK").is_none() {
        eprintln!("skipped: set RUST_MIN_STACK=536870912, as `make test` does");
        return;
    }
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_value(with_id("deep"), "deep", nested(20_000)), b"").await;
    stage.amqp.publish(QUEUE, with_id("good"), b"good").await;
    stage.wait_empty(QUEUE).await;
    assert!(worker.is_running());
    assert_eq!(stage.depth(DEAD).await, (1, 0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
}

/// Covers B22 for an id in a header.
#[tokio::test]
async fn a_header_of_the_wrong_type_is_no_id() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("request", "id = \"header:order\"");
    let table = AMQPValue::FieldTable(FieldTable::default());
    let all_bad = vec![
        bad(with_value(persistent(), "order", AMQPValue::Boolean(true)), b"bool", "bad_headers", "boolean"),
        bad(with_value(persistent(), "order", table), b"table", "bad_headers", "table"),
        bad(with_id("not-here"), b"elsewhere", "missing_id", "header order"),
    ];
    let good = [
        (persistent().with_headers(headers(&[("order", "o-1")])), b"one".as_slice()),
        (with_value(persistent(), "order", AMQPValue::LongInt(2)), b"two".as_slice()),
    ];
    assert_refused(&stage, config, good, all_bad).await;
}

fn gzipped(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Covers B23: what a body's properties say of it, and what RabbitMQ 4 makes of AMQP 1.0.
#[tokio::test]
async fn bodies_that_are_encoded_are_decoded_or_refused() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage
        .config()
        .with("broker", "max_body = \"1 KiB\"")
        .with("http", format!("listen = \"127.0.0.1:{}\"", free_port()))
        .with("route", "type = \"bytes\"")
        .with("route", "type = \"hex\"\nbody_encoding = \"hex\"")
        .with("route", "mode = \"call\"\nfunction = \"f(bytes4 x)\"\narguments = [\"json:/x\"]");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let of = |id: &str, encoding: &str| with_id(id).with_content_encoding(encoding.into());
    let json = br#"{"x":"0x01020304"}"#;
    let amqp = |value: &[u8]| [&[0x00, 0x53, 0x77][..], value].concat();
    let text = amqp(&[&[0xa1, u8::try_from(json.len()).unwrap()][..], json].concat());
    let selector = &alloy_primitives::keccak256("f(bytes4)")[..4];
    let call = calldata(&[selector, &[1, 2, 3, 4], &[0; 28]].concat());
    let raw = gzipped(b"raw");
    let good: Vec<(BasicProperties, Vec<u8>, String)> = vec![
        (of("gzip", "gzip"), gzipped(json), call.clone()),
        (of("kombu", "utf-8").with_content_type("application/json".into()), json.to_vec(), call.clone()),
        (with_id("mark"), [b"\xef\xbb\xbf", &json[..]].concat(), call.clone()),
        (with_id("amqp").with_type("amqp-1.0".into()), text, call),
        (of("kept", "gzip").with_type("bytes".into()), raw.clone(), calldata(&raw)),
        (with_id("hex").with_type("hex".into()), b"0x0a0b".to_vec(), "0x0a0b".to_owned()),
        (with_id("digits").with_type("bytes".into()), b"0x0a0b0c0d".to_vec(), calldata(b"0x0a0b0c0d")),
    ];
    let bad: Vec<(BasicProperties, Vec<u8>, &str)> = vec![
        (with_id("twice"), br#"{"x":"0x01020304","x":"0x05060708"}"#.to_vec(), "invalid.undecodable"),
        (of("bomb", "gzip"), gzipped(&vec![b' '; 1 << 22]), "invalid.too_large"),
        (of("no-gzip", "gzip"), json.to_vec(), "invalid.encoding"),
        (of("unknown", "br"), json.to_vec(), "invalid.encoding"),
        (with_id("xml").with_content_type("text/xml".into()), json.to_vec(), "invalid.encoding"),
        (with_id("list").with_type("amqp-1.0".into()), amqp(&[0x45]), "invalid.encoding"),
        (with_id("no-hex").with_type("hex".into()), b"0x0a0".to_vec(), "invalid.encoding"),
    ];
    for (properties, body) in good.iter().map(|(p, b, _)| (p, b)).chain(bad.iter().map(|(p, b, _)| (p, b))) {
        stage.amqp.publish(QUEUE, properties.clone(), body).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    let (_, text) = home.command(BINARY, &["doctor"]).await;
    assert!(text.contains("a message has come whose body is hexadecimal text"), "{text}");
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let expected: Vec<_> = good.into_iter().map(|(.., data)| data).collect();
    assert_eq!(written, expected);
    let mut dead: Vec<_> =
        stage.amqp.take_all(DEAD).await.into_iter().map(|dead| (dead.id(), dead.routing_key)).collect();
    dead.sort();
    let id = |properties: &BasicProperties| properties.message_id().as_ref().unwrap().to_string();
    let mut expected: Vec<_> = bad.iter().map(|(properties, _, key)| (id(properties), (*key).to_owned())).collect();
    expected.sort();
    assert_eq!(dead, expected);
}

/// Covers B23: RabbitMQ before 4.0 takes AMQP 1.0 only with a plugin, which gives such bodies to others in its own way.
#[tokio::test]
async fn bodies_of_amqp_1_0_are_what_their_producers_sent() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let version = stage.rabbit.ctl(&["version"]).await.unwrap();
    if version.trim().starts_with('3') {
        eprintln!("skipped: this is RabbitMQ {}; CHAINWRITER_RABBITMQ names another", version.trim());
        return;
    }
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let (data, value) = (|bytes: &[u8]| described(0x75, &binary(bytes)), |value: &[u8]| described(0x77, value));
    let sequence = described(0x76, &list(&[&text("a")]));
    let mut producer = Amqp10::connect(stage.rabbit.address(), &stage.vhost, QUEUE).await;
    for (id, body) in [
        ("data", data(b"\xffdata")),
        ("text", value(&text("a text"))),
        ("binary", value(&binary(b"\xff\x00"))),
        ("list", value(&list(&[&text("a")]))),
        ("null", value(&[0x40])),
        ("sequence", sequence.clone()),
        ("two", [data(b"one"), data(b"two")].concat()),
        ("sequences", [sequence.clone(), sequence].concat()),
    ] {
        producer.send(id, &body).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [b"\xffdata".as_slice(), b"a text", b"\xff\x00", b"onetwo"].map(calldata));
    let mut dead = stage.amqp.take_all(DEAD).await;
    dead.sort_by_key(|dead| dead.id());
    let found: Vec<_> = dead.iter().map(|dead| (dead.id(), dead.routing_key.as_str())).collect();
    let expected = ["list", "null", "sequence", "sequences"];
    assert_eq!(found, expected.map(|id| (id.to_owned(), "invalid.encoding")));
}

/// Covers B23 for an id in the body.
#[tokio::test]
async fn a_body_that_cannot_be_read_has_no_id() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("request", "id = \"json:/id\"");
    let all_bad = vec![
        bad(persistent(), b"{\"id\":", "undecodable", "not JSON"),
        bad(with_id("outside"), b"\xff\xfe", "undecodable", "not JSON"),
        bad(persistent(), b"{\"id\":[1]}", "undecodable", "/id"),
        bad(persistent(), b"{\"id\":1.5}", "undecodable", "/id"),
        bad(persistent(), b"{\"name\":\"x\"}", "missing_id", "/id"),
    ];
    let good = [(persistent(), b"{\"id\":\"o-1\"}".as_slice()), (persistent(), b"{\"id\":7}".as_slice())];
    assert_refused(&stage, config, good, all_bad).await;
}

#[tokio::test]
async fn two_equal_messages_without_an_id_are_two_dead_letters() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let all_bad = vec![
        bad(persistent(), b"same", "missing_id", "message_id"),
        bad(persistent(), b"same", "missing_id", "message_id"),
    ];
    let good = [(with_id("good-1"), b"one".as_slice()), (with_id("good-2"), b"two".as_slice())];
    assert_refused(&stage, stage.config(), good, all_bad).await;
}

/// Covers B17: the producer's expiration, user id and extra recipients go no further; its ids and trace do.
#[tokio::test]
async fn a_copy_keeps_what_identifies_a_message_and_drops_what_would_divert_it() {
    let Some(stage) = Stage::set().await else { return };
    let config = stage.config_for(ALWAYS_REVERTS).await;
    let config = config.with("retry", "max_attempts = 2\ninitial_delay = \"1s\"\nmax_delay = \"1s\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for queue in ["open-copies", "hidden-copies", "answers"] {
        stage.amqp.declare(queue).await;
        // Where the producer's further recipients are known, a copy that still names them would reach them.
        stage.amqp.bind(queue, "acme.writes.retry", queue).await;
    }
    let mut retries = stage.amqp.watch(&[("acme.writes.retry", "acme.writes.wait.1s")]).await;
    let copy_to = |queue: &str| AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::LongString(queue.into())]));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let properties = with_id("order-1")
        .with_content_type("application/json".into())
        .with_content_encoding("identity".into())
        .with_correlation_id("c-1".into())
        .with_reply_to("answers".into())
        .with_type("order".into())
        .with_app_id("shop".into())
        .with_timestamp(now)
        .with_priority(3)
        .with_expiration("86400000".into())
        .with_user_id("guest".into())
        .with_headers(headers(&[("traceparent", "00-1-2-01")]));
    let properties = with_value(properties, "CC", copy_to("open-copies"));
    let properties = with_value(properties, "BCC", copy_to("hidden-copies"));
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, properties.clone(), b"{}").await;
    let retry = retries.next(LONG).await;
    assert_eq!((retry.header("CC"), retry.header("BCC")), (None, None));
    assert_eq!((retry.properties.expiration(), retry.properties.user_id()), (&None, &None));
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let expected = properties.clone().with_headers(dead.properties.headers().clone().unwrap());
    let mut sent = BasicProperties::default().with_delivery_mode(2);
    macro_rules! keep {
        ($($get:ident => $with:ident),*) => { $(if let Some(value) = expected.$get().clone() { sent = sent.$with(value); })* };
    }
    keep!(
        content_type => with_content_type, content_encoding => with_content_encoding, correlation_id => with_correlation_id,
        reply_to => with_reply_to, kind => with_type, app_id => with_app_id, timestamp => with_timestamp,
        priority => with_priority, message_id => with_message_id, headers => with_headers
    );
    assert_eq!(dead.properties, sent, "all but the expiration and the user id");
    assert_eq!(dead.header("cw-original-expiration").as_deref(), Some("86400000"));
    assert_eq!(dead.header("traceparent").as_deref(), Some("00-1-2-01"));
    assert_eq!((dead.header("CC"), dead.header("BCC")), (None, None));
    for queue in ["open-copies", "hidden-copies"] {
        assert_eq!(stage.depth(queue).await, (1, 0), "{queue}: the producer's own copy and no other");
    }
    let answers: Vec<_> = stage.amqp.take_all("answers").await;
    let types: Vec<_> = answers.iter().map(|answer| answer.json()["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(types, ["io.chainwriter.request.retry.v1", "io.chainwriter.request.dead.v1"]);
    assert!(answers.iter().all(|answer| answer.properties.correlation_id() == properties.correlation_id()));
}

/// Covers B24: half a million bytes of explanation become one KiB, and no connection breaks over them.
#[tokio::test]
async fn a_huge_error_text_is_cut_and_the_connection_stays() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config_for(REVERTS_AT_LENGTH).await.with("retry", "max_attempts = 1");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    crate::stage::wait_log(&worker, "deliveries flow").await;
    let before = stage.connections().await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    let detail = dead.header("cw-error-detail").unwrap();
    assert!((1000..=1024).contains(&detail.len()), "{} bytes", detail.len());
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.connections().await, before, "the connections are the same");
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(kinds_of(&stage.kept_events().await, "order-1"), ["dead"]);
}

/// A header table near the limit of a frame comes in, and goes out as a dead letter without its largest part.
#[tokio::test]
async fn a_header_too_large_to_copy_stays_behind_and_is_named() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    crate::stage::wait_log(&worker, "deliveries flow").await;
    let before = stage.connections().await;
    let blob = "x".repeat(120_000);
    let table = headers(&[("blob", blob.as_str()), ("traceparent", "00-1-2-01")]);
    stage.amqp.publish(QUEUE, with_id("order-1").with_headers(table), b"").await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!(dead.header("blob"), None);
    assert_eq!(dead.header("cw-dropped-headers").as_deref(), Some("blob"));
    assert_eq!(dead.header("traceparent").as_deref(), Some("00-1-2-01"));
    assert_eq!(dead.header("cw-error-reason").as_deref(), Some("too_large"));
    assert_eq!(stage.connections().await, before, "the connections are the same");
    assert_eq!(worker.stop().await.code(), Some(0));
}
