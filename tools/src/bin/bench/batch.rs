//! Records that share transactions, beside records with one each, beside what the node takes of writes without a contract.

use serde_json::json;

use crate::node::Node;
use crate::report::{Report, median};
use crate::stage::{self, Stage};
use crate::support::{Rabbit, RabbitConfig};
use crate::{Options, daemon, direct};

const BYTES: usize = 256;
/// The contract that the first account's first transaction creates.
const CONTRACT: &str = "0x5fbdb2315678afecb367f032d93f642f64180aa3";

/// The cost of one run.
struct Run {
    per_s: f64,
    gas: f64,
    cpu_us: f64,
}

pub(crate) async fn run(options: &Options, way: usize) {
    let (mut ceilings, mut alone, mut batched) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.runs {
        let chain = stage::chain_with(options.block_time()).await;
        ceilings.push(direct::per_second(&chain, &[0], options.messages, BYTES, way).await);
        drop(chain);
        for (runs, requests) in [(&mut alone, 1), (&mut batched, options.batch)] {
            let run = records(options, requests).await;
            eprintln!(
                "{requests} in a transaction: {:.0} a second, {:.0} gas, {:.0} us",
                run.per_s, run.gas, run.cpu_us
            );
            runs.push(run);
        }
    }
    let middle = |runs: &[Run], of: fn(&Run) -> f64| median(runs.iter().map(of).collect());
    let per_s = middle(&batched, |run| run.per_s);
    let ratios = batched.iter().zip(&ceilings).map(|(run, ceiling)| run.per_s / ceiling).collect();
    Report::new("batch")
        .figure("messages", options.messages as f64, 0, "")
        .figure("body_bytes", BYTES as f64, 0, "B")
        .figure("block_ms", options.block_ms as f64, 0, "ms")
        .figure("max_requests", options.batch as f64, 0, "")
        .figure("direct_per_s", median(ceilings), 0, "1/s")
        .figure("per_s", per_s, 0, "1/s")
        .figure("ratio", median(ratios), 3, "")
        .figure("gas_per_message", middle(&batched, |run| run.gas), 0, "")
        .figure("cpu_us_per_message", middle(&batched, |run| run.cpu_us), 1, "us")
        .figure("alone_per_s", middle(&alone, |run| run.per_s), 0, "1/s")
        .figure("alone_gas_per_message", middle(&alone, |run| run.gas), 0, "")
        .figure("alone_cpu_us_per_message", middle(&alone, |run| run.cpu_us), 1, "us")
        .print();
}

/// As many in a transaction at most.
async fn records(options: &Options, requests: usize) -> Run {
    let rabbit = Rabbit::start(RabbitConfig::default()).await;
    let chain = stage::chain_with(options.block_time()).await;
    let lines = [
        ("batch", format!("max_requests = {requests}")),
        ("route", format!("mode = \"record\"\nto = \"{CONTRACT}\"\ngas = \"estimate\"")),
        ("chain", format!("in_flight = {}", options.in_flight)),
    ];
    let stage = Stage::set(&rabbit, &chain.url(), BYTES, &lines).await;
    let (code, text) = stage.home.command(&stage.binary, &["contract", "deploy"]).await;
    assert!(code == 0 && text.contains(CONTRACT), "{text}");
    stage.fill(options.messages, BYTES).await;
    let (begun, messages) = (chain.block_number().await.unwrap(), options.messages as f64);
    let taken = daemon::until_final(&stage, options.messages, 1).await;
    Run {
        per_s: messages / taken.wall.as_secs_f64(),
        gas: gas_since(&chain, begun).await / messages,
        cpu_us: taken.cpu_s * 1e6 / messages,
    }
}

/// All that was used in later blocks.
async fn gas_since(chain: &Node, block: u64) -> f64 {
    let mut gas = 0;
    for number in block + 1..=chain.block_number().await.unwrap() {
        let block = chain.call("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await.unwrap();
        gas += u64::from_str_radix(block["gasUsed"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    }
    gas as f64
}
