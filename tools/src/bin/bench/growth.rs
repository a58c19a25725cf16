//! What grows with use: settled rows in the journal, open rows at a start, the size of bodies, accounts, processes.

use std::time::{Duration, Instant};

use chainwriter::testing::BodyHash;
use rusqlite::Connection;

use crate::report::Report;
use crate::stage::{self, Stage};
use crate::support::{ACCOUNTS, Rabbit, RabbitConfig};
use crate::{Options, daemon, direct};

const BYTES: usize = 256;
const SETTLED: usize = 1_000_000;
const OPEN: usize = 100_000;
const POLL: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures with an empty journal and with one that holds a million settled requests.
pub(crate) async fn journal(options: &Options) {
    let (mut empty, mut full) = (0.0_f64, 0.0_f64);
    for _ in 0..options.runs {
        empty = empty.max(rate_with(options, 0).await);
        full = full.max(rate_with(options, SETTLED).await);
    }
    Report::new("growth_journal")
        .figure("settled_rows", SETTLED as f64, 0, "")
        .figure("empty_per_s", empty, 0, "1/s")
        .figure("full_per_s", full, 0, "1/s")
        .figure("ratio", full / empty, 3, "")
        .print();
}

async fn rate_with(options: &Options, settled: usize) -> f64 {
    let rabbit = Rabbit::start(RabbitConfig::default()).await;
    let chain = stage::chain().await;
    let stage = Stage::set(&rabbit, &chain.url(), BYTES, &[]).await;
    make_journal(&stage).await;
    fill_settled(&stage, settled);
    stage.fill(options.messages, BYTES).await;
    let taken = daemon::until_final(&stage, options.messages, 1).await;
    options.messages as f64 / taken.wall.as_secs_f64()
}

/// From the start of the process to the first delivery, with many open requests.
pub(crate) async fn start_up() {
    let rabbit = Rabbit::start(RabbitConfig::default()).await;
    let chain = stage::chain().await;
    let open = [("worker", format!("max_open = {}", 2 * OPEN))];
    let stage = Stage::set(&rabbit, &chain.url(), BYTES, &open).await;
    make_journal(&stage).await;
    let journal = Connection::open(stage.home.journal_file()).unwrap();
    let insert = "INSERT INTO requests (id, account, state, replay, retry, turn, body_hash, body, envelope, received_at, \
                  changed_at) SELECT 'open-' || n, 1, 'accepted', 0, 0, n, ?3, ?4, envelope, 0, 0 \
                  FROM (WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < ?1) SELECT n FROM s), \
                  (SELECT ?2 AS envelope)";
    let envelope = r#"{"origin":{"exchange":"","routing_key":"bench.writes"}}"#;
    let body = stage::body(0, BYTES);
    journal.execute(insert, (OPEN as i64, envelope, BodyHash::of(&body).as_bytes(), &body)).unwrap();
    drop(journal);
    stage.publish(0, stage::body(0, BYTES)).await.unwrap();
    let began = Instant::now();
    let mut worker = stage.home.start(&stage.binary);
    while stage.ready().await > 0 {
        assert!(worker.is_running() && began.elapsed() < PATIENCE, "no delivery: {}", worker.log());
        tokio::time::sleep(POLL).await;
    }
    let took = began.elapsed();
    worker.kill().await;
    Report::new("start_up")
        .figure("open_rows", OPEN as f64, 0, "")
        .figure("first_delivery_ms", took.as_secs_f64() * 1e3, 0, "ms")
        .print();
}

/// Bodies from 32 bytes to 64 KiB, each beside the node's own ceiling for them.
pub(crate) async fn bodies(way: usize) {
    let mut report = Report::new("growth_body");
    for (bytes, messages) in [(32, 30_000), (1024, 20_000), (4096, 8_000), (16_384, 2_000), (65_536, 500)] {
        let ceiling = direct::per_second(&stage::chain().await, &[0], messages, bytes, way).await;
        let rabbit = Rabbit::start(RabbitConfig::default()).await;
        let chain = stage::chain().await;
        let stage = Stage::set(&rabbit, &chain.url(), bytes, &[]).await;
        stage.fill(messages, bytes).await;
        let taken = daemon::until_final(&stage, messages, 1).await;
        let rate = messages as f64 / taken.wall.as_secs_f64();
        report = report
            .figure(format!("direct_per_s_{bytes}"), ceiling, 0, "1/s")
            .figure(format!("chainwriter_per_s_{bytes}"), rate, 0, "1/s")
            .figure(format!("ratio_{bytes}"), rate / ceiling, 3, "");
    }
    report.print();
}

/// One, two and four accounts, and one or two processes.
pub(crate) async fn spread(options: &Options) {
    let mut report = Report::new("spread");
    for (signers, processes) in [(1, 1), (2, 1), (4, 1), (4, 2)] {
        let rabbit = Rabbit::start(RabbitConfig::default()).await;
        let chain = stage::chain().await;
        let share = [("chain", format!("in_flight = {}", stage::IN_FLIGHT / signers))];
        let stage = Stage::with_signers(&rabbit, &chain.url(), BYTES, &share, signers).await;
        stage.fill(options.messages, BYTES).await;
        let taken = daemon::until_final(&stage, options.messages, processes).await;
        let mut sent = 0;
        for (address, _) in ACCOUNTS.iter().take(signers) {
            sent += stage::nonce(&chain, address).await;
        }
        assert_eq!(sent, options.messages as u64, "each message is one transaction");
        let rate = options.messages as f64 / taken.wall.as_secs_f64();
        report = report.figure(format!("per_s_{signers}_signers_{processes}_processes"), rate, 0, "1/s").figure(
            format!("cpu_us_{signers}_{processes}"),
            taken.cpu_s * 1e6 / options.messages as f64,
            1,
            "us",
        );
    }
    report.print();
}

/// A start and a stop make the tables and the account.
async fn make_journal(stage: &Stage) {
    let mut worker = stage.home.start(&stage.binary);
    crate::support::wait_until("the worker runs", Duration::from_secs(30), async || {
        worker.log().contains("the lane owns its account")
    })
    .await;
    assert_eq!(worker.stop().await.code(), Some(0), "{}", worker.log());
}

/// Requests of another account, final long ago.
fn fill_settled(stage: &Stage, rows: usize) {
    if rows == 0 {
        return;
    }
    let mut journal = Connection::open(stage.home.journal_file()).unwrap();
    let all = journal.transaction().unwrap();
    all.execute(
        "INSERT INTO accounts (id, chain_id, address, next_nonce) VALUES (99, 31337, zeroblob(20), ?1)",
        [rows as i64],
    )
    .unwrap();
    let series = "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < ?1) SELECT n FROM s)";
    let requests = format!(
        "INSERT INTO requests (seq, id, account, state, replay, retry, turn, body_hash, received_at, changed_at, settled_at) \
         SELECT 1000 + n, 'settled-' || n, 99, 'final', 0, 0, -n, randomblob(32), ?2, ?2, ?2 FROM {series}"
    );
    let transactions = format!(
        "INSERT INTO transactions (account, nonce, request, state, to_address, value, gas, created_at, closed_at, \
         final_hash, block_number, block_hash, gas_used) SELECT 99, n - 1, 1000 + n, 'succeeded', zeroblob(20), '0', 31240, \
         ?2, ?2, randomblob(32), n / 100, randomblob(32), 25096 FROM {series}"
    );
    let attempts = format!(
        "INSERT INTO signed_transactions (account, nonce, purpose, hash, raw, max_fee, tip, signed_at) SELECT 99, n - 1, 'write', \
         randomblob(32), randomblob(370), 2000000000, 1000000000, ?2 FROM {series}"
    );
    // Young enough not to be forgotten.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    for statement in [requests, transactions, attempts] {
        all.execute(&statement, [rows as i64, now]).unwrap();
    }
    all.commit().unwrap();
}
