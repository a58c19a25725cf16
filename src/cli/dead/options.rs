//! Shared by the commands for dead letters: how letters are chosen, how an operator agrees, how lines are printed.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use crate::broker::MOST_LETTERS;
use crate::cli::{exit, say, stop};
use crate::model::text::counted;
pub(super) use crate::model::text::escaped as plain;
use crate::policy::letters::LetterFilter;

/// Letters read in one go, unless `--limit` says otherwise.
pub(super) const LIMIT: u64 = 10_000;

#[derive(Debug, Args)]
pub(super) struct Named {
    /// The request's id, or the letter's key as `dead list --items` shows it.
    pub(super) id: String,
    /// Read at most this many letters, from the oldest on.
    #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(u64).range(1..=MOST_LETTERS))]
    pub(super) limit: u64,
}

impl Named {
    pub(super) fn filter(&self) -> LetterFilter {
        LetterFilter { names: vec![self.id.clone()], ..LetterFilter::default() }
    }
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// Request ids, or keys as `dead list --items` shows them.
    #[arg(value_name = "ID")]
    pub(super) names: Vec<String>,
    /// With this cause: CLASS, CLASS.REASON or .REASON.
    #[arg(long, value_name = "CAUSE")]
    pub(super) cause: Option<String>,
    /// Dead for at least this long: 30m, 2h, 7d.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    pub(super) older_than: Option<Duration>,
    /// Dead for less.
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    pub(super) newer_than: Option<Duration>,
    /// Sent back fewer times than this.
    #[arg(long, value_name = "N")]
    pub(super) replays_below: Option<u32>,
    /// With this header; several must all be there.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(super) header: Vec<(String, String)>,
    /// With this text in the body or in the failure's detail, in capitals or not.
    #[arg(long)]
    pub(super) text: Option<String>,
    /// Read at most this many letters, from the oldest on.
    #[arg(long, default_value_t = LIMIT, value_parser = clap::value_parser!(u64).range(1..=MOST_LETTERS))]
    pub(super) limit: u64,
}

impl Which {
    pub(super) fn filter(&self) -> LetterFilter {
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

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Options of the commands that change something.
#[derive(Debug, Args)]
pub(super) struct ChangeOptions {
    /// Show what would be done, and do nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask. Without a terminal this is needed.
    #[arg(long)]
    pub(super) yes: bool,
    /// As JSON, one document on each line.
    #[arg(long)]
    pub(super) json: bool,
}

/// Refuses to change all letters by a slip.
pub(super) fn check_selection(filter: &LetterFilter, all: bool) -> anyhow::Result<()> {
    if filter.is_empty() && !all {
        return Err(stop(exit::USAGE, "say which: ids, a filter such as --cause, or --all"));
    }
    Ok(())
}

/// Asks the operator, who must agree. Fails without a terminal.
pub(super) fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
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
pub(super) fn print(json: bool, value: impl FnOnce() -> serde_json::Value, text: impl FnOnce() -> String) {
    if json { say(value()) } else { say(text()) }
}

pub(super) fn letters_text(count: u64) -> String {
    counted(count, "dead letter")
}
