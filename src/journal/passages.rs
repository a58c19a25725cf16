//! Passages through the work queue: which one is on its way, and which have come out of it.

use async_trait::async_trait;

use crate::journal::columns::{Columns, number, optional_number, text};
use crate::journal::database::{Database, SqlJournal, Statements, values};
use crate::journal::error::Result;
use crate::model::Timestamp;
use crate::policy::passage::{Band, KEPT, Newest};

/// A passage that is on its way, or may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    pub token: String,
    pub state: Newest,
}

/// Holds what passages have shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proof {
    pub newest: Option<Passage>,
    /// Those that have come out, of the last ones.
    pub passed: Vec<Newest>,
    /// The time at which the journal was made.
    pub made_at: Option<Timestamp>,
}

#[async_trait]
pub trait Passages: Send + Sync {
    /// Returns what passages have shown.
    async fn proof(&self) -> Result<Proof>;
    /// Records a passage that is about to be published, in place of `after`. Returns false if another instance was faster.
    async fn begin_passage(&self, token: String, published_at: Timestamp, after: Option<String>) -> Result<bool>;
    /// Records that the broker has it.
    async fn confirm_passage(&self, token: &str) -> Result<()>;
    /// Records that a passage has come out of the work queue in a band of priority. Returns false for a token that no passage
    /// of this journal has: the message is some producer's.
    async fn end_passage(&self, token: &str, band: Band, at: Timestamp) -> Result<bool>;
}

#[async_trait]
impl<D: Database> Passages for SqlJournal<D> {
    async fn proof(&self) -> Result<Proof> {
        self.snapshot((), |connection, ()| Box::pin(proof(connection))).await
    }

    async fn begin_passage(&self, token: String, published_at: Timestamp, after: Option<String>) -> Result<bool> {
        self.write((token, published_at, after), |connection, (token, published_at, after)| {
            Box::pin(begin(connection, token, *published_at, after.as_deref()))
        })
        .await
    }

    async fn confirm_passage(&self, token: &str) -> Result<()> {
        self.write_repeatably(token.to_owned(), |connection, token| {
            Box::pin(async move {
                let confirm = "UPDATE passages SET is_confirmed = 1 WHERE token = $1";
                connection.execute("record a passage's confirm", confirm, &values![token]).await.map(drop)
            })
        })
        .await
    }

    async fn end_passage(&self, token: &str, band: Band, at: Timestamp) -> Result<bool> {
        self.write_repeatably((token.to_owned(), band, at), |connection, (token, band, at)| {
            Box::pin(async move {
                let column = match band {
                    Band::Low => "low_out_at",
                    Band::High => "high_out_at",
                };
                // The broker may deliver it twice: the first time counts.
                let end = format!("UPDATE passages SET {column} = coalesce({column}, $1) WHERE token = $2");
                let known = connection.execute("record the end of a passage", &end, &values![at.0, token]).await?;
                Ok(known > 0)
            })
        })
        .await
    }
}

/// Returns as SQL the time `$1`, but no earlier than the last passage was published: a request that ends while the clock is
/// wrong by weeks counts as ended after what no passage has shown yet.
pub const NOT_BEFORE_A_PASSAGE: &str = "(SELECT CASE WHEN coalesce(max(p.published_at), $1) > $1 \
                                        THEN max(p.published_at) ELSE $1 END FROM passages p)";

fn passage(row: &dyn Columns) -> Result<Passage> {
    const WHAT: &str = "passage";
    let out = [optional_number(row, WHAT, "low_out_at")?, optional_number(row, WHAT, "high_out_at")?];
    let passed_at = if let [Some(low), Some(high)] = out { Some(Timestamp(low.max(high))) } else { None };
    let state = Newest {
        published_at: Timestamp(number(row, WHAT, "published_at")?),
        is_confirmed: passed_at.is_some() || number(row, WHAT, "is_confirmed")? == 1,
        passed_at,
    };
    Ok(Passage { token: text(row, WHAT, "token")?.into_owned(), state })
}

const SELECT: &str = "SELECT number, token, published_at, is_confirmed, low_out_at, high_out_at FROM passages";

async fn proof(connection: &dyn Statements) -> Result<Proof> {
    const DOING: &str = "read the passages";
    let newest = connection.row(DOING, &format!("{SELECT} ORDER BY number DESC LIMIT 1"), &[], passage).await?;
    let passed = format!("{SELECT} WHERE low_out_at IS NOT NULL AND high_out_at IS NOT NULL ORDER BY number");
    let passed = connection.rows(DOING, &passed, &[], passage).await?;
    let made_at = |row: &dyn Columns| number(row, "identity", "made_at").map(Timestamp);
    let made_at = connection.row(DOING, "SELECT made_at FROM identity", &[], made_at).await?;
    Ok(Proof { newest, passed: passed.into_iter().map(|passage| passage.state).collect(), made_at })
}

async fn begin(
    connection: &dyn Statements,
    token: &String,
    published_at: Timestamp,
    after: Option<&str>,
) -> Result<bool> {
    const DOING: &str = "begin a passage";
    // Instances begin one after the other.
    let lock = format!("SELECT 1 FROM counters WHERE name = 'turn'{}", connection.dialect().lock());
    connection.row(DOING, &lock, &[], |_| Ok(())).await?;
    let last = |row: &dyn Columns| Ok((number(row, "passage", "number")?, text(row, "passage", "token")?.into_owned()));
    let select = "SELECT number, token FROM passages ORDER BY number DESC LIMIT 1";
    let last = connection.row(DOING, select, &[], last).await?;
    if last.as_ref().map(|(_, token)| token.as_str()) != after {
        return Ok(false);
    }
    let next = last.map_or(1, |(number, _)| number + 1);
    let insert = "INSERT INTO passages (number, token, published_at) VALUES ($1, $2, $3)";
    connection.execute(DOING, insert, &values![next, token, published_at.0]).await?;
    connection.execute(DOING, "DELETE FROM passages WHERE number <= $1", &values![next - i64::from(KEPT)]).await?;
    Ok(true)
}
