//! Outcomes: closed nonces, decided requests, copies that need a publisher confirm, messages that were no requests.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;

use crate::journal::columns::{expect_batch, expect_rows, fixed, nonce, number};
use crate::journal::postgres::admissions::{give_turns, known_of, lock_turns};
use crate::journal::postgres::closed::Closed;
use crate::journal::postgres::connection::{Connection, Values};
use crate::journal::postgres::leases::check_lease;
use crate::journal::postgres::outbox::insert_events;
use crate::journal::postgres::rows::stored;
use crate::journal::postgres::{PostgresJournal, closed, ordering};
use crate::journal::rows::{COPY_COLUMNS, message, request_state, seq, unconfirmed_copy};
use crate::journal::{
    AccountId, ConfirmedCopy, CopyKind, Decision, EndedAgain, JournalError, Lease, RECORDED, RefusedMessage, Reorged,
    RequestSeq, Requeue, Result, Settlement, Settlements, UnconfirmedCopy, recorded_by,
};
use crate::model::request::Observation;
use crate::model::{Cause, Event, Generation, Message, RequestId, RequestState, Timestamp, TxHash};
use crate::policy::arrival::Known;

#[async_trait]
impl Settlements for PostgresJournal {
    async fn settle(&self, lease: &Lease, settlements: Vec<Settlement>) -> Result<()> {
        let ended = (lease.clone(), settlements);
        self.pool.write(ended, |connection, (lease, ended)| Box::pin(settle(connection, lease, ended))).await?;
        self.announce_work();
        Ok(())
    }

    async fn record_reorged(&self, lease: &Lease, reorged: Vec<Reorged>) -> Result<()> {
        let lost = (lease.clone(), reorged);
        self.pool
            .write(lost, |connection, (lease, lost)| Box::pin(closed::record_reorged(connection, lease, lost)))
            .await
    }

    async fn record_ended_again(&self, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()> {
        let ended = (lease.clone(), ended);
        self.pool
            .write(ended, |connection, (lease, ended)| Box::pin(closed::record_ended_again(connection, lease, ended)))
            .await
    }

    async fn unconfirmed(&self, account: AccountId, after: RequestSeq, limit: u32) -> Result<Vec<UnconfirmedCopy>> {
        self.pool
            .snapshot((account.0, after.0, i64::from(limit)), |connection, (account, after, limit)| {
                Box::pin(async move {
                    let select = format!(
                        "SELECT {COPY_COLUMNS} FROM requests WHERE account = $1 AND settled_at IS NULL \
                         AND state IN ('retry_pending', 'dead_pending') AND seq > $2 ORDER BY seq LIMIT $3"
                    );
                    unconfirmed_copies(connection, &select, &[account, after, limit]).await
                })
            })
            .await
    }

    async fn unconfirmed_of(&self, requests: Vec<RequestSeq>) -> Result<Vec<UnconfirmedCopy>> {
        let requests: Vec<_> = requests.into_iter().map(|request| request.0).collect();
        self.pool
            .snapshot(requests, |connection, requests| {
                Box::pin(async move {
                    let select = format!(
                        "SELECT {COPY_COLUMNS} FROM unnest($1::bigint[]) WITH ORDINALITY AS asked (key, place) \
                         JOIN requests ON seq = key WHERE state IN ('retry_pending', 'dead_pending') ORDER BY place"
                    );
                    unconfirmed_copies(connection, &select, &[requests]).await
                })
            })
            .await
    }

    async fn confirm(&self, copies: Vec<ConfirmedCopy>) -> Result<()> {
        self.pool.write(copies, |connection, copies| Box::pin(confirm(connection, copies))).await?;
        self.announce_work();
        Ok(())
    }

    async fn record_refused(&self, messages: Vec<RefusedMessage>) -> Result<()> {
        self.pool.write(messages, |connection, messages| Box::pin(record_refused(connection, messages))).await
    }

    async fn standings(&self, ids: Vec<RequestId>) -> Result<Vec<(RequestId, Known)>> {
        self.pool.read(ids, |connection, ids| Box::pin(known_of(connection, ids))).await
    }

    async fn message_of(&self, id: &RequestId) -> Result<Option<Message>> {
        self.pool
            .read(id.clone(), |connection, id| {
                Box::pin(async move {
                    let select = "SELECT body, body_hash, envelope FROM requests WHERE id = $1 AND body IS NOT NULL";
                    connection.row("read a message", select, &[&stored(id.as_str())], message).await
                })
            })
            .await
    }

    async fn record_parked(&self, ids: Vec<RequestId>) -> Result<()> {
        self.pool.write(ids, |connection, ids| Box::pin(record_parked(connection, ids))).await
    }
}

async fn unconfirmed_copies(connection: &Connection, select: &str, values: Values<'_>) -> Result<Vec<UnconfirmedCopy>> {
    let mut copies =
        connection.rows("read copies without a publisher confirm", select, values, unconfirmed_copy).await?;
    let requests: Vec<_> = copies.iter().map(|copy| copy.request.0).collect();
    let select = "SELECT t.request AS seq, a.hash FROM \
                  (SELECT account, nonce, request FROM transactions WHERE request = ANY($1) \
                  UNION ALL SELECT account, nonce, request FROM batched WHERE request = ANY($1)) t \
                  JOIN signed_transactions a ON a.account = t.account AND a.nonce = t.nonce ORDER BY a.id";
    let hashes = connection
        .rows("read the hashes of requests", select, &[&requests], |row| {
            Ok((seq(row)?, fixed(row, "attempt", "hash", TxHash::from_slice)?))
        })
        .await?;
    for copy in &mut copies {
        let of_copy = hashes.iter().filter(|(request, _)| *request == copy.request);
        copy.tx_hashes = of_copy.map(|(_, hash)| *hash).collect();
    }
    Ok(copies)
}

/// What is being pruned has no use for it.
async fn record_parked(connection: &Connection, ids: &[RequestId]) -> Result<()> {
    let ids: Vec<_> = ids.iter().map(|id| stored(id.as_str())).collect();
    let insert = "WITH kept AS (SELECT seq, id FROM requests WHERE id = ANY($2) FOR KEY SHARE) \
         INSERT INTO incidents (request, at, what, detail) \
         SELECT seq, $1, 'parked', 'given back to the broker for a while' \
         FROM unnest($2::text[]) AS u (key) JOIN kept ON kept.id = key";
    connection.execute("note parks", insert, &[&Timestamp::now().0, &ids]).await.map(drop)
}

/// Decisions by what they do, in their order.
#[derive(Default)]
struct Decided<'s> {
    finals: Vec<(RequestSeq, &'s Event)>,
    found: Vec<(RequestSeq, &'s Event, TxHash)>,
    failures: Vec<Failure<'s>>,
    requeued: Vec<(RequestSeq, &'s Requeue)>,
}

/// A request that fails.
struct Failure<'s> {
    request: RequestSeq,
    state: RequestState,
    cause: &'s Cause,
    next: Option<Generation>,
}

impl<'s> Decided<'s> {
    /// `states` are those before any of them.
    fn of(settlements: &'s [Settlement], states: &BTreeMap<RequestSeq, RequestState>) -> Self {
        let mut decided = Self::default();
        let mut failed = BTreeSet::new();
        for (request, decision) in settlements.iter().flat_map(Settlement::decisions) {
            let failure = |state, cause, next| Failure { request, state, cause, next };
            match decision {
                Decision::Final(event) => decided.finals.push((request, event)),
                Decision::Found { event, written_by } => decided.found.push((request, event, *written_by)),
                Decision::Requeue(why) => decided.requeued.push((request, why)),
                Decision::Retry { cause, next } => {
                    decided.failures.push(failure(RequestState::RetryPending, cause, Some(*next)));
                    failed.insert(request);
                }
                Decision::Dead { cause } => {
                    decided.failures.push(failure(RequestState::DeadPending, cause, None));
                    failed.insert(request);
                }
                // The request may have failed by itself since the wish was seen: its ruling came before this one, and
                // counts.
                Decision::Cancel { cause } => {
                    if states.get(&request) == Some(&RequestState::Accepted) && failed.insert(request) {
                        decided.failures.push(failure(RequestState::DeadPending, cause, None));
                    }
                }
            }
        }
        decided
    }
}

/// Locks in the order that all writes keep to: the account, the places in the queue, requests.
async fn settle(connection: &Connection, lease: &Lease, settlements: &[Settlement]) -> Result<()> {
    check_lease(connection, lease).await?;
    let decisions = || settlements.iter().flat_map(Settlement::decisions);
    let has_requeued = decisions().any(|(_, decision)| matches!(decision, Decision::Requeue(_)));
    let last_turn = if has_requeued { lock_turns(connection).await? } else { 0 };
    let finals = decisions().filter(|(_, decision)| matches!(decision, Decision::Final(_) | Decision::Found { .. }));
    let ended: Vec<_> = finals.map(|(request, _)| request.0).collect();
    let ordered = ordering::lock(connection, &ended).await?;
    let requests: Vec<_> = decisions().map(|(request, _)| request.0).collect();
    let states = lock_requests(connection, &requests).await?;
    let now = Timestamp::now();
    let closed: Vec<_> =
        settlements.iter().filter_map(|settled| Some((settled.request, settled.transaction.as_ref()?))).collect();
    let found = closed::close(connection, lease, &closed, "state = 'live'", now).await?;
    expect_rows("close a nonce that is not live for this request", closed.len(), found.len())?;
    expect_whole_batches(connection, lease, settlements, &found).await?;
    let Decided { finals, found, failures, requeued } = Decided::of(settlements, &states);
    record_failures(connection, lease, &failures, now).await?;
    make_final(connection, lease, &finals, now).await?;
    make_found(connection, lease, &found, now).await?;
    ordering::release(connection, &ordered).await?;
    requeue(connection, lease, &requeued, last_turn.saturating_add(1), now).await?;
    forget_wishes(connection, &requests).await?;
    let events = finals.iter().map(|(_, event)| *event).chain(found.iter().map(|(_, event, _)| *event));
    insert_events(connection, events.map(|event| (lease.account, event))).await
}

async fn expect_whole_batches(
    connection: &Connection,
    lease: &Lease,
    settlements: &[Settlement],
    closed: &[Closed],
) -> Result<()> {
    let others = |settled: &Settlement| !settled.others.is_empty();
    if !settlements.iter().any(others) && closed.iter().all(|closed| closed.others == 0) {
        return Ok(());
    }
    let nonces: Vec<_> = closed.iter().map(|closed| nonce(closed.nonce)).collect::<Result<_>>()?;
    let select =
        "SELECT nonce, request AS seq FROM batched WHERE account = $1 AND nonce = ANY($2) ORDER BY nonce, place";
    let stored = connection
        .rows("read batches", select, &[&lease.account.0, &nonces], |row| {
            Ok((number(row, "batch", "nonce")?, seq(row)?))
        })
        .await?;
    let mut batches: BTreeMap<i64, Vec<RequestSeq>> = BTreeMap::new();
    for (nonce, request) in stored {
        batches.entry(nonce).or_default().push(request);
    }
    for Settlement { transaction, others, .. } in settlements {
        let at = transaction.as_ref().map_or(Ok(-1), |transaction| nonce(transaction.nonce))?;
        let batch = batches.get(&at).map_or(&[][..], Vec::as_slice);
        expect_batch(at, batch, others.iter().map(|(request, _)| *request))?;
    }
    Ok(())
}

/// What they are, and stay until this transaction changes it.
async fn lock_requests(connection: &Connection, requests: &[i64]) -> Result<BTreeMap<RequestSeq, RequestState>> {
    let lock = "SELECT seq, state FROM requests WHERE seq = ANY($1) ORDER BY seq FOR NO KEY UPDATE";
    let states =
        connection.rows("look requests up", lock, &[&requests], |row| Ok((seq(row)?, request_state(row)?))).await?;
    Ok(states.into_iter().collect())
}

async fn make_final(
    connection: &Connection,
    lease: &Lease,
    finals: &[(RequestSeq, &Event)],
    now: Timestamp,
) -> Result<()> {
    if finals.is_empty() {
        return Ok(());
    }
    let update = "UPDATE requests r SET state = 'final', body = NULL, write_data = NULL, envelope = NULL, settled_at = $1, changed_at = $1 \
         WHERE r.seq = ANY($2) AND r.state = 'writing' AND r.account = $3 AND (EXISTS \
         (SELECT 1 FROM transactions t WHERE t.request = r.seq AND t.state = 'succeeded') OR EXISTS \
         (SELECT 1 FROM batched b JOIN transactions t ON t.account = b.account AND t.nonce = b.nonce \
         WHERE b.request = r.seq AND b.has_effect = 1 AND t.state = 'succeeded'))";
    let requests: Vec<_> = finals.iter().map(|(request, _)| request.0).collect();
    let changed = connection.execute("make requests final", update, &[&now.0, &requests, &lease.account.0]).await?;
    expect_rows("make a request final whose transaction did not succeed", finals.len(), changed)
}

/// Invariants 3 and 8, as the end of an update of `requests r`: whoever believed a request done while its bytes may land,
/// or have landed, would write it twice.
const HAS_NO_EFFECT: &str = " AND NOT EXISTS (SELECT 1 FROM transactions t WHERE t.request = r.seq AND t.state IN ('live', 'succeeded')) \
     AND NOT EXISTS (SELECT 1 FROM batched b WHERE b.request = r.seq AND b.has_effect = 1)";

async fn make_found(
    connection: &Connection,
    lease: &Lease,
    found: &[(RequestSeq, &Event, TxHash)],
    now: Timestamp,
) -> Result<()> {
    if found.is_empty() {
        return Ok(());
    }
    let update = format!(
        "UPDATE requests r SET state = 'final', body = NULL, write_data = NULL, envelope = NULL, settled_at = $1, changed_at = $1 \
         WHERE r.seq = ANY($2) AND r.state IN ('accepted', 'writing') AND r.turn > 0 AND r.account = $3{HAS_NO_EFFECT}"
    );
    let requests: Vec<_> = found.iter().map(|(request, ..)| request.0).collect();
    let changed = connection.execute("make requests final", &update, &[&now.0, &requests, &lease.account.0]).await?;
    expect_rows("make a request final that is not open, or whose own transaction may land", found.len(), changed)?;
    let noted = found.iter().map(|(request, _, written_by)| Noted {
        request: *request,
        what: RECORDED,
        detail: recorded_by(*written_by),
    });
    note_incidents(connection, &noted.collect::<Vec<_>>(), now).await
}

async fn record_failures(
    connection: &Connection,
    lease: &Lease,
    failures: &[Failure<'_>],
    now: Timestamp,
) -> Result<()> {
    if failures.is_empty() {
        return Ok(());
    }
    let update = format!(
        "UPDATE requests r SET state = u.state, failure_class = u.class, failure_reason = u.reason, \
         failure_detail = u.detail, changed_at = $1, first_failed_at = coalesce(r.first_failed_at, $1), \
         replay = coalesce(u.replay, r.replay), retry = coalesce(u.retry, r.retry) \
         FROM unnest($3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::bigint[]) \
         AS u (request, state, class, reason, detail, replay, retry) \
         WHERE r.seq = u.request AND r.account = $2 AND r.state IN ('accepted', 'writing') \
         AND (r.turn > 0 OR u.state = 'dead_pending'){HAS_NO_EFFECT}"
    );
    let requests: Vec<_> = failures.iter().map(|failure| failure.request.0).collect();
    let states: Vec<_> = failures.iter().map(|failure| failure.state.as_str()).collect();
    let classes: Vec<_> = failures.iter().map(|failure| failure.cause.class.as_str()).collect();
    let reasons: Vec<_> = failures.iter().map(|failure| stored(&failure.cause.reason)).collect();
    let details: Vec<_> = failures.iter().map(|failure| stored(&failure.cause.detail)).collect();
    let replays: Vec<_> = failures.iter().map(|failure| failure.next.map(|next| i64::from(next.replay))).collect();
    let retries: Vec<_> = failures.iter().map(|failure| failure.next.map(|next| i64::from(next.retry))).collect();
    let changed = connection
        .execute(
            "record failures",
            &update,
            &[&now.0, &lease.account.0, &requests, &states, &classes, &reasons, &details, &replays, &retries],
        )
        .await?;
    expect_rows("fail a request that is not open, or whose transaction may land", failures.len(), changed)?;
    let noted = failures.iter().map(|failure| Noted {
        request: failure.request,
        what: "failed",
        detail: failure.cause.to_string(),
    });
    note_incidents(connection, &noted.collect::<Vec<_>>(), now).await
}

/// A wish is over with its request. One that came back from the dead would need a new one.
async fn forget_wishes(connection: &Connection, requests: &[i64]) -> Result<()> {
    let delete = "DELETE FROM cancellations c USING requests r \
                  WHERE c.request = ANY($1) AND r.seq = c.request AND r.state IN ('dead_pending', 'dead', 'final')";
    connection.execute("forget wishes", delete, &[&requests]).await.map(drop)
}

async fn requeue(
    connection: &Connection,
    lease: &Lease,
    requeued: &[(RequestSeq, &Requeue)],
    first_turn: i64,
    now: Timestamp,
) -> Result<()> {
    if requeued.is_empty() {
        return Ok(());
    }
    let update = format!(
        "UPDATE requests r SET state = 'accepted', turn = $1 + u.place - 1, changed_at = $2, \
         is_alone = greatest(r.is_alone, u.isolates) \
         FROM unnest($4::bigint[], $5::bigint[]) WITH ORDINALITY AS u (request, isolates, place) \
         WHERE r.seq = u.request AND r.account = $3 AND r.state = 'writing'{HAS_NO_EFFECT}"
    );
    let requests: Vec<_> = requeued.iter().map(|(request, _)| request.0).collect();
    let isolates: Vec<_> = requeued.iter().map(|(_, why)| i64::from(why.isolates())).collect();
    let changed = connection
        .execute("queue requests again", &update, &[&first_turn, &now.0, &lease.account.0, &requests, &isolates])
        .await?;
    let doing = "queue a request again that was not signed, or whose transaction may land";
    expect_rows(doing, requeued.len(), changed)?;
    give_turns(connection, requeued.len()).await?;
    let noted =
        requeued.iter().map(|(request, why)| Noted { request: *request, what: why.word(), detail: why.detail() });
    note_incidents(connection, &noted.collect::<Vec<_>>(), now).await
}

async fn confirm(connection: &Connection, copies: &[ConfirmedCopy]) -> Result<()> {
    let now = Timestamp::now();
    let is_dead = |copy: &&ConfirmedCopy| copy.kind == CopyKind::DeadLetter;
    let ended: Vec<_> = copies.iter().filter(is_dead).map(|copy| copy.request.0).collect();
    let ordered = ordering::lock(connection, &ended).await?;
    let requests: Vec<_> = copies.iter().map(|copy| copy.request.0).collect();
    let lock = "SELECT seq, account FROM requests WHERE seq = ANY($1) ORDER BY seq FOR NO KEY UPDATE";
    let accounts = connection
        .rows("confirm copies", lock, &[&requests], |row| Ok((seq(row)?, number(row, "request", "account")?)))
        .await?;
    let accounts: BTreeMap<RequestSeq, i64> = accounts.into_iter().collect();
    // No row is no error: the copy has come back already and was accepted, which proves that the broker had it.
    let update = "UPDATE requests r SET state = u.settled, settled_at = $1, changed_at = $1, body = NULL, envelope = NULL, \
         write_data = CASE WHEN u.settled <> 'dead' THEN write_data END \
         FROM unnest($2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[]) \
         AS u (request, pending, settled, replay, retry) \
         WHERE r.seq = u.request AND r.state = u.pending AND r.replay = u.replay AND r.retry = u.retry";
    let pending: Vec<_> = copies.iter().map(|copy| copy.kind.pending().as_str()).collect();
    let settled: Vec<_> = copies.iter().map(settled_word).collect();
    let replays: Vec<_> = copies.iter().map(|copy| i64::from(copy.generation.replay)).collect();
    let retries: Vec<_> = copies.iter().map(|copy| i64::from(copy.generation.retry)).collect();
    connection.execute("confirm copies", update, &[&now.0, &requests, &pending, &settled, &replays, &retries]).await?;
    ordering::release(connection, &ordered).await?;
    let mut events = Vec::with_capacity(copies.len());
    for copy in copies {
        let account = accounts.get(&copy.request).ok_or_else(|| JournalError::Inconsistent {
            doing: "confirm copies",
            detail: format!("there is no request with the number {}", copy.request.0),
        })?;
        events.push((AccountId(*account), &copy.event));
    }
    insert_events(connection, events.into_iter()).await
}

fn settled_word(copy: &ConfirmedCopy) -> &'static str {
    copy.kind.pending().next(Observation::Confirmed).expect("what is pending can be confirmed").as_str()
}

async fn record_refused(connection: &Connection, messages: &[RefusedMessage]) -> Result<()> {
    // As for everything that makes requests: nobody else does until this transaction ends.
    lock_turns(connection).await?;
    let now = Timestamp::now();
    // A valid message may have come under this id since it was looked up: that one keeps it, the dead letter is safe.
    let insert = "INSERT INTO requests (id, account, state, replay, retry, turn, body_hash, received_at, changed_at, \
         settled_at, first_failed_at, failure_class, failure_reason, failure_detail) \
         SELECT id, account, 'dead', replay, retry, 0, body_hash, $1, $1, $1, $1, class, reason, detail \
         FROM (SELECT DISTINCT ON (id) * FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[], \
         $7::text[], $8::text[], $9::text[]) \
         WITH ORDINALITY AS u (id, account, replay, retry, body_hash, class, reason, detail, place) ORDER BY id, place) u \
         WHERE NOT EXISTS (SELECT 1 FROM requests r WHERE r.id = u.id) ORDER BY place";
    let ids: Vec<_> = messages.iter().map(|refused| stored(refused.id.as_str())).collect();
    let accounts: Vec<_> = messages.iter().map(|refused| refused.account.0).collect();
    let replays: Vec<_> = messages.iter().map(|refused| i64::from(refused.generation.replay)).collect();
    let retries: Vec<_> = messages.iter().map(|refused| i64::from(refused.generation.retry)).collect();
    let hashes: Vec<_> = messages.iter().map(|refused| refused.body_hash.as_bytes()).collect();
    let classes: Vec<_> = messages.iter().map(|refused| refused.cause.class.as_str()).collect();
    let reasons: Vec<_> = messages.iter().map(|refused| stored(&refused.cause.reason)).collect();
    let details: Vec<_> = messages.iter().map(|refused| stored(&refused.cause.detail)).collect();
    connection
        .execute(
            "store refused messages",
            insert,
            &[&now.0, &ids, &accounts, &replays, &retries, &hashes, &classes, &reasons, &details],
        )
        .await?;
    insert_events(connection, messages.iter().map(|refused| (refused.account, &refused.event))).await
}

/// What happened to a request off the straight way.
pub(super) struct Noted {
    pub(super) request: RequestSeq,
    pub(super) what: &'static str,
    pub(super) detail: String,
}

/// Notes them, in their order.
pub(super) async fn note_incidents(connection: &Connection, incidents: &[Noted], now: Timestamp) -> Result<()> {
    if incidents.is_empty() {
        return Ok(());
    }
    let insert = "INSERT INTO incidents (request, at, what, detail) SELECT request, $1, what, detail \
         FROM unnest($2::bigint[], $3::text[], $4::text[]) WITH ORDINALITY AS u (request, what, detail, place) \
         ORDER BY place";
    let requests: Vec<_> = incidents.iter().map(|noted| noted.request.0).collect();
    let what: Vec<_> = incidents.iter().map(|noted| noted.what).collect();
    let details: Vec<_> = incidents.iter().map(|noted| stored(&noted.detail)).collect();
    connection.execute("note incidents", insert, &[&now.0, &requests, &what, &details]).await.map(drop)
}
