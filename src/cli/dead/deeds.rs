//! Acts on letters that were shown: takes each once more, by its key, and reports its outcome.
//!
//! Crash anywhere in here: what was done is done, the letter in hand and all others stand in the queue, in their places.

use std::collections::HashMap;
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::json;

use crate::broker::{RawLetter, Seen};
use crate::cli::dead::list::item_json;
use crate::cli::dead::options::{plain, print};
use crate::cli::dead::session::{LetterSession, Queue, remark};
use crate::cli::{exit, progress_bar};
use crate::journal::{Deed, LetterDeed};
use crate::model::Timestamp;
use crate::policy::letters::Letter;
use crate::stages::dead_letters::replay_guard::LONGEST_HOLD;

pub(super) struct Outcome {
    /// In one word, for programs.
    pub(super) word: &'static str,
    pub(super) text: String,
    /// Set where the letter is safe elsewhere, and leaves the queue.
    pub(super) leaves: bool,
}

impl Outcome {
    pub(super) fn leaves(word: &'static str, text: impl Into<String>) -> Self {
        Self { word, text: text.into(), leaves: true }
    }

    pub(super) fn stays(word: &'static str, text: impl Into<String>) -> Self {
        Self { word, text: text.into(), leaves: false }
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) done: u64,
    pub(super) stayed: u64,
    pub(super) gone: u64,
}

impl Tally {
    pub(super) fn code(self) -> u8 {
        if self.stayed == 0 && self.gone == 0 { exit::OK } else { exit::NOT_ALL }
    }

    pub(super) fn print(self, json: bool, done: &str) {
        let Self { done: count, stayed, gone } = self;
        print(
            json,
            || json!({ "summary": { done: count, "stayed": stayed, "gone": gone } }),
            || {
                let gone = if gone > 0 { format!(", {gone} not found again") } else { String::new() };
                format!("{count} {done}, {stayed} left where they are{gone}")
            },
        );
    }
}

/// Holds each letter of the plan, the oldest first, and calls `deed` with it.
pub(super) async fn act(
    queue: &Queue,
    plan: &[Letter],
    doing: &'static str,
    json: bool,
    mut deed: impl AsyncFnMut(&Letter, &RawLetter) -> anyhow::Result<Outcome>,
) -> anyhow::Result<Tally> {
    let progress = progress_bar(plan.len() as u64, doing);
    let mut work = Work { open: HashMap::new(), left: plan.len(), tally: Tally::default(), progress, json };
    for letter in plan {
        work.open.entry(&letter.key).or_default().push(letter);
    }
    while work.left > 0 && !work.browse(queue, &mut deed).await? {}
    let Work { open, mut tally, progress, .. } = work;
    progress.finish_and_clear();
    for letter in open.into_values().flatten() {
        tally.gone += 1;
        let text = "not in the queue now: another command has handled it, or holds it at this moment; try again";
        print_outcome(letter, &Outcome::stays("gone", text), json);
    }
    Ok(tally)
}

/// The rest of a plan, and what was done.
struct Work<'p> {
    /// By key, which letters with the same content share.
    open: HashMap<&'p str, Vec<&'p Letter>>,
    left: usize,
    tally: Tally,
    progress: ProgressBar,
    json: bool,
}

impl Work<'_> {
    /// Browses the queue once, for [`LONGEST_HOLD`] at most. Returns whether it came to the queue's end.
    async fn browse(
        &mut self,
        queue: &Queue,
        deed: &mut impl AsyncFnMut(&Letter, &RawLetter) -> anyhow::Result<Outcome>,
    ) -> anyhow::Result<bool> {
        let began = Instant::now();
        let mut browse = queue.letters.browse(u64::MAX).await?;
        let mut is_through = true;
        while is_through
            && self.left > 0
            && let Some(held) = browse.next().await?
        {
            let letter = Letter::read(&queue.rules, &held.letter.message());
            if self.open.get_mut(letter.key.as_str()).and_then(Vec::pop).is_none() {
                browse.leave(held).await?;
                continue;
            }
            self.left -= 1;
            let outcome = deed(&letter, &held.letter).await?;
            if outcome.leaves {
                browse.remove(held.ticket).await?;
                self.tally.done += 1;
            } else {
                browse.leave(held).await?;
                self.tally.stayed += 1;
            }
            self.progress.suspend(|| print_outcome(&letter, &outcome, self.json));
            self.progress.inc(1);
            is_through = began.elapsed() <= LONGEST_HOLD;
        }
        let seen = browse.end().await?;
        if is_through {
            remark(&Seen { left: 0, ..seen });
        }
        Ok(is_through)
    }
}

pub(super) fn print_outcome(letter: &Letter, outcome: &Outcome, json: bool) {
    print(
        json,
        || item_json(letter, [("result", json!(outcome.word)), ("explained", json!(outcome.text))]),
        || format!("{}  {}: {}", letter.key, plain(letter.name()), outcome.text),
    );
}

/// Returns the record of a deed with the whole letter in it, or why there can be none.
pub(super) fn record(
    session: &LetterSession,
    (letter, raw): (&Letter, &RawLetter),
    deed: Deed,
    reason: &str,
    detail: String,
) -> Result<LetterDeed, Outcome> {
    let message = raw.to_json().map_err(|error| Outcome::stays("failed", format!("it cannot be archived: {error}")))?;
    Ok(LetterDeed {
        letter: letter.key.clone(),
        request: letter.id.clone().or_else(|| letter.refused_as.clone()),
        deed,
        cause: letter.cause(),
        at: Timestamp::now(),
        by: session.guard.actor().clone(),
        reason: reason.to_owned(),
        detail,
        message: Some(message),
    })
}
