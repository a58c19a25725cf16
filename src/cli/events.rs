//! `chainwriter events replay`: the same events once more.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::cli::status::report_unknown;
use crate::cli::{check_reason, exit, operator, say};
use crate::config::Settings;
use crate::journal::{EventCounts, EventSelection, OperatorsJournal};
use crate::model::text::{counted, escaped};
use crate::model::{Order, RequestId, Timestamp};

/// Events put into the outbox in one commit.
const PAGE: u32 = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Publish events once more that were published already: the same documents, under the same ids.
    Replay(Arguments),
}

#[derive(Debug, Args)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(false))]
pub(super) struct Arguments {
    /// Those of these requests.
    #[arg(value_name = "ID", group = "which")]
    ids: Vec<String>,
    /// All that were published within this time (30m, 2h, 7d), or since this time (2030-01-31T08:00:00Z).
    #[arg(long, value_name = "AGE|TIME", value_parser = since, group = "which")]
    since: Option<Timestamp>,
    /// Why; stands in `log`.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Show what would be published, and publish nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Reads an age, or a time.
fn since(text: &str) -> Result<Timestamp, String> {
    let age: Result<Duration, _> = humantime::parse_duration(text);
    match (age, text.parse()) {
        (Ok(age), _) => Ok(Timestamp::now().before(age)),
        (Err(_), Ok(time)) => Ok(time),
        (Err(_), Err(_)) => Err("expected an age, such as 2h, or a time, such as 2030-01-31T08:00:00Z".to_owned()),
    }
}

pub(super) async fn run(command: Command, settings: Settings) -> anyhow::Result<u8> {
    let Command::Replay(arguments) = command;
    check_reason(&arguments.reason)?;
    let ids = arguments.ids.iter().map(|id| RequestId::new(id).with_context(|| format!("{id} is no request id")));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    let journal = settings.journal.address.open_existing().await?;
    let replay = Replay { journal: journal.as_ref(), arguments: &arguments, kept_for: settings.journal.keep_events };
    let done = replay.all(ids).await;
    journal.close().await;
    done
}

struct Replay<'r> {
    journal: &'r dyn OperatorsJournal,
    arguments: &'r Arguments,
    kept_for: Duration,
}

impl Replay<'_> {
    async fn all(&self, ids: Vec<RequestId>) -> anyhow::Result<u8> {
        let mut code = exit::OK;
        for id in ids {
            code = code.max(self.of_request(id).await?);
        }
        if let Some(since) = self.arguments.since {
            code = self.since(since).await?;
        }
        if code == exit::OK && !self.arguments.dry_run && self.journal.attendance().await?.instances.is_empty() {
            say("no worker runs with this journal; they go out when one does");
        }
        Ok(code)
    }

    async fn of_request(&self, id: RequestId) -> anyhow::Result<u8> {
        let of = EventSelection::Of(id.clone());
        let EventCounts { kept, waiting, .. } = self.journal.event_counts(of.clone()).await?;
        let waits = match waiting {
            0 => String::new(),
            waiting => format!("; {} of it on the way already", counted(waiting, "event")),
        };
        if kept == 0 {
            if self.journal.history(&id).await?.is_none() && waiting == 0 {
                return Ok(report_unknown(&id));
            }
            say(format_args!("{id}: none: the journal keeps no event of it{waits}. {}", self.keeps()));
            return Ok(exit::NOT_FOUND);
        }
        let names = self.publish(&of).await?;
        say(format_args!("{id}: {}: {}{waits}", self.done(kept), names.join(", ")));
        say(self.keeps());
        Ok(exit::OK)
    }

    async fn since(&self, since: Timestamp) -> anyhow::Result<u8> {
        let of = EventSelection::Since(since);
        let EventCounts { kept, oldest, .. } = self.journal.event_counts(of.clone()).await?;
        if kept > 0 {
            self.publish(&of).await?;
        }
        say(format_args!("since {since}: {}", self.done(kept)));
        match oldest {
            Some(oldest) if oldest > since => {
                say(format_args!("not in the journal: what was published before {oldest}. {}", self.keeps()));
            }
            None => say(self.keeps()),
            Some(_) => {}
        }
        Ok(if kept == 0 { exit::NOT_FOUND } else { exit::OK })
    }

    /// Puts all of a selection into the outbox, unless that is not to be done. Returns the first of them, for a person. Crash
    /// between two pages: those before are published, and the command can be run again.
    async fn publish(&self, of: &EventSelection) -> anyhow::Result<Vec<String>> {
        let mut order = Some((Order::new(operator(), self.arguments.reason.clone()), of.clone()));
        let (mut after, mut names) = (0, Vec::new());
        loop {
            let page = self.journal.sent_events(of.clone(), after, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(names) };
            after = *last;
            if names.is_empty() {
                names = page.iter().map(|(_, event)| escaped(&format!("{} {}", event.kind, event.event_id))).collect();
            }
            if !self.arguments.dry_run {
                let numbers = page.iter().map(|(number, _)| *number).collect();
                self.journal.replay_events(numbers, order.take()).await?;
            }
        }
    }

    fn done(&self, count: u64) -> String {
        let events = counted(count, "event");
        if self.arguments.dry_run {
            format!("{events} would be published again")
        } else {
            format!("{events} published again")
        }
    }

    fn keeps(&self) -> String {
        format!("The journal keeps events for {} (journal.keep_events)", humantime::format_duration(self.kept_for))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_an_age_or_a_time() {
        let hour = since("1h").unwrap();
        assert!(hour < Timestamp::now() && hour.age() < Duration::from_secs(3610));
        assert_eq!(since("1970-01-01T00:00:01Z"), Ok(Timestamp(1000)));
        assert!(since("yesterday").is_err());
    }
}
