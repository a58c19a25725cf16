//! Ends of requests: closed nonces, decided requests, and their events, in one commit.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;

use crate::journal::cancellations::forget_cancellations;
use crate::journal::columns::{Columns, expect_rows, nonce, number};
use crate::journal::copies::{
    ConfirmedCopy, RefusedMessage, UnconfirmedCopy, confirm, record_parked, record_refused, unconfirmed, unconfirmed_of,
};
use crate::journal::database::{Database, Mode, Rows, SqlJournal, Statements, values};
use crate::journal::decisions::{Decision, Requeue, Settlement, recorded_by};
use crate::journal::error::{JournalError, Result};
use crate::journal::leases::LaneWrite;
use crate::journal::nonces::{Closed, EndedAgain, Reorged};
use crate::journal::ordering::{lock_keys, lock_turns, release, take_turns};
use crate::journal::outbox::insert_events;
use crate::journal::requests::{KNOWN_COLUMNS, known, message, request_state, seq};
use crate::journal::row_numbers::{AccountId, Lease, RequestSeq};
use crate::journal::states::Change;
use crate::model::request::Observation;
use crate::model::text::counted;
use crate::model::{Cause, Event, Generation, IncidentKind, Message, RequestId, RequestState, TxHash};
use crate::policy::arrival::Known;

#[async_trait]
pub trait Settlements: Send + Sync {
    /// Stores what became of requests, with the events of those that are final, in one commit.
    async fn settle(&self, lease: &Lease, settlements: Vec<Settlement>) -> Result<()>;
    /// Records that the blocks of these are gone. What is recorded already is left as it is, without a second event.
    async fn record_reorged(&self, lease: &Lease, reorged: Vec<Reorged>) -> Result<()>;
    /// Records how nonces ended that a reorganisation had opened again. What is not open any more is left as it is.
    async fn record_ended_again(&self, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()>;
    /// Returns copies of the account without a publisher confirm, by place, behind `after`.
    async fn unconfirmed(&self, account: AccountId, after: RequestSeq, limit: u32) -> Result<Vec<UnconfirmedCopy>>;
    /// Returns the copies of these requests without a publisher confirm.
    async fn unconfirmed_of(&self, requests: Vec<RequestSeq>) -> Result<Vec<UnconfirmedCopy>>;
    /// Records publisher confirms, with the events about them. A request that has moved on already keeps its state.
    async fn confirm(&self, copies: Vec<ConfirmedCopy>) -> Result<()>;
    /// Records messages that go to the dead-letter queue without becoming requests, before they do.
    async fn record_refused(&self, messages: Vec<RefusedMessage>) -> Result<()>;
    /// Returns what the journal knows of these requests; unknown ones are left out.
    async fn standings(&self, ids: Vec<RequestId>) -> Result<Vec<(RequestId, Known)>>;
    /// Returns the message of a request, while the journal holds it.
    async fn message_of(&self, id: &RequestId) -> Result<Option<Message>>;
    /// Records that copies of these requests went to a wait queue, to be held no longer here.
    async fn record_parked(&self, ids: Vec<RequestId>) -> Result<()>;
}

#[async_trait]
impl<D: Database> Settlements for SqlJournal<D> {
    async fn settle(&self, lease: &Lease, settlements: Vec<Settlement>) -> Result<()> {
        self.lane_write(Mode::Write, lease, settlements, |write, settled| Box::pin(write.settle(settled))).await?;
        self.database.announce_work();
        Ok(())
    }

    async fn record_reorged(&self, lease: &Lease, reorged: Vec<Reorged>) -> Result<()> {
        self.lane_write(Mode::Write, lease, reorged, |write, reorged| Box::pin(write.record_reorged(reorged))).await
    }

    async fn record_ended_again(&self, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()> {
        self.lane_write(Mode::Write, lease, ended, |write, ended| Box::pin(write.record_ended_again(ended))).await
    }

    async fn unconfirmed(&self, account: AccountId, after: RequestSeq, limit: u32) -> Result<Vec<UnconfirmedCopy>> {
        self.snapshot((account, after, limit), |connection, (account, after, limit)| {
            Box::pin(unconfirmed(connection, *account, *after, *limit))
        })
        .await
    }

    async fn unconfirmed_of(&self, requests: Vec<RequestSeq>) -> Result<Vec<UnconfirmedCopy>> {
        self.snapshot(requests, |connection, requests| Box::pin(unconfirmed_of(connection, requests))).await
    }

    async fn confirm(&self, copies: Vec<ConfirmedCopy>) -> Result<()> {
        self.write(copies, |connection, copies| Box::pin(confirm(connection, copies))).await?;
        self.database.announce_work();
        Ok(())
    }

    async fn record_refused(&self, messages: Vec<RefusedMessage>) -> Result<()> {
        self.write(messages, |connection, messages| Box::pin(record_refused(connection, messages))).await
    }

    async fn standings(&self, ids: Vec<RequestId>) -> Result<Vec<(RequestId, Known)>> {
        self.read(ids, |connection, ids| {
            Box::pin(async move {
                let select = format!("SELECT {KNOWN_COLUMNS} FROM u, requests r WHERE r.id = u.id ORDER BY u.place");
                let rows = Rows::of("id text", ids.iter().map(|id| values![id.as_str()]));
                connection.rows_each("read requests", &select, &[], &rows, known).await
            })
        })
        .await
    }

    async fn message_of(&self, id: &RequestId) -> Result<Option<Message>> {
        self.read(id.clone(), |connection, id| {
            Box::pin(async move {
                let select = "SELECT body, body_hash, envelope FROM requests WHERE id = $1 AND body IS NOT NULL";
                connection.row("read a message", select, &values![id.as_str()], message).await
            })
        })
        .await
    }

    async fn record_parked(&self, ids: Vec<RequestId>) -> Result<()> {
        self.write(ids, |connection, ids| Box::pin(record_parked(connection, ids))).await
    }
}

/// Decisions, by what they do.
#[derive(Default)]
struct Decided<'s> {
    finals: Vec<(RequestSeq, &'s Event)>,
    found: Vec<(RequestSeq, &'s Event, TxHash)>,
    /// With the copy as which each is tried again.
    retries: Vec<(RequestSeq, &'s Cause, Option<Generation>)>,
    dead: Vec<(RequestSeq, &'s Cause, Option<Generation>)>,
    requeued: Vec<(RequestSeq, &'s Requeue)>,
}

impl<'s> Decided<'s> {
    /// `states` are those before any of them.
    fn of(settlements: &'s [Settlement], states: &BTreeMap<RequestSeq, RequestState>) -> Self {
        let mut decided = Self::default();
        let mut failed = BTreeSet::new();
        for (request, decision) in decisions(settlements) {
            match decision {
                Decision::Final(event) => decided.finals.push((request, event)),
                Decision::Found { event, written_by } => decided.found.push((request, event, *written_by)),
                Decision::Requeue(why) => decided.requeued.push((request, why)),
                Decision::Retry { cause, next } => {
                    decided.retries.push((request, cause, Some(*next)));
                    failed.insert(request);
                }
                Decision::Dead { cause } => {
                    decided.dead.push((request, cause, None));
                    failed.insert(request);
                }
                // The request may have failed by itself since the operator asked: its ruling came before this one, and
                // counts.
                Decision::Cancel { cause } => {
                    if states.get(&request) == Some(&RequestState::Accepted) && failed.insert(request) {
                        decided.dead.push((request, cause, None));
                    }
                }
            }
        }
        decided
    }
}

fn decisions(settlements: &[Settlement]) -> impl Iterator<Item = (RequestSeq, &Decision)> {
    settlements.iter().flat_map(|settled| settled.decisions.iter()).map(|(request, decision)| (*request, decision))
}

/// Returns the states of requests, which stay so until this transaction changes them. Where nothing is locked, only those
/// matter that an operator wants cancelled.
async fn lock_requests(
    connection: &dyn Statements,
    settlements: &[Settlement],
) -> Result<BTreeMap<RequestSeq, RequestState>> {
    let dialect = connection.dialect();
    let matters = |decision: &Decision| dialect.locks_rows() || matches!(decision, Decision::Cancel { .. });
    let requests = decisions(settlements).filter(|(_, decision)| matters(decision));
    let rows = Rows::of("request bigint", requests.map(|(request, _)| values![request.0]));
    let lock =
        format!("SELECT r.seq, r.state FROM u, requests r WHERE r.seq = u.request ORDER BY r.seq{}", dialect.lock());
    let read = |row: &dyn Columns| Ok((seq(row)?, request_state(row)?));
    Ok(connection.rows_each("read requests", &lock, &[], &rows, read).await?.into_iter().collect())
}

/// Ends an update of `requests AS r`. Invariants 3 and 8: a lane that believed a request done while its bytes may land, or
/// have landed, would write it twice.
const HAS_NO_EFFECT: &str = " AND NOT EXISTS (SELECT 1 FROM transactions t WHERE t.request = r.seq AND t.state IN ('live', 'succeeded')) \
     AND NOT EXISTS (SELECT 1 FROM batched b WHERE b.request = r.seq AND b.has_effect = 1)";

impl LaneWrite<'_> {
    /// Locks in the order that all writes keep to: the account, the places in the queue, requests.
    async fn settle(&self, settlements: &[Settlement]) -> Result<()> {
        if decisions(settlements).any(|(_, decision)| matches!(decision, Decision::Requeue(_))) {
            lock_turns(self.connection).await?;
        }
        let ends = |decision: &Decision| matches!(decision, Decision::Final(_) | Decision::Found { .. });
        let ending = decisions(settlements).filter(|(_, decision)| ends(decision)).map(|(request, _)| request);
        let ordered = lock_keys(self.connection, ending).await?;
        let states = lock_requests(self.connection, settlements).await?;
        self.close_nonces(settlements).await?;
        let Decided { finals, found, retries, dead, requeued } = Decided::of(settlements, &states);
        self.record_failures(Observation::FailedForNow, " AND r.turn > 0", &retries).await?;
        // Unlike a retry, also of requests that wait for others of their key: those may be cancelled.
        self.record_failures(Observation::FailedForGood, "", &dead).await?;
        self.make_final(&finals).await?;
        self.make_found(&found).await?;
        release(self.connection, &ordered).await?;
        self.requeue(&requeued).await?;
        forget_cancellations(self.connection, decisions(settlements).map(|(request, _)| request)).await?;
        let events = finals.iter().map(|(_, event)| *event).chain(found.iter().map(|(_, event, _)| *event));
        insert_events(self.connection, events.map(|event| (self.account, event))).await
    }

    async fn close_nonces(&self, settlements: &[Settlement]) -> Result<()> {
        let with_nonce = settlements.iter().filter_map(|settled| Some((settled, settled.transaction.as_ref()?)));
        let closed: Vec<_> =
            with_nonce.map(|(settled, transaction)| (settled.decisions.first.0, transaction)).collect();
        let found = self.close(&closed, "state = 'live'").await?;
        expect_rows("close a nonce that is not live for this request", closed.len(), found.len())?;
        self.expect_whole_batches(settlements, &found).await
    }

    /// Fails unless each nonce that is closed is decided on for all requests that it is for.
    async fn expect_whole_batches(&self, settlements: &[Settlement], closed: &[Closed]) -> Result<()> {
        let is_batch = settlements.iter().any(|settled| settled.decisions.is_batch());
        if !is_batch && closed.iter().all(|closed| closed.others == 0) {
            return Ok(());
        }
        let rows = Rows::try_of("nonce bigint", closed.iter().map(|closed| Ok(values![nonce(closed.nonce)?])))?;
        let select = "SELECT b.nonce, b.request AS seq FROM u, batched b WHERE b.account = $1 AND b.nonce = u.nonce \
                      ORDER BY b.nonce, b.place";
        let read = |row: &dyn Columns| Ok((number(row, "batch", "nonce")?, seq(row)?));
        let stored = self.connection.rows_each("read batches", select, &values![self.account.0], &rows, read).await?;
        for Settlement { transaction, decisions } in settlements {
            let at = transaction.as_ref().map_or(Ok(-1), |transaction| nonce(transaction.nonce))?;
            let batch = stored.iter().filter(|(nonce, _)| *nonce == at).map(|(_, request)| *request);
            if !batch.clone().eq(decisions.others.iter().map(|(request, _)| *request)) {
                let detail = format!(
                    "nonce {at} is for {}, and others were decided on",
                    counted(batch.count() as u64, "more request")
                );
                return Err(JournalError::inconsistent("settle a batch", detail));
            }
        }
        Ok(())
    }

    async fn make_final(&self, finals: &[(RequestSeq, &Event)]) -> Result<()> {
        let Change { set, allowed } = Change::on(Observation::Succeeded);
        let update = format!(
            "UPDATE requests AS r SET {set}, body = NULL, write_data = NULL, envelope = NULL FROM u \
             WHERE r.seq = u.request AND {allowed} AND r.account = $2 AND (EXISTS \
             (SELECT 1 FROM transactions t WHERE t.request = r.seq AND t.state = 'succeeded') OR EXISTS \
             (SELECT 1 FROM batched b JOIN transactions t ON t.account = b.account AND t.nonce = b.nonce \
             WHERE b.request = r.seq AND b.has_effect = 1 AND t.state = 'succeeded'))"
        );
        let rows = Rows::of("request bigint", finals.iter().map(|(request, _)| values![request.0]));
        let changed = self.change("make requests final", &update, &rows).await?;
        expect_rows("make a request final whose transaction did not succeed", finals.len(), changed)
    }

    async fn make_found(&self, found: &[(RequestSeq, &Event, TxHash)]) -> Result<()> {
        let Change { set, allowed } = Change::on(Observation::Found);
        let update = format!(
            "UPDATE requests AS r SET {set}, body = NULL, write_data = NULL, envelope = NULL FROM u \
             WHERE r.seq = u.request AND {allowed} AND r.turn > 0 AND r.account = $2{HAS_NO_EFFECT}"
        );
        let rows = Rows::of("request bigint", found.iter().map(|(request, ..)| values![request.0]));
        let changed = self.change("make requests final", &update, &rows).await?;
        expect_rows("make a request final that is not open, or whose own transaction may land", found.len(), changed)?;
        let incident =
            |(request, _, by): &(RequestSeq, &Event, TxHash)| (*request, IncidentKind::Recorded, recorded_by(*by));
        self.record_incidents(found.iter().map(incident)).await
    }

    async fn record_failures(
        &self,
        observation: Observation,
        condition: &str,
        failures: &[(RequestSeq, &Cause, Option<Generation>)],
    ) -> Result<()> {
        let Change { set, allowed } = Change::on(observation);
        let update = format!(
            "UPDATE requests AS r SET {set}, failure_class = u.class, failure_reason = u.reason, failure_detail = u.detail, \
             first_failed_at = coalesce(r.first_failed_at, $1), replay = coalesce(u.now_replay, r.replay), \
             retry = coalesce(u.now_retry, r.retry) FROM u \
             WHERE r.seq = u.request AND r.account = $2 AND {allowed}{condition}{HAS_NO_EFFECT}"
        );
        let rows = failures.iter().map(|(request, cause, next)| {
            let (replay, retry) = (next.map(|next| next.replay), next.map(|next| next.retry));
            values![request.0, cause.class().as_str(), cause.reason.as_str(), &*cause.detail, replay, retry]
        });
        let columns = "request bigint, class text, reason text, detail text, now_replay bigint, now_retry bigint";
        let changed = self.change("record failures", &update, &Rows::of(columns, rows)).await?;
        expect_rows("fail a request that is not open, or whose transaction may land", failures.len(), changed)?;
        let incidents = failures.iter().map(|(request, cause, _)| (*request, IncidentKind::Failed, cause.to_string()));
        self.record_incidents(incidents).await
    }

    async fn requeue(&self, requeued: &[(RequestSeq, &Requeue)]) -> Result<()> {
        let first_turn = take_turns(self.connection, requeued.len()).await?;
        let Change { set, allowed } = Change::on(Observation::Displaced);
        let update = format!(
            "UPDATE requests AS r SET {set}, turn = u.now_turn, \
             is_alone = CASE WHEN u.isolates = 1 THEN 1 ELSE r.is_alone END FROM u \
             WHERE r.seq = u.request AND r.account = $2 AND {allowed}{HAS_NO_EFFECT}"
        );
        let rows = (first_turn..).zip(requeued).map(|(turn, (request, why))| values![request.0, turn, why.isolates()]);
        let rows = Rows::of("request bigint, now_turn bigint, isolates bigint", rows);
        let changed = self.change("queue requests again", &update, &rows).await?;
        let doing = "queue a request again that was not signed, or whose transaction may land";
        expect_rows(doing, requeued.len(), changed)?;
        self.record_incidents(requeued.iter().map(|(request, why)| (*request, why.incident(), why.detail()))).await
    }
}
