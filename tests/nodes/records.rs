//! The contract Records on each node, and what the chain says when the journal is lost.

use serde_json::{Value, json};

use crate::case::{Case, PATIENCE};
use crate::node::{Kind, Wanted};
use crate::properties::Outcome;
use crate::stage::{BINARY, DEAD, QUEUE};
use crate::support::{WorkerConfig, WorkerHome, wait_until, with_id};

/// A configuration that records at a contract deployed for it.
pub async fn recording(case: &Case) -> WorkerConfig {
    let home = WorkerHome::new(&case.config());
    let (code, text) = home.command(BINARY, &["contract", "deploy"]).await;
    assert_eq!(code, 0, "{text}");
    let to = text.lines().find_map(|line| line.strip_prefix("to = ")).expect("it prints the lines to write");
    case.config().with("write", format!("mode = \"record\"\nto = {to}"))
}

pub async fn verify(home: &WorkerHome, id: &str) -> (i32, Value) {
    let (code, text) = home.command(BINARY, &["verify", "--json", id]).await;
    (code, serde_json::from_str(&text).unwrap_or(json!(text)))
}

pub async fn records(kind: Kind) -> Outcome {
    let case = Case::start(kind, Wanted::each(1)).await;
    let (home, _worker) = case.worker(&recording(&case).await);
    case.publish(0..3).await;
    case.wait_nonce(4).await;
    case.wait_done().await;
    for id in ["m-0", "m-2"] {
        let (code, proof) = verify(&home, id).await;
        assert_eq!((code, &proof["is_final"]), (0, &json!(true)), "{proof}");
    }
    let (code, proof) = verify(&home, "m-3").await;
    assert_eq!(code, 1, "{proof}");
    assert_eq!(case.stage.depth(DEAD).await, (0, 0));
    Outcome::Pass
}

pub async fn batches(kind: Kind) -> Outcome {
    const MESSAGES: usize = 60;
    let case = Case::start(kind, Wanted::each(1)).await;
    let config = recording(&case).await.with("batch", "max_requests = 20\nmax_wait = \"500ms\"");
    case.publish(0..MESSAGES).await;
    let (home, _worker) = case.worker(&config);
    case.wait_done().await;
    assert_eq!(case.stage.depth(DEAD).await, (0, 0));
    let transactions = case.written().await.len() - 1;
    assert!((3..=MESSAGES / 4).contains(&transactions), "{transactions} transactions");
    for number in [0, MESSAGES - 1] {
        let (code, proof) = verify(&home, &format!("m-{number}")).await;
        assert_eq!((code, &proof["is_final"]), (0, &json!(true)), "{proof}");
    }
    Outcome::Pass
}

/// A message that the chain has and no journal becomes a dead letter that says so, and the rest is written.
pub async fn recover(kind: Kind) -> Outcome {
    let case = Case::start(kind, Wanted::each(1)).await;
    // Nothing is acked before the worker and its journal are lost.
    let (_home, mut worker) = case.worker(&case.config().with("chain", "finality = 5000"));
    case.publish(0..5).await;
    case.wait_nonce(5).await;
    worker.kill().await;
    case.publish(5..8).await;
    let home = WorkerHome::new(&case.config().with("chain", "finality = 1"));
    let (code, text) = home.command(BINARY, &["recover", "--from-block", "0"]).await;
    assert!(code == 0 && text.contains("with 5 writes"), "{code} {text}");
    let _worker = home.start(BINARY);
    let both = async || case.stage.depth(QUEUE).await == (0, 0) && case.stage.depth(DEAD).await.0 == 5;
    wait_until("the written ones are dead letters", PATIENCE, both).await;
    for _ in 0..5 {
        let dead = case.stage.amqp.wait_for(DEAD, PATIENCE).await;
        assert_eq!(dead.routing_key, "invalid.maybe_written");
    }
    case.stage.amqp.publish(QUEUE, with_id("m-8"), b"body 8").await;
    case.wait_nonce(9).await;
    case.assert_written_once_in_order(9).await;
    Outcome::Pass
}
