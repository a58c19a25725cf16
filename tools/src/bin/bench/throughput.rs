//! How many messages a second become final, beside what the node takes; and what one costs.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::forwarder::Forwarder;
use crate::node;
use crate::report::{Report, median};
use crate::stage::{self, Stage};
use crate::support::{Rabbit, RabbitConfig};
use crate::{Options, daemon, direct};

const BYTES: usize = 256;
/// For what is counted and not timed.
const COUNTED: usize = 20_000;
const HELD: usize = 2_000;

/// The figures of each run of `throughput`, by name.
#[derive(Default)]
struct Runs(BTreeMap<&'static str, Vec<f64>>);

impl Runs {
    fn note(&mut self, name: &'static str, value: f64) {
        self.0.entry(name).or_default().push(value);
    }

    fn median(&self, name: &str) -> f64 {
        median(self.0[name].clone())
    }
}

/// Ways to set the gas of a write, and what the configuration says then.
fn ways() -> [(&'static str, String); 2] {
    [("fixed", format!("gas = {}", stage::gas(BYTES))), ("estimate", "gas = \"estimate\"".to_owned())]
}

/// Measures the daemon with its default configuration, with a fixed gas and with estimates. Returns the first one's rate.
pub(crate) async fn throughput(options: &Options, batch: usize) -> f64 {
    let micros = |cpu_s: f64| cpu_s * 1e6 / options.messages as f64;
    let mut by_way = ways().map(|(gas, line)| (gas, line, Runs::default()));
    for _ in 0..options.runs {
        let chain = stage::chain_with(options.block_time()).await;
        let idle = cpu_of(&chain.pids());
        let ceiling = direct::per_second(&chain, &[0], options.messages, BYTES, batch).await;
        let node_us_direct = micros(cpu_of(&chain.pids()) - idle);
        drop(chain);
        for (gas, line, runs) in &mut by_way {
            let rate = run(options, line, runs).await;
            eprintln!(
                "direct {ceiling:.0}, chainwriter with gas by {gas} {rate:.0} a second, ratio {:.2}",
                rate / ceiling
            );
            runs.note("direct", ceiling);
            runs.note("node_us_direct", node_us_direct);
            runs.note("ratio", rate / ceiling);
        }
    }
    for (gas, _, runs) in &by_way {
        report(options, batch, gas, runs);
    }
    by_way[0].2.median("rate")
}

async fn run(options: &Options, line: &str, runs: &mut Runs) -> f64 {
    let messages = options.messages;
    let micros = |cpu_s: f64| cpu_s * 1e6 / messages as f64;
    let rabbit = Rabbit::start(RabbitConfig::default()).await;
    let chain = stage::chain_with(options.block_time()).await;
    let stage = Stage::with_defaults(&rabbit, &chain.url(), &[("write", line.to_owned())]).await;
    stage.fill(messages, BYTES).await;
    let (broker, idle) = (cpu_of(&rabbit.pids()), cpu_of(&chain.pids()));
    let taken = daemon::until_final(&stage, messages, 1).await;
    let rate = messages as f64 / taken.wall.as_secs_f64();
    runs.note("rate", rate);
    runs.note("node_us", micros(cpu_of(&chain.pids()) - idle));
    runs.note("broker_us", micros(cpu_of(&rabbit.pids()) - broker));
    runs.note("cost", micros(taken.cpu_s));
    runs.note("memory", taken.memory_mib);
    rate
}

fn report(options: &Options, batch: usize, gas: &str, runs: &Runs) {
    Report::new("throughput")
        .text("node", node::program().name())
        .text("gas", gas)
        .figure("messages", options.messages as f64, 0, "")
        .figure("body_bytes", BYTES as f64, 0, "B")
        .figure("block_ms", options.block_ms as f64, 0, "ms")
        .figure("direct_batch", batch as f64, 0, "")
        .figure("direct_per_s", runs.median("direct"), 0, "1/s")
        .figure("chainwriter_per_s", runs.median("rate"), 0, "1/s")
        .figure("ratio", runs.median("ratio"), 3, "")
        .figure("cpu_us_per_message", runs.median("cost"), 1, "us")
        .figure("broker_us_per_message", runs.median("broker_us"), 1, "us")
        .figure("node_us_per_message", runs.median("node_us"), 1, "us")
        .figure("node_us_direct", runs.median("node_us_direct"), 1, "us")
        .figure("resident_mib", runs.median("memory"), 1, "MiB")
        .print();
}

fn cpu_of(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| daemon::cpu_seconds(*pid)).sum()
}

/// Node calls and commits of one message, seen by something between the daemon and the node, and in its log.
pub(crate) async fn cost() {
    let rabbit = Rabbit::start(RabbitConfig::default()).await;
    let chain = stage::chain().await;
    let forwarder = Forwarder::start(chain.address(), Instant::now()).await;
    let stage = Stage::set(&rabbit, &forwarder.url(), BYTES, &[("log", "level = \"debug\"".to_owned())]).await;
    stage.fill(COUNTED, BYTES).await;
    let taken = daemon::until_final(&stage, COUNTED, 1).await;
    let seen = forwarder.seen.lock().unwrap();
    let per_message = |count: usize| count as f64 / COUNTED as f64;
    Report::new("cost")
        .figure("messages", COUNTED as f64, 0, "")
        .figure("http_requests_per_message", per_message(seen.requests), 4, "")
        .figure("node_calls_per_message", per_message(seen.calls), 4, "")
        .figure("broadcasts_per_message", per_message(seen.broadcasts), 4, "")
        .figure("commits_per_message", per_message(taken.commits), 4, "")
        .print();
}

/// Measures the highest resident memory with this many deliveries held.
pub(crate) async fn memory() {
    let rabbit = Rabbit::start(RabbitConfig::default()).await;
    let chain = stage::chain().await;
    let held = [("broker", format!("prefetch = {HELD}")), ("chain", format!("in_flight = {HELD}"))];
    let stage = Stage::set(&rabbit, &chain.url(), BYTES, &held).await;
    stage.fill(COUNTED, BYTES).await;
    let taken = daemon::until_final(&stage, COUNTED, 1).await;
    Report::new("memory")
        .figure("in_flight", HELD as f64, 0, "")
        .figure("resident_mib", taken.memory_mib, 1, "MiB")
        .figure("chainwriter_per_s", COUNTED as f64 / taken.wall.as_secs_f64(), 0, "1/s")
        .figure("cpu_us_per_message", taken.cpu_s * 1e6 / COUNTED as f64, 1, "us")
        .print();
}
