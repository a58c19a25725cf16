//! Who takes a nonce, and what the worker believes about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::stage::{BINARY, QUEUE, SINK, Stage, calldata, mine_until, mine_until_final, pool_holds, wait_log};
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
    mine_until(&stage, "it is said that nothing is decided", async || {
        worker.log().contains("the node shows no transaction with it")
    })
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
    assert_eq!(worker.log().matches("the node shows no transaction with it").count(), 1, "it is said once");
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

/// C15: an authorisation (EIP-7702) that the account has signed, in another account's transaction.
#[tokio::test]
async fn a_nonce_that_an_authorisation_took_is_given_up_and_the_request_gets_a_new_one() {
    let Some(stage) = Stage::set().await else { return };
    let (home, worker) = stage.one_in_the_pool().await;
    worker.signal("STOP");
    stage.anvil.drop_all().await.unwrap();
    // Signed with the account's key: the code at SINK, on chain 31337, at nonce 0.
    let authorisation = json!({
        "chainId": "0x7a69", "address": SINK, "nonce": "0x0", "yParity": "0x0",
        "r": "0x97038692da8a6d5512d743d260a9d47c5f5d3dc7519cc2009462c0e0b63931d7",
        "s": "0x6a3a7c7a5b03d1e2afb0669ad8fc85b8a8b67018a84da65c48636c0713815971",
    });
    let other = ACCOUNTS[1].0;
    let sent = json!([{ "from": other, "to": other, "gas": rpc::hex(200_000), "authorizationList": [authorisation] }]);
    let sent = stage.anvil.call("eth_sendTransaction", sent).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "latest").await, Ok(1), "the authorisation took it");
    worker.signal("CONT");
    let status = mine_until_final(&stage, &home, "order-1").await;
    let states: Vec<_> = status["transactions"].as_array().unwrap().iter().map(|t| t["state"].clone()).collect();
    assert_eq!(states, ["displaced", "succeeded"], "{status}");
    assert!(status["incidents"].to_string().contains(sent.as_str().unwrap()), "{status}");
    assert_eq!(stage.transactions_of(0).await, [(1, calldata(b"once"), SINK.to_owned())]);
}
