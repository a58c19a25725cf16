//! Limits of a node's own options, and of a provider in front of it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::case::{Case, PATIENCE};
use crate::node::{Kind, Wanted};
use crate::properties::Outcome;
use crate::records::{recording, verify};
use crate::stage::{DEAD, LONG, QUEUE};
use crate::support::rpc::hex;
use crate::support::{ScriptedNode, WorkerConfig, wait_until, with_id};

const NO_OPTION: Outcome = Outcome::NotApplicable("it has no option for that");

/// 20 calls a second and 20 at once, each call of a batch counted, and no word beside 429.
pub async fn rate(kind: Kind) -> Outcome {
    const PER_SECOND: f64 = 20.0;
    const MESSAGES: usize = 40;
    let case = Case::start(kind, Wanted::each(1)).await;
    let front = ScriptedNode::limited(case.node.address(), PER_SECOND).await;
    case.publish(0..MESSAGES).await;
    let began = Instant::now();
    let (_home, worker) = case.worker(&WorkerConfig { endpoint: front.url(), ..case.config() });
    case.wait_nonce(MESSAGES as u64).await;
    case.wait_done().await;
    case.assert_written_once_in_order(MESSAGES).await;
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert!(!worker.log().contains("the lane pauses"), "it goes on");
    Outcome::Pass
}

/// Transactions without room go again with the next block, at the same price.
pub async fn small_pool(kind: Kind) -> Outcome {
    const MESSAGES: usize = 60;
    if kind != Kind::Geth {
        return NO_OPTION;
    }
    let options = ["--txpool.accountslots", "4", "--txpool.globalslots", "16"];
    let case = Case::start(kind, Wanted::each(1).option(&options)).await;
    case.publish(0..MESSAGES).await;
    let (home, _worker) = case.worker(&case.config());
    case.wait_nonce(MESSAGES as u64).await;
    case.wait_done().await;
    case.assert_written_once_in_order(MESSAGES).await;
    let status = case.status(&home, "m-50").await;
    assert_eq!(status["transactions"][0]["attempts"].as_array().map(Vec::len), Some(1), "{status}");
    Outcome::Pass
}

pub async fn price_limit(kind: Kind) -> Outcome {
    if kind != Kind::Geth {
        return NO_OPTION;
    }
    let case = Case::start(kind, Wanted::each(1).option(&["--txpool.pricelimit", "2000000000"])).await;
    let (home, _worker) = case.worker(&case.config());
    case.publish(0..5).await;
    case.wait_nonce(5).await;
    case.wait_done().await;
    case.assert_written_once_in_order(5).await;
    let status = case.status(&home, "m-4").await;
    let signed = status["transactions"][0]["attempts"].as_array().map_or(0, Vec::len);
    assert!(signed <= 2, "{status}");
    Outcome::Pass
}

pub async fn batch_limit(kind: Kind) -> Outcome {
    const MESSAGES: usize = 60;
    if kind != Kind::Geth {
        return NO_OPTION;
    }
    let case = Case::start(kind, Wanted::each(1).option(&["--rpc.batch-request-limit", "10"])).await;
    case.publish(0..MESSAGES).await;
    let (_home, worker) = case.worker(&case.config());
    case.wait_nonce(MESSAGES as u64).await;
    case.wait_done().await;
    case.assert_written_once_in_order(MESSAGES).await;
    assert!(!worker.log().contains("the lane pauses"), "it goes on");
    Outcome::Pass
}

pub async fn range_limit(kind: Kind) -> Outcome {
    if kind != Kind::Geth {
        return NO_OPTION;
    }
    let case = Case::start(kind, Wanted::each(1).option(&["--rpc.rangelimit", "5"])).await;
    let (home, _worker) = case.worker(&recording(&case).await);
    case.publish(0..2).await;
    case.wait_nonce(3).await;
    case.wait_done().await;
    wait_until("blocks enough", LONG, async || case.node.block_number().await.is_ok_and(|at| at > 20)).await;
    let (code, proof) = verify(&home, "m-1").await;
    assert_eq!((code, &proof["is_final"]), (0, &json!(true)), "{proof}");
    Outcome::Pass
}

/// A call that needs more than that fails alone.
pub async fn gas_cap(kind: Kind) -> Outcome {
    let options = match kind {
        Kind::Geth => ["--rpc.gascap", "200000"],
        Kind::Ganache => ["--miner.callGasLimit", "0x30d40"],
        Kind::Hardhat | Kind::AnvilShanghai | Kind::AnvilPrague | Kind::AnvilOsaka => return NO_OPTION,
    };
    let case = Case::start(kind, Wanted::each(1).option(&options)).await;
    let (_home, _worker) = case.worker(&case.config().with("retry", "max_attempts = 1"));
    case.publish(0..2).await;
    // At least 16 gas for each byte.
    case.stage.amqp.publish(QUEUE, with_id("large"), &[b'x'; 20_000]).await;
    case.publish(2..4).await;
    let dead = case.stage.amqp.wait_for(DEAD, PATIENCE).await;
    assert!(dead.id() == "large" && dead.routing_key.starts_with("rejected."), "{} {}", dead.id(), dead.routing_key);
    case.wait_nonce(4).await;
    case.wait_done().await;
    case.assert_written_once_in_order(4).await;
    Outcome::Pass
}

/// The highest price that the cap allows for this gas is 3.125 gwei: no room for the headroom that a price has.
pub async fn fee_cap(kind: Kind) -> Outcome {
    const LIMIT: u64 = 20_000_000;
    if kind != Kind::Geth {
        return NO_OPTION;
    }
    let wanted = Wanted { gas_limit: LIMIT, ..Wanted::each(1) }.option(&["--rpc.txfeecap", "0.05"]);
    let case = Case::start(kind, wanted).await;
    let config = case.config().with("write", "gas = 16000000").with("fees", "min_tip = \"2 gwei\"");
    let (home, worker) = case.worker(&config.with("retry", "max_attempts = 1"));
    wait_until("the lane owns its account", LONG, async || worker.log().contains("the lane owns its account")).await;
    // The node's own account is not held to the cap at this price; full blocks keep the base fee up.
    let fill = json!({ "data": "0x5b600056", "gas": hex(16_000_000), "maxFeePerGas": hex(3_000_000_000_u64),
        "maxPriorityFeePerGas": hex(1) });
    case.node.pay_often(fill, 4).await;
    case.publish(0..3).await;
    case.wait_nonce(3).await;
    case.wait_done().await;
    case.assert_written_once_in_order(3).await;
    let status = case.status(&home, "m-0").await;
    assert!(status["transactions"][0]["attempts"].as_array().map_or(0, Vec::len) <= 3, "{status}");
    Outcome::Pass
}
