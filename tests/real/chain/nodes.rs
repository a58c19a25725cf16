//! What nodes lack, forget and call final.

use std::time::Duration;

use crate::stage::{BINARY, LONG, QUEUE, Stage, calldata, wait_log};
use crate::support::{ACCOUNTS, Anvil, AnvilConfig, ScriptedNode, WorkerHome, wait_until, with_id};

pub async fn publish(stage: &Stage, count: usize) {
    for number in 0..count {
        stage.amqp.publish(QUEUE, with_id(&format!("n-{number}")), format!("body {number}").as_bytes()).await;
    }
}

pub async fn assert_written_once_in_order(stage: &Stage, count: usize) {
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let expected: Vec<_> = (0..count).map(|number| calldata(format!("body {number}").as_bytes())).collect();
    assert_eq!(written, expected);
}

/// C26, C35: receipts one by one in a batch, fees from what else the node tells.
#[tokio::test]
async fn a_node_without_block_receipts_and_fee_history_is_good_enough() {
    let blocks = AnvilConfig { block_time: Some(Duration::from_secs(1)), ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(blocks).await else { return };
    let lacking = ["eth_getBlockReceipts", "eth_feeHistory", "eth_maxPriorityFeePerGas"];
    let node = ScriptedNode::lacking(stage.anvil.address(), Box::leak(Box::new(lacking))).await;
    let mut config = stage.config();
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    publish(&stage, 20).await;
    let worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert!(worker.log().contains("the endpoint does not support eth_getBlockReceipts"), "{}", worker.log());
    assert_written_once_in_order(&stage, 20).await;
}

/// C20, C21
#[tokio::test]
async fn what_a_node_forgets_is_given_to_it_again_in_nonce_order() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "resend_after = \"1s\"\nfinality = 0"));
    stage.topology(&home).await;
    publish(&stage, 10).await;
    let _worker = home.start(BINARY);
    for _ in 0..3 {
        wait_until("all are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((10, 0))).await;
        stage.anvil.drop_all().await.unwrap();
    }
    wait_until("all are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((10, 0))).await;
    stage.anvil.mine(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 10).await;
}

/// C22, after a reconnect: the same address serves another chain all of a sudden.
#[tokio::test]
async fn a_node_that_comes_back_as_another_chain_gets_nothing() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "timeout = \"500ms\"\nfinality = 0"));
    stage.topology(&home).await;
    publish(&stage, 1).await;
    let worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    let Stage { mut anvil, amqp, .. } = stage;
    let address = anvil.address();
    anvil.stop().await;
    wait_log(&worker, "node_unreachable").await;
    let other = Anvil::start_at(AnvilConfig { chain_id: 6, ..AnvilConfig::default() }, address).await;
    amqp.publish(QUEUE, with_id("late"), b"not here").await;
    wait_log(&worker, "serves chain 6, chain.id is 31337").await;
    assert_eq!(other.nonce(ACCOUNTS[0].0, "pending").await, Ok(0));
}

#[tokio::test]
async fn finality_by_tag_waits_until_the_node_calls_the_block_so() {
    for (tag, rule) in [("safe", "\"safe\""), ("finalized", "\"finalized\"")] {
        let epochs =
            AnvilConfig { extra_args: vec!["--slots-in-an-epoch".into(), "3".into()], ..AnvilConfig::default() };
        let Some(stage) = Stage::with_chain(epochs).await else { return };
        stage.anvil.set_auto_mine(false).await.unwrap();
        let home = WorkerHome::new(&stage.config().with("chain", format!("finality = {rule}")));
        stage.topology(&home).await;
        stage.anvil.mine(10).await.unwrap();
        publish(&stage, 1).await;
        let _worker = home.start(BINARY);
        wait_until("it is in the pool", LONG, async || stage.anvil.pool_size().await == Ok((1, 0))).await;
        stage.anvil.mine(1).await.unwrap();
        let included = stage.anvil.block_number().await.unwrap();
        let mut passes = 0;
        while stage.status(&home, "n-0").await["state"] != "final" {
            let call = stage.anvil.call("eth_getBlockByNumber", serde_json::json!([tag, false])).await.unwrap();
            let number = call["number"].as_str().unwrap_or("0x0").trim_start_matches("0x").to_owned();
            let tagged = u64::from_str_radix(&number, 16).unwrap();
            if tagged < included {
                assert_eq!(stage.depth(QUEUE).await, (0, 1), "the newest {tag} block is {tagged}, its own {included}");
                passes += 1;
            }
            stage.anvil.mine(1).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(passes >= 2, "the tag was behind for a while");
        stage.wait_empty(QUEUE).await;
    }
}
