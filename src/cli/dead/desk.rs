//! What the commands work on: the dead-letter queue and the journal, and one look through the letters.

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
use crate::stages::dead_letters::replay_guard::{self, ReplayGuard, SendBackError};

/// Where the broker does not answer for one letter, it will not for the next one.
const REST_STAYS: &str = "the rest stays where it is; run the command again when the broker takes messages";

/// The queue, as operators have it before them.
pub(super) struct Queue {
    pub(super) letters: DeadLetters,
    pub(super) rules: AdmissionRules,
}

impl Queue {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let letters = DeadLetters::connect(&settings.broker).await?;
        Ok(Self { letters, rules: settings.admission.clone() })
    }

    /// Looks at up to `most` letters, which stay, and hands on those that are meant.
    pub(super) async fn look(
        &self,
        filter: &LetterFilter,
        most: u64,
        mut found: impl FnMut(Letter, &RawLetter) -> anyhow::Result<()>,
    ) -> anyhow::Result<Seen> {
        let mut look = self.letters.look(most).await?;
        let progress = progress_bar(look.room(), "looking");
        let now = Timestamp::now();
        while let Some(held) = look.next().await? {
            let message = held.letter.message();
            let letter = Letter::read(&self.rules, &message);
            if filter.means(&letter, &message, now) {
                found(letter, &held.letter)?;
            }
            look.leave(held).await?;
            progress.inc(1);
        }
        progress.finish_and_clear();
        Ok(look.end().await?)
    }

    /// The letters that are meant, without their bodies.
    pub(super) async fn find(&self, filter: &LetterFilter, most: u64) -> anyhow::Result<(Vec<Letter>, Seen)> {
        let mut letters = Vec::new();
        let seen = self.look(filter, most, |letter, _| {
            letters.push(letter);
            Ok(())
        });
        let seen = seen.await?;
        Ok((letters, seen))
    }
}

/// What a look has not seen, or has done besides; for a person.
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

/// The queue with the journal that knows its requests.
pub(super) struct Desk {
    pub(super) queue: Queue,
    pub(super) journal: Arc<dyn OperatorsJournal>,
    /// In the name of who sits at it.
    pub(super) judge: ReplayGuard,
}

impl Desk {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let journal = settings
            .journal
            .address
            .open_existing()
            .await
            .context("the journal tells whether a dead letter is safe to replay")?;
        let journal: Arc<dyn OperatorsJournal> = Arc::from(journal);
        let queue = Queue::open(settings).await?;
        let judge = ReplayGuard::new(Arc::clone(&journal), operator(), settings.journal.retention);
        Ok(Self { queue, journal, judge })
    }

    pub(super) async fn close(self) {
        self.queue.letters.close().await;
        self.journal.close().await;
    }

    /// Everything about the request of a letter.
    pub(super) async fn history(&self, letter: &Letter) -> anyhow::Result<Option<History>> {
        for id in [&letter.id, &letter.refused_as].into_iter().flatten() {
            if let Some(history) = self.journal.history(id).await? {
                return Ok(Some(history));
            }
        }
        Ok(None)
    }

    /// Where this id stands.
    pub(super) async fn state_of(&self, id: &RequestId) -> anyhow::Result<Option<RequestState>> {
        Ok(self.journal.standings(vec![id.clone()]).await?.pop().map(|(_, known)| known.state))
    }

    /// Publishes a copy to the work queue. What the broker says against this very copy comes as a text.
    pub(super) async fn publish(&self, copy: Message) -> anyhow::Result<Result<(), String>> {
        replay_guard::publish(&self.queue.letters, copy).await.context(REST_STAYS)
    }

    /// Sends a letter back, and notes that. The letter itself is the caller's to end.
    pub(super) async fn send_back(
        &self,
        letter: &Letter,
        raw: &RawLetter,
        next: u32,
        reason: &str,
    ) -> anyhow::Result<Result<(), String>> {
        match self.judge.send_back(&self.queue.letters, letter, raw, next, reason).await {
            Err(error @ SendBackError::Publish(_)) => Err(error).context(REST_STAYS),
            other => Ok(other?),
        }
    }
}
