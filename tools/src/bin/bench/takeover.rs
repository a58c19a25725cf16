//! How long an account stands still when the process that owns it is killed: from the kill to the next transaction at the node.

use std::time::{Duration, Instant};

use crate::node::Node;
use crate::report::{Report, median};
use crate::stage::{self, Stage};
use crate::support::{ACCOUNTS, Postgres, PostgresConfig, Rabbit, RabbitConfig, Worker};

const BYTES: usize = 256;
const KILLS: usize = 50;
/// The default of `lease.ttl`, which no take-over may need.
const LEASE: &str = "ttl = \"15s\"";
const POLL: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// Kills the owner again and again: the only worker, which is started again at once, and one of two.
pub(crate) async fn run() {
    for journal in ["sqlite", "postgres"] {
        for workers in [1, 2] {
            let mut taken = measure(journal, workers).await;
            taken.sort_by(f64::total_cmp);
            Report::new("takeover")
                .text("journal", journal)
                .figure("workers", workers as f64, 0, "")
                .figure("kills", KILLS as f64, 0, "")
                .figure("max_ms", taken[KILLS - 1], 0, "ms")
                .figure("p50_ms", median(taken), 0, "ms")
                .print();
        }
    }
}

async fn measure(journal: &str, count: usize) -> Vec<f64> {
    let rabbit = Rabbit::start(RabbitConfig::default()).await;
    let chain = stage::chain().await;
    let mut lines = vec![("lease", LEASE.to_owned())];
    let server = match journal {
        "postgres" => Some(Postgres::start(PostgresConfig { fsync: true, ..PostgresConfig::default() }).await),
        _ => None,
    };
    if let Some(server) = &server {
        lines.push(("journal", format!("url = {:?}", server.new_schema().await)));
    }
    let stage = Stage::set(&rabbit, &chain.url(), BYTES, &lines).await;
    let mut owner = stage.home.start(&stage.binary);
    write(&stage, &chain, 0).await;
    let mut standby = None;
    let mut taken = Vec::with_capacity(KILLS);
    for number in 1..=KILLS {
        if count == 2 {
            standby = Some(start_standby(&stage).await);
        }
        let began = Instant::now();
        owner.kill().await;
        owner = standby.take().unwrap_or_else(|| stage.home.start(&stage.binary));
        write(&stage, &chain, number).await;
        taken.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    owner.kill().await;
    taken
}

async fn start_standby(stage: &Stage) -> Worker {
    let standby = stage.home.start(&stage.binary);
    let began = Instant::now();
    while !(standby.log().contains("standing by") && standby.log().contains("deliveries flow")) {
        assert!(began.elapsed() < PATIENCE, "no worker stands by: {}", standby.log());
        tokio::time::sleep(POLL).await;
    }
    standby
}

/// Publishes a message and returns when the node has its transaction.
async fn write(stage: &Stage, chain: &Node, number: usize) {
    stage.publish(number, stage::body(number, BYTES)).await.unwrap();
    let (expected, began) = (u64::try_from(number + 1).unwrap(), Instant::now());
    while chain.nonce(ACCOUNTS[0].0, "pending").await != Ok(expected) {
        assert!(began.elapsed() < PATIENCE, "message {number} is not written");
        tokio::time::sleep(POLL).await;
    }
}
