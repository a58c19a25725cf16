//! `chainwriter dead …`: the operator's commands for dead letters; what they have in common on the command line.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::broker::MOST_LETTERS;
use crate::cli::{exit, say, stop};
use crate::config::Settings;
use crate::model::text::{counted, escaped as plain};
use crate::policy::letters::LetterFilter;

mod deeds;
mod discard;
mod edit;
mod editor;
mod export;
mod import;
mod list;
mod replay;
mod session;
pub(crate) mod sheet;
mod show;

/// Letters read in one go, unless `--limit` says otherwise.
const LIMIT: u64 = 10_000;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List dead letters by cause, or one by one; all of them stay where they are.
    List(list::Arguments),
    /// Show everything about one dead letter, and whether it is safe to replay it.
    Show(show::Arguments),
    /// Change the body or the headers of a dead letter and send it back.
    Edit(edit::Arguments),
    /// Send dead letters back to the work queue.
    Replay(replay::Arguments),
    /// Take dead letters out of the queue for good; the journal keeps them for journal.retention.
    Discard(discard::Arguments),
    /// Write dead letters to a file, one as JSON on each line.
    Export(export::Arguments),
    /// Put exported dead letters into the dead-letter queue again, those that are not there.
    Import(import::Arguments),
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    match command {
        Command::List(arguments) => list::run(arguments, settings).await,
        Command::Show(arguments) => show::run(arguments, settings).await,
        Command::Edit(arguments) => edit::run(arguments, settings).await,
        Command::Replay(arguments) => replay::run(arguments, settings).await,
        Command::Discard(arguments) => discard::run(arguments, settings).await,
        Command::Export(arguments) => export::run(arguments, settings).await,
        Command::Import(arguments) => import::run(arguments, settings).await,
    }
}

#[derive(Debug, Args)]
struct Named {
    /// The request's id, or the letter's key as `dead list --items` shows it.
    id: String,
    /// Read at most this many letters, from the oldest on.
    #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(u64).range(1..=MOST_LETTERS))]
    limit: u64,
}

impl Named {
    fn filter(&self) -> LetterFilter {
        LetterFilter { names: vec![self.id.clone()], ..LetterFilter::default() }
    }
}

#[derive(Debug, Args)]
struct Which {
    /// Request ids, or keys as `dead list --items` shows them.
    #[arg(value_name = "ID")]
    names: Vec<String>,
    /// With this cause: CLASS, CLASS.REASON or .REASON.
    #[arg(long, value_name = "CAUSE")]
    cause: Option<String>,
    /// Dead for at least this long: 30m, 2h, 7d.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Dead for less.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Sent back fewer times than this.
    #[arg(long, value_name = "N")]
    replays_below: Option<u32>,
    /// With this header; several must all be there.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    header: Vec<(String, String)>,
    /// With this text in the body or in the failure's detail, in capitals or not.
    #[arg(long)]
    text: Option<String>,
    /// Read at most this many letters, from the oldest on.
    #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(u64).range(1..=MOST_LETTERS))]
    limit: u64,
}

impl Which {
    fn filter(&self) -> LetterFilter {
        let part = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        let cause = self.cause.as_deref().unwrap_or_default();
        let (class, reason) = cause.split_once('.').unwrap_or((cause, ""));
        LetterFilter {
            names: self.names.clone(),
            class: part(class),
            reason: part(reason),
            older_than: self.older_than,
            newer_than: self.newer_than,
            replays_below: self.replays_below,
            headers: self.header.clone(),
            text: self.text.clone(),
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Options of the commands that change something.
#[derive(Debug, Args)]
struct ChangeOptions {
    /// Show what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask. Without a terminal this is needed.
    #[arg(long)]
    yes: bool,
    /// As JSON, one document on each line.
    #[arg(long)]
    json: bool,
}

/// Refuses to change all letters by a slip.
fn check_selection(filter: &LetterFilter, all: bool) -> anyhow::Result<()> {
    if filter.is_empty() && !all {
        return Err(stop(exit::USAGE, "say which: ids, a filter such as --cause, or --all"));
    }
    Ok(())
}

/// Asks the operator, who must agree. Fails without a terminal.
fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let advice = "there is no terminal to ask on: use --yes, or --dry-run to see what would be done";
        return Err(stop(exit::USAGE, advice));
    }
    let mut answer = String::new();
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let _ = std::io::stdin().read_line(&mut answer);
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(stop(exit::NOT_ALL, "nothing was done")),
    }
}

/// Prints a line of text, or of JSON.
fn print(json: bool, value: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) {
    if json { say(value()) } else { say(text()) }
}

fn letters_text(count: u64) -> String {
    counted(count, "dead letter")
}
