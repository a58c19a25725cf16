//! `chainwriter dead …`: nothing that operators do to dead letters loses one, writes one twice, or puts them out of order.

use std::collections::BTreeSet;

use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::delivery::refusals::{nested, with_value};
use crate::stage::{BINARY, CONTRACT, DEAD, LONG, QUEUE, Stage, calldata};
use crate::support::contracts::{ALWAYS_REVERTS, SINK};
use crate::support::{Taken, WorkerHome, headers, wait_until, with_id};

async fn dead(home: &WorkerHome, arguments: &[&str]) -> (i32, String) {
    home.command(BINARY, &[&["dead"], arguments].concat()).await
}

/// The ids in the dead-letter queue, in its order, as `dead list` has them.
async fn listed(home: &WorkerHome) -> Vec<String> {
    let (code, text) = dead(home, &["list", "--items", "--json"]).await;
    assert_eq!(code, 0, "{text}");
    let list: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert_eq!(list["others_hold"], false, "{text}");
    let items = list["items"].as_array().unwrap();
    items.iter().map(|item| item["id"].as_str().unwrap_or("-").to_owned()).collect()
}

/// The results of a command, by id.
fn results(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let items = lines.filter(|line| line["result"].is_string());
    items.map(|item| (item["id"].as_str().unwrap().to_owned(), item["result"].as_str().unwrap().to_owned())).collect()
}

/// A dead letter as the daemon writes it, without one: nothing knows its request.
async fn publish_dead(stage: &Stage, id: &str, key: &str) {
    let (class, reason) = key.split_once('.').unwrap();
    let table = headers(&[("cw-error-class", class), ("cw-error-reason", reason), ("cw-error-detail", "not today")]);
    stage.amqp.publish_to(DEAD, key, with_id(id).with_headers(table), id.as_bytes()).await;
}

/// A worker whose contract refuses everything, and these requests as dead letters.
async fn with_dead(stage: &Stage, ids: &[&str]) -> (WorkerHome, crate::support::Worker) {
    let config = stage.config_for(ALWAYS_REVERTS).await.with("retry", "max_attempts = 1").with("chain", "finality = 0");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let worker = home.start(BINARY);
    for id in ids {
        stage.amqp.publish(QUEUE, with_id(id), id.as_bytes()).await;
    }
    let count = ids.len() as u64;
    wait_until("all are dead letters", LONG, async || stage.depth(DEAD).await.0 == count).await;
    for id in ids {
        stage.wait_state(&home, id, "dead").await;
    }
    (home, worker)
}

async fn written(stage: &Stage) -> Vec<String> {
    let mut written: Vec<_> = stage.transactions_of(0).await.into_iter().map(|(_, data, _)| data).collect();
    written.sort();
    written
}

fn calldata_of(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| calldata(id.as_bytes())).collect()
}

/// Covers B30: what a look costs is a return of each letter, and a policy may allow few of them. Without care all would be
/// gone at the eleventh look.
#[tokio::test]
async fn looking_again_and_again_loses_nothing_and_keeps_the_order_even_where_a_policy_allows_few_returns() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let limit = ["set_policy", "-p", &stage.vhost, "limit", ".*", "{\"delivery-limit\":10}", "--apply-to", "queues"];
    stage.rabbit.ctl(&limit).await.unwrap();
    let ids = ["a", "b", "c", "d", "e"];
    for id in ids {
        publish_dead(&stage, id, "rejected.reverted").await;
    }
    for look in 0..25 {
        assert_eq!(listed(&home).await, ids, "look {look}");
    }
    let (code, text) = dead(&home, &["list", "--limit", "2"]).await;
    assert_eq!((code, text.contains("3 more behind them were not")), (0, true), "{text}");
    let letters = stage.amqp.take_all(DEAD).await;
    let mut seen: Vec<_> = letters.iter().map(Taken::id).collect();
    // A part that was renewed stands behind the rest.
    seen.sort();
    assert_eq!(seen, ids);
    assert_eq!(letters[0].header("cw-dead-letter-key").as_deref(), Some("rejected.reverted"));
}

/// A look that is killed while it holds letters gives them back, in their places.
#[tokio::test]
async fn a_look_that_is_killed_leaves_every_letter_in_its_place() {
    const COUNT: u64 = 3000;
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let ids: Vec<_> = (0..COUNT).map(|number| format!("m-{number}")).collect();
    for id in &ids {
        publish_dead(&stage, id, "rejected.reverted").await;
    }
    let mut look = home.begin(BINARY, &["dead", "list"]);
    wait_until("it holds some", LONG, async || stage.depth(DEAD).await.1 > 20).await;
    look.kill().await.unwrap();
    wait_until("they are back", LONG, async || stage.depth(DEAD).await == (COUNT, 0)).await;
    assert_eq!(listed(&home).await, ids);
    // More than one consumer's, and given back in good order.
    assert_eq!(listed(&home).await, ids);
}

#[tokio::test]
async fn dead_letters_are_grouped_by_cause_and_found_by_what_they_say() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    publish_dead(&stage, "a", "rejected.reverted").await;
    publish_dead(&stage, "b", "rejected.reverted").await;
    publish_dead(&stage, "c", "rejected.out_of_gas").await;
    // The broker's own, and one that would overflow a usual stack.
    stage.amqp.publish_to(DEAD, "broker.undeliverable", with_id("d"), b"Body of d").await;
    if std::env::var_os("RUST_MIN_STACK").is_some() {
        let deep = with_value(with_id("deep"), "deep", nested(20_000));
        stage.amqp.publish_to(DEAD, "invalid.bad_headers", deep, b"").await;
    }
    let (code, text) = dead(&home, &["list"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("      2  rejected.reverted"), "{text}");
    assert!(text.contains("      1  broker.undeliverable"), "{text}");
    for (filter, expected) in [
        (vec!["--cause", "rejected"], vec!["a", "b", "c"]),
        (vec!["--cause", ".out_of_gas"], vec!["c"]),
        (vec!["--cause", "rejected.reverted"], vec!["a", "b"]),
        (vec!["--text", "body OF"], vec!["d"]),
        (vec!["--header", "cw-error-reason=reverted", "--text", "not today"], vec!["a", "b"]),
        (vec!["a", "d"], vec!["a", "d"]),
        (vec!["--older-than", "1h"], vec![]),
    ] {
        let (code, text) = dead(&home, &[&["list", "--items", "--json"], filter.as_slice()].concat()).await;
        assert_eq!(code, 0, "{text}");
        let list: Value = serde_json::from_str(&text).unwrap();
        let ids: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
}

/// B34, B35: replayed and waited for; then again, where nothing is left.
#[tokio::test]
async fn replayed_letters_are_written_once_and_a_second_replay_finds_nothing() {
    let Some(stage) = Stage::set().await else { return };
    let (home, mut worker) = with_dead(&stage, &["a", "b", "c"]).await;
    let (code, text) = dead(&home, &["show", "a"]).await;
    assert_eq!((code, text.contains("safe to replay: the journal says that it is dead")), (0, true), "{text}");
    assert!(text.contains("a: rejected.reverted: not today"), "{text}");
    let (code, text) = dead(&home, &["replay", "--cause", "rejected.reverted", "--dry-run"]).await;
    assert_eq!((code, stage.depth(DEAD).await), (0, (3, 0)), "{text}");
    assert!(text.contains("3 dead letters: safe to replay"), "{text}");
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    let replay = ["replay", "--cause", "rejected.reverted", "--reason", "mended", "--wait", "--yes", "--json"];
    let (code, text) = dead(&home, &replay).await;
    assert_eq!(code, 0, "{text}");
    let replayed = |id: &str| (id.to_owned(), "replayed".to_owned());
    assert_eq!(results(&text), [replayed("a"), replayed("b"), replayed("c")], "{text}");
    assert_eq!(text.matches("\"state\":\"final\"").count(), 3, "{text}");
    let status = stage.status(&home, "a").await;
    assert_eq!((status["replay"].as_u64(), status["state"].as_str()), (Some(1), Some("final")));
    let told = status["incidents"].as_array().unwrap().iter().find(|incident| incident["what"] == "sent_back").unwrap();
    let told = told["detail"].as_str().unwrap();
    assert!(told.starts_with("as replay 1 by ") && told.contains('@') && told.ends_with(": mended"), "{told}");
    let (code, text) = dead(&home, &replay).await;
    assert_eq!((code, stage.depth(DEAD).await), (1, (0, 0)), "nothing is meant by that any more: {text}");
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(written(&stage).await, calldata_of(&["a", "b", "c"]));
}

/// B34, B35: killed at any letter, a replay is finished by saying it again. What the broker had already taken is not sent twice,
/// or harmlessly.
#[tokio::test]
async fn a_replay_killed_in_the_middle_is_finished_by_the_next_one() {
    let Some(stage) = Stage::set().await else { return };
    let ids = ["a", "b", "c", "d", "e", "f"];
    let (home, mut worker) = with_dead(&stage, &ids).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    // What a kill between a copy's confirm and the journal's note leaves behind: the copy, and no word of it.
    let mut table = FieldTable::default();
    table.insert("cw-replay-count".into(), AMQPValue::LongLongInt(1));
    stage.amqp.publish(QUEUE, with_id("f").with_headers(table), b"f").await;
    let mut replay = home.begin(BINARY, &["dead", "replay", "--all", "--rate", "1", "--yes"]);
    let mut lines = BufReader::new(replay.stdout.take().unwrap()).lines();
    let mut sent = 0;
    while sent < 3 {
        let line = lines.next_line().await.unwrap().expect("it sends back");
        sent += usize::from(line.contains("sent back as replay 1"));
    }
    replay.kill().await.unwrap();
    wait_until("the rest is back", LONG, async || stage.depth(DEAD).await.1 == 0).await;
    // The last ack may have died with the process, before the broker had it.
    assert!(listed(&home).await.ends_with(&["d", "e", "f"].map(str::to_owned)));
    let (_, text) = dead(&home, &["replay", "--all", "--yes"]).await;
    assert_eq!(stage.depth(QUEUE).await, (7, 0), "each once, and f once more: {text}");
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    let mut worker = home.start(BINARY);
    for id in ids {
        stage.wait_state(&home, id, "final").await;
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let (code, text) = dead(&home, &["replay", "--all", "--yes"]).await;
    assert!([0, 1].contains(&code), "what was left over is taken away: {text}");
    assert_eq!((written(&stage).await, stage.depth(DEAD).await), (calldata_of(&ids), (0, 0)));
}

/// A letter whose copy was accepted and that is still there (a kill before the ack) is told as such and taken away, before
/// the worker has the copy and after it has written it.
#[tokio::test]
async fn a_leftover_of_a_replay_is_not_sent_twice() {
    let Some(stage) = Stage::set().await else { return };
    let (home, mut worker) = with_dead(&stage, &["a"]).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let copy = home.folder().join("copy.ndjson").display().to_string();
    let (code, text) = dead(&home, &["export", "--to", &copy]).await;
    assert_eq!(code, 0, "{text}");
    let (code, text) = dead(&home, &["replay", "a", "--yes"]).await;
    assert_eq!(code, 0, "{text}");
    for is_written in [false, true] {
        if is_written {
            stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
            let mut worker = home.start(BINARY);
            stage.wait_state(&home, "a", "final").await;
            assert_eq!(worker.stop().await.code(), Some(0));
        }
        let queued = stage.depth(QUEUE).await;
        let (code, text) = dead(&home, &["import", &copy]).await;
        assert_eq!((code, text.contains("1 dead letter imported")), (0, true), "{text}");
        let (_, text) = dead(&home, &["show", "a"]).await;
        assert!(text.contains("replayed already"), "{text}");
        let (code, text) = dead(&home, &["replay", "a", "--yes", "--json"]).await;
        // Only what has arrived is proven to be safe elsewhere.
        let (word, expected, left) = if is_written { ("replayed_already", 0, 0) } else { ("on_its_way", 2, 1) };
        assert_eq!((code, results(&text)), (expected, vec![("a".to_owned(), word.to_owned())]), "{text}");
        assert_eq!((stage.depth(DEAD).await, stage.depth(QUEUE).await), ((left, 0), queued), "nothing was sent");
        if !is_written {
            let (code, text) = dead(&home, &["replay", "a", "--again", "--yes"]).await;
            assert_eq!((code, stage.depth(QUEUE).await), (0, (2, 0)), "{text}");
        }
    }
    assert_eq!(written(&stage).await, calldata_of(&["a"]));
}

#[tokio::test]
async fn two_operators_at_once_send_each_letter_back_once() {
    let Some(stage) = Stage::set().await else { return };
    let ids: Vec<_> = (0..20).map(|number| format!("m-{number:02}")).collect();
    let names: Vec<_> = ids.iter().map(String::as_str).collect();
    let (home, mut worker) = with_dead(&stage, &names).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let replay = ["replay", "--all", "--yes", "--json"];
    let ((one, first), (other, second)) = tokio::join!(dead(&home, &replay), dead(&home, &replay));
    for code in [one, other] {
        assert!([0, 1, 2].contains(&code), "{first}{second}");
    }
    // Each may have seen a part only, while the other held the rest.
    let (_, third) = dead(&home, &replay).await;
    assert_eq!(stage.depth(DEAD).await, (0, 0), "{first}{second}{third}");
    let sent: Vec<_> = stage.amqp.take_all(QUEUE).await.iter().map(Taken::id).collect();
    assert_eq!(sent.len(), 20, "{first}{second}{third}");
    assert_eq!(sent.iter().collect::<BTreeSet<_>>(), ids.iter().collect());
}

#[tokio::test]
async fn an_edited_letter_is_checked_as_intake_would_and_then_written_with_its_new_body() {
    let Some(stage) = Stage::set().await else { return };
    let (home, mut worker) = with_dead(&stage, &["a", "b"]).await;
    let file = |name: &str, body: &[u8]| {
        let path = home.folder().join(name);
        std::fs::write(&path, body).unwrap();
        path.display().to_string()
    };
    let (large, body) = (file("large", &vec![b'x'; 300_000]), file("body", b"mended"));
    let (code, text) = dead(&home, &["edit", "a", "--body-file", &large, "--yes"]).await;
    assert_eq!((code, text.contains("invalid.too_large")), (2, true), "{text}");
    let (code, text) = dead(&home, &["edit", "a", "--set-id", "b", "--yes"]).await;
    assert_eq!((code, text.contains("the journal knows the id b already")), (2, true), "{text}");
    let (code, text) = dead(&home, &["edit", "a", "--set-header", "cw-attempt=0", "--yes"]).await;
    assert_eq!((code, text.contains("not for editing")), (64, true), "{text}");
    assert_eq!(stage.depth(DEAD).await, (2, 0));
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    let edit = ["edit", "a", "--body-file", &body, "--set-header", "tenant=north", "--reason", "typo", "--yes"];
    let (code, text) = dead(&home, &edit).await;
    assert_eq!(code, 0, "{text}");
    for part in ["- a", "+ mended", "+ header \"tenant\" = \"north\"", "sent as replay 1 of a"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let status = stage.wait_state(&home, "a", "final").await;
    let incidents = status["incidents"].as_array().unwrap();
    assert!(incidents.iter().any(|incident| incident["what"] == "edited"), "{status}");
    // As a new request, by an editor that is a command.
    let mut command = tokio::process::Command::new(BINARY);
    command.args(["dead", "edit", "b", "--yes", "--config"]).arg(home.config_file()).env_remove("VISUAL");
    let output = command.env("EDITOR", "sed -i 's/message_id = \"b\"/message_id = \"b-2\"/'").output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    stage.wait_state(&home, "b-2", "final").await;
    assert_eq!((stage.depth(DEAD).await, stage.status(&home, "b").await["state"].as_str()), ((0, 0), Some("dead")));
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(written(&stage).await, calldata_of(&["b", "mended"]));
}

#[tokio::test]
async fn a_discarded_letter_is_archived_and_can_come_back() {
    let Some(stage) = Stage::set().await else { return };
    let (home, mut worker) = with_dead(&stage, &["a", "b"]).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    for arguments in [&["discard", "a"][..], &["discard", "--reason", "why"], &["discard", "a", "--reason", "why"]] {
        let (code, text) = dead(&home, arguments).await;
        assert_eq!((code, stage.depth(DEAD).await), (64, (2, 0)), "no reason, no filter, nobody to ask: {text}");
    }
    let (code, text) = dead(&home, &["discard", "a", "--reason", "not wanted", "--yes"]).await;
    assert_eq!((code, listed(&home).await), (0, vec!["b".to_owned()]), "{text}");
    let status = stage.status(&home, "a").await;
    let last = status["incidents"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["what"], "discarded");
    assert!(last["detail"].as_str().unwrap().ends_with(": not wanted"), "{last}");
    let back = home.folder().join("back.ndjson").display().to_string();
    let (code, text) = dead(&home, &["export", "--discarded", "--to", &back]).await;
    assert_eq!(code, 0, "{text}");
    let (code, text) = dead(&home, &["import", &back]).await;
    assert_eq!(code, 0, "{text}");
    assert_eq!(listed(&home).await, ["b", "a"]);
    let (_, text) = dead(&home, &["show", "a"]).await;
    assert!(text.contains("safe to replay"), "{text}");
}

#[tokio::test]
async fn exported_letters_come_back_with_every_byte_and_type() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut table = FieldTable::default();
    for (name, value) in [
        ("small", AMQPValue::ShortShortInt(-1)),
        ("wide", AMQPValue::LongLongInt(i64::MAX)),
        ("float", AMQPValue::Float(0.25)),
        ("price", AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 })),
        ("blob", AMQPValue::LongString(vec![0xff, 0x00].into())),
        ("list", AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Boolean(true), AMQPValue::Void]))),
        ("when", AMQPValue::Timestamp(7)),
    ] {
        table.insert(name.into(), value);
    }
    let body: Vec<u8> = (0..=255).collect();
    let properties = with_id("a").with_headers(table).with_priority(4).with_type("kind".into()).with_timestamp(9);
    stage.amqp.publish_to(DEAD, "rejected.reverted", properties, &body).await;
    publish_dead(&stage, "b", "invalid.too_large").await;
    let file = home.folder().join("letters.ndjson").display().to_string();
    let (code, text) = dead(&home, &["export", "--cause", "rejected", "--to", &file]).await;
    assert_eq!((code, stage.depth(DEAD).await), (0, (2, 0)), "it stays: {text}");
    let (code, text) = dead(&home, &["export", "a", "--to", &file, "--remove", "--yes"]).await;
    assert_eq!((code, text.contains("is there already")), (64, true), "{text}");
    let removed = home.folder().join("removed.ndjson").display().to_string();
    let (code, text) = dead(&home, &["export", "a", "--to", &removed, "--remove", "--yes"]).await;
    assert_eq!((code, listed(&home).await), (0, vec!["b".to_owned()]), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(&removed).unwrap());
    for (imported, skipped) in [(1, 0), (0, 1)] {
        let (code, text) = dead(&home, &["import", &removed, "--json"]).await;
        let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let summary = &summary["summary"];
        assert_eq!(
            (code, summary["imported"].as_u64(), summary["skipped"].as_u64()),
            (0, Some(imported), Some(skipped))
        );
    }
    let letters = stage.amqp.take_all(DEAD).await;
    let [_, again] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!((again.id(), &again.body), ("a".to_owned(), &body));
    let mut kept = again.properties.headers().clone().unwrap().inner().clone();
    kept.retain(|name, _| !["cw-dead-letter-key", "x-delivery-count"].contains(&name.as_str()));
    let before: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(kept.len(), before["headers"].as_object().unwrap().len());
    assert_eq!(kept.get("small"), Some(&AMQPValue::ShortShortInt(-1)));
    assert_eq!(kept.get("float"), Some(&AMQPValue::Float(0.25)));
    assert_eq!(kept.get("blob"), Some(&AMQPValue::LongString(vec![0xff, 0x00].into())));
    assert_eq!(*again.properties.priority(), Some(4));
    assert_eq!(again.properties.kind().as_ref().map(ToString::to_string).as_deref(), Some("kind"));
}

/// What must not be replayed stays, each with its reason.
#[tokio::test]
async fn letters_that_are_not_safe_or_of_no_use_stay_and_say_why() {
    let Some(stage) = Stage::set().await else { return };
    let (home, mut worker) = with_dead(&stage, &["dead"]).await;
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();
    stage.amqp.publish(QUEUE, with_id("final"), b"final").await;
    stage.wait_state(&home, "final", "final").await;
    stage.amqp.publish(QUEUE, with_id("final"), b"other body").await;
    stage.amqp.publish(QUEUE, lapin::BasicProperties::default(), b"no id").await;
    wait_until("both are dead letters", LONG, async || stage.depth(DEAD).await.0 == 3).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    publish_dead(&stage, "final", "rejected.reverted").await;
    publish_dead(&stage, "unknown", "rejected.reverted").await;
    stage.amqp.publish_to(DEAD, "broker.undeliverable", with_id("never-seen"), b"").await;
    let (code, text) = dead(&home, &["replay", "--all", "--dry-run", "--json"]).await;
    assert_eq!(code, 0, "{text}");
    let answers: Vec<_> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|item| item["answer"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(answers, ["safe", "id_of_another", "no_request", "written", "forgotten", "forgotten"], "{text}");
    let (code, text) = dead(&home, &["replay", "--all", "--yes"]).await;
    assert_eq!((code, text.contains("1 replayed, 5 left where they are")), (2, true), "{text}");
    assert_eq!((stage.depth(DEAD).await, stage.depth(QUEUE).await), ((5, 0), (1, 0)));
    let (code, text) = dead(&home, &["replay", "unknown", "--even-forgotten", "--yes"]).await;
    assert_eq!((code, stage.depth(QUEUE).await), (0, (2, 0)), "{text}");
    let (code, text) = dead(&home, &["show", "nobody"]).await;
    assert_eq!((code, text.contains("no dead letter of that name")), (1, true), "{text}");
}

/// The broker gives up on the copy that brings a retry: a consumer that is no worker has given it back too often.
#[tokio::test]
async fn a_retry_that_the_broker_gave_up_on_goes_on_when_it_is_sent_back() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let retry = "max_attempts = 3\ninitial_delay = \"2s\"";
    let config = stage.config_for(ALWAYS_REVERTS).await.with("retry", retry).with("chain", "finality = 0");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("a"), b"a").await;
    stage.wait_state(&home, "a", "retry_waiting").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    wait_until("the copy is back", LONG, async || stage.depth(QUEUE).await == (1, 0)).await;
    let limit = [
        "set_policy",
        "-p",
        &stage.vhost,
        "limit",
        "^acme\\.writes$",
        "{\"delivery-limit\":1}",
        "--apply-to",
        "queues",
    ];
    stage.rabbit.ctl(&limit).await.unwrap();
    wait_until("the broker gives up on it", LONG, async || {
        if let Some(held) = stage.amqp.channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await.unwrap() {
            let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
            held.delivery.acker.nack(back).await.unwrap();
        }
        stage.depth(DEAD).await == (1, 0)
    })
    .await;
    stage.anvil.set_code(CONTRACT, SINK).await.unwrap();

    let worker = home.start(BINARY);
    let (code, text) = dead(&home, &["show", "a"]).await;
    assert!(code == 0 && text.contains("the request waits for its retry, and this letter is the copy"), "{text}");
    let (code, text) = dead(&home, &["replay", "a", "--yes", "--wait"]).await;
    assert_eq!((code, stage.depth(DEAD).await.0), (0, 0), "{text}");
    stage.wait_state(&home, "a", "final").await;
    assert_eq!(written(&stage).await, [calldata(b"a")]);
    drop(worker);
}

/// B35: the work queue has room for some of them, then for none, then is not there at all.
#[tokio::test]
async fn copies_that_cannot_be_published_leave_their_letters_where_they_are() {
    let Some(stage) = Stage::set().await else { return };
    let ids = ["a", "b", "c", "d", "e", "f"];
    let (home, mut worker) = with_dead(&stage, &ids).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let full =
        ["set_policy", "-p", &stage.vhost, "full", "^acme\\.writes$", "{\"max-length\":1}", "--apply-to", "queues"];
    stage.rabbit.ctl(&full).await.unwrap();
    let (code, text) = dead(&home, &["replay", "--all", "--yes", "--json"]).await;
    assert_eq!(code, 2, "{text}");
    let with = |word: &str| results(&text).into_iter().filter(|(_, result)| result == word).count() as u64;
    let (sent, failed) = (with("replayed"), with("failed"));
    assert!(sent > 0 && failed > 0 && sent + failed == 6, "{text}");
    assert_eq!((stage.depth(QUEUE).await, stage.depth(DEAD).await), ((sent, 0), (failed, 0)));
    stage.rabbit.ctl(&["clear_policy", "-p", &stage.vhost, "full"]).await.unwrap();
    let before = stage.amqp.take_all(QUEUE).await;
    stage.amqp.delete(QUEUE).await;
    let (code, text) = dead(&home, &["replay", "--all", "--yes"]).await;
    assert_eq!((code, text.contains("no queue takes messages")), (2, true), "{text}");
    assert_eq!(stage.depth(DEAD).await, (failed, 0));
    stage.topology(&home).await;
    let (code, text) = dead(&home, &["replay", "--all", "--yes"]).await;
    assert_eq!((code, stage.depth(DEAD).await), (0, (0, 0)), "{text}");
    let mut all: Vec<_> = before.iter().map(Taken::id).collect();
    all.extend(stage.amqp.take_all(QUEUE).await.iter().map(Taken::id));
    all.sort();
    assert_eq!(all, ids);
}

/// Under a memory alarm nothing can be renewed. The look says so, does not wait for each letter, and loses none.
#[tokio::test]
async fn a_look_while_the_broker_takes_nothing_says_what_it_could_not_do_and_loses_nothing() {
    let Some(stage) = Stage::with_own_broker(crate::support::AnvilConfig::default()).await else { return };
    let home = WorkerHome::new(&stage.config().with("broker", "confirm_timeout = \"1s\"\ncall_timeout = \"2s\""));
    stage.topology(&home).await;
    let ids: Vec<_> = (0..40).map(|number| format!("m-{number}")).collect();
    for id in &ids {
        publish_dead(&stage, id, "rejected.reverted").await;
    }
    for _ in 0..8 {
        assert_eq!(listed(&home).await, ids);
    }
    stage.rabbit.raise_memory_alarm().await.unwrap();
    let (code, text) = dead(&home, &["list"]).await;
    assert_eq!(
        (code, text.contains("40 dead letters have been read often and could not be renewed")),
        (0, true),
        "{text}"
    );
    let (code, text) = dead(&home, &["replay", "m-0", "--even-forgotten", "--yes"]).await;
    assert!(code != 0, "there is no journal yet: {text}");
    stage.rabbit.clear_memory_alarm().await.unwrap();
    let (code, text) = dead(&home, &["list", "--json"]).await;
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, list["renewed"].as_u64() >= Some(40)), (0, true), "{text}");
    // The one that was tried without an answer may have been taken after all: then it is there twice, with one key.
    let mut found = listed(&home).await;
    found.truncate(40);
    assert_eq!(found, ids);
}
