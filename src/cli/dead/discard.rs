//! `chainwriter dead discard`

use std::process::ExitCode;

use clap::Args;

use crate::broker::RawLetter;
use crate::cli::dead::deeds::{Outcome, act, none_found};
use crate::cli::dead::list::item_json;
use crate::cli::dead::session::{LetterSession, remark};
use crate::cli::dead::{ChangeOptions, Which, confirmed, letters_text, means_all_by_a_slip, plain, reason_is_too_long};
use crate::cli::say;
use crate::config::Settings;
use crate::journal::{Deed, LetterDeed};
use crate::model::Timestamp;
use crate::policy::letters::{Letter, grouped};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
    /// All there are.
    #[arg(long)]
    all: bool,
    /// Why; stands in the archive and in what `status` tells.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    options: ChangeOptions,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<ExitCode> {
    let filter = arguments.which.filter();
    let slip = means_all_by_a_slip(&filter, arguments.all).or_else(|| reason_is_too_long(&arguments.reason));
    if let Some(code) = slip {
        return Ok(code);
    }
    let ChangeOptions { dry_run, yes, json } = arguments.options;
    let session = LetterSession::open(settings).await?;
    let (letters, seen) = session.queue.find(&filter, arguments.which.limit).await?;
    remark(&seen);
    if letters.is_empty() {
        session.close().await;
        return Ok(none_found(json));
    }
    show_plan(&letters, json, dry_run);
    let question = format!(
        "Take {} out of {} for good? The journal keeps them for {}.",
        letters_text(letters.len() as u64),
        session.queue.letters.name(),
        humantime::format_duration(settings.journal.retention)
    );
    let agreed = if dry_run { Err(ExitCode::SUCCESS) } else { confirmed(&question, yes) };
    if let Err(code) = agreed {
        session.close().await;
        return Ok(code);
    }
    let discarded = act(&session.queue, &letters, "discarding", json, async |letter, raw| {
        archive(&session, letter, raw, &arguments.reason).await
    });
    let tally = discarded.await?;
    tally.print(json, "discarded");
    session.close().await;
    Ok(tally.code())
}

fn show_plan(letters: &[Letter], json: bool, dry_run: bool) {
    if json {
        if dry_run {
            letters.iter().for_each(|letter| say(item_json(letter, Timestamp::now())));
        }
        return;
    }
    for group in grouped(letters) {
        say(format_args!("{:>7}  {}  {}", group.count, plain(&group.cause), plain(&group.detail)));
    }
}

/// Returns the archive, then (by the caller) the letter's end. Crash in between: it is in both, and is discarded once
/// more.
async fn archive(session: &LetterSession, letter: &Letter, raw: &RawLetter, reason: &str) -> anyhow::Result<Outcome> {
    let message = match raw.to_json() {
        Ok(message) => message,
        Err(error) => return Ok(Outcome::stays("failed", format!("it cannot be archived: {error}"))),
    };
    let deed = LetterDeed {
        letter: letter.key.clone(),
        request: letter.id.clone().or_else(|| letter.refused_as.clone()),
        deed: Deed::Discarded,
        cause: letter.cause(),
        at: Timestamp::now(),
        operator: session.guard.operator().to_owned(),
        reason: reason.to_owned(),
        detail: format!("by {}: {reason}", session.guard.operator()),
        message: Some(message),
    };
    session.journal.record_deed(deed).await?;
    Ok(Outcome::leaves("discarded", "discarded; `dead export --discarded` gets it back"))
}
