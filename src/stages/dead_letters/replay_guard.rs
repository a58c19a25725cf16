//! Decides by the journal whether a dead letter may be sent back, and sends it: for the commands and for the daemon's rules.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::{PublishError, RawLetter, WorkQueue};
use crate::journal::{Actor, Deed, History, JournalError, LetterDeed, OperatorsJournal};
use crate::model::message::ReplayNote;
use crate::model::operator::text_of;
use crate::model::{Generation, Message, RequestId, Timestamp, TransactionState};
use crate::policy::letters::Letter;
use crate::policy::letters::replay::{Answer, Standing, assess};

/// After this, held letters go back and are taken again: far below the broker's consumer timeout of 30 minutes, and often enough
/// for others that wait for them.
pub const LONGEST_HOLD: Duration = Duration::from_secs(300);

/// Why a letter was not sent back, which would keep the next one too.
#[derive(Debug, thiserror::Error)]
pub enum SendBackError {
    #[error("a dead letter was not sent back: {0}")]
    Publish(#[source] PublishError),
    #[error("it was not noted that a dead letter was sent back: {0}")]
    Journal(#[from] JournalError),
}

#[derive(Debug, PartialEq, Eq)]
pub enum CopyAnswer {
    Confirmed,
    /// The broker refused this copy, for this reason. It may take others.
    Refused(String),
}

/// Decides on replays in the name of an operator, or of a rule.
pub struct ReplayGuard {
    journal: Arc<dyn OperatorsJournal>,
    actor: Actor,
    /// As it is shown.
    name: String,
    retention: Duration,
}

impl ReplayGuard {
    /// `retention` is how long the journal keeps settled requests.
    pub fn new(journal: Arc<dyn OperatorsJournal>, actor: Actor, retention: Duration) -> Self {
        Self { journal, name: actor.to_string(), actor, retention }
    }

    pub fn actor(&self) -> &Actor {
        &self.actor
    }

    /// Reads what the journal knows of a letter's request.
    pub async fn standing(&self, letter: &Letter) -> Result<Standing, JournalError> {
        let now = Timestamp::now();
        let forgets_before = now.before(self.retention);
        let last = self.journal.last_deed(&letter.key).await?;
        let (is_sent_back, is_edited) = (last == Some(Deed::SentBack), last == Some(Deed::Edited));
        let recovery = self.journal.last_recovery().await?;
        let mut standing = Standing { is_sent_back, is_edited, forgets_before, recovery, now, ..Standing::default() };
        if let Some(id) = &letter.id {
            standing.known = self.journal.standings(vec![id.clone()]).await?.pop().map(|(_, known)| known);
            standing.may_land = self.journal.history(id).await?.as_ref().and_then(may_land);
        }
        Ok(standing)
    }

    /// Returns whether a letter is safe to replay, and as which replay.
    pub async fn assess(&self, letter: &Letter) -> Result<(Answer, u32), JournalError> {
        let standing = self.standing(letter).await?;
        let known = standing.known.map_or(Generation::default(), |known| known.generation);
        let next = known.replay.max(letter.generation.replay).saturating_add(1);
        Ok((assess(letter, &standing), next))
    }

    /// Returns whether a recovery is on: only a person can decide on letters then.
    pub async fn is_recovering(&self) -> Result<bool, JournalError> {
        Ok(self.journal.last_recovery().await?.is_some_and(|recovery| recovery.ended_at.is_none()))
    }

    /// Records, while a recovery is on, that a person wants this request written. Before the copy is published: the lane
    /// that gets it lets through what is decided, and nothing else. No rule decides.
    pub async fn decide(&self, request: Option<&RequestId>) -> Result<(), JournalError> {
        match request {
            Some(request) => self.journal.decide(request).await,
            None => Ok(()),
        }
    }

    /// Returns what a copy says of its replay: who, when and why.
    pub fn replay_note<'a>(&'a self, replay: u32, reason: &'a str) -> ReplayNote<'a> {
        ReplayNote { replay, by: &self.name, at: Timestamp::now(), reason }
    }

    /// Publishes the copy, then records it in the journal; the caller removes the letter last. Crash before the confirm:
    /// nothing has happened, or there is a copy that intake recognises as the same replay if it comes again. Crash after it:
    /// the letter is a leftover, and the journal knows of the replay, from this record or from the copy's arrival.
    ///
    /// # Errors
    /// When the broker or the journal fails: the letter must stay in the queue.
    pub async fn send_back(
        &self,
        work: &dyn WorkQueue,
        letter: &Letter,
        raw: &RawLetter,
        next: u32,
        reason: &str,
    ) -> Result<CopyAnswer, SendBackError> {
        let copy = letter.as_published(raw.message()).replayed(&self.replay_note(next, reason));
        let answer = publish(work, copy).await.map_err(SendBackError::Publish)?;
        if answer != CopyAnswer::Confirmed {
            return Ok(answer);
        }
        let detail = text_of(&format!("as replay {next}"), &self.name, reason);
        let deed = LetterDeed {
            letter: letter.key.clone(),
            request: letter.id.clone(),
            deed: Deed::SentBack,
            cause: letter.cause(),
            at: Timestamp::now(),
            by: self.actor.clone(),
            reason: reason.to_owned(),
            detail,
            message: None,
        };
        self.journal.record_deed(deed).await?;
        Ok(answer)
    }
}

/// Publishes a copy to the work queue.
///
/// # Errors
/// When the broker does not answer: it is unknown whether the queue has the copy.
pub async fn publish(work: &dyn WorkQueue, copy: Message) -> Result<CopyAnswer, PublishError> {
    match work.send_back(copy).await {
        Ok(()) => Ok(CopyAnswer::Confirmed),
        Err(error @ (PublishError::Returned { .. } | PublishError::Refused { .. })) => {
            Ok(CopyAnswer::Refused(error.to_string()))
        }
        Err(
            error @ (PublishError::NotConnected
            | PublishError::NotServing
            | PublishError::Timeout
            | PublishError::Channel(_)),
        ) => Err(error),
    }
}

/// Describes a transaction of a dead request that could still take effect.
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::journal::contract::{Set, arrival, dead, set};
    use crate::journal::{Admissions, LetterDeeds, Settlements, SqliteJournal, Transactions};
    use crate::model::{Cause, Reason};
    use crate::policy::letters::tests as letters;
    use crate::simulation::fakes::FakePublisher;

    const BODY: &str = "{\"Customer\":7}";

    /// A journal with the dead request `a`, and its dead letter.
    pub(in crate::stages::dead_letters) struct Bench {
        pub(in crate::stages::dead_letters) journal: Arc<SqliteJournal>,
        pub(in crate::stages::dead_letters) set: Set,
        pub(in crate::stages::dead_letters) raw: RawLetter,
        pub(in crate::stages::dead_letters) letter: Letter,
        pub(in crate::stages::dead_letters) work: FakePublisher,
        _folder: tempfile::TempDir,
    }

    impl Bench {
        pub(in crate::stages::dead_letters) async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let journal = Arc::new(SqliteJournal::open(&folder.path().join("journal.db")).await.unwrap());
            let mut set = set(journal.clone(), &[]).await;
            journal.admit(vec![arrival(set.account, "a", Generation::default(), BODY)]).await.unwrap();
            set.queued = journal.queued(set.account, i64::MIN, 9).await.unwrap();
            journal.settle(&set.lease, vec![dead(set.seq(0))]).await.unwrap();
            set.confirm(0, "a").await;
            let cause = Cause::new(Reason::Reverted, "never");
            let message = letters::dead(Some("a"), &cause, Generation::default(), Timestamp::now().0);
            let (raw, letter) = (RawLetter::of(&message), Letter::read(&letters::rules(), &message));
            Self { journal, set, raw, letter, work: FakePublisher::default(), _folder: folder }
        }

        pub(in crate::stages::dead_letters) fn guard(&self) -> ReplayGuard {
            ReplayGuard::new(self.journal.clone(), Actor::Person("ann".into()), Duration::from_secs(86_400))
        }
    }

    #[tokio::test]
    async fn a_dead_letter_is_safe_until_it_is_sent_back_and_a_leftover_once_it_is_accepted() {
        let bench = Bench::new().await;
        let guard = bench.guard();
        assert_eq!(guard.assess(&bench.letter).await.unwrap(), (Answer::Safe, 1));
        let answer = guard.send_back(&bench.work, &bench.letter, &bench.raw, 1, "fixed").await.unwrap();
        assert_eq!((answer, bench.work.routing_keys().len()), (CopyAnswer::Confirmed, 1));
        assert_eq!(guard.assess(&bench.letter).await.unwrap().0, Answer::OnItsWay);
        let replay = arrival(bench.set.account, "a", Generation { replay: 1, retry: 0 }, BODY);
        bench.journal.admit(vec![replay]).await.unwrap();
        assert_eq!(guard.assess(&bench.letter).await.unwrap().0, Answer::SentBack);
    }

    #[tokio::test]
    async fn a_copy_that_the_broker_refuses_is_not_recorded_as_sent_back() {
        let bench = Bench::new().await;
        let refused = PublishError::Refused { exchange: String::new(), routing_key: "q".to_owned() };
        bench.work.fail_next(refused);
        let answer = bench.guard().send_back(&bench.work, &bench.letter, &bench.raw, 1, "").await.unwrap();
        assert!(matches!(answer, CopyAnswer::Refused(why) if why.contains("refused")));
        bench.work.fail_next(PublishError::Timeout);
        let failed = bench.guard().send_back(&bench.work, &bench.letter, &bench.raw, 1, "").await;
        assert!(matches!(failed, Err(SendBackError::Publish(PublishError::Timeout))), "the next one would fail too");
        assert_eq!(bench.journal.last_deed(&bench.letter.key).await.unwrap(), None);
    }
}
