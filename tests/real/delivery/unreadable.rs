//! Messages that no client library sends: texts that are not UTF-8, types that there are not. And messages that are too old.

use serde_json::Value;

use crate::stage::{BINARY, CONTRACT, DEAD, LONG, QUEUE, Stage, calldata, kinds_of, wait_log};
use crate::support::contracts::{ALWAYS_REVERTS, SINK};
use crate::support::raw_amqp::{RawAmqp, long, properties, short};
use crate::support::{WorkerHome, headers, wait_until, with_id};

const ORDERS: &str = "orders";

/// Places of properties.
const HEADERS: u16 = 2;
const DELIVERY_MODE: u16 = 3;
const CORRELATION_ID: u16 = 5;
const MESSAGE_ID: u16 = 8;
const KIND: u16 = 10;

/// A message, which part of it cannot be read, and a part of its bytes.
struct Bad {
    properties: Vec<(u16, Vec<u8>)>,
    key: &'static [u8],
    part: &'static str,
    bytes: &'static [u8],
}

fn all_bad() -> Vec<Bad> {
    let id = |bytes: &[u8]| (MESSAGE_ID, short(bytes));
    let of = |id: (u16, Vec<u8>), more: Option<(u16, Vec<u8>)>| {
        let mut all = vec![(DELIVERY_MODE, vec![2]), id];
        all.extend(more);
        all.sort_by_key(|(place, _)| *place);
        all
    };
    let table = |entry: &[u8]| Some((HEADERS, long(&[entry, b"\x04kindS\x00\x00\x00\x01a"].concat())));
    let bad = |properties, part, bytes| Bad { properties, key: b"pay.now", part, bytes };
    vec![
        bad(of(id(b"M\xfcller"), None), "message_id is 0x4dfc6c6c6572", b"M\xfcller"),
        bad(of(id(b"bad-type"), Some((KIND, short(b"\xe9t\xe9")))), "type is 0xe974e9", b"\xe9t\xe9"),
        bad(of(id(b"bad-correlation"), Some((CORRELATION_ID, short(b"\xff")))), "correlation_id is 0xff", b"\xff"),
        bad(of(id(b"bad-name"), table(b"\x02\xfcxS\x00\x00\x00\x01b")), "the name of a header is 0xfc78", b"\xfcx"),
        Bad {
            key: b"pay.caf\xe9",
            ..bad(of(id(b"bad-key"), None), "its routing key is 0x7061792e636166e9", b"bad-key")
        },
    ]
}

async fn publish_bad(raw: &mut RawAmqp, exchange: &str, key: Option<&[u8]>) {
    for Bad { properties: fields, key: own, part, .. } in all_bad() {
        raw.publish(exchange, key.unwrap_or(own), &properties(&fields), part.as_bytes()).await;
    }
}

async fn raw(stage: &Stage) -> RawAmqp {
    RawAmqp::connect(stage.rabbit.address(), &stage.vhost).await
}

async fn limit_deliveries(stage: &Stage, limit: usize) {
    let definition = format!("{{\"delivery-limit\":{limit}}}");
    let arguments = ["set_policy", "-p", &stage.vhost, "limit", "^acme\\.writes$", &definition, "--apply-to", "queues"];
    stage.rabbit.ctl(&arguments).await.unwrap();
}

/// Covers B22: with and without a delivery limit, nothing ends a session, and nothing is counted as a return.
#[tokio::test]
async fn what_the_client_library_cannot_read_is_a_dead_letter_and_its_neighbours_are_written() {
    for limit in [None, Some(3)] {
        let Some(stage) = Stage::with_blocks().await else { return };
        stage.amqp.declare_topic(ORDERS).await;
        let bind = format!("exchange = \"{ORDERS}\"\nrouting_keys = [\"pay.#\"]");
        let home = WorkerHome::new(&stage.config().with("bind", bind));
        stage.topology(&home).await;
        stage.keep_events().await;
        if let Some(limit) = limit {
            limit_deliveries(&stage, limit).await;
        }
        let mut raw = raw(&stage).await;
        stage.amqp.publish_to(ORDERS, "pay.now", with_id("first"), b"first").await;
        publish_bad(&mut raw, ORDERS, None).await;
        stage.amqp.publish_to(ORDERS, "pay.now", with_id("between"), b"between").await;
        let mut worker = home.start(BINARY);
        wait_log(&worker, "deliveries flow").await;
        // While it runs, and through the default exchange, as copies of its own come.
        publish_bad(&mut raw, "", Some(QUEUE.as_bytes())).await;
        stage.amqp.publish(QUEUE, with_id("last"), b"last").await;
        stage.wait_empty(QUEUE).await;
        assert!(!worker.log().contains("the session with the broker ended"), "{}", worker.log());
        assert_eq!(worker.stop().await.code(), Some(0));
        let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
        // The key of the default exchange can be read, and the letter of the other exchange's has not taken the id.
        let readable = all_bad().into_iter().find(|bad| bad.part.contains("routing key")).unwrap();
        let expected = [b"first".as_slice(), b"between", readable.part.as_bytes(), b"last"];
        assert_eq!(written, expected.map(calldata));
        let dead = stage.amqp.take_all(DEAD).await;
        for Bad { part, bytes, .. } in all_bad() {
            let letters: Vec<_> = dead.iter().filter(|letter| letter.body == part.as_bytes()).collect();
            // The key of the default exchange can be read.
            let expected = if part.contains("routing key") { 1 } else { 2 };
            assert_eq!(letters.len(), expected, "{part}: {dead:?}");
            for letter in letters {
                assert_eq!(letter.routing_key, "invalid.unreadable");
                assert!(letter.header("cw-error-detail").unwrap().contains(part), "{letter:?}");
                let raw = letter.header("cw-raw-properties").unwrap();
                assert!(raw.contains(&calldata(bytes)[2..]), "{part}: {raw}");
            }
        }
        let named = |id: &str| dead.iter().filter(|letter| letter.id() == id).count();
        assert_eq!(
            (named("bad-type"), named("bad-correlation"), named("bad-key")),
            (2, 2, 1),
            "what can be read is kept"
        );
        let kept = dead.iter().filter(|letter| letter.header("kind").as_deref() == Some("a")).count();
        assert_eq!((kept, dead.len()), (2, 9), "a header beside the one that cannot be read");
        // The one whose key can be read is a request of its own, and the id is known by then.
        let events = stage.kept_events().await;
        assert_eq!(kinds_of(&events, "bad-type"), ["dead", "dead"]);
    }
}

/// Covers B22: an older version leaves such letters to the broker's delivery limit, and others come from elsewhere.
#[tokio::test]
async fn commands_and_rules_work_past_letters_that_cannot_be_read() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config_for(ALWAYS_REVERTS).await.with("retry", "max_attempts = 1").with("chain", "finality = 0");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut raw = raw(&stage).await;
    publish_bad(&mut raw, DEAD, Some(b"broker.undeliverable")).await;
    let mut worker = home.start(BINARY);
    for id in ["a", "b"] {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
        stage.wait_state(&home, id, "dead").await;
    }
    let behind = properties(&[(DELIVERY_MODE, vec![2]), (MESSAGE_ID, short(b"\xfe"))]);
    raw.publish(DEAD, b"broker.undeliverable", &behind, b"behind").await;
    let dead = async |arguments: &[&str]| home.command(BINARY, &[&["dead"], arguments].concat()).await;
    let (code, text) = dead(&["list", "--items", "--json"]).await;
    assert_eq!(code, 0, "{text}");
    let list: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(list["items"].as_array().unwrap().len(), 8, "{text}");
    let (code, text) = dead(&["show", "bad-type"]).await;
    assert!(code == 0 && text.contains("e974e9") && text.contains("would be refused again"), "{text}");
    let file = home.folder().join("letters.ndjson").display().to_string();
    let (code, text) = dead(&["export", "--to", &file, "bad-name"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(std::fs::read_to_string(&file).unwrap().contains("cw-raw-properties"));
    let (code, text) = dead(&["discard", "--reason", "no more", "--yes", "bad-name"]).await;
    assert_eq!(code, 0, "{text}");
    let (code, text) = dead(&["import", &file]).await;
    assert_eq!(code, 0, "{text}");
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    let (code, text) = dead(&["replay", "--cause", "rejected", "--yes", "a"]).await;
    assert_eq!(code, 0, "{text}");
    stage.wait_state(&home, "a", "final").await;
    // Its readable part is sent, with a type that can be read.
    let (code, text) =
        dead(&["edit", "bad-correlation", "--set-header", "tenant=north", "--even-forgotten", "--yes"]).await;
    assert_eq!(code, 0, "{text}");
    stage.wait_state(&home, "bad-correlation", "final").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    // A rule reads past them, and leaves them.
    home.configure(
        &config
            .with("dead", "read_every = \"1s\"")
            .with("dead.replay", "cause = \"rejected\"\nafter = \"1s\"\nup_to = 2")
            .with("dead.replay", "cause = \"broker\"\nafter = \"1s\"\nup_to = 2"),
    );
    let left = stage.depth(DEAD).await.0;
    let mut worker = home.start(BINARY);
    stage.wait_state(&home, "b", "final").await;
    wait_until("only those are left that cannot be read", LONG, async || stage.depth(DEAD).await.0 == left - 1).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 3);
}

/// Covers B17: the producer's time, found by the worker and by the broker.
#[tokio::test]
async fn what_is_too_old_is_never_written_whoever_finds_it() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.keep_events().await;
    let until = |id: &str, time: &str| with_id(id).with_headers(headers(&[("cw-not-after", time)]));
    stage.amqp.publish(QUEUE, with_id("at-the-broker").with_expiration("1".into()), b"1").await;
    wait_until("the broker has put it aside", LONG, async || stage.depth(DEAD).await == (1, 0)).await;
    stage.amqp.publish(QUEUE, until("late", "2020-01-01T00:00:00Z"), b"2").await;
    let sent = with_id("sent-long-ago").with_timestamp(1_600_000_000).with_expiration("86400000".into());
    stage.amqp.publish(QUEUE, sent, b"3").await;
    stage.amqp.publish(QUEUE, until("good", "2099-01-01T00:00:00Z"), b"4").await;
    stage.amqp.publish(QUEUE, until("no-time", "soon"), b"5").await;
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    let (code, text) = home.command(BINARY, &["dead", "list", "--items", "--json"]).await;
    assert_eq!(code, 0, "{text}");
    let list: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let cause = |item: &Value| (item["id"].as_str().unwrap().to_owned(), item["cause"].as_str().unwrap().to_owned());
    let mut causes: Vec<_> = list["items"].as_array().unwrap().iter().map(cause).collect();
    causes.sort();
    let expected = [
        ("at-the-broker", "broker.expired"),
        ("late", "invalid.expired"),
        ("no-time", "invalid.bad_headers"),
        ("sent-long-ago", "invalid.expired"),
    ];
    assert_eq!(causes, expected.map(|(id, cause)| (id.to_owned(), cause.to_owned())));
    let (code, text) = home.command(BINARY, &["dead", "replay", "late", "--yes"]).await;
    assert!(
        code == 2 && text.contains("would be invalid.expired again") && text.contains("`dead edit`"),
        "{code}: {text}"
    );
    // An operator wants this one after all.
    let replay = ["dead", "replay", "--cause", "broker.expired", "--reason", "wanted", "--yes"];
    let (code, text) = home.command(BINARY, &replay).await;
    assert_eq!(code, 0, "{text}");
    stage.wait_state(&home, "at-the-broker", "final").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(b"4"), calldata(b"1")]);
    assert_eq!(kinds_of(&stage.kept_events().await, "late"), ["dead"]);
}
