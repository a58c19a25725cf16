//! What the journal keeps of operators' deeds on dead letters: a seam of its own beside [`Upkeep`](crate::journal::Upkeep).

use async_trait::async_trait;

use crate::journal::Result;
use crate::model::{IncidentKind, RequestId, Timestamp};

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
    pub fn incident(self) -> IncidentKind {
        match self {
            Self::SentBack => IncidentKind::SentBack,
            Self::Edited => IncidentKind::Edited,
            Self::Discarded => IncidentKind::Discarded,
        }
    }

    /// The word stored in the journal, which also names the incident.
    pub fn as_str(self) -> &'static str {
        self.incident().as_str()
    }

    /// The deed with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::SentBack, Self::Edited, Self::Discarded].into_iter().find(|deed| deed.as_str() == word)
    }
}

/// A deed with its who and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterDeed {
    pub letter: String,
    /// Its request's id, if it has one.
    pub request: Option<RequestId>,
    pub deed: Deed,
    /// `class.reason` of the letter.
    pub cause: String,
    pub at: Timestamp,
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

/// What every back end must do with them.
#[cfg(test)]
pub(crate) mod contract {
    use super::*;
    use crate::journal::OperatorsJournal;

    fn deed(letter: &str, deed: Deed, at: i64) -> LetterDeed {
        LetterDeed {
            letter: letter.to_owned(),
            request: Some(RequestId::new("a").unwrap()),
            deed,
            cause: "rejected.reverted".to_owned(),
            at: Timestamp(at),
            operator: "eve@host".to_owned(),
            reason: "because".to_owned(),
            detail: "by eve@host: because".to_owned(),
            message: (deed != Deed::SentBack).then(|| format!("{letter} in full")),
        }
    }

    pub(crate) async fn deeds_are_found_again_until_they_are_old(journal: &dyn OperatorsJournal) {
        for (letter, what, at) in
            [("k1", Deed::SentBack, 1), ("k2", Deed::Edited, 2), ("k3", Deed::Discarded, 3), ("k4", Deed::Discarded, 9)]
        {
            journal.record_deed(deed(letter, what, at)).await.unwrap();
        }
        for (letter, expected) in [("k1", Some(Deed::SentBack)), ("k2", Some(Deed::Edited)), ("k9", None)] {
            assert_eq!(journal.last_deed(letter).await.unwrap(), expected, "{letter}");
        }
        let discarded = journal.discarded(0, 10).await.unwrap();
        let messages: Vec<_> = discarded.iter().map(|(_, message)| message.as_str()).collect();
        assert_eq!(messages, ["k3 in full", "k4 in full"]);
        assert_eq!(journal.discarded(discarded[0].0, 10).await.unwrap().len(), 1);
        assert_eq!(journal.prune(Timestamp(9), 2).await.unwrap(), 2, "a few at a time");
        assert_eq!(journal.prune(Timestamp(9), 2).await.unwrap(), 1);
        assert_eq!(journal.discarded(0, 10).await.unwrap().len(), 1);
    }

    pub(crate) async fn a_letter_that_is_discarded_is_archived_whole_or_not_at_all(journal: &dyn OperatorsJournal) {
        let without = LetterDeed { message: None, ..deed("k", Deed::Discarded, 1) };
        assert!(journal.record_deed(without).await.is_err());
        assert_eq!(journal.last_deed("k").await.unwrap(), None);
    }
}
