//! `[policy]`: what is not permitted is a dead letter before anything is signed, and a day's sum holds back.

use serde_json::json;

use crate::stage::{BINARY, DEAD, LONG, QUEUE, SINK, Stage, wait_log};
use crate::support::contracts::TOKEN;
use crate::support::{ACCOUNTS, WorkerHome, wait_until, with_id};

const PAY: &str = "mode = \"call\"\nfunction = \"pay(address to)\"\narguments = [\"json:/to\"]\nvalue = \"json:/wei\"";

async fn publish(stage: &Stage, id: &str, wei: u64) {
    let body = json!({ "to": SINK, "wei": wei }).to_string();
    stage.amqp.publish(QUEUE, with_id(id), body.as_bytes()).await;
}

fn allow(functions: &str) -> String {
    format!("to = \"{SINK}\"\nfunctions = [\"{functions}\"]")
}

#[tokio::test]
async fn what_is_not_permitted_is_a_dead_letter_and_nothing_is_signed() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("write", PAY).with("policy", "max_value = 100");
    let home = WorkerHome::new(&config.clone().with("policy.allow", allow("pay(address)")));
    stage.topology(&home).await;
    publish(&stage, "dear", 101).await;
    publish(&stage, "good", 100).await;
    let mut worker = home.start(BINARY);
    stage.wait_state(&home, "good", "final").await;
    let letter = stage.amqp.wait_for(DEAD, LONG).await;
    assert_eq!((letter.id().as_str(), letter.routing_key.as_str()), ("dear", "policy.max_value"));
    assert_eq!(letter.header("cw-error-detail").unwrap(), "it pays 101 wei, policy.max_value is 100 wei");
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);

    home.configure(&config.with("policy.allow", allow("other()")));
    let (code, text) = home.command(BINARY, &["check"]).await;
    assert!(code == 78 && text.contains("policy.allow: refuses every message of write: the function 0x"), "{text}");
}

/// The documented example of messages that say all themselves.
#[tokio::test]
async fn a_message_carries_its_transaction_to_whom_the_policy_names() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let page = include_str!("../../../docs/guides/routes.md");
    let at = "0x00000000000000000000000000000000000000d0";
    stage.anvil.set_code(at, TOKEN).await.unwrap();
    let route = "name = \"transactions\"\ntype = \"transaction\"\nmode = \"transaction\"";
    let allow = format!("to = \"{at}\"\nfunctions = [\"transfer(address to, uint256 amount)\"]");
    assert!(page.contains(&format!("{route}\n\n[[policy.allow]]\n{allow}\n")), "the page has it");
    let home = WorkerHome::new(&stage.config().with("route", route).with("policy.allow", allow));
    stage.topology(&home).await;
    let body = page.lines().find_map(|line| line.strip_prefix("transaction: `")).unwrap().trim_end_matches('`');
    let letters = [
        ("good", body.to_owned()),
        ("other", body.replace("d0\"", "d1\"")),
        ("burn", body.replace("a9059cbb", "42966c68")),
        ("stray", body.replace("\"gas\"", "\"gasPrice\"")),
    ];
    for (id, body) in &letters {
        stage.amqp.publish(QUEUE, with_id(id).with_type("transaction".into()), body.as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.anvil.storage(at, 0xaa).await, Ok(7), "the token was sent");
    assert_eq!(stage.transactions_of(0).await.len(), 1);
    let mut dead: Vec<_> =
        stage.amqp.take_all(DEAD).await.iter().map(|letter| (letter.id(), letter.routing_key.clone())).collect();
    dead.sort();
    let of = |id: &str, key: &str| (id.to_owned(), key.to_owned());
    let expected =
        [of("burn", "policy.function"), of("other", "policy.target"), of("stray", "invalid.bad_transaction")];
    assert_eq!(dead, expected);
}

/// What waits in the journal is under the policy of whoever signs it.
#[tokio::test]
async fn a_tighter_policy_holds_for_what_waits() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let calls = stage.config().with("write", PAY);
    let held = calls.clone().with("limits", "writes_per_second = 1").with("fees", "max_fee = 1");
    let home = WorkerHome::new(&held);
    stage.topology(&home).await;
    publish(&stage, "waits", 7).await;
    let mut worker = home.start(BINARY);
    stage.wait_state(&home, "waits", "accepted").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    home.configure(&calls.with("policy", "max_value = 6"));
    let mut worker = home.start(BINARY);
    let dead = stage.wait_state(&home, "waits", "dead").await;
    assert!(dead["failure"].as_str().unwrap().starts_with("policy.max_value: it pays 7 wei"), "{dead}");
    assert_eq!(worker.stop().await.code(), Some(0));
    assert!(stage.transactions_of(0).await.is_empty());
}

/// Over two accounts and a restart.
#[tokio::test]
async fn a_days_sum_holds_back_and_a_request_above_it_is_refused() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config().with("write", PAY);
    let config =
        ACCOUNTS.iter().take(2).fold(config, |config, (_, key)| config.with("signer", format!("key = {key:?}")));
    let limited = config.clone().with("policy", "value_per_day = 25");
    let home = WorkerHome::new(&limited);
    stage.topology(&home).await;
    publish(&stage, "above", 26).await;
    for number in 0..4 {
        publish(&stage, &format!("m-{number}"), 10).await;
    }
    let written = async || stage.transactions_of(0).await.len() + stage.transactions_of(1).await.len();
    for _ in 0..2 {
        let mut worker = home.start(BINARY);
        wait_log(&worker, "throttled: requests wait in the journal").await;
        wait_until("what fits is written", LONG, async || written().await == 2).await;
        assert!(worker.log().contains("policy.value_per_day"), "{}", worker.log());
        worker.kill().await;
    }
    let above = stage.wait_state(&home, "above", "dead").await;
    assert!(above["failure"].as_str().unwrap().starts_with("policy.value_per_day: it pays 26 wei"), "{above}");
    home.configure(&config.with("policy", "value_per_day = 40"));
    let _worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(written().await, 4);
}

/// A high price is not the message's fault: it is tried again.
#[tokio::test]
async fn a_fee_above_the_policys_is_tried_again_until_the_price_is_down() {
    let Some(stage) = Stage::with_blocks().await else { return };
    stage.anvil.set_next_base_fee(50_000_000_000).await.unwrap();
    let config = stage.config().with("write", "gas = 100000").with("policy", "max_fee = \"0.002 ether\"");
    let home = WorkerHome::new(&config.with("retry", "max_attempts = 50\ninitial_delay = \"500ms\"\nmultiplier = 1.0"));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("a"), b"a").await;
    let _worker = home.start(BINARY);
    wait_until("it was too dear", LONG, async || {
        stage.status(&home, "a").await["failure"]
            .as_str()
            .is_some_and(|why| why.starts_with("policy.max_fee: its 100000 gas"))
    })
    .await;
    stage.wait_state(&home, "a", "final").await;
}
