//! Signers that are servers: Anvil has the keys, and something between it and the worker fails.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata};
use crate::support::{ACCOUNTS, Mode, Reply, ScriptedNode, TcpProxy, WorkerConfig, WorkerHome, wait_until, with_id};

/// An object with the bytes, in place of the bytes.
const AS_CLEF: &str = "as Clef answers";

fn signed_by(stage: &Stage, url: &str, account: usize) -> WorkerConfig {
    let lines = format!("url = {url:?}\naddress = {:?}\ntimeout = \"1s\"", ACCOUNTS[account].0);
    stage.config().with("signer", lines).with("chain", "finality = 1")
}

async fn publish(stage: &Stage, id: &str) {
    stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
}

async fn assert_written_once(stage: &Stage, ids: &[&str]) {
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let expected: Vec<_> = ids.iter().map(|id| calldata(id.as_bytes())).collect();
    assert_eq!(written, expected);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}

/// Both kinds of transactions are asked for, and what the server answers is what the chain takes.
#[tokio::test]
async fn a_server_that_has_the_key_signs() {
    for mode in ["eip1559", "legacy"] {
        let Some(stage) = Stage::with_blocks().await else { return };
        let home = WorkerHome::new(&signed_by(&stage, &stage.anvil.url(), 0).with("fees", format!("mode = {mode:?}")));
        stage.topology(&home).await;
        let ids: Vec<_> = (0..100).map(|number| format!("{mode}-{number}")).collect();
        for id in &ids {
            publish(&stage, id).await;
        }
        let mut worker = home.start(BINARY);
        stage.wait_empty(QUEUE).await;
        assert_written_once(&stage, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert_eq!(worker.stop().await.code(), Some(0));
    }
}

/// C54: it is away, cut off, slow. Nothing is signed, no nonce is used up, and it goes on by itself.
#[tokio::test]
async fn while_the_server_is_away_or_slow_requests_wait() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let way = TcpProxy::start(stage.anvil.address()).await;
    let home = WorkerHome::new(&signed_by(&stage, &way.url(), 0));
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    let away = [
        (Mode::Refuse, "refused"),
        (Mode::Swallow, "swallowed"),
        (Mode::DropAnswers, "unanswered"),
        (Mode::ResetAfterRequest, "reset"),
        (Mode::HttpAnswer { status: 503, body: String::new(), retry_after: None }, "unavailable"),
        (Mode::HttpAnswer { status: 200, body: "<html>".to_owned(), retry_after: None }, "nonsense"),
    ];
    for (count, (mode, id)) in away.iter().enumerate() {
        way.set_mode(mode.clone());
        way.cut_all();
        publish(&stage, id).await;
        let pauses = || worker.log().matches("the signer for").count();
        let before = pauses();
        wait_until("the lane pauses for the signer", LONG, async || pauses() > before).await;
        assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(count as u64), "{id}");
        way.set_mode(Mode::Pass);
        way.cut_all();
        stage.wait_nonce(0, count as u64 + 1).await;
    }
    stage.wait_empty(QUEUE).await;
    assert_written_once(&stage, &away.map(|(_, id)| id)).await;
}

/// C54: it answers with another transaction, with another key, or with what is none. None of it is journalled or sent.
#[tokio::test]
async fn an_answer_that_is_not_what_was_asked_for_is_sent_nowhere() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let wrong = Arc::new(Mutex::new(""));
    let (anvil, does) = (stage.anvil.rpc(), Arc::clone(&wrong));
    let server = ScriptedNode::filtering(stage.anvil.address(), move |method, mut params| {
        let wrong = *does.lock().unwrap();
        async move {
            if method != "eth_signTransaction" || wrong.is_empty() {
                return Reply::Pass;
            }
            match wrong {
                "is signed by" => params[0]["from"] = json!(ACCOUNTS[1].0),
                "its nonce" => params[0]["nonce"] = json!("0x7"),
                "its receiver" => params[0]["to"] = json!(ACCOUNTS[2].0),
                "its calldata" => params[0]["data"] = json!("0xc0ffee"),
                "no bytes" => return Reply::Result(json!({"tx": {}})),
                "no transaction" => return Reply::Result(json!("0x00")),
                "it refuses: locked" => return Reply::refusal("locked".to_owned()),
                _ => {}
            }
            match anvil.call(&method, params).await {
                Ok(raw) if wrong == AS_CLEF => Reply::Result(json!({"raw": raw, "tx": {}})),
                Ok(raw) => Reply::Result(raw),
                Err(error) => Reply::refusal(error),
            }
        }
    })
    .await;
    let home = WorkerHome::new(&signed_by(&stage, &server.url(), 0));
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    let problems = [
        "is signed by",
        "its nonce",
        "its receiver",
        "its calldata",
        "no bytes",
        "no transaction",
        "it refuses: locked",
    ];
    for (count, problem) in problems.iter().enumerate() {
        *wrong.lock().unwrap() = problem;
        publish(&stage, problem).await;
        let told = || worker.log().lines().filter(|line| line.contains("signer") && line.contains(problem)).count();
        wait_until(problem, LONG, async || told() > 0).await;
        assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(count as u64), "{problem}");
        assert_eq!(stage.status(&home, problem).await["state"], "accepted", "{problem}: nothing is journalled");
        *wrong.lock().unwrap() = "";
        stage.wait_nonce(0, count as u64 + 1).await;
    }
    *wrong.lock().unwrap() = AS_CLEF;
    publish(&stage, AS_CLEF).await;
    stage.wait_nonce(0, problems.len() as u64 + 1).await;
    stage.wait_empty(QUEUE).await;
    assert_written_once(&stage, &[&problems[..], &[AS_CLEF]].concat()).await;
    assert_eq!(stage.anvil.nonce(ACCOUNTS[1].0, "latest").await, Ok(0), "the other account sent nothing");
}

#[tokio::test]
async fn check_tells_whether_the_server_has_the_key() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&signed_by(&stage, &stage.anvil.url(), 0));
    stage.topology(&home).await;
    let (code, text) = home.command(BINARY, &["check", "--connect"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("has the key of 0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"), "{text}");
    let mut config = stage.config();
    config.extra.push(("signer", format!("url = {:?}\naddress = \"0x{}\"", stage.anvil.url(), "ab".repeat(20))));
    home.configure(&config);
    let (code, text) = home.command(BINARY, &["check", "--connect"]).await;
    assert_ne!(code, 0, "{text}");
    assert!(text.contains(&format!("has no key of 0x{}; it has 10 keys: 0xf39fd6e51aad88", "ab".repeat(20))), "{text}");
    for (lines, problem) in [
        ("url = \"ftp://a\"\naddress = \"0x0000000000000000000000000000000000000001\"", "signer[1].url: is no http"),
        ("url = \"http://a\"", "signer[1].address: is not set"),
        ("url = \"http://a\"\naddress = \"me\"", "signer[1].address: is \"me\""),
        ("url = \"http://a\"\nkey = \"0x1\"", "signer[1].url: is set beside key"),
    ] {
        home.configure(&stage.config().with("signer", lines));
        let (code, text) = home.command(BINARY, &["check"]).await;
        assert_ne!(code, 0, "{text}");
        assert!(text.contains(problem), "{lines}: {text}");
    }
}

fn has_checksum(address: &Value) -> bool {
    address.as_str().is_some_and(|text| text != text.to_lowercase())
}

/// A server that answers as Clef 1.16.9 does: it has no `eth_signTransaction`, refuses an address without its checksum as it does by
/// default, and answers with an object.
#[tokio::test]
async fn clef_signs_and_is_found_out_or_named() {
    for kind in ["", "kind = \"clef\""] {
        let Some(stage) = Stage::with_blocks().await else { return };
        let anvil = stage.anvil.rpc();
        let clef = ScriptedNode::filtering(stage.anvil.address(), move |method, params| async move {
            match method.as_str() {
                "account_signTransaction" if !has_checksum(&params[0]["to"]) => {
                    Reply::refusal("Invalid checksum on recipient address".to_owned())
                }
                "account_signTransaction" => match anvil.call("eth_signTransaction", params.clone()).await {
                    Ok(raw) => Reply::Result(json!({"raw": raw, "tx": params[0]})),
                    Err(error) => Reply::refusal(error),
                },
                "account_list" => Reply::Result(json!([ACCOUNTS[0].0])),
                other => Reply::error(-32601, &format!("the method {other} does not exist/is not available")),
            }
        })
        .await;
        let lines = format!("url = {:?}\naddress = {:?}\ntimeout = \"5s\"\n{kind}", clef.url(), ACCOUNTS[0].0);
        let to = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed".to_owned();
        let config = WorkerConfig { to, ..stage.config() }.with("signer", lines).with("chain", "finality = 1");
        let home = WorkerHome::new(&config);
        stage.topology(&home).await;
        let (code, text) = home.command(BINARY, &["check", "--connect"]).await;
        assert!(code == 0 && text.contains("has the key of 0xf39f"), "{code} {text}");
        let ids: Vec<_> = (0..50).map(|number| format!("m-{number}")).collect();
        for id in &ids {
            publish(&stage, id).await;
        }
        let mut worker = home.start(BINARY);
        stage.wait_empty(QUEUE).await;
        assert_written_once(&stage, &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert!(!worker.log().contains("the lane pauses"), "{}", worker.log());
        let tried = clef.times("eth_signTransaction");
        assert_eq!(tried == 0, !kind.is_empty(), "{tried}");
        assert_eq!(worker.stop().await.code(), Some(0));
    }
}
