//! Invariant 12: what has a limit keeps to it.

use std::time::{Duration, Instant};

use crate::operators::process::wait_for_word;
use crate::stage::{BINARY, LONG, QUEUE, Stage, wait_log};
use crate::support::{ACCOUNTS, WorkerConfig, WorkerHome, wait_until, with_id};

async fn publish(stage: &Stage, count: usize) {
    for number in 0..count {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), number.to_string().as_bytes()).await;
    }
}

#[tokio::test]
async fn no_more_transactions_wait_for_a_block_than_the_window_allows() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "in_flight = 7\nfinality = 0"));
    stage.topology(&home).await;
    publish(&stage, 30).await;
    let _worker = home.start(BINARY);
    let mut mined = 0;
    while mined < 30 {
        let next = 7.min(30 - mined);
        wait_until("the window is full", LONG, async || stage.anvil.pool_size().await == Ok((next, 0))).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(stage.anvil.pool_size().await, Ok((next, 0)), "and not fuller");
        stage.anvil.mine(1).await.unwrap();
        mined += next;
        stage.wait_nonce(0, mined).await;
    }
    stage.wait_empty(QUEUE).await;
}

#[tokio::test]
async fn no_more_deliveries_are_held_than_the_prefetch_and_none_flow_while_too_many_requests_are_open() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let config = stage.config().with("worker", "max_open = 12").with("chain", "finality = 0");
    // Parked copies give their places in the prefetch back, so that more than the prefetch may be open.
    let config = config.with("broker", "prefetch = 10\nmax_hold = \"1s\"\npark_delay = \"1h\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    publish(&stage, 60).await;
    let worker = home.start(BINARY);
    wait_until("the prefetch is used", LONG, async || stage.depth(QUEUE).await.1 == 10).await;
    wait_log(&worker, "deliveries are paused").await;
    wait_until("all that is held is parked", LONG, async || stage.depth(QUEUE).await.1 == 0).await;
    let (ready, _) = stage.depth(QUEUE).await;
    // One prefetch may come on top of the limit before it shows.
    assert!(60 - ready >= 12 && 60 - ready <= 12 + 10, "{ready} wait at the broker");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(stage.depth(QUEUE).await, (ready, 0), "nothing flows");
    stage.anvil.set_auto_mine(true).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    stage.wait_nonce(0, 60).await;
    assert_eq!(stage.transactions_of(0).await.len(), 60);
}

/// Transactions of both accounts that a node has been given, in blocks or not.
async fn begun(stage: &Stage) -> u64 {
    let mut sum = 0;
    for (account, _) in ACCOUNTS.iter().take(2) {
        sum += stage.anvil.nonce(account, "pending").await.unwrap_or(0);
    }
    sum
}

fn two_lanes(config: WorkerConfig) -> WorkerConfig {
    config.with("signer", format!("key = {:?}", ACCOUNTS[0].1)).with("signer", format!("key = {:?}", ACCOUNTS[1].1))
}

#[tokio::test]
async fn a_small_rate_is_kept_over_two_lanes() {
    const RATE: u64 = 3;
    const COUNT: usize = 24;
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = two_lanes(stage.config()).with("limits", format!("writes_per_second = {RATE}"));
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    publish(&stage, COUNT).await;
    let began = Instant::now();
    let mut worker = home.start(BINARY);
    wait_until("all are begun", LONG, async || {
        let begun = begun(&stage).await;
        let most = RATE as f64 * (1.0 + began.elapsed().as_secs_f64());
        assert!(begun as f64 <= most, "{begun} after {:?}", began.elapsed());
        begun == COUNT as u64
    })
    .await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let (ours, theirs) = (stage.transactions_of(0).await.len(), stage.transactions_of(1).await.len());
    assert!(ours + theirs == COUNT && ours > 0 && theirs > 0, "{ours} and {theirs}");
    let log = worker.log();
    let times = log.matches("throttled: requests wait").count();
    assert!((1..=2).contains(&times), "a line for each lane, not for each batch: {times}");
}

#[tokio::test]
async fn no_more_are_in_flight_over_two_lanes_than_the_limit_allows_and_the_status_says_so() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let config = two_lanes(stage.config()).with("limits", "in_flight = 5").with("chain", "finality = 0");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    publish(&stage, 20).await;
    let socket = home.folder().join("notify");
    let mut heard = Some(tokio::net::UnixDatagram::bind(&socket).unwrap());
    let mut worker = home.start_with(BINARY, &[("NOTIFY_SOCKET", socket.to_str().unwrap())]);
    for block in 1..=4 {
        wait_until("the limit is used", LONG, async || begun(&stage).await == 5 * block).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(begun(&stage).await, 5 * block, "and not passed");
        // Not kept open: what nobody reads would fill it up.
        if let Some(heard) = heard.take() {
            wait_for_word(&heard, ", throttled by limits.in_flight until others are final").await;
        }
        stage.anvil.mine(1).await.unwrap();
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert!(!worker.log().contains("pauses"), "it is no outage");
}

#[tokio::test]
async fn a_restart_gives_no_new_allowance() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("write", "gas = 30000");
    let limited = config.clone().with("limits", "gas_per_hour = 160000");
    let home = WorkerHome::new(&limited);
    stage.topology(&home).await;
    publish(&stage, 8).await;
    for _ in 0..3 {
        let mut worker = home.start(BINARY);
        wait_log(&worker, "throttled: requests wait in the journal").await;
        assert!(worker.log().contains("limits.gas_per_hour"), "{}", worker.log());
        stage.wait_nonce(0, 5).await;
        worker.kill().await;
    }
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(5));
    home.configure(&config);
    let _worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await.len(), 8);
}

/// A request that could never be written under the limit holds up nobody.
#[tokio::test]
async fn a_request_above_an_hours_gas_is_a_dead_letter_and_the_next_one_is_written() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config().with("limits", "gas_per_hour = 40000"));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("dear"), &[0xff; 2000]).await;
    stage.amqp.publish(QUEUE, with_id("cheap"), b"cheap").await;
    let _worker = home.start(BINARY);
    stage.wait_state(&home, "cheap", "final").await;
    let dear = stage.wait_state(&home, "dear", "dead").await;
    assert!(dear["failure"].as_str().unwrap().starts_with("invalid.gas_above_limit: it takes "), "{dear}");
}
