//! What the daemon says of itself: metrics, health and reports, beside what was really done.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, wait_log};
use crate::support::contracts::REVERTS_ON_FF;
use crate::support::http::{exchange, get};
use crate::support::{Worker, WorkerConfig, WorkerHome, free_port, wait_until, with_id};

fn listening(config: WorkerConfig) -> (WorkerConfig, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    (config.with("http", format!("listen = \"{address}\"")), address)
}

/// Every sample of the page by its name and labels.
async fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let (status, head, page) = get(address, "/metrics").await.expect("it answers");
    assert_eq!(status, 200, "{page}");
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

async fn ready(address: SocketAddr) -> Option<(u16, Value)> {
    let (status, _, body) = get(address, "/readyz").await?;
    Some((status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"))))
}

async fn report(address: SocketAddr) -> Value {
    let (status, _, body) = get(address, "/status").await.expect("it answers");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"))
}

async fn wait_ready(address: SocketAddr) {
    let is_ready = async || ready(address).await.is_some_and(|(status, _)| status == 200);
    wait_until("it is ready", LONG, is_ready).await;
}

#[tokio::test]
async fn counters_say_what_was_done() {
    const GOOD: usize = 20;
    const BAD: usize = 3;
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config_for(REVERTS_ON_FF).await.with("retry", "max_attempts = 2\ninitial_delay = \"100ms\"");
    let (config, address) = listening(config);
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for number in 0..GOOD {
        stage.amqp.publish(QUEUE, with_id(&format!("good-{number}")), format!("1-{number}").as_bytes()).await;
    }
    for number in 0..BAD {
        stage.amqp.publish(QUEUE, with_id(&format!("bad-{number}")), &[0xff, u8::try_from(number).unwrap()]).await;
    }
    // The same once more, and one without an id.
    stage.amqp.publish(QUEUE, with_id("good-0"), b"1-0").await;
    stage.amqp.publish(QUEUE, lapin::BasicProperties::default(), b"nameless").await;
    let mut worker = home.start(BINARY);
    stage.wait_nonce(0, GOOD as u64).await;
    stage.wait_empty(QUEUE).await;
    wait_until("the dead letters are there", LONG, async || stage.depth(DEAD).await.0 == BAD as u64 + 1).await;
    let seen = async |name: &str| scrape(address).await.get(name).copied();
    let all_final = async || seen("chainwriter_requests_total{outcome=\"final\"}").await == Some(GOOD as f64);
    wait_until("all are final", LONG, all_final).await;
    const EVENTS_CONFIRMED: &str = "chainwriter_publishes_total{message=\"event\",result=\"confirmed\"}";
    let all_gone = async || seen(EVENTS_CONFIRMED).await == Some((GOOD + 2 * BAD + 1) as f64);
    wait_until("the events have gone", LONG, all_gone).await;
    let empty = async || {
        scrape(address).await.iter().any(|(name, value)| name.starts_with("chainwriter_outbox") && *value == 0.0)
    };
    wait_until("and the journal was looked at since", LONG, empty).await;

    let samples = scrape(address).await;
    let is = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("{name}: {samples:#?}"));
    let counts = [
        ("requests_total{outcome=\"final\"}", GOOD),
        ("requests_total{outcome=\"retry\"}", BAD),
        ("requests_total{outcome=\"dead\"}", BAD),
        ("requests_total{outcome=\"refused\"}", 1),
        ("request_failures_total{class=\"rejected\",outcome=\"retry\"}", BAD),
        ("request_failures_total{class=\"rejected\",outcome=\"dead\"}", BAD),
        ("request_failures_total{class=\"invalid\",outcome=\"dead\"}", 1),
        ("deliveries_total{verdict=\"accepted\"}", GOOD + 2 * BAD),
        ("deliveries_total{verdict=\"joined\"}", 1),
        ("deliveries_total{verdict=\"refused\"}", 1),
        ("deliveries_acked_total{result=\"acked\"}", GOOD + 2 * BAD + 2),
        ("deliveries_acked_total{result=\"lost\"}", 0),
        ("deliveries_held", 0),
        ("signed_transactions_total{kind=\"first\"}", GOOD),
        ("signed_transactions_total{kind=\"cancel\"}", 0),
        ("broadcast_answers_total{answer=\"none\"}", 0),
        ("publishes_total{message=\"copy\",result=\"confirmed\"}", 2 * BAD + 1),
        ("request_until_final_seconds_count", GOOD),
        ("request_until_broadcast_seconds_count", GOOD),
        ("ready", 1),
        ("deliveries_wanted", 1),
        ("broker_state{state=\"consuming\"}", 1),
        ("endpoint_up{endpoint=\"1\"}", 1),
        ("log_lines_total{level=\"error\"}", 0),
    ];
    for (name, count) in counts {
        assert_eq!(is(&format!("chainwriter_{name}")), count as f64, "{name}");
    }
    let account = crate::support::ACCOUNTS[0].0.to_lowercase();
    let lane = |name: &str| is(&format!("chainwriter_lane_{name}{{account=\"{account}\"}}"));
    assert_eq!((lane("owner"), lane("open"), lane("in_flight"), lane("next_nonce")), (1.0, 1.0, 0.0, GOOD as f64));
    assert!(
        (9_999.0..=10_000.0).contains(&lane("balance_ether"))
            && lane("fee_wei") > 1.0
            && lane("head_age_seconds") < 60.0
    );
    assert!(is("chainwriter_broadcast_answers_total{answer=\"taken\"}") >= GOOD as f64);
    assert!(is("chainwriter_node_calls_total{method=\"eth_sendRawTransaction\",result=\"answered\"}") >= GOOD as f64);
    assert!(is("chainwriter_journal_commit_duration_seconds_count") > 3.0);
    assert!(is("chainwriter_node_request_duration_seconds_count{method=\"eth_getBlockByNumber\"}") > 3.0);
    assert!(is("chainwriter_request_until_final_seconds_sum") > 2.0, "two blocks of a second each");
    assert_eq!(worker.stop().await.code(), Some(0));
}

#[tokio::test]
async fn it_is_ready_while_the_node_is_there_and_says_why_it_is_not() {
    let Some(mut stage) = Stage::with_blocks().await else { return };
    let (config, address) = listening(stage.config());
    let home = WorkerHome::new(&config);
    let mut worker = home.start(BINARY);
    wait_ready(address).await;
    assert_eq!(get(address, "/livez").await.unwrap().0, 200);
    stage.anvil.stop().await;
    let away = async || ready(address).await.is_some_and(|(status, _)| status == 503);
    wait_until("it is not ready", LONG, away).await;
    let (_, answer) = ready(address).await.unwrap();
    assert_eq!(answer["ready"], false);
    let reasons = answer["reasons"].to_string();
    assert!(reasons.contains("node_unreachable") && reasons.contains("lane 0x"), "{reasons}");
    assert_eq!(get(address, "/livez").await.unwrap().0, 200, "a node that is away is no reason to restart");
    let told = report(address).await;
    assert_eq!(told["lanes"][0]["paused"]["reason"], "node_unreachable");
    assert_eq!(told["endpoints"][0]["serves"], false);
    assert!(told["recent"].to_string().contains("the lane pauses"), "{told}");
    assert_eq!(scrape(address).await["chainwriter_ready"], 0.0);
    stage.anvil.start_again().await;
    wait_ready(address).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert!(get(address, "/livez").await.is_none(), "it has gone with the process");
}

#[tokio::test]
async fn what_is_no_look_is_refused_and_slow_ones_are_cut_off() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (config, address) = listening(stage.config());
    let home = WorkerHome::new(&config);
    let _worker = home.start(BINARY);
    wait_ready(address).await;
    let (status, head, _) =
        exchange(address, b"POST /status HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
    assert!(status == 405 && head.contains("allow: get, head"), "{head}");
    let (status, _, body) = exchange(address, b"HEAD /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_eq!((status, body.as_str()), (200, ""));
    assert_eq!(get(address, "/").await.unwrap().0, 200);
    let (status, _, body) = get(address, "/secrets").await.unwrap();
    assert!(status == 404 && body.contains("/readyz"), "{body}");
    let huge = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    assert_ne!(exchange(address, huge.as_bytes()).await.map(|(status, ..)| status), Some(200));
    // Half a request, on more connections than there are places: others are served once its time is over.
    let mut idle = Vec::new();
    for _ in 0..40 {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /livez HT").await.unwrap();
        idle.push(stream);
    }
    let served = tokio::time::timeout(Duration::from_secs(30), get(address, "/livez")).await;
    assert_eq!(served.unwrap().unwrap().0, 200);
}

#[tokio::test]
async fn a_worker_whose_port_is_taken_works_without_and_takes_it_when_it_is_free() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (config, address) = listening(stage.config());
    let taken = std::net::TcpListener::bind(address).unwrap();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
    let worker: Worker = home.start(BINARY);
    wait_log(&worker, "its own http.listen").await;
    stage.wait_state(&home, "order-1", "final").await;
    drop(taken);
    wait_ready(address).await;
}

#[tokio::test]
async fn an_overview_has_three_sides_and_says_which_could_not_be_asked() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config_for(REVERTS_ON_FF).await.with("retry", "max_attempts = 1");
    let (config, address) = listening(config.with("worker", "instance = \"one\""));
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("good"), b"good").await;
    stage.amqp.publish(QUEUE, with_id("bad"), &[0xff]).await;
    let mut worker = home.start(BINARY);
    stage.wait_state(&home, "good", "final").await;
    wait_until("the dead letter is there", LONG, async || stage.depth(DEAD).await.0 == 1).await;
    wait_ready(address).await;
    let overview = async |config: &WorkerConfig| {
        home.configure(config);
        let (code, text) = home.command(BINARY, &["status", "--json"]).await;
        (code, serde_json::from_str::<Value>(&text).unwrap_or_else(|_| panic!("{text}")))
    };

    let (code, seen) = overview(&config).await;
    assert_eq!(code, 0, "{seen:#}");
    assert_eq!((&seen["worker"], &seen["queue"]), (&Value::from("acme/one"), &Value::from(QUEUE)));
    let account = &seen["journal"]["accounts"][0];
    assert_eq!((account["next_nonce"].as_u64(), account["live"].as_u64()), (Some(1), Some(0)), "{account}");
    assert!(account["owner"].as_str().unwrap().starts_with("acme/one/"), "{account}");
    let incident = &seen["journal"]["incidents"][0];
    assert_eq!((&incident["request"], &incident["what"]), (&Value::from("bad"), &Value::from("failed")));
    let dead = seen["queues"].as_array().unwrap().iter().find(|queue| queue["queue"] == DEAD).unwrap();
    assert_eq!((dead["ready"].as_u64(), &dead["role"], &dead["problem"]), (Some(1), &"dead".into(), &Value::Null));
    let lane = &seen["process"]["lanes"][0];
    assert_eq!((&lane["owner"], &lane["open"]), (&true.into(), &true.into()));
    assert!(lane["window"].as_u64().unwrap() >= 64, "it begins there and grows with each block: {lane}");
    assert!(lane["fee_wei"].as_str().unwrap().parse::<u128>().unwrap() > 0 && lane["balance_wei"].is_string());
    assert!(seen["process"]["recent"].to_string().contains("it becomes a dead letter"), "{seen:#}");
    let (code, text) = home.command(BINARY, &["status"]).await;
    for part in [
        "acme/one on chain 31337: ready",
        "1  acme.writes.dead (dead letters)",
        "owned by acme/one, next nonce 1",
        "in no block (limit: ",
    ] {
        assert!(code == 0 && text.contains(part), "{part}: {text}");
    }

    let (code, seen) = overview(&config.clone().with("worker", "instance = \"two\"")).await;
    let error = seen["process"]["error"].as_str().unwrap();
    assert!(code == 69 && error.contains("answered by acme/one, not by acme/two"), "{error}");
    let (code, seen) = overview(&config.clone().with("http", "listen = \"\"")).await;
    assert_eq!((code, &seen["process"]), (0, &Value::Null));
    let away = WorkerConfig { broker_uri: "amqp://guest:guest@127.0.0.1:1/%2f".to_owned(), ..config.clone() };
    let (code, seen) = overview(&away).await;
    assert!(code == 69 && seen["queues"]["error"].as_str().unwrap().contains("127.0.0.1:1"), "{seen:#}");
    assert!(seen["journal"]["accounts"].is_array() && seen["process"]["lanes"].is_array(), "the others are told");
    let (code, seen) = overview(&config.clone().with("journal", "url = \"sqlite:/nowhere/journal.db\"")).await;
    assert!(code == 74 && seen["journal"]["error"].as_str().unwrap().contains("/nowhere"), "{seen:#}");
    home.configure(&config);
    assert_eq!(worker.stop().await.code(), Some(0));
    let (code, seen) = overview(&config).await;
    assert!(code == 69 && seen["process"]["error"].as_str().unwrap().contains("is it started?"), "{seen:#}");
    assert_eq!(seen["journal"]["accounts"][0]["owner"], Value::Null, "its lease was given up");
}
