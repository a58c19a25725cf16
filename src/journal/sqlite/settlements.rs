//! Outcomes: closed nonces, decided requests, copies that need a publisher confirm, messages that were no requests.

use async_trait::async_trait;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, QueryBuilder, Sqlite, SqliteConnection};

use crate::journal::sqlite::admissions::{known_of, take_turns};
use crate::journal::sqlite::leases::check_lease;
use crate::journal::sqlite::outbox::insert_events;
use crate::journal::sqlite::rows::{
    column, corrupt, execute_in, expect_rows, fixed, generation, insert_all, insert_all_or, message, nonce, pieces,
    push_in, read_all, request_id, signed, word,
};
use crate::journal::sqlite::{SqliteJournal, closed, storage};
use crate::journal::{
    AccountId, ClosedTransaction, ConfirmedCopy, CopyKind, Decision, EndedAgain, Lease, RefusedMessage, Reorged,
    RequestSeq, Result, Settlement, Settlements, UnconfirmedCopy,
};
use crate::model::request::Observation;
use crate::model::{Cause, FailureClass, Generation, Message, RequestId, RequestState, Timestamp, TxHash};
use crate::policy::arrival::Known;

const COPY_COLUMNS: &str = "SELECT seq, id, state, replay, retry, body, body_hash, envelope, first_failed_at, \
                            failure_class, failure_reason, failure_detail FROM requests ";

#[async_trait]
impl Settlements for SqliteJournal {
    async fn settle(&self, lease: &Lease, settlements: Vec<Settlement>) -> Result<()> {
        let lease = lease.clone();
        self.writer.write(move |connection| Box::pin(settle(connection, lease, settlements))).await
    }

    async fn record_reorged(&self, lease: &Lease, reorged: Vec<Reorged>) -> Result<()> {
        let lease = lease.clone();
        self.writer.write(move |connection| Box::pin(closed::record_reorged(connection, lease, reorged))).await
    }

    async fn record_ended_again(&self, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()> {
        let lease = lease.clone();
        self.writer.write(move |connection| Box::pin(closed::record_ended_again(connection, lease, ended))).await
    }

    async fn unconfirmed(&self, account: AccountId, after: RequestSeq, limit: u32) -> Result<Vec<UnconfirmedCopy>> {
        let select = format!(
            "{COPY_COLUMNS} WHERE account = $1 AND settled_at IS NULL \
             AND state IN ('retry_pending', 'dead_pending') AND seq > $2 ORDER BY seq LIMIT $3"
        );
        let rows = sqlx::query(AssertSqlSafe(select))
            .bind(account.0)
            .bind(after.0)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await
            .map_err(|error| storage("read the copies without a publisher confirm", error))?;
        self.with_hashes(read_all(&rows, unconfirmed_copy)?).await
    }

    async fn unconfirmed_of(&self, requests: Vec<RequestSeq>) -> Result<Vec<UnconfirmedCopy>> {
        let requests: Vec<i64> = requests.iter().map(|seq| seq.0).collect();
        let mut copies = Vec::with_capacity(requests.len());
        for piece in pieces(&requests) {
            let mut select = QueryBuilder::<Sqlite>::new(COPY_COLUMNS);
            select.push("WHERE state IN ('retry_pending', 'dead_pending') AND seq");
            push_in(&mut select, piece);
            let rows = select
                .build()
                .fetch_all(&self.readers)
                .await
                .map_err(|error| storage("read copies without a publisher confirm", error))?;
            copies.extend(read_all(&rows, unconfirmed_copy)?);
        }
        self.with_hashes(copies).await
    }

    async fn confirm(&self, copies: Vec<ConfirmedCopy>) -> Result<()> {
        self.writer.write(move |connection| Box::pin(confirm(connection, copies))).await
    }

    async fn record_refused(&self, messages: Vec<RefusedMessage>) -> Result<()> {
        self.writer.write(move |connection| Box::pin(record_refused(connection, messages))).await
    }

    async fn standings(&self, ids: Vec<RequestId>) -> Result<Vec<(RequestId, Known)>> {
        let mut reader = self.readers.acquire().await.map_err(|error| storage("read where requests stand", error))?;
        known_of(&mut reader, &ids).await
    }

    async fn message_of(&self, id: &RequestId) -> Result<Option<Message>> {
        let row = sqlx::query("SELECT body, body_hash, envelope FROM requests WHERE id = $1 AND body IS NOT NULL")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| storage("read a message", error))?;
        row.as_ref().map(message).transpose()
    }

    async fn record_parked(&self, ids: Vec<RequestId>) -> Result<()> {
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let now = Timestamp::now();
                    for id in ids {
                        sqlx::query(
                            "INSERT INTO incidents (request, at, what, detail) \
                             SELECT seq, $1, 'parked', 'given back to the broker for a while' FROM requests WHERE id = $2",
                        )
                        .bind(now.0)
                        .bind(id.as_str())
                        .execute(&mut *connection)
                        .await
                        .map_err(|error| storage("note a park", error))?;
                    }
                    Ok(())
                })
            })
            .await
    }
}

impl SqliteJournal {
    async fn with_hashes(&self, mut copies: Vec<UnconfirmedCopy>) -> Result<Vec<UnconfirmedCopy>> {
        for copy in &mut copies {
            let rows = sqlx::query(
                "SELECT a.hash FROM transactions t JOIN attempts a ON a.account = t.account AND a.nonce = t.nonce \
                 WHERE t.request = $1 ORDER BY a.id",
            )
            .bind(copy.request.0)
            .fetch_all(&self.readers)
            .await
            .map_err(|error| storage("read the hashes of a request", error))?;
            copy.tx_hashes = read_all(&rows, |row| fixed(row, "attempt", "hash", TxHash::from_slice))?;
        }
        Ok(copies)
    }
}

async fn settle(connection: &mut SqliteConnection, lease: Lease, settlements: Vec<Settlement>) -> Result<()> {
    check_lease(connection, &lease).await?;
    let now = Timestamp::now();
    let closed: Vec<_> =
        settlements.iter().filter_map(|settled| Some((settled.request, settled.transaction.as_ref()?))).collect();
    close_transactions(connection, &lease, &closed, now).await?;
    let mut finals = Vec::new();
    let mut events = Vec::new();
    let mut requeued = Vec::new();
    for Settlement { request, decision, .. } in &settlements {
        match decision {
            Decision::Final(event) => {
                finals.push(request.0);
                events.push((lease.account, event));
            }
            Decision::Retry { cause, next } => {
                record_failure(connection, &lease, *request, (RequestState::RetryPending, cause, Some(*next)), now)
                    .await?;
            }
            Decision::Dead { cause } => {
                record_failure(connection, &lease, *request, (RequestState::DeadPending, cause, None), now).await?;
            }
            Decision::Cancel { cause } => cancel_queued(connection, &lease, *request, cause, now).await?,
            Decision::Requeue { taken_by } => requeued.push((*request, *taken_by)),
        }
    }
    let make_final = || {
        let mut update =
            QueryBuilder::new("UPDATE requests SET state = 'final', body = NULL, envelope = NULL, settled_at = ");
        update.push_bind(now.0).push(", changed_at = ").push_bind(now.0);
        update.push(" WHERE state = 'writing' AND account = ").push_bind(lease.account.0);
        update.push(
            " AND EXISTS (SELECT 1 FROM transactions t WHERE t.request = requests.seq AND t.state = 'succeeded') \
             AND seq",
        );
        update
    };
    let changed = execute_in(connection, make_final, &finals).await?;
    expect_rows("make a request final whose transaction did not succeed", finals.len(), changed)?;
    insert_events(connection, &events).await?;
    requeue(connection, &lease, &requeued, now).await?;
    forget_wishes(connection, &settlements).await
}

/// Invariants 3 and 8, as the end of an update of `requests`: whoever believed a request done while its bytes may land,
/// or have landed, would write it twice.
const HAS_NO_EFFECT: &str = " AND NOT EXISTS \
    (SELECT 1 FROM transactions t WHERE t.request = requests.seq AND t.state IN ('live', 'succeeded'))";

async fn close_transactions(
    connection: &mut SqliteConnection,
    lease: &Lease,
    closed: &[(RequestSeq, &ClosedTransaction)],
    now: Timestamp,
) -> Result<()> {
    let mut rows = Vec::with_capacity(closed.len());
    for (request, transaction) in closed {
        let (block_number, gas_used) = match &transaction.included {
            Some(included) => {
                (Some(signed("a height", included.block_number.0)?), Some(signed("gas", included.gas_used.0)?))
            }
            None => (None, None),
        };
        rows.push((nonce(transaction.nonce)?, block_number, gas_used, *transaction, request.0));
    }
    let mut changed = 0;
    for piece in pieces(&rows) {
        let mut update = QueryBuilder::<Sqlite>::new(
            "UPDATE transactions SET state = v.column2, final_hash = v.column3, block_number = v.column4, \
             block_hash = v.column5, gas_used = v.column6, closed_at = v.column7 FROM (",
        );
        update.push_values(piece, |mut row, (nonce, block_number, gas_used, transaction, request)| {
            let included = transaction.included.as_ref();
            row.push_bind(*nonce)
                .push_bind(transaction.state.as_str())
                .push_bind(included.map(|included| included.tx_hash.as_bytes().to_vec()))
                .push_bind(*block_number)
                .push_bind(included.map(|included| included.block_hash.as_bytes().to_vec()))
                .push_bind(*gas_used)
                .push_bind(now.0)
                .push_bind(*request);
        });
        update.push(
            ") AS v WHERE transactions.state = 'live' AND transactions.nonce = v.column1 \
             AND transactions.request = v.column8 AND transactions.account = ",
        );
        update.push_bind(lease.account.0);
        let done = update.build().execute(&mut *connection).await.map_err(|error| storage("close nonces", error))?;
        changed += done.rows_affected();
    }
    expect_rows("close a nonce that is not live for this request", rows.len(), changed)
}

async fn record_failure(
    connection: &mut SqliteConnection,
    lease: &Lease,
    request: RequestSeq,
    (state, cause, next): (RequestState, &Cause, Option<Generation>),
    now: Timestamp,
) -> Result<()> {
    let update = format!(
        "UPDATE requests SET state = $1, failure_class = $2, failure_reason = $3, failure_detail = $4, \
         changed_at = $5, first_failed_at = coalesce(first_failed_at, $5), replay = coalesce($6, replay), \
         retry = coalesce($7, retry) WHERE seq = $8 AND account = $9 AND state IN ('accepted', 'writing'){HAS_NO_EFFECT}"
    );
    let changed = sqlx::query(AssertSqlSafe(update))
        .bind(state.as_str())
        .bind(cause.class.as_str())
        .bind(cause.reason.as_ref())
        .bind(&cause.detail)
        .bind(now.0)
        .bind(next.map(|next| i64::from(next.replay)))
        .bind(next.map(|next| i64::from(next.retry)))
        .bind(request.0)
        .bind(lease.account.0)
        .execute(&mut *connection)
        .await
        .map_err(|error| storage("record a failure", error))?
        .rows_affected();
    expect_rows("fail a request that is not open, or whose transaction may land", 1, changed)?;
    note_incidents(connection, &[(request, "failed", cause.to_string())], now).await
}

/// The request may have failed by itself since the wish was seen: its ruling came before this one, and counts.
async fn cancel_queued(
    connection: &mut SqliteConnection,
    lease: &Lease,
    request: RequestSeq,
    cause: &Cause,
    now: Timestamp,
) -> Result<()> {
    let waits = sqlx::query("SELECT 1 FROM requests WHERE seq = $1 AND state = 'accepted'")
        .bind(request.0)
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| storage("cancel a request", error))?;
    match waits {
        Some(_) => record_failure(connection, lease, request, (RequestState::DeadPending, cause, None), now).await,
        None => Ok(()),
    }
}

/// A wish is over with its request. One that came back from the dead would need a new one.
async fn forget_wishes(connection: &mut SqliteConnection, settlements: &[Settlement]) -> Result<()> {
    let requests: Vec<_> = settlements.iter().map(|settlement| settlement.request.0).collect();
    let ended = || {
        QueryBuilder::new(
            "DELETE FROM cancellations WHERE request IN (SELECT seq FROM requests WHERE state IN \
             ('dead_pending', 'dead', 'final')) AND request",
        )
    };
    execute_in(connection, ended, &requests).await.map(|_| ())
}

async fn requeue(
    connection: &mut SqliteConnection,
    lease: &Lease,
    requests: &[(RequestSeq, TxHash)],
    now: Timestamp,
) -> Result<()> {
    let first_turn = take_turns(connection, requests.len()).await?;
    for (turn, (request, taken_by)) in (first_turn..).zip(requests) {
        let update = format!(
            "UPDATE requests SET state = 'accepted', turn = $1, changed_at = $2 \
             WHERE seq = $3 AND account = $4 AND state = 'writing'{HAS_NO_EFFECT}"
        );
        let changed = sqlx::query(AssertSqlSafe(update))
            .bind(turn)
            .bind(now.0)
            .bind(request.0)
            .bind(lease.account.0)
            .execute(&mut *connection)
            .await
            .map_err(|error| storage("queue a request again", error))?
            .rows_affected();
        expect_rows("queue a request again that was not signed, or whose transaction may land", 1, changed)?;
        let detail = format!("its nonce went to {taken_by}, which is not ours; it gets a new one");
        note_incidents(connection, &[(*request, "displaced", detail)], now).await?;
    }
    Ok(())
}

async fn confirm(connection: &mut SqliteConnection, copies: Vec<ConfirmedCopy>) -> Result<()> {
    let now = Timestamp::now();
    for copy in copies {
        let pending = copy.kind.pending();
        let settled = pending.next(Observation::Confirmed).expect("what is pending can be confirmed");
        // No row is no error: the copy has come back already and was accepted, which proves that the broker had it.
        let row = sqlx::query(
            "UPDATE requests SET state = $1, settled_at = $2, changed_at = $2, body = NULL, envelope = NULL \
             WHERE seq = $3 AND state = $4 AND replay = $5 AND retry = $6",
        )
        .bind(settled.as_str())
        .bind(now.0)
        .bind(copy.request.0)
        .bind(pending.as_str())
        .bind(i64::from(copy.generation.replay))
        .bind(i64::from(copy.generation.retry))
        .execute(&mut *connection)
        .await;
        row.map_err(|error| storage("confirm a copy", error))?;
        let account: i64 = sqlx::query("SELECT account FROM requests WHERE seq = $1")
            .bind(copy.request.0)
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| storage("confirm a copy", error))
            .and_then(|row| column(&row, "request", "account"))?;
        insert_events(connection, &[(AccountId(account), &copy.event)]).await?;
    }
    Ok(())
}

async fn record_refused(connection: &mut SqliteConnection, messages: Vec<RefusedMessage>) -> Result<()> {
    let now = Timestamp::now();
    let insert = "INSERT INTO requests (id, account, state, replay, retry, turn, body_hash, received_at, changed_at, \
                  settled_at, first_failed_at, failure_class, failure_reason, failure_detail) ";
    // A valid message may have come under this id since it was looked up: that one keeps it, the dead letter is safe.
    insert_all_or(connection, insert, " ON CONFLICT (id) DO NOTHING", &messages, |row, refused| {
        row.push_bind(refused.id.as_str().to_owned())
            .push_bind(refused.account.0)
            .push_bind(RequestState::Dead.as_str())
            .push_bind(i64::from(refused.generation.replay))
            .push_bind(i64::from(refused.generation.retry))
            .push_bind(0_i64)
            .push_bind(refused.body_hash.as_bytes().to_vec())
            .push_bind(now.0)
            .push_bind(now.0)
            .push_bind(now.0)
            .push_bind(now.0)
            .push_bind(refused.cause.class.as_str())
            .push_bind(refused.cause.reason.to_string())
            .push_bind(refused.cause.detail.clone());
    })
    .await?;
    let events: Vec<_> = messages.iter().map(|refused| (refused.account, &refused.event)).collect();
    insert_events(connection, &events).await
}

/// Notes what happened off the straight way.
pub(super) async fn note_incidents(
    connection: &mut SqliteConnection,
    incidents: &[(RequestSeq, &'static str, String)],
    now: Timestamp,
) -> Result<()> {
    let insert = "INSERT INTO incidents (request, at, what, detail) ";
    insert_all(connection, insert, incidents, |row, (request, what, detail)| {
        row.push_bind(request.0).push_bind(now.0).push_bind(*what).push_bind(detail.clone());
    })
    .await
}

fn unconfirmed_copy(row: &SqliteRow) -> Result<UnconfirmedCopy> {
    let reason: String = column(row, "request", "failure_reason")?;
    let detail: String = column(row, "request", "failure_detail")?;
    let class = word(row, "request", "failure_class", FailureClass::from_word)?;
    let first_failed_at: Option<i64> = column(row, "request", "first_failed_at")?;
    Ok(UnconfirmedCopy {
        request: RequestSeq(column(row, "request", "seq")?),
        id: request_id(row)?,
        kind: word(row, "request", "state", copy_kind)?,
        generation: generation(row)?,
        cause: Cause::new(class, reason, detail),
        first_failed_at: first_failed_at.map(Timestamp).ok_or_else(|| corrupt("request", "it failed at no time"))?,
        message: message(row)?,
        tx_hashes: Vec::new(),
    })
}

fn copy_kind(state: &str) -> Option<CopyKind> {
    [CopyKind::Retry, CopyKind::DeadLetter].into_iter().find(|kind| kind.pending().as_str() == state)
}
