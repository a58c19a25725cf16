//! Invariant 12: what has a limit keeps to it.

use std::time::Duration;

use crate::stage::{BINARY, LONG, QUEUE, Stage, wait_log};
use crate::support::{WorkerHome, wait_until, with_id};

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
