//! Blocks that go away although they counted as final, and nonces that nothing has any more.

use serde_json::{Value, json};

use crate::stage::{
    BINARY, DEAD, EVENTS, LONG, QUEUE, Stage, calldata, kinds_of, mine_until, mine_until_final, pool_holds, wait_log,
};
use crate::support::contracts::REVERTS_ON_FF;
use crate::support::{ACCOUNTS, Worker, WorkerHome, free_port, next_event, rpc, wait_until, with_id};

async fn publish(stage: &Stage, ids: &[&str]) {
    for id in ids {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
    }
}

/// Three requests, each in a block of its own, all final; then the last two blocks of theirs go away with what stands on
/// them, and no node has their transactions any more.
async fn with_two_lost_blocks(stage: &Stage, home: &WorkerHome) -> Worker {
    stage.anvil.set_auto_mine(false).await.unwrap();
    stage.anvil.mine(3).await.unwrap();
    let worker = home.start(BINARY);
    for id in ["a", "b", "c"] {
        publish(stage, &[id]).await;
        pool_holds(stage, 1).await;
        stage.anvil.mine(1).await.unwrap();
    }
    mine_until_final(stage, home, "c").await;
    let block = stage.status(home, "b").await["transactions"][0]["block_number"].as_u64().unwrap();
    let depth = stage.anvil.block_number().await.unwrap() + 1 - block;
    stage.anvil.reorg(depth).await.unwrap();
    stage.anvil.drop_all().await.unwrap();
    worker
}

async fn assert_final_again(stage: &Stage, home: &WorkerHome) {
    for id in ["b", "c"] {
        let what = format!("{id} is final again");
        mine_until(stage, &what, async || {
            stage.status(home, id).await["incidents"]
                .as_array()
                .is_some_and(|all| all.iter().any(|incident| incident["what"] == "ended"))
        })
        .await;
    }
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(nonce, data, _)| (nonce, data)).collect();
    let expected: Vec<_> =
        ["a", "b", "c"].iter().zip(0..).map(|(id, nonce)| (nonce, calldata(id.as_bytes()))).collect();
    assert_eq!(written, expected, "each once, at its own nonce");
}

/// C28
#[tokio::test]
async fn final_writes_that_a_deep_reorg_takes_away_are_told_and_written_again_with_the_same_bytes() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 1"));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = with_two_lost_blocks(&stage, &home).await;
    let before = stage.status(&home, "b").await;
    wait_log(&worker, "final blocks have left the chain").await;
    let told = async || home.command(BINARY, &["status", "b"]).await.1.contains("the chain has dropped its block");
    wait_until("status tells it", LONG, told).await;
    assert_final_again(&stage, &home).await;
    let after = stage.status(&home, "b").await;
    let hash = |status: &Value| status["transactions"][0]["final_hash"].clone();
    let block = |status: &Value| status["transactions"][0]["block_hash"].clone();
    assert_eq!((hash(&before), after["state"].as_str()), (hash(&after), Some("final")));
    assert_ne!(block(&before), block(&after));
    publish(&stage, &["d"]).await;
    mine_until_final(&stage, &home, "d").await;
    assert_eq!(stage.transactions_of(0).await.len(), 4);
    assert_eq!(worker.stop().await.code(), Some(0));
    let events = stage.kept_events().await;
    assert_eq!(kinds_of(&events, "a"), ["final"]);
    for id in ["b", "c"] {
        assert_eq!(kinds_of(&events, id), ["final", "reorged", "final"]);
        let of: Vec<_> = events.iter().filter(|(subject, ..)| subject == id).map(|(.., event)| event).collect();
        assert_ne!(of[0]["id"], of[2]["id"]);
        assert_eq!(of[1]["type"], "io.chainwriter.request.reorged.v1");
        let at = |index: usize| of[index]["data"]["transaction"]["block_hash"].clone();
        assert_eq!(at(0), at(1), "the old block");
        assert_ne!(at(0), at(2), "the new one");
    }
}

/// C28: the same while no worker runs.
#[tokio::test]
async fn a_deep_reorg_that_no_worker_saw_is_found_at_the_next_start() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 1"));
    stage.topology(&home).await;
    let mut events = stage.amqp.listen(EVENTS).await;
    stage.anvil.set_auto_mine(false).await.unwrap();
    stage.anvil.mine(3).await.unwrap();
    let mut worker = home.start(BINARY);
    for id in ["a", "b", "c"] {
        publish(&stage, &[id]).await;
        pool_holds(&stage, 1).await;
        stage.anvil.mine(1).await.unwrap();
    }
    mine_until_final(&stage, &home, "c").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let block = stage.status(&home, "b").await["transactions"][0]["block_number"].as_u64().unwrap();
    let depth = stage.anvil.block_number().await.unwrap() + 1 - block;
    stage.anvil.reorg(depth).await.unwrap();
    stage.anvil.drop_all().await.unwrap();
    let mut worker = home.start(BINARY);
    wait_log(&worker, "final blocks have left the chain").await;
    // Killed before they are final again: the next run still watches them.
    while next_event(&mut events, LONG).await.0 != "reorged" {}
    worker.kill().await;
    let _worker = home.start(BINARY);
    assert_final_again(&stage, &home).await;
}

/// C37: the foreign transaction below our nonces goes away with its block.
#[tokio::test]
async fn a_gap_that_a_foreign_transaction_leaves_is_filled_once_and_everything_is_written() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 8"));
    stage.topology(&home).await;
    stage.anvil.mine(3).await.unwrap();
    let foreign = json!([{ "from": ACCOUNTS[0].0, "to": ACCOUNTS[1].0, "value": "0x1", "gas": rpc::hex(21_000) }]);
    stage.anvil.call("eth_sendTransaction", foreign).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    publish(&stage, &["a", "b"]).await;
    let worker = home.start(BINARY);
    pool_holds(&stage, 2).await;
    stage.anvil.reorg(1).await.unwrap();
    stage.anvil.drop_all().await.unwrap();
    for id in ["a", "b"] {
        mine_until_final(&stage, &home, id).await;
    }
    assert_eq!(worker.log().matches("fills it").count(), 1, "once");
    let transactions = stage.transactions_of(0).await;
    let expected: Vec<_> = ["0x".to_owned(), calldata(b"a"), calldata(b"b")].into_iter().zip(0..).collect();
    let written: Vec<_> = transactions.iter().map(|(nonce, data, _)| (data.clone(), *nonce)).collect();
    assert_eq!(written, expected);
    assert_eq!(transactions[0].2.to_lowercase(), ACCOUNTS[0].0.to_lowercase(), "a transfer to itself");
}

/// C37: more nonces are missing than one start fills.
#[tokio::test]
async fn a_gap_that_is_too_long_is_filled_so_far_and_pauses_the_account() {
    const FOREIGN: u64 = 300;
    const FILLED: u64 = 256;
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let listen = format!("listen = \"127.0.0.1:{}\"", free_port());
    let home = WorkerHome::new(&stage.config().with("chain", "finality = 8").with("http", listen));
    stage.topology(&home).await;
    stage.anvil.mine(3).await.unwrap();
    let (from, to, gas) = (ACCOUNTS[0].0, ACCOUNTS[1].0, rpc::hex(21_000));
    let foreign = |nonce| json!([{ "from": from, "to": to, "value": "0x1", "gas": gas, "nonce": rpc::hex(nonce) }]);
    let sent = (0..FOREIGN).map(|nonce| ("eth_sendTransaction", foreign(nonce))).collect();
    let refused: Vec<_> = stage.anvil.batch(sent).await.unwrap().into_iter().filter_map(Result::err).collect();
    assert_eq!(refused, Vec::<String>::new());
    stage.anvil.mine(1).await.unwrap();
    publish(&stage, &["a"]).await;
    let mut worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    stage.anvil.reorg(1).await.unwrap();
    stage.anvil.drop_all().await.unwrap();
    let nonce = async || stage.anvil.nonce(ACCOUNTS[0].0, "latest").await.unwrap();
    mine_until(&stage, "it has filled what it may", async || nonce().await >= FILLED).await;
    wait_log(&worker, "pause.reason=gap_too_long").await;
    let (_, text) = home.command(BINARY, &["status"]).await;
    assert!(text.contains("gap_too_long"), "{text}");
    stage.anvil.mine(20).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    stage.anvil.mine(1).await.unwrap();
    assert_eq!(nonce().await, FILLED, "no more than that");
    assert_eq!(worker.log().matches("fills it").count() as u64, FILLED);
    assert_eq!(worker.stop().await.code(), Some(0));

    let mut worker = home.start(BINARY);
    mine_until_final(&stage, &home, "a").await;
    assert_eq!(worker.log().matches("fills it").count() as u64, FOREIGN - FILLED);
    let transactions = stage.transactions_of(0).await;
    let written: Vec<_> = transactions.iter().filter(|(_, data, _)| data != "0x").collect();
    assert_eq!((transactions.len() as u64, written), (FOREIGN + 1, vec![transactions.last().unwrap()]));
    assert_eq!(transactions.last().unwrap().1, calldata(b"a"));
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// C28, invariant 8: a dead letter's transaction is gone with its final block. Its bytes must not land any more, since an
/// operator may have sent the dead letter back; a filler takes the nonce.
#[tokio::test]
async fn a_revert_in_a_lost_block_is_never_sent_again_and_its_nonce_is_filled() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    stage.anvil.mine(3).await.unwrap();
    let config = stage.config_for(REVERTS_ON_FF).await.with("write", "gas = 200000").with("chain", "finality = 1");
    let home = WorkerHome::new(&config.with("retry", "max_attempts = 1"));
    stage.topology(&home).await;
    stage.keep_events().await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("bad"), b"\xffbad").await;
    stage.amqp.publish(QUEUE, with_id("good"), b"good").await;
    pool_holds(&stage, 2).await;
    stage.anvil.mine(1).await.unwrap();
    mine_until_final(&stage, &home, "good").await;
    assert_eq!(stage.amqp.wait_for(DEAD, LONG).await.id(), "bad");
    let block = stage.status(&home, "good").await["transactions"][0]["block_number"].as_u64().unwrap();
    let depth = stage.anvil.block_number().await.unwrap() + 1 - block;
    stage.anvil.reorg(depth).await.unwrap();
    stage.anvil.drop_all().await.unwrap();
    // It would succeed now.
    stage.anvil.set_code(crate::stage::CONTRACT, "0x00").await.unwrap();
    for id in ["bad", "good"] {
        mine_until(&stage, "both nonces have ended again", async || {
            stage.status(&home, id).await["incidents"]
                .as_array()
                .is_some_and(|all| all.iter().any(|incident| incident["what"] == "ended"))
        })
        .await;
    }
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, ["0x".to_owned(), calldata(b"good")], "a filler, and the bytes of the other");
    assert!(worker.log().contains("request.id=bad"), "the alarm names it");
    assert_eq!(worker.stop().await.code(), Some(0));
    let events = stage.kept_events().await;
    assert_eq!(kinds_of(&events, "bad"), ["dead"], "it is what it was told to be");
    assert_eq!(kinds_of(&events, "good"), ["final", "reorged", "final"]);
}
