//! What the journal keeps of operators' deeds on dead letters: a seam of its own beside [`Upkeep`](crate::journal::Upkeep).

use async_trait::async_trait;

use crate::journal::Result;
use crate::model::{RequestId, Timestamp};

/// What an operator did to a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// A copy of it is in the work queue.
    SentBack,
    /// An edited copy of it is.
    Edited,
    /// It is to be gone.
    Discarded,
}

impl Deed {
    /// The word stored in the journal, which also names the incident.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SentBack => "sent_back",
            Self::Edited => "edited",
            Self::Discarded => "discarded",
        }
    }

    /// The deed with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::SentBack, Self::Edited, Self::Discarded].into_iter().find(|deed| deed.as_str() == word)
    }
}

/// A deed with its who and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterDeed {
    /// Names the letter.
    pub letter: String,
    /// Its request's id, if it has one.
    pub request: Option<RequestId>,
    /// What was done.
    pub deed: Deed,
    /// `class.reason` of the letter.
    pub cause: String,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub operator: String,
    /// Why, in their words; may be empty.
    pub reason: String,
    /// More about it, for the request's history.
    pub detail: String,
    /// The whole letter as `dead export` writes it; always where it was edited or discarded.
    pub message: Option<String>,
}

/// What operators' commands need for dead letters.
#[async_trait]
pub trait LetterDeeds: Send + Sync {
    /// Notes a deed, with an incident where the journal knows the request.
    async fn record_deed(&self, deed: LetterDeed) -> Result<()>;
    /// What was done to this letter last.
    async fn last_deed(&self, letter: &str) -> Result<Option<Deed>>;
    /// Messages of letters that were discarded, behind this number, oldest first, with their numbers.
    async fn discarded(&self, after: i64, limit: u32) -> Result<Vec<(i64, String)>>;
}
