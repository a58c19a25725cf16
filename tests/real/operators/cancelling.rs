//! `chainwriter cancel`, wherever the request stands.

use serde_json::Value;

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, mine_until, mine_until_final, pool_holds, wait_log};
use crate::support::contracts::REVERTS_UNLESS_FLAG;
use crate::support::{ACCOUNTS, AnvilConfig, WorkerHome, wait_until, with_id};

const GWEI: u64 = 1_000_000_000;

async fn cancel(home: &WorkerHome, arguments: &[&str]) -> (i32, String) {
    home.command(BINARY, &[&["cancel"], arguments].concat()).await
}

fn states(status: &Value) -> Vec<&str> {
    status["transactions"].as_array().unwrap().iter().map(|tx| tx["state"].as_str().unwrap()).collect()
}

/// The price has risen above the cap: nothing of the account gets into a block.
#[tokio::test]
async fn a_stuck_write_is_cancelled_and_the_next_one_proceeds() {
    let Some(stage) = Stage::with_chain(AnvilConfig { base_fee: Some(GWEI), ..AnvilConfig::default() }).await else {
        return;
    };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("fees", "max_fee = \"10 gwei\"").with("chain", "finality = 1"));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("stuck"), b"stuck").await;
    let worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    stage.anvil.set_next_base_fee(50 * GWEI).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    stage.amqp.publish(QUEUE, with_id("next"), b"next").await;
    let (code, text) = cancel(&home, &["stuck", "--reason", "sent by mistake"]).await;
    assert_eq!((code, text.contains("to be cancelled; it is signed")), (0, true), "{text}");
    wait_log(&worker, "tx.kind=\"cancel\"").await;
    stage.anvil.set_next_base_fee(GWEI).await.unwrap();
    let status = mine_until_final(&stage, &home, "next").await;
    assert_eq!(states(&status), ["succeeded"]);
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.routing_key.as_str(), dead.id().as_str()), ("rejected.cancelled", "stuck"));
    let detail = dead.header("cw-error-detail").unwrap();
    assert!(detail.ends_with("sent by mistake"), "{detail}");
    assert_eq!(dead.header("cw-attempt").as_deref(), Some("0"), "no retry of what nobody wants");
    let written: Vec<_> =
        stage.transactions_of(0).await.into_iter().map(|(_, data, to)| (data, to.to_lowercase())).collect();
    assert_eq!(written[0], ("0x".to_owned(), ACCOUNTS[0].0.to_lowercase()), "its nonce went to a transfer to itself");
    assert_eq!((written.len(), &written[1].0), (2, &calldata(b"next")));
    let (code, text) = cancel(&home, &["stuck"]).await;
    assert_eq!(
        (code, text.contains("cancelled; it is a dead letter")),
        (0, true),
        "to say it again is harmless: {text}"
    );
    let (code, log) = home.command(BINARY, &["log", "--what", "cancel", "--json"]).await;
    let log: Value = serde_json::from_str(&log).unwrap();
    let entry = &log["entries"][0];
    assert_eq!((code, log["entries"].as_array().unwrap().len()), (0, 1), "what was too late is no act: {log}");
    assert_eq!((&entry["request"], &entry["reason"]), (&"stuck".into(), &"sent by mistake".into()), "{log}");
    assert!(!entry["user"].as_str().unwrap().is_empty() && !entry["host"].as_str().unwrap().is_empty(), "{log}");
}

#[tokio::test]
async fn a_request_without_a_nonce_is_cancelled_at_once() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "in_flight = 1\nfinality = 0"));
    stage.topology(&home).await;
    for id in ["first", "second", "third"] {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
    }
    let _worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    stage.wait_state(&home, "third", "accepted").await;
    let (code, text) = cancel(&home, &["second", "--wait"]).await;
    assert_eq!((code, text.contains("second: cancelled; it is a dead letter")), (0, true), "{text}");
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.routing_key.as_str(), dead.id().as_str()), ("rejected.cancelled", "second"));
    mine_until_final(&stage, &home, "third").await;
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(b"first"), calldata(b"third")]);
    stage.wait_empty(QUEUE).await;
}

#[tokio::test]
async fn a_request_that_waits_for_its_retry_is_cancelled_when_it_comes_back() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config_for(REVERTS_UNLESS_FLAG).await;
    let home = WorkerHome::new(&config.with("retry", "initial_delay = \"3s\"\nmax_delay = \"3s\""));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"a").await;
    let _worker = home.start(BINARY);
    stage.wait_state(&home, "a", "retry_waiting").await;
    let (code, text) = cancel(&home, &["a"]).await;
    assert_eq!((code, text.contains("waits at the broker for its retry")), (0, true), "{text}");
    // It would be written now.
    stage.anvil.set_storage(crate::stage::CONTRACT, 0, 1).await.unwrap();
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!(dead.routing_key, "rejected.cancelled");
    assert_eq!(stage.transactions_of(0).await.len(), 0);
    stage.wait_empty(QUEUE).await;
}

#[tokio::test]
async fn what_is_written_or_unknown_cannot_be_cancelled_and_the_command_says_so() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 0"));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"a").await;
    let _worker = home.start(BINARY);
    stage.wait_state(&home, "a", "final").await;
    let (code, text) = cancel(&home, &["a", "--wait"]).await;
    assert_eq!((code, text.contains("a: final: it was written")), (2, true), "{text}");
    let (code, text) = cancel(&home, &["nobody"]).await;
    assert_eq!((code, text.contains("nobody: the journal does not know it")), (1, true), "{text}");
}

/// The write is in a block already: it counts, and the command that waits says so.
#[tokio::test]
async fn a_write_that_lands_before_its_cancellation_counts() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 2"));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"a").await;
    let worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    stage.anvil.mine(1).await.unwrap();
    stage.wait_nonce(0, 1).await;
    let waits = cancel(&home, &["a", "--wait"]);
    let mining = async {
        wait_until("the cancellation is seen", LONG, async || worker.log().contains("an operator cancels this write"))
            .await;
        mine_until(&stage, "a is final", async || stage.status(&home, "a").await["state"] == "final").await;
    };
    let ((code, text), ()) = tokio::join!(waits, mining);
    assert_eq!((code, text.contains("a: final: it was written")), (2, true), "{text}");
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}
