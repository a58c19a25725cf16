//! `chainwriter dead …`: the operator's commands for dead letters; what they have in common on the command line.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::broker::MOST_LETTERS;
use crate::cli::{exit, reason_fault, say};
use crate::config::Settings;
use crate::policy::letters::LetterFilter;

mod deeds;
mod discard;
mod edit;
mod export;
mod import;
mod list;
mod replay;
mod session;
mod sheet;
mod show;
mod wait;

/// Letters looked at in one go, unless `--limit` says otherwise.
const LIMIT: u64 = 10_000;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters by cause, or one by one; all of them stay where they are.
    List(list::Arguments),
    /// Tell everything about one dead letter, and whether it is safe to replay it.
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

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::List(arguments) => list::run(arguments, &settings).await,
        Command::Show(arguments) => show::run(arguments, &settings).await,
        Command::Edit(arguments) => edit::run(arguments, &settings).await,
        Command::Replay(arguments) => replay::run(arguments, &settings).await,
        Command::Discard(arguments) => discard::run(arguments, &settings).await,
        Command::Export(arguments) => export::run(arguments, &settings).await,
        Command::Import(arguments) => import::run(arguments, &settings).await,
    }
}

/// Which letters.
#[derive(Debug, Args)]
struct Which {
    /// Request ids, or keys as `dead list --items` shows them.
    #[arg(value_name = "ID")]
    names: Vec<String>,
    /// With this cause: CLASS, CLASS.REASON or .REASON.
    #[arg(long, value_name = "CAUSE")]
    cause: Option<String>,
    /// Dead for at least so long: 30m, 2h, 7d.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Dead for less.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Sent back less than so many times.
    #[arg(long, value_name = "N")]
    replays_below: Option<u32>,
    /// With this header; several must all be there.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    header: Vec<(String, String)>,
    /// With this text in the body or in the failure's detail, in capitals or not.
    #[arg(long)]
    text: Option<String>,
    /// Look at so many letters at most, from the oldest on.
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

/// How a command that changes something behaves.
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

/// Commands that change something are never meant for all letters by a slip.
fn means_all_by_a_slip(filter: &LetterFilter, all: bool) -> Option<ExitCode> {
    (filter.is_empty() && !all).then(|| {
        complain("say which: ids, a filter such as --cause, or --all");
        ExitCode::from(exit::USAGE)
    })
}

/// Returns an exit code if the reason does not fit into a header.
fn reason_is_too_long(reason: &str) -> Option<ExitCode> {
    let fault = reason_fault(reason)?;
    complain(fault);
    Some(ExitCode::from(exit::USAGE))
}

/// Asks the operator. Returns an exit code where there is no terminal, or where the answer is no.
fn confirmed(question: &str, yes: bool) -> Result<(), ExitCode> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        complain("nobody can be asked here: --yes is needed, or --dry-run to see what would be done");
        return Err(ExitCode::from(exit::USAGE));
    }
    let mut answer = String::new();
    let _ = write!(std::io::stderr(), "{question} [y/N] ");
    let _ = std::io::stdin().read_line(&mut answer);
    if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        return Ok(());
    }
    complain("nothing was done");
    Err(ExitCode::from(exit::NOT_ALL))
}

/// Prints a line to standard error, since standard output may be read by a program.
fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Returns a line of the answer, or of JSON.
fn print(json: bool, value: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) {
    if json { say(value()) } else { say(text()) }
}

/// Escapes control characters: text from outside must not steer the terminal.
fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut plain, character| {
        if character.is_control() {
            plain.extend(character.escape_default())
        } else {
            plain.push(character)
        }
        plain
    })
}

/// Returns "1 dead letter" or "2 dead letters".
fn letters_text(count: u64) -> String {
    if count == 1 { "1 dead letter".to_owned() } else { format!("{count} dead letters") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown_and_not_sent() {
        assert_eq!(plain("a\u{1b}[2Jb\nü"), "a\\u{1b}[2Jb\\nü");
    }
}
