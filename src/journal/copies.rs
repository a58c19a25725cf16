//! Messages that go to the broker instead of a request's own delivery: copies that need a publisher confirm, parked copies, and
//! messages that were no requests.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::journal::columns::{Columns, corrupt, fixed, number, optional_number, text, word};
use crate::journal::database::{Rows, Statements, values};
use crate::journal::error::{JournalError, Result};
use crate::journal::ordering::{lock_keys, lock_turns, release};
use crate::journal::outbox::insert_events;
use crate::journal::passages::NOT_BEFORE_A_PASSAGE;
use crate::journal::requests::{generation, message, request_id, seq};
use crate::journal::row_numbers::{AccountId, RequestSeq};
use crate::journal::states::{Change, which};
use crate::model::request::Observation;
use crate::model::{
    BodyHash, Cause, Event, FailureClass, Generation, Message, Reason, RequestId, RequestState, Timestamp, TxHash,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind {
    Retry,
    DeadLetter,
}

impl CopyKind {
    const ALL: [Self; 2] = [Self::Retry, Self::DeadLetter];

    /// Returns the state of a request whose copy of this kind has no publisher confirm yet.
    pub fn pending(self) -> RequestState {
        match self {
            Self::Retry => RequestState::RetryPending,
            Self::DeadLetter => RequestState::DeadPending,
        }
    }

    fn is_pending(state: RequestState) -> bool {
        Self::ALL.into_iter().any(|kind| kind.pending() == state)
    }
}

/// A copy that has to reach the broker before its request is settled.
#[derive(Debug, Clone)]
pub struct UnconfirmedCopy {
    pub request: RequestSeq,
    pub id: RequestId,
    pub kind: CopyKind,
    /// The copy to publish: the coming retry, or the copy that died.
    pub generation: Generation,
    pub cause: Cause,
    pub first_failed_at: Timestamp,
    pub message: Message,
    /// Every hash ever signed for the request, oldest first.
    pub tx_hashes: Vec<TxHash>,
}

#[derive(Debug, Clone)]
pub struct ConfirmedCopy {
    pub request: RequestSeq,
    pub generation: Generation,
    pub kind: CopyKind,
    /// Goes into the outbox in the same commit.
    pub event: Event,
}

/// A message that never becomes a request: it goes to the dead-letter queue.
#[derive(Debug, Clone)]
pub struct RefusedMessage {
    /// Made up for it: its own may be another message's.
    pub id: RequestId,
    /// The id that it had.
    pub named: Option<RequestId>,
    /// The lane whose outbox carries its event.
    pub account: AccountId,
    pub body_hash: BodyHash,
    pub generation: Generation,
    pub cause: Cause,
    pub event: Event,
}

/// By what a delivery is recognised that comes again after its refusal was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalKey {
    pub named: RequestId,
    pub body_hash: BodyHash,
    pub generation: Generation,
}

/// A refusal that the journal has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRefusal {
    /// Made up for the message.
    pub id: RequestId,
    pub cause: Cause,
}

/// The columns that [`unconfirmed_copy`] reads.
const COPY_COLUMNS: &str = "r.seq, r.id, r.state, r.replay, r.retry, r.body, r.body_hash, r.envelope, r.first_failed_at, \
                            r.failure_class, r.failure_reason, r.failure_detail";

pub async fn unconfirmed(
    connection: &dyn Statements,
    account: AccountId,
    after: RequestSeq,
    limit: u32,
) -> Result<Vec<UnconfirmedCopy>> {
    let select = format!(
        "SELECT {COPY_COLUMNS} FROM requests r{} WHERE r.account = $1 AND r.settled_at IS NULL AND r.state {} \
         AND r.seq > $2 ORDER BY r.seq LIMIT $3",
        connection.dialect().indexed_by("requests_unsettled"),
        which(CopyKind::is_pending)
    );
    let values = values![account.0, after.0, limit];
    with_hashes(connection, connection.rows("read the unconfirmed copies", &select, &values, unconfirmed_copy).await?)
        .await
}

pub async fn unconfirmed_of(connection: &dyn Statements, requests: &[RequestSeq]) -> Result<Vec<UnconfirmedCopy>> {
    let select = format!(
        "SELECT {COPY_COLUMNS} FROM u, requests r WHERE r.seq = u.request AND r.state {} ORDER BY u.place",
        which(CopyKind::is_pending)
    );
    let rows = Rows::of("request bigint", requests.iter().map(|request| values![request.0]));
    let copies = connection.rows_each("read unconfirmed copies", &select, &[], &rows, unconfirmed_copy).await?;
    with_hashes(connection, copies).await
}

async fn with_hashes(connection: &dyn Statements, mut copies: Vec<UnconfirmedCopy>) -> Result<Vec<UnconfirmedCopy>> {
    let requests: Vec<_> = copies.iter().map(|copy| copy.request).collect();
    let hashes = hashes_of(connection, &requests).await?;
    for copy in &mut copies {
        let of_copy = hashes.iter().filter(|(request, _)| *request == copy.request);
        copy.tx_hashes = of_copy.map(|(_, hash)| *hash).collect();
    }
    Ok(copies)
}

/// Returns every hash ever signed for these requests, oldest first.
pub async fn hashes_of(connection: &dyn Statements, requests: &[RequestSeq]) -> Result<Vec<(RequestSeq, TxHash)>> {
    let select = "SELECT t.request AS seq, s.hash FROM (SELECT account, nonce, request FROM transactions \
                  WHERE request IN (SELECT u.request FROM u) UNION ALL SELECT account, nonce, request FROM batched \
                  WHERE request IN (SELECT u.request FROM u)) t \
                  JOIN signed_transactions s ON s.account = t.account AND s.nonce = t.nonce ORDER BY s.id";
    let rows = Rows::of("request bigint", requests.iter().map(|request| values![request.0]));
    connection
        .rows_each("read the hashes of requests", select, &[], &rows, |row| {
            Ok((seq(row)?, fixed(row, "signed transaction", "hash", TxHash::from_slice)?))
        })
        .await
}

fn cause(row: &dyn Columns) -> Result<Cause> {
    let of = |name| text(row, "request", name).map(Cow::into_owned);
    let class = word(row, "request", "failure_class", FailureClass::from_word)?;
    Ok(Cause::new(Reason::stored(class, &of("failure_reason")?), of("failure_detail")?))
}

fn unconfirmed_copy(row: &dyn Columns) -> Result<UnconfirmedCopy> {
    let first_failed_at = optional_number(row, "request", "first_failed_at")?;
    let kind = |state: &str| CopyKind::ALL.into_iter().find(|kind| kind.pending().as_str() == state);
    Ok(UnconfirmedCopy {
        request: seq(row)?,
        id: request_id(row)?,
        kind: word(row, "request", "state", kind)?,
        generation: generation(row)?,
        cause: cause(row)?,
        first_failed_at: first_failed_at.map(Timestamp).ok_or_else(|| corrupt("request", "it failed at no time"))?,
        message: message(row)?,
        tx_hashes: Vec::new(),
    })
}

pub async fn confirm(connection: &dyn Statements, copies: &[ConfirmedCopy]) -> Result<()> {
    const DOING: &str = "confirm copies";
    let now = Timestamp::now();
    let dead = copies.iter().filter(|copy| copy.kind == CopyKind::DeadLetter);
    let ordered = lock_keys(connection, dead.map(|copy| copy.request)).await?;
    let lock = format!(
        "SELECT r.seq, r.account FROM u, requests r WHERE r.seq = u.request ORDER BY r.seq{}",
        connection.dialect().lock()
    );
    let requests = Rows::of("request bigint", copies.iter().map(|copy| values![copy.request.0]));
    let read = |row: &dyn Columns| Ok((seq(row)?, AccountId(number(row, "request", "account")?)));
    let accounts = connection.rows_each(DOING, &lock, &[], &requests, read).await?;
    let accounts: BTreeMap<RequestSeq, AccountId> = accounts.into_iter().collect();
    let Change { set, allowed } = Change::on(Observation::Confirmed);
    // No row is no error: the copy has come back already and was accepted, which proves that the broker had it.
    let update = format!(
        "UPDATE requests AS r SET {set}, body = NULL, envelope = NULL, \
         write_data = CASE WHEN r.state <> '{}' THEN r.write_data END FROM u \
         WHERE r.seq = u.request AND {allowed} AND r.state = u.pending AND r.replay = u.replay AND r.retry = u.retry",
        CopyKind::DeadLetter.pending()
    );
    let rows = copies.iter().map(|ConfirmedCopy { request, generation, kind, .. }| {
        values![request.0, kind.pending().as_str(), generation.replay, generation.retry]
    });
    let rows = Rows::of("request bigint, pending text, replay bigint, retry bigint", rows);
    connection.execute_each(DOING, &update, &values![now.0], &rows).await?;
    release(connection, &ordered).await?;
    let mut events = Vec::with_capacity(copies.len());
    for copy in copies {
        let missing =
            || JournalError::inconsistent(DOING, format!("there is no request with the number {}", copy.request.0));
        events.push((*accounts.get(&copy.request).ok_or_else(missing)?, &copy.event));
    }
    insert_events(connection, events).await
}

/// Requests that are being pruned are left out.
pub async fn record_parked(connection: &dyn Statements, ids: &[RequestId]) -> Result<()> {
    let insert = format!(
        "INSERT INTO incidents (request, at, what, detail) \
         SELECT r.seq, $1, 'parked', 'given back to the broker for a while' FROM u, requests r WHERE r.id = u.id{}",
        connection.dialect().keep()
    );
    let rows = Rows::of("id text", ids.iter().map(|id| values![id.as_str()]));
    connection.execute_each("record parks", &insert, &values![Timestamp::now().0], &rows).await.map(drop)
}

pub async fn record_refused(connection: &dyn Statements, messages: &[RefusedMessage]) -> Result<()> {
    // As for everything that makes requests: this is the only call that does until its transaction ends.
    lock_turns(connection).await?;
    let insert = format!(
        "INSERT INTO requests (id, refused_id, account, state, replay, retry, turn, body_hash, received_at, changed_at, \
         settled_at, first_failed_at, failure_class, failure_reason, failure_detail) \
         SELECT u.id, u.named, u.account, '{}', u.replay, u.retry, 0, u.body_hash, $1, $1, {NOT_BEFORE_A_PASSAGE}, $1, u.class, \
         u.reason, u.detail FROM u ORDER BY u.place",
        RequestState::Dead
    );
    let columns = "id text, named text, account bigint, replay bigint, retry bigint, body_hash bytea, class text, reason text, \
                   detail text";
    let rows = messages.iter().map(|RefusedMessage { id, named, account, body_hash, generation, cause, .. }| {
        let Generation { replay, retry } = *generation;
        let (class, reason) = (cause.class().as_str(), cause.reason.as_str());
        let named = named.as_ref().map(RequestId::as_str);
        values![id.as_str(), named, account.0, replay, retry, body_hash.as_bytes(), class, reason, &*cause.detail]
    });
    let values = values![Timestamp::now().0];
    connection.execute_each("store refused messages", &insert, &values, &Rows::of(columns, rows)).await?;
    insert_events(connection, messages.iter().map(|refused| (refused.account, &refused.event))).await
}

/// Returns the refusals of these, the oldest of each first; none of an id that a request has.
pub async fn refused_before(
    connection: &dyn Statements,
    keys: &[RefusalKey],
) -> Result<Vec<(RefusalKey, RecordedRefusal)>> {
    let select = "SELECT r.seq, r.id, r.refused_id, r.body_hash, r.replay, r.retry, r.failure_class, r.failure_reason, \
                  r.failure_detail FROM u, requests r WHERE r.refused_id = u.named AND r.body_hash = u.body_hash \
                  AND r.replay = u.replay AND r.retry = u.retry \
                  AND NOT EXISTS (SELECT 1 FROM requests k WHERE k.id = u.named) ORDER BY r.seq";
    let rows = keys.iter().map(|RefusalKey { named, body_hash, generation }| {
        values![named.as_str(), body_hash.as_bytes(), generation.replay, generation.retry]
    });
    let rows = Rows::of("named text, body_hash bytea, replay bigint, retry bigint", rows);
    let read = |row: &dyn Columns| {
        let named = text(row, "refusal", "refused_id")?;
        let named = RequestId::new(&named).map_err(|detail| corrupt("refusal", detail.to_string()))?;
        let body_hash = fixed(row, "refusal", "body_hash", BodyHash::from_slice)?;
        let key = RefusalKey { named, body_hash, generation: generation(row)? };
        Ok((key, RecordedRefusal { id: request_id(row)?, cause: cause(row)? }))
    };
    connection.rows_each("read refusals", select, &[], &rows, read).await
}
