//! Copies on their way to the broker, and what their publisher confirms lead to.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::broker::{AckToken, Outgoing, PublishError, Publisher};
use crate::journal::{AccountId, CopyKind, JournalError, RefusedMessage, RequestSeq, Settlements, UnconfirmedCopy};
use crate::model::event::{Outcome, Subject};
use crate::model::{BodyHash, Event, Generation, RequestId, Timestamp, TraceContext};
use crate::observe::metrics::{self, FailureEnd};
use crate::observe::traces::Followed;
use crate::policy::retry_schedule::RetryPauses;
use crate::stages::settle::inbox::{Postponed, Refused, generated_id};
use crate::stages::settle::{Settle, ack};

/// First and longest pause between tries to publish a copy.
const PUBLISH_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Rows of unfinished copies that are read at once when a lane begins.
const RESUME_PAGE: u32 = 500;

/// A message that has its publisher confirm.
pub(super) enum Published {
    Copy(Box<UnconfirmedCopy>),
    Refused(Box<Refused>),
    Postponed(Box<Postponed>),
    Park(RequestId, Generation),
    /// Given up: the broker delivers the message again, or the journal holds it no more.
    Again,
    /// Given up: an earlier try has reached the broker, and the request went on from there.
    Overtaken(RequestSeq),
}

impl Published {
    /// Returns what this is now, before another try. A confirm that never comes says nothing about the copy: it may have come
    /// back, and its request may have ended. Once the journal has forgotten that, one more copy would be a new request.
    async fn check(self, journal: &dyn Settlements) -> Self {
        match &self {
            Self::Refused(refused) if refused.token.is_over() => Self::Again,
            Self::Postponed(postponed) if postponed.token.is_over() => Self::Again,
            Self::Park(id, _) if matches!(journal.message_of(id).await, Ok(None)) => Self::Again,
            Self::Copy(copy) if !is_due(copy, journal).await => Self::Overtaken(copy.request),
            Self::Refused(_)
            | Self::Postponed(_)
            | Self::Park(..)
            | Self::Copy(_)
            | Self::Again
            | Self::Overtaken(_) => self,
        }
    }
}

/// Returns whether the copy has no publisher confirm yet. A journal that fails says nothing against it, and stops the stage by
/// itself.
async fn is_due(copy: &UnconfirmedCopy, journal: &dyn Settlements) -> bool {
    let is_it = |due: &UnconfirmedCopy| due.kind == copy.kind && due.generation == copy.generation;
    journal.unconfirmed_of(vec![copy.request]).await.map_or(true, |due| due.iter().any(is_it))
}

/// A queue that holds each item once.
pub(super) struct UniqueQueue<T> {
    order: VecDeque<T>,
    items: BTreeSet<T>,
}

impl<T> Default for UniqueQueue<T> {
    fn default() -> Self {
        Self { order: VecDeque::new(), items: BTreeSet::new() }
    }
}

impl<T: Ord + Clone> UniqueQueue<T> {
    /// Returns false if the queue holds the item already.
    pub(super) fn push(&mut self, item: T) -> bool {
        let is_new = self.items.insert(item.clone());
        if is_new {
            self.order.push_back(item);
        }
        is_new
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let item = self.order.pop_front()?;
        self.items.remove(&item);
        Some(item)
    }
}

/// A lane that gives its account up, and the copies that it waits for.
pub(super) struct Leaving {
    pub(super) copies: BTreeSet<RequestSeq>,
    pub(super) done: oneshot::Sender<()>,
}

impl Settle {
    pub(super) fn await_copy(&mut self, request: RequestSeq) {
        self.copies.push_back(request);
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

    pub(super) async fn start_publishing(&mut self) -> Result<(), JournalError> {
        let mut room = self.settings.publishes_in_flight.saturating_sub(self.publishing.len());
        while room > 0
            && let Some(refused) = self.refused.pop_front()
        {
            if refused.token.is_over() {
                continue;
            }
            room -= 1;
            let dead_letter = self.settings.dead_letter_of_refused(&refused);
            self.publish(dead_letter, Published::Refused(refused));
        }
        while room > 0
            && let Some(postponed) = self.postponed.pop_front()
        {
            if postponed.token.is_over() {
                continue;
            }
            room -= 1;
            let copy = self.settings.postponed_copy(&postponed, Timestamp::now());
            self.publish(copy, Published::Postponed(postponed));
        }
        while room > 0
            && let Some(id) = self.parks.pop()
        {
            let Some(message) = self.journal.message_of(&id).await? else { continue };
            room -= 1;
            let generation = Generation::read_from(&message.headers).unwrap_or_default();
            let parked = self.settings.to_wait_queue(message.copied(), self.settings.park_delay);
            self.publish(parked, Published::Park(id, generation));
        }
        if room > 0 && !self.copies.is_empty() {
            let next: Vec<_> = self.copies.drain(..room.min(self.copies.len())).collect();
            let copies = self.journal.unconfirmed_of(next.clone()).await?;
            for done in next.iter().filter(|seq| copies.iter().all(|copy| copy.request != **seq)) {
                self.unconfirmed.remove(done);
            }
            for copy in copies {
                let outgoing = self.settings.outgoing_copy(&copy);
                self.publish(outgoing, Published::Copy(Box::new(copy)));
            }
        }
        Ok(())
    }

    fn publish(&self, outgoing: Outgoing, published: Published) {
        let span = self.settings.span_of(&published, &outgoing);
        let (publisher, tracer) = (Arc::clone(&self.publisher), self.settings.tracer.clone());
        let journal = Arc::clone(&self.journal);
        self.publishing.push(Box::pin(async move {
            let began = Timestamp::now();
            let published = publish_until_confirmed(publisher, journal, &outgoing, published).await;
            if let Some(span) = span {
                tracer.record(span.since(began, outgoing.work(), None));
            }
            published
        }));
    }

    /// Stores all confirms that are there, then acks. Crash before the write: the copy is published once more, and intake
    /// recognises the second one. Crash after it: the delivery comes again and is stale.
    pub(super) async fn handle_confirms(&mut self, first: Published) -> Result<(), JournalError> {
        let mut copies = Vec::new();
        let mut refused = Vec::new();
        let mut postponed = 0;
        let mut parked = Vec::new();
        let mut tokens = Vec::new();
        let mut sort = |published| match published {
            Published::Copy(copy) => copies.push(*copy),
            Published::Refused(message) => refused.push(*message),
            Published::Postponed(message) => {
                let Postponed { id, until, token, .. } = *message;
                postponed += 1;
                debug!(request.id = %id, %until, "a message waits at the broker for its time");
                tokens.push(token);
            }
            Published::Park(id, generation) => parked.push((id, generation)),
            Published::Again => {}
            Published::Overtaken(request) => _ = self.unconfirmed.remove(&request),
        };
        sort(first);
        while let Some(Some(published)) = futures_util::FutureExt::now_or_never(self.publishing.next()) {
            sort(published);
        }
        self.meter.requests.add(metrics::Outcome::Postponed, postponed);
        self.meter.requests.add(metrics::Outcome::Parked, parked.len());
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
        if !refused.is_empty() {
            tokens.extend(self.record_refused(refused).await?);
        }
        if !parked.is_empty() {
            self.journal.record_parked(parked.iter().map(|(id, _)| id.clone()).collect()).await?;
            for (id, generation) in &parked {
                debug!(request.id = %id, "held for long, given back to the broker for a while");
                // A replay may have come while the copy was on its way, and be held: it is not what the copy replaces.
                tokens.extend(self.held.release_up_to(id, *generation));
            }
        }
        ack(&self.meter, tokens).await;
        Ok(())
    }

    async fn record_refused(&mut self, refused: Vec<Refused>) -> Result<Vec<AckToken>, JournalError> {
        let ids = refused.iter().map(|refused| refused.id.clone()).collect();
        let known: Vec<_> = self.journal.standings(ids).await?.into_iter().map(|(id, _)| id).collect();
        let mut records = Vec::with_capacity(refused.len());
        let mut tokens = Vec::with_capacity(refused.len());
        for Refused { id, generation, message, cause, account, taken_at, token } in refused {
            warn!(request.id = %id, %cause, "message refused, it is in the dead-letter queue");
            self.meter.requests.count(metrics::Outcome::Refused);
            self.meter.failures.count((cause.class(), FailureEnd::Dead));
            let trace = TraceContext::read_from(&message.headers);
            let followed = Followed { request: &id, generation, trace: trace.as_ref() };
            self.trace_process(followed, (taken_at, message.body.len()), metrics::Outcome::Refused, Some(&cause));
            let (reply_to, correlation_id) = (&message.properties.reply_to, &message.properties.correlation_id);
            let subject = self.settings.subject(followed, reply_to, correlation_id);
            let body_hash = BodyHash::of(&message.body);
            let subject = Subject { refused: Some(body_hash), ..subject };
            let event = Event::new(&subject, &Outcome::Dead { cause: &cause, tx_hashes: &[] }, Timestamp::now());
            // The id may stand for another message: that one keeps it.
            let id = if known.contains(&id) { generated_id() } else { id };
            records.push(RefusedMessage { id, account, body_hash, generation, cause, event });
            tokens.push(token);
        }
        self.journal.record_refused(records).await?;
        self.outbox.notify_one();
        Ok(tokens)
    }
}

/// Publishes until there is a confirm, however long that takes: no outcome is dropped because the broker is away.
async fn publish_until_confirmed(
    publisher: Arc<dyn Publisher>,
    journal: Arc<dyn Settlements>,
    outgoing: &Outgoing,
    mut published: Published,
) -> Published {
    let mut pause = RetryPauses::between(PUBLISH_PAUSE.0, PUBLISH_PAUSE.1);
    while let Err(error) = publisher.publish(outgoing).await {
        // Where the journal does not serve, the publisher has waited, and the claim says why.
        if !matches!(error, PublishError::NotServing) {
            let wait = pause.next_wait();
            let id = outgoing.message.properties.message_id.as_deref().unwrap_or_default();
            warn!(message.id = id, %error, retry_in_ms = wait.as_millis(), "a copy has no publisher confirm; its delivery stays unacked");
            tokio::time::sleep(wait).await;
        }
        published = published.check(&*journal).await;
        if matches!(published, Published::Again | Published::Overtaken(_)) {
            return published;
        }
    }
    published
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tokio::time::Instant;

    use super::*;
    use crate::journal::contract::id;
    use crate::model::Message;
    use crate::simulation::fakes::{FakePublisher, failing_journal};
    use crate::stages::claim::{ServedPublisher, Serving};

    /// However long the refusal has lasted.
    #[tokio::test(start_paused = true)]
    async fn a_copy_goes_out_as_soon_as_the_journal_serves_the_queue() {
        let serving = watch::Sender::new(Serving::Refused(String::new()));
        let publisher = Arc::<FakePublisher>::default();
        let served = ServedPublisher { publisher: publisher.clone(), serving: serving.subscribe() };
        let waiting = tokio::spawn(async move {
            let message = Message::default();
            let outgoing = Outgoing { exchange: "e".to_owned(), routing_key: "k".to_owned(), message };
            let (journal, parked) = (failing_journal("message_of"), Published::Park(id("a"), Generation::default()));
            publish_until_confirmed(Arc::new(served), journal, &outgoing, parked).await;
        });
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_secs(61)).await;
            assert_eq!(publisher.routing_keys(), Vec::<String>::new());
        }
        serving.send_replace(Serving::Serves);
        let began = Instant::now();
        waiting.await.unwrap();
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    }
}
