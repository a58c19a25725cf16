//! Whether a dead letter may be sent back, by the journal, and its way back: for the commands and for the daemon's rules.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::{DeadLetters, PublishError, RawLetter};
use crate::journal::{Deed, History, JournalError, LetterDeed, OperatorsJournal};
use crate::model::message::ReplayNote;
use crate::model::{Generation, Message, Timestamp, TransactionState};
use crate::policy::letters::Letter;
use crate::policy::letters::replay::{Answer, Standing, assess};

/// Whoever holds letters gives them back and takes them anew after this: far below the broker's consumer timeout of 30
/// minutes, and so that others who wait for them may look in between.
pub const LONGEST_HOLD: Duration = Duration::from_secs(300);

/// What kept a letter from going back, that would keep the next one too.
#[derive(Debug, thiserror::Error)]
pub enum SendBackError {
    /// The broker does not answer.
    #[error("a dead letter was not sent back: {0}")]
    Publish(#[source] PublishError),
    #[error("it was not noted that a dead letter was sent back: {0}")]
    Journal(#[from] JournalError),
}

/// Judges letters in the name of somebody.
pub struct ReplayGuard {
    journal: Arc<dyn OperatorsJournal>,
    operator: String,
    retention: Duration,
}

impl ReplayGuard {
    /// `retention` is for how long the journal remembers.
    pub fn new(journal: Arc<dyn OperatorsJournal>, operator: String, retention: Duration) -> Self {
        Self { journal, operator, retention }
    }

    /// In whose name it judges.
    pub fn operator(&self) -> &str {
        &self.operator
    }

    /// Where a letter's request stands.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn standing(&self, letter: &Letter) -> Result<Standing, JournalError> {
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
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn assess(&self, letter: &Letter) -> Result<(Answer, u32), JournalError> {
        let standing = self.standing(letter).await?;
        let known = standing.known.map_or(Generation::default(), |known| known.generation);
        let next = known.replay.max(letter.generation.replay).saturating_add(1);
        Ok((assess(letter, &standing), next))
    }

    /// What a copy that goes back says: who, when and why.
    pub fn note<'a>(&'a self, replay: u32, reason: &'a str) -> ReplayNote<'a> {
        ReplayNote { replay, by: &self.operator, at: Timestamp::now(), reason }
    }

    /// The copy, then the journal, then (by the caller) the letter's end. Crash before the copy has its confirm: nothing has
    /// happened, or a copy that intake takes for the same replay if it comes again. Crash after it: the letter is left over,
    /// and the journal tells that it was replayed, from this note or from the copy's arrival.
    ///
    /// What the broker says against this very copy comes as a text.
    ///
    /// # Errors
    /// What holds for the next one too: the letter must stay where it is.
    pub async fn send_back(
        &self,
        letters: &DeadLetters,
        letter: &Letter,
        raw: &RawLetter,
        next: u32,
        reason: &str,
    ) -> Result<Result<(), String>, SendBackError> {
        let copy = raw.message().replayed(&self.note(next, reason));
        if let Err(refused) = publish(letters, copy).await.map_err(SendBackError::Publish)? {
            return Ok(Err(refused));
        }
        let detail = match reason {
            "" => format!("as replay {next} by {}", self.operator),
            reason => format!("as replay {next} by {}: {reason}", self.operator),
        };
        let deed = LetterDeed {
            letter: letter.key.clone(),
            request: letter.id.clone(),
            deed: Deed::SentBack,
            cause: letter.cause(),
            at: Timestamp::now(),
            operator: self.operator.clone(),
            reason: reason.to_owned(),
            detail,
            message: None,
        };
        self.journal.record_deed(deed).await?;
        Ok(Ok(()))
    }
}

/// Publishes a copy to the work queue. What the broker says against this very copy comes as a text; where it does not
/// answer, it will not for the next one, and that is an error.
///
/// # Errors
/// When the broker does not answer: whether the queue has the copy is not known.
pub async fn publish(letters: &DeadLetters, copy: Message) -> Result<Result<(), String>, PublishError> {
    match letters.send_back(copy).await {
        Ok(()) => Ok(Ok(())),
        Err(error @ (PublishError::Returned { .. } | PublishError::Refused { .. })) => Ok(Err(error.to_string())),
        Err(error @ (PublishError::NotConnected | PublishError::Timeout | PublishError::Channel(_))) => Err(error),
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
