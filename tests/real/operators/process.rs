//! The process as systemd sees it: what it reports, what it takes over at SIGHUP, how it ends.

use std::time::Duration;

use tokio::net::UnixDatagram;

use crate::stage::{BINARY, LONG, QUEUE, Stage, wait_log, wait_log_times};
use crate::support::{Mode, TcpProxy, WorkerHome, wait_until, with_id};

/// Reads messages until one holds this text.
pub async fn wait_for_word(socket: &UnixDatagram, word: &str) {
    let mut heard = Vec::new();
    let listen = async {
        loop {
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).await.unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains(word) {
                return;
            }
            heard.push(text);
        }
    };
    assert!(tokio::time::timeout(LONG, listen).await.is_ok(), "not told: {word}; heard {heard:?}");
}

#[tokio::test]
async fn systemd_is_told_that_it_is_ready_how_it_goes_that_it_lives_and_that_it_stops() {
    let Some(stage) = Stage::set().await else { return };
    let home = WorkerHome::new(&stage.config());
    let path = home.folder().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "3000000")];
    let mut worker = home.start_with(BINARY, &environment);
    wait_for_word(&socket, "READY=1").await;
    wait_for_word(&socket, "STATUS=consuming; 0 in flight, block ").await;
    for _ in 0..3 {
        wait_for_word(&socket, "WATCHDOG=1").await;
    }
    worker.signal("TERM");
    wait_for_word(&socket, "STOPPING=1").await;
    assert_eq!(worker.exit().await.code(), Some(0));
}

/// Readiness is not the broker's: a start without one must not fail.
#[tokio::test]
async fn it_is_ready_without_a_broker_and_a_node_and_says_what_is_away() {
    let Some(stage) = Stage::set().await else { return };
    let mut config = stage.config();
    config.broker_uri = "amqp://guest:guest@127.0.0.1:1/%2f".to_owned();
    config.endpoint = "http://127.0.0.1:1".to_owned();
    let home = WorkerHome::new(&config);
    let path = home.folder().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut worker = home.start_with(BINARY, &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    wait_for_word(&socket, "READY=1").await;
    wait_for_word(&socket, "paused (node_unreachable)").await;
    assert!(worker.log().contains("cannot connect at 127.0.0.1:1"), "{}", worker.log());
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// A drain that cannot end, because the broker takes nothing any more, is cut short by a second signal.
#[tokio::test]
async fn a_second_signal_hurries() {
    let Some(stage) = Stage::set().await else { return };
    let proxy = TcpProxy::start(stage.rabbit.address()).await;
    let mut config = stage.config().with("worker", "drain_deadline = \"5m\"").with("broker", "call_timeout = \"60s\"");
    config.broker_uri = stage.rabbit.uri_through(proxy.addr(), &stage.vhost);
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    wait_log(&worker, "connected to the broker").await;
    proxy.set_mode(Mode::Swallow);
    // Its dead letter waits for a publisher confirm that never comes.
    stage.amqp.publish(QUEUE, with_id("a"), b"fine").await;
    worker.signal("TERM");
    wait_until("it drains", LONG, async || worker.log().contains("stopping")).await;
    let hurried = std::time::Instant::now();
    worker.signal("TERM");
    assert_eq!(worker.exit().await.code(), Some(0));
    assert!(hurried.elapsed() < Duration::from_secs(30));
}

/// Covers B39. The account pauses because of a cap that is too low, and goes on without a restart.
#[tokio::test]
async fn an_invalid_file_changes_nothing_and_a_valid_one_what_is_safe() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let quiet = || stage.config().with("log", "level = \"info\"");
    let too_low = quiet().with("fees", "max_fee = \"1\"");
    let home = WorkerHome::new(&too_low);
    stage.topology(&home).await;
    let mut worker = home.start(BINARY);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    wait_log(&worker, "fee_above_cap").await;

    home.configure(&quiet().with("fees", "max_fee = \"a lot\"").with("retry", "max_attempts = 0"));
    worker.signal("HUP");
    wait_log_times(&worker, "nothing of it is taken over, all stays as it is", 2).await;
    let faults: Vec<_> = worker.log().lines().filter(|line| line.contains("has a fault")).map(str::to_owned).collect();
    assert!(faults.iter().any(|fault| fault.contains("fees.max_fee")), "{faults:#?}");
    assert!(faults.iter().any(|fault| fault.contains("retry.max_attempts")), "{faults:#?}");
    assert_ne!(stage.depth(QUEUE).await, (0, 0), "it waits still");
    assert!(!worker.log().contains("DEBUG"));

    let mended = stage.config().with("fees", "max_fee = \"100 gwei\"").with("log", "level = \"debug\"");
    home.configure(&mended.with("broker", "prefetch = 7"));
    worker.signal("HUP");
    for key in ["fees.max_fee", "log.level"] {
        wait_log(&worker, &format!("this change is taken over key=\"{key}\"")).await;
    }
    let needs_restart = "these changes need a restart, and stay as they were until then keys=\"broker.prefetch\"";
    wait_log(&worker, needs_restart).await;
    stage.wait_empty(QUEUE).await;
    wait_log(&worker, "DEBUG").await;

    worker.signal("HUP");
    wait_log_times(&worker, needs_restart, 2).await;
    assert!(worker.is_running());
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
}
