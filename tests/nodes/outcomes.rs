//! Requests that cannot be written, and what an operator reads about a node.

use serde_json::json;

use crate::case::{Case, PATIENCE};
use crate::node::{Kind, Wanted};
use crate::properties::{Outcome, RUNS_BOTH};
use crate::stage::{DEAD, QUEUE, calldata};
use crate::support::contracts::{ALWAYS_REVERTS, PANICS, REVERTS_CUSTOM};
use crate::support::{ACCOUNTS, Reply, ScriptedNode, WorkerConfig, WorkerHome, with_id};

/// Reverts with nothing.
const REVERTS_BARE: &str = "0x60006000fd";
/// A screen of a terminal.
const SCREEN: usize = 50;

pub async fn doctor(kind: Kind) -> Outcome {
    let case = Case::start(kind, Wanted::each(1)).await;
    let home = WorkerHome::new(&case.config());
    let (code, text) = home.command(crate::stage::BINARY, &["doctor"]).await;
    assert_eq!(code, 0, "{text}");
    let program = case.node.call("web3_clientVersion", json!([])).await.unwrap();
    let program = program.as_str().unwrap().split('/').next().unwrap().to_owned();
    assert!(text.contains(&format!("runs {program}")), "what it is: {program}: {text}");
    for part in ["fork", "calldata", "a write is final", "a unit of gas", "a write costs"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().count() <= SCREEN, "{text}");
    Outcome::Pass
}

/// Each reason twice: found by the simulation, and in a block where the gas is fixed.
pub async fn reverts(kind: Kind) -> Outcome {
    let case = Case::start(kind, Wanted::each(1)).await;
    let table = [
        ("text", ALWAYS_REVERTS, "rejected.reverted", "not today"),
        ("panic", PANICS, "rejected.panicked", "Panic(0x11): arithmetic overflow"),
        ("custom", REVERTS_CUSTOM, "rejected.reverted_custom", "NotAllowed(level: 42)"),
        ("bare", REVERTS_BARE, "rejected.reverted", ""),
    ];
    let mut config = case.config().with("retry", "max_attempts = 1");
    for (name, code, ..) in table {
        let contract = case.node.deploy(code).await;
        for (kind, gas) in [("simulated", "\"estimate\""), ("included", "100000")] {
            let route = format!(
                "name = \"{name}-{kind}\"\ntype = \"{name}-{kind}\"\nto = {contract:?}\ngas = {gas}\n\
                 errors = [\"NotAllowed(uint256 level)\"]"
            );
            config = config.with("route", route);
        }
    }
    let (home, _worker) = case.worker(&config);
    for (name, _, key, detail) in table {
        for kind in ["simulated", "included"] {
            let id = format!("{name}-{kind}");
            case.stage.amqp.publish(QUEUE, with_id(&id).with_type(id.as_str().into()), b"x").await;
            let dead = case.stage.amqp.wait_for(DEAD, PATIENCE).await;
            let said = dead.header("cw-error-detail").unwrap_or_default();
            assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), (id.as_str(), key), "{said}");
            assert!(said.contains(detail), "{id}: {said}");
            let nonces = case.status(&home, &id).await["transactions"].as_array().map_or(0, Vec::len);
            assert_eq!(nonces, usize::from(kind == "included"), "{id}");
        }
    }
    Outcome::Pass
}

pub async fn poor(kind: Kind) -> Outcome {
    let case = Case::start(kind, Wanted::each(1)).await;
    let config = case
        .config()
        .with("retry", "max_attempts = 1")
        .with("route", "name = \"rich\"\ntype = \"rich\"\nvalue = \"20000 ether\"")
        .with("route", "name = \"rest\"");
    let (_home, _worker) = case.worker(&config);
    case.publish(0..2).await;
    case.stage.amqp.publish(QUEUE, with_id("rich").with_type("rich".into()), b"x").await;
    case.publish(2..4).await;
    let dead = case.stage.amqp.wait_for(DEAD, PATIENCE).await;
    assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("rich", "rejected.insufficient_funds"));
    case.wait_nonce(4).await;
    case.wait_done().await;
    case.assert_written_once_in_order(4).await;
    Outcome::Pass
}

/// A proxy in front of the node refuses; the node takes the cancellation.
pub async fn refused(kind: Kind) -> Outcome {
    if kind == Kind::Ganache {
        return RUNS_BOTH;
    }
    let case = Case::start(kind, Wanted::each(1)).await;
    let bad = calldata(b"bad").trim_start_matches("0x").to_owned();
    let front = ScriptedNode::filtering(case.node.address(), move |method, params| {
        let refuses = method == "eth_sendRawTransaction" && params[0].as_str().is_some_and(|raw| raw.contains(&bad));
        std::future::ready(if refuses { Reply::refusal("the filter does not like it") } else { Reply::Pass })
    })
    .await;
    let config = WorkerConfig { endpoint: front.url(), ..case.config() };
    let config = config.with("retry", "max_attempts = 1").with("chain", "refused_after = \"3s\"");
    let (home, _worker) = case.worker(&config);
    case.publish(0..2).await;
    case.stage.amqp.publish(QUEUE, with_id("bad"), b"bad").await;
    case.publish(2..4).await;
    let dead = case.stage.amqp.wait_for(DEAD, PATIENCE).await;
    assert_eq!((dead.id().as_str(), dead.routing_key.as_str()), ("bad", "rejected.refused_by_node"));
    assert_eq!(case.status(&home, "bad").await["transactions"][0]["state"], "cancelled");
    case.wait_done().await;
    let written = case.written().await;
    let own = ACCOUNTS[0].0.to_lowercase();
    let cancellations = written.iter().filter(|(_, _, to, _)| *to == own).count();
    assert_eq!((written.len(), cancellations), (5, 1), "four writes and a transfer to itself: {written:?}");
    Outcome::Pass
}
