//! `[[dead.replay]]`: dead letters go back by themselves, those that are safe, as often as the rule says, and no others.

use serde_json::Value;

use crate::stage::{BINARY, CONTRACT, DEAD, LONG, QUEUE, Stage, calldata};
use crate::support::contracts::{ALWAYS_REVERTS, SINK};
use crate::support::{WorkerHome, headers, wait_until, with_id};

/// How often the rules have sent this one back, says the journal.
async fn sent_back(stage: &Stage, home: &WorkerHome, id: &str) -> usize {
    let status = stage.status(home, id).await;
    let incidents = status["incidents"].as_array().cloned().unwrap_or_default();
    let by_rule = |incident: &&Value| {
        incident["what"] == "sent_back"
            && incident["detail"].as_str().is_some_and(|text| text.contains("by chainwriter"))
    };
    incidents.iter().filter(by_rule).count()
}

/// Two workers share the queue, so that one of them has to leave it to the other.
#[tokio::test]
async fn a_rule_sends_back_what_is_safe_as_often_as_it_says_and_leaves_the_rest() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let config = stage.config_for(ALWAYS_REVERTS).await.with("retry", "max_attempts = 1").with("chain", "finality = 0");
    let config = config
        .with("dead", "read_every = \"1s\"")
        .with("dead.replay", "cause = \"rejected.reverted\"\nafter = \"3s\"\nup_to = 2")
        .with("dead.replay", "cause = \"rejected\"\nafter = \"1s\"\nup_to = 2");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    // The journal knows nothing of the first; a person did not want the second.
    for (id, key) in [("strange", "rejected.reverted"), ("unwanted", "rejected.cancelled")] {
        let (class, reason) = key.split_once('.').unwrap();
        let said = [("cw-error-class", class), ("cw-error-reason", reason), ("cw-dead-at", "2020-01-01T00:00:00.000Z")];
        stage.amqp.publish_to(DEAD, key, with_id(id).with_headers(headers(&said)), b"x").await;
    }
    for id in ["a", "b"] {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
    }
    let mut workers = [home.start(BINARY), home.start(BINARY)];
    for id in ["a", "b"] {
        wait_until("the rule has done what it may", LONG, async || sent_back(&stage, &home, id).await == 2).await;
    }
    wait_until("all lie there again", LONG, async || stage.depth(DEAD).await == (4, 0)).await;
    let looks = || -> usize {
        workers.iter().map(|worker| worker.log().matches("looked for dead letters that a rule is for").count()).sum()
    };
    // A letter more makes it look again; it goes back once, and then it is written.
    let before = looks();
    stage.amqp.publish(QUEUE, with_id("mended"), b"mended").await;
    stage.wait_state(&home, "mended", "dead").await;
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    stage.wait_state(&home, "mended", "final").await;
    wait_until("a worker has looked again", LONG, async || looks() > before).await;
    assert_eq!(sent_back(&stage, &home, "mended").await, 1);
    wait_until("the others lie there", LONG, async || stage.depth(DEAD).await == (4, 0)).await;
    for id in ["a", "b"] {
        assert_eq!(sent_back(&stage, &home, id).await, 2, "no more often than the rule says");
    }
    let log = workers.iter().map(|worker| worker.log()).collect::<String>();
    assert!(log.contains("dead letters sent back by rule"), "{log}");
    let acted = workers.iter().filter(|worker| worker.log().contains("sent back by rule")).count();
    assert_eq!(acted, 1, "one of the two");
    for worker in &mut workers {
        assert_eq!(worker.stop().await.code(), Some(0));
    }
    let mut letters: Vec<_> = stage.amqp.take_all(DEAD).await;
    letters.sort_by_key(|letter| letter.id());
    let told: Vec<_> = letters.iter().map(|letter| (letter.id(), letter.header("cw-replay-count"))).collect();
    let twice = Some("2".to_owned());
    assert_eq!(told[..2], [("a".to_owned(), twice.clone()), ("b".to_owned(), twice)]);
    assert_eq!(told[2..], [("strange".to_owned(), None), ("unwanted".to_owned(), None)]);
    assert_eq!(letters[0].header("cw-replayed-by").as_deref(), Some("chainwriter"));
    let written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    assert_eq!(written, [calldata(b"mended")], "and nothing else");
}
