//! How sessions with the broker begin, pause and end, and what is held meanwhile.

use std::time::{Duration, Instant};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, wait_log, wait_log_times};
use crate::support::{AnvilConfig, Mode, TcpProxy, WorkerHome, wait_until, with_id};

/// C39: what a paused consumer delivered is held on, and the consumer that follows has the rest of the prefetch.
#[tokio::test]
async fn a_pause_with_deliveries_held_keeps_the_session_and_the_prefetch() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let node = TcpProxy::start(stage.anvil.address()).await;
    let mut config = stage.config().with("broker", "prefetch = 10").with("chain", "timeout = \"500ms\"");
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    let publish = async |numbers: std::ops::Range<usize>| {
        for number in numbers {
            stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), number.to_string().as_bytes()).await;
        }
    };
    publish(0..4).await;
    wait_until("four are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((4, 0))).await;
    let before = stage.connections().await;
    for round in 1..=3 {
        node.set_mode(Mode::Refuse);
        wait_log_times(&worker, "deliveries are paused", round).await;
        node.set_mode(Mode::Pass);
        wait_log_times(&worker, "deliveries flow", round + 1).await;
    }
    publish(4..20).await;
    wait_until("the prefetch is used", LONG, async || stage.depth(QUEUE).await == (10, 10)).await;
    wait_until("all that is held is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((10, 0))).await;
    assert_eq!(stage.depth(QUEUE).await, (10, 10));
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.connections().await, before, "the session is the same");
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 20);
}

/// B37: the way to the broker is gone and nobody says so. Heartbeats tell; what was held is delivered again and known.
#[tokio::test]
async fn a_half_open_connection_is_noticed_by_its_heartbeat() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let proxy = TcpProxy::start(stage.rabbit.address()).await;
    // Longer than the heartbeat needs, so that no call is the first to notice.
    let mut config = stage.config().with("broker", "call_timeout = \"6s\"");
    config.broker_uri = stage.rabbit.uri_through(proxy.addr(), &stage.vhost) + "?heartbeat=2";
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    proxy.set_mode(Mode::Swallow);
    let gone = Instant::now();
    wait_log(&worker, "the session with the broker ended").await;
    assert!(gone.elapsed() < Duration::from_secs(12), "after {:?}", gone.elapsed());
    assert!(worker.log().contains("heartbeat"), "the reason is told");
    // The broker, too, takes the connections for dead.
    proxy.set_mode(Mode::Pass);
    wait_log_times(&worker, "connected to the broker", 2).await;
    wait_log_times(&worker, "verdict=Join", 1).await;
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
}

/// B2, C5, C39: the ack is written and lost on its way. The delivery comes again, is known as final, and is acked.
#[tokio::test]
async fn an_ack_that_is_lost_on_its_way_is_given_again() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let proxy = TcpProxy::start(stage.rabbit.address()).await;
    let mut config = stage.config().with("broker", "confirm_timeout = \"1s\"");
    config.broker_uri = stage.rabbit.uri_through(proxy.addr(), &stage.vhost);
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    for id in ["order-1", "order-2"] {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
    }
    wait_until("both are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((2, 0))).await;
    proxy.set_mode(Mode::Swallow);
    stage.anvil.mine(3).await.unwrap();
    for id in ["order-1", "order-2"] {
        stage.wait_state(&home, id, "final").await;
    }
    assert_eq!(stage.depth(QUEUE).await, (0, 2), "the broker knows of no ack");
    // The next process finds them final, as this one would.
    worker.kill().await;
    proxy.set_mode(Mode::Pass);
    proxy.cut_all();
    let mut worker = home.start(BINARY);
    wait_log(&worker, "duplicates of settled requests acked").await;
    stage.wait_empty(QUEUE).await;
    wait_log(&worker, "the lane owns its account").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 2);
    assert_eq!(stage.kept_events().await.len(), 2, "the events were in the outbox");
}

/// B15, C43, C7: the copy is at the broker, its confirm is not here. It is published once more; one of the two is acted on.
#[tokio::test]
async fn a_publisher_confirm_that_is_lost_leads_to_one_more_copy_and_no_more_tries() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let proxy = TcpProxy::start(stage.rabbit.address()).await;
    let config = stage.config_for(crate::support::contracts::ALWAYS_REVERTS).await;
    let mut config = config.with("broker", "confirm_timeout = \"1s\"").with("write", "gas = 200000");
    // Long enough for a new session: a first copy that comes back before the second is confirmed is accepted at once.
    config = config.with("retry", "max_attempts = 2\ninitial_delay = \"12s\"\nmax_delay = \"12s\"");
    config.broker_uri = stage.rabbit.uri_through(proxy.addr(), &stage.vhost) + "?heartbeat=60";
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    let mut copies = stage.amqp.watch(&[("acme.writes.retry", "acme.writes.wait.12s")]).await;
    // A channel for confirms must be open before answers are dropped.
    stage.amqp.publish(QUEUE, lapin::BasicProperties::default(), b"no id").await;
    assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.routing_key, "invalid.missing_id");
    stage.wait_empty(QUEUE).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"").await;
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    proxy.set_mode(Mode::DropAnswers);
    stage.anvil.mine(3).await.unwrap();
    copies.next(LONG).await;
    wait_log(&worker, "a copy has no publisher confirm").await;
    assert_eq!(stage.depth(QUEUE).await, (0, 1), "it is not acked");
    proxy.set_mode(Mode::Pass);
    proxy.cut_all();
    stage.anvil.set_interval_mining(1).await.unwrap();
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.id().as_str(), dead.header("cw-attempt").as_deref()), ("order-1", Some("1")));
    stage.wait_empty("acme.writes.wait.12s").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(DEAD).await, (0, 0), "one dead letter");
    let events = stage.kept_events().await;
    assert_eq!(crate::stage::kinds_of(&events, "order-1"), ["retry", "dead"], "tried twice, no more");
}

/// B10, C40: a delivery is held for longer than the broker's `consumer_timeout`. It closes the channel; what was held comes
/// again and joins its request. With a shorter `broker.max_hold` it does not come to that.
#[tokio::test]
async fn a_broker_that_closes_the_channel_over_a_long_hold_costs_a_session_and_nothing_else() {
    let Some(stage) = Stage::with_own_broker(AnvilConfig::default()).await else { return };
    // It looks once a minute by itself.
    for setting in ["consumer_timeout, 4000", "channel_tick_interval, 1000"] {
        stage.rabbit.eval(&format!("application:set_env(rabbit, {setting})")).await.unwrap();
    }
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
    wait_log(&worker, "the session with the broker ended").await;
    assert!(worker.log().contains("broker.max_hold"), "the setting is named: {}", worker.log());
    wait_log(&worker, "verdict=Join").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    home.configure(&stage.config().with("broker", "max_hold = \"1s\"\npark_delay = \"1s\""));
    let mut worker = home.start(BINARY);
    wait_log_times(&worker, "given back to the broker", 3).await;
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.wait_state(&home, "order-1", "final").await;
    stage.wait_empty("acme.writes.wait.1s").await;
    stage.wait_empty(QUEUE).await;
    assert!(!worker.log().contains("the session with the broker ended"), "{}", worker.log());
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}
