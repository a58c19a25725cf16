//! Who takes a nonce, and what the worker believes about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::stage::{BINARY, QUEUE, Stage, calldata, mine_until, mine_until_final, pool_holds, wait_log};
use crate::support::{ACCOUNTS, Reply, ScriptedNode, WorkerHome, rpc, with_id};

/// C18, C14: the count comes from a node that is up to date, the receipts from one that lags. Our transaction is in the
/// chain, and nothing may take its place.
#[tokio::test]
async fn a_count_without_a_receipt_is_no_proof_that_the_nonce_went_to_another() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let lags = Arc::new(AtomicBool::new(true));
    let is_lagging = Arc::clone(&lags);
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, _| {
        let lags = is_lagging.load(Ordering::Relaxed);
        async move {
            match method.as_str() {
                "eth_getTransactionReceipt" if lags => Reply::Result(Value::Null),
                "eth_getBlockReceipts" if lags => Reply::Result(json!([])),
                _ => Reply::Pass,
            }
        }
    })
    .await;
    let mut config = stage.config().with("chain", "finality = 1\nresend_after = \"1s\"");
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"mine").await;
    let worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    mine_until(&stage, "it is said that nothing is decided", async || worker.log().contains("nothing is decided"))
        .await;
    stage.anvil.mine(3).await.unwrap();
    let status = stage.status(&home, "a").await;
    assert_eq!(
        (&status["state"], &status["transactions"][0]["state"]),
        (&json!("writing"), &json!("live")),
        "{status}"
    );
    lags.store(false, Ordering::Relaxed);
    let status = mine_until_final(&stage, &home, "a").await;
    assert_eq!(status["transactions"].as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(worker.log().matches("nothing is decided").count(), 1, "it is said once");
    assert_eq!(stage.transactions_of(0).await.len(), 1, "written once");
}

/// C15 where the node keeps no old state: the blocks themselves are read.
#[tokio::test]
async fn a_foreign_transaction_is_found_without_the_state_of_old_blocks_and_named() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let anvil = stage.anvil.rpc();
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, params| async move {
        let head = anvil.block_number().await.unwrap_or(0);
        let height = params[1].as_str().and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
        match (method.as_str(), height) {
            ("eth_getTransactionCount", Some(height)) if height + 4 < head => {
                Reply::refusal("missing trie node".to_owned())
            }
            _ => Reply::Pass,
        }
    })
    .await;
    let mut config = stage.config();
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.anvil.mine(5).await.unwrap();
    stage.amqp.publish(QUEUE, with_id("a"), b"mine").await;
    let mut worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    worker.kill().await;
    stage.anvil.drop_all().await.unwrap();
    let (from, to) = (ACCOUNTS[0].0, ACCOUNTS[1].0);
    let foreign = json!([{ "from": from, "to": to, "value": "0x1", "nonce": "0x0", "gas": rpc::hex(21_000) }]);
    let foreign = stage.anvil.call("eth_sendTransaction", foreign).await.unwrap();
    stage.anvil.mine(30).await.unwrap();
    let worker = home.start(BINARY);
    let status = mine_until_final(&stage, &home, "a").await;
    let named = status["incidents"].as_array().into_iter().flatten().any(|incident| {
        incident["what"] == "displaced" && incident["detail"].as_str().unwrap().contains(foreign.as_str().unwrap())
    });
    assert!(named, "{status}");
    wait_log(&worker, foreign.as_str().unwrap()).await;
    let transactions = stage.transactions_of(0).await;
    assert_eq!((transactions.len(), &transactions[1].1), (2, &calldata(b"mine")));
}

/// Nothing is lost by it, and nobody would know.
#[tokio::test]
async fn nonces_that_another_program_takes_between_writes_are_told() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "deliveries flow").await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    stage.wait_nonce(0, 1).await;
    let foreign = json!([{ "from": ACCOUNTS[0].0, "to": ACCOUNTS[1].0, "value": "0x1" }]);
    stage.anvil.rpc().call("eth_sendTransaction", foreign).await.unwrap();
    wait_log(&worker, "another program uses this account: it has taken nonces that nothing was signed for").await;
    stage.amqp.publish(QUEUE, with_id("order-2"), b"two").await;
    stage.wait_nonce(0, 3).await;
    assert_eq!(worker.log().matches("another program uses this account").count(), 1, "{}", worker.log());
    assert_eq!(worker.stop().await.code(), Some(0));
}
