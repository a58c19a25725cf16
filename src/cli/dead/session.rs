//! The dead-letter queue, the journal, and the guard that decides on replays, as the commands share them.

use std::sync::Arc;

use anyhow::Context;

use crate::broker::{Browse, DeadLetters, MOST_LETTERS, RawLetter, Seen, Ticket};
use crate::cli::dead::options::{LIMIT, Which, letters_text};
use crate::cli::{Stop, complain, exit, operator, progress_bar, stop};
use crate::config::Settings;
use crate::journal::{Actor, History, OperatorsJournal};
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
        mut found: impl FnMut(Letter, &RawLetter),
    ) -> anyhow::Result<Seen> {
        let held = self.hold(filter, most, "reading", |letter, raw| {
            found(letter, raw);
            Ok(false)
        });
        held.await?.remove().await
    }

    /// Does the same, and holds the letters for which `found` returns true.
    pub(super) async fn hold(
        &self,
        filter: &LetterFilter,
        most: u64,
        doing: &'static str,
        mut found: impl FnMut(Letter, &RawLetter) -> anyhow::Result<bool>,
    ) -> anyhow::Result<HeldLetters<'_>> {
        let mut browse = self.letters.browse(most).await?;
        let progress = progress_bar(browse.room(), doing);
        let now = Timestamp::now();
        let mut tickets = Vec::new();
        while let Some(held) = browse.next().await? {
            let message = held.letter.message();
            let letter = Letter::read(&self.rules, &message);
            if filter.means(&letter, &message, now) && found(letter, &held.letter)? {
                tickets.push(held.ticket);
            } else {
                browse.leave(held).await?;
            }
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(HeldLetters { browse, tickets })
    }

    /// Returns the selected letters, without their bodies.
    pub(super) async fn find(&self, filter: &LetterFilter, most: u64) -> anyhow::Result<(Vec<Letter>, Seen)> {
        let mut letters = Vec::new();
        let seen = self.browse(filter, most, |letter, _| letters.push(letter)).await?;
        Ok((letters, seen))
    }
}

/// Letters that go back to the queue unless they are removed.
pub(super) struct HeldLetters<'q> {
    browse: Browse<'q>,
    tickets: Vec<Ticket>,
}

impl HeldLetters<'_> {
    pub(super) fn count(&self) -> u64 {
        self.tickets.len() as u64
    }

    pub(super) async fn remove(mut self) -> anyhow::Result<Seen> {
        for ticket in self.tickets {
            self.browse.remove(ticket).await?;
        }
        Ok(self.browse.end().await?)
    }
}

/// Warns of what a browse has not seen, or could not renew.
pub(super) fn remark(seen: &Seen) {
    if seen.left > 0 {
        complain(format_args!(
            "{} were read; {} more behind them were not: --limit takes up to {MOST_LETTERS}, and is {LIMIT} by itself",
            seen.letters, seen.left
        ));
    }
    if seen.others_hold {
        complain("somebody else holds dead letters at this moment; those are not seen");
    }
    if seen.worn > 0 {
        complain(format_args!(
            "{} have been read often and could not be renewed: a policy with a delivery limit on this queue \
             would drop them. Run no such command again until the queue takes messages",
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
    /// Does some work in a session, which is closed unless the work fails.
    pub(super) async fn with<T>(
        settings: &Settings,
        work: impl AsyncFnOnce(&Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let journal = settings.journal.address.open_existing().await;
        let journal = journal.context("the journal knows whether a dead letter is safe to replay")?;
        let journal: Arc<dyn OperatorsJournal> = Arc::from(journal);
        let queue = Queue::open(settings).await?;
        let guard = ReplayGuard::new(Arc::clone(&journal), Actor::Person(operator()), settings.journal.retention);
        let session = Self { queue, journal, guard };
        let done = work(&session).await;
        if done.as_ref().err().is_none_or(|error| error.is::<Stop>()) {
            session.queue.letters.close().await;
            session.journal.close().await;
        }
        done
    }

    /// Returns the letters that a command is to change: at least one.
    pub(super) async fn select(&self, which: &Which, json: bool) -> anyhow::Result<Vec<Letter>> {
        let (letters, seen) = self.queue.find(&which.filter(), which.limit).await?;
        remark(&seen);
        if letters.is_empty() { Err(none_found(json)) } else { Ok(letters) }
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

    /// Sends a letter back, and records that: before it, that the operator has decided on it. Removing the letter is left to
    /// the caller.
    pub(super) async fn send_back(
        &self,
        letter: &Letter,
        raw: &RawLetter,
        next: u32,
        reason: &str,
    ) -> anyhow::Result<CopyAnswer> {
        self.guard.decide(letter.id.as_ref()).await?;
        match self.guard.send_back(&self.queue.letters, letter, raw, next, reason).await {
            Err(error @ SendBackError::Publish(_)) => Err(error).context(REST_STAYS),
            other => Ok(other?),
        }
    }
}

/// Reports that there is no such letter.
pub(super) fn none_found(json: bool) -> anyhow::Error {
    stop(exit::NOT_FOUND, if json { "" } else { "no dead letter is meant by that" })
}
