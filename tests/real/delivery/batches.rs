//! `[batch]`: requests that share a transaction, and what each keeps of its own.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::chain::records::with_contract;
use crate::stage::{BINARY, CONTRACT, DEAD, LONG, QUEUE, Stage, calldata, kinds_of, mine_until, pool_holds, wait_log};
use crate::support::contracts::BY_NUMBER;
use crate::support::rpc::hex;
use crate::support::{ACCOUNTS, AnvilConfig, WorkerConfig, WorkerHome, wait_until, with_id};

/// `[batch]` as the page on batches has it.
fn documented_batch() -> &'static str {
    let page = include_str!("../../../docs/guides/batches.md");
    let begin = page.find("\n[batch]\n").expect("the page has the section") + "\n[batch]\n".len();
    page[begin..].split("```").next().unwrap()
}

/// An id that stands for itself in the contract.
fn word(number: usize) -> String {
    format!("0x{:064x}", number + 1)
}

/// The first four bytes of a call.
async fn selector(stage: &Stage, signature: &str) -> String {
    let hash = stage.anvil.call("web3_sha3", json!([calldata(signature.as_bytes())])).await.unwrap();
    hash.as_str().unwrap()[..10].to_owned()
}

async fn publish(stage: &Stage, ids: impl Iterator<Item = String>) {
    for id in ids {
        let body = json!({ "sensor": id, "celsius": 21.5 }).to_string();
        stage.amqp.publish(QUEUE, with_id(&id), body.as_bytes()).await;
    }
}

/// The ids in the contract's log.
async fn records(stage: &Stage, contract: &str) -> Vec<String> {
    let query = json!([{ "address": contract, "fromBlock": "0x0", "toBlock": "latest" }]);
    let logs = stage.anvil.call("eth_getLogs", query).await.unwrap();
    let first_topic = |log: &Value| log["topics"].get(1).and_then(Value::as_str).unwrap_or_default().to_owned();
    // Its first owner comes from nobody, and other entries are about accounts.
    let mut ids: Vec<_> = logs.as_array().unwrap().iter().map(first_topic).collect();
    ids.retain(|id| (word(0)..=word(0xffff)).contains(id));
    ids.sort();
    ids
}

async fn stop_when_empty(stage: &Stage, home: &WorkerHome) {
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0), "{}", worker.log());
}

#[tokio::test]
async fn sensor_readings_share_transactions_as_documented() {
    const READINGS: usize = 120;
    let Some(stage) = Stage::with_blocks().await else { return };
    let (config, contract) = with_contract(&stage, "body = true").await;
    let home = WorkerHome::new(&config.with("batch", documented_batch()));
    stage.topology(&home).await;
    stage.keep_events().await;
    let before = stage.transactions_of(0).await.len();
    publish(&stage, (0..READINGS).map(word)).await;
    stop_when_empty(&stage, &home).await;

    assert_eq!(records(&stage, &contract).await, (0..READINGS).map(word).collect::<Vec<_>>(), "each once");
    let transactions = stage.transactions_of(0).await.len() - before;
    assert!(transactions <= READINGS / 10, "{transactions} transactions");
    let events = stage.kept_events().await;
    let mut places = 0;
    for number in 0..READINGS {
        assert_eq!(kinds_of(&events, &word(number)), ["final"]);
        let event = &events.iter().find(|(id, ..)| *id == word(number)).unwrap().2["data"];
        places += usize::from(event["batch"]["index"].as_u64() < event["batch"]["size"].as_u64());
    }
    assert!(places >= READINGS - transactions, "{places} events name their place in a batch");
    let (code, proof) = home.command(BINARY, &["verify", "--json", &word(7)]).await;
    let proof: Value = serde_json::from_str(&proof).unwrap();
    assert_eq!((code, &proof["is_final"]), (0, &json!(true)), "the chain proves each by itself: {proof}");
}

#[tokio::test]
async fn one_that_cannot_run_does_not_hurt_those_beside_it() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (config, contract) = with_contract(&stage, "").await;
    let config = config.with("retry", "max_attempts = 1").with("batch", "max_requests = 50\nmax_wait = \"2s\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id(&word(13)), b"another reading").await;
    stop_when_empty(&stage, &home).await;
    let before = stage.transactions_of(0).await.len();

    // With a journal that does not know of it.
    let home = stage.with_new_journal(&config).await;
    publish(&stage, (0..30).map(word)).await;
    stop_when_empty(&stage, &home).await;
    let dead = stage.amqp.take_all(DEAD).await;
    let told: Vec<_> = dead.iter().map(|letter| (letter.id(), letter.routing_key.as_str())).collect();
    assert_eq!(told, [(word(13), "rejected.already_recorded")]);
    assert_eq!(records(&stage, &contract).await, (0..30).map(word).collect::<Vec<_>>());
    let transactions = stage.transactions_of(0).await.len() - before;
    assert!(transactions <= 12, "{transactions} transactions: the others still share some");
    let status = stage.status(&home, &word(12)).await;
    assert_eq!((&status["state"], status["incidents"].as_array().map(Vec::len)), (&json!("final"), Some(0)));
}

/// Two kinds take turns: where they have an order only neighbours share a transaction.
#[tokio::test]
async fn what_has_an_order_is_not_overtaken_for_the_sake_of_a_batch() {
    let Some(stage) = Stage::set().await else { return };
    let (_, records_at) = with_contract(&stage, "").await;
    stage.anvil.set_code(CONTRACT, BY_NUMBER).await.unwrap();
    let before = stage.transactions_of(0).await.len();
    let numbers = format!(
        "type = \"number\"\nmode = \"call\"\nto = \"{CONTRACT}\"\nfunction = \"keep(uint256,uint256)\"\n\
         arguments = [0, \"json:/number\"]\nbatch_function = \"keepMany(uint256[],uint256[])\""
    );
    let config = stage
        .config()
        .with("route", format!("type = \"record\"\nmode = \"record\"\nto = \"{records_at}\""))
        .with("route", numbers)
        .with("request", "order_by = \"header:customer\"")
        .with("batch", "max_requests = 10\nmax_wait = \"2s\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for (number, kind) in ["record", "number", "number", "record", "number", "number"].into_iter().enumerate() {
        let mut headers = FieldTable::default();
        headers.insert("customer".into(), AMQPValue::LongString("one".into()));
        let properties = with_id(&word(number)).with_type(kind.into()).with_headers(headers);
        stage.amqp.publish(QUEUE, properties, json!({ "number": number }).to_string().as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_nonce(0, before as u64 + 4).await;
    mine_until(&stage, "all are final", async || stage.depth(QUEUE).await == (0, 0)).await;
    assert_eq!(worker.stop().await.code(), Some(0), "{}", worker.log());
    let called = stage.transactions_of(0).await.into_iter().skip(before).map(|(_, _, to)| to);
    let expected = [records_at.as_str(), CONTRACT, &records_at, CONTRACT];
    assert_eq!(called.collect::<Vec<_>>(), expected, "two pairs of neighbours, and each record alone");
}

/// In the pool: all but the contract's owner's deeds wait for a block.
async fn in_one_transaction(stage: &Stage, extra: &str) -> (WorkerHome, String) {
    let (config, contract) = with_contract(stage, "").await;
    let config = config.with("batch", "max_requests = 10\nmax_wait = \"1m\"").with("retry", "max_attempts = 1");
    let config = if extra.is_empty() { config } else { WorkerConfig::with(config, "chain", extra) };
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    (home, contract)
}

#[tokio::test]
async fn a_batch_that_fails_on_the_chain_is_taken_apart() {
    let Some(stage) = Stage::set().await else { return };
    let (home, contract) = in_one_transaction(&stage, "").await;
    let rival = ACCOUNTS[1].0;
    let send = async |from: &str, data: String, tip: u64| {
        let (max, tip) = (hex(tip + 5_000_000_000), hex(tip));
        let transaction = json!([{
            "from": from, "to": contract, "data": data, "gas": "0x30000",
            "maxFeePerGas": max, "maxPriorityFeePerGas": tip,
        }]);
        stage.anvil.call("eth_sendTransaction", transaction).await.unwrap();
    };
    let (set_writer, record) =
        (selector(&stage, "setWriter(address,bool)").await, selector(&stage, "record(bytes32,bytes32)").await);
    send(ACCOUNTS[0].0, format!("{set_writer}{:0>64}{:064x}", rival[2..].to_lowercase(), 1), 1).await;
    stage.anvil.set_auto_mine(false).await.unwrap();
    publish(&stage, (0..10).map(word)).await;
    let mut worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    // A better price: it comes first in the block.
    send(rival, format!("{record}{}{}", &word(4)[2..], &word(99)[2..]), 90_000_000_000).await;
    pool_holds(&stage, 2).await;
    mine_until(&stage, "nine are final and one is dead", async || {
        let mut ended = 0;
        for number in 0..10 {
            let state = stage.status(&home, &word(number)).await["state"].clone();
            ended += usize::from(state == if number == 4 { "dead" } else { "final" });
        }
        ended == 10
    })
    .await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0), "{}", worker.log());
    assert_eq!(records(&stage, &contract).await, (0..10).map(word).collect::<Vec<_>>(), "each once");
    let dead = stage.amqp.take_all(DEAD).await;
    let told: Vec<_> = dead.iter().map(|letter| (letter.id(), letter.routing_key.as_str())).collect();
    assert_eq!(told, [(word(4), "rejected.already_recorded")]);
    let status = stage.status(&home, &word(5)).await;
    assert_eq!(status["transactions"][0]["batch"], json!({ "index": 5, "size": 10 }));
    assert_eq!(status["incidents"][0]["what"], json!("isolated"));
    assert_eq!(status["transactions"][1]["batch"], Value::Null);
}

#[tokio::test]
async fn a_worker_that_is_killed_finds_its_batch_again() {
    let Some(stage) = Stage::with_chain(AnvilConfig::default()).await else { return };
    // A soon replacement: the calldata of the batch is signed again by the second worker.
    let (home, contract) = in_one_transaction(&stage, "replace_after = \"3s\"").await;
    let before = stage.transactions_of(0).await.len();
    stage.anvil.set_auto_mine(false).await.unwrap();
    publish(&stage, (0..10).map(word)).await;
    let mut worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    worker.kill().await;
    stage.anvil.drop_all().await.unwrap();
    let (code, told) = home.command(BINARY, &["cancel", &word(3)]).await;
    assert!(code == 0 && told.contains("it shares a transaction with others"), "{code} {told}");
    let (_, told) = home.command(BINARY, &["status", &word(3)]).await;
    assert!(told.contains("not final yet, as 4 of 10 in it"), "{told}");
    let mut worker = home.start(BINARY);
    wait_log(&worker, "the lane owns its account").await;
    pool_holds(&stage, 1).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    mine_until(&stage, "all are final", async || stage.depth(QUEUE).await == (0, 0)).await;
    wait_until("they are final", LONG, async || stage.status(&home, &word(9)).await["state"] == "final").await;
    assert_eq!(worker.stop().await.code(), Some(0), "{}", worker.log());
    assert_eq!(records(&stage, &contract).await, (0..10).map(word).collect::<Vec<_>>(), "each once");
    assert_eq!(stage.transactions_of(0).await.len() - before, 1);
}
