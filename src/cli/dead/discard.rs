//! `chainwriter dead discard`

use clap::Args;

use crate::broker::RawLetter;
use crate::cli::dead::deeds::{Outcome, act, record};
use crate::cli::dead::list::item_json;
use crate::cli::dead::options::{ChangeOptions, Which, check_selection, confirm, letters_text, plain};
use crate::cli::dead::session::LetterSession;
use crate::cli::{check_reason, exit, say};
use crate::config::Settings;
use crate::journal::Deed;
use crate::policy::letters::{Letter, grouped};

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    which: Which,
    /// All there are.
    #[arg(long)]
    all: bool,
    /// Why; stands in the archive and in what `status` shows.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    options: ChangeOptions,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<u8> {
    check_selection(&arguments.which.filter(), arguments.all)?;
    check_reason(&arguments.reason)?;
    LetterSession::with(settings, async |session| discard(session, &arguments, settings).await).await
}

async fn discard(session: &LetterSession, arguments: &Arguments, settings: &Settings) -> anyhow::Result<u8> {
    let ChangeOptions { dry_run, yes, json } = arguments.options;
    let letters = session.select(&arguments.which, json).await?;
    show_plan(&letters, json, dry_run);
    if dry_run {
        return Ok(exit::OK);
    }
    let question = format!(
        "Take {} out of {} for good? The journal keeps them for {}.",
        letters_text(letters.len() as u64),
        session.queue.letters.name(),
        humantime::format_duration(settings.journal.retention)
    );
    confirm(&question, yes)?;
    let discarded = act(&session.queue, &letters, "discarding", json, async |letter, raw| {
        archive(session, letter, raw, &arguments.reason).await
    });
    let tally = discarded.await?;
    tally.print(json, "discarded");
    Ok(tally.code())
}

fn show_plan(letters: &[Letter], json: bool, dry_run: bool) {
    if json {
        if dry_run {
            letters.iter().for_each(|letter| say(item_json(letter, [])));
        }
        return;
    }
    for group in grouped(letters) {
        say(format_args!("{:>7}  {}  {}", group.count, plain(&group.cause), plain(&group.detail)));
    }
}

/// Archives the letter, which the caller then removes. Crash in between: it is in both, and is discarded once more.
async fn archive(session: &LetterSession, letter: &Letter, raw: &RawLetter, reason: &str) -> anyhow::Result<Outcome> {
    let detail = format!("by {}: {reason}", session.guard.actor());
    let deed = match record(session, (letter, raw), Deed::Discarded, reason, detail) {
        Ok(deed) => deed,
        Err(failed) => return Ok(failed),
    };
    session.journal.record_deed(deed).await?;
    Ok(Outcome::leaves("discarded", "discarded; `dead export --discarded` gets it back"))
}
