//! What a run has shown: a table for people, one line of JSON for machines.

use std::fmt::Write;

use serde::Serialize;

use crate::checker::Findings;
use crate::record::Totals;
use crate::schedule::Fault;
use crate::standing::Standing;

/// The line. Names and order are fixed; keys may be added at the end.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    published: usize,
    #[serde(rename = "final")]
    written: usize,
    dead: usize,
    lost: usize,
    twice: usize,
    nonce_gaps: usize,
    kills: u64,
    faults: u64,
    seed: u64,
    wrong: usize,
    open: usize,
    /// Workers that ended by themselves.
    ends: u64,
    published_again: u64,
    retries: u64,
    reverted: usize,
    cancelled: usize,
    blocks: u64,
    seconds: u64,
    /// Transactions of somebody else with the key.
    foreign: usize,
    sent_back: usize,
    cancellations: usize,
    log_lines: usize,
    late: usize,
    /// Poisonous messages of every kind.
    poison: usize,
    /// Journals restored from a copy, and recovered.
    restores: u64,
    maybe_written: usize,
    taken_up_again: usize,
    second_journals: u64,
    /// From the kill of an account's owner to its next one.
    stood_still: usize,
    stood_still_p50_ms: i64,
    stood_still_max_ms: i64,
    /// Messages with a final event before the last fault.
    final_in_storm: usize,
    /// Nodes of the broker, and its version.
    cluster: usize,
    rabbitmq: String,
}

/// Everything that a run has to say.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) blocks: u64,
    pub(crate) totals: Totals,
    pub(crate) findings: Findings,
    /// Work that was not done within the limit.
    pub(crate) open: Vec<String>,
    /// Lines of the workers' logs, each searched for keys, passwords and bodies.
    pub(crate) log_lines: usize,
    pub(crate) standing: Standing,
    /// Nodes of the broker, and its version.
    pub(crate) broker: (usize, String),
}

impl Report {
    pub(crate) fn is_good(&self) -> bool {
        let Findings { lost, twice, late, nonce_gaps, wrong, .. } = &self.findings;
        [lost, twice, late, wrong, &self.open].iter().all(|found| found.is_empty()) && nonce_gaps.is_empty()
    }

    pub(crate) fn line(&self) -> Line {
        let Self { seed, seconds, blocks, totals, findings, open, log_lines, standing, broker } = self;
        Line {
            published: totals.published,
            written: findings.written,
            dead: findings.dead,
            lost: findings.lost.len(),
            twice: findings.twice.len(),
            nonce_gaps: findings.nonce_gaps.len(),
            kills: totals.kills,
            faults: totals.faults.values().sum(),
            seed: *seed,
            wrong: findings.wrong.len(),
            open: open.len(),
            ends: totals.ends,
            published_again: totals.published_again,
            retries: totals.retries,
            reverted: findings.reverted,
            cancelled: findings.cancelled,
            blocks: *blocks,
            seconds: *seconds,
            foreign: findings.foreign,
            sent_back: totals.sent_back,
            cancellations: totals.cancellations,
            log_lines: *log_lines,
            late: findings.late.len(),
            poison: totals.poison.iter().map(|(_, count)| count).sum(),
            restores: totals.restores,
            maybe_written: findings.maybe_written,
            taken_up_again: findings.taken_up_again,
            second_journals: totals.faults.get(&Fault::SecondJournal).copied().unwrap_or_default(),
            stood_still: standing.count,
            stood_still_p50_ms: standing.p50_ms,
            stood_still_max_ms: standing.max_ms,
            final_in_storm: totals.final_before_calm,
            cluster: broker.0,
            rabbitmq: broker.1.clone(),
        }
    }

    /// The table, then every finding by name.
    pub(crate) fn text(&self, shown: usize) -> String {
        let Self { totals, findings, open, standing, .. } = self;
        let mut text = String::new();
        let mut row = |name: &str, value: u64, about: &str| _ = writeln!(text, "  {name:<27}{value:>8}  {about}");
        row("published", totals.published as u64, "messages, each with a body of its own");
        row("  published again", totals.published_again, "the same id and body");
        for (kind, count) in &totals.poison {
            row(&format!("  {kind:?}"), *count as u64, "of these: poison");
        }
        row("final", findings.written as u64, "in the chain, once");
        row("  before the last fault", totals.final_before_calm as u64, "by their events");
        row("dead", findings.dead as u64, "dead letters");
        row("retries", totals.retries, "went through the wait queues");
        row("reverted", findings.reverted as u64, "transactions that used a nonce and had no effect");
        row("cancelled", findings.cancelled as u64, "nonces that a transfer to the account itself used up");
        row("foreign", findings.foreign as u64, "nonces that somebody else with the key used up");
        row("sent back", totals.sent_back as u64, "dead letters, by an operator");
        row("asked to cancel", totals.cancellations as u64, "requests, by an operator");
        row("restores", totals.restores, "a copy took the journal's place, and an operator recovered");
        for (what, count) in &totals.counts {
            row("", *count, what);
        }
        row("maybe written", findings.maybe_written as u64, "in the chain, and dead letters that say so");
        row("taken up again", findings.taken_up_again as u64, "written after a restore, dead before it");
        row("blocks", self.blocks, "in the chain");
        row("kills", totals.kills, "of workers, kill -9");
        row("accounts without an owner", standing.count as u64, "after kills, as far as logs are kept");
        row("  ms at the median", standing.p50_ms.unsigned_abs(), "until the next owner's first line");
        row("  ms at most", standing.max_ms.unsigned_abs(), "frozen and refused ones among them");
        let mut faults: Vec<_> = totals.faults.iter().collect();
        faults.sort();
        for (fault, count) in faults {
            row(&format!("  {fault:?}"), *count, about(*fault));
        }
        row(
            "ended by themselves",
            totals.ends,
            "workers; none should, unless its database failed in the middle of a commit, or for long",
        );
        row("lost", findings.lost.len() as u64, "neither in the chain nor a dead letter");
        row("twice", findings.twice.len() as u64, "more than one effect, or an effect and a dead letter");
        row("late", findings.late.len() as u64, "good messages that waited too long while nothing was away");
        row("nonce gaps", findings.nonce_gaps.len() as u64, "");
        row("wrong", findings.wrong.len() as u64, "other contradictions, and logs that show keys, passwords or bodies");
        row("log lines", self.log_lines as u64, "looked at for them");
        row("open", open.len() as u64, "not done in the end");
        let gaps: Vec<_> =
            findings.nonce_gaps.iter().map(|(account, nonce)| format!("{nonce} of account {account}")).collect();
        let kinds =
            [("lost", &findings.lost), ("twice", &findings.twice), ("nonce gap", &gaps), ("wrong", &findings.wrong)];
        let more = [("late", &findings.late), ("open", open), ("ended by itself", &totals.told_ends)];
        for (kind, found) in kinds.into_iter().chain(more) {
            for found in found.iter().take(shown) {
                let _ = writeln!(text, "{kind}: {found}");
            }
            if found.len() > shown {
                let _ = writeln!(text, "{kind}: and {} more", found.len() - shown);
            }
        }
        text
    }
}

fn about(fault: Fault) -> &'static str {
    match fault {
        Fault::Freeze => "worker stopped for longer than its lease",
        Fault::Terminate => "SIGTERM, kill -9 if it takes too long",
        Fault::RollingRestart => "SIGTERM to each worker in turn, as in an upgrade",
        Fault::NodeRestarts => "with its chain and an empty pool",
        Fault::Reorg => "below finality",
        Fault::NodeRefusesLong => "no room in a block for long bodies: cancelled",
        Fault::FeeRise => "base fee above what was offered",
        Fault::FeeSpike => "base fee above fees.max_fee",
        Fault::ForeignTransaction => "somebody else sends from an account",
        Fault::NodeLags => "the second node, no further than chain.max_lag",
        Fault::NodeLagsFar => "the second node, further than chain.max_lag",
        Fault::Drained => "an account without funds",
        Fault::BrokerStops => "stop_app, start_app",
        Fault::DatabaseStops => "without waiting for its clients; started again",
        Fault::DatabaseKilled => "kill -9 of the server, started on the same data",
        Fault::DatabaseEndsSessions => "pg_terminate_backend of every session",
        Fault::OtherHttpStatus => "the first node says 500, 503, 429, 403 or 402",
        Fault::OtherOutageWords => "the first node says so with status 200",
        Fault::OtherNullReceipts => "the first node knows no transaction",
        Fault::OtherAlreadyKnown => "the first node takes it, and says that it knows it",
        Fault::OtherWrongCounts => "the first node's counts of transactions",
        Fault::OtherGarbageNumbers => "the first node's numbers",
        Fault::OtherCallFails => "one method of the first node",
        Fault::JournalRestored => "an older copy in the journal's place",
        Fault::SecondJournal => "an empty one, on the same queue",
        Fault::LeaderKilled => "kill -9 of the node that leads the work queue",
        Fault::LeaderFreezes => "SIGSTOP of the node that leads the work queue",
        Fault::LeaderParted => "the leader is parted from the others, then healed",
        Fault::NodeParted => "a node is parted from the others, then healed",
        Fault::ClusterRestarts => "all nodes of the broker in turn",
        Fault::BrokerKilled => "kill -9 of the node, started on the same data",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn report(findings: Findings) -> Report {
        let totals = Totals {
            published: 5,
            published_again: 0,
            retries: 0,
            sent_back: 0,
            cancellations: 0,
            kills: 3,
            faults: HashMap::from([(Fault::Reorg, 2), (Fault::Freeze, 2)]),
            ends: 0,
            told_ends: Vec::new(),
            restores: 0,
            final_before_calm: 2,
            counts: std::collections::BTreeMap::new(),
            poison: crate::messages::POISON.map(|kind| (kind, 1)),
        };
        Report {
            seed: 7,
            seconds: 9,
            blocks: 8,
            totals,
            findings,
            open: Vec::new(),
            log_lines: 5,
            standing: Standing { count: 3, p50_ms: 40, max_ms: 900 },
            broker: (3, "4.0.5".to_owned()),
        }
    }

    #[test]
    fn the_line_begins_with_what_machines_read() {
        let findings = Findings { written: 4, dead: 1, nonce_gaps: vec![(0, 2)], ..Findings::default() };
        let line = serde_json::to_string(&report(findings).line()).unwrap();
        let begin =
            r#"{"published":5,"final":4,"dead":1,"lost":0,"twice":0,"nonce_gaps":1,"kills":3,"faults":4,"seed":7,"#;
        assert!(line.starts_with(begin) && line.ends_with(r#""cluster":3,"rabbitmq":"4.0.5"}"#), "{line}");
    }

    #[test]
    fn a_run_is_good_only_without_any_finding() {
        assert!(report(Findings::default()).is_good());
        let one = || vec!["m-1".to_owned()];
        let bad = [
            Findings { lost: one(), ..Findings::default() },
            Findings { twice: one(), ..Findings::default() },
            Findings { nonce_gaps: vec![(0, 0)], ..Findings::default() },
            Findings { wrong: one(), ..Findings::default() },
            Findings { late: one(), ..Findings::default() },
        ];
        for findings in bad {
            assert!(!report(findings).is_good());
        }
        assert!(!Report { open: one(), ..report(Findings::default()) }.is_good());
    }
}
