//! Breaks everything around chainwriter by a plan that one seed gives, while messages are published, and then checks the
//! chain, the queues and the events for what is promised: nothing lost, nothing twice. `make chaos` runs it.
#![allow(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "it speaks to a person, and stops at what does not hold"
)]

use std::process::ExitCode;

use anyhow::{bail, ensure};
use chainwriter_tools::support;
use clap::Parser;
use clap::builder::PossibleValuesParser;
use tokio::signal::unix::{SignalKind, signal};

use journal::Journal;
use run::Run;

mod checker;
mod cluster;
mod copies;
mod crew;
mod evidence;
mod faults;
mod journal;
mod lagging;
mod leaks;
mod link;
mod listener;
mod messages;
mod operator;
mod other_node;
mod producer;
mod random;
mod record;
mod report;
mod restoring;
mod run;
mod schedule;
mod second;
mod standing;

const VHOST: &str = "/";
const QUEUE: &str = "chaos.writes";
const DEAD: &str = "chaos.writes.dead";
const MARKER: &str = "chaos.writes.journal";
/// Keeps every event from the start.
const EVENTS: &str = "chaos.events";
/// Here stands the contract that refuses some requests for ever and others while it is closed.
const CONTRACT: &str = "0x000000000000000000000000000000000000c0de";
/// Its functions, where messages may share transactions.
const KEEP: &str = "keep(uint256,uint256)";
const KEEP_MANY: &str = "keepMany(uint256[],uint256[])";
/// The workers' accounts, with their keys.
const SIGNERS: [(&str, &str); 3] = [support::ACCOUNTS[0], support::ACCOUNTS[1], support::ACCOUNTS[2]];
/// Another sender with the keys sends to this account; the worker never does.
const STRANGER: &str = support::ACCOUNTS[9].0;
const BLOCK_GAS: u64 = 30_000_000;
const FINALITY: u64 = 2;
const MAX_LAG: u64 = 4;
const MAX_FEE_GWEI: u64 = 50;
const FULL_BALANCE: u128 = 10_000_000_000_000_000_000_000;

/// Findings of one kind that are printed at most; all are in the kept folder.
const SHOWN: usize = 20;

#[derive(Parser)]
struct Options {
    /// For how long there are faults, in seconds.
    #[arg(long, default_value_t = 600)]
    duration: u64,
    /// Gives the plan of the faults and the messages; without one, a new one.
    #[arg(long)]
    seed: Option<u64>,
    /// Processes on one journal.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// What they share: sqlite or postgres.
    #[arg(long, default_value = "sqlite")]
    journal: String,
    /// Messages in one transaction at most.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Nodes of RabbitMQ: one, or a cluster of three, whose nodes fail.
    #[arg(long, default_value_t = 1, value_parser = nodes)]
    cluster: usize,
    /// Messages in a second.
    #[arg(long, default_value_t = 12)]
    rate: u32,
    /// Only these parts fail, with commas between; with `none`, nothing does.
    #[arg(long, value_delimiter = ',', value_parser = parts())]
    only: Vec<String>,
}

fn nodes(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("one node, or a cluster of 3".to_owned()),
    }
}

fn parts() -> PossibleValuesParser {
    PossibleValuesParser::new(schedule::PARTS.into_iter().chain(["none"]))
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    tokio::select! {
        ended = Box::pin(run(options)) => match ended {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("chaos: {error:#}");
                ExitCode::FAILURE
            }
        },
        () = interrupted() => {
            eprintln!("chaos: interrupted; nothing was checked, and everything that was started ends");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() {
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        },
        _ => std::future::pending().await,
    }
}

/// Returns whether all that was promised holds.
async fn run(options: Options) -> anyhow::Result<bool> {
    ensure!(options.workers > 0 && options.rate > 0, "without workers or messages nothing is shown");
    let Some(journal) = Journal::start(&options.journal).await else {
        bail!("JOURNAL={}: there are sqlite and postgres", options.journal);
    };
    let seed = options.seed.unwrap_or_else(new_seed);
    println!(
        "Seed {seed}: {} s of faults, {} workers on one journal ({}), {} messages in a transaction at most, {} broker nodes",
        options.duration, options.workers, options.journal, options.batch, options.cluster
    );
    let mut run = Run::start(seed, &options, journal).await?;
    let report = match Box::pin(run.storm(&options)).await {
        Ok(report) => report,
        Err(error) => {
            println!("Journal and logs are kept in {}", run.keep(&format!("{error:#}")).await?.display());
            return Err(error);
        }
    };
    print!("\n{}", report.text(SHOWN));
    println!("{}", serde_json::to_string(&report.line())?);
    if !report.is_good() {
        println!("Journal, logs and findings are kept in {}", run.keep(&report.text(usize::MAX)).await?.display());
    }
    Ok(report.is_good())
}

fn new_seed() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from(since_epoch.subsec_nanos()) ^ u64::from(std::process::id())
}
