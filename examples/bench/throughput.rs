//! How many messages a second become final, beside what the node takes; and what one costs.

use std::time::Instant;

use crate::forwarder::Forwarder;
use crate::report::{Report, median};
use crate::stage::{self, Stage};
use crate::support::{Rabbit, RabbitConfig};
use crate::{Options, daemon, direct};

const BYTES: usize = 256;
/// For what is counted and not timed.
const COUNTED: usize = 20_000;
const HELD: usize = 2_000;

/// The rate of the daemon.
pub(crate) async fn throughput(options: &Options, way: direct::Use) -> f64 {
    let (mut ceilings, mut rates, mut costs, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let ceiling = direct::per_second(&stage::chain().await, &[0], options.messages, BYTES, way).await;
        let rabbit = Rabbit::start(RabbitConfig::default()).await;
        let chain = stage::chain().await;
        let stage = Stage::set(&rabbit, &chain.url(), BYTES, &[]).await;
        stage.fill(options.messages, BYTES).await;
        let taken = daemon::until_final(&stage, options.messages, 1).await;
        let rate = options.messages as f64 / taken.wall.as_secs_f64();
        let cost = taken.cpu_s * 1e6 / options.messages as f64;
        eprintln!("direct {ceiling:.0}, chainwriter {rate:.0} a second, {cost:.0} us, {:.0} MiB", taken.memory_mib);
        ceilings.push(ceiling);
        rates.push(rate);
        costs.push(cost);
        ratios.push(rate / ceiling);
    }
    let rate = median(rates);
    Report::new("throughput")
        .figure("messages", options.messages as f64, 0, "")
        .figure("body_bytes", BYTES as f64, 0, "B")
        .figure("direct_connections", way.connections as f64, 0, "")
        .figure("direct_batch", way.batch as f64, 0, "")
        .figure("direct_per_s", median(ceilings), 0, "1/s")
        .figure("chainwriter_per_s", rate, 0, "1/s")
        .figure("ratio", median(ratios), 3, "")
        .figure("cpu_us_per_message", median(costs), 1, "us")
        .print();
    rate
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

/// The highest resident memory with so many deliveries held.
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
