//! An overview as sections of lines: what `status` prints, and what `status --watch` draws.

use std::fmt::Write;

use crate::broker::{QueueDepth, QueueRole};
use crate::chain::{EndpointState, Role};
use crate::cli::age_text;
use crate::cli::status::overview::{Overview, Side};
use crate::daemon::status::{LaneReport, RecentLine, WorkerReport, wei};
use crate::journal::{AccountOverview, JournalOverview, LostRetry};
use crate::model::text::{counted, escaped};
use crate::model::{Timestamp, Wei};

/// Incidents and lines of the log that are shown; the journal and the running worker keep more.
const INCIDENTS: usize = 5;
const LOG_LINES: usize = 10;
/// Lost retries that are shown.
const LOST_RETRIES: usize = 10;

/// The severity of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    /// Degraded.
    Warn,
    /// Someone must act.
    Bad,
}

/// Lines under a title.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) lines: Vec<(Tone, String)>,
}

/// Returns the headline and the sections: queues, requests, holds, lanes, endpoints, what happened last.
pub(super) fn sheet(overview: &Overview) -> ((Tone, String), Vec<Section>) {
    let process = overview.process.as_ref();
    let report = process.and_then(Side::seen);
    let sections = vec![
        Section { title: "queues", lines: queues(overview) },
        Section { title: "requests", lines: of_side(&overview.journal, |journal| requests(journal, overview.at)) },
        Section { title: "held by operators", lines: overview.journal.seen().map_or_else(Vec::new, holds) },
        Section { title: "lanes", lines: lanes(overview, report) },
        Section { title: "endpoints", lines: report.map_or_else(Vec::new, |report| endpoints(&report.endpoints)) },
        Section { title: "last incidents", lines: overview.journal.seen().map_or_else(Vec::new, incidents) },
        Section {
            title: "last warnings and errors",
            lines: report.map_or_else(Vec::new, |report| recent(&report.recent)),
        },
    ];
    let (tone, headline) = headline(overview, report);
    ((tone, escaped(&headline)), sections.into_iter().map(Section::escaped).collect())
}

impl Section {
    /// Escapes what steers a terminal: nodes and producers have written parts of it.
    fn escaped(self) -> Self {
        let lines = self.lines.into_iter().map(|(tone, line)| (tone, escaped(&line)));
        Self { title: self.title, lines: lines.collect() }
    }
}

/// Returns the overview as text for a terminal or a file.
pub(super) fn text(overview: &Overview) -> String {
    let ((_, headline), sections) = sheet(overview);
    let mut text = format!("{headline}\n");
    for Section { title, lines } in sections.iter().filter(|section| !section.lines.is_empty()) {
        // Writing to a text cannot fail.
        let _ = write!(text, "\n{title}\n");
        for (_, line) in lines {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

fn headline(overview: &Overview, report: Option<&WorkerReport>) -> (Tone, String) {
    let name = format!("{} on chain {}", overview.worker, overview.chain_id);
    match (&overview.process, report) {
        (_, Some(report)) => {
            let up = age(report.started_at, overview.at);
            let version = &report.version;
            match report.not_ready.as_slice() {
                [] if report.stuck.is_empty() => (Tone::Good, format!("{name}: ready, up {up}, chainwriter {version}")),
                [] => (Tone::Bad, format!("{name}: stands still: {}", report.stuck.join(", "))),
                reasons => (Tone::Bad, format!("{name}: not ready, up {up}: {}", reasons.join("; "))),
            }
        }
        (Some(Side::Unseen { error }), _) => (Tone::Warn, format!("{name}: {error}")),
        _ => (Tone::Plain, format!("{name}: http.listen is off, so the running worker is not asked")),
    }
}

fn of_side<T>(side: &Side<T>, lines: impl FnOnce(&T) -> Vec<(Tone, String)>) -> Vec<(Tone, String)> {
    match side {
        Side::Seen(seen) => lines(seen),
        Side::Unseen { error } => vec![(Tone::Bad, error.clone())],
    }
}

fn queues(overview: &Overview) -> Vec<(Tone, String)> {
    of_side(&overview.queues, |depths| {
        let waits = |depth: &&QueueDepth| depth.role == QueueRole::Wait && depth.problem.is_none();
        let waiting: u64 = depths.iter().filter(waits).map(|depth| u64::from(depth.ready)).sum();
        let mut lines: Vec<_> = depths.iter().filter(|depth| !waits(depth)).map(queue).collect();
        lines.push((Tone::Plain, format!("{waiting:>8}  wait for a retry or for their time")));
        lines
    })
}

fn queue(depth: &QueueDepth) -> (Tone, String) {
    let QueueDepth { queue, role, ready, consumers, problem } = depth;
    if let Some(problem) = problem {
        return (Tone::Bad, format!("       ?  {queue}: {problem}"));
    }
    let by = match consumers {
        0 => String::new(),
        consumers => format!(", {}", counted((*consumers).into(), "consumer")),
    };
    let (what, tone) = match role {
        QueueRole::Work | QueueRole::Wait => ("", Tone::Plain),
        QueueRole::Dead if *ready > 0 => (" (dead letters)", Tone::Warn),
        QueueRole::Dead => (" (dead letters)", Tone::Plain),
        QueueRole::Unrouted => (" (no queue wanted them)", Tone::Plain),
    };
    (tone, format!("{ready:>8}  {queue}{what}{by}"))
}

fn requests(journal: &JournalOverview, at: Timestamp) -> Vec<(Tone, String)> {
    let meanings = [
        ("accepted", "accepted, wait for a nonce"),
        ("writing", "signed, wait for the chain"),
        ("retry_pending", "retries on their way to the broker"),
        ("dead_pending", "dead letters on their way"),
    ];
    let mut lines = Vec::new();
    for (state, meaning) in meanings {
        let open = || journal.accounts.iter().flat_map(|account| &account.open).filter(|open| open.state == state);
        let count: u64 = open().map(|open| open.count).sum();
        let oldest = open().map(|open| open.since).min();
        let oldest = oldest.map_or(String::new(), |since| format!(", the first for {}", age(since, at)));
        lines.push((Tone::Plain, format!("{count:>8}  {meaning}{oldest}")));
    }
    let outbox: u64 = journal.accounts.iter().map(|account| account.outbox).sum();
    lines.push((Tone::Plain, format!("{outbox:>8}  events to publish")));
    lines.extend(journal.lost_retries.iter().take(LOST_RETRIES).map(|lost| {
        let LostRetry { request, attempt, waits_since, .. } = lost;
        let waits = age(*waits_since, at);
        (Tone::Bad, format!("{request} waits for retry {attempt}, which the broker has lost: {waits}"))
    }));
    if let Some(more) = journal.lost_retries.len().checked_sub(LOST_RETRIES).filter(|more| *more > 0) {
        lines.push((Tone::Bad, format!("{more} more wait for retries that the broker has lost")));
    }
    lines
}

fn lanes(overview: &Overview, report: Option<&WorkerReport>) -> Vec<(Tone, String)> {
    let accounts = overview.journal.seen().map_or(&[][..], |journal| &journal.accounts);
    let reported = report.map_or(&[][..], |report| &report.lanes);
    let mut lines = Vec::new();
    for account in accounts {
        lines.extend(lane(account, reported.iter().find(|lane| lane.account == account.address), overview.at));
    }
    // Before the journal was read.
    for lane in reported.iter().filter(|lane| accounts.iter().all(|account| account.address != lane.account)) {
        lines.extend(as_reported(lane, overview.at));
    }
    lines
}

fn lane(account: &AccountOverview, reported: Option<&LaneReport>, at: Timestamp) -> Vec<(Tone, String)> {
    let AccountOverview { address, owner, next_nonce, live, leased_until, .. } = account;
    let owner = match owner {
        Some(owner) if *leased_until > at => format!("owned by {}", without_run(owner)),
        Some(owner) => {
            format!("was owned by {}, whose lease ran out {} ago", without_run(owner), age(*leased_until, at))
        }
        None => "owned by nobody".to_owned(),
    };
    let nonce = next_nonce.map_or("no nonce yet".to_owned(), |nonce| format!("next nonce {nonce}"));
    let mut lines = vec![(Tone::Plain, format!("{address}  {owner}, {nonce}, {live} not final"))];
    lines.extend(reported.into_iter().flat_map(|lane| as_reported(lane, at)));
    lines
}

/// Returns what only the running worker knows.
fn as_reported(lane: &LaneReport, at: Timestamp) -> Vec<(Tone, String)> {
    let amount = |text: &Option<String>| text.as_deref().and_then(wei).map_or("?".to_owned(), short);
    let head = match (lane.head, lane.head_at) {
        (Some(head), Some(head_at)) => format!("block {head} ({} old)", age(head_at, at)),
        _ => "no block seen".to_owned(),
    };
    let doing = if lane.owner {
        format!("at most {} in no block (limit: {})", lane.window, lane.window_limit)
    } else {
        "stands by".to_owned()
    };
    let mut lines = Vec::new();
    if lane.owner || lane.paused.is_some() {
        let (fee, balance) = (amount(&lane.fee_wei), amount(&lane.balance_wei));
        lines.push((Tone::Plain, format!("  {doing}, {head}, fee {fee}, balance {balance}")));
    }
    match &lane.paused {
        Some(pause) => lines.push((Tone::Bad, format!("  paused ({}): {}", pause.reason, pause.detail))),
        None if lane.on_hold.is_some() => {}
        None if !lane.open => lines.push((Tone::Warn, "  takes no requests yet".to_owned())),
        None => {}
    }
    if let Some(retiring) = &lane.retiring {
        let tone = if retiring.left == Some(0) { Tone::Good } else { Tone::Plain };
        lines.push((tone, format!("  {}", retiring.text())));
    }
    if let Some(hold) = &lane.on_hold {
        lines.push((Tone::Warn, format!("  {hold}")));
    }
    if let Some(throttled) = &lane.throttled {
        lines.push((Tone::Warn, format!("  throttled by {throttled}")));
    }
    lines.extend(lane.held.iter().map(|held| (Tone::Warn, format!("  {} waits: {}", held.request, held.why))));
    lines
}

fn endpoints(endpoints: &[EndpointState]) -> Vec<(Tone, String)> {
    let line = |endpoint: &EndpointState| {
        let EndpointState { label, role, gets_transactions, serves, blocks_behind, problem, calls_per_second } =
            endpoint;
        let endpoint = match (role, gets_transactions) {
            (Role::All | Role::Read, true) => label.clone(),
            (Role::Send, true) => format!("{label} (transactions only)"),
            (Role::All | Role::Read, false) => format!("{label} (no transactions)"),
            (Role::Send, false) => format!("{label} (unused beside a private one)"),
        };
        let behind = match blocks_behind {
            0 => String::new(),
            behind => format!(", {} behind", counted(*behind, "block")),
        };
        match (serves, problem) {
            (true, _) if calls_per_second.is_some() => {
                let calls = calls_per_second.as_deref().unwrap_or_default();
                (
                    Tone::Warn,
                    format!(
                        "{endpoint}: serves{behind}, takes {calls} calls a second; a write needs {}",
                        EndpointState::CALLS_PER_WRITE
                    ),
                )
            }
            (true, _) => (Tone::Good, format!("{endpoint}: serves{behind}")),
            (false, Some(problem)) => (Tone::Bad, format!("{endpoint}: not used{behind}: {problem}")),
            (false, None) => (Tone::Warn, format!("{endpoint}: not used{behind}")),
        }
    };
    endpoints.iter().map(line).collect()
}

fn holds(journal: &JournalOverview) -> Vec<(Tone, String)> {
    journal.holds.iter().map(|hold| (Tone::Warn, hold.text())).collect()
}

fn incidents(journal: &JournalOverview) -> Vec<(Tone, String)> {
    let newest = journal.incidents.iter().take(INCIDENTS);
    newest
        .map(|seen| (Tone::Plain, format!("{} {} {}: {}", clock(seen.at), seen.request, seen.what, seen.detail)))
        .collect()
}

fn recent(lines: &[RecentLine]) -> Vec<(Tone, String)> {
    let line = |line: &RecentLine| {
        let tone = if line.level == "error" { Tone::Bad } else { Tone::Warn };
        (tone, format!("{} {} {}", clock(line.at), line.level, line.text))
    };
    lines.iter().take(LOG_LINES).map(line).collect()
}

/// Returns `organisation/instance` of `organisation/instance/run`.
fn without_run(owner: &str) -> &str {
    owner.rsplit_once('/').map_or(owner, |(instance, _)| instance)
}

/// Returns the time of day, in UTC.
fn clock(at: Timestamp) -> String {
    let text = at.to_string();
    text.get(11..19).unwrap_or(&text).to_owned()
}

fn age(since: Timestamp, at: Timestamp) -> String {
    age_text(Some(since.until(at)))
}

/// Returns a number with at most four decimals.
fn short(amount: Wei) -> String {
    let text = amount.to_string();
    let Some((number, unit)) = text.split_once(' ') else { return text };
    match number.split_once('.') {
        Some((whole, fraction)) => format!("{whole}.{} {unit}", fraction.get(..4).unwrap_or(fraction)),
        None => text,
    }
}
