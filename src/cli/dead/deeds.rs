//! Acts on letters that were shown: takes each once more, by its key, and reports its outcome.
//!
//! Crash anywhere in here: what was done is done, the letter in hand and all others stand in the queue, in their places.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;

use crate::broker::RawLetter;
use crate::cli::dead::list::item_json;
use crate::cli::dead::session::{Queue, remark};
use crate::cli::dead::{complain, plain, print};
use crate::cli::{exit, progress_bar};
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
    pub(super) fn code(self) -> ExitCode {
        if self.stayed == 0 && self.gone == 0 { ExitCode::SUCCESS } else { ExitCode::from(exit::NOT_ALL) }
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
    let mut open: HashMap<&str, (u64, &Letter)> = HashMap::new();
    for letter in plan {
        open.entry(&letter.key).or_insert((0, letter)).0 += 1;
    }
    let progress = progress_bar(plan.len() as u64, doing);
    let mut tally = Tally::default();
    let mut is_through = false;
    while !open.is_empty() && !is_through {
        let began = Instant::now();
        let mut browse = queue.letters.browse(u64::MAX).await?;
        is_through = true;
        while !open.is_empty()
            && let Some(held) = browse.next().await?
        {
            let letter = Letter::read(&queue.rules, &held.letter.message());
            let Some((count, _)) = open.get_mut(letter.key.as_str()) else {
                browse.leave(held).await?;
                continue;
            };
            *count -= 1;
            if *count == 0 {
                open.remove(letter.key.as_str());
            }
            let outcome = deed(&letter, &held.letter).await?;
            if outcome.leaves {
                browse.remove(held.ticket).await?;
                tally.done += 1;
            } else {
                browse.leave(held).await?;
                tally.stayed += 1;
            }
            progress.suspend(|| print_outcome(&letter, &outcome, json));
            progress.inc(1);
            if began.elapsed() > LONGEST_HOLD {
                is_through = false;
                break;
            }
        }
        let seen = browse.end().await?;
        if is_through {
            remark(&crate::broker::Seen { left: 0, ..seen });
        }
    }
    progress.finish_and_clear();
    for (count, letter) in open.into_values() {
        tally.gone += count;
        let outcome = Outcome::stays(
            "gone",
            "not in the queue now: somebody else has seen to it, or holds it at this moment; look again",
        );
        print_outcome(letter, &outcome, json);
    }
    Ok(tally)
}

pub(super) fn print_outcome(letter: &Letter, outcome: &Outcome, json: bool) {
    print(
        json,
        || {
            let mut item = item_json(letter, Timestamp::now());
            if let Some(fields) = item.as_object_mut() {
                fields.insert("result".to_owned(), json!(outcome.word));
                fields.insert("explained".to_owned(), json!(outcome.text));
            }
            item
        },
        || format!("{}  {}: {}", letter.key, plain(letter.name()), outcome.text),
    );
}

/// Reports that no letter was found.
pub(super) fn none_found(json: bool) -> ExitCode {
    if !json {
        complain("no dead letter is meant by that");
    }
    ExitCode::from(exit::NOT_FOUND)
}
