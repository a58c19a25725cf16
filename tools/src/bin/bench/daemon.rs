//! The daemon under measurement: its processes' time and memory, and when everything is final.

use std::time::{Duration, Instant};

use futures_util::StreamExt;

use crate::stage::Stage;
use crate::support::{Amqp, Worker};

/// Kernel ticks in a second (`getconf CLK_TCK`), the same on every Linux that this runs on.
const TICKS: f64 = 100.0;
const PATIENCE: Duration = Duration::from_secs(60);

/// The cost of a run of one or more processes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// From the start of the processes to the last event.
    pub(crate) wall: Duration,
    /// User and system time of all processes.
    pub(crate) cpu_s: f64,
    /// The highest resident memory of one.
    pub(crate) memory_mib: f64,
    /// Commits of the journal, as a log at `debug` shows them.
    pub(crate) commits: usize,
}

/// Starts this many processes and waits for the events of this many final requests.
pub(crate) async fn until_final(stage: &Stage, messages: usize, processes: usize) -> Taken {
    let (_link, mut events): (Amqp, _) = stage.events().await;
    let began = Instant::now();
    let mut workers: Vec<_> = (0..processes).map(|_| stage.home.start(&stage.binary)).collect();
    for told in 0..messages {
        let event = tokio::time::timeout(PATIENCE, events.next()).await;
        let event = event.unwrap_or_else(|_| panic!("{told} of {messages} are final; {}", tails(&workers)));
        assert_eq!(event.unwrap().unwrap().routing_key.as_str(), "final");
    }
    let wall = began.elapsed();
    let (mut cpu_s, mut memory_mib, mut commits) = (0.0, 0.0_f64, 0);
    for worker in &mut workers {
        cpu_s += cpu_seconds(worker.pid());
        memory_mib = memory_mib.max(peak_mib(worker.pid()));
        commits += worker.log().matches("committed").count();
        assert_eq!(worker.stop().await.code(), Some(0), "{}", worker.log());
    }
    // A delivery that another process settled is acked at its holder's next sweep. Cut off before, it comes again and is known.
    assert!(processes > 1 || stage.ready().await == 0, "the queue is empty");
    Taken { wall, cpu_s, memory_mib, commits }
}

fn tails(workers: &[Worker]) -> String {
    let tail = |worker: &Worker| {
        let log = worker.log();
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    };
    workers.iter().map(tail).collect::<Vec<_>>().join("\n--\n")
}

/// User and system time so far (proc(5), `stat`).
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may hold blanks.
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / TICKS
}

/// The highest resident memory so far (proc(5), `status`).
pub(crate) fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
