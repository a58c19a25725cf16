//! Measures the daemon on a private RabbitMQ and a private Geth or Anvil, beside the node's own ceiling in the same run. Each figure is
//! a row of a table and a line of JSON. `make bench` runs it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that fails can only stop"
)]

use std::time::Duration;

use chainwriter_tools::support;
use clap::Parser;

mod batch;
mod daemon;
mod direct;
mod forwarder;
mod growth;
mod latency;
mod node;
mod report;
mod stage;
mod takeover;
mod throughput;

/// All there are, in their order.
const BENCHES: [&str; 10] = [
    "throughput",
    "cost",
    "memory",
    "latency",
    "growth_journal",
    "start_up",
    "growth_body",
    "spread",
    "batch",
    "takeover",
];

#[derive(Parser, Clone)]
struct Options {
    /// Messages in each run.
    #[arg(long, default_value_t = 40_000)]
    messages: usize,
    /// Runs of each measurement; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only these benches, with commas between.
    #[arg(long, value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(BENCHES))]
    only: Vec<String>,
    /// A block's time, for the throughput.
    #[arg(long, default_value_t = 1000)]
    block_ms: u64,
    /// Transactions not in a block, for the batches.
    #[arg(long, default_value_t = stage::IN_FLIGHT)]
    in_flight: usize,
    /// The node to measure on; Geth where it is, if none is given.
    #[arg(long, value_enum)]
    node: Option<node::Program>,
    /// Messages in one transaction, for the batches.
    #[arg(long, default_value_t = 200)]
    batch: usize,
    /// Messages a second for the latency, where the throughput is not measured in the same run.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
}

impl Options {
    fn block_time(&self) -> Duration {
        Duration::from_millis(self.block_ms)
    }

    fn wants(&self, bench: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == bench)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let options = Options::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    node::choose(options.node);
    let needs_way = options.wants("throughput") || options.wants("growth_body") || options.wants("batch");
    let way = if needs_way { direct::best_batch(options.block_time()).await } else { 0 };
    let mut half = options.rate;
    if options.wants("throughput") {
        half = throughput::throughput(&options, way).await / 2.0;
    }
    if options.wants("cost") {
        throughput::cost().await;
    }
    if options.wants("memory") {
        throughput::memory().await;
    }
    if options.wants("latency") {
        latency::run(half).await;
    }
    if options.wants("growth_journal") {
        growth::journal(&options).await;
    }
    if options.wants("start_up") {
        growth::start_up().await;
    }
    if options.wants("growth_body") {
        growth::bodies(way).await;
    }
    if options.wants("spread") {
        growth::spread(&options).await;
    }
    if options.wants("batch") {
        batch::run(&options, way).await;
    }
    if options.wants("takeover") {
        takeover::run().await;
    }
}
