//! What a ruling leads to, and which copies and events follow from it. Pure: settings in, values out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::broker::{Names, Outgoing};
use crate::journal::{
    ConfirmedCopy, CopyKind, Decision, QueuedRequest, RefusedMessage, Requeue, Settlement, UnconfirmedCopy,
};
use crate::model::event::{BatchPlace, Outcome, Subject};
use crate::model::headers::header;
use crate::model::message::FailureNote;
use crate::model::{BodyHash, Cause, Event, Generation, Members, Message, Properties, Timestamp, TraceContext};
use crate::observe::traces::{Followed, Tracer};
use crate::policy::postpone::hop;
use crate::policy::retry_schedule::RetrySchedule;
use crate::stages::settle::inbox::{LaneVerdict, Postponed, Refused, Ruling};

/// The delays of retries, and that of each wait queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    pub schedule: RetrySchedule,
    pub waits: Vec<Duration>,
}

#[derive(Debug, Clone)]
pub struct SettleSettings {
    /// The `source` of its events.
    pub event_source: String,
    /// Named in copies: `organisation/instance`.
    pub worker: String,
    pub names: Names,
    pub schedule: RetrySchedule,
    /// Brings delays that are newer than those that it began with.
    pub newer_retries: watch::Receiver<Option<Retries>>,
    /// A delivery that is held longer is parked.
    pub max_hold: Duration,
    pub park_delay: Duration,
    /// The delays for which there are wait queues.
    pub waits: Vec<Duration>,
    /// Copies that wait for a publisher confirm at once.
    pub publishes_in_flight: usize,
    /// The producers' headers that intake reads.
    pub read_headers: watch::Receiver<BTreeSet<String>>,
    pub tracer: Tracer,
}

impl SettleSettings {
    /// Takes over delays of retries that have changed: they hold for what is decided from then on.
    pub(super) fn take_over_retries(settings: &mut Arc<Self>) {
        if !settings.newer_retries.has_changed().unwrap_or(false) {
            return;
        }
        let settings = Arc::make_mut(settings);
        if let Some(Retries { schedule, waits }) = settings.newer_retries.borrow_and_update().clone() {
            (settings.schedule, settings.waits) = (schedule, waits);
        }
    }

    /// Returns the requests of a ruling, and what the journal stores of them.
    pub(super) fn decide(&self, ruling: Ruling) -> (Members<QueuedRequest>, Settlement) {
        let Ruling { requests, transaction, verdict, .. } = ruling;
        let (others, has_nonce) = (requests.others.len(), transaction.is_some());
        let mut index = 0;
        let decisions = requests.map_ref(|request| {
            let place = BatchPlace::of(index, others);
            index += 1;
            (request.seq, self.decision(request, &verdict, place, has_nonce))
        });
        (requests, Settlement { transaction, decisions })
    }

    fn decision(
        &self,
        request: &QueuedRequest,
        verdict: &LaneVerdict,
        place: Option<BatchPlace>,
        has_nonce: bool,
    ) -> Decision {
        match verdict {
            // With its nonce closed nothing of it can land. Without a nonce it must still be in the queue.
            LaneVerdict::Cancelled(cause) if has_nonce => Decision::Dead { cause: cause.clone() },
            LaneVerdict::Cancelled(cause) => Decision::Cancel { cause: cause.clone() },
            LaneVerdict::Displaced(taken_by) => Decision::Requeue(Requeue::Displaced(*taken_by)),
            LaneVerdict::Succeeded(tx) => Decision::Final(self.event_of(request, place, &Outcome::Final(tx))),
            LaneVerdict::Found(tx) => {
                let event = self.event_of(request, None, &Outcome::Found(tx));
                Decision::Found { event, written_by: tx.tx_hash }
            }
            LaneVerdict::Failed(cause) if place.is_some() && cause.reason.is_of_size() => {
                Decision::Requeue(Requeue::Divided(cause.clone()))
            }
            // Which of the batch failed shows when each is written alone.
            LaneVerdict::Failed(cause) if place.is_some() => Decision::Requeue(Requeue::Isolated(cause.clone())),
            LaneVerdict::Failed(cause) => {
                let next = request.generation.next_retry();
                let may_come_back = cause.reason.may_pass();
                match self.schedule.delay_before(next.retry) {
                    Some(_) if may_come_back => Decision::Retry { cause: cause.clone(), next },
                    Some(_) | None => Decision::Dead { cause: cause.clone() },
                }
            }
        }
    }

    fn event_of(&self, request: &QueuedRequest, batch: Option<BatchPlace>, outcome: &Outcome<'_>) -> Event {
        let subject = self.subject(request.followed(), &request.reply.reply_to, &request.reply.correlation_id);
        Event::new(&Subject { batch, ..subject }, outcome, Timestamp::now())
    }

    pub(super) fn subject<'a>(
        &'a self,
        followed: Followed<'a>,
        reply_to: &'a Option<String>,
        correlation_id: &'a Option<String>,
    ) -> Subject<'a> {
        Subject {
            source: &self.event_source,
            request: followed.request,
            generation: followed.generation,
            batch: None,
            refused: None,
            reply_to: reply_to.as_deref(),
            correlation_id: correlation_id.as_deref(),
            trace: self.tracer.outgoing(followed),
        }
    }

    pub(super) fn outgoing_copy(&self, copy: &UnconfirmedCopy) -> Outgoing {
        let note = FailureNote {
            cause: &copy.cause,
            first_failed_at: copy.first_failed_at,
            tx_hashes: &copy.tx_hashes,
            worker: &self.worker,
        };
        let message = copy.message.failed(copy.generation, &note, &self.read_headers.borrow());
        match copy.kind {
            CopyKind::Retry => self.to_wait_queue(message, self.delay_of(copy.generation)),
            CopyKind::DeadLetter => self.to_dead_letters(message, &copy.cause),
        }
    }

    /// Returns the delay of a retry. The settings may allow fewer retries than when this one was decided: it is still made,
    /// after the park delay.
    fn delay_of(&self, retry: Generation) -> Duration {
        self.schedule.delay_before(retry.retry).unwrap_or(self.park_delay)
    }

    /// Returns what the journal keeps of a refusal, with its event.
    pub(super) fn refusal(&self, refused: &Refused) -> RefusedMessage {
        let Refused { ref message, ref cause, generation, account, .. } = *refused;
        let trace = TraceContext::read_from(&message.headers);
        let followed = Followed { request: refused.shown_id(), generation, trace: trace.as_ref() };
        let Properties { reply_to, correlation_id, .. } = &message.properties;
        let body_hash = BodyHash::of(&message.body);
        let subject = Subject { refused: Some(body_hash), ..self.subject(followed, reply_to, correlation_id) };
        let event = Event::new(&subject, &Outcome::Dead { cause, tx_hashes: &[] }, Timestamp::now());
        let (id, named, cause) = (refused.id.clone(), refused.named.clone(), cause.clone());
        RefusedMessage { id, named, account, body_hash, generation, cause, event }
    }

    pub(super) fn dead_letter_of_refused(&self, refused: &Refused) -> Outgoing {
        let note = FailureNote {
            cause: &refused.cause,
            first_failed_at: Timestamp::now(),
            tx_hashes: &[],
            worker: &self.worker,
        };
        let mut copy = refused.message.failed(refused.generation, &note, &self.read_headers.borrow());
        copy.headers.insert(header::REQUEST_ID.to_owned(), refused.id.as_str().into());
        self.to_dead_letters(copy, &refused.cause)
    }

    /// Returns the unchanged message for the wait queue that fits best. It comes back a little late rather than early.
    pub(super) fn postponed_copy(&self, postponed: &Postponed, now: Timestamp) -> Outgoing {
        let remaining = u64::try_from(postponed.until.0.saturating_sub(now.0)).unwrap_or(0);
        let wait = hop(Duration::from_millis(remaining), &self.waits).unwrap_or(self.park_delay);
        self.to_wait_queue(postponed.message.copied(&self.read_headers.borrow()), wait)
    }

    pub(super) fn to_wait_queue(&self, message: Message, delay: Duration) -> Outgoing {
        let names = &self.names;
        Outgoing { exchange: names.retry.clone(), routing_key: names.wait_queue(delay), message }
    }

    pub(super) fn to_dead_letters(&self, mut message: Message, cause: &Cause) -> Outgoing {
        message.headers.insert(header::DEAD_AT.to_owned(), Timestamp::now().to_string().into());
        Outgoing { exchange: self.names.dead.clone(), routing_key: cause.routing_key(), message }
    }

    pub(super) fn confirmed(&self, copy: &UnconfirmedCopy) -> ConfirmedCopy {
        let trace = TraceContext::read_from(&copy.message.headers);
        let properties = &copy.message.properties;
        let (reply_to, correlation_id) = (&properties.reply_to, &properties.correlation_id);
        // A retry's event names the next copy; in the trace it belongs to the copy that failed.
        let failed = Followed { request: &copy.id, generation: failed_generation(copy), trace: trace.as_ref() };
        let subject = self.subject(failed, reply_to, correlation_id);
        let subject = Subject { generation: copy.generation, ..subject };
        let (cause, tx_hashes) = (&copy.cause, copy.tx_hashes.as_slice());
        let outcome = match copy.kind {
            CopyKind::Retry => {
                let delay_ms = u64::try_from(self.delay_of(copy.generation).as_millis()).unwrap_or(u64::MAX);
                Outcome::Retry { cause, delay_ms, tx_hashes }
            }
            CopyKind::DeadLetter => Outcome::Dead { cause, tx_hashes },
        };
        let event = Event::new(&subject, &outcome, Timestamp::now());
        ConfirmedCopy { request: copy.request, generation: copy.generation, kind: copy.kind, event }
    }
}

/// Returns which copy failed: a retry is the one after it.
pub(super) fn failed_generation(copy: &UnconfirmedCopy) -> Generation {
    let Generation { replay, retry } = copy.generation;
    match copy.kind {
        CopyKind::Retry => Generation { replay, retry: retry.saturating_sub(1) },
        CopyKind::DeadLetter => copy.generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::contract::{id, set, succeeded};
    use crate::model::{Reason, RequestId, TxHash};
    use crate::simulation::fakes::{FakeSession, journal};
    use crate::stages::settle::stage::tests::settings;

    fn word(decision: &Decision) -> &'static str {
        match decision {
            Decision::Final(_) => "final",
            Decision::Found { .. } => "found",
            Decision::Retry { .. } => "retry",
            Decision::Dead { .. } => "dead",
            Decision::Cancel { .. } => "cancel",
            Decision::Requeue(Requeue::Displaced(_)) => "displaced",
            Decision::Requeue(Requeue::Divided(_)) => "divided",
            Decision::Requeue(Requeue::Isolated(_)) => "isolated",
        }
    }

    #[tokio::test]
    async fn each_verdict_leads_to_its_decision() {
        let set = set(journal(), &["a", "b"]).await;
        let closed = succeeded(set.seq(0), 0, "a").transaction;
        let tx = closed.clone().and_then(|closed| closed.included).unwrap();
        let (no, never) = (Cause::new(Reason::Reverted, "no"), Cause::new(Reason::IdConflict, "never"));
        let retry = |retry| Generation { replay: 0, retry };
        // The verdict, requests of the transaction, whether it has a nonce, the copy; tries in all are two.
        let rows = [
            (LaneVerdict::Succeeded(tx.clone()), 1, true, retry(0), "final"),
            (LaneVerdict::Succeeded(tx.clone()), 2, true, retry(0), "final"),
            (LaneVerdict::Found(tx), 1, false, retry(0), "found"),
            (LaneVerdict::Failed(no.clone()), 1, true, retry(0), "retry"),
            (LaneVerdict::Failed(no.clone()), 1, false, retry(0), "retry"),
            (LaneVerdict::Failed(no.clone()), 1, true, retry(1), "dead"),
            (LaneVerdict::Failed(never), 1, false, retry(0), "dead"),
            (LaneVerdict::Failed(no.clone()), 2, true, retry(1), "isolated"),
            (LaneVerdict::Cancelled(no.clone()), 1, false, retry(0), "cancel"),
            (LaneVerdict::Cancelled(no), 1, true, retry(0), "dead"),
            (LaneVerdict::Displaced(TxHash([9; 32])), 1, true, retry(0), "displaced"),
            (LaneVerdict::Displaced(TxHash([9; 32])), 2, true, retry(0), "displaced"),
        ];
        for (verdict, count, has_nonce, generation, expected) in rows {
            let row = format!("{verdict:?} {count} {has_nonce} {generation:?}");
            let first = QueuedRequest { generation, ..set.queued[0].clone() };
            let requests = Members { first, others: set.queued[1..count].to_vec() };
            let transaction = closed.clone().filter(|_| has_nonce);
            let ruling = Ruling { lease: set.lease.clone(), requests, transaction, verdict };
            let (requests, settlement) = settings(2).decide(ruling);
            let decisions: Vec<_> = settlement.decisions.iter().map(|(_, decision)| word(decision)).collect();
            assert_eq!(requests.count(), count, "{row}");
            assert_eq!(decisions, vec![expected; count], "{row}");
        }
    }

    #[test]
    fn a_postponed_copy_waits_in_the_queue_that_comes_closest_to_its_time() {
        let waits = [1, 10, 60].map(Duration::from_secs).to_vec();
        let settings = SettleSettings { waits, park_delay: Duration::from_secs(10), ..settings(2) };
        for (remaining, queue) in [(90, "q.wait.60s"), (60, "q.wait.60s"), (59, "q.wait.10s"), (-5, "q.wait.1s")] {
            let now = Timestamp(1_000_000);
            let (id, message) = (RequestId::clone(&id("a")), Message::default());
            let (until, token) = (Timestamp(now.0 + remaining * 1000), FakeSession::default().token("a"));
            let copy = settings.postponed_copy(&Postponed { id, message, until, token }, now);
            assert_eq!((copy.exchange.as_str(), copy.routing_key.as_str()), ("q.retry", queue), "{remaining}");
        }
    }
}
