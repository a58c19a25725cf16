//! `chainwriter dead replay`

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use crate::cli::dead::deeds::{Outcome, act, none_found, print_outcome};
use crate::cli::dead::list::item_json;
use crate::cli::dead::session::{LetterSession, remark};
use crate::cli::dead::wait::{Awaited, wait};
use crate::cli::dead::{
    ChangeOptions, Which, complain, confirmed, letters_text, means_all_by_a_slip, plain, reason_is_too_long,
};
use crate::cli::{exit, say};
use crate::config::Settings;
use crate::model::Timestamp;
use crate::policy::letters::Letter;
use crate::policy::letters::replay::{Action, Answer};
use crate::stages::dead_letters::replay_guard::CopyAnswer;

/// Letters of one answer that are listed before the question; `--json` lists all.
const NAMED: usize = 20;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    which: Which,
    /// All there are.
    #[arg(long)]
    all: bool,
    /// Why; stands in the copy's header and in what `status` tells.
    #[arg(long, default_value = "")]
    reason: String,
    /// So many a second at most; 0.5 is one every two seconds.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Also those that ended so long ago that the journal may have forgotten them: first look whether the chain has them.
    #[arg(long)]
    even_forgotten: bool,
    /// Also those whose copies wait in the work queue, if somebody has emptied it; else each is still one write.
    #[arg(long)]
    again: bool,
    /// Wait until it is known what became of each, and tell.
    #[arg(long)]
    wait: bool,
    /// For so long at most.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    options: ChangeOptions,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<ExitCode> {
    let filter = arguments.which.filter();
    let slip = means_all_by_a_slip(&filter, arguments.all).or_else(|| reason_is_too_long(&arguments.reason));
    if let Some(code) = slip {
        return Ok(code);
    }
    let Some(mut pace) = Pace::new(arguments.rate) else {
        complain("--rate must be above 0");
        return Ok(ExitCode::from(exit::USAGE));
    };
    let ChangeOptions { dry_run, yes, json } = arguments.options;
    let session = LetterSession::open(settings).await?;
    let (letters, seen) = session.queue.find(&filter, arguments.which.limit).await?;
    remark(&seen);
    if letters.is_empty() {
        session.close().await;
        return Ok(none_found(json));
    }
    let plan = plan(&session, letters).await?;
    show_plan(&plan, dry_run, &arguments);
    let (goes, stays): (Vec<_>, Vec<_>) = plan.into_iter().partition(|(_, answer)| arguments.goes(answer));
    let goes: Vec<_> = goes.into_iter().map(|(letter, _)| letter).collect();
    if json && !dry_run {
        for (letter, answer) in &stays {
            print_outcome(letter, &Outcome::stays(answer.word(), answer.sentence()), json);
        }
    }
    let question = format!("Send {} back to {}?", letters_text(goes.len() as u64), settings.queue());
    if dry_run || goes.is_empty() {
        session.close().await;
        return Ok(if stays.is_empty() || dry_run { ExitCode::SUCCESS } else { ExitCode::from(exit::NOT_ALL) });
    }
    if let Err(code) = confirmed(&question, yes) {
        session.close().await;
        return Ok(code);
    }
    let mut awaited = Vec::new();
    let sent = act(&session.queue, &goes, "sending back", json, async |letter, raw| {
        let (answer, next) = session.guard.assess(letter).await?;
        if !arguments.goes(&answer) {
            return Ok(Outcome::stays(answer.word(), answer.sentence()));
        }
        if answer.action() == Action::Remove {
            return Ok(Outcome::leaves(answer.word(), "replayed already: its leftover is taken away"));
        }
        pace.step().await;
        if let CopyAnswer::Refused(why) = session.send_back(letter, raw, next, &arguments.reason).await? {
            return Ok(Outcome::stays("failed", format!("not sent back: {why}; run the command again")));
        }
        awaited.extend(letter.id.clone().map(|id| Awaited { id, replay: next }));
        Ok(Outcome::leaves("replayed", format!("sent back as replay {next}")))
    });
    let mut tally = sent.await?;
    tally.stayed += stays.len() as u64;
    tally.print(json, "replayed");
    let code = if arguments.wait {
        let waited = wait(&session, awaited, arguments.timeout, json).await?;
        waited.unwrap_or_else(|| tally.code())
    } else {
        tally.code()
    };
    session.close().await;
    Ok(code)
}

impl Arguments {
    fn goes(&self, answer: &Answer) -> bool {
        match answer.action() {
            Action::Replay | Action::Remove => true,
            Action::IfForgotten => self.even_forgotten,
            Action::IfAgain => self.again,
            Action::Leave => false,
        }
    }
}

async fn plan(session: &LetterSession, letters: Vec<Letter>) -> anyhow::Result<Vec<(Letter, Answer)>> {
    let mut plan = Vec::with_capacity(letters.len());
    for letter in letters {
        let (answer, _) = session.guard.assess(&letter).await?;
        plan.push((letter, answer));
    }
    Ok(plan)
}

/// Prints the plan by answer, so that one sentence stands for all its letters.
fn show_plan(plan: &[(Letter, Answer)], dry_run: bool, arguments: &Arguments) {
    if arguments.options.json {
        if dry_run {
            for (letter, answer) in plan {
                let mut item = item_json(letter, Timestamp::now());
                if let Some(fields) = item.as_object_mut() {
                    fields.insert("answer".to_owned(), json!(answer.word()));
                    fields.insert("explained".to_owned(), json!(answer.sentence()));
                    fields.insert("would_replay".to_owned(), json!(arguments.goes(answer)));
                }
                say(item);
            }
        }
        return;
    }
    let mut answers: BTreeMap<String, (&Answer, Vec<&Letter>)> = BTreeMap::new();
    for (letter, answer) in plan {
        answers.entry(answer.sentence()).or_insert((answer, Vec::new())).1.push(letter);
    }
    for (sentence, (answer, letters)) in answers {
        let goes = if arguments.goes(answer) { "" } else { ", left where they are" };
        say(format_args!("{}{goes}: {sentence}", letters_text(letters.len() as u64)));
        for letter in letters.iter().take(NAMED) {
            say(format_args!("  {}  {}  {}", letter.key, plain(letter.name()), plain(&letter.cause())));
        }
        if letters.len() > NAMED {
            say(format_args!("  … and {} more", letters.len() - NAMED));
        }
    }
}

/// So many a second.
pub(super) struct Pace {
    gap: Duration,
    next: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<f64>) -> Option<Self> {
        let gap = match rate {
            None => Duration::ZERO,
            Some(rate) if rate > 0.0 => Duration::try_from_secs_f64(1.0 / rate).ok()?,
            Some(_) => return None,
        };
        Some(Self { gap, next: Instant::now() })
    }

    async fn step(&mut self) {
        tokio::time::sleep_until(self.next).await;
        self.next = Instant::now() + self.gap;
    }
}
