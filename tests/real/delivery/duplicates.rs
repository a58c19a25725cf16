//! One request id, one effect: messages that come again, ids that stand for something else.

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, kinds_of};
use crate::support::{AnvilConfig, WorkerHome, wait_until, with_id};

/// Covers C45: again before a worker runs, again while the first is in a block but not final, again after that.
#[tokio::test]
async fn a_message_that_comes_again_is_one_write_and_every_copy_is_acked() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.keep_events().await;
    let publish = async || stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
    publish().await;
    publish().await;
    let mut worker = home.start(BINARY);
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    wait_until("both copies are held", LONG, async || stage.depth(QUEUE).await == (0, 2)).await;
    stage.anvil.mine(1).await.unwrap();
    stage.wait_nonce(0, 1).await;
    publish().await;
    wait_until("three copies are held", LONG, async || stage.depth(QUEUE).await == (0, 3)).await;
    stage.anvil.mine(2).await.unwrap();
    stage.wait_empty(QUEUE).await;
    publish().await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.anvil.pool_size().await, Ok((0, 0)), "nothing more was sent");
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    assert_eq!(kinds_of(&stage.kept_events().await, "order-1"), ["final"]);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}

/// Covers C45 over a restart: what an earlier process wrote is known to the next one.
#[tokio::test]
async fn a_message_that_comes_again_after_a_restart_is_known() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut first = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(first.stop().await.code(), Some(0));
    stage.amqp.publish(QUEUE, with_id("order-1"), b"once").await;
    let mut second = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(second.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    assert_eq!(kinds_of(&stage.kept_events().await, "order-1"), ["final"]);
}

/// Covers C45, the conflict: while the first is open and after it is final.
#[tokio::test]
async fn another_body_under_a_known_id_is_a_dead_letter_and_the_first_write_is_unaffected() {
    let Some(stage) = Stage::with_chain(AnvilConfig::default()).await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"first").await;
    wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
    for body in [b"while open".as_slice(), b"after final"] {
        stage.amqp.publish(QUEUE, with_id("order-1"), body).await;
        let dead = stage.amqp.wait_for(DEAD, LONG).await;
        assert_eq!(dead.routing_key, "invalid.id_conflict");
        assert_eq!(dead.id(), "order-1");
        assert_eq!(dead.body, body);
        assert_eq!(dead.header("cw-error-class").as_deref(), Some("invalid"));
        assert_eq!(dead.header("cw-error-reason").as_deref(), Some("id_conflict"));
        assert_eq!(dead.texts("cw-tx-hash"), Vec::<String>::new(), "the first one's transaction is not its own");
        // The first goes its way.
        stage.anvil.mine(3).await.unwrap();
        stage.wait_empty(QUEUE).await;
        assert_eq!(stage.status(&home, "order-1").await["state"], "final");
    }
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(b"first")]);
    let events = stage.kept_events().await;
    assert_eq!(events.iter().filter(|(_, kind, _)| kind == "final").count(), 1);
    assert_eq!(events.iter().filter(|(_, kind, _)| kind == "dead").count(), 2);
}

#[tokio::test]
async fn two_ids_with_the_same_body_are_two_writes() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.keep_events().await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"same").await;
    stage.amqp.publish(QUEUE, with_id("order-2"), b"same").await;
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(b"same"), calldata(b"same")]);
    let events = stage.kept_events().await;
    assert_eq!((kinds_of(&events, "order-1"), kinds_of(&events, "order-2")), (vec!["final"], vec!["final"]));
}
