//! What a ruling leads to, and what the broker is told about it: pure, from the stage's settings.

use std::time::Duration;

use crate::broker::{Names, Outgoing};
use crate::journal::{ConfirmedCopy, CopyKind, Decision, QueuedRequest, Requeue, Settlement, UnconfirmedCopy};
use crate::model::event::{BatchPlace, Outcome, Subject};
use crate::model::message::{FailureNote, header};
use crate::model::{Cause, Event, Generation, Members, Message, Timestamp, TraceContext};
use crate::observe::traces::{Followed, Tracer};
use crate::policy::postpone::hop;
use crate::policy::retry_schedule::RetrySchedule;
use crate::stages::settle::followed::of_failed;
use crate::stages::settle::inbox::{LaneVerdict, Postponed, Refused, Ruling};

/// Small settings of the stage.
#[derive(Debug, Clone)]
pub struct SettleSettings {
    pub organisation: String,
    /// In copies: `organisation/instance`.
    pub worker: String,
    pub names: Names,
    /// When retries come back.
    pub schedule: RetrySchedule,
    /// A delivery held longer is parked.
    pub max_hold: Duration,
    pub park_delay: Duration,
    /// Delays that there are wait queues for.
    pub waits: Vec<Duration>,
    /// Copies on their way at once.
    pub publishes_in_flight: usize,
    pub tracer: Tracer,
}

impl SettleSettings {
    /// What becomes of each request, and what the journal is told of them.
    pub(super) fn decide(&self, ruling: Ruling) -> (Vec<QueuedRequest>, Settlement) {
        let Ruling { request, others, transaction, verdict, .. } = ruling;
        let count = others.len();
        let place = |index| BatchPlace::of(index, count);
        let has_nonce = transaction.is_some();
        let decision = self.decision(&request, &verdict, place(0), has_nonce);
        let of_others = others
            .iter()
            .zip(1..)
            .map(|(other, index)| (other.seq, self.decision(other, &verdict, place(index), has_nonce)));
        let decisions = Members { first: (request.seq, decision), others: of_others.collect() };
        (std::iter::once(request).chain(others).collect(), Settlement { transaction, decisions })
    }

    fn decision(
        &self,
        request: &QueuedRequest,
        verdict: &LaneVerdict,
        place: Option<BatchPlace>,
        has_nonce: bool,
    ) -> Decision {
        match verdict {
            // With a closed transaction nothing of it can land; without one it must still be waiting for its nonce.
            LaneVerdict::Cancelled(cause) if has_nonce => Decision::Dead { cause: cause.clone() },
            LaneVerdict::Cancelled(cause) => Decision::Cancel { cause: cause.clone() },
            LaneVerdict::Displaced(taken_by) => Decision::Requeue(Requeue::Displaced(*taken_by)),
            LaneVerdict::Succeeded(tx) => Decision::Final(self.event_of(request, place, &Outcome::Final(tx))),
            LaneVerdict::Found(tx) => {
                let event = self.event_of(request, None, &Outcome::Found(tx));
                Decision::Found { event, written_by: tx.tx_hash }
            }
            // Which of them was at fault shows when each is written alone.
            LaneVerdict::Failed(cause) if place.is_some() => Decision::Requeue(Requeue::Isolated(cause.clone())),
            LaneVerdict::Failed(cause) => {
                let next = request.generation.next_retry();
                let may_come_back = cause.may_pass();
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
            organisation: &self.organisation,
            request: followed.request,
            generation: followed.generation,
            batch: None,
            refused: None,
            reply_to: reply_to.as_deref(),
            correlation_id: correlation_id.as_deref(),
            trace: self.tracer.told(followed),
        }
    }

    pub(super) fn outgoing_copy(&self, copy: &UnconfirmedCopy) -> Outgoing {
        let note = FailureNote {
            cause: &copy.cause,
            first_failed_at: copy.first_failed_at,
            tx_hashes: &copy.tx_hashes,
            worker: &self.worker,
        };
        let message = copy.message.failed(copy.generation, &note);
        match copy.kind {
            CopyKind::Retry => self.to_wait_queue(message, self.delay_of(copy.generation)),
            CopyKind::DeadLetter => self.to_dead_letters(message, &copy.cause),
        }
    }

    /// The settings may allow fewer retries than when this one was decided: it still gets what it was promised.
    fn delay_of(&self, retry: Generation) -> Duration {
        self.schedule.delay_before(retry.retry).unwrap_or(self.park_delay)
    }

    pub(super) fn dead_letter_of_refused(&self, refused: &Refused) -> Outgoing {
        let note = FailureNote {
            cause: &refused.cause,
            first_failed_at: Timestamp::now(),
            tx_hashes: &[],
            worker: &self.worker,
        };
        let mut copy = refused.message.failed(refused.generation, &note);
        copy.headers.insert(header::REQUEST_ID.to_owned(), refused.id.as_str().into());
        self.to_dead_letters(copy, &refused.cause)
    }

    /// The message unchanged, on its way towards its time. Without a delay that fits it comes back a little late, never
    /// early.
    pub(super) fn postponed_copy(&self, postponed: &Postponed, now: Timestamp) -> Outgoing {
        let remaining = u64::try_from(postponed.until.0.saturating_sub(now.0)).unwrap_or(0);
        let wait = hop(Duration::from_millis(remaining), &self.waits).unwrap_or(self.park_delay);
        self.to_wait_queue(postponed.message.copied(), wait)
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
        // A retry's event names the copy that comes next; in the trace it belongs to the one that failed.
        let failed = Followed { request: &copy.id, generation: of_failed(copy), trace: trace.as_ref() };
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
