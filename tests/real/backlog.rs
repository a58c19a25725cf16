//! Many messages at once: how much is taken in, and what an outage makes of it.

use std::time::Duration;

use crate::stage::{BINARY, DEAD, LONG, QUEUE, Stage};
use crate::support::{ACCOUNTS, AnvilConfig, Mode, TcpProxy, WorkerHome, wait_until};

const MESSAGES: u64 = 10_000;
const PREFETCH: u64 = 200;

/// The most memory the process ever used, in MiB.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// C49, B20: ten thousand messages wait at the start. They are taken in a prefetch at a time, in bounded memory; while the
/// node is away nothing more comes in, nothing goes round in circles, and no attempt is used.
#[tokio::test]
async fn a_large_backlog_is_drained_in_bounded_memory_and_stands_still_while_the_node_is_away() {
    let chain =
        AnvilConfig { block_time: Some(Duration::from_secs(1)), gas_limit: 300_000_000, ..AnvilConfig::default() };
    let Some(stage) = Stage::with_chain(chain).await else { return };
    let node = TcpProxy::start(stage.anvil.address()).await;
    let config = stage.config().with("broker", format!("prefetch = {PREFETCH}")).with("retry", "max_attempts = 1");
    let mut config = config.with("chain", "timeout = \"1s\"\nfinality = 1\nin_flight = 400");
    config.endpoint = node.url();
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let lines: String = (0..MESSAGES).map(|number| format!("{{\"id\":\"m-{number}\"}}\n")).collect();
    let (code, text) = home.command_with_input(BINARY, &["publish", "--id", "/id", "-"], lines.as_bytes()).await;
    assert_eq!(code, 0, "{text}");
    let mut worker = home.start(BINARY);
    wait_until("a part is written", LONG, async || {
        let (_, unacked) = stage.depth(QUEUE).await;
        assert!(unacked <= PREFETCH, "{unacked} are unacked");
        stage.anvil.nonce(ACCOUNTS[0].0, "latest").await.is_ok_and(|nonce| nonce >= 5 * PREFETCH)
    })
    .await;
    node.set_mode(Mode::Refuse);
    wait_until("deliveries are paused", LONG, async || stage.consumers().await == 0).await;
    let deliveries = || worker.log().matches("verdict=").count();
    wait_until("what was on its way is taken in", LONG, async || {
        let before = deliveries();
        tokio::time::sleep(Duration::from_millis(500)).await;
        deliveries() == before
    })
    .await;
    let (before, began) = (deliveries(), std::time::Instant::now());
    let (ready, _) = stage.depth(QUEUE).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(deliveries() - before < 4, "{} deliveries within {:?}", deliveries() - before, began.elapsed());
    assert_eq!((stage.depth(QUEUE).await.0, stage.depth(DEAD).await), (ready, (0, 0)), "they wait at the broker");
    let peak = peak_memory(worker.pid());
    assert!(peak < 256, "{peak} MiB");
    node.set_mode(Mode::Pass);
    wait_until("it goes on", LONG, async || stage.depth(QUEUE).await.0 < ready - PREFETCH).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let written = stage.transactions_of(0).await;
    let bodies: std::collections::BTreeSet<_> = written.iter().map(|(_, data, _)| data).collect();
    assert_eq!(bodies.len(), written.len(), "each once");
    assert_eq!(stage.depth(DEAD).await, (0, 0));
}
