//! Requests whose retry the broker has lost: named once, and given up where an operator cancels them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::journal::cancellations::{CANCELLED, forget_cancellations};
use crate::journal::columns::{Columns, fixed, number, optional_text, text, unsigned};
use crate::journal::copies::hashes_of;
use crate::journal::database::{Database, Rows, SqlJournal, Statements, values};
use crate::journal::error::Result;
use crate::journal::incidents::record_incidents;
use crate::journal::ordering::{lock_keys, release};
use crate::journal::outbox::insert_events;
use crate::journal::requests::{ReplyAddress, generation, reply, request_id, seq, trace};
use crate::journal::row_numbers::{AccountId, RequestSeq};
use crate::journal::states::Change;
use crate::model::operator::text_of;
use crate::model::request::Observation;
use crate::model::{Address, Cause, Event, Generation, IncidentKind, RequestId, Timestamp, TraceContext, TxHash};

/// Those that an overview names at most.
pub const MOST_NAMED: u32 = 100;

/// A request that waits in vain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostRetry {
    pub request: String,
    pub account: Address,
    /// The number of the retry.
    pub attempt: u32,
    /// Since when the broker has had it, as far as the journal knows.
    pub waits_since: Timestamp,
}

/// One that an operator has cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelledRetry {
    pub request: RequestSeq,
    pub id: RequestId,
    pub generation: Generation,
    pub reply: ReplyAddress,
    pub trace: Option<TraceContext>,
    /// Names who cancelled it and why, for a person.
    pub detail: String,
    /// Every hash ever signed for it, oldest first.
    pub tx_hashes: Vec<TxHash>,
}

/// The end of a request without a dead letter.
#[derive(Debug, Clone)]
pub struct GivenUp {
    pub request: RequestSeq,
    /// The copy that is lost. If another one has come since, nothing happens.
    pub generation: Generation,
    pub cause: Cause,
    /// Goes into the outbox in the same commit.
    pub event: Event,
}

#[async_trait]
pub trait LostRetries: Send + Sync {
    /// Marks up to `limit` requests as lost that wait for a retry which the broker has had since this time or longer. Returns
    /// those that were not marked before. Marks none if this journal has not served the queue for so long.
    async fn name_lost_retries(&self, confirmed_by: Timestamp, limit: u32) -> Result<Vec<LostRetry>>;
    /// Returns up to `limit` of the marked ones that an operator has cancelled.
    async fn cancelled_retries(&self, limit: u32) -> Result<Vec<CancelledRetry>>;
    /// Ends these requests as dead, though no dead letter is at the broker. Returns those that have ended so.
    async fn give_up(&self, given_up: Vec<GivenUp>) -> Result<Vec<RequestSeq>>;
}

#[async_trait]
impl<D: Database> LostRetries for SqlJournal<D> {
    async fn name_lost_retries(&self, confirmed_by: Timestamp, limit: u32) -> Result<Vec<LostRetry>> {
        // A read holds up no write. What it finds is checked again.
        let waiting = self
            .snapshot((confirmed_by, limit), |connection, (confirmed_by, limit)| {
                Box::pin(waiting(connection, *confirmed_by, *limit))
            })
            .await?;
        if waiting.is_empty() {
            return Ok(Vec::new());
        }
        self.write(waiting, |connection, waiting| Box::pin(mark(connection, waiting))).await
    }

    async fn cancelled_retries(&self, limit: u32) -> Result<Vec<CancelledRetry>> {
        self.snapshot(limit, |connection, limit| Box::pin(cancelled(connection, *limit))).await
    }

    async fn give_up(&self, given_up: Vec<GivenUp>) -> Result<Vec<RequestSeq>> {
        let ended = self.write(given_up, |connection, given_up| Box::pin(give_up(connection, given_up))).await?;
        if !ended.is_empty() {
            self.database.announce_work();
        }
        Ok(ended)
    }
}

const LOST_COLUMNS: &str = "r.seq, r.id, r.replay, r.retry, r.settled_at, a.address";

fn lost(row: &dyn Columns) -> Result<LostRetry> {
    Ok(LostRetry {
        request: request_id(row)?.to_string(),
        account: fixed(row, "account", "address", Address::from_slice)?,
        attempt: unsigned(row, "request", "retry")?,
        waits_since: Timestamp(number(row, "request", "settled_at")?),
    })
}

/// Returns the marked ones, those that have waited for longest first.
pub async fn lost_retries(connection: &dyn Statements) -> Result<Vec<LostRetry>> {
    let select = format!(
        "SELECT {LOST_COLUMNS} FROM requests r JOIN accounts a ON a.id = r.account WHERE r.lost_at IS NOT NULL \
         ORDER BY r.settled_at, r.seq LIMIT {MOST_NAMED}"
    );
    connection.rows("read the lost retries", &select, &[], lost).await
}

async fn waiting(
    connection: &dyn Statements,
    confirmed_by: Timestamp,
    limit: u32,
) -> Result<Vec<(RequestSeq, Generation, LostRetry)>> {
    // A newer journal may have published the next retry until this one took the queue over.
    let select = format!(
        "SELECT {LOST_COLUMNS} FROM accounts a JOIN requests r ON r.account = a.id \
         WHERE r.state = 'retry_waiting' AND r.settled_at <= $1 AND r.lost_at IS NULL \
         AND EXISTS (SELECT 1 FROM identity WHERE serves_since <= $1) ORDER BY r.settled_at, r.seq LIMIT $2"
    );
    let read = |row: &dyn Columns| Ok((seq(row)?, generation(row)?, lost(row)?));
    connection.rows("find lost retries", &select, &values![confirmed_by.0, limit], read).await
}

async fn mark(connection: &dyn Statements, waiting: &[(RequestSeq, Generation, LostRetry)]) -> Result<Vec<LostRetry>> {
    const DOING: &str = "mark lost retries";
    let now = Timestamp::now();
    let update = "UPDATE requests AS r SET lost_at = $1 FROM u WHERE r.seq = u.request AND r.state = 'retry_waiting' \
                  AND r.lost_at IS NULL AND r.replay = u.replay AND r.retry = u.retry RETURNING seq";
    let rows = waiting.iter().map(|(request, at, _)| values![request.0, at.replay, at.retry]);
    let rows = Rows::of("request bigint, replay bigint, retry bigint", rows);
    let marked = connection.rows_each(DOING, update, &values![now.0], &rows, seq).await?;
    let named: Vec<_> = waiting.iter().filter(|(request, ..)| marked.contains(request)).collect();
    let incident = |(request, _, lost): &&(RequestSeq, Generation, LostRetry)| {
        let LostRetry { attempt, waits_since, .. } = lost;
        let detail = format!(
            "the broker has had retry {attempt} since {waits_since}, and what was in the queue after it has come out"
        );
        (*request, IncidentKind::RetryLost, detail)
    };
    record_incidents(connection, &named.iter().map(incident).collect::<Vec<_>>(), now).await?;
    Ok(named.into_iter().map(|(.., lost)| lost.clone()).collect())
}

async fn cancelled(connection: &dyn Statements, limit: u32) -> Result<Vec<CancelledRetry>> {
    let select = "SELECT r.seq, r.id, r.replay, r.retry, r.reply_to, r.correlation_id, r.traceparent, r.tracestate, \
                  c.requested_by, c.reason FROM requests r JOIN cancellations c ON c.request = r.seq \
                  WHERE r.lost_at IS NOT NULL ORDER BY r.seq LIMIT $1";
    let read = |row: &dyn Columns| {
        let by = text(row, "cancellation", "requested_by")?;
        let reason = optional_text(row, "cancellation", "reason")?.unwrap_or_default();
        Ok(CancelledRetry {
            request: seq(row)?,
            id: request_id(row)?,
            generation: generation(row)?,
            reply: reply(row, "request")?,
            trace: trace(row)?,
            detail: text_of(CANCELLED, &by, &reason),
            tx_hashes: Vec::new(),
        })
    };
    let mut found = connection.rows("find lost retries", select, &values![limit], read).await?;
    let requests: Vec<_> = found.iter().map(|one| one.request).collect();
    for (request, hash) in hashes_of(connection, &requests).await? {
        found.iter_mut().filter(|one| one.request == request).for_each(|one| one.tx_hashes.push(hash));
    }
    Ok(found)
}

/// None of its transactions can land: a retry comes after all of them are final.
async fn give_up(connection: &dyn Statements, given_up: &[GivenUp]) -> Result<Vec<RequestSeq>> {
    const DOING: &str = "give up lost retries";
    let now = Timestamp::now();
    let keys = lock_keys(connection, given_up.iter().map(|one| one.request)).await?;
    let Change { set, allowed } = Change::on(Observation::GivenUp);
    let update = format!(
        "UPDATE requests AS r SET {set}, write_data = NULL, failure_class = u.class, failure_reason = u.reason, \
         failure_detail = u.detail FROM u WHERE r.seq = u.request AND {allowed} AND r.lost_at IS NOT NULL \
         AND r.replay = u.replay AND r.retry = u.retry RETURNING seq, account"
    );
    let rows = given_up.iter().map(|GivenUp { request, generation, cause, .. }| {
        let (class, reason) = (cause.class().as_str(), cause.reason.as_str());
        values![request.0, generation.replay, generation.retry, class, reason, &*cause.detail]
    });
    let columns = "request bigint, replay bigint, retry bigint, class text, reason text, detail text";
    let read = |row: &dyn Columns| Ok((seq(row)?, AccountId(number(row, "request", "account")?)));
    let ended = connection.rows_each(DOING, &update, &values![now.0], &Rows::of(columns, rows), read).await?;
    let ended: BTreeMap<RequestSeq, AccountId> = ended.into_iter().collect();
    let of_ended = || given_up.iter().filter_map(|one| Some((one, *ended.get(&one.request)?)));
    let incidents = of_ended().map(|(one, _)| (one.request, IncidentKind::Failed, one.cause.to_string()));
    record_incidents(connection, &incidents.collect::<Vec<_>>(), now).await?;
    release(connection, &keys).await?;
    forget_cancellations(connection, ended.keys().copied()).await?;
    insert_events(connection, of_ended().map(|(one, account)| (account, &one.event))).await?;
    Ok(ended.into_keys().collect())
}
