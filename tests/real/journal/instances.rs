//! Several instances on one journal: one owns the account, the others carry on when it is away.

use std::time::Duration;

use crate::journal::databases::shared_journal;
use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage, calldata, wait_log, wait_log_times};
use crate::support::{ACCOUNTS, AnvilConfig, Mode, TcpProxy, Worker, WorkerConfig, WorkerHome, wait_until, with_id};

fn body(number: usize) -> Vec<u8> {
    format!("message {number}").into_bytes()
}

pub async fn publish(stage: &Stage, numbers: std::ops::Range<usize>) {
    for number in numbers {
        stage.amqp.publish(QUEUE, with_id(&format!("m-{number}")), &body(number)).await;
    }
}

pub async fn assert_written_once(stage: &Stage, count: usize) {
    let transactions = stage.transactions_of(0).await;
    let nonces: Vec<_> = transactions.iter().map(|(nonce, ..)| *nonce).collect();
    assert_eq!(nonces, (0..count as u64).collect::<Vec<_>>(), "no gap and none beyond");
    let mut written: Vec<_> = transactions.into_iter().map(|(_, data, _)| data).collect();
    let mut expected: Vec<_> = (0..count).map(|number| calldata(&body(number))).collect();
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}

/// C52: the owner freezes for longer than its lease, another carries on, and the first wakes with all that it had in mind.
#[tokio::test]
async fn an_owner_that_freezes_past_its_lease_and_wakes_writes_nothing_twice() {
    let Some(stage) = Stage::set().await else { return };
    let config = stage.config();
    freeze_the_owner(stage, config).await;
}

/// C52, on PostgreSQL.
#[tokio::test]
async fn an_owner_that_freezes_past_its_lease_writes_nothing_twice_on_postgres_either() {
    let (Some(stage), Some(journal)) = (Stage::set().await, shared_journal().await) else { return };
    let config = stage.config().with("journal", journal);
    freeze_the_owner(stage, config).await;
}

async fn freeze_the_owner(stage: Stage, config: WorkerConfig) {
    stage.anvil.set_auto_mine(false).await.unwrap();
    // The first gets ten, so that the second gets the rest.
    let home = WorkerHome::new(&config.with("broker", "prefetch = 10").with("chain", "resend_after = \"1s\""));
    stage.topology(&home).await;
    let mut first = home.start(BINARY);
    wait_log(&first, "the lane owns its account").await;
    wait_log(&first, "deliveries flow").await;
    publish(&stage, 0..20).await;
    wait_until("ten are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((10, 0))).await;
    first.signal("STOP");
    let mut second = home.start(BINARY);
    wait_log(&second, "the lane owns its account").await;
    wait_until("the others are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((20, 0))).await;
    stage.anvil.mine(1).await.unwrap();
    stage.wait_nonce(0, 20).await;
    first.signal("CONT");
    wait_log_times(&first, "standing by", 1).await;
    publish(&stage, 20..30).await;
    stage.anvil.set_interval_mining(1).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert!(first.is_running() && second.is_running());
    assert_eq!((first.stop().await.code(), second.stop().await.code()), (Some(0), Some(0)));
    assert_written_once(&stage, 30).await;
}

/// C53: each is stopped and started in turn while messages keep coming.
#[tokio::test]
async fn instances_that_are_restarted_in_turn_under_load_lose_and_double_nothing() {
    let Some(stage) = Stage::with_chain(large_blocks()).await else { return };
    let config = stage.config();
    restart_in_turn(stage, config, async |worker| assert_eq!(worker.stop().await.code(), Some(0))).await;
}

/// C53, on PostgreSQL, and without a word.
#[tokio::test]
async fn instances_that_are_killed_in_turn_under_load_lose_and_double_nothing_on_postgres() {
    let (Some(stage), Some(journal)) = (Stage::with_chain(large_blocks()).await, shared_journal().await) else {
        return;
    };
    let config = stage.config().with("journal", journal);
    restart_in_turn(stage, config, async |worker| worker.kill().await).await;
}

fn large_blocks() -> AnvilConfig {
    AnvilConfig { block_time: Some(Duration::from_secs(1)), gas_limit: 300_000_000, ..AnvilConfig::default() }
}

async fn restart_in_turn(stage: Stage, config: WorkerConfig, end: impl AsyncFn(&mut Worker)) {
    let home = WorkerHome::new(&config.with("broker", "prefetch = 30").with("chain", "finality = 1"));
    stage.topology(&home).await;
    let mut workers: Vec<Worker> = vec![home.start(BINARY), home.start(BINARY), home.start(BINARY)];
    for worker in &workers {
        wait_log(worker, "connected to the broker").await;
    }
    for round in 0..6 {
        publish(&stage, round * 40..(round + 1) * 40).await;
        let place = round % workers.len();
        end(&mut workers[place]).await;
        workers[place] = home.start(BINARY);
        wait_log(&workers[place], "connected to the broker").await;
    }
    stage.wait_empty(QUEUE).await;
    for worker in &mut workers {
        assert!(worker.is_running());
        assert_eq!(worker.stop().await.code(), Some(0));
    }
    assert_written_once(&stage, 240).await;
}

/// B33: the owner is cut off from the broker and works on; the broker gives its deliveries to another instance.
#[tokio::test]
async fn a_message_that_two_instances_have_is_written_once_and_acked_by_the_one_that_can() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let proxy = TcpProxy::start(stage.rabbit.address()).await;
    let mut config = stage.config();
    config.broker_uri = stage.rabbit.uri_through(proxy.addr(), &stage.vhost);
    let owners_home = WorkerHome::new(&config);
    let shared = format!("url = \"sqlite:{}\"", owners_home.journal_file().display());
    let others_home = WorkerHome::new(&stage.config().with("journal", shared));
    stage.topology(&owners_home).await;
    stage.keep_events().await;
    let mut owner = owners_home.start(BINARY);
    publish(&stage, 0..5).await;
    wait_until("all are in the pool", LONG, async || stage.anvil.pool_size().await == Ok((5, 0))).await;
    let mut other = others_home.start(BINARY);
    wait_log(&other, "connected to the broker").await;
    proxy.set_mode(Mode::Refuse);
    proxy.cut_all();
    wait_log_times(&other, "verdict=Join", 5).await;
    assert_eq!(stage.depth(QUEUE).await, (0, 5));
    stage.anvil.mine(3).await.unwrap();
    stage.wait_empty(QUEUE).await;
    assert!(!other.log().contains("the lane owns its account"), "the owner wrote them");
    proxy.set_mode(Mode::Pass);
    wait_log_times(&owner, "connected to the broker", 2).await;
    wait_until("the events are out", LONG, async || stage.depth("kept-events").await.0 >= 5).await;
    assert_eq!(stage.anvil.nonce(ACCOUNTS[0].0, "pending").await, Ok(5));
    assert_eq!((owner.stop().await.code(), other.stop().await.code()), (Some(0), Some(0)));
    assert_written_once(&stage, 5).await;
    assert_eq!(stage.kept_events().await.len(), 5);
}

/// `status --instances`: how many accounts each worker owns, by its name, and how many nobody does.
async fn shares(home: &WorkerHome) -> (Vec<(String, usize)>, usize) {
    let (code, text) = home.command(BINARY, &["status", "--instances", "--json"]).await;
    assert_eq!(code, 0, "{text}");
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    let count = |accounts: &serde_json::Value| accounts.as_array().unwrap().len();
    let mut shares: Vec<_> = told["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|instance| (instance["worker"].as_str().unwrap().to_owned(), count(&instance["accounts"])))
        .collect();
    shares.sort();
    (shares, count(&told["unowned"]))
}

async fn wait_shares(home: &WorkerHome, expected: &[(&str, usize)]) {
    let expected: Vec<_> = expected.iter().map(|(worker, count)| ((*worker).to_owned(), *count)).collect();
    wait_until(&format!("{expected:?}"), LONG, async || shares(home).await == (expected.clone(), 0)).await;
}

/// One joins, one more, one stops, one is killed; all the time there is something to write.
async fn come_and_go(stage: Stage, config: WorkerConfig) {
    let four = ACCOUNTS[..4].iter().fold(config, |config, (_, key)| config.with("signer", format!("key = {key:?}")));
    let home = WorkerHome::new(&four);
    stage.topology(&home).await;
    let start = |name| home.start_with(BINARY, &[("CHAINWRITER__WORKER__INSTANCE", name)]);
    let mut a = start("a");
    wait_log(&a, "the lane owns its account").await;
    wait_shares(&home, &[("acme/a", 4)]).await;
    publish(&stage, 0..100).await;
    let mut b = start("b");
    wait_shares(&home, &[("acme/a", 2), ("acme/b", 2)]).await;
    wait_log_times(&a, "the account goes to another instance", 2).await;
    publish(&stage, 100..200).await;
    let mut c = start("c");
    wait_until("nobody has two more", LONG, async || {
        let (shares, unowned) = shares(&home).await;
        let mut counts: Vec<_> = shares.iter().map(|(_, count)| *count).collect();
        counts.sort_unstable();
        (counts, unowned) == (vec![1, 1, 2], 0)
    })
    .await;
    publish(&stage, 200..300).await;
    assert_eq!(a.stop().await.code(), Some(0));
    wait_shares(&home, &[("acme/b", 2), ("acme/c", 2)]).await;
    publish(&stage, 300..400).await;
    b.kill().await;
    wait_shares(&home, &[("acme/c", 4)]).await;
    stage.wait_empty(QUEUE).await;
    assert_eq!(c.stop().await.code(), Some(0));
    let mut written = Vec::new();
    for account in 0..4 {
        let transactions = stage.transactions_of(account).await;
        let nonces: Vec<_> = transactions.iter().map(|(nonce, ..)| *nonce).collect();
        assert_eq!(nonces, (0..nonces.len() as u64).collect::<Vec<_>>(), "no gap");
        assert!(!nonces.is_empty(), "account {account} took part");
        written.extend(transactions.into_iter().map(|(_, data, _)| data));
    }
    let mut expected: Vec<_> = (0..400).map(|number| calldata(&body(number))).collect();
    written.sort();
    expected.sort();
    assert_eq!(written, expected);
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}

#[tokio::test]
async fn accounts_are_spread_evenly_over_the_instances_that_are_there() {
    let Some(stage) = Stage::with_chain(large_blocks()).await else { return };
    let config = stage.config();
    come_and_go(stage, config).await;
}

#[tokio::test]
async fn accounts_are_spread_evenly_on_postgres() {
    let (Some(stage), Some(journal)) = (Stage::with_chain(large_blocks()).await, shared_journal().await) else {
        return;
    };
    let config = stage.config().with("journal", journal);
    come_and_go(stage, config).await;
}

/// One host has lost its way to the node, the other has not.
#[tokio::test]
async fn an_instance_that_is_cut_off_from_the_node_leaves_its_accounts_to_one_that_is_not() {
    let Some(stage) = Stage::with_chain(large_blocks()).await else { return };
    let way = TcpProxy::start(stage.anvil.address()).await;
    let two =
        ACCOUNTS[..2].iter().fold(stage.config(), |config, (_, key)| config.with("signer", format!("key = {key:?}")));
    let home = WorkerHome::new(&two);
    stage.topology(&home).await;
    let instance = |name| ("CHAINWRITER__WORKER__INSTANCE", name);
    let mut a = home.start_with(BINARY, &[instance("a"), ("CHAINWRITER__CHAIN__ENDPOINTS", &way.url())]);
    let mut b = home.start_with(BINARY, &[instance("b")]);
    wait_log(&a, "the lane owns its account").await;
    wait_shares(&home, &[("acme/a", 1), ("acme/b", 1)]).await;
    way.set_mode(Mode::Refuse);
    way.cut_all();
    publish(&stage, 0..40).await;
    wait_shares(&home, &[("acme/a", 0), ("acme/b", 2)]).await;
    stage.wait_empty(QUEUE).await;
    assert!(a.is_running() && b.is_running());
    assert_eq!((a.stop().await.code(), b.stop().await.code()), (Some(0), Some(0)));
    let mut written = Vec::new();
    for account in 0..2 {
        written.extend(stage.transactions_of(account).await.into_iter().map(|(_, data, _)| data));
    }
    written.sort();
    let mut expected: Vec<_> = (0..40).map(|number| calldata(&body(number))).collect();
    expected.sort();
    assert_eq!(written, expected);
}
