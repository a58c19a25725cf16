//! `chainwriter doctor`: whether everything that a worker needs is there and as it must be, a line for each thing.

use clap::Args;
use serde::Serialize;

use crate::cli::{exit, say};
use crate::config::{Faults, Settings};
use crate::model::text::counted;

mod accounts;
mod broker;
mod cost;
mod endpoints;
mod finding;
mod gas;
mod journal;
mod marker;
mod node;
#[cfg(feature = "otlp")]
mod traces;
mod worker;

use finding::{Finding, Level};
use journal::JournalFindings;

#[derive(Debug, Default, Args)]
pub(super) struct Arguments {
    /// Print the findings as one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report<'f> {
    /// The worst of them.
    level: Level,
    findings: &'f [Finding],
}

/// Looks at everything, and changes nothing but what opening a journal does.
pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    let findings = examine(&settings).await;
    print(&arguments, &findings)?;
    Ok(if worst(&findings) == Level::Fail { exit::UNAVAILABLE } else { exit::OK })
}

/// Reports a configuration that cannot be read, without which nothing else can be examined.
pub(super) fn run_without_settings(arguments: &Arguments, Faults(faults): &Faults) -> anyhow::Result<u8> {
    let finding = |fault: &String| Finding::fail("configuration", fault.trim_start_matches("- "));
    print(arguments, &faults.iter().map(finding).collect::<Vec<_>>())?;
    Ok(exit::CONFIG)
}

/// Returns what can be said without asking anyone.
pub(super) fn examine_settings(settings: &Settings) -> Vec<Finding> {
    let signers = settings.signers.iter().map(|signer| Finding::ok("signer", format!("account {}", signer.address())));
    std::iter::once(Finding::ok("configuration", "every key can be used, and key files are their owner's alone"))
        .chain(signers)
        .chain(settings.admission.routes.iter().map(|route| Finding::ok("route", route.to_string())))
        .collect()
}

async fn examine(settings: &Settings) -> Vec<Finding> {
    let mut findings = examine_settings(settings);
    let of_broker = broker::examine(settings).await;
    let broker_is_well = worst(&of_broker) < Level::Fail;
    findings.extend(of_broker);
    findings.extend(node::examine(settings).await);
    // The chain first: what is written meanwhile is in the journal before it is there.
    let in_chain = accounts::in_chain(settings).await;
    let journal = JournalFindings::read(settings).await;
    findings.extend(journal.findings);
    if broker_is_well {
        findings.extend(marker::examine(settings).await);
    }
    findings.extend(accounts::examine(settings, &in_chain, journal.overview.as_ref()).await);
    findings.extend(worker::examine(settings).await);
    #[cfg(feature = "otlp")]
    findings.extend(traces::examine(settings).await);
    findings
}

fn print(arguments: &Arguments, findings: &[Finding]) -> anyhow::Result<()> {
    if arguments.json {
        say(serde_json::to_string_pretty(&Report { level: worst(findings), findings })?);
    } else {
        findings.iter().for_each(say);
        say(format_args!("\n{}", summary(findings)));
    }
    Ok(())
}

/// Returns the last line: how many findings there are of each bad kind, and where.
fn summary(findings: &[Finding]) -> String {
    let of = |level, one: &str, many: &str| {
        let mut areas: Vec<_> = findings.iter().filter(|finding| finding.level == level).map(|it| it.area).collect();
        let count = areas.len();
        areas.sort_unstable();
        areas.dedup();
        (count > 0).then(|| format!("{count} {}: {}", if count == 1 { one } else { many }, areas.join(", ")))
    };
    let bad: Vec<_> = [of(Level::Fail, "failure", "failures"), of(Level::Warn, "warning", "warnings")]
        .into_iter()
        .flatten()
        .collect();
    let checks = counted(findings.len() as u64, "check");
    if bad.is_empty() { format!("{checks}: all is well") } else { format!("{checks}; {}", bad.join("; ")) }
}

fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_what_is_bad_and_where() {
        let (well, note) = (Finding::ok("node", ""), Finding::notice("journal", ""));
        let (warning, failure) = (Finding::warn("disk", ""), Finding::fail("broker", ""));
        let summed = |findings: &[&Finding]| summary(&findings.iter().map(|it| (*it).clone()).collect::<Vec<_>>());
        assert_eq!(summed(&[&well]), "1 check: all is well");
        assert_eq!(summed(&[&well, &note]), "2 checks: all is well");
        assert_eq!(summed(&[&warning, &well]), "2 checks; 1 warning: disk");
        assert_eq!(summed(&[&failure, &well]), "2 checks; 1 failure: broker");
        let worst = [&failure, &warning, &failure, &well];
        assert_eq!(summed(&worst), "4 checks; 2 failures: broker; 1 warning: disk");
    }
}
