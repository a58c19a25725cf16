//! `mode = "record"`: the contract is put into the chain, keeps each id once, and the chain alone proves what it keeps.

use serde_json::{Value, json};

use crate::stage::{BINARY, DEAD, QUEUE, Stage, kinds_of};
use crate::support::{ACCOUNTS, Reply, ScriptedNode, WorkerConfig, WorkerHome, with_id};

/// A configuration that records at a contract deployed for it, and the contract's address.
pub async fn with_contract(stage: &Stage, extra: &str) -> (WorkerConfig, String) {
    let home = WorkerHome::new(&stage.config());
    let (code, text) = home.command(BINARY, &["contract", "deploy"]).await;
    assert_eq!(code, 0, "{text}");
    let to = text.lines().find_map(|line| line.strip_prefix("to = ")).expect("it prints the lines to write");
    let contract = to.trim_matches('"').to_owned();
    let config = stage.config().with("write", format!("mode = \"record\"\nto = \"{contract}\"\n{extra}"));
    (config.with("chain", "finality = 1"), contract)
}

async fn proof(home: &WorkerHome, arguments: &[&str]) -> (i32, Value) {
    let (code, text) = home.command(BINARY, &[&["verify", "--json"], arguments].concat()).await;
    (code, serde_json::from_str(&text).unwrap_or(json!(text)))
}

/// The documented route, for a contract that is there.
fn documented_route(contract: &str) -> String {
    let records = include_str!("../../../docs/guides/records.md");
    let begin = records.find("[[route]]\n").expect("the page has the example") + "[[route]]\n".len();
    let example = &records[begin..];
    let example = &example[..example.find("```").unwrap()];
    example.replace("0x5fbdb2315678afecb367f032d93f642f64180aa3", contract)
}

/// As the page on records says.
#[tokio::test]
async fn documents_are_recorded_once_each_and_the_chain_proves_it() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (_, contract) = with_contract(&stage, "").await;
    let home = WorkerHome::new(&stage.config().with("route", documented_route(&contract)));
    let (code, text) = home.command(BINARY, &["contract", "verify", &contract]).await;
    assert!(code == 0 && text.contains("byte for byte") && text.contains("may record"), "{code} {text}");
    stage.topology(&home).await;
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(code == 0 && text.contains("every signer may"), "{code} {text}");
    let file = home.folder().join("a.pdf");
    std::fs::write(&file, b"a document").unwrap();
    let word = format!("0x{}", "ab".repeat(32));
    stage.amqp.publish(QUEUE, with_id("doc-1").with_type("document".into()), b"a document").await;
    stage.amqp.publish(QUEUE, with_id(&word).with_type("document".into()), b"another").await;
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written = stage.transactions_of(0).await;
    assert_eq!(written.len(), 3, "the contract, and a transaction for each");

    let path = file.to_str().unwrap();
    let (code, by_id) = proof(&home, &["doc-1", "--file", path]).await;
    assert_eq!((code, &by_id["is_final"], &by_id["is_content"]), (0, &json!(true), &json!(true)), "{by_id}");
    let (code, by_file) = proof(&home, &[path]).await;
    assert_eq!((code, &by_file), (0, &by_id), "the record is found by its content, too");
    assert_eq!(by_id["writer"], json!(ACCOUNTS[0].0.to_lowercase()));
    let (code, by_word) = proof(&home, &[&word]).await;
    assert_eq!((code, &by_word["record_id"]), (0, &json!(word)));
    let (code, text) = home.command(BINARY, &["verify", &word, "--file", path]).await;
    assert!(code == 2 && text.contains("with another content"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["verify", "doc-2"]).await;
    assert!(code == 1 && text.contains("no record in blocks 0 to"), "{code} {text}");
}

/// Exactly once holds although the journal is lost: what is there with the same content is final, and the event says who
/// wrote it; another content is a dead letter.
#[tokio::test]
async fn records_are_written_once_although_the_journal_is_lost() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (config, _) = with_contract(&stage, "body = true").await;
    let config = config.with("retry", "max_attempts = 2\ninitial_delay = \"200ms\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for id in ["a", "b", "c"] {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let before = stage.transactions_of(0).await;

    let home = stage.with_new_journal(&config).await;
    stage.keep_events().await;
    for (id, body) in [("a", "a"), ("b", "b"), ("c", "not c"), ("d", "d")] {
        stage.amqp.publish(QUEUE, with_id(id), body.as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), before.len() + 1, "only d is new");

    let events = stage.kept_events().await;
    for (id, kinds) in [("a", vec!["final"]), ("b", vec!["final"]), ("c", vec!["retry", "dead"]), ("d", vec!["final"])]
    {
        assert_eq!(kinds_of(&events, id), kinds, "{id}");
    }
    let of_a = &events.iter().find(|(id, ..)| id == "a").unwrap().2["data"];
    let (_, proof_of_a) = proof(&home, &["a"]).await;
    assert_eq!(of_a["already_recorded"], json!(true));
    assert_eq!(of_a["transaction"]["tx_hash"], proof_of_a["tx_hash"]);
    assert_eq!((&of_a["transaction"]["nonce"], &proof_of_a["has_body"]), (&json!(1), &json!(true)));
    let (_, told) = home.command(BINARY, &["status", "a"]).await;
    assert!(told.contains("a: final, its record was in the chain already"), "{told}");
    let letter = stage.amqp.take_all(DEAD).await.remove(0);
    assert_eq!((letter.id().as_str(), letter.routing_key.as_str()), ("c", "rejected.already_recorded"));
    let detail = letter.header("cw-error-detail").unwrap();
    assert!(detail.matches("0x").count() == 3, "the record and both contents: {detail}");
}

/// With a fixed gas nothing is simulated: the transaction reverts, and only then it shows that the record is there.
#[tokio::test]
async fn a_record_that_is_there_is_found_after_a_revert_too_and_on_nodes_that_limit_ranges() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (config, _) = with_contract(&stage, "gas = 100000").await;
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"a").await;
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));

    stage.anvil.mine(60).await.unwrap();
    let node = ScriptedNode::filtering(stage.anvil.address(), |method, params| async move {
        let block = |name: &str| {
            let text = params[0][name].as_str().unwrap_or("0x0").trim_start_matches("0x").to_owned();
            u64::from_str_radix(&text, 16).unwrap()
        };
        if method == "eth_getLogs" && block("toBlock") - block("fromBlock") >= 10 {
            return Reply::refusal("query exceeds max block range 10".to_owned());
        }
        Reply::Pass
    })
    .await;
    let config = WorkerConfig { endpoint: node.url(), ..config };
    let home = stage.with_new_journal(&config).await;
    stage.keep_events().await;
    stage.amqp.publish(QUEUE, with_id("a"), b"a").await;
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let events = stage.kept_events().await;
    assert_eq!(kinds_of(&events, "a"), ["final"]);
    assert_eq!(events[0].2["data"]["already_recorded"], json!(true));
    assert_eq!(stage.transactions_of(0).await.len(), 3, "the contract, the record, the revert");
    assert_eq!(proof(&home, &["a"]).await.0, 0);
}

#[tokio::test]
async fn no_contract_is_deployed_with_an_account_that_a_worker_has() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    crate::stage::wait_log(&worker, "the lane owns its account").await;
    let (code, text) = home.command(BINARY, &["contract", "deploy"]).await;
    assert!(code == 70 && text.contains("a worker works for 0xf39"), "{code} {text}");
    assert_eq!(worker.stop().await.code(), Some(0));
    let (code, text) = home.command(BINARY, &["contract", "deploy", "--writer", ACCOUNTS[2].0]).await;
    assert!(code == 0 && text.contains(&ACCOUNTS[2].0.to_lowercase()), "{code} {text}");
    // It goes on at the next nonce.
    stage.amqp.publish(QUEUE, with_id("next"), b"next").await;
    let _worker = home.start(BINARY);
    stage.wait_state(&home, "next", "final").await;
    let sink = "0x00000000000000000000000000000000000000aa";
    let (code, text) = home.command(BINARY, &["contract", "verify", sink]).await;
    assert!(code == 1 && text.contains("not the contract Records"), "{code} {text}");
}

/// A contract that another owner has: its owner decides who may record.
#[tokio::test]
async fn a_signer_that_may_not_record_is_told() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let (config, contract) = with_contract(&stage, "").await;
    let home = WorkerHome::new(&config.with("signer", format!("key = {:?}", ACCOUNTS[3].1)));
    let (code, text) = home.command(BINARY, &["contract", "verify", &contract]).await;
    assert!(code == 2 && text.contains("may not record"), "{code} {text}");
    stage.topology(&home).await;
    let (code, text) = home.command(BINARY, &["doctor"]).await;
    assert!(code == 69 && text.contains("calls setWriter(0x90f79bf6"), "{code} {text}");
}
