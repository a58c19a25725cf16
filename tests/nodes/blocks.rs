//! Properties of blocks and pools that change beneath a worker.

use std::time::Duration;

use serde_json::json;

use crate::case::{Case, PATIENCE};
use crate::node::{Kind, Wanted};
use crate::properties::{Outcome, RUNS_BOTH};
use crate::stage::{LONG, QUEUE};
use crate::support::rpc::hex;
use crate::support::{ACCOUNTS, wait_until, with_id};

pub async fn on_demand(kind: Kind) -> Outcome {
    let case = Case::start(kind, Wanted::on_demand()).await;
    let (home, _worker) = case.worker(&case.config());
    case.publish(0..1).await;
    case.wait_nonce(1).await;
    let waits = async || case.status(&home, "m-0").await["waits_for"].to_string().contains("confirmations");
    wait_until("it says that it waits for confirmations", LONG, waits).await;
    for _ in 0..2 {
        case.node.make_block().await;
    }
    case.wait_done().await;
    case.assert_written_once_in_order(1).await;
    Outcome::Pass
}

/// The pool is lost, and the worker sends its transactions again.
pub async fn lost_pool(kind: Kind) -> Outcome {
    const MESSAGES: usize = 10;
    let mut case = Case::start(kind, Wanted::each(8)).await;
    let config = case.config().with("chain", "finality = 0");
    let (home, _worker) = case.worker(&config);
    let before = case.node.block_number().await.unwrap();
    wait_until("a block has come", LONG, async || case.node.block_number().await.is_ok_and(|at| at > before)).await;
    case.publish(0..MESSAGES).await;
    let sent = async || case.status(&home, "m-9").await["transactions"].as_array().is_some_and(|all| !all.is_empty());
    wait_until("all are signed", LONG, sent).await;
    // An answer to each has come by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    case.node.lose_pool().await;
    case.wait_nonce(MESSAGES as u64).await;
    case.wait_done().await;
    case.assert_written_once_in_order(MESSAGES).await;
    Outcome::Pass
}

/// Blocks that are in the chain and not yet final go away.
pub async fn set_back(kind: Kind) -> Outcome {
    const MESSAGES: usize = 3;
    let case = Case::start(kind, Wanted::each(1)).await;
    let (home, _worker) = case.worker(&case.config().with("chain", "finality = 8\nresend_after = \"2s\""));
    let begun = case.node.block_number().await.unwrap();
    wait_until("blocks have come", LONG, async || case.node.block_number().await.is_ok_and(|at| at > begun + 2)).await;
    let remembered = case.node.remember().await;
    case.publish(0..MESSAGES).await;
    case.wait_nonce(MESSAGES as u64).await;
    case.node.set_back(&remembered).await;
    case.wait_nonce(MESSAGES as u64).await;
    case.wait_done().await;
    case.assert_written_once_in_order(MESSAGES).await;
    assert_eq!(case.status(&home, "m-0").await["state"], "final");
    Outcome::Pass
}

pub async fn finalized(kind: Kind) -> Outcome {
    let wanted = if kind.is_anvil() { Wanted::each(1).option(&["--slots-in-an-epoch", "3"]) } else { Wanted::each(1) };
    let case = Case::start(kind, wanted).await;
    let (home, _worker) = case.worker(&case.config().with("chain", "finality = \"finalized\""));
    case.publish(0..3).await;
    case.wait_nonce(3).await;
    case.wait_done().await;
    let included = case.status(&home, "m-2").await["transactions"][0]["block_number"].as_u64().unwrap();
    let tagged = case.node.call("eth_getBlockByNumber", json!(["finalized", false])).await.unwrap();
    let digits = tagged["number"].as_str().unwrap().trim_start_matches("0x").to_owned();
    assert!(u64::from_str_radix(&digits, 16).unwrap() >= included, "{tagged}");
    case.assert_written_once_in_order(3).await;
    Outcome::Pass
}

/// The payer fills blocks until the base fee has left behind what the worker offered. Its tip is above the market's before, and
/// low enough that the worker's may follow it: among equal tips nodes take what came first.
pub async fn replaced(kind: Kind) -> Outcome {
    if kind == Kind::Ganache {
        return RUNS_BOTH;
    }
    const LIMIT: u64 = 2_000_000;
    /// Endless loops as contracts' first code: each uses up all its gas.
    const LOOP: &str = "0x5b600056";
    let case = Case::start(kind, Wanted { gas_limit: LIMIT, ..Wanted::each(1) }).await;
    let config = case.config().with("fees", "max_tip = \"20 gwei\"").with("chain", "replace_after = \"2s\"");
    let (home, worker) = case.worker(&config);
    wait_until("the lane owns its account", LONG, async || worker.log().contains("the lane owns its account")).await;
    let price = hex(400_000_000_000_u64);
    let fill = json!({ "data": LOOP, "gas": hex(LIMIT - 5_000), "maxFeePerGas": price,
        "maxPriorityFeePerGas": hex(3_000_000_000_u64) });
    case.node.pay_often(fill, 24).await;
    case.stage.amqp.publish(QUEUE, with_id("m-0"), b"body 0").await;
    let signed = async || case.status(&home, "m-0").await["transactions"][0]["attempts"].as_array().map_or(0, Vec::len);
    wait_until("it is signed again", PATIENCE, async || signed().await >= 2).await;
    case.wait_nonce(1).await;
    case.wait_done().await;
    case.assert_written_once_in_order(1).await;
    let status = case.status(&home, "m-0").await;
    assert_eq!(status["transactions"].as_array().map(Vec::len), Some(1), "one nonce: {status}");
    assert!(case.node.nonce(ACCOUNTS[0].0, "pending").await == Ok(1), "nothing is left in the pool");
    Outcome::Pass
}
