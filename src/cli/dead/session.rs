//! What the commands work on: the dead-letter queue, the journal, and the guard that decides on replays.

use std::sync::Arc;

use anyhow::Context;

use crate::broker::{DeadLetters, MOST_LETTERS, RawLetter, Seen};
use crate::cli::dead::{LIMIT, complain, letters_text};
use crate::cli::{operator, progress_bar};
use crate::config::Settings;
use crate::journal::{History, OperatorsJournal};
use crate::model::{Message, RequestId, RequestState, Timestamp};
use crate::policy::admission::AdmissionRules;
use crate::policy::letters::{Letter, LetterFilter};
use crate::stages::dead_letters::replay_guard::{self, CopyAnswer, ReplayGuard, SendBackError};

/// Advice where the broker does not answer for one letter, which it will not for the next one either.
const REST_STAYS: &str = "the rest stays where it is; run the command again when the broker takes messages";

pub(super) struct Queue {
    pub(super) letters: DeadLetters,
    pub(super) rules: AdmissionRules,
}

impl Queue {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let letters = DeadLetters::connect(&settings.broker).await?;
        Ok(Self { letters, rules: settings.admission.clone() })
    }

    /// Reads up to `most` letters, which stay in the queue, and calls `found` with those that the filter selects.
    pub(super) async fn browse(
        &self,
        filter: &LetterFilter,
        most: u64,
        mut found: impl FnMut(Letter, &RawLetter) -> anyhow::Result<()>,
    ) -> anyhow::Result<Seen> {
        let mut browse = self.letters.browse(most).await?;
        let progress = progress_bar(browse.room(), "looking");
        let now = Timestamp::now();
        while let Some(held) = browse.next().await? {
            let message = held.letter.message();
            let letter = Letter::read(&self.rules, &message);
            if filter.means(&letter, &message, now) {
                found(letter, &held.letter)?;
            }
            browse.leave(held).await?;
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(browse.end().await?)
    }

    /// Returns the selected letters, without their bodies.
    pub(super) async fn find(&self, filter: &LetterFilter, most: u64) -> anyhow::Result<(Vec<Letter>, Seen)> {
        let mut letters = Vec::new();
        let seen = self.browse(filter, most, |letter, _| {
            letters.push(letter);
            Ok(())
        });
        let seen = seen.await?;
        Ok((letters, seen))
    }
}

/// Warns of what a browse has not seen, or could not renew.
pub(super) fn remark(seen: &Seen) {
    if seen.left > 0 {
        complain(format_args!(
            "{} were looked at; {} more behind them were not: --limit takes up to {MOST_LETTERS}, and is {LIMIT} by itself",
            seen.letters, seen.left
        ));
    }
    if seen.others_hold {
        complain("somebody else holds dead letters at this moment; those are not seen");
    }
    if seen.worn > 0 {
        complain(format_args!(
            "{} have been looked at often and could not be renewed: a policy with a delivery limit on this queue \
             would drop them. Let nobody look again until the queue takes messages",
            letters_text(seen.worn)
        ));
    }
}

/// The dead-letter queue with the journal that knows its requests.
pub(super) struct LetterSession {
    pub(super) queue: Queue,
    pub(super) journal: Arc<dyn OperatorsJournal>,
    /// Acts in the operator's name.
    pub(super) guard: ReplayGuard,
}

impl LetterSession {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let journal = settings
            .journal
            .address
            .open_existing()
            .await
            .context("the journal tells whether a dead letter is safe to replay")?;
        let journal: Arc<dyn OperatorsJournal> = Arc::from(journal);
        let queue = Queue::open(settings).await?;
        let guard = ReplayGuard::new(Arc::clone(&journal), operator(), settings.journal.retention);
        Ok(Self { queue, journal, guard })
    }

    pub(super) async fn close(self) {
        self.queue.letters.close().await;
        self.journal.close().await;
    }

    /// Returns the history of a letter's request.
    pub(super) async fn history(&self, letter: &Letter) -> anyhow::Result<Option<History>> {
        for id in [&letter.id, &letter.refused_as].into_iter().flatten() {
            if let Some(history) = self.journal.history(id).await? {
                return Ok(Some(history));
            }
        }
        Ok(None)
    }

    pub(super) async fn state_of(&self, id: &RequestId) -> anyhow::Result<Option<RequestState>> {
        Ok(self.journal.standings(vec![id.clone()]).await?.pop().map(|(_, known)| known.state))
    }

    /// Publishes a copy to the work queue.
    pub(super) async fn publish(&self, copy: Message) -> anyhow::Result<CopyAnswer> {
        replay_guard::publish(&self.queue.letters, copy).await.context(REST_STAYS)
    }

    /// Sends a letter back, and records that. Removing the letter is left to the caller.
    pub(super) async fn send_back(
        &self,
        letter: &Letter,
        raw: &RawLetter,
        next: u32,
        reason: &str,
    ) -> anyhow::Result<CopyAnswer> {
        match self.guard.send_back(&self.queue.letters, letter, raw, next, reason).await {
            Err(error @ SendBackError::Publish(_)) => Err(error).context(REST_STAYS),
            other => Ok(other?),
        }
    }
}
