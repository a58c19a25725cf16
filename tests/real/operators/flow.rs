//! Operating the flow: hold and release, bump, events once more, an account that retires, a route's share.

use serde_json::Value;

use crate::journal::databases::shared_journal;
use crate::stage::{
    BINARY, DEAD, LONG, QUEUE, Stage, calldata, kinds_of, mine_until, mine_until_final, pool_holds, wait_log,
    wait_log_times,
};
use crate::support::{ACCOUNTS, AnvilConfig, WorkerConfig, WorkerHome, wait_until, with_id};

const GWEI: u64 = 1_000_000_000;

async fn run(home: &WorkerHome, arguments: &[&str]) -> (i32, String) {
    home.command(BINARY, arguments).await
}

async fn log(home: &WorkerHome) -> Vec<Value> {
    let (code, text) = run(home, &["log", "--json"]).await;
    assert_eq!(code, 0, "{text}");
    serde_json::from_str::<Value>(&text).unwrap()["entries"].as_array().unwrap().clone()
}

fn of_kind(id: &str, kind: &str) -> lapin::BasicProperties {
    with_id(id).with_type(kind.into())
}

/// Two routes: messages of type "slow", and the rest.
fn two_routes(config: WorkerConfig) -> WorkerConfig {
    config.with("route", "name = \"slow\"\ntype = \"slow\"").with("route", "name = \"rest\"")
}

#[tokio::test]
async fn a_hold_stops_new_writes_of_both_instances_and_nothing_that_is_signed() {
    let Some(stage) = Stage::set().await else { return };
    let config = stage.config();
    hold_two(stage, config).await;
}

#[tokio::test]
async fn a_hold_stops_new_writes_of_both_instances_on_postgres_too() {
    let (Some(stage), Some(journal)) = (Stage::set().await, shared_journal().await) else { return };
    let config = stage.config().with("journal", journal);
    hold_two(stage, config).await;
}

/// Each instance owns an account.
async fn hold_two(stage: Stage, config: WorkerConfig) {
    stage.anvil.set_auto_mine(false).await.unwrap();
    let signer = |number: usize| format!("key = {:?}", ACCOUNTS[number].1);
    let home =
        WorkerHome::new(&config.with("signer", signer(0)).with("signer", signer(1)).with("chain", "finality = 1"));
    stage.topology(&home).await;
    let (first, second) = (home.start(BINARY), home.start(BINARY));
    for worker in [&first, &second] {
        wait_log(worker, "the lane owns its account").await;
    }
    for number in 0..4 {
        stage.amqp.publish(QUEUE, with_id(&format!("before-{number}")), format!("before {number}").as_bytes()).await;
    }
    pool_holds(&stage, 4).await;
    let (code, text) = run(&home, &["hold", "--reason", "an upgrade"]).await;
    assert!(code == 0 && text.contains("everything: held"), "{text}");
    for number in 0..4 {
        stage.amqp.publish(QUEUE, with_id(&format!("during-{number}")), format!("during {number}").as_bytes()).await;
    }
    for worker in [&first, &second] {
        wait_log(worker, "an operator holds this").await;
    }
    // What is signed goes on to its end.
    for number in 0..4 {
        mine_until_final(&stage, &home, &format!("before-{number}")).await;
    }
    assert_eq!(stage.anvil.pool_size().await, Ok((0, 0)));
    let (_, text) = run(&home, &["status"]).await;
    assert!(text.contains("everything is held since") && text.contains("an upgrade"), "{text}");
    assert!(!text.contains("paused"), "a hold is no pause: {text}");
    let (_, text) = run(&home, &["doctor"]).await;
    assert!(text.contains("warn  hold: everything is held"), "{text}");
    let (code, text) = run(&home, &["hold", "--reason", "again"]).await;
    assert!(code == 0 && text.contains("an upgrade") && text.contains("nothing was changed"), "{text}");
    // A hold survives the workers.
    let (mut first, mut second) = (first, second);
    assert_eq!((first.stop().await.code(), second.stop().await.code()), (Some(0), Some(0)));
    let (first, second) = (home.start(BINARY), home.start(BINARY));
    for worker in [&first, &second] {
        wait_log(worker, "an operator holds this").await;
    }
    wait_log(&first, "the lane owns its account").await;
    stage.anvil.mine(2).await.unwrap();
    assert_eq!(stage.anvil.pool_size().await, Ok((0, 0)));
    let (code, text) = run(&home, &["release", "--reason", "done"]).await;
    assert!(code == 0 && text.contains("everything: released"), "{text}");
    pool_holds(&stage, 4).await;
    for number in 0..4 {
        mine_until_final(&stage, &home, &format!("during-{number}")).await;
    }
    for worker in [&first, &second] {
        wait_log(worker, "an operator has released this").await;
    }
    assert_eq!(run(&home, &["release", "--reason", "done"]).await.0, 1, "nothing is held");
    let written = [stage.transactions_of(0).await, stage.transactions_of(1).await].concat();
    let mut written: Vec<_> = written.into_iter().map(|(_, data, _)| data).collect();
    written.sort();
    let all = (0..4).flat_map(|number| [format!("before {number}"), format!("during {number}")]);
    let mut all: Vec<_> = all.map(|body| calldata(body.as_bytes())).collect();
    all.sort();
    assert_eq!(written, all, "each once");
    let entries = log(&home).await;
    let acts: Vec<_> =
        entries.iter().map(|entry| (entry["what"].as_str().unwrap(), entry["reason"].as_str().unwrap())).collect();
    assert_eq!(acts, [("hold", "an upgrade"), ("release", "done")]);
}

#[tokio::test]
async fn a_held_route_stops_no_other_messages_of_its_account() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&two_routes(stage.config()));
    stage.topology(&home).await;
    let _worker = home.start(BINARY);
    let (code, text) = run(&home, &["hold", "--route", "none", "--reason", "x"]).await;
    assert!(code == 64 && text.contains("slow, rest"), "{text}");
    wait_until("the journal is there", LONG, async || run(&home, &["log"]).await.0 == 0).await;
    let (code, text) = run(&home, &["hold", "--route", "slow", "--reason", "x"]).await;
    assert_eq!(code, 0, "{text}");
    for (id, kind) in [("a", "slow"), ("b", "other"), ("c", "slow"), ("d", "other")] {
        stage.amqp.publish(QUEUE, of_kind(id, kind), id.as_bytes()).await;
    }
    stage.wait_state(&home, "d", "final").await;
    stage.wait_state(&home, "b", "final").await;
    for id in ["a", "c"] {
        let status = stage.wait_state(&home, id, "accepted").await;
        assert_eq!((&status["route"], &status["holds"][0]["route"]), (&"slow".into(), &"slow".into()), "{status}");
    }
    let (_, text) = run(&home, &["status", "a"]).await;
    assert!(text.contains("accepted, an operator holds it"), "{text}");
    run(&home, &["release", "--route", "slow", "--reason", "x"]).await;
    stage.wait_state(&home, "a", "final").await;
    stage.wait_state(&home, "c", "final").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(stage.transactions_of(0).await.len(), 4);
}

/// The base fee has risen above the cap, and blocks pass the transaction over.
#[tokio::test]
async fn a_bump_raises_the_price_once_within_the_limit_that_is_named() {
    let Some(stage) = Stage::with_chain(AnvilConfig { base_fee: Some(GWEI), ..AnvilConfig::default() }).await else {
        return;
    };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let config =
        stage.config().with("fees", "max_fee = \"10 gwei\"").with("chain", "finality = 1\nreplace_after = \"1h\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("stuck"), b"stuck").await;
    let worker = home.start(BINARY);
    pool_holds(&stage, 1).await;
    stage.anvil.set_next_base_fee(50 * GWEI).await.unwrap();
    stage.anvil.mine(1).await.unwrap();
    wait_log(&worker, "the lane pauses").await;
    let attempts = async || {
        let status = stage.status(&home, "stuck").await;
        status["transactions"][0]["attempts"].as_array().unwrap().clone()
    };
    // Those up to the cap, which the worker has made by itself.
    let before = attempts().await.len();
    let (code, text) = run(&home, &["bump", "stuck"]).await;
    assert!(code == 2 && text.contains("fees.max_fee is 10 gwei"), "{code} {text}");
    let (code, text) = run(&home, &["bump", "stuck", "--max-fee", "20 gwei"]).await;
    assert!(code == 2 && text.contains("--max-fee is 20 gwei"), "{code} {text}");
    assert_eq!(attempts().await.len(), before);
    let (code, text) = run(&home, &["bump", "stuck", "--max-fee", "90 gwei", "--reason", "the auction"]).await;
    assert!(code == 0 && text.contains("it offers up to"), "{code} {text}");
    wait_log(&worker, "an operator wants a higher price").await;
    let status = mine_until_final(&stage, &home, "stuck").await;
    let attempts = attempts().await;
    assert_eq!(attempts.len(), before + 1, "once: {status}");
    assert_eq!(status["transactions"][0]["final_hash"], attempts[before]["hash"]);
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    let (code, text) = run(&home, &["bump", "stuck"]).await;
    assert!(code == 2 && text.contains("it is final"), "{code} {text}");
    assert_eq!(run(&home, &["bump", "unknown"]).await.0, 1);
    let entries = log(&home).await;
    let last = entries.last().unwrap();
    assert_eq!(
        (&last["what"], &last["reason"], &last["request"]),
        (&"bump".into(), &"the auction".into(), &"stuck".into())
    );
    assert!(last["detail"].as_str().unwrap().contains("90 gwei"), "{last}");
}

#[tokio::test]
async fn published_events_go_out_once_more_under_the_same_ids() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.keep_events().await;
    for id in ["a", "b"] {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    for id in ["a", "b"] {
        stage.wait_state(&home, id, "final").await;
    }
    stage.wait_empty(QUEUE).await;
    let kept = || async {
        let (_, text) = run(&home, &["events", "replay", "--since", "1h", "--dry-run"]).await;
        text.contains("2 events would be published again")
    };
    wait_until("both are published", LONG, kept).await;
    let first = stage.kept_events().await;
    assert_eq!(first.len(), 2);
    let (code, text) = run(&home, &["events", "replay", "a", "--reason", "lost"]).await;
    assert!(code == 0 && text.contains("a: 1 event published again: final"), "{text}");
    let (code, text) = run(&home, &["events", "replay", "nobody"]).await;
    assert!(code == 1 && text.contains("the journal does not know it"), "{text}");
    let (code, text) = run(&home, &["events", "replay", "--since", "1h"]).await;
    assert!(code == 0 && text.contains("2 events published again"), "{text}");
    assert!(text.contains("not in the journal: what was published before"), "{text}");
    let mut again = Vec::new();
    wait_until("they are published", LONG, async || {
        again.extend(stage.kept_events().await);
        again.len() == 3
    })
    .await;
    assert_eq!((kinds_of(&again, "a"), kinds_of(&again, "b")), (vec!["final", "final"], vec!["final"]));
    for (id, _, document) in &again {
        let (_, _, before) = first.iter().find(|(subject, ..)| subject == id).unwrap();
        assert_eq!(document, before, "the same document, id and all");
    }
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(log(&home).await.len(), 2);
}

#[tokio::test]
async fn an_account_that_retires_finishes_what_it_has_and_says_when_it_is_empty() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let signer = |number: usize| format!("key = {:?}", ACCOUNTS[number].1);
    let old = stage.config().with("chain", "finality = 1");
    let home = WorkerHome::new(&old.clone().with("signer", signer(0)));
    stage.topology(&home).await;
    for number in 0..3 {
        stage.amqp.publish(QUEUE, with_id(&format!("old-{number}")), format!("old {number}").as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    pool_holds(&stage, 3).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    home.configure(&old.with("signer", format!("{}\nretire = true", signer(0))).with("signer", signer(1)));
    let worker = home.start(BINARY);
    wait_log_times(&worker, "the lane owns its account", 2).await;
    for number in 0..3 {
        stage.amqp.publish(QUEUE, with_id(&format!("new-{number}")), format!("new {number}").as_bytes()).await;
    }
    pool_holds(&stage, 6).await;
    let (_, text) = run(&home, &["doctor"]).await;
    assert!(text.contains("it retires: 3"), "{text}");
    for id in ["old-0", "old-1", "old-2", "new-0", "new-1", "new-2"] {
        mine_until_final(&stage, &home, id).await;
    }
    let of =
        async |account| stage.transactions_of(account).await.into_iter().map(|(_, data, _)| data).collect::<Vec<_>>();
    let expected =
        |name: &str| (0..3).map(|number| calldata(format!("{name} {number}").as_bytes())).collect::<Vec<_>>();
    assert_eq!((of(0).await, of(1).await), (expected("old"), expected("new")));
    mine_until(&stage, "it is empty", async || worker.log().contains("the account has retired: nothing is left")).await;
    let (_, text) = run(&home, &["doctor"]).await;
    assert!(text.contains("it has retired: nothing is left"), "{text}");
}

#[tokio::test]
async fn a_noisy_route_leaves_room_for_the_others() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let config = stage.config().with("worker", "max_open = 20").with("broker", "park_delay = \"1s\"");
    let config = config
        .with("route", "name = \"noisy\"\ntype = \"noisy\"\nmax_open = 5")
        .with("route", "name = \"rest\"")
        .with("chain", "finality = 0");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for number in 0..40 {
        stage.amqp.publish(QUEUE, of_kind(&format!("noisy-{number}"), "noisy"), b"noise").await;
    }
    for number in 0..5 {
        stage.amqp.publish(QUEUE, with_id(&format!("rest-{number}")), b"rest").await;
    }
    let _worker = home.start(BINARY);
    for number in 0..5 {
        stage.wait_state(&home, &format!("rest-{number}"), "writing").await;
    }
    let (pooled, _) = stage.anvil.pool_size().await.unwrap();
    assert!((10..=15).contains(&pooled), "{pooled}: five of the noisy ones, or a few more");
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.wait_nonce(0, 45).await;
    wait_until("none waits any more", LONG, async || stage.depth(QUEUE).await == (0, 0)).await;
    assert_eq!(stage.transactions_of(0).await.len(), 45, "none is lost, and none is written twice");
    let status = stage.wait_state(&home, "noisy-39", "final").await;
    assert_eq!(status["attempt"], 0, "no try was counted: {status}");
}

/// Routes, delays, and a file with a fault, while the worker runs.
#[tokio::test]
async fn a_reload_takes_over_routes_and_delays_and_a_fault_changes_nothing() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let base = stage.config();
    let home = WorkerHome::new(&base);
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("a"), b"a").await;
    stage.wait_state(&home, "a", "final").await;
    home.configure(
        &base.clone().with("route", "name = \"only\"\ntype = \"x\"").with("retry", "initial_delay = \"700ms\""),
    );
    worker.signal("HUP");
    wait_log(&worker, "key=\"route[1].type\"").await;
    wait_log(&worker, "key=\"retry.initial_delay\"").await;
    assert!(
        stage.rabbit.queue(&stage.vhost, "acme.writes.wait.700ms").await.unwrap().is_some(),
        "its wait queue is made"
    );
    stage.amqp.publish(QUEUE, with_id("b"), b"b").await;
    let dead = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((dead.routing_key.as_str(), dead.id().as_str()), ("invalid.no_route", "b"));
    stage.amqp.publish(QUEUE, of_kind("c", "x"), b"c").await;
    let status = stage.wait_state(&home, "c", "final").await;
    assert_eq!(status["route"], "only");
    home.configure(&base.clone().with("route", "name = \"only\"\nmode = \"wrong\""));
    worker.signal("HUP");
    wait_log(&worker, "the configuration has a fault").await;
    stage.amqp.publish(QUEUE, of_kind("d", "x"), b"d").await;
    // For the commands that ask about it.
    home.configure(&base);
    stage.wait_state(&home, "d", "final").await;
    stage.wait_empty(QUEUE).await;
}
