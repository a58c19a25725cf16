//! Records of what operators did to dead letters.

use std::fmt;

use async_trait::async_trait;

use crate::journal::columns::{Columns, number, text, word};
use crate::journal::database::{Database, SqlJournal, Statements, values};
use crate::journal::error::Result;
use crate::journal::incidents::record_incidents;
use crate::journal::operator_log::{self, Subject};
use crate::journal::requests::seq;
use crate::model::words::words;
use crate::model::{Act, IncidentKind, Operator, Order, RequestId, Timestamp};

words!(
    /// An action of an operator on a dead letter. Its incident has the same word.
    Deed {
        SentBack = "sent_back",
        /// An edited copy of it is in the work queue.
        Edited = "edited",
        Discarded = "discarded",
    }
);

impl Deed {
    fn act(self) -> Act {
        match self {
            Self::SentBack => Act::ReplayLetter,
            Self::Edited => Act::EditLetter,
            Self::Discarded => Act::DiscardLetter,
        }
    }

    pub fn incident(self) -> IncidentKind {
        match self {
            Self::SentBack => IncidentKind::SentBack,
            Self::Edited => IncidentKind::Edited,
            Self::Discarded => IncidentKind::Discarded,
        }
    }
}

/// Decides about a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    Person(Operator),
    /// A rule of `[[dead.replay]]`.
    Rule,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Person(operator) => operator.fmt(f),
            Self::Rule => f.write_str("chainwriter"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterDeed {
    pub letter: String,
    pub request: Option<RequestId>,
    pub deed: Deed,
    /// `class.reason` of the letter.
    pub cause: String,
    pub at: Timestamp,
    pub by: Actor,
    /// In their words; may be empty.
    pub reason: String,
    /// For the history of the request.
    pub detail: String,
    /// The whole letter as `dead export` writes it; always where it was edited or discarded.
    pub message: Option<String>,
}

#[async_trait]
pub trait LetterDeeds: Send + Sync {
    /// Records a deed, with an incident where the journal knows the request.
    async fn record_deed(&self, deed: LetterDeed) -> Result<()>;
    async fn last_deed(&self, letter: &str) -> Result<Option<Deed>>;
    /// Returns the messages of letters that were discarded, behind this number, oldest first, with their numbers.
    async fn discarded(&self, after: i64, limit: u32) -> Result<Vec<(i64, String)>>;
}

#[async_trait]
impl<D: Database> LetterDeeds for SqlJournal<D> {
    async fn record_deed(&self, deed: LetterDeed) -> Result<()> {
        self.write(deed, |connection, deed| Box::pin(record(connection, deed))).await
    }

    async fn last_deed(&self, letter: &str) -> Result<Option<Deed>> {
        self.read(letter.to_owned(), |connection, letter| {
            Box::pin(async move {
                let select = "SELECT deed FROM letter_deeds WHERE letter = $1 ORDER BY id DESC LIMIT 1";
                let read = |row: &dyn Columns| word(row, "letter", "deed", Deed::from_word);
                connection.row("read deeds", select, &values![letter], read).await
            })
        })
        .await
    }

    async fn discarded(&self, after: i64, limit: u32) -> Result<Vec<(i64, String)>> {
        self.read((after, limit), |connection, (after, limit)| {
            Box::pin(async move {
                let select = "SELECT id, message FROM letter_deeds WHERE deed = 'discarded' AND id > $1 \
                              ORDER BY id LIMIT $2";
                let read = |row: &dyn Columns| {
                    Ok((number(row, "letter", "id")?, text(row, "letter", "message")?.into_owned()))
                };
                connection.rows("read discarded letters", select, &values![*after, *limit], read).await
            })
        })
        .await
    }
}

async fn record(connection: &dyn Statements, deed: &LetterDeed) -> Result<()> {
    let LetterDeed { letter, request, deed, cause, at, by, reason, detail, message } = deed;
    let id = request.as_ref().map(RequestId::as_str);
    let insert = "INSERT INTO letter_deeds (letter, request, deed, cause, at, operator, reason, message) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let values = values![letter, id, deed.as_str(), cause, at.0, by.to_string(), reason, message.as_ref()];
    connection.execute("record what was done to a dead letter", insert, &values).await?;
    if let Actor::Person(operator) = by {
        let order = Order::new(operator.clone(), reason);
        let subject = Subject::request(id.unwrap_or(letter));
        operator_log::record(connection, *at, (deed.act(), &order), &subject, cause).await?;
    }
    let select = format!("SELECT seq FROM requests WHERE id = $1{}", connection.dialect().keep());
    match connection.row("find a request", &select, &values![id], seq).await? {
        Some(request) => record_incidents(connection, &[(request, deed.incident(), detail.clone())], *at).await,
        None => Ok(()),
    }
}

/// Forgets deeds, which are kept as long as requests are.
pub async fn forget(connection: &dyn Statements, before: Timestamp, limit: u32) -> Result<usize> {
    let delete = format!(
        "DELETE FROM letter_deeds WHERE id IN (SELECT id FROM letter_deeds WHERE at < $1 ORDER BY at LIMIT $2{})",
        connection.dialect().lock_free_ones()
    );
    connection.execute("prune", &delete, &values![before.0, limit]).await
}

/// Holds the tests that every back end must pass.
#[cfg(test)]
pub(crate) mod contract {
    use super::*;
    use crate::journal::{LogFilter, OperatorsJournal};

    fn deed(letter: &str, deed: Deed, at: i64) -> LetterDeed {
        LetterDeed {
            letter: letter.to_owned(),
            request: Some(RequestId::new("a").unwrap()),
            deed,
            cause: "rejected.reverted".to_owned(),
            at: Timestamp(at),
            by: Actor::Person("eve".into()),
            reason: "because".to_owned(),
            detail: "by eve: because".to_owned(),
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
        let by_rule = LetterDeed { by: Actor::Rule, ..deed("k5", Deed::SentBack, 9) };
        journal.record_deed(by_rule).await.unwrap();
        let logged = journal.log(LogFilter::default(), 9).await.unwrap();
        let acts: Vec<_> = logged.iter().map(|entry| entry.what.as_str()).collect();
        assert_eq!(acts, ["dead_replay", "dead_edit", "dead_discard", "dead_discard"], "a rule is no operator");
        assert!(logged.iter().all(|entry| entry.detail == "rejected.reverted" && entry.reason == "because"));
        assert_eq!(journal.prune(Timestamp(9), 2).await.unwrap(), 4, "a few at a time, with their entries in the log");
        assert_eq!(journal.prune(Timestamp(9), 2).await.unwrap(), 2);
        assert_eq!(journal.discarded(0, 10).await.unwrap().len(), 1);
    }

    pub(crate) async fn a_letter_that_is_discarded_is_archived_whole_or_not_at_all(journal: &dyn OperatorsJournal) {
        let without = LetterDeed { message: None, ..deed("k", Deed::Discarded, 1) };
        assert!(journal.record_deed(without).await.is_err());
        assert_eq!(journal.last_deed("k").await.unwrap(), None);
    }
}
