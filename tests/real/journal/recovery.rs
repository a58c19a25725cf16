//! A journal that is lost: the chain says what was written, and an operator decides about what may be.

use crate::journal::databases::shared_journal;
use crate::journal::instances::publish;
use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, pool_holds, wait_log};
use crate::support::contracts::BY_NUMBER;
use crate::support::{WorkerConfig, WorkerHome, wait_until, with_id};

/// Bodies on the chain, in the order of their nonces.
async fn written(stage: &Stage) -> Vec<String> {
    stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect()
}

fn bodies(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    let mut all: Vec<_> = numbers.into_iter().map(|number| calldata(format!("message {number}").as_bytes())).collect();
    all.sort();
    all
}

fn sorted(mut all: Vec<String>) -> Vec<String> {
    all.sort();
    all
}

/// Ten are written and none of them acked when worker and journal are lost; five more were never taken in.
async fn lose_the_journal(stage: Stage, before: WorkerConfig, after: WorkerConfig) {
    stage.anvil.set_auto_mine(false).await.unwrap();
    // Enough that blocks without a transaction are passed over.
    stage.anvil.mine(80).await.unwrap();
    let home = WorkerHome::new(&before.with("chain", "finality = 1"));
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    publish(&stage, 0..10).await;
    wait_until("all are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((10, 0))).await;
    worker.kill().await;

    let home = WorkerHome::new(&after.with("chain", "finality = 1"));
    // Nothing is decided while something may still land.
    let waits = home.begin(BINARY, &["recover", "--from-block", "0"]);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(written(&stage).await.len(), 0);
    stage.anvil.mine(2).await.unwrap();
    let told = waits.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success() && text.contains("waiting for 10 transactions to become final"), "{text}");
    assert!(text.contains("10 transactions in blocks 0 to") && text.contains("with 10 writes"), "{text}");

    publish(&stage, 10..15).await;
    stage.anvil.set_auto_mine(true).await.unwrap();
    stage.anvil.set_interval_mining(1).await.unwrap();
    let mut worker = home.start(BINARY);
    wait_log(&worker, "a recovery is on").await;
    wait_until("all have ended", LONG, async || stage.depth(QUEUE).await == (0, 0) && stage.depth(DEAD).await.0 == 10)
        .await;
    assert_eq!(sorted(written(&stage).await), bodies(0..15));

    let (code, text) = home.command(BINARY, &["dead", "show", "m-3"]).await;
    assert!(code == 0 && text.contains("maybe_written") && text.contains("has the same calldata"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["dead", "replay", "m-3", "--yes"]).await;
    assert!(code == 2 && text.contains("the chain may have its write"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["dead", "replay", "m-3", "--yes", "--even-forgotten", "--wait"]).await;
    assert!(code == 0, "{code} {text}");
    let mut expected = bodies(0..15);
    expected.extend(bodies([3]));
    expected.sort();
    assert_eq!(sorted(written(&stage).await), expected, "the operator wanted it once more");

    let (code, text) = home.command(BINARY, &["recover", "--from-block", "0"]).await;
    assert!(code == 70 && text.contains("works with this journal; stop it first"), "{code} {text}");
    let (code, text) = home.command(BINARY, &["recover", "--end"]).await;
    assert!(code == 0 && text.contains("has ended"), "{code} {text}");
    wait_log(&worker, "the recovery has ended").await;
    // The same body under another id is a request of its own again.
    stage.amqp.publish(QUEUE, crate::support::with_id("again-4"), b"message 4").await;
    stage.wait_empty(QUEUE).await;
    expected.extend(bodies([4]));
    expected.sort();
    wait_until("it is written", LONG, async || sorted(written(&stage).await) == expected).await;
    assert_eq!(worker.stop().await.code(), Some(0));

    // Another recovery compares with the same writes, and with none that the journal has a row for.
    let (code, text) = home.command(BINARY, &["recover", "--from-block", "0"]).await;
    assert!(code == 0 && text.contains("17 transactions in blocks 0 to"), "{code} {text}");
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("again-5"), b"message 5").await;
    stage.amqp.publish(QUEUE, with_id("again-12"), b"message 12").await;
    let both = async || stage.depth(QUEUE).await == (0, 0) && stage.depth(DEAD).await.0 == 10;
    wait_until("one is a dead letter beside the nine that are left", LONG, both).await;
    expected.extend(bodies([12]));
    expected.sort();
    assert_eq!(sorted(written(&stage).await), expected);
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// C10
#[tokio::test]
async fn what_a_lost_journal_may_have_written_waits_for_an_operator() {
    let Some(stage) = Stage::set().await else { return };
    let config = stage.config();
    lose_the_journal(stage, config.clone(), config).await;
}

/// C10
#[tokio::test]
async fn what_a_lost_database_may_have_written_waits_for_an_operator() {
    let (Some(stage), Some(before)) = (Stage::set().await, shared_journal().await) else { return };
    let Some(after) = shared_journal().await else { return };
    let (before, after) = (stage.config().with("journal", before), stage.config().with("journal", after));
    lose_the_journal(stage, before, after).await;
}

/// C10: no block takes what the lost journal has sent.
#[tokio::test]
async fn what_waits_in_pools_for_ever_is_replaced_when_the_operator_says_so() {
    let Some(stage) = Stage::set().await else { return };
    let config = stage.config().with("chain", "finality = 1\nreplace_after = \"1s\"");
    stage.anvil.set_auto_mine(false).await.unwrap();
    stage.anvil.mine(3).await.unwrap();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    publish(&stage, 0..3).await;
    pool_holds(&stage, 3).await;
    worker.kill().await;

    let home = WorkerHome::new(&config);
    let recovers = home.begin(BINARY, &["recover", "--from-block", "0", "--cancel-pooled"]);
    let is_replaced = async || {
        let pool = stage.anvil.rpc().call("txpool_content", serde_json::json!([])).await.unwrap();
        let pending = pool["pending"].as_object().into_iter().flatten().flat_map(|(_, of)| of.as_object()).flatten();
        pending.filter(|(_, transaction)| transaction["input"] == "0x").count() == 3
    };
    wait_until("all are replaced", LONG, is_replaced).await;
    stage.anvil.mine(2).await.unwrap();
    let said = recovers.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && text.contains("3 transactions in the pools replaced"), "{text}");
    assert!(text.contains("3 transactions in blocks 0 to") && text.contains("with 0 writes"), "{text}");

    stage.anvil.set_auto_mine(true).await.unwrap();
    stage.anvil.set_interval_mining(1).await.unwrap();
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    let once: Vec<_> = ["0x"; 3].map(str::to_owned).into_iter().chain(bodies(0..3)).collect();
    wait_until("each is written once", LONG, async || sorted(written(&stage).await) == once).await;
    assert_eq!(stage.depth(DEAD).await.0, 0);
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// C10: each message of a batch is found by itself.
#[tokio::test]
async fn a_batch_of_a_lost_journal_is_read_apart() {
    let Some(stage) = Stage::set().await else { return };
    let config = stage.config_for(BY_NUMBER).await;
    let config = config
        .with("write", "mode = \"call\"\nfunction = \"keep(uint256,uint256)\"\narguments = [0, \"json:/number\"]")
        .with("write", "batch_function = \"keepMany(uint256[],uint256[])\"")
        .with("batch", "max_requests = 10\nmax_wait = \"1m\"")
        .with("chain", "finality = 1");
    let numbers = async |numbers: std::ops::Range<u64>| {
        for number in numbers {
            let body = serde_json::json!({ "number": number }).to_string();
            stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), body.as_bytes()).await;
        }
    };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    numbers(0..10).await;
    let mut worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    worker.kill().await;
    stage.anvil.mine(3).await.unwrap();

    let home = WorkerHome::new(&config);
    let (code, text) = home.command(BINARY, &["recover", "--from-block", "0"]).await;
    assert!(code == 0 && text.contains("1 transaction in blocks 0 to") && text.contains("with 10 writes"), "{text}");
    numbers(10..20).await;
    stage.anvil.set_interval_mining(1).await.unwrap();
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.depth(DEAD).await.0, 10, "what was written once waits for an operator");
    assert_eq!(stage.transactions_of(0).await.len(), 2, "and the others share a transaction");
}
