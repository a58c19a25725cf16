//! Calls for operators and for housekeeping.

use async_trait::async_trait;

use crate::journal::cancellations::{CancelAnswer, record_cancellation};
use crate::journal::changes::Changes;
use crate::journal::columns::{Columns, number};
use crate::journal::database::{Database, Rows, SqlJournal, Statements, values};
use crate::journal::error::{JournalCondition, Result};
use crate::journal::history::{History, RequestSummary, history, requests_of};
use crate::journal::letters;
use crate::journal::operator_log;
use crate::journal::overview::{JournalOverview, overview};
use crate::journal::recovery;
use crate::journal::sent_events;
use crate::journal::states::which;
use crate::model::{Order, RequestId, RequestState, Timestamp};
use crate::observe::metrics::JournalMeter;

#[async_trait]
pub trait Upkeep: Send + Sync {
    /// Returns everything about one request.
    async fn history(&self, id: &RequestId) -> Result<Option<History>>;
    /// Returns up to `most` requests of a state: those that are not settled in the order of their accounts and their queues, of
    /// the others the newest first, among the newest 10,000 of all.
    async fn requests_of(&self, state: RequestState, most: u32) -> Result<Vec<RequestSummary>>;
    /// Returns counts of everything; cheap, however much is settled.
    async fn overview(&self) -> Result<JournalOverview>;
    fn meter(&self) -> JournalMeter {
        JournalMeter::default()
    }
    /// Records that an operator cancels this request. The record is gone once the request is final or dead.
    async fn cancel(&self, id: &RequestId, order: Order) -> Result<CancelAnswer>;
    /// Deletes up to `limit` requests that were final or dead before this time, with all that belongs to them, in the order
    /// in which the journal finds them. Returns how many.
    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64>;
    /// Forgets up to `limit` events that were published before this time. Returns how many.
    async fn prune_events(&self, _before: Timestamp, _limit: u32) -> Result<u64> {
        Ok(0)
    }
    /// Returns whether what the journal commits holds, and what its own clock says.
    async fn condition(&self) -> Result<JournalCondition> {
        Ok(JournalCondition::default())
    }
    /// Returns what other instances do, where the journal is notified of it.
    fn changes(&self) -> Option<Changes> {
        None
    }
    /// Waits for what is being written, then closes what the journal holds open.
    async fn close(&self) {}
}

#[async_trait]
impl<D: Database> Upkeep for SqlJournal<D> {
    async fn history(&self, id: &RequestId) -> Result<Option<History>> {
        self.snapshot(id.clone(), |connection, id| Box::pin(history(connection, id))).await
    }

    async fn requests_of(&self, state: RequestState, most: u32) -> Result<Vec<RequestSummary>> {
        self.read((state, most), |connection, (state, most)| Box::pin(requests_of(connection, *state, *most))).await
    }

    async fn overview(&self) -> Result<JournalOverview> {
        self.snapshot((), |connection, ()| Box::pin(overview(connection))).await
    }

    fn meter(&self) -> JournalMeter {
        self.database.meter()
    }

    async fn cancel(&self, id: &RequestId, order: Order) -> Result<CancelAnswer> {
        self.write((id.clone(), order), |connection, (id, order)| Box::pin(record_cancellation(connection, id, order)))
            .await
    }

    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64> {
        // A read holds up no write. What it finds is checked again: a request that came back since is open, and stays.
        let has_old = self.snapshot(before, |connection, before| Box::pin(has_old(connection, *before))).await?;
        if !has_old {
            return Ok(0);
        }
        self.write_repeatably((before, limit), |connection, (before, limit)| {
            Box::pin(prune(connection, *before, *limit))
        })
        .await
    }

    async fn prune_events(&self, before: Timestamp, limit: u32) -> Result<u64> {
        self.write_repeatably((before, limit), |connection, (before, limit)| {
            Box::pin(sent_events::forget(connection, *before, *limit))
        })
        .await
    }

    async fn condition(&self) -> Result<JournalCondition> {
        let concerns = self.database.concerns().await?;
        let clock = self.read((), |connection, ()| Box::pin(common_clock(connection))).await?;
        Ok(JournalCondition { concerns, clock })
    }

    fn changes(&self) -> Option<Changes> {
        self.database.changes()
    }

    async fn close(&self) {
        self.database.close().await;
    }
}

/// Returns the database's clock, where it has one of its own.
async fn common_clock(connection: &dyn Statements) -> Result<Option<Timestamp>> {
    match connection.dialect().locks_rows() {
        true => Ok(Some(Timestamp(connection.clock_us().await? / 1_000))),
        false => Ok(None),
    }
}

/// Returns what an old request is. One that waits for its retry stays, however old: its copy at the broker will ask for it.
/// The first of a batch goes last: its transaction is that of the others, too.
fn old() -> String {
    format!(
        "settled_at < $1 AND state {} AND NOT EXISTS (SELECT 1 FROM transactions t JOIN batched b \
         ON b.account = t.account AND b.nonce = t.nonce WHERE t.request = requests.seq)",
        which(|state| state.is_settled() && state.is_over())
    )
}

async fn has_old(connection: &dyn Statements, before: Timestamp) -> Result<bool> {
    const DOING: &str = "find what is old";
    let select = format!("SELECT 1 FROM requests WHERE {} LIMIT 1", old());
    if connection.row(DOING, &select, &values![before.0], |_| Ok(())).await?.is_some() {
        return Ok(true);
    }
    for select in [
        "SELECT 1 FROM letter_deeds WHERE at < $1 LIMIT 1",
        "SELECT 1 FROM operator_log WHERE at < $1 LIMIT 1",
        "SELECT 1 FROM recovered_writes WHERE found_at < $1 AND NOT EXISTS (SELECT 1 FROM recovery) LIMIT 1",
    ] {
        if connection.row(DOING, select, &values![before.0], |_| Ok(())).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn prune(connection: &dyn Statements, before: Timestamp, limit: u32) -> Result<u64> {
    let select = format!(
        "SELECT seq FROM requests WHERE {} ORDER BY settled_at LIMIT $2{}",
        old(),
        connection.dialect().lock_free_ones()
    );
    let seq = |row: &dyn Columns| number(row, "request", "seq");
    let old = connection.rows("find old requests", &select, &values![before.0, limit], seq).await?;
    let deeds = letters::forget(connection, before, limit).await?;
    let entries = operator_log::forget(connection, before, limit).await?;
    let foreign = recovery::forget_writes(connection, before).await?;
    let rows = Rows::of("request bigint", old.iter().map(|seq| values![*seq]));
    for delete in [
        "DELETE FROM batched WHERE request IN (SELECT u.request FROM u)",
        "DELETE FROM signed_transactions WHERE (account, nonce) IN \
         (SELECT t.account, t.nonce FROM u, transactions t WHERE t.request = u.request)",
        "DELETE FROM transactions WHERE request IN (SELECT u.request FROM u)",
        "DELETE FROM incidents WHERE request IN (SELECT u.request FROM u)",
        "DELETE FROM cancellations WHERE request IN (SELECT u.request FROM u)",
        "DELETE FROM bumps WHERE request IN (SELECT u.request FROM u)",
        "DELETE FROM requests WHERE seq IN (SELECT u.request FROM u)",
    ] {
        connection.execute_each("prune", delete, &[], &rows).await?;
    }
    if !old.is_empty() {
        // As old as what they stood beside; there are few of them ever.
        connection.execute("prune", "DELETE FROM fillers WHERE signed_at < $1", &values![before.0]).await?;
    }
    Ok(u64::try_from(old.len() + deeds + entries + foreign).unwrap_or(u64::MAX))
}
