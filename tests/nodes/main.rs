//! The conformance of real nodes: each property of a write on each node program that is here, on private nodes.
//!
//! A run takes many minutes, and the node programs take minutes to build: `make test-nodes`.
#![allow(unreachable_pub, missing_docs, dead_code, reason = "a test binary has no users")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "the lint's own exception for tests misses their helpers"
)]

#[path = "../real/stage.rs"]
mod stage;
#[path = "../support/mod.rs"]
mod support;

mod blocks;
mod case;
mod limits;
mod node;
mod outcomes;
mod properties;
mod records;
mod table;
mod writes;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};

use node::Kind;
use properties::{Outcome, PROPERTIES, Property};
use table::{Cell, Table};

/// Time for one property on one node.
const LONGEST: Duration = Duration::from_secs(300);

/// Returns those that the environment names, with spaces between: `CHAINWRITER_NODES`, `CHAINWRITER_ONLY`.
fn chosen<T: Copy>(variable: &str, all: &[T], name: impl Fn(&T) -> &'static str) -> Vec<T> {
    let asked = std::env::var(variable).unwrap_or_default();
    let names: Vec<_> = asked.split_whitespace().collect();
    for asked in &names {
        let known: Vec<_> = all.iter().map(&name).collect();
        assert!(known.contains(asked), "{variable} names {asked:?}; known are {}", known.join(" "));
    }
    all.iter().copied().filter(|one| names.is_empty() || names.contains(&name(one))).collect()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// Runs one property on one node, and prints the result.
async fn run(kind: Kind, property: Property) -> (Kind, Property, Cell) {
    let began = Instant::now();
    let ran = AssertUnwindSafe(tokio::time::timeout(LONGEST, (property.run)(kind))).catch_unwind().await;
    let cell = match ran {
        Ok(Ok(Outcome::Pass)) => Cell::Pass,
        Ok(Ok(Outcome::NotApplicable(why))) => Cell::NotApplicable(why.to_owned()),
        Ok(Err(_)) => Cell::Fail(format!("not within {LONGEST:?}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Cell::Fail(text.unwrap_or_default().lines().next().unwrap_or_default().chars().take(300).collect())
        }
    };
    eprintln!("{:5.1} s  {} {}: {cell}", began.elapsed().as_secs_f64(), kind.name(), property.name);
    (kind, property, cell)
}

/// `CHAINWRITER_NODES_SECONDS` bounds how long new properties begin; what is left out then is printed.
#[tokio::test]
#[ignore = "takes many minutes and nodes that take minutes to build: make test-nodes"]
async fn each_node_has_each_property() {
    assert!(support::services_are_here(), "RabbitMQ and Anvil are needed for all of it: scripts/setup.sh");
    let kinds = chosen("CHAINWRITER_NODES", &Kind::ALL, Kind::name);
    let properties = chosen("CHAINWRITER_ONLY", PROPERTIES, |property| property.name);
    let (here, missing): (Vec<_>, Vec<_>) = kinds.into_iter().partition(Kind::is_here);
    for kind in &missing {
        eprintln!("SKIPPED: {} is missing here; run scripts/setup.sh {}", kind.name(), kind.part());
    }
    assert!(!here.is_empty(), "none of these nodes is here");
    let until = number("CHAINWRITER_NODES_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    // Each property on every node before the next one, so that a bound cuts off the same for all.
    let pairs = properties.iter().flat_map(|property| here.iter().map(|kind| (*kind, *property)));
    let at_once = number("CHAINWRITER_NODES_AT_ONCE").unwrap_or(3) as usize;
    let ran = futures_util::stream::iter(pairs)
        .map(|(kind, property)| async move {
            match until {
                Some(until) if Instant::now() > until => (kind, property, Cell::NotRun),
                _ => run(kind, property).await,
            }
        })
        .buffer_unordered(at_once)
        .collect::<Vec<_>>()
        .await;
    let mut table = Table::documented();
    for kind in &here {
        table.name(*kind, kind.program().await);
    }
    for (kind, property, cell) in &ran {
        if *cell == Cell::NotRun {
            eprintln!("LEFT OUT for lack of time: {} {}", kind.name(), property.name);
        }
        table.set(*kind, *property, cell.clone());
    }
    eprintln!("\n{}", table.text());
    let failed: Vec<_> = ran.iter().filter(|(.., cell)| matches!(cell, Cell::Fail(_))).collect();
    for (kind, property, cell) in &failed {
        eprintln!("FAILED: {} {}: {cell}", kind.name(), property.name);
    }
    // A page that is written anew names what failed.
    if std::env::var_os(table::RENEW).is_some() || failed.is_empty() {
        table.compare();
    }
    assert!(failed.is_empty(), "{} of {} failed", failed.len(), ran.len());
}
