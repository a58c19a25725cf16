//! What nodes answer to a transaction, and what the worker makes of it. Where Anvil does not say such a thing, a filter does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chainwriter::testing::{ErrorTable, SendMeaning};
use serde_json::{Value, json};

use crate::stage::{
    BINARY, DEAD, LONG, QUEUE, SINK, Stage, calldata, mine_until, mine_until_final, pool_holds, wait_log,
};
use crate::support::contracts::OPENED_BY_ONE;
use crate::support::{
    ACCOUNTS, Anvil, AnvilConfig, Reply, RpcClient, ScriptedNode, Worker, WorkerConfig, WorkerHome, nonce_of, rpc,
    services_are_here, wait_until, with_id,
};

const GWEI: u64 = 1_000_000_000;

async fn publish(stage: &Stage, numbers: std::ops::Range<usize>) {
    for number in numbers {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), format!("body {number}").as_bytes()).await;
    }
}

async fn assert_written_once_in_order(stage: &Stage, count: usize) {
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let expected: Vec<_> = (0..count).map(|number| calldata(format!("body {number}").as_bytes())).collect();
    assert_eq!(written, expected);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}

async fn start(stage: &Stage, config: WorkerConfig, node: &ScriptedNode) -> (WorkerHome, Worker) {
    let home = WorkerHome::new(&WorkerConfig { endpoint: node.url(), ..config });
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    (home, worker)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// C13: every client's way to say that it has the bytes.
#[tokio::test]
async fn a_node_that_knows_the_bytes_already_has_them() {
    for words in ["already known", "Known transaction", "AlreadyKnown", "ALREADY_EXISTS: already known"] {
        let Some(stage) = Stage::with_blocks().await else { return };
        let anvil = stage.anvil.rpc();
        let node = ScriptedNode::filtering(stage.anvil.address(), move |method, params| async move {
            if method != "eth_sendRawTransaction" {
                return Reply::Pass;
            }
            let _ = anvil.call(&method, params).await;
            Reply::refusal(words.to_owned())
        })
        .await;
        let config = stage.config().with("chain", "refused_after = \"1s\"\nfinality = 1");
        let (_home, worker) = start(&stage, config, &node).await;
        publish(&stage, 0..3).await;
        stage.wait_empty(QUEUE).await;
        assert_written_once_in_order(&stage, 3).await;
        for complaint in ["unknown answer", "the node refuses", "the lane pauses", "another attempt"] {
            assert!(!worker.log().contains(complaint), "{words}: {}", worker.log());
        }
    }
}

/// C14: the answer to the first broadcast is lost and no receipt shows at first; the second broadcast hears that the nonce
/// is used, which says nothing about by whom.
#[tokio::test]
async fn nonce_too_low_after_our_own_attempt_landed_leads_to_its_hash() {
    let Some(stage) = Stage::set().await else { return };
    let anvil = stage.anvil.rpc();
    let too_low = Arc::new(AtomicBool::new(false));
    let said = Arc::clone(&too_low);
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, params| {
        let said = Arc::clone(&said);
        async move {
            match method.as_str() {
                "eth_sendRawTransaction" => match anvil.call(&method, params).await {
                    Ok(_) => Reply::refusal("internal error".to_owned()),
                    Err(_) => {
                        said.store(true, Ordering::Relaxed);
                        Reply::refusal("nonce too low".to_owned())
                    }
                },
                "eth_getBlockByNumber" if !said.load(Ordering::Relaxed) => {
                    let mut block = anvil.call(&method, params).await.unwrap_or_default();
                    if !block.is_null() {
                        block["transactions"] = json!([]);
                    }
                    Reply::Result(block)
                }
                "eth_getTransactionReceipt" if !said.load(Ordering::Relaxed) => Reply::Result(Value::Null),
                _ => Reply::Pass,
            }
        }
    })
    .await;
    let (home, _worker) = start(&stage, stage.config().with("chain", "finality = 1"), &node).await;
    publish(&stage, 0..1).await;
    wait_until("the node says that the nonce is used", LONG, async || too_low.load(Ordering::Relaxed)).await;
    let status = mine_until_final(&stage, &home, "m-0").await;
    assert_eq!(status["transactions"].as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(status["transactions"][0]["attempts"].as_array().map(Vec::len), Some(1), "{status}");
    assert_written_once_in_order(&stage, 1).await;
}

/// C16: a foreign transaction in the pool holds the nonce, at a price that the worker may not pay.
#[tokio::test]
async fn a_foreign_transaction_in_the_pool_makes_no_first_attempt_move_to_another_nonce() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    stage.anvil.mine(3).await.unwrap();
    let price = rpc::hex(100 * GWEI);
    let foreign = json!([{ "from": ACCOUNTS[0].0, "to": ACCOUNTS[1].0, "value": "0x1", "gas": rpc::hex(21_000),
        "maxFeePerGas": price, "maxPriorityFeePerGas": price }]);
    let home = WorkerHome::new(&stage.config().with("fees", "max_fee = \"3 gwei\""));
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    // What is in the pool at the start is waited for.
    wait_log(&worker, "the lane owns its account").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let foreign = stage.anvil.call("eth_sendTransaction", foreign).await.unwrap();
    publish(&stage, 0..1).await;
    wait_log(&worker, "pause.reason=nonce_held").await;
    // Two blocks could hide behind one look; the pool says what was sent.
    assert_eq!(stage.anvil.pool_size().await, Ok((1, 0)), "the foreign one alone");
    let status = stage.status(&home, "m-0").await;
    assert_eq!(status["transactions"].as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(status["transactions"][0]["nonce"], 0, "{status}");
    assert_eq!(status["transactions"][0]["attempts"].as_array().map(Vec::len), Some(1), "{status}");
    let log = worker.log();
    let said = log.lines().find(|line| line.contains("nonce_held")).unwrap_or_default();
    assert!(said.contains(foreign.as_str().unwrap()) && said.contains("fees.max_fee is"), "{said}");
    let status = mine_until_final(&stage, &home, "m-0").await;
    let states: Vec<_> = status["transactions"].as_array().unwrap().iter().map(|t| t["state"].clone()).collect();
    assert_eq!(states, ["displaced", "succeeded"], "{status}");
    assert_eq!(stage.transactions_of(0).await[1], (1, calldata(b"body 0"), SINK.to_owned()));
    assert_eq!(stage.transactions_of(0).await.len(), 2);
}

/// C17: the node takes five nonces beyond what is mined, and no more; later it takes more.
#[tokio::test]
async fn a_node_that_takes_few_nonces_ahead_gets_few_at_once_and_all_in_order() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let anvil = stage.anvil.rpc();
    let taken_ahead = Arc::new(AtomicU64::new(5));
    let limit = Arc::clone(&taken_ahead);
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, params| {
        let limit = Arc::clone(&limit);
        async move {
            if method != "eth_sendRawTransaction" {
                return Reply::Pass;
            }
            let mined = anvil.nonce(ACCOUNTS[0].0, "latest").await.unwrap_or(0);
            match nonce_of(&text(&params[0])) < mined + limit.load(Ordering::Relaxed) {
                true => Reply::Pass,
                false => Reply::refusal("Transaction nonce is too distant from current sender nonce".to_owned()),
            }
        }
    })
    .await;
    let config = stage.config().with("chain", "in_flight = 16\nfinality = 0").with("retry", "max_attempts = 1");
    let (_home, worker) = start(&stage, config, &node).await;
    wait_log(&worker, "deliveries flow").await;
    publish(&stage, 0..40).await;
    wait_log(&worker, "takes fewer transactions than chain.in_flight").await;
    mine_until(&stage, "half of them are in the chain", async || {
        // A block between two broadcasts may let in a nonce whose predecessor was refused just before.
        let (ready, behind) = stage.anvil.pool_size().await.unwrap();
        assert!(ready + behind <= 5, "{ready} in the pool, {behind} behind a gap");
        stage.anvil.nonce(ACCOUNTS[0].0, "latest").await.is_ok_and(|nonce| nonce >= 20)
    })
    .await;
    taken_ahead.store(1000, Ordering::Relaxed);
    publish(&stage, 40..60).await;
    let all = async || stage.anvil.nonce(ACCOUNTS[0].0, "latest").await == Ok(60);
    mine_until(&stage, "all are in the chain", all).await;
    mine_until(&stage, "more is tried", async || worker.log().contains("as many transactions as are wanted again"))
        .await;
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 60).await;
    assert_eq!(worker.log().matches("takes fewer transactions than chain.in_flight").count(), 1, "told once");
}

/// C23
#[tokio::test]
async fn a_head_that_stands_still_pauses_the_lane_until_the_next_block() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    // A node that refuses the second one: it would be cancelled soon.
    let refused = Arc::new(AtomicBool::new(true));
    let refuses = Arc::clone(&refused);
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, params| {
        let refuses = refuses.load(Ordering::Relaxed);
        async move {
            match method.as_str() {
                "eth_sendRawTransaction" if refuses && nonce_of(&text(&params[0])) == 1 => {
                    Reply::refusal("exceeds block gas limit".to_owned())
                }
                _ => Reply::Pass,
            }
        }
    })
    .await;
    let config = stage.config().with("chain", "max_head_age = \"2s\"\nrefused_after = \"3s\"\nfinality = 0");
    let config = config.with("retry", "max_attempts = 1").with("chain", "replace_after = \"1s\"");
    let (home, worker) = start(&stage, config, &node).await;
    publish(&stage, 0..2).await;
    wait_log(&worker, "head_stale").await;
    wait_until("deliveries are paused", LONG, async || stage.consumers().await == 0).await;
    publish(&stage, 2..4).await;
    // Longer than it takes to cancel or to replace.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(stage.depth(QUEUE).await.0, 2, "nothing new is taken on");
    assert_eq!(stage.anvil.pool_size().await, Ok((1, 0)));
    assert!(!worker.log().contains("another attempt"), "nothing is cancelled or replaced");
    for id in ["m-0", "m-1"] {
        assert_eq!(stage.status(&home, id).await["state"], "writing");
    }
    refused.store(false, Ordering::Relaxed);
    wait_until("the second one is taken after all", LONG, async || stage.anvil.pool_size().await == Ok((2, 0))).await;
    stage.anvil.mine(1).await.unwrap();
    wait_log(&worker, "the lane resumes").await;
    stage.anvil.set_auto_mine(true).await.unwrap();
    mine_until(&stage, "all are written", async || stage.status(&home, "m-3").await["state"] == "final").await;
    assert_written_once_in_order(&stage, 4).await;
}

/// C31: the second call runs only once the first is in the chain. Where the node can, it is run on top of the first, and both wait in
/// the pool; else it waits until the first is in a block. No try is used up.
#[tokio::test]
async fn a_call_that_needs_what_is_still_in_flight_runs_on_top_of_it_or_waits() {
    const SIMULATE: &str = "eth_simulateV1";
    for lacks in [false, true] {
        let Some(stage) = Stage::set().await else { return };
        stage.anvil.set_auto_mine(false).await.unwrap();
        let lacking: &[&str] = if lacks { &[SIMULATE] } else { &[] };
        let node = ScriptedNode::lacking(stage.anvil.address(), lacking).await;
        let mut config = stage.config_for(OPENED_BY_ONE).await.with("chain", "finality = 0");
        config.endpoint = node.url();
        let home = WorkerHome::new(&config.with("retry", "max_attempts = 1"));
        stage.topology(&home).await;
        stage.amqp.publish(QUEUE, with_id("opens"), &[1]).await;
        stage.amqp.publish(QUEUE, with_id("needs"), &[2]).await;
        let worker = home.start(BINARY);
        if lacks {
            wait_until("the node was asked for it", LONG, async || node.times(SIMULATE) > 0).await;
            stage.amqp.publish(QUEUE, with_id("other"), &[1]).await;
            pool_holds(&stage, 2).await;
            assert_eq!(stage.status(&home, "needs").await["state"], "accepted", "it waits, and another passes it");
            assert_eq!(node.times(SIMULATE), 1, "what a node lacks is not asked for again");
            stage.anvil.mine(1).await.unwrap();
            pool_holds(&stage, 1).await;
        } else {
            pool_holds(&stage, 2).await;
        }
        let status = mine_until_final(&stage, &home, "needs").await;
        assert_eq!(status["attempt"].as_u64(), Some(0), "{status}");
        assert!(!worker.log().contains("request failed"), "{}", worker.log());
        let written = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data);
        let expected: &[&str] = if lacks { &["0x01", "0x01", "0x02"] } else { &["0x01", "0x02"] };
        assert_eq!(written.collect::<Vec<_>>(), expected);
        assert_eq!(stage.depth(DEAD).await, (0, 0));
    }
}

/// C33: the price is above the cap and the pool has dropped the transaction. Nothing may be signed for more, so the very
/// same bytes go out until the price has come down.
#[tokio::test]
async fn an_evicted_transaction_is_sent_again_with_its_bytes_while_the_cap_allows_no_other() {
    let Some(stage) = Stage::with_chain(AnvilConfig { base_fee: Some(GWEI), ..AnvilConfig::default() }).await else {
        return;
    };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let sent = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sent);
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, params| {
        if method == "eth_sendRawTransaction" {
            seen.lock().unwrap().push(text(&params[0]));
        }
        async move { Reply::Pass }
    })
    .await;
    let config = stage.config().with("fees", "max_fee = \"2 gwei\"");
    let (home, worker) =
        start(&stage, config.with("chain", "resend_after = \"1s\"\nreplace_after = \"1s\"\nfinality = 1"), &node).await;
    publish(&stage, 0..1).await;
    pool_holds(&stage, 1).await;
    stage.anvil.set_next_base_fee(50 * GWEI).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    stage.anvil.drop_all().await.unwrap();
    let before = sent.lock().unwrap().len();
    wait_until("it is sent again", LONG, async || sent.lock().unwrap().len() >= before + 2).await;
    publish(&stage, 1..2).await;
    wait_log(&worker, "pause.reason=price_stuck").await;
    let log = worker.log();
    let said = log.lines().find(|line| line.contains("price_stuck")).unwrap_or_default();
    assert!(said.contains("m-0") && said.contains("fees.max_fee is"), "{said}");
    stage.anvil.set_next_base_fee(GWEI).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    let status = mine_until_final(&stage, &home, "m-0").await;
    assert_eq!(status["transactions"][0]["attempts"].as_array().map(Vec::len), Some(1), "{status}");
    mine_until_final(&stage, &home, "m-1").await;
    let of_the_first: std::collections::BTreeSet<_> =
        sent.lock().unwrap().iter().filter(|raw| nonce_of(raw) == 0).cloned().collect();
    assert_eq!(of_the_first.len(), 1, "the same bytes each time");
    assert_written_once_in_order(&stage, 2).await;
}

/// C36
#[tokio::test]
async fn an_account_that_the_chain_does_not_let_send_pauses_and_makes_no_dead_letters() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let permitted = Arc::new(AtomicBool::new(false));
    let may_send = Arc::clone(&permitted);
    let node = ScriptedNode::filtering(stage.anvil.address(), move |method, _| {
        let may_send = may_send.load(Ordering::Relaxed);
        async move {
            match method.as_str() {
                "eth_sendRawTransaction" if !may_send => {
                    Reply::refusal("Sender account not authorized to send transactions".to_owned())
                }
                _ => Reply::Pass,
            }
        }
    })
    .await;
    let config = stage.config().with("retry", "max_attempts = 1").with("chain", "finality = 1\nrefused_after = \"1s\"");
    let (home, worker) = start(&stage, config, &node).await;
    publish(&stage, 0..20).await;
    wait_log(&worker, "not_permitted").await;
    // One cancellation shows that it is the account, and the write goes out again.
    wait_log(&worker, "what was signed before goes out again").await;
    assert_eq!(stage.depth(DEAD).await, (0, 0));
    permitted.store(true, Ordering::Relaxed);
    stage.wait_empty(QUEUE).await;
    assert_written_once_in_order(&stage, 20).await;
    assert_eq!(stage.status(&home, "m-19").await["attempt"], 0, "no failure of the requests");
}

/// Signed by the node itself, with these fields in place of the usual ones; null takes one away.
async fn signed(node: &RpcClient, fields: Value) -> String {
    let mut transaction = json!({
        "from": ACCOUNTS[0].0, "to": ACCOUNTS[1].0, "value": "0x1", "gas": rpc::hex(21_000), "nonce": "0x0",
        "maxFeePerGas": rpc::hex(3 * GWEI), "maxPriorityFeePerGas": rpc::hex(GWEI),
    });
    for (name, value) in fields.as_object().unwrap() {
        transaction[name] = value.clone();
    }
    transaction.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    node.call("eth_signTransaction", json!([transaction])).await.unwrap().as_str().unwrap().to_owned()
}

async fn meaning(node: &RpcClient, raw: &str) -> (SendMeaning, String) {
    match node.call("eth_sendRawTransaction", json!([raw])).await {
        Ok(hash) => panic!("{raw} was taken: {hash}"),
        Err(text) => (ErrorTable::default().meaning_of(&text), text),
    }
}

#[tokio::test]
async fn what_the_node_answers_to_bad_transactions_is_understood() {
    use SendMeaning as M;
    if !services_are_here() {
        return;
    }
    let anvil = Anvil::start(AnvilConfig::default()).await;
    let other = Anvil::start(AnvilConfig { chain_id: 5, ..AnvilConfig::default() }).await;
    let old = AnvilConfig { extra_args: vec!["--hardfork".into(), "berlin".into()], ..AnvilConfig::default() };
    let old = Anvil::start(old).await;
    anvil.set_auto_mine(false).await.unwrap();
    let first = signed(&anvil, json!({})).await;
    anvil.call("eth_sendRawTransaction", json!([first])).await.unwrap();
    let mut cases = vec![
        ("the same again", first.clone(), M::AlreadyKnown),
        ("another at its nonce", signed(&anvil, json!({ "value": "0x2" })).await, M::ReplacementUnderpriced),
        ("from another chain", signed(&other, json!({ "nonce": "0x1" })).await, M::WrongChain),
        ("no transaction", "0x1234".to_owned(), M::Refused),
        ("nothing", "0x".to_owned(), M::Refused),
        ("half of one", first[..first.len() - 10].to_owned(), M::Refused),
    ];
    let ten_million = rpc::hex(10_000_000);
    let next = [
        ("no funds", json!({ "value": rpc::hex(10_u128.pow(24)) }), M::InsufficientFunds),
        ("too little gas", json!({ "gas": rpc::hex(20_000) }), M::Refused),
        ("more gas than a block has", json!({ "gas": rpc::hex(GWEI) }), M::Refused),
        ("below the base fee", json!({ "maxFeePerGas": "0x1", "maxPriorityFeePerGas": "0x1" }), M::Underpriced),
        ("a tip above the cap", json!({ "maxPriorityFeePerGas": rpc::hex(4 * GWEI) }), M::Refused),
        (
            "below the base fee, legacy",
            json!({ "maxFeePerGas": null, "maxPriorityFeePerGas": null, "gasPrice": "0x1" }),
            M::Underpriced,
        ),
        (
            "too much code (EIP-3860)",
            json!({ "to": null, "data": format!("0x{}", "00".repeat(49_153)), "gas": ten_million }),
            M::Refused,
        ),
    ];
    for (what, mut fields, expected) in next {
        fields["nonce"] = json!("0x1");
        cases.push((what, signed(&anvil, fields).await, expected));
    }
    for (what, raw, expected) in cases {
        let (found, text) = meaning(&anvil, &raw).await;
        assert_eq!(found, expected, "{what}: {text}");
    }
    anvil.mine(1).await.unwrap();
    for raw in [first.clone(), signed(&anvil, json!({ "value": "0x3" })).await] {
        let (found, text) = meaning(&anvil, &raw).await;
        assert_eq!(found, M::NonceTooLow, "{text}");
    }
    let (found, text) = meaning(&old, &first).await;
    assert_eq!(found, M::Refused, "fees of a later hard fork: {text}");
}
