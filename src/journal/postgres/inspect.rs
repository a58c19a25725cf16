//! What operators look at and wish for, and what housekeeping throws away.

use std::collections::BTreeMap;

use async_trait::async_trait;

use crate::journal::columns::{number, unsigned};
use crate::journal::postgres::connection::Connection;
use crate::journal::postgres::news::News;
use crate::journal::postgres::rows::stored;
use crate::journal::postgres::settlements::{Noted, note_incidents};
use crate::journal::postgres::{PostgresJournal, letters};
use crate::journal::rows::{
    attempt_history, incident, request_history, request_state, seq, transaction_history, wording,
};
use crate::journal::{
    CancelWish, Changes, History, JournalCondition, JournalOverview, Result, SignedHistory, Upkeep, WishAnswer,
    overview,
};
use crate::model::{IncidentKind, Nonce, RequestId, RequestState, Timestamp};
use crate::observe::metrics::JournalMeter;

#[async_trait]
impl Upkeep for PostgresJournal {
    async fn history(&self, id: &RequestId) -> Result<Option<History>> {
        self.pool.snapshot(id.clone(), |connection, id| Box::pin(history(connection, id))).await
    }

    async fn overview(&self) -> Result<JournalOverview> {
        self.pool.snapshot((), |connection, ()| Box::pin(look_over(connection))).await
    }

    fn meter(&self) -> JournalMeter {
        self.pool.meter()
    }

    async fn wish_cancellation(&self, id: &RequestId, wish: CancelWish) -> Result<WishAnswer> {
        self.pool.write((id.clone(), wish), |connection, (id, wished)| Box::pin(wish_for(connection, id, wished))).await
    }

    async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64> {
        self.pool
            .write_repeatably((before, limit), |connection, (before, limit)| {
                Box::pin(prune(connection, *before, *limit))
            })
            .await
    }

    async fn condition(&self) -> Result<JournalCondition> {
        self.pool.read((), |connection, ()| Box::pin(condition(connection))).await
    }

    fn changes(&self) -> Option<Changes> {
        self.news.as_ref().map(News::changes)
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// `synchronous_commit` is not among the settings: the worker's sessions overrule it.
async fn condition(connection: &Connection) -> Result<JournalCondition> {
    const DOING: &str = "look at its settings";
    let mut concerns = Vec::new();
    for (setting, loses) in [("fsync", "what was committed"), ("full_page_writes", "whole pages of tables")] {
        if connection.simple(DOING, &format!("SHOW {setting}")).await? == "off" {
            concerns.push(format!(
                "{setting} = off: when the database's host fails, {loses} may be lost, and what was written to the chain \
                 may be written again; set {setting} = on and restart the database"
            ));
        }
    }
    let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now";
    let clock = connection.one(DOING, now, &[], |row| number(row, "clock", "now")).await?;
    Ok(JournalCondition { concerns, clock: Some(Timestamp(clock)) })
}

async fn history(connection: &Connection, id: &RequestId) -> Result<Option<History>> {
    let select =
        "SELECT r.*, a.chain_id, a.address FROM requests r JOIN accounts a ON a.id = r.account WHERE r.id = $1";
    let found = connection
        .row("read a request", select, &[&stored(id.as_str())], |row| Ok((seq(row)?, request_history(row)?)))
        .await?;
    let Some((seq, mut history)) = found else { return Ok(None) };
    let select = "SELECT a.* FROM (SELECT account, nonce FROM transactions WHERE request = $1 \
                  UNION ALL SELECT account, nonce FROM batched WHERE request = $1) t \
                  JOIN signed_transactions a ON a.account = t.account AND a.nonce = t.nonce ORDER BY a.id";
    let rows = connection
        .rows("read signed transactions", select, &[&seq.0], |row| {
            Ok((Nonce(unsigned(row, "attempt", "nonce")?), attempt_history(row)?))
        })
        .await?;
    let mut signed_transactions: BTreeMap<Nonce, Vec<SignedHistory>> = BTreeMap::new();
    for (nonce, signed) in rows {
        signed_transactions.entry(nonce).or_default().push(signed);
    }
    let select = "SELECT *, 0::bigint AS place FROM transactions WHERE request = $1 \
                  UNION ALL SELECT t.*, b.place FROM batched b \
                  JOIN transactions t ON t.account = b.account AND t.nonce = b.nonce WHERE b.request = $1 ORDER BY nonce";
    history.transactions = connection.rows("read transactions", select, &[&seq.0], transaction_history).await?;
    for transaction in &mut history.transactions {
        transaction.signed = signed_transactions.remove(&transaction.nonce).unwrap_or_default();
    }
    let select = "SELECT at, what, detail FROM incidents WHERE request = $1 ORDER BY id";
    history.incidents = connection.rows("read incidents", select, &[&seq.0], incident).await?;
    Ok(Some(history))
}

async fn look_over(connection: &Connection) -> Result<JournalOverview> {
    Ok(JournalOverview::of(
        connection.rows("look at the accounts", overview::ACCOUNTS, &[], overview::account).await?,
        connection.rows("count the open requests", overview::OPEN, &[], overview::open).await?,
        connection.rows("read incidents", &overview::incidents(), &[], overview::incident).await?,
    ))
}

/// The request stays as it is until the wish stands: who ends it sees the wish.
async fn wish_for(connection: &Connection, id: &RequestId, wish: &CancelWish) -> Result<WishAnswer> {
    let select = "SELECT seq, state FROM requests WHERE id = $1 FOR NO KEY UPDATE";
    let known = connection
        .row("look a request up", select, &[&stored(id.as_str())], |row| Ok((seq(row)?, request_state(row)?)))
        .await?;
    let Some((seq, state)) = known else { return Ok(WishAnswer::NotKnown) };
    match state {
        RequestState::Final | RequestState::Dead | RequestState::DeadPending => return Ok(WishAnswer::TooLate(state)),
        RequestState::Accepted | RequestState::Writing | RequestState::RetryPending | RequestState::RetryWaiting => {}
    }
    let CancelWish { by, reason } = wish;
    let now = Timestamp::now();
    // The first wish counts; to wish it again changes nothing.
    let insert = "INSERT INTO cancellations (request, wished_at, wished_by, reason) VALUES ($1, $2, $3, $4) \
                  ON CONFLICT DO NOTHING";
    let noted =
        connection.execute("note a wish to cancel", insert, &[&seq.0, &now.0, &stored(by), &stored(reason)]).await?;
    if noted == 1 {
        let detail = wording(by, reason);
        note_incidents(connection, &[Noted { request: seq, what: IncidentKind::Cancel, detail }], now).await?;
    }
    Ok(WishAnswer::Noted(state))
}

/// The first of a batch goes last: its transaction is that of the others, too.
/// What waits for its retry stays, however old: its copy at the broker will ask for it. What another call works with is
/// left for the next time.
async fn prune(connection: &Connection, before: Timestamp, limit: u32) -> Result<u64> {
    let select = "SELECT seq FROM requests WHERE settled_at < $1 AND state IN ('final', 'dead') \
                  AND NOT EXISTS (SELECT 1 FROM transactions t JOIN batched b \
                  ON b.account = t.account AND b.nonce = t.nonce WHERE t.request = requests.seq) ORDER BY settled_at LIMIT $2 FOR UPDATE SKIP LOCKED";
    let old = connection
        .rows("find old requests", select, &[&before.0, &i64::from(limit)], |row| number(row, "request", "seq"))
        .await?;
    let deeds = letters::forget(connection, before, limit).await?;
    if old.is_empty() {
        return Ok(u64::try_from(deeds).unwrap_or(u64::MAX));
    }
    for delete in [
        "DELETE FROM batched WHERE request = ANY($1)",
        "DELETE FROM signed_transactions a USING transactions t \
         WHERE t.request = ANY($1) AND a.account = t.account AND a.nonce = t.nonce",
        "DELETE FROM transactions WHERE request = ANY($1)",
        "DELETE FROM incidents WHERE request = ANY($1)",
        "DELETE FROM cancellations WHERE request = ANY($1)",
        "DELETE FROM requests WHERE seq = ANY($1)",
    ] {
        connection.execute("prune", delete, &[&old]).await?;
    }
    // As old as what they stood beside; there are few of them ever.
    connection.execute("prune", "DELETE FROM fillers WHERE signed_at < $1", &[&before.0]).await?;
    Ok(u64::try_from(old.len() + deeds).unwrap_or(u64::MAX))
}
