//! What the host lacks: file handles, names, the right time.

use std::time::Duration;

use crate::stage::{BINARY, LONG, QUEUE, Stage, wait_log, wait_log_times};
use crate::support::{Mode, TcpProxy, Worker, WorkerHome, with_id};

fn processor_time(worker: &Worker) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", worker.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// It neither ends nor spins.
async fn assert_patient(worker: &mut Worker) {
    let before = processor_time(worker);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = processor_time(worker) - before;
    assert!(worker.is_running());
    assert!(used < Duration::from_millis(1000), "{used:?} of processor time in two seconds");
}

/// C59: no connection can be made for want of file handles. It tries on, and goes on when there are some.
#[tokio::test]
async fn without_file_handles_it_waits_for_some() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let proxy = TcpProxy::start(stage.rabbit.address()).await;
    let mut config = stage.config();
    config.broker_uri = stage.rabbit.uri_through(proxy.addr(), &stage.vhost);
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    proxy.set_mode(Mode::Refuse);
    let mut worker = home.start(BINARY);
    wait_log(&worker, "the lane owns its account").await;
    wait_log(&worker, "the broker cannot be used").await;
    let limit = |files: String| {
        let set = std::process::Command::new("prlimit")
            .args(["--pid", &worker.pid().to_string(), &format!("--nofile={files}:")])
            .status();
        assert!(set.unwrap().success());
    };
    let open = std::fs::read_dir(format!("/proc/{}/fd", worker.pid())).unwrap().count();
    limit(open.saturating_sub(2).to_string());
    proxy.set_mode(Mode::Pass);
    stage.amqp.publish(QUEUE, with_id("order-1"), b"good").await;
    wait_log_times(&worker, "Too many open files", 2).await;
    limit("1024".to_owned());
    wait_log(&worker, "connected to the broker").await;
    stage.wait_empty(QUEUE).await;
    assert_patient(&mut worker).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 1);
}

/// C59: neither the broker's name nor the node's can be found. It waits, and finds the broker under its new name.
#[tokio::test]
async fn names_that_cannot_be_found_are_asked_for_again() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let mut config = stage.config();
    config.endpoint = "http://node.invalid:8545".to_owned();
    let home = WorkerHome::new(&config);
    let file = home.folder().join("broker-uri");
    std::fs::write(&file, "amqp://guest:guest@broker.invalid:5672/%2f").unwrap();
    home.configure(&config.with("broker", format!("uri_file = {:?}", file.display().to_string())));
    let mut worker = home.start(BINARY);
    wait_log(&worker, "node_unreachable").await;
    wait_log_times(&worker, "cannot connect at broker.invalid", 3).await;
    assert_patient(&mut worker).await;
    std::fs::write(&file, stage.rabbit.uri(&stage.vhost)).unwrap();
    wait_log(&worker, "connected to the broker").await;
    assert_eq!(worker.stop().await.code(), Some(0));
}

/// The library that tells a process another time, where the system has it.
pub fn clock_library() -> Option<String> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let files = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    files.into_iter().find(|file| file.exists()).map(|file| file.display().to_string())
}

/// B42, C58: the clock jumps an hour ahead, and back. Delays are the broker's, leases go by what is seen, nothing expires.
#[tokio::test]
async fn a_clock_that_jumps_by_an_hour_changes_no_outcome() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let Some(clock) = clock_library() else {
        let required = std::env::var_os("CHAINWRITER_REQUIRE_SERVICES").is_some_and(|value| value == "1");
        assert!(!required, "libfaketime is missing; run scripts/setup.sh clock");
        eprintln!("skipped: libfaketime is missing; run scripts/setup.sh clock");
        return;
    };
    let config = stage.config_for(crate::support::contracts::REVERTS_ON_FF).await;
    let home = WorkerHome::new(&config.with("retry", "max_attempts = 3\ninitial_delay = \"1s\"\nmax_delay = \"1s\""));
    stage.topology(&home).await;
    let jump = home.folder().join("jump");
    let set = |offset: &str| std::fs::write(&jump, offset).unwrap();
    set("+0");
    let path = jump.display().to_string();
    let environment = [
        ("LD_PRELOAD", clock.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", path.as_str()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let mut worker = home.start_with(BINARY, &environment);
    wait_log(&worker, "the lane owns its account").await;
    for (round, offset) in ["+1h", "+0", "-1h", "+0"].into_iter().enumerate() {
        stage.amqp.publish(QUEUE, with_id(&format!("good-{round}")), format!("{round}").as_bytes()).await;
        stage.amqp.publish(QUEUE, with_id(&format!("bad-{round}")), b"\xffbad").await;
        wait_log(&worker, &format!("request.id=bad-{round} request.attempt=0 verdict=Accept")).await;
        set(offset);
        let dead = stage.amqp.wait_for(crate::stage::DEAD, LONG).await;
        assert_eq!((dead.id(), dead.header("cw-attempt").as_deref()), (format!("bad-{round}"), Some("2")));
        stage.wait_state(&home, &format!("good-{round}"), "final").await;
    }
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.log().matches("the lane owns its account").count(), 1, "the lease was kept: {}", worker.log());
    assert_eq!(worker.stop().await.code(), Some(0));
    assert_eq!(stage.transactions_of(0).await.len(), 4);
}
