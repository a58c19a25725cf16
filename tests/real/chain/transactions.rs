//! What the chain may do to a transaction between its signature and finality.

use std::time::Duration;

use serde_json::json;

use crate::stage::{BINARY, DEAD, LONG, QUEUE, SINK, Stage, calldata, mine_until_final, pool_holds, wait_log};
use crate::support::{ACCOUNTS, AnvilConfig, Mode, TcpProxy, Worker, WorkerHome, rpc, wait_until, with_id};

const GWEI: u64 = 1_000_000_000;

/// While the worker is frozen, its transaction leaves the pool and a foreign one with nonce 0 gets into a block.
async fn let_another_program_take_the_nonce(stage: &Stage, worker: &Worker) {
    worker.signal("STOP");
    stage.anvil.drop_all().await.unwrap();
    let (from, to) = (ACCOUNTS[0].0, ACCOUNTS[1].0);
    let foreign = json!([{ "from": from, "to": to, "value": "0x1", "nonce": "0x0", "gas": rpc::hex(21_000) }]);
    stage.anvil.call("eth_sendTransaction", foreign).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    worker.signal("CONT");
}

/// Invariant 5; C6
#[tokio::test]
async fn an_underpriced_transaction_is_replaced_at_its_nonce_and_written_once() {
    let Some(stage) = Stage::with_chain(AnvilConfig { base_fee: Some(GWEI), ..AnvilConfig::default() }).await else {
        return;
    };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"raise me").await;
    let worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    stage.anvil.set_next_base_fee(20 * GWEI).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    wait_log(&worker, "another attempt at the nonce").await;
    let status = mine_until_final(&stage, &home, "a").await;
    let transactions = status["transactions"].as_array().unwrap();
    assert_eq!(transactions.len(), 1, "one nonce: {status}");
    let attempts = transactions[0]["attempts"].as_array().unwrap();
    assert!(attempts.len() >= 2, "every hash is known: {status}");
    assert!(attempts.iter().any(|attempt| attempt["hash"] == transactions[0]["final_hash"]), "{status}");
    assert_eq!(stage.transactions_of(0).await.len(), 1);
}

/// C32
#[tokio::test]
async fn a_fee_above_the_cap_pauses_the_lane_until_it_has_come_down() {
    let Some(stage) = Stage::with_chain(AnvilConfig { base_fee: Some(50 * GWEI), ..AnvilConfig::default() }).await
    else {
        return;
    };
    let home = WorkerHome::new(&stage.config().with("fees", "max_fee = \"10 gwei\"").with("retry", "max_attempts = 1"));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"cheap").await;
    let worker = home.start(BINARY);
    wait_log(&worker, "fee_above_cap").await;
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(0), "nothing is sent above the cap");
    stage.anvil.set_next_base_fee(GWEI).await.unwrap();
    let status = mine_until_final(&stage, &home, "a").await;
    assert_eq!(status["attempt"], 0, "a fee is no failure of the request");
}

/// C34
#[tokio::test]
async fn an_account_without_funds_pauses_its_lane_until_it_is_filled() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_balance(ACCOUNTS[0].0, 0).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("retry", "max_attempts = 1").with("chain", "finality = 0"));
    stage.topology(&home).await;
    for id in ["a", "b"] {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
    }
    let worker = home.start(BINARY);
    wait_log(&worker, "insufficient_funds").await;
    assert_eq!(stage.depth(DEAD).await, (0, 0));
    stage.anvil.set_balance(ACCOUNTS[0].0, 10_u128.pow(18)).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await.len(), 2);
    assert_eq!(stage.status(&home, "b").await["attempt"], 0);
}

/// Invariant 6; C27
#[tokio::test]
async fn a_block_that_goes_away_before_it_is_final_takes_no_write_with_it() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 3"));
    stage.topology(&home).await;
    stage.anvil.mine(5).await.unwrap();
    for number in 0..5 {
        stage.amqp.publish(QUEUE, with_id(&format!("r-{number}")), format!("reorg {number}").as_bytes()).await;
    }
    let worker = home.start(BINARY);
    pool_holds(&stage, 5).await;
    stage.anvil.mine(2).await.unwrap();
    stage.wait_nonce(0, 5).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    stage.anvil.reorg(2).await.unwrap();
    wait_log(&worker, "the chain was reorganised").await;
    for number in 0..5 {
        mine_until_final(&stage, &home, &format!("r-{number}")).await;
    }
    stage.wait_empty(QUEUE).await;
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let expected: Vec<_> = (0..5).map(|number| calldata(format!("reorg {number}").as_bytes())).collect();
    assert_eq!(written, expected, "each once, at its own nonce");
}

/// Invariant 8: a transaction that the node refuses for a reason of its own delays its account, and never blocks it.
#[tokio::test]
async fn a_transaction_that_is_only_ever_refused_is_cancelled_and_becomes_a_dead_letter() {
    let Some(stage) = Stage::with_chain(AnvilConfig { gas_limit: 30_000_000, ..AnvilConfig::default() }).await else {
        return;
    };
    let config = stage.config().with("write", "gas = 14000000").with("retry", "max_attempts = 1");
    let home = WorkerHome::new(&config.with("chain", "refused_after = \"1s\"\nfinality = 0"));
    stage.topology(&home).await;
    // No block says it yet, so the worker cannot know.
    stage.anvil.call("evm_setBlockGasLimit", json!([rpc::hex(10_000_000)])).await.unwrap();
    stage.amqp.publish(QUEUE, with_id("greedy"), b"more gas than a block has").await;
    let _worker = home.start(BINARY);
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!(dead.routing_key, "rejected.refused_by_node");
    assert_eq!(dead.id(), "greedy");
    let status = stage.status(&home, "greedy").await;
    assert_eq!(status["transactions"][0]["state"], "cancelled", "{status}");
    stage.anvil.call("evm_setBlockGasLimit", json!([rpc::hex(60_000_000)])).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    stage.amqp.publish(QUEUE, with_id("plain"), b"fits").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.status(&home, "plain").await["state"], "final");
    let transactions = stage.transactions_of(0).await;
    let receivers: Vec<_> = transactions.iter().map(|(_, _, to)| to.to_lowercase()).collect();
    assert_eq!(receivers, [ACCOUNTS[0].0.to_lowercase(), SINK.to_owned()], "nonce 0 went to a transfer to itself");
}

#[tokio::test]
async fn calldata_that_the_fixed_gas_cannot_pay_for_is_a_dead_letter_before_it_is_signed() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("write", "gas = 21000").with("chain", "finality = 0"));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("greedy"), b"calldata takes more than 21000 gas").await;
    stage.amqp.publish(QUEUE, with_id("plain"), b"").await;
    let _worker = home.start(BINARY);
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.routing_key.as_str(), dead.id().as_str()), ("invalid.gas_too_low", "greedy"));
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await, [(0, "0x".to_owned(), SINK.to_owned())]);
}

/// Invariant 3; C15, C38
#[tokio::test]
async fn a_nonce_taken_by_another_program_is_given_up_at_finality_and_the_request_gets_a_new_one() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("retry", "max_attempts = 1"));
    stage.topology(&home).await;
    // So that there are final blocks from the start.
    stage.anvil.mine(5).await.unwrap();
    stage.amqp.publish(QUEUE, with_id("a"), b"mine").await;
    let worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    let_another_program_take_the_nonce(&stage, &worker).await;
    // The worker looks at the chain every 50 ms: it has seen the block, and it is not final.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let status = stage.status(&home, "a").await;
    assert_eq!(
        status["transactions"].as_array().map(Vec::len),
        Some(1),
        "below finality nothing is given up: {status}"
    );
    assert_eq!(status["transactions"][0]["state"], "live", "{status}");
    let status = mine_until_final(&stage, &home, "a").await;
    let states: Vec<_> = status["transactions"].as_array().unwrap().iter().map(|t| t["state"].clone()).collect();
    assert_eq!(states, ["displaced", "succeeded"], "{status}");
    assert_eq!(status["attempt"], 0, "no failure of the request");
    let transactions = stage.transactions_of(0).await;
    assert_eq!(transactions.len(), 2);
    assert_eq!(transactions[1], (1, calldata(b"mine"), SINK.to_owned()));
}

/// Invariant 3 and C27: a foreign transaction holds a nonce only for as long as its block stands.
#[tokio::test]
async fn a_nonce_that_a_reorg_gives_back_is_used_by_the_bytes_that_were_signed_for_it() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 5"));
    stage.topology(&home).await;
    stage.anvil.mine(3).await.unwrap();
    stage.amqp.publish(QUEUE, with_id("a"), b"mine").await;
    let worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    let_another_program_take_the_nonce(&stage, &worker).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    stage.anvil.reorg(1).await.unwrap();
    stage.anvil.drop_all().await.unwrap();
    let status = mine_until_final(&stage, &home, "a").await;
    assert_eq!(status["transactions"].as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(stage.transactions_of(0).await, [(0, calldata(b"mine"), SINK.to_owned())]);
}

/// C22
#[tokio::test]
async fn nothing_is_sent_to_another_chain() {
    let Some(stage) = Stage::with_chain(AnvilConfig { chain_id: 5, ..AnvilConfig::default() }).await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"wrong way").await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "serves chain 5, chain.id is 31337").await;
    assert!(worker.is_running());
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(0));
    assert_eq!(stage.depth(QUEUE).await, (1, 0), "deliveries wait at the broker");
}

/// C35
#[tokio::test]
async fn chains_without_a_base_fee_and_without_fees_take_legacy_transactions() {
    let old = AnvilConfig { extra_args: vec!["--hardfork".into(), "berlin".into()], ..AnvilConfig::default() };
    let free =
        AnvilConfig { base_fee: Some(0), extra_args: vec!["--gas-price".into(), "0".into()], ..AnvilConfig::default() };
    for (chain, mode) in [(old, "auto"), (free.clone(), "zero"), (free, "auto")] {
        let Some(stage) = Stage::with_chain(chain).await else { return };
        let home = WorkerHome::new(&stage.config().with("fees", format!("mode = {mode:?}")));
        stage.topology(&home).await;
        stage.amqp.publish(QUEUE, with_id("a"), b"legacy").await;
        let _worker = home.start(BINARY);
        stage.wait_nonce(0, 1).await;
        mine_until_final(&stage, &home, "a").await;
    }
}

/// Invariant 10, the other way: who wants an outage to count gets it counted.
#[tokio::test]
async fn with_the_retry_policy_an_outage_uses_attempts_and_says_so() {
    let Some(stage) = Stage::set().await else { return };
    let proxy = TcpProxy::start(stage.anvil.address()).await;
    let mut config = stage.config().with("outage", "policy = \"retry\"").with("chain", "timeout = \"500ms\"");
    config = config.with("retry", "max_attempts = 2\ninitial_delay = \"300ms\"");
    config.endpoint = proxy.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    proxy.set_mode(Mode::Refuse);
    let _worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("a"), b"nobody hears").await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!(dead.routing_key, "unavailable.node_unreachable");
    assert_eq!(dead.header("cw-attempt").as_deref(), Some("1"));
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(0));
}

/// C40: a delivery held for long goes back to the broker, as a copy that counts as no attempt.
#[tokio::test]
async fn a_delivery_held_too_long_is_parked_and_joins_its_request_again() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("broker", "max_hold = \"1s\"\npark_delay = \"300ms\""));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"patience").await;
    let _worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    let parks = async || {
        let status = stage.status(&home, "a").await;
        status["incidents"].as_array().into_iter().flatten().filter(|incident| incident["what"] == "parked").count()
    };
    wait_until("it is parked twice", LONG, async || parks().await >= 2).await;
    let status = mine_until_final(&stage, &home, "a").await;
    assert_eq!(status["attempt"], 0);
    stage.wait_empty(QUEUE).await;
    wait_until("the wait queue is empty", LONG, async || stage.depth("acme.writes.wait.300ms").await == (0, 0)).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}
