//! Queues, exchanges, policies and rights that are other than they should be.

use lapin::ExchangeKind;
use lapin::options::{BasicGetOptions, BasicNackOptions, ExchangeDeclareOptions, ExchangeDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use crate::stage::{BINARY, CONTRACT, DEAD, LONG, QUEUE, Stage, calldata, kinds_of, wait_log, wait_log_times};
use crate::support::contracts::{ALWAYS_REVERTS, SINK as ACCEPTS};
use crate::support::{WorkerConfig, WorkerHome, wait_until, with_id};

const WAIT: &str = "acme.writes.wait.1s";
const RETRY: &str = "acme.writes.retry";

fn tries(config: WorkerConfig, max_attempts: u32) -> WorkerConfig {
    config
        .with("retry", format!("max_attempts = {max_attempts}"))
        .with("retry", "initial_delay = \"1s\"\nmultiplier = 1.0\nmax_delay = \"1s\"")
}

/// B11: nothing is acked while there is no exchange for retries, and it goes on when there is.
#[tokio::test]
async fn a_missing_retry_exchange_holds_deliveries_until_it_is_back() {
    let Some(stage) = Stage::set().await else { return };
    let config = tries(stage.config_for(ALWAYS_REVERTS).await, 2).with("broker", "topology = \"verify\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    stage.amqp.channel.exchange_delete(RETRY.into(), ExchangeDeleteOptions::default()).await.unwrap();
    let before = stage.connections().await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    wait_log_times(&worker, "no exchange 'acme.writes.retry'", 3).await;
    assert_eq!(stage.depth(QUEUE).await, (0, 1), "it is not acked");
    assert_eq!(stage.connections().await, before, "a channel was closed, no connection");
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let made = stage.amqp.channel.exchange_declare(RETRY.into(), ExchangeKind::Direct, durable, FieldTable::default());
    made.await.unwrap();
    stage.amqp.bind(WAIT, RETRY, WAIT).await;
    assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.id(), "order-1");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(kinds_of(&stage.kept_events().await, "order-1"), ["retry", "dead"]);
}

/// B13: the client library attaches a returned message to whichever confirm comes next. Copies that queues take and copies
/// that none takes leave at the same time, and each gets its own answer.
#[tokio::test]
async fn copies_that_no_queue_takes_are_not_mistaken_for_their_neighbours() {
    const EACH: usize = 60;
    let Some(stage) = Stage::set().await else { return };
    let config = tries(stage.config_for(ALWAYS_REVERTS).await, 2).with("broker", "publish_channels = 128");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    stage.amqp.unbind(WAIT, RETRY, WAIT).await;
    for number in 0..EACH {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), b"").await;
        stage.amqp.publish(QUEUE, lapin::BasicProperties::default(), b"no id").await;
    }
    wait_until("all refused ones are dead letters", LONG, async || stage.depth(DEAD).await.0 >= EACH as u64).await;
    wait_until("their deliveries are acked", LONG, async || stage.depth(QUEUE).await == (0, EACH as u64)).await;
    // Those that came first; the others wait for the queue, and one is tried at a time.
    wait_log_times(&worker, "no queue takes messages", 3).await;
    assert_eq!(stage.depth(QUEUE).await, (0, EACH as u64), "of the others none is");
    stage.amqp.bind(WAIT, RETRY, WAIT).await;
    wait_until("the others are dead letters too", LONG, async || stage.depth(DEAD).await.0 >= 2 * EACH as u64).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(DEAD).await, (2 * EACH as u64, 0), "each once");
}

/// B25: a user that may not read the work queue, and one that may not write dead letters. It stays, and says what is missing.
#[tokio::test]
async fn rights_that_are_missing_are_named_and_waited_for() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let user = format!("worker-{}", stage.vhost);
    stage.rabbit.ctl(&["add_user", &user, "secret0password"]).await.unwrap();
    let grant = async |write: &str, read: &str| {
        stage.rabbit.ctl(&["set_permissions", "-p", &stage.vhost, &user, "^$", write, read]).await.unwrap();
    };
    let mut config = stage.config().with("broker", "topology = \"verify\"");
    stage.topology(&WorkerHome::new(&config)).await;
    config.broker_uri = config.broker_uri.replace("guest:guest", &format!("{user}:secret0password"));
    let home = WorkerHome::new(&config);
    let all_but_dead = "^acme\\.writes\\.(retry|events)$|^amq\\.default$";
    grant(all_but_dead, "^acme\\.writes\\.journal$").await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"good").await;
    stage.amqp.publish(QUEUE, lapin::BasicProperties::default(), b"no id").await;
    let mut worker = home.start(BINARY);
    wait_log_times(&worker, "queue 'acme.writes' in vhost", 3).await;
    assert!(worker.log().contains("give the user the right to read it"), "{}", worker.log());
    assert_eq!(stage.depth(QUEUE).await, (2, 0));
    grant(all_but_dead, "^acme\\.writes(\\.journal)?$").await;
    wait_log_times(&worker, "exchange 'acme.writes.dead' in vhost", 2).await;
    assert!(worker.log().contains("give the user the right to write it"), "{}", worker.log());
    wait_until("the good one is acked, the other is not", LONG, async || stage.depth(QUEUE).await == (0, 1)).await;
    grant("^acme\\.writes\\.(retry|events|dead)$|^amq\\.default$", "^acme\\.writes(\\.journal)?$").await;
    stage.wait_empty(QUEUE).await;
    assert!(worker.is_running());
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!((stage.transactions_of(0).await.len(), stage.depth(DEAD).await), (1, (1, 0)));
    assert!(!worker.log().contains("secret0password"));
}

/// B31: a retry whose wait is over finds the work queue full. It is kept, and comes when there is room.
#[tokio::test]
async fn a_retry_that_finds_the_work_queue_full_waits_on() {
    let Some(stage) = Stage::set().await else { return };
    // Such a message is tried again after three minutes; here after a second.
    let retry_after =
        |ms: u32| format!("application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, {ms})");
    stage.rabbit.eval(&retry_after(1000)).await.unwrap();
    let config = tries(stage.config_for(ALWAYS_REVERTS).await, 2);
    let home = WorkerHome::new(&config.with("retry", "initial_delay = \"12s\"\nmax_delay = \"12s\""));
    stage.topology(&home).await;
    stage.rabbit.eval(&retry_after(180_000)).await.unwrap();
    let mut first = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    stage.wait_state(&home, "order-1", "retry_waiting").await;
    assert_eq!(first.stop().await.code(), Some(0));
    let limit =
        ["set_policy", "-p", &stage.vhost, "full", "^acme\\.writes$", "{\"max-length\":1}", "--apply-to", "queues"];
    stage.rabbit.ctl(&limit).await.unwrap();
    // The limit is passed by one before anything is refused.
    for id in ["filler-1", "filler-2", "filler-3"] {
        let options = lapin::options::BasicPublishOptions::default();
        let sent = stage.amqp.channel.basic_publish("".into(), QUEUE.into(), options, b"", with_id(id)).await.unwrap();
        let _ = sent.await.unwrap();
    }
    // Its wait ends meanwhile, and more than one try to hand it over.
    tokio::time::sleep(std::time::Duration::from_millis(14_500)).await;
    let ids: Vec<_> = stage.amqp.take_all(QUEUE).await.iter().map(crate::support::Taken::id).collect();
    assert!(ids.iter().all(|id| id.starts_with("filler")), "the retry found no room: {ids:?}");
    stage.rabbit.ctl(&["clear_policy", "-p", &stage.vhost, "full"]).await.unwrap();
    let mut second = home.start(BINARY);
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.header("cw-attempt").as_deref()), ("order-1", Some("1")));
    stage.wait_empty(QUEUE).await;
    assert_eq!(second.stop().await.code(), Some(0));
}

/// B30: whoever looks at a dead letter and gives it back does not use it up. On RabbitMQ 4, where 20 looks would be the
/// limit, the queue's own argument stands against it; this series has no limit by itself.
#[tokio::test]
async fn a_dead_letter_that_is_looked_at_often_is_still_there() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.amqp.publish_to(DEAD, "rejected.reverted", with_id("order-1"), b"body").await;
    for _ in 0..25 {
        let got = stage.amqp.channel.basic_get(DEAD.into(), BasicGetOptions::default()).await.unwrap();
        let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        assert!(got.expect("it is there").delivery.acker.nack(back).await.unwrap());
    }
    wait_until("it is there", LONG, async || stage.depth(DEAD).await == (1, 0)).await;
}

/// B34: sent back twice as it was, it is one write; sent back once more with another body, it is a conflict, told as such.
#[tokio::test]
async fn a_dead_letter_that_is_sent_back_twice_is_one_write() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(ALWAYS_REVERTS).await, 1));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    for id in ["as-it-was", "mended"] {
        stage.amqp.publish(QUEUE, with_id(id), b"first").await;
        assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.id(), id);
    }
    stage.wait_empty(QUEUE).await;
    stage.anvil.set_code(CONTRACT, ACCEPTS).await.unwrap();
    let send_back = async |id: &str, replay: i64, body: &[u8]| {
        let mut table = FieldTable::default();
        table.insert("cw-replay-count".into(), AMQPValue::LongLongInt(replay));
        stage.amqp.publish(QUEUE, with_id(id).with_headers(table), body).await;
    };
    for _ in 0..2 {
        send_back("as-it-was", 1, b"first").await;
        send_back("mended", 1, b"second").await;
    }
    stage.wait_empty(QUEUE).await;
    send_back("as-it-was", 2, b"first").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.depth(DEAD).await, (0, 0));
    send_back("mended", 2, b"third").await;
    assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.routing_key, "invalid.id_conflict");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let mut written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    written.sort();
    assert_eq!(written, [calldata(b"first"), calldata(b"second")], "one write for each body");
    assert_eq!(kinds_of(&stage.kept_events().await, "as-it-was"), ["dead", "final"]);
}

/// B32: a policy that makes wait queues drop messages, which wins over their arguments. What is dropped goes back to the work
/// queue before its time. (Policies cannot be seen over AMQP: `topology` and `check` do not tell of them.)
#[tokio::test]
async fn a_policy_that_drops_waiting_retries_brings_them_back_early_and_loses_none() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&tries(stage.config_for(ALWAYS_REVERTS).await, 2));
    stage.topology(&home).await;
    let dangerous = "{\"overflow\":\"drop-head\",\"max-length\":1,\"dead-letter-strategy\":\"at-most-once\"}";
    let policy =
        ["set_policy", "-p", &stage.vhost, "drop", "^acme\\.writes\\.wait\\.", dangerous, "--apply-to", "queues"];
    stage.rabbit.ctl(&policy).await.unwrap();
    for number in 0..5 {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), b"").await;
    }
    let mut worker = home.start(BINARY);
    wait_until("all are dead letters", LONG, async || stage.depth(DEAD).await.0 >= 5).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let mut ids: Vec<_> = stage.amqp.take_all(DEAD).await.iter().map(crate::support::Taken::id).collect();
    ids.sort();
    assert_eq!(ids, ["m-0", "m-1", "m-2", "m-3", "m-4"], "each once");
}
