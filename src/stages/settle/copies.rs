//! Copies on their way to the broker, and what their publisher confirms lead to.

use std::sync::Arc;

use futures_util::stream::StreamExt;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::broker::{AckToken, Outgoing, PublishError};
use crate::journal::{AccountId, CopyKind, JournalError, RequestSeq, UnconfirmedCopy};
use crate::model::{Generation, Message, RequestId, Timestamp, TraceContext};
use crate::observe::metrics::{self, FailureEnd};
use crate::observe::traces::Followed;
use crate::stages::settle::inbox::{Postponed, Refused};
use crate::stages::settle::published::{Ended, Published};
use crate::stages::settle::stage::{Settle, Step, ack};
use crate::stages::settle::targets::{Target, Waiting};

/// Rows of unfinished copies that are read at once when a lane begins.
const RESUME_PAGE: u32 = 500;

/// Holds what has its publisher confirm, by kind.
#[derive(Default)]
struct Confirmed {
    copies: Vec<UnconfirmedCopy>,
    refused: Vec<Refused>,
    postponed: Vec<Postponed>,
    parked: Vec<(RequestId, Generation)>,
}

impl Settle {
    pub(super) fn await_copy(&mut self, request: RequestSeq) {
        if !self.targets.waits(request) {
            self.copies.push_back(request);
        }
        self.unconfirmed.insert(request);
    }

    pub(super) fn let_lanes_leave(&mut self) {
        let unconfirmed = &self.unconfirmed;
        for leaving in &mut self.leaving {
            leaving.copies.retain(|copy| unconfirmed.contains(copy));
        }
        for leaving in self.leaving.extract_if(.., |leaving| leaving.copies.is_empty()) {
            // The lane may have stopped waiting.
            let _ = leaving.done.send(());
        }
    }

    pub(super) async fn resume(&mut self, account: AccountId) -> Result<(), JournalError> {
        let mut after = RequestSeq(i64::MIN);
        loop {
            let page = self.journal.unconfirmed(account, after, RESUME_PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.request;
            page.iter().for_each(|copy| self.await_copy(copy.request));
        }
    }

    /// Starts what there is room for. What is tried again is compared with the journal first: a confirm that never comes says
    /// nothing about the copy. It may have come back, and its request may have ended; once the journal has forgotten that, one
    /// more copy would be a new request.
    pub(super) async fn start_publishing(&mut self) -> Result<(), JournalError> {
        let now = Instant::now();
        let mut copies = Vec::new();
        let mut reserved = Vec::new();
        while let Some((target, waiting)) = self.targets.next(now) {
            match waiting {
                Waiting::Copy(request) => {
                    copies.push(request);
                    reserved.push(target);
                }
                Waiting::Refused(refused) => {
                    self.targets.free_place(&target);
                    self.publish_refused(refused, now);
                }
                Waiting::Postponed(postponed) => {
                    self.targets.free_place(&target);
                    self.publish_postponed(postponed, now);
                }
            }
        }
        while self.targets.room(now) > 0
            && let Some(refused) = self.refused.pop_front()
        {
            self.publish_refused(refused, now);
        }
        while self.targets.room(now) > 0
            && let Some(postponed) = self.postponed.pop_front()
        {
            self.publish_postponed(postponed, now);
        }
        self.start_parks(now).await?;
        let room = self.targets.room(now).min(self.copies.len());
        copies.extend(self.copies.drain(..room));
        // The journal knows where a copy goes now: it may be another one since.
        reserved.iter().for_each(|target| self.targets.free_place(target));
        self.start_copies(copies, now).await
    }

    fn publish_refused(&mut self, refused: Box<Refused>, now: Instant) {
        if !refused.token.is_over() {
            let dead_letter = self.settings.dead_letter_of_refused(&refused);
            self.publish_or_wait(dead_letter, Published::Refused(refused), now);
        }
    }

    fn publish_postponed(&mut self, postponed: Box<Postponed>, now: Instant) {
        if !postponed.token.is_over() {
            let copy = self.settings.postponed_copy(&postponed, Timestamp::now());
            self.publish_or_wait(copy, Published::Postponed(postponed), now);
        }
    }

    async fn start_parks(&mut self, now: Instant) -> Result<(), JournalError> {
        let target = Target::of(&self.settings.to_wait_queue(Message::default(), self.settings.park_delay));
        while self.targets.has_place(&target, now)
            && let Some(id) = self.parks.pop()
        {
            let Some(message) = self.journal.message_of(&id).await? else { continue };
            let generation = Generation::read_from(&message.headers).unwrap_or_default();
            let parked = self
                .settings
                .to_wait_queue(message.copied(&self.settings.read_headers.borrow()), self.settings.park_delay);
            self.publish_or_wait(parked, Published::Park(id, generation), now);
        }
        Ok(())
    }

    async fn start_copies(&mut self, requests: Vec<RequestSeq>, now: Instant) -> Result<(), JournalError> {
        if requests.is_empty() {
            return Ok(());
        }
        let copies = self.journal.unconfirmed_of(requests.clone()).await?;
        for done in requests.iter().filter(|seq| copies.iter().all(|copy| copy.request != **seq)) {
            self.unconfirmed.remove(done);
        }
        for copy in copies {
            let outgoing = self.settings.outgoing_copy(&copy);
            self.publish_or_wait(outgoing, Published::Copy(Box::new(copy)), now);
        }
        Ok(())
    }

    /// Publishes if the target may have a place now.
    fn publish_or_wait(&mut self, outgoing: Outgoing, published: Published, now: Instant) {
        let target = Target::of(&outgoing);
        if self.targets.take_place(&target, now) {
            self.publish(target, outgoing, published);
        } else {
            self.wait(target, published);
        }
    }

    fn wait(&mut self, target: Target, published: Published) {
        let waiting = match published {
            Published::Copy(copy) => Waiting::Copy(copy.request),
            Published::Refused(refused) => Waiting::Refused(refused),
            Published::Postponed(postponed) => Waiting::Postponed(postponed),
            Published::Park(id, _) => {
                self.parks.push(id);
                return;
            }
        };
        self.targets.wait(target, waiting);
    }

    fn publish(&self, target: Target, outgoing: Outgoing, published: Published) {
        let span = self.settings.span_of(&published, &outgoing);
        let (publisher, tracer) = (Arc::clone(&self.publisher), self.settings.tracer.clone());
        self.publishing.push(Box::pin(async move {
            let began = Timestamp::now();
            let result = publisher.publish(&outgoing).await;
            if let Some(span) = span.filter(|_| result.is_ok()) {
                tracer.record(span.since(began, outgoing.work(), None));
            }
            Ended { target, published, result }
        }));
    }

    /// Stores all confirms that are there, then acks. Crash before the write: the copy is published once more, and intake
    /// recognises the second one. Crash after it: the delivery comes again and is stale.
    pub(super) async fn handle_confirms(&mut self, first: Ended) -> Result<Step, JournalError> {
        let mut confirmed = Confirmed::default();
        let mut next = Some(first);
        let mut step = Step::Unconfirmed;
        while let Some(ended) = next {
            if self.sort(ended, &mut confirmed) {
                step = Step::Confirmed;
            }
            next = futures_util::FutureExt::now_or_never(self.publishing.next()).flatten();
        }
        let Confirmed { copies, refused, postponed, parked } = confirmed;
        let mut tokens = Vec::new();
        self.meter.requests.add(metrics::Outcome::Postponed, postponed.len());
        self.meter.requests.add(metrics::Outcome::Parked, parked.len());
        for Postponed { id, until, token, .. } in postponed {
            debug!(request.id = %id, %until, "a message waits at the broker for its time");
            tokens.push(token);
        }
        if !copies.is_empty() {
            self.journal.confirm(copies.iter().map(|copy| self.settings.confirmed(copy)).collect()).await?;
            for copy in &copies {
                self.unconfirmed.remove(&copy.request);
                tokens.extend(match copy.kind {
                    // The retry itself may have come back already and be held: it is not what it replaces.
                    CopyKind::Retry => self.held.release_before(&copy.id, copy.generation),
                    CopyKind::DeadLetter => self.held.release_up_to(&copy.id, copy.generation),
                });
            }
            self.notify_ends();
        }
        tokens.extend(self.end_refused(refused));
        if !parked.is_empty() {
            self.journal.record_parked(parked.iter().map(|(id, _)| id.clone()).collect()).await?;
            for (id, generation) in &parked {
                debug!(request.id = %id, "held for long, given back to the broker for a while");
                // A replay may have come while the copy was on its way, and be held: it is not what the copy replaces.
                tokens.extend(self.held.release_up_to(id, *generation));
            }
        }
        ack(&self.meter, tokens).await;
        Ok(step)
    }

    /// Sorts what is confirmed, and lets all else wait. Returns whether it is confirmed.
    fn sort(&mut self, ended: Ended, confirmed: &mut Confirmed) -> bool {
        let Ended { target, published, result } = ended;
        self.targets.free_place(&target);
        let Err(error) = result else {
            self.targets.accepted(&target);
            match published {
                Published::Copy(copy) => confirmed.copies.push(*copy),
                Published::Refused(message) => confirmed.refused.push(*message),
                Published::Postponed(message) => confirmed.postponed.push(*message),
                Published::Park(id, generation) => confirmed.parked.push((id, generation)),
            }
            return true;
        };
        let now = Instant::now();
        let wait = match error {
            // The publisher has waited, and the claim says why.
            PublishError::NotServing => None,
            PublishError::NotConnected => Some(self.targets.is_away(now)),
            PublishError::Timeout
            | PublishError::Returned { .. }
            | PublishError::Refused { .. }
            | PublishError::Channel(_) => Some(self.targets.refused(&target, now)),
        };
        if let Some(wait) = wait {
            let id = published.id();
            warn!(message.id = %id, %error, retry_in_ms = wait.as_millis(), "a copy has no publisher confirm; its delivery stays unacked");
        }
        self.wait(target, published);
        false
    }

    /// Records refusals before their letters are published. Crash before the write: the delivery comes again and is judged anew.
    /// Crash after it: the delivery comes again and is refused for the same cause, whatever clock and configuration say by
    /// then, so no request is written whose letter is out.
    pub(super) async fn record_refused(&mut self, refused: &[Box<Refused>]) -> Result<(), JournalError> {
        let new = refused.iter().filter(|message| !message.is_recorded && !message.token.is_over());
        let records: Vec<_> = new.map(|message| self.settings.refusal(message)).collect();
        if !records.is_empty() {
            self.journal.record_refused(records).await?;
            self.outbox.notify_one();
        }
        Ok(())
    }

    /// Counts and logs the refused messages whose letters are at the broker. Returns their tokens.
    fn end_refused(&self, refused: Vec<Refused>) -> Vec<AckToken> {
        let end = |refused: Refused| {
            let Refused { ref message, ref cause, generation, taken_at, .. } = refused;
            let shown = refused.shown_id();
            warn!(request.id = %shown, %cause, "message refused, it is in the dead-letter queue");
            self.meter.requests.count(metrics::Outcome::Refused);
            self.meter.failures.count((cause.class(), FailureEnd::Dead));
            let trace = TraceContext::read_from(&message.headers);
            let followed = Followed { request: shown, generation, trace: trace.as_ref() };
            self.trace_process(followed, (taken_at, message.body.len()), metrics::Outcome::Refused, Some(cause));
            refused.token
        };
        refused.into_iter().map(end).collect()
    }
}
