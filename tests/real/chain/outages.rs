//! Nodes that answer some calls and fail others, and outages in every shape.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::chain::nodes::{assert_written_once_in_order, publish};
use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage};
use crate::support::{Anvil, AnvilConfig, Reply, ScriptedNode, WorkerConfig, WorkerHome, wait_until};

/// A worker's configuration with these endpoints, whose messages fail at the first failure.
fn config(stage: &Stage, endpoints: &[String], more: &str) -> WorkerConfig {
    let chain = format!("endpoints = {endpoints:?}\n{more}");
    stage.config().with("chain", chain).with("retry", "max_attempts = 1")
}

fn error_body(id: &Value, code: i64, text: &str) -> String {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}}).to_string()
}

/// C12: a provider without a node behind it, in each shape, as the first of two endpoints.
#[tokio::test]
async fn an_outage_of_any_shape_is_asked_elsewhere_and_uses_no_try() {
    type Outage = fn(&Value) -> Reply;
    let outages: [(&str, Outage); 5] = [
        ("503 with a JSON-RPC error", |call| {
            let text = "no backend is currently healthy to serve traffic";
            Reply::Http(503, String::new(), error_body(&call["id"], -32011, text))
        }),
        ("200 with a JSON-RPC error", |_| Reply::error(-32011, "no backend is currently healthy to serve traffic")),
        ("200 in words of its own", |_| Reply::error(-32002, "nobody is at home here")),
        ("403", |call| Reply::Http(403, String::new(), error_body(&call["id"], -32000, "invalid host specified"))),
        ("402", |call| Reply::Http(402, String::new(), error_body(&call["id"], 402, "Payment Required"))),
    ];
    for (what, outage) in outages {
        let Some(stage) = Stage::set().await else { return };
        // It still knows its chain and its head: a cache may answer these.
        let first = ScriptedNode::start(Some(stage.anvil.address()), move |request| {
            let is_cached = |call: &Value| {
                matches!(call["method"].as_str(), Some("eth_chainId" | "eth_syncing" | "eth_getBlockByNumber"))
            };
            match request.as_array() {
                Some(calls) if calls.iter().all(is_cached) => Reply::Pass,
                None if is_cached(request) => Reply::Pass,
                _ => outage(request),
            }
        });
        let first = first.await;
        let home = WorkerHome::new(&config(&stage, &[first.url(), stage.anvil.url()], "finality = 0"));
        stage.topology(&home).await;
        publish(&stage, 20).await;
        let worker = home.start(BINARY);
        stage.wait_nonce(0, 20).await;
        stage.wait_empty(QUEUE).await;
        assert_written_once_in_order(&stage, 20).await;
        assert_eq!(stage.depth(DEAD).await.0, 0, "{what}");
        assert!(first.times("eth_estimateGas") > 0, "{what}: it was asked");
        assert!(!worker.log().contains("the lane pauses"), "{what}: {}", worker.log());
    }
}

/// C12: with one endpoint the account waits, and resumes by itself.
#[tokio::test]
async fn an_outage_of_the_only_endpoint_uses_no_try() {
    let Some(stage) = Stage::set().await else { return };
    let is_out = Arc::new(AtomicBool::new(true));
    let out = Arc::clone(&is_out);
    let node = ScriptedNode::start(Some(stage.anvil.address()), move |request| {
        let is_estimate = request.to_string().contains("eth_estimateGas");
        match is_estimate && out.load(Ordering::Relaxed) {
            true => Reply::error(-32011, "no backend is currently healthy to serve traffic"),
            false => Reply::Pass,
        }
    });
    let node = node.await;
    let home = WorkerHome::new(&config(&stage, &[node.url()], "finality = 0"));
    stage.topology(&home).await;
    publish(&stage, 20).await;
    let worker = home.start(BINARY);
    wait_until("the outage is seen", LONG, async || node.times("eth_estimateGas") > 3).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.depth(DEAD).await.0, 0);
    is_out.store(false, Ordering::Relaxed);
    stage.wait_nonce(0, 20).await;
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 20).await;
    assert_eq!(worker.log().matches("the lane pauses").count(), 1, "{}", worker.log());
    assert_eq!(worker.log().matches("the lane resumes").count(), 1, "{}", worker.log());
}

/// C12: what a poll has found counts although the node has no answer to the rest: nothing is replaced meanwhile.
#[tokio::test]
async fn a_node_without_a_final_block_holds_up_finality_alone() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let is_out = Arc::new(AtomicBool::new(true));
    let out = Arc::clone(&is_out);
    let node = ScriptedNode::start(Some(stage.anvil.address()), move |call| {
        let is_tagged = call["method"] == "eth_getBlockByNumber" && call["params"][0] == "finalized";
        match is_tagged && out.load(Ordering::Relaxed) {
            true => Reply::Http(500, String::new(), "oops".to_owned()),
            false => Reply::Pass,
        }
    });
    let node = node.await;
    let chain = "finality = \"finalized\"\nreplace_after = \"2s\"";
    let home = WorkerHome::new(&config(&stage, &[node.url()], chain));
    stage.topology(&home).await;
    publish(&stage, 20).await;
    let worker = home.start(BINARY);
    stage.wait_nonce(0, 20).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(stage.transactions_of(0).await.len(), 20, "nothing is replaced, and all are in blocks");
    assert!(!worker.log().contains("another attempt at the nonce"), "{}", worker.log());
    is_out.store(false, Ordering::Relaxed);
    stage.anvil.mine(100).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 20).await;
    assert_eq!(worker.log().matches("a call fails while others are answered").count(), 1, "{}", worker.log());
}

/// C25: numbers that no journal holds are a bad answer, and end no process.
#[tokio::test]
async fn numbers_out_of_range_end_nothing() {
    let Some(stage) = Stage::set().await else { return };
    let is_odd = Arc::new(AtomicBool::new(true));
    let odd = Arc::clone(&is_odd);
    let node = ScriptedNode::start(Some(stage.anvil.address()), move |call| {
        if !odd.load(Ordering::Relaxed) {
            return Reply::Pass;
        }
        match call["method"].as_str() {
            Some("eth_getTransactionCount" | "eth_estimateGas") => Reply::Result(json!("0x8000000000000000")),
            Some("eth_gasPrice" | "eth_maxPriorityFeePerGas") => {
                Reply::Result(json!("0x100000000000000000000000000000000"))
            }
            _ => Reply::Pass,
        }
    });
    let node = node.await;
    let home = WorkerHome::new(&config(&stage, &[node.url()], "finality = 0"));
    stage.topology(&home).await;
    publish(&stage, 5).await;
    let mut worker = home.start(BINARY);
    wait_until("the numbers were seen", LONG, async || node.times("eth_getTransactionCount") > 3).await;
    assert!(worker.is_running(), "{}", worker.log());
    is_odd.store(false, Ordering::Relaxed);
    stage.wait_nonce(0, 5).await;
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 5).await;
    assert_eq!(stage.depth(DEAD).await.0, 0);
}

/// A node that alone says that a write is final is not believed where another one has to confirm it.
#[tokio::test]
async fn nothing_is_final_until_another_endpoint_confirms_it() {
    let Some(stage) = Stage::set().await else { return };
    let is_cut_off = Arc::new(AtomicBool::new(true));
    let cut_off = Arc::clone(&is_cut_off);
    let other = ScriptedNode::start(Some(stage.anvil.address()), move |_| match cut_off.load(Ordering::Relaxed) {
        true => Reply::Close,
        false => Reply::Pass,
    });
    let other = other.await;
    let stranger = Anvil::start(AnvilConfig { chain_id: 31337, ..AnvilConfig::default() }).await;
    let config_with = |confirming: &str| {
        let chain = format!("finality = 0\nconfirm_with = [{confirming:?}]");
        config(&stage, &[stage.anvil.url()], &chain)
    };
    let home = WorkerHome::new(&config_with(&stranger.url()));
    stage.topology(&home).await;
    for confirming in [stranger.url(), other.url()] {
        home.configure(&config_with(&confirming));
        let is_stranger = confirming == stranger.url();
        if is_stranger {
            stranger.mine(9).await.unwrap();
            publish(&stage, 3).await;
        }
        let mut worker = home.start(BINARY);
        stage.wait_nonce(0, 3).await;
        wait_until("it says what it waits for", LONG, async || worker.log().contains("finality_unconfirmed")).await;
        assert!(stage.depth(QUEUE).await.0 + stage.depth(QUEUE).await.1 >= 3, "nothing is acked");
        if !is_stranger {
            is_cut_off.store(false, Ordering::Relaxed);
            stage.wait_empty(QUEUE).await;
            assert_written_once_in_order(&stage, 3).await;
            assert_eq!(stage.depth(DEAD).await.0, 0);
        }
        worker.kill().await;
    }
}
