//! Requests that may stop all others of their account: they ask for more than there is, or no node simulates them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::stage::{BINARY, DEAD, LONG, QUEUE, SINK, Stage, calldata, wait_log};
use crate::support::contracts::BY_NUMBER;
use crate::support::{ACCOUNTS, Reply, ScriptedNode, Taken, Worker, WorkerHome, free_port, wait_until, with_id};

const NEIGHBOURS: usize = 20;
const ETHER: u128 = 10_u128.pow(18);
const POISON: &str = "poison";

/// A script for a node: what it answers to a call or a batch.
type Script = fn(&Value) -> Reply;

fn properties(id: &str) -> lapin::BasicProperties {
    with_id(id).with_type("transaction".into())
}

/// Publishes neighbours with a poisonous request in their middle.
async fn publish(stage: &Stage, body: impl Fn(&str, bool) -> String) {
    for number in 0..NEIGHBOURS {
        let id = format!("n-{number}");
        stage.amqp.publish(QUEUE, properties(&id), body(&id, false).as_bytes()).await;
        if number == NEIGHBOURS / 2 {
            stage.amqp.publish(QUEUE, properties(POISON), body(POISON, true).as_bytes()).await;
        }
    }
}

/// Waits until the neighbours are in the chain, each once, and the poison is a dead letter, and returns that.
async fn outcome(stage: &Stage, worker: &mut Worker) -> Taken {
    stage.wait_nonce(0, NEIGHBOURS as u64).await;
    let letter = stage.amqp.wait_for(DEAD, LONG).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let mut written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    let mut expected: Vec<_> = (0..NEIGHBOURS).map(|number| calldata(format!("n-{number}").as_bytes())).collect();
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
    assert_eq!((letter.id().as_str(), stage.depth(DEAD).await), (POISON, (0, 0)), "nobody else is dead");
    assert!(!worker.log().contains("the lane pauses"), "{}", worker.log());
    letter
}

/// C34: one by Anvil, whose estimate passes, and one by Geth, whose estimate says so.
#[tokio::test]
async fn a_request_that_asks_for_more_than_the_account_has_fails_alone() {
    let like_geth: Script = |call| {
        let value = call["params"][0]["value"].as_str().unwrap_or("0x0").trim_start_matches("0x");
        let is_estimate = call["method"] == "eth_estimateGas";
        let asks_much = u128::from_str_radix(value, 16).is_ok_and(|value| value > ETHER);
        if is_estimate && asks_much { Reply::refusal("insufficient funds for transfer") } else { Reply::Pass }
    };
    for script in [(|_| Reply::Pass) as Script, like_geth] {
        let Some(stage) = Stage::with_blocks().await else { return };
        stage.anvil.set_balance(ACCOUNTS[0].0, ETHER).await.unwrap();
        let node = ScriptedNode::start(Some(stage.anvil.address()), script).await;
        let route = "name = \"transactions\"\ntype = \"transaction\"\nmode = \"transaction\"";
        let mut config = stage.config().with("route", route).with("retry", "max_attempts = 1");
        config = config.with("policy.allow", format!("to = {SINK:?}")).with("chain", "finality = 1");
        config.endpoint = node.url();
        let home = WorkerHome::new(&config);
        stage.topology(&home).await;
        publish(&stage, |id, is_poison| {
            let value = if is_poison { 5 * ETHER } else { 0 };
            json!({ "to": SINK, "data": calldata(id.as_bytes()), "value": value.to_string() }).to_string()
        })
        .await;
        let mut worker = home.start(BINARY);
        let letter = outcome(&stage, &mut worker).await;
        assert_eq!(letter.routing_key, "rejected.insufficient_funds");
        let detail = letter.header("cw-error-detail").unwrap();
        assert!(detail.contains("the account has ") && detail.contains(" wei"), "{detail}");
    }
}

/// C30: a simulation that never comes to an end, and texts that say nothing about the request.
#[tokio::test]
async fn a_call_that_no_node_simulates_fails_alone() {
    let hangs: Script = |request| {
        let text = request.to_string();
        let is_it = text.contains("eth_estimateGas") && text.contains(&calldata(POISON.as_bytes()));
        if is_it { Reply::Silence } else { Reply::Pass }
    };
    fn says(call: &Value, code: i64, text: &str) -> Reply {
        let is_it = call["method"] == "eth_estimateGas" && call.to_string().contains(&calldata(POISON.as_bytes()));
        if is_it { Reply::error(code, text) } else { Reply::Pass }
    }
    let scripts: [(&str, Script); 4] = [
        ("does not answer", hangs),
        ("Internal error", |call| says(call, -32603, "Internal error")),
        ("execution aborted", |call| says(call, -32000, "execution aborted (timeout = 5s)")),
        ("Timeout expired", |call| says(call, -32002, "Timeout expired")),
    ];
    for (words, script) in scripts {
        let Some(stage) = Stage::with_blocks().await else { return };
        let node = ScriptedNode::start(Some(stage.anvil.address()), script).await;
        let listen = format!("127.0.0.1:{}", free_port());
        let mut config = stage.config().with("retry", "max_attempts = 1").with("http", format!("listen = {listen:?}"));
        config = config.with("chain", "finality = 1");
        config.endpoint = node.url();
        let home = WorkerHome::new(&config);
        stage.topology(&home).await;
        publish(&stage, |id, _| id.to_owned()).await;
        let mut worker = home.start(BINARY);
        // The neighbours wait for no verdict about it.
        wait_log(&worker, "does not simulate this one").await;
        let named = async |arguments: &[&str]| {
            let (_, text) = home.command(BINARY, arguments).await;
            text.lines().any(|line| line.contains(POISON) && line.contains(words))
        };
        let mut seen = BTreeMap::new();
        wait_until("status and doctor name it", LONG, async || {
            for command in ["status", "doctor"] {
                let is_named = seen.get(command).copied().unwrap_or(false) || named(&[command]).await;
                seen.insert(command, is_named);
            }
            seen.values().all(|is_named| *is_named) || stage.depth(DEAD).await != (0, 0)
        })
        .await;
        assert!(seen["status"], "{words}: {seen:?}");
        let letter = outcome(&stage, &mut worker).await;
        assert_eq!(letter.routing_key, "rejected.simulation_failed", "{words}");
        let detail = letter.header("cw-error-detail").unwrap();
        assert!(detail.contains(words), "{detail}");
    }
}

/// C30 in a batch: that is halved until the one that no node simulates stands alone.
#[tokio::test]
async fn a_batch_with_a_call_that_no_node_simulates_is_halved_until_that_fails_alone() {
    const COUNT: u64 = 16;
    const POISONED: u64 = 6;
    // Numbers that are found in calldata.
    fn word(number: u64) -> String {
        format!("{:064x}", 0xc0_ffee_0000 + number)
    }
    let Some(stage) = Stage::with_blocks().await else { return };
    let node = ScriptedNode::start(Some(stage.anvil.address()), |call| {
        let is_it = call["method"] == "eth_estimateGas" && call.to_string().contains(&word(POISONED));
        if is_it { Reply::error(-32603, "Internal error") } else { Reply::Pass }
    })
    .await;
    let mut config = stage
        .config_for(BY_NUMBER)
        .await
        .with("write", "mode = \"call\"\nfunction = \"keep(uint256,uint256)\"\narguments = [0, \"json:/number\"]")
        .with("write", "batch_function = \"keepMany(uint256[],uint256[])\"")
        .with("batch", "max_requests = 16\nmax_wait = \"2s\"")
        .with("retry", "max_attempts = 1")
        .with("chain", "finality = 1");
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for number in 0..COUNT {
        let body = json!({ "number": 0xc0_ffee_0000_u64 + number }).to_string();
        stage.amqp.publish(QUEUE, with_id(&format!("n-{number}")), body.as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    let letter = stage.amqp.wait_for(DEAD, LONG).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!((letter.id(), letter.routing_key.as_str()), ("n-6".to_owned(), "rejected.simulation_failed"));
    assert_eq!(stage.depth(DEAD).await, (0, 0), "nobody else is dead");
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    for number in 0..COUNT {
        let times = written.iter().filter(|data| data.contains(&word(number))).count();
        assert_eq!(times, usize::from(number != POISONED), "{number} in {written:?}");
    }
    assert!(written.len() <= 8, "{} transactions: the others still share some", written.len());
    assert!(!worker.log().contains("the lane pauses"), "{}", worker.log());
}
