//! What the commands work on: the dead-letter queue and the journal, and one look through the letters.

use anyhow::Context;

use crate::app::broker_settings;
use crate::broker::{DeadLetters, MOST_LETTERS, PublishError, RawLetter, Seen};
use crate::cli::dead::{LIMIT, complain, letters_text};
use crate::cli::{operator, progress_bar};
use crate::config::Settings;
use crate::journal::{Deed, History, OperatorsJournal};
use crate::model::message::ReplayNote;
use crate::model::{Generation, Message, RequestId, RequestState, Timestamp, TransactionState};
use crate::policy::admission::AdmissionRules;
use crate::policy::letters::{Letter, LetterFilter};
use crate::policy::replay::{Answer, Standing, assess};

/// The queue, as operators have it before them.
pub(super) struct Queue {
    pub(super) letters: DeadLetters,
    pub(super) rules: AdmissionRules,
}

impl Queue {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let letters = DeadLetters::connect(&broker_settings(settings)).await?;
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
    pub(super) journal: Box<dyn OperatorsJournal>,
    /// Who sits at it.
    pub(super) operator: String,
    retention: std::time::Duration,
}

impl Desk {
    pub(super) async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let journal = settings
            .journal
            .address
            .open_existing()
            .await
            .context("the journal tells whether a dead letter is safe to replay")?;
        let queue = Queue::open(settings).await?;
        Ok(Self { queue, journal, operator: operator(), retention: settings.journal.retention })
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

    /// Where a letter's request stands.
    pub(super) async fn standing(&self, letter: &Letter) -> anyhow::Result<Standing> {
        let forgets_before = Timestamp::now().before(self.retention);
        let last = self.journal.last_deed(&letter.key).await?;
        let (is_sent_back, is_edited) = (last == Some(Deed::SentBack), last == Some(Deed::Edited));
        let mut standing = Standing { is_sent_back, is_edited, forgets_before, ..Standing::default() };
        if let Some(id) = &letter.id {
            standing.known = self.journal.standings(vec![id.clone()]).await?.pop().map(|(_, known)| known);
            standing.may_land = self.journal.history(id).await?.as_ref().and_then(may_land);
        }
        Ok(standing)
    }

    /// Whether a letter is safe to replay, and as which copy.
    pub(super) async fn assess(&self, letter: &Letter) -> anyhow::Result<(Answer, u32)> {
        let standing = self.standing(letter).await?;
        let known = standing.known.map_or(Generation::default(), |known| known.generation);
        let next = known.replay.max(letter.generation.replay).saturating_add(1);
        Ok((assess(letter, &standing), next))
    }

    /// Where this id stands.
    pub(super) async fn state_of(&self, id: &RequestId) -> anyhow::Result<Option<RequestState>> {
        Ok(self.journal.standings(vec![id.clone()]).await?.pop().map(|(_, known)| known.state))
    }

    /// The copy that goes back: who, when and why stand in its headers.
    pub(super) fn note<'a>(&'a self, replay: u32, reason: &'a str) -> ReplayNote<'a> {
        ReplayNote { replay, by: &self.operator, at: Timestamp::now(), reason }
    }

    /// Publishes a copy to the work queue. What the broker says against this very copy comes as a text; where it does
    /// not answer, it will not for the next one, and that is an error.
    pub(super) async fn send_back(&self, message: Message) -> anyhow::Result<Result<(), String>> {
        match self.queue.letters.send_back(message).await {
            Ok(()) => Ok(Ok(())),
            Err(error @ (PublishError::Returned { .. } | PublishError::Refused { .. })) => Ok(Err(error.to_string())),
            Err(error @ (PublishError::NotConnected | PublishError::Timeout | PublishError::Channel(_))) => {
                Err(error).context("the rest stays where it is; run the command again when the broker takes messages")
            }
        }
    }
}

/// A transaction of a request that is no further than dead, and could take effect all the same.
fn may_land(history: &History) -> Option<String> {
    history.transactions.iter().find_map(|transaction| {
        let nonce = transaction.nonce;
        let open = [TransactionState::Live.as_str(), TransactionState::Succeeded.as_str()];
        if open.contains(&transaction.state.as_str()) {
            return Some(format!("its transaction with nonce {nonce} is {}", transaction.state));
        }
        transaction
            .reorged_at
            .as_ref()
            .map(|_| format!("the chain has dropped the block in which its transaction with nonce {nonce} had ended"))
    })
}
