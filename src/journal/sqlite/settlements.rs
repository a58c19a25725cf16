//! Outcomes: closed nonces, decided requests, copies that need a publisher confirm, messages that were no requests.

use async_trait::async_trait;
use rusqlite::{Connection, params};

use crate::journal::columns::{expect_batch, expect_rows, fixed, nonce, number};
use crate::journal::rows::{COPY_COLUMNS, message, seq, unconfirmed_copy};
use crate::journal::sqlite::admissions::{known_of, take_turns};
use crate::journal::sqlite::closed::Closing;
use crate::journal::sqlite::leases::check_lease;
use crate::journal::sqlite::outbox::insert_events;
use crate::journal::sqlite::rows::prepare;
use crate::journal::sqlite::{SqliteJournal, closed, ordering};
use crate::journal::{
    AccountId, ConfirmedCopy, CopyKind, Decision, EndedAgain, Lease, RefusedMessage, Reorged, RequestSeq, Requeue,
    Result, Settlement, Settlements, UnconfirmedCopy, recorded_by,
};
use crate::model::request::Observation;
use crate::model::{Cause, Generation, IncidentKind, Message, RequestId, RequestState, Timestamp, TxHash};
use crate::policy::arrival::Known;

#[async_trait]
impl Settlements for SqliteJournal {
    async fn settle(&self, lease: &Lease, settlements: Vec<Settlement>) -> Result<()> {
        let lease = lease.clone();
        self.writer.write(move |connection| settle(connection, &lease, &settlements)).await
    }

    async fn record_reorged(&self, lease: &Lease, reorged: Vec<Reorged>) -> Result<()> {
        let lease = lease.clone();
        self.writer.write(move |connection| closed::record_reorged(connection, &lease, reorged)).await
    }

    async fn record_ended_again(&self, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()> {
        let lease = lease.clone();
        self.writer.write(move |connection| closed::record_ended_again(connection, &lease, ended)).await
    }

    async fn unconfirmed(&self, account: AccountId, after: RequestSeq, limit: u32) -> Result<Vec<UnconfirmedCopy>> {
        self.readers.read(move |connection| unconfirmed(connection, account, after, limit)).await
    }

    async fn unconfirmed_of(&self, requests: Vec<RequestSeq>) -> Result<Vec<UnconfirmedCopy>> {
        self.readers.read(move |connection| unconfirmed_of(connection, &requests)).await
    }

    async fn confirm(&self, copies: Vec<ConfirmedCopy>) -> Result<()> {
        self.writer.write(move |connection| confirm(connection, &copies)).await
    }

    async fn record_refused(&self, messages: Vec<RefusedMessage>) -> Result<()> {
        self.writer.write(move |connection| record_refused(connection, &messages)).await
    }

    async fn standings(&self, ids: Vec<RequestId>) -> Result<Vec<(RequestId, Known)>> {
        self.readers.read(move |connection| known_of(connection, &ids)).await
    }

    async fn message_of(&self, id: &RequestId) -> Result<Option<Message>> {
        let id = id.clone();
        let select = "SELECT body, body_hash, envelope FROM requests WHERE id = ?1 AND body IS NOT NULL";
        self.readers
            .read(move |connection| {
                prepare(connection, "read a message", select)?.row([id.as_str()], |row| message(row))
            })
            .await
    }

    async fn record_parked(&self, ids: Vec<RequestId>) -> Result<()> {
        self.writer.write(move |connection| record_parked(connection, &ids)).await
    }
}

fn unconfirmed(
    connection: &Connection,
    account: AccountId,
    after: RequestSeq,
    limit: u32,
) -> Result<Vec<UnconfirmedCopy>> {
    // Not left to SQLite: by places alone it would walk past everything settled.
    let select = format!(
        "SELECT {COPY_COLUMNS} FROM requests INDEXED BY requests_unsettled WHERE account = ?1 AND settled_at IS NULL \
         AND state IN ('retry_pending', 'dead_pending') AND seq > ?2 ORDER BY seq LIMIT ?3"
    );
    let mut select = prepare(connection, "read the copies without a publisher confirm", &select)?;
    with_hashes(connection, select.rows((account.0, after.0, limit), |row| unconfirmed_copy(row))?)
}

fn unconfirmed_of(connection: &Connection, requests: &[RequestSeq]) -> Result<Vec<UnconfirmedCopy>> {
    let select =
        format!("SELECT {COPY_COLUMNS} FROM requests WHERE seq = ?1 AND state IN ('retry_pending', 'dead_pending')");
    let mut select = prepare(connection, "read copies without a publisher confirm", &select)?;
    let mut copies = Vec::with_capacity(requests.len());
    for request in requests {
        copies.extend(select.row([request.0], |row| unconfirmed_copy(row))?);
    }
    with_hashes(connection, copies)
}

fn with_hashes(connection: &Connection, mut copies: Vec<UnconfirmedCopy>) -> Result<Vec<UnconfirmedCopy>> {
    let select = "SELECT a.hash FROM (SELECT account, nonce FROM transactions WHERE request = ?1 \
                  UNION ALL SELECT account, nonce FROM batched WHERE request = ?1) t \
                  JOIN signed_transactions a ON a.account = t.account AND a.nonce = t.nonce ORDER BY a.id";
    let mut select = prepare(connection, "read the hashes of a request", select)?;
    for copy in &mut copies {
        copy.tx_hashes = select.rows([copy.request.0], |row| fixed(row, "attempt", "hash", TxHash::from_slice))?;
    }
    Ok(copies)
}

fn record_parked(connection: &Connection, ids: &[RequestId]) -> Result<()> {
    let now = Timestamp::now();
    let mut insert = prepare(
        connection,
        "note a park",
        &format!(
            "INSERT INTO incidents (request, at, what, detail) \
             SELECT seq, ?1, '{}', 'given back to the broker for a while' FROM requests WHERE id = ?2",
            IncidentKind::Parked
        ),
    )?;
    ids.iter().try_for_each(|id| insert.execute((now.0, id.as_str())).map(drop))
}

fn settle(connection: &Connection, lease: &Lease, settlements: &[Settlement]) -> Result<()> {
    check_lease(connection, lease)?;
    let now = Timestamp::now();
    close_transactions(connection, lease, settlements, now)?;
    let mut finals = Vec::new();
    let mut events = Vec::new();
    let mut requeued = Vec::new();
    for (request, decision) in settlements.iter().flat_map(Settlement::decisions) {
        match decision {
            Decision::Final(event) => {
                finals.push(request);
                events.push((lease.account, event));
            }
            Decision::Found { event, written_by } => {
                make_found(connection, lease, request, *written_by, now)?;
                events.push((lease.account, event));
            }
            Decision::Retry { cause, next } => {
                record_failure(connection, lease, request, (RequestState::RetryPending, cause, Some(*next)), now)?;
            }
            Decision::Dead { cause } => {
                record_failure(connection, lease, request, (RequestState::DeadPending, cause, None), now)?;
            }
            Decision::Cancel { cause } => cancel_queued(connection, lease, request, cause, now)?,
            Decision::Requeue(why) => requeued.push((request, why)),
        }
    }
    make_final(connection, lease, &finals, now)?;
    insert_events(connection, events)?;
    requeue(connection, lease, &requeued, now)?;
    forget_wishes(connection, settlements)
}

fn make_final(connection: &Connection, lease: &Lease, requests: &[RequestSeq], now: Timestamp) -> Result<()> {
    let mut update = prepare(
        connection,
        "change rows",
        "UPDATE requests SET state = 'final', body = NULL, write_data = NULL, envelope = NULL, settled_at = ?1, changed_at = ?1 \
         WHERE seq = ?2 AND state = 'writing' AND account = ?3 AND (EXISTS \
         (SELECT 1 FROM transactions t WHERE t.request = requests.seq AND t.state = 'succeeded') OR EXISTS \
         (SELECT 1 FROM batched b JOIN transactions t ON t.account = b.account AND t.nonce = b.nonce \
         WHERE b.request = requests.seq AND b.has_effect = 1 AND t.state = 'succeeded'))",
    )?;
    let mut changed = 0;
    for request in requests {
        changed += update.execute((now.0, request.0, lease.account.0))?;
    }
    expect_rows("make a request final whose transaction did not succeed", requests.len(), changed)?;
    ordering::release(connection, &ordering::keys_of(connection, requests.iter().copied())?)
}

fn make_found(
    connection: &Connection,
    lease: &Lease,
    request: RequestSeq,
    written_by: TxHash,
    now: Timestamp,
) -> Result<()> {
    let update = format!(
        "UPDATE requests SET state = 'final', body = NULL, write_data = NULL, envelope = NULL, settled_at = ?1, changed_at = ?1 \
         WHERE seq = ?2 AND state IN ('accepted', 'writing') AND turn > 0 AND account = ?3{HAS_NO_EFFECT}"
    );
    let changed = prepare(connection, "change rows", &update)?.execute((now.0, request.0, lease.account.0))?;
    expect_rows("make a request final that is not open, or whose own transaction may land", 1, changed)?;
    note_incidents(connection, &[(request, IncidentKind::Recorded, recorded_by(written_by))], now)?;
    ordering::release(connection, &ordering::keys_of(connection, [request])?)
}

/// Invariants 3 and 8, as the end of an update of `requests`: whoever believed a request done while its bytes may land,
/// or have landed, would write it twice.
const HAS_NO_EFFECT: &str = " AND NOT EXISTS \
    (SELECT 1 FROM transactions t WHERE t.request = requests.seq AND t.state IN ('live', 'succeeded')) AND NOT EXISTS \
    (SELECT 1 FROM batched b WHERE b.request = requests.seq AND b.has_effect = 1)";

fn close_transactions(
    connection: &Connection,
    lease: &Lease,
    settlements: &[Settlement],
    now: Timestamp,
) -> Result<()> {
    let mut closing = Closing::new(connection, "close nonces", "state = 'live'")?;
    let select = "SELECT request AS seq FROM batched WHERE account = ?1 AND nonce = ?2 ORDER BY place";
    let mut batch = prepare(connection, "read a batch", select)?;
    for Settlement { request, transaction, others, .. } in settlements {
        let decided = others.iter().map(|(request, _)| *request);
        let Some(transaction) = transaction else {
            expect_batch(0, &[], decided)?;
            continue;
        };
        let stored = closing.close(lease, *request, transaction, now)?;
        expect_rows("close a nonce that is not live for this request", 1, usize::from(stored.is_some()))?;
        if stored != Some(0) || !others.is_empty() {
            let at = nonce(transaction.nonce)?;
            expect_batch(at, &batch.rows((lease.account.0, at), |row| seq(row))?, decided)?;
        }
    }
    Ok(())
}

fn record_failure(
    connection: &Connection,
    lease: &Lease,
    request: RequestSeq,
    (state, cause, next): (RequestState, &Cause, Option<Generation>),
    now: Timestamp,
) -> Result<()> {
    let update = format!(
        "UPDATE requests SET state = ?1, failure_class = ?2, failure_reason = ?3, failure_detail = ?4, \
         changed_at = ?5, first_failed_at = coalesce(first_failed_at, ?5), replay = coalesce(?6, replay), \
         retry = coalesce(?7, retry) WHERE seq = ?8 AND account = ?9 AND state IN ('accepted', 'writing') \
         AND (turn > 0 OR ?1 = 'dead_pending'){HAS_NO_EFFECT}"
    );
    let changed = prepare(connection, "record a failure", &update)?.execute(params![
        state.as_str(),
        cause.class().as_str(),
        cause.reason.as_str(),
        cause.detail,
        now.0,
        next.map(|next| next.replay),
        next.map(|next| next.retry),
        request.0,
        lease.account.0,
    ])?;
    expect_rows("fail a request that is not open, or whose transaction may land", 1, changed)?;
    note_incidents(connection, &[(request, IncidentKind::Failed, cause.to_string())], now)
}

/// The request may have failed by itself since the wish was seen: its ruling came before this one, and counts.
fn cancel_queued(
    connection: &Connection,
    lease: &Lease,
    request: RequestSeq,
    cause: &Cause,
    now: Timestamp,
) -> Result<()> {
    let look = "SELECT 1 FROM requests WHERE seq = ?1 AND state = 'accepted'";
    match prepare(connection, "cancel a request", look)?.row([request.0], |_| Ok(()))? {
        Some(()) => record_failure(connection, lease, request, (RequestState::DeadPending, cause, None), now),
        None => Ok(()),
    }
}

/// A wish is over with its request. One that came back from the dead would need a new one.
fn forget_wishes(connection: &Connection, settlements: &[Settlement]) -> Result<()> {
    let mut delete = prepare(
        connection,
        "change rows",
        "DELETE FROM cancellations WHERE request = ?1 AND EXISTS (SELECT 1 FROM requests \
         WHERE seq = ?1 AND state IN ('dead_pending', 'dead', 'final'))",
    )?;
    let mut requests = settlements.iter().flat_map(Settlement::decisions).map(|(request, _)| request);
    requests.try_for_each(|request| delete.execute([request.0]).map(drop))
}

fn requeue(connection: &Connection, lease: &Lease, requests: &[(RequestSeq, &Requeue)], now: Timestamp) -> Result<()> {
    let first_turn = take_turns(connection, requests.len())?;
    let update = format!(
        "UPDATE requests SET state = 'accepted', turn = ?1, changed_at = ?2, is_alone = max(is_alone, ?5) \
         WHERE seq = ?3 AND account = ?4 AND state = 'writing'{HAS_NO_EFFECT}"
    );
    let mut update = prepare(connection, "queue a request again", &update)?;
    for (turn, (request, why)) in (first_turn..).zip(requests) {
        let changed = update.execute((turn, now.0, request.0, lease.account.0, why.isolates()))?;
        expect_rows("queue a request again that was not signed, or whose transaction may land", 1, changed)?;
        note_incidents(connection, &[(*request, why.incident(), why.detail())], now)?;
    }
    Ok(())
}

fn confirm(connection: &Connection, copies: &[ConfirmedCopy]) -> Result<()> {
    let now = Timestamp::now();
    let prepare = |sql| prepare(connection, "confirm a copy", sql);
    let mut update = prepare(
        "UPDATE requests SET state = ?1, settled_at = ?2, changed_at = ?2, body = NULL, envelope = NULL, \
         write_data = CASE WHEN ?1 <> 'dead' THEN write_data END \
         WHERE seq = ?3 AND state = ?4 AND replay = ?5 AND retry = ?6",
    )?;
    let mut account_of = prepare("SELECT account FROM requests WHERE seq = ?1")?;
    for copy in copies {
        let pending = copy.kind.pending();
        let settled = pending.next(Observation::Confirmed).expect("what is pending can be confirmed");
        // No row is no error: the copy has come back already and was accepted, which proves that the broker had it.
        let Generation { replay, retry } = copy.generation;
        update.execute((settled.as_str(), now.0, copy.request.0, pending.as_str(), replay, retry))?;
        let account = account_of.one([copy.request.0], |row| number(row, "request", "account"))?;
        insert_events(connection, [(AccountId(account), &copy.event)])?;
    }
    let dead = copies.iter().filter(|copy| copy.kind == CopyKind::DeadLetter).map(|copy| copy.request);
    ordering::release(connection, &ordering::keys_of(connection, dead)?)
}

fn record_refused(connection: &Connection, messages: &[RefusedMessage]) -> Result<()> {
    let now = Timestamp::now();
    // A valid message may have come under this id since it was looked up: that one keeps it, the dead letter is safe.
    let mut insert = prepare(
        connection,
        "insert rows",
        "INSERT INTO requests (id, account, state, replay, retry, turn, body_hash, received_at, changed_at, \
         settled_at, first_failed_at, failure_class, failure_reason, failure_detail) \
         VALUES (?1, ?2, 'dead', ?3, ?4, 0, ?5, ?6, ?6, ?6, ?6, ?7, ?8, ?9) ON CONFLICT (id) DO NOTHING",
    )?;
    for refused in messages {
        insert.execute(params![
            refused.id.as_str(),
            refused.account.0,
            refused.generation.replay,
            refused.generation.retry,
            refused.body_hash.as_bytes(),
            now.0,
            refused.cause.class().as_str(),
            refused.cause.reason.as_str(),
            refused.cause.detail,
        ])?;
    }
    insert_events(connection, messages.iter().map(|refused| (refused.account, &refused.event)))
}

/// Notes what happened off the straight way.
pub(super) fn note_incidents(
    connection: &Connection,
    incidents: &[(RequestSeq, IncidentKind, String)],
    now: Timestamp,
) -> Result<()> {
    let insert = "INSERT INTO incidents (request, at, what, detail) VALUES (?1, ?2, ?3, ?4)";
    let mut insert = prepare(connection, "insert rows", insert)?;
    incidents
        .iter()
        .try_for_each(|(request, what, detail)| insert.execute((request.0, now.0, what.as_str(), detail)).map(drop))
}
