//! `chainwriter doctor`: each thing is broken in turn, and a line leads to it.

use std::os::unix::fs::PermissionsExt;

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::journal::databases::shared_journal;
use crate::stage::{BINARY, DEAD, EVENTS, QUEUE, Stage, wait_log};
use crate::support::contracts::SINK as ACCEPTS;
use crate::support::{
    ACCOUNTS, AnvilConfig, Postgres, PostgresConfig, Reply, ScriptedNode, WorkerHome, postgres_is_here, with_id,
};

/// The exit code, and the lines.
async fn doctor(home: &WorkerHome) -> (i32, String) {
    home.command(BINARY, &["doctor"]).await
}

/// Exactly one line begins with this, and has these parts.
fn assert_line(text: &str, begin: &str, parts: &[&str]) {
    let found = text.lines().filter(|line| line.starts_with(begin) && parts.iter().all(|part| line.contains(part)));
    assert_eq!(found.count(), 1, "{begin:?} with {parts:?} in:\n{text}");
}

/// Nothing but what it names is wrong.
fn assert_sound_but_for(text: &str, area: &str) {
    for line in text.lines().filter(|line| line.starts_with("fail") || line.starts_with("warn")) {
        assert!(line[6..].starts_with(area), "{line:?} in:\n{text}");
    }
}

#[tokio::test]
async fn all_is_well_before_the_first_start_and_while_a_worker_runs() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let home = WorkerHome::new(&stage.config_for(ACCEPTS).await);
    stage.topology(&home).await;
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_sound_but_for(&text, "nothing");
    assert_line(&text, "ok    journal: ", &["journal.db will be made at the first start"]);
    assert_line(&text, "ok    node: chain 31337", &["newest block", &stage.anvil.address().to_string()]);
    assert_line(&text, "ok    node: ", &[&stage.anvil.address().to_string(), " runs anvil/v"]);
    assert_line(&text, "ok    broker: the user may read", &[]);
    assert_line(&text, "ok    disk: its disk has room", &[]);
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("m-1"), b"body").await;
    stage.wait_empty(QUEUE).await;
    let (code, text) = home.command(BINARY, &["doctor", "--json"]).await;
    assert_eq!(code, 0, "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["level"] == "ok" || report["level"] == "note", "{text}");
    let areas: Vec<_> =
        report["findings"].as_array().unwrap().iter().map(|one| one["area"].as_str().unwrap()).collect();
    for area in
        ["configuration", "signer", "broker", "node", "clock", "fees", "journal", "disk", "instances", "account"]
    {
        assert!(areas.contains(&area), "{area} is missing in {text}");
    }
    assert!(text.contains("1 at work with this journal: acme/"), "{text}");
    assert!(text.contains("has 1 transaction in the chain and 0 in a pool; the journal's next nonce is 1"), "{text}");
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// The looks for rights leave nothing behind: no message taken, none published.
#[tokio::test]
async fn a_look_changes_nothing_at_the_broker() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.keep_events().await;
    for number in 0..3 {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), b"body").await;
    }
    for _ in 0..25 {
        assert_eq!(doctor(&home).await.0, 0);
    }
    assert_eq!(stage.depth(QUEUE).await, (3, 0));
    for queue in [DEAD, "kept-events", "acme.writes.events.unrouted"] {
        assert_eq!(stage.depth(queue).await, (0, 0), "{queue}");
    }
    for taken in stage.amqp.take_all(QUEUE).await {
        let count = taken.header("x-delivery-count");
        assert!(count.as_deref().is_none_or(|count| count == "0"), "{count:?}");
    }
}

#[tokio::test]
async fn a_broker_that_is_away_or_refuses_is_told_apart() {
    let Some(stage) = Stage::set().await else { return };
    let mut config = stage.config();
    let right = config.broker_uri.clone();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for (uri, parts) in [
        (right.replace(&stage.rabbit.address().port().to_string(), "9"), ["127.0.0.1:9", "start RabbitMQ"]),
        (right.replace("guest:guest", "guest:s3cret"), ["ACCESS_REFUSED", "correct user and password"]),
        (format!("{right}-other"), ["-other", "rabbitmqctl add_vhost"]),
    ] {
        config.broker_uri = uri;
        home.configure(&config);
        let (code, text) = doctor(&home).await;
        assert_eq!(code, 69, "{text}");
        assert_line(&text, "fail  broker: ", &parts);
        assert!(!text.contains("s3cret"), "{text}");
        assert_sound_but_for(&text, "broker: ");
    }
}

#[tokio::test]
async fn objects_that_are_missing_or_of_another_make_are_named_with_the_way_to_mend_them() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("broker", "topology = \"verify\""));
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(&text, "fail  broker: queue acme.writes: ", &["NOT_FOUND", "chainwriter topology apply"]);
    let home = WorkerHome::new(&stage.config());
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "ok    broker: connected to virtual host", &["a worker makes queues and exchanges"]);
    stage.topology(&home).await;
    stage.amqp.delete(DEAD).await;
    stage.amqp.declare(DEAD).await;
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(
        &text,
        "fail  broker: queue acme.writes.dead: PRECONDITION_FAILED",
        &["another type of queue", "delete it"],
    );
    assert_sound_but_for(&text, "broker: ");
}

#[tokio::test]
async fn rights_that_a_worker_lacks_are_named() {
    let Some(stage) = Stage::set().await else { return };
    let user = format!("doctor-{}", stage.vhost);
    stage.rabbit.ctl(&["add_user", &user, "secret0password"]).await.unwrap();
    let mut config = stage.config().with("broker", "topology = \"verify\"");
    stage.topology(&WorkerHome::new(&config)).await;
    config.broker_uri = config.broker_uri.replace("guest:guest", &format!("{user}:secret0password"));
    let home = WorkerHome::new(&config);
    let grant = async |write: &str, read: &str| {
        stage.rabbit.ctl(&["set_permissions", "-p", &stage.vhost, &user, "^$", write, read]).await.unwrap();
    };
    grant("^acme\\.writes\\.(retry|dead)$", "^nothing$").await;
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    let lacking =
        format!("the user may not read queue {QUEUE}, not read queue {QUEUE}.journal, not write exchange {EVENTS};");
    assert_line(&text, "fail  broker: ", &[&lacking, "rabbitmqctl set_permissions -p test-"]);
    grant("^acme\\.writes\\.(retry|dead|events)$", "^acme\\.writes(\\.journal)?$").await;
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "note  broker: this user may not see the settings of", &["queue acme.writes.wait.5s"]);
    home.configure(&config.with("broker", "topology = \"declare\""));
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(&text, "fail  broker: the user may not configure ", &["queue acme.writes,", "topology = \"verify\""]);
}

#[tokio::test]
async fn a_broker_with_an_alarm_is_told_from_one_that_is_away() {
    let Some(stage) = Stage::with_own_broker(AnvilConfig::default()).await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    stage.rabbit.raise_memory_alarm().await.unwrap();
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(&text, "fail  broker: ", &["its alarm for memory or disk is on", "rabbitmq-diagnostics alarms"]);
    assert_sound_but_for(&text, "broker: ");
    stage.rabbit.clear_memory_alarm().await.unwrap();
    assert_eq!(doctor(&home).await.0, 0);
}

#[tokio::test]
async fn two_runs_of_one_name_and_other_versions_are_told() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let (mut one, mut two) = (home.start(BINARY), home.start(BINARY));
    for worker in [&one, &two] {
        wait_log(worker, "chainwriter 0.").await;
        wait_log(worker, "the instances that share the journal instances=2").await;
    }
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "warn  instances: two runs are called acme/", &["give each its own worker.instance"]);
    assert_eq!(two.stop().await.code(), Some(0));
    // As one of an older version shows itself.
    let add = "INSERT INTO instances SELECT 'acme/old/1', 'acme/old', host, '0.0.9', schema, started_at, attended_at, \
               3600000, accounts FROM instances";
    rusqlite::Connection::open(home.journal_file()).unwrap().execute(add, ()).unwrap();
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "note  instances: they run with the versions 0.0.9, 0.", &[]);
    assert_eq!(one.stop().await.code(), Some(0));
}

#[tokio::test]
async fn what_waits_among_the_dead_and_a_hold_that_is_too_long_are_told() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config().with("broker", "max_hold = \"1h\""));
    stage.topology(&home).await;
    stage.amqp.publish(DEAD, BasicProperties::default(), b"").await;
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "note  broker: 1 dead letter in acme.writes.dead", &["chainwriter dead list"]);
    assert_line(&text, "warn  broker: broker.max_hold = 1h", &["consumer_timeout = 7200000", "rabbitmqctl"]);
}

#[tokio::test]
async fn a_node_that_is_away_syncing_or_of_another_chain_is_told() {
    let Some(stage) = Stage::set().await else { return };
    let mut config = stage.config();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let syncing = ScriptedNode::start(Some(stage.anvil.address()), |call| match call["method"].as_str() {
        Some("eth_syncing") => Reply::body(json!({"jsonrpc": "2.0", "id": call["id"], "result": {}}).to_string()),
        _ => Reply::Pass,
    })
    .await;
    for (endpoint, parts) in [
        (
            "http://127.0.0.1:9".to_owned(),
            ["127.0.0.1:9 does not answer", "start the node, or correct chain.endpoints"],
        ),
        (syncing.url(), ["still syncing", "wait until it has caught up"]),
    ] {
        config.endpoint = endpoint;
        home.configure(&config);
        let (code, text) = doctor(&home).await;
        assert_eq!(code, 69, "{text}");
        assert_line(&text, "fail  node: ", &parts);
        assert_sound_but_for(&text, "node: ");
    }
    let besu = ScriptedNode::start(Some(stage.anvil.address()), |call| match call["method"].as_str() {
        Some("web3_clientVersion") => Reply::Result(json!("besu/v25.9.0/linux-x86_64/openjdk-java-21")),
        _ => Reply::Pass,
    })
    .await;
    config.endpoint = besu.url();
    home.configure(&config.clone().with("chain", "in_flight = 300"));
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    let parts = ["besu/v25.9.0", "keeps 200 transactions of an account", "chain.in_flight is 300"];
    assert_line(&text, "note  node: ", &parts);
    let one_away = format!("endpoints = [\"http://127.0.0.1:9\", {:?}]", stage.anvil.url());
    home.configure(&stage.config().with("chain", one_away));
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "warn  node: 127.0.0.1:9 does not answer", &[]);
    home.configure(&stage.config().with("chain", "id = 1"));
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(&text, "fail  node: ", &["serves chain 31337, chain.id is 1; correct chain.endpoints or chain.id"]);
}

#[tokio::test]
async fn a_head_that_is_old_or_ahead_and_finality_beyond_the_hold_are_told() {
    let Some(stage) = Stage::set().await else { return };
    let hold = stage.config().with("broker", "max_hold = \"1s\"").with("chain", "finality = 100");
    let home = WorkerHome::new(&hold.with("chain", "max_head_age = \"1s\""));
    stage.topology(&home).await;
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let (_, text) = doctor(&home).await;
    assert_line(&text, "warn  node: chain 31337", &["blocks do not come"]);
    stage.anvil.mine(1).await.unwrap();
    stage.anvil.rpc().call("evm_increaseTime", json!([300])).await.unwrap();
    stage.anvil.mine(2).await.unwrap();
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "warn  clock: the chain's newest block is", &["timedatectl"]);
    assert_line(&text, "warn  node: a write is final about", &["held for 1s at most", "raise broker.max_hold"]);
}

#[tokio::test]
async fn an_account_without_money_and_one_that_others_use_are_told() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.amqp.publish(QUEUE, with_id("m-1"), b"body").await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    stage.anvil.set_nonce(ACCOUNTS[0].0, 5).await.unwrap();
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "warn  account: ", &["the journal's next nonce is 1", "another program uses this key"]);
    assert_line(&text, "note  instances: no worker runs with this journal", &["chainwriter run"]);
    stage.anvil.set_balance(ACCOUNTS[0].0, 1).await.unwrap();
    assert_line(&doctor(&home).await.1, "warn  account: ", &["has 1 wei", "one write may cost 0.0021 ether"]);
    stage.anvil.set_balance(ACCOUNTS[0].0, 0).await.unwrap();
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(&text, "fail  account: ", &["has 0 wei", "send it some"]);
}

#[tokio::test]
async fn a_journal_of_another_version_or_without_a_folder_is_told() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "the lane owns its account").await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let newer = "UPDATE counters SET value = 99 WHERE name = 'oldest_schema'; PRAGMA user_version = 99";
    rusqlite::Connection::open(home.journal_file()).unwrap().execute_batch(newer).unwrap();
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(&text, "fail  journal: the journal was written by a newer chainwriter", &["run that version"]);
    assert_sound_but_for(&text, "journal: ");
    home.configure(&stage.config().with("journal", "url = \"sqlite:/nowhere/at/all.db\""));
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(&text, "fail  journal: /nowhere/at/all.db cannot be made", &["install -d -m 0700 /nowhere/at"]);
}

#[tokio::test]
async fn a_database_is_looked_into_and_one_that_forgets_or_is_away_is_told() {
    let (Some(stage), Some(journal)) = (Stage::set().await, shared_journal().await) else { return };
    if !postgres_is_here() {
        return;
    }
    let home = WorkerHome::new(&stage.config().with("journal", journal));
    stage.topology(&home).await;
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "ok    journal: postgres://tester@", &["will be made at the first start"]);
    let mut server = Postgres::start(PostgresConfig { fsync: false, ..PostgresConfig::default() }).await;
    home.configure(&stage.config().with("journal", format!("url = {:?}", server.new_schema().await)));
    let mut worker = home.start(BINARY);
    wait_log(&worker, "the lane owns its account").await;
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 0, "{text}");
    assert_line(&text, "warn  journal: fsync = off", &["Set fsync = on"]);
    assert_line(&text, "ok    clock: this host's agrees with the journal's database", &[]);
    assert_eq!(worker.stop().await.code(), Some(0));
    server.stop().await;
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(&text, "fail  journal: ", &["check that the database runs"]);
}

#[tokio::test]
async fn a_key_that_others_may_read_and_a_server_without_it_are_told() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    stage.topology(&home).await;
    let key = home.folder().join("signer.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 78, "{text}");
    assert_line(&text, "fail  configuration: signer[1].key_file", &["others may read", "chmod 600"]);
    let (code, text) = home.command(BINARY, &["doctor", "--json"]).await;
    assert_eq!(code, 78, "{text}");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["level"], "fail");
    let address = "ab".repeat(20);
    home.configure(&stage.config().with("signer", format!("url = {:?}\naddress = \"0x{address}\"", stage.anvil.url())));
    let (code, text) = doctor(&home).await;
    assert_eq!(code, 69, "{text}");
    assert_line(&text, "fail  signer: ", &[&format!("has no key of 0x{address}"), "load the key"]);
}
