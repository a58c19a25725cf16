//! `chainwriter log`: what operators did, with who, when and why.

use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;

use crate::cli::{address, exit, print};
use crate::config::Settings;
use crate::journal::{LogEntry, LogFilter, Subject};
use crate::model::text::Escaped;
use crate::model::{Act, Timestamp};

/// Entries read at most, unless `--limit` says otherwise.
const LIMIT: u32 = 100;
const MOST: u32 = 100_000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only what was done within this time: 30m, 2h, 7d.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// Only this.
    #[arg(long, value_name = "WHAT", value_parser = PossibleValuesParser::new(Act::ALL.map(Act::as_str)))]
    what: Option<String>,
    /// Only what this user did, themselves or by sudo.
    #[arg(long, value_name = "USER")]
    by: Option<String>,
    /// Only what was done to this request, or to the dead letter with this key.
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// Only what was done to this account.
    #[arg(long, value_name = "ADDRESS")]
    account: Option<String>,
    /// Only what was done to this route.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Show at most this many, the newest.
    #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST)))]
    limit: u32,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document {
    at: Timestamp,
    /// Oldest first.
    entries: Vec<LogEntry>,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    let Arguments { since, what, by, request, account, route, limit, json } = arguments;
    let now = Timestamp::now();
    let filter = LogFilter {
        since: since.map(|age| now.before(age)),
        what: what.as_deref().and_then(Act::from_word),
        by,
        request,
        account: account.as_deref().map(address).transpose()?,
        route,
    };
    let journal = settings.journal.address.open_existing().await?;
    let entries = journal.log(filter, limit).await?;
    journal.close().await;
    let document = Document { at: now, entries };
    print(json, &document, || sheet(&document.entries)).map(|()| exit::OK)
}

fn sheet(entries: &[LogEntry]) -> String {
    if entries.is_empty() {
        return "nothing".to_owned();
    }
    let whats = entries.iter().map(|entry| entry.what.as_str().len()).max().unwrap_or(0);
    let people: Vec<_> = entries.iter().map(person).collect();
    let widest = people.iter().map(|person| person.chars().count()).max().unwrap_or(0).min(40);
    let lines = entries.iter().zip(people).map(|(entry, person)| {
        let LogEntry { at, what, subject, reason, detail, .. } = entry;
        let about = [about(subject), detail.clone()].into_iter().filter(|part| !part.is_empty());
        let about = about.collect::<Vec<_>>().join(", ");
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let line = format!("{at}  {:whats$}  {person:widest$}  {about}{reason}", what.as_str());
        Escaped(line.trim_end()).to_string()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the person, and the user that they were for the command.
fn person(entry: &LogEntry) -> String {
    match &entry.by.sudo_user {
        Some(_) => format!("{} as {}", entry.by, entry.by.user),
        None => entry.by.to_string(),
    }
}

fn about(subject: &Subject) -> String {
    let Subject { request, account, route } = subject;
    let parts = [
        request.clone(),
        account.map(|account| format!("account {account}")),
        route.as_ref().map(|route| format!("route {route}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Operator;

    #[test]
    fn a_line_has_when_what_who_to_what_and_why_and_steers_no_terminal() {
        let entry = |sudo: Option<&str>, request: &str, reason: &str| LogEntry {
            at: Timestamp(0),
            what: Act::Cancel,
            by: Operator { user: "root".to_owned(), sudo_user: sudo.map(str::to_owned), host: "h".to_owned() },
            reason: reason.to_owned(),
            subject: Subject::request(request),
            detail: String::new(),
        };
        let text = sheet(&[entry(Some("ann"), "order-7", "wrong\u{1b}[2J"), entry(None, "order-8", "")]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with("cancel  ann@h as root  order-7: wrong\\u{1b}[2J"), "{text}");
        assert!(lines[1].ends_with("cancel  root@h         order-8"), "{text}");
        let document = serde_json::to_value(entry(Some("ann"), "order-7", "wrong")).unwrap();
        for (key, value) in [("what", "cancel"), ("user", "root"), ("sudo_user", "ann"), ("request", "order-7")] {
            assert_eq!(document[key], value, "{document}");
        }
    }
}
