//! Which journal this is: its id, and the starts of instances that it has counted. The broker's marker names one of them.

use async_trait::async_trait;

use crate::journal::columns::{Columns, number, optional_text, text, to_i64, unsigned};
use crate::journal::database::{Database, SqlJournal, Statements, values};
use crate::journal::error::Result;
use crate::journal::operator_log::{self, Subject};
use crate::model::{Act, Adoption, JournalId, MarkedStart, Order, Start, StartToken, Timestamp};
use crate::policy::marker::Standing;

/// Starts that are kept before the last one that the broker has confirmed.
const KEPT_STARTS: i64 = 100;
/// Starts that are kept at most: that many in a row ended before the broker confirmed one.
const MOST_STARTS: i64 = 100_000;

/// A start that is to be counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewStart {
    /// Becomes the journal's id if it has none yet.
    pub journal: JournalId,
    pub token: StartToken,
    pub worker: String,
    pub host: String,
    pub at: Timestamp,
}

#[async_trait]
pub trait Identities: Send + Sync {
    /// Counts a start of an instance, durably, before the broker is notified of it: the broker is never ahead of a good journal.
    async fn begin_start(&self, new: NewStart) -> Result<Start>;
    /// Returns what the journal knows now, and whether it has counted this start of a marker.
    async fn claim_standing(&self, found: Option<(u64, StartToken)>) -> Result<Standing>;
    /// Records that the broker has a marker with this start. An adoption is over with it. `taken_at`: the marker before was
    /// none of this journal's, or there was none.
    async fn confirm_start(&self, start: &Start, taken_at: Option<Timestamp>) -> Result<()>;
    /// Lets the next start take the queue over from the journal whose marker names this start.
    async fn adopt(&self, from: MarkedStart, order: Order) -> Result<()>;
}

#[async_trait]
impl<D: Database> Identities for SqlJournal<D> {
    async fn begin_start(&self, new: NewStart) -> Result<Start> {
        self.write(new, |connection, new| Box::pin(begin_start(connection, new))).await
    }

    async fn claim_standing(&self, found: Option<(u64, StartToken)>) -> Result<Standing> {
        self.snapshot(found, |connection, found| Box::pin(claim_standing(connection, found.as_ref()))).await
    }

    async fn confirm_start(&self, start: &Start, taken_at: Option<Timestamp>) -> Result<()> {
        self.write_repeatably((start.clone(), taken_at), |connection, (start, taken_at)| {
            Box::pin(confirm_start(connection, start, *taken_at))
        })
        .await
    }

    async fn adopt(&self, from: MarkedStart, order: Order) -> Result<()> {
        self.write((from, order), |connection, (from, order)| {
            Box::pin(async move {
                let (at, subject) = (Timestamp::now(), Subject::default());
                adopt(connection, &Adoption { by: order.by.to_string(), at, from: from.clone() }).await?;
                let detail = format!("from start {} of journal {}", from.number, from.journal.0);
                operator_log::record(connection, at, (Act::Adopt, order), &subject, &detail).await
            })
        })
        .await
    }
}

const FORGET_ADOPTION: &str = "UPDATE identity SET adopted_by = NULL, adopted_at = NULL, adopted_from = NULL, \
                               adopted_start = NULL WHERE adopted_by IS NOT NULL";

async fn begin_start(connection: &dyn Statements, new: &NewStart) -> Result<Start> {
    const DOING: &str = "count a start";
    let NewStart { journal: JournalId(journal), token: StartToken(token), worker, host, at } = new;
    let make = "INSERT INTO identity (one, id, made_at, starts) VALUES (1, $1, $2, 0) ON CONFLICT DO NOTHING";
    connection.execute(DOING, make, &values![journal, at.0]).await?;
    let count = "UPDATE identity SET starts = starts + 1 RETURNING id, starts";
    let (journal, number) = connection
        .one(DOING, count, &[], |row| {
            Ok((JournalId(text(row, "identity", "id")?.into_owned()), unsigned(row, "identity", "starts")?))
        })
        .await?;
    let counted = to_i64("a start", number)?;
    let insert = "INSERT INTO starts (number, token, at, worker, host) VALUES ($1, $2, $3, $4, $5)";
    connection.execute(DOING, insert, &values![counted, token, at.0, worker, host]).await?;
    connection.execute(DOING, "DELETE FROM starts WHERE number <= $1", &values![counted - MOST_STARTS]).await?;
    Ok(Start { journal, number, token: new.token.clone() })
}

async fn claim_standing(connection: &dyn Statements, found: Option<&(u64, StartToken)>) -> Result<Standing> {
    const DOING: &str = "read which journal this is";
    let identity = |row: &dyn Columns| {
        let journal = JournalId(text(row, "identity", "id")?.into_owned());
        let Some(by) = optional_text(row, "identity", "adopted_by")? else { return Ok((journal, None)) };
        let from = MarkedStart {
            journal: JournalId(text(row, "identity", "adopted_from")?.into_owned()),
            number: unsigned(row, "identity", "adopted_start")?,
        };
        let at = Timestamp(number(row, "identity", "adopted_at")?);
        Ok((journal, Some(Adoption { by, at, from })))
    };
    let select = "SELECT id, adopted_by, adopted_at, adopted_from, adopted_start FROM identity";
    let (journal, adoption) =
        connection.row(DOING, select, &[], identity).await?.unwrap_or((JournalId(String::new()), None));
    let mut knows_start = false;
    if let Some((counted, StartToken(token))) = found {
        let select = "SELECT 1 FROM starts WHERE number = $1 AND token = $2";
        // No start of ours has a number beyond 64 bits.
        let counted = i64::try_from(*counted).unwrap_or(-1);
        knows_start = connection.row(DOING, select, &values![counted, token], |_| Ok(())).await?.is_some();
    }
    let has_requests = connection.row(DOING, "SELECT 1 FROM requests LIMIT 1", &[], |_| Ok(())).await?.is_some();
    Ok(Standing { journal, knows_start, has_requests, adoption })
}

async fn confirm_start(connection: &dyn Statements, start: &Start, taken_at: Option<Timestamp>) -> Result<()> {
    const DOING: &str = "record the broker's marker";
    connection.execute(DOING, FORGET_ADOPTION, &[]).await?;
    if let Some(taken_at) = taken_at {
        connection.execute(DOING, "UPDATE identity SET serves_since = $1", &values![taken_at.0]).await?;
    }
    let old = to_i64("a start", start.number)?.saturating_sub(KEPT_STARTS);
    connection.execute(DOING, "DELETE FROM starts WHERE number < $1", &values![old]).await.map(drop)
}

/// Lets the next start take the queue over, in the transaction of the caller. A journal without an id gets one.
pub async fn adopt(connection: &dyn Statements, adoption: &Adoption) -> Result<()> {
    const DOING: &str = "adopt the queue";
    let Adoption { by, at, from: MarkedStart { journal: JournalId(from), number } } = adoption;
    let make = "INSERT INTO identity (one, id, made_at, starts) VALUES (1, $1, $2, 0) ON CONFLICT DO NOTHING";
    let id = crate::model::ids::unique();
    connection.execute(DOING, make, &values![id, at.0]).await?;
    let update = "UPDATE identity SET adopted_by = $1, adopted_at = $2, adopted_from = $3, adopted_start = $4";
    let values = values![by, at.0, from, to_i64("a start", *number)?];
    connection.execute(DOING, update, &values).await.map(drop)
}
