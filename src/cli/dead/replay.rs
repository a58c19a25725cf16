//! `chainwriter dead replay`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tokio::time::Interval;

use crate::broker::RawLetter;
use crate::cli::dead::deeds::{Outcome, act, print_outcome};
use crate::cli::dead::list::item_json;
use crate::cli::dead::options::{ChangeOptions, Which, check_selection, confirm, letters_text, plain, print};
use crate::cli::dead::session::LetterSession;
use crate::cli::{check_reason, exit, progress_bar, say, stop};
use crate::config::Settings;
use crate::model::{RequestId, RequestState};
use crate::policy::letters::Letter;
use crate::policy::letters::replay::{Action, Answer};
use crate::stages::dead_letters::replay_guard::CopyAnswer;

/// Letters of one answer that are listed before the question; `--json` lists all.
const NAMED: usize = 20;
/// Interval between reads of the journal.
const CHECK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    which: Which,
    /// All there are.
    #[arg(long)]
    all: bool,
    /// Why; stands in the copy's header and in what `status` shows.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// At most this many a second; 0.5 is one every two seconds.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// Also those that ended so long ago that the journal may have forgotten them: first check whether the chain has them.
    #[arg(long)]
    even_forgotten: bool,
    /// Also those whose copies wait in the work queue, if somebody has emptied it; else each is still one write.
    #[arg(long)]
    again: bool,
    /// Also those that do not say with which routing key they were published, or to which exchange, where a route or the scope of ids
    /// depends on that. Then the letter's own headers cw-original-routing-key, cw-original-exchange and cw-original-user-id count, else
    /// the default exchange. The risk: its producer may have chosen them, and so the contract, or another producer's id.
    #[arg(long)]
    trust_origin: bool,
    /// Wait until it is known what became of each, and report it.
    #[arg(long)]
    wait: bool,
    /// Wait at most this long.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    options: ChangeOptions,
}

pub(super) async fn run(arguments: Arguments, settings: &Settings) -> anyhow::Result<u8> {
    check_selection(&arguments.which.filter(), arguments.all)?;
    check_reason(&arguments.reason)?;
    let pace = pace(arguments.rate)?;
    LetterSession::with(settings, async |session| replay(session, &arguments, settings.queue(), pace).await).await
}

async fn replay(
    session: &LetterSession,
    arguments: &Arguments,
    queue: &str,
    mut pace: Option<Interval>,
) -> anyhow::Result<u8> {
    let ChangeOptions { dry_run, yes, json } = arguments.options;
    let letters = session.select(&arguments.which, json).await?;
    let letters = letters.into_iter().map(|letter| arguments.trusted(letter)).collect();
    let plan = plan(session, letters).await?;
    show_plan(&plan, arguments);
    if dry_run {
        return Ok(exit::OK);
    }
    let (goes, stays): (Vec<_>, Vec<_>) = plan.into_iter().partition(|(_, answer)| arguments.goes(answer));
    let goes: Vec<_> = goes.into_iter().map(|(letter, _)| letter).collect();
    if json {
        for (letter, answer) in &stays {
            print_outcome(letter, &Outcome::stays(answer.word(), answer.sentence()), json);
        }
    }
    if goes.is_empty() {
        return Ok(exit::NOT_ALL);
    }
    confirm(&format!("Send {} back to {queue}?", letters_text(goes.len() as u64)), yes)?;
    let mut awaited = Vec::new();
    let sent = act(&session.queue, &goes, "sending back", json, async |letter, raw| {
        send_back(session, arguments, (letter, raw), &mut pace, &mut awaited).await
    });
    let mut tally = sent.await?;
    tally.stayed += stays.len() as u64;
    tally.print(json, "replayed");
    let waited = if arguments.wait { wait(session, awaited, arguments.timeout, json).await? } else { None };
    Ok(waited.unwrap_or_else(|| tally.code()))
}

/// Asks the journal once more, since time has passed, and sends the letter back if it is still safe.
async fn send_back(
    session: &LetterSession,
    arguments: &Arguments,
    (letter, raw): (&Letter, &RawLetter),
    pace: &mut Option<Interval>,
    awaited: &mut Vec<Awaited>,
) -> anyhow::Result<Outcome> {
    // This is the letter as it was read anew when it was taken, without the operator's word.
    let letter = &arguments.trusted(letter.clone());
    let (answer, next) = session.guard.assess(letter).await?;
    if !arguments.goes(&answer) {
        return Ok(Outcome::stays(answer.word(), answer.sentence()));
    }
    if answer.action() == Action::Remove {
        return Ok(Outcome::leaves(answer.word(), "replayed already: its leftover is taken away"));
    }
    if let Some(pace) = pace {
        pace.tick().await;
    }
    if let CopyAnswer::Refused(why) = session.send_back(letter, raw, next, &arguments.reason).await? {
        return Ok(Outcome::stays("failed", format!("not sent back: {why}; run the command again")));
    }
    awaited.extend(letter.id.clone().map(|id| Awaited { id, replay: next }));
    Ok(Outcome::leaves("replayed", format!("sent back as replay {next}")))
}

impl Arguments {
    /// Returns the letter with its origin trusted, where the operator answers for that.
    fn trusted(&self, mut letter: Letter) -> Letter {
        if self.trust_origin {
            letter.trust_origin();
        }
        letter
    }

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
fn show_plan(plan: &[(Letter, Answer)], arguments: &Arguments) {
    if arguments.options.json {
        if arguments.options.dry_run {
            for (letter, answer) in plan {
                let more = [
                    ("answer", json!(answer.word())),
                    ("explained", json!(answer.sentence())),
                    ("would_replay", json!(arguments.goes(answer))),
                ];
                say(item_json(letter, more));
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

/// Returns what ticks at this rate, or nothing without a limit.
fn pace(rate: Option<f64>) -> anyhow::Result<Option<Interval>> {
    let Some(rate) = rate else { return Ok(None) };
    let gap = if rate > 0.0 { Duration::try_from_secs_f64(1.0 / rate).ok() } else { None };
    let gap = gap.ok_or_else(|| stop(exit::USAGE, "--rate must be above 0"))?;
    if gap.is_zero() {
        return Ok(None);
    }
    let mut pace = tokio::time::interval(gap);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    Ok(Some(pace))
}

struct Awaited {
    id: RequestId,
    replay: u32,
}

/// Reports how each ends. Returns an exit code where not all were written in time.
async fn wait(
    session: &LetterSession,
    mut awaited: Vec<Awaited>,
    limit: Duration,
    json: bool,
) -> anyhow::Result<Option<u8>> {
    let began = Instant::now();
    let progress = progress_bar(awaited.len() as u64, "waiting");
    let mut died = false;
    while !awaited.is_empty() && began.elapsed() < limit {
        tokio::time::sleep(CHECK).await;
        let ids = awaited.iter().map(|awaited| awaited.id.clone()).collect();
        for (id, known) in session.journal.standings(ids).await? {
            let is_this_one = |awaited: &Awaited| awaited.id == id && known.generation.replay >= awaited.replay;
            let has_ended = matches!(known.state, RequestState::Final | RequestState::Dead);
            if has_ended && awaited.iter().any(is_this_one) {
                awaited.retain(|awaited| awaited.id != id);
                let text = if known.state == RequestState::Final {
                    "final: written once".to_owned()
                } else {
                    died = true;
                    let history = session.journal.history(&id).await?;
                    let cause = history.and_then(|history| history.request.failure).unwrap_or_default();
                    format!("a dead letter again: {}", plain(&cause))
                };
                progress.suspend(|| print_end(&id, known.state.as_str(), &text, json));
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    for Awaited { id, .. } in &awaited {
        let state = session.state_of(id).await?;
        let word = state.map_or("not taken in", RequestState::as_str);
        let text = format!(
            "{word} after {}; the time is over, `chainwriter status` shows more",
            humantime::format_duration(limit)
        );
        print_end(id, word, &text, json);
    }
    Ok(match (awaited.is_empty(), died) {
        (false, _) => Some(exit::STILL_OPEN),
        (true, true) => Some(exit::NOT_ALL),
        (true, false) => None,
    })
}

fn print_end(id: &RequestId, state: &str, text: &str, json: bool) {
    print(
        json,
        || json!({ "id": id, "state": state, "explained": text }),
        || format!("{}: {text}", plain(id.as_str())),
    );
}
