//! What the broker goes through while messages are under way. Tests that restart it or raise alarms have one of their own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, kinds_of, wait_log, wait_log_times};
use crate::support::contracts::REVERTS_ON_FF;
use crate::support::{ACCOUNTS, AnvilConfig, Rabbit, Worker, WorkerHome, wait_until, with_id};

const WAIT: &str = "acme.writes.wait.1s";
const MANY: usize = 200;

fn blocks() -> AnvilConfig {
    AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() }
}

fn body(number: usize) -> Vec<u8> {
    format!("message {number}").into_bytes()
}

/// A worker that holds few deliveries at a time, so that there is a middle; and many messages.
async fn begin_many(stage: &Stage) -> (WorkerHome, Worker) {
    let home = WorkerHome::new(&stage.config().with("broker", "prefetch = 40"));
    stage.topology(&home).await;
    // RabbitMQ 3.10 writes which queues it has with a delay; killed before that, it comes back with one that never answers.
    tokio::time::sleep(Duration::from_secs(6)).await;
    stage.keep_events().await;
    for number in 0..MANY {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), &body(number)).await;
    }
    let worker = home.start(BINARY);
    (home, worker)
}

/// Some are written, and deliveries are held unacked.
async fn wait_for_the_middle(stage: &Stage, at_least: u64) {
    wait_until("some are in the chain", LONG, async || {
        stage.anvil.nonce(ACCOUNTS[0].0, "latest").await.is_ok_and(|nonce| nonce >= at_least)
    })
    .await;
    // Between an ack and the next deliveries there is a moment without any.
    wait_until("deliveries are held", LONG, async || {
        let (ready, unacked) = stage.depth(QUEUE).await;
        assert!(ready > 0, "it is the middle: {ready} ready, {unacked} unacked");
        unacked > 0
    })
    .await;
}

/// Every message is written exactly once, at nonces without a gap; the queues are empty; each request has one event id.
async fn assert_all_once(stage: &Stage, worker: &mut Worker) {
    stage.wait_empty(QUEUE).await;
    assert!(worker.is_running(), "it never exits for the broker");
    assert_eq!(worker.stop().await.code(), Some(0));
    let transactions = stage.transactions_of(0).await;
    let nonces: Vec<_> = transactions.iter().map(|(nonce, ..)| *nonce).collect();
    assert_eq!(nonces, (0..MANY as u64).collect::<Vec<_>>(), "no gap and none beyond");
    let mut written: Vec<_> = transactions.into_iter().map(|(_, data, _)| data).collect();
    let mut expected: Vec<_> = (0..MANY).map(|number| calldata(&body(number))).collect();
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
    let mut ids: BTreeMap<String, String> = BTreeMap::new();
    for (request, kind, event) in stage.kept_events().await {
        let id = event["id"].as_str().unwrap().to_owned();
        assert_eq!(kind, "final", "{event}");
        assert_eq!(*ids.entry(request).or_insert_with(|| id.clone()), id, "a repeat has the same id");
    }
    assert_eq!(ids.len(), MANY, "each request has its event");
}

/// Covers B1, B2, C39.
#[tokio::test]
async fn a_broker_that_restarts_in_the_middle_costs_nothing() {
    let Some(mut stage) = Stage::with_own_broker(blocks()).await else { return };
    let (_home, mut worker) = begin_many(&stage).await;
    wait_for_the_middle(&stage, 20).await;
    stage.rabbit.restart().await;
    stage.reconnect().await;
    assert_all_once(&stage, &mut worker).await;
}

/// Covers B1, B2, C39, C43 where the broker says nothing before it goes.
#[tokio::test]
async fn a_broker_that_is_killed_in_the_middle_costs_nothing() {
    let Some(mut stage) = Stage::with_own_broker(blocks()).await else { return };
    let (_home, mut worker) = begin_many(&stage).await;
    wait_for_the_middle(&stage, 20).await;
    stage.rabbit.kill_and_restart().await;
    stage.reconnect().await;
    assert_all_once(&stage, &mut worker).await;
}

/// Covers C39: again and again, by the operator's hand. What the ended sessions held comes again and is known.
#[tokio::test]
async fn connections_that_an_operator_closes_are_made_anew() {
    let Some(mut stage) = Stage::with_own_broker(blocks()).await else { return };
    let (_home, mut worker) = begin_many(&stage).await;
    for round in 1..=3 {
        wait_for_the_middle(&stage, round * 20).await;
        let before = stage.connections().await;
        stage.rabbit.close_all_connections("closed by the operator").await.unwrap();
        wait_log_times(&worker, "connected to the broker", usize::try_from(round).unwrap() + 1).await;
        assert_ne!(stage.connections().await, before);
    }
    stage.reconnect().await;
    assert_all_once(&stage, &mut worker).await;
    assert!(worker.log().contains("closed by the operator"), "the broker's reason is in the log");
}

/// Covers B7, B8: the queue goes with a delivery in flight, which is written all the same; a new queue is consumed from.
#[tokio::test]
async fn a_work_queue_deleted_under_the_consumer_is_waited_for() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("broker", "topology = \"verify\""));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"first").await;
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    stage.amqp.delete(QUEUE).await;
    wait_log_times(&worker, "queue acme.writes: NOT_FOUND", 3).await;
    assert!(worker.is_running());
    stage.anvil.mine(3).await.unwrap();
    stage.wait_state(&home, "order-1", "final").await;
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("order-2"), b"second").await;
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    stage.anvil.mine(3).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(b"first"), calldata(b"second")]);
    let events = stage.kept_events().await;
    assert_eq!((kinds_of(&events, "order-1"), kinds_of(&events, "order-2")), (vec!["final"], vec!["final"]));
}

/// Covers B7 with the right to declare: it makes the queue itself. And B9, as far as this series of RabbitMQ cancels consumers.
#[tokio::test]
async fn a_work_queue_deleted_under_the_consumer_is_made_again() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    for round in 1..=3 {
        stage.amqp.delete(QUEUE).await;
        wait_log_times(&worker, "connected to the broker", round + 1).await;
        let id = format!("order-{round}");
        stage.amqp.publish(QUEUE, with_id(&id), id.as_bytes()).await;
        stage.wait_state(&home, &id, "final").await;
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 3);
}

/// Covers B5, C44: what is final is acked although nothing can be published; what must be published waits, unacked.
#[tokio::test]
async fn under_a_memory_alarm_finals_are_acked_and_retries_wait() {
    let Some(stage) = Stage::with_own_broker(AnvilConfig::default()).await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let config = stage.config_for(REVERTS_ON_FF).await;
    let config = config
        .with("write", "gas = 200000")
        .with("broker", "confirm_timeout = \"1s\"\ncall_timeout = \"1s\"")
        .with("retry", "max_attempts = 2\ninitial_delay = \"1s\"\nmax_delay = \"1s\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    for (id, body) in [("good-1", b"good".as_slice()), ("bad-1", b"\xffbad"), ("good-2", b"too")] {
        stage.amqp.publish(QUEUE, with_id(id), body).await;
    }
    let mut worker = home.start(BINARY);
    wait_until("all are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((3, 0))).await;
    stage.rabbit.raise_memory_alarm().await.unwrap();
    stage.anvil.mine(3).await.unwrap();
    wait_until("the good ones are acked", LONG, async || stage.depth(QUEUE).await == (0, 1)).await;
    wait_log_times(&worker, "a copy has no publisher confirm", 2).await;
    assert!(worker.log().contains("the broker takes no messages now"), "it is said why");
    assert_eq!(stage.depth(QUEUE).await, (0, 1), "the retry's delivery is not acked");
    assert_eq!(stage.status(&home, "bad-1").await["state"], "retry_pending");
    assert_eq!(stage.status(&home, "good-1").await["state"], "final");
    stage.rabbit.clear_memory_alarm().await.unwrap();
    wait_until("the retry is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    stage.anvil.mine(3).await.unwrap();
    assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.id(), "bad-1");
    // A copy that had no confirm in time may have reached the broker all the same, after the alarm: it comes back stale.
    let quiet_looks = std::cell::Cell::new(0);
    wait_until("nothing comes back any more", LONG, async || {
        let is_quiet = (stage.depth(WAIT).await, stage.depth(QUEUE).await) == ((0, 0), (0, 0));
        quiet_looks.set(if is_quiet { quiet_looks.get() + 1 } else { 0 });
        quiet_looks.get() >= 3
    })
    .await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(DEAD).await, (0, 0));
    let events = stage.kept_events().await;
    let mut ids = BTreeMap::new();
    for (request, kind, event) in &events {
        ids.entry((request.as_str(), kind.as_str())).or_insert(&event["id"]);
    }
    let told: Vec<_> = ids.keys().copied().collect();
    assert_eq!(told, [("bad-1", "dead"), ("bad-1", "retry"), ("good-1", "final"), ("good-2", "final")]);
    assert!(events.iter().all(|(request, kind, event)| ids[&(request.as_str(), kind.as_str())] == &event["id"]));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written.len(), 4, "the bad one was tried twice: {written:?}");
}

/// Covers B6: a stop does not wait for a broker that takes nothing.
#[tokio::test]
async fn a_stop_under_a_disk_alarm_ends_in_time_and_loses_nothing() {
    let Some(stage) = Stage::with_own_broker(AnvilConfig::default()).await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let config = stage.config().with("broker", "confirm_timeout = \"1s\"\ncall_timeout = \"1s\"");
    let home = WorkerHome::new(&config.with("worker", "drain_deadline = \"8s\""));
    stage.topology(&home).await;
    stage.keep_events().await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"good").await;
    let mut first = home.start(BINARY);
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    stage.rabbit.raise_disk_alarm().await.unwrap();
    stage.anvil.mine(3).await.unwrap();
    stage.wait_state(&home, "order-1", "final").await;
    let asked = Instant::now();
    assert_eq!(first.stop().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(12), "{:?}", asked.elapsed());
    stage.rabbit.clear_disk_alarm().await.unwrap();
    let mut second = home.start(BINARY);
    wait_log(&second, "deliveries flow").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(second.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    // The broker takes what was sent under the alarm when that is over, so the event may come twice, under one id.
    let events = stage.kept_events().await;
    assert!(!events.is_empty(), "the event was kept for later");
    assert!(events.iter().all(|(_, kind, event)| kind == "final" && event["id"] == events[0].2["id"]), "{events:?}");
}

const SESSION_ENDED: &str = "the session with the broker ended";
const TURNED_AWAY: &str = "the broker cannot be used";

/// Waits until the daemon has been turned away so many times; each took its pause, and the pauses grow.
async fn assert_turned_away_patiently(worker: &mut Worker, said: &str) {
    wait_log(worker, TURNED_AWAY).await;
    let first = Instant::now();
    // Pauses of 100 ms, 200, 400, 800, 1 s, 1 s, each shortened by half at most.
    wait_log_times(worker, TURNED_AWAY, 7).await;
    assert!(first.elapsed() >= Duration::from_millis(1500), "seven tries within {:?}", first.elapsed());
    assert!(worker.is_running());
    assert!(worker.log().contains(said), "{said} is not in the log");
}

/// Covers B27.
#[tokio::test]
async fn a_virtual_host_that_is_missing_is_waited_for() {
    let Some(mut stage) = Stage::set().await else { return };
    stage.vhost = format!("{}-later", stage.vhost);
    stage.anvil.set_interval_mining(1).await.unwrap();
    let home = WorkerHome::new(&stage.config());
    let mut worker = home.start(BINARY);
    assert_turned_away_patiently(&mut worker, &stage.vhost).await;
    stage.rabbit.add_vhost(&stage.vhost).await.unwrap();
    wait_log(&worker, "deliveries flow").await;
    stage.reconnect().await;
    wait_log(&worker, "connected to the broker").await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"late").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
}

/// Covers B26: a password that is wrong, and one that changes while the daemon runs.
#[tokio::test]
async fn a_password_that_is_wrong_is_tried_patiently_and_read_again() {
    let Some(mut stage) = Stage::with_own_broker(blocks()).await else { return };
    stage.topology(&WorkerHome::new(&stage.config())).await;
    let wrong = stage.rabbit.uri(&stage.vhost).replace("guest:guest", "guest:wrong0password");
    let home = WorkerHome::new(&stage.config());
    let file = home.folder().join("broker-uri");
    std::fs::write(&file, wrong).unwrap();
    home.configure(&stage.config().with("broker", format!("uri_file = {:?}", file.display().to_string())));
    let mut worker = home.start(BINARY);
    assert_turned_away_patiently(&mut worker, "ACCESS_REFUSED").await;
    std::fs::write(&file, stage.rabbit.uri(&stage.vhost) + "\n").unwrap();
    wait_log(&worker, "connected to the broker").await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    stage.wait_empty(QUEUE).await;
    // The password changes: the session goes on, the next one needs the new password.
    change_password(&stage.rabbit, "another0password").await;
    stage.amqp.publish(QUEUE, with_id("order-2"), b"two").await;
    stage.wait_empty(QUEUE).await;
    let before = worker.log().matches(TURNED_AWAY).count();
    stage.rabbit.close_all_connections("rotation").await.unwrap();
    wait_log(&worker, SESSION_ENDED).await;
    wait_log_times(&worker, TURNED_AWAY, before + 2).await;
    std::fs::write(&file, stage.rabbit.uri(&stage.vhost).replace("guest:guest", "guest:another0password")).unwrap();
    wait_log_times(&worker, "connected to the broker", 2).await;
    change_password(&stage.rabbit, "guest").await;
    stage.reconnect().await;
    stage.amqp.publish(QUEUE, with_id("order-3"), b"three").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 3);
    let log = worker.log();
    assert!(!log.contains("wrong0password") && !log.contains("another0password"), "no password is in the log");
}

async fn change_password(rabbit: &Rabbit, password: &str) {
    let changed =
        format!("ok = rabbit_auth_backend_internal:change_password(<<\"guest\">>, <<\"{password}\">>, <<\"guest\">>)");
    rabbit.eval(&changed).await.unwrap();
}
