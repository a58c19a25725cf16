//! The stage that publishes the events of the outbox, and deletes those that have their publisher confirm. An event may be
//! published twice, under the same id; it is never lost. A reply is a copy for the queue that its producer named: it is given
//! up after `request.reply_timeout`, since the event stays on the events exchange.
//!
//! Each target, a kind of event or a queue for replies, has one batch on its way at a time, and growing pauses of its own
//! after a refusal. So a queue that refuses, or never answers, holds up nothing but what is for it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::{Outgoing, PublishError, Publisher};
use crate::journal::{AccountId, JournalError, Lease, Outbox, OutboxRow};
use crate::model::trace::{TRACEPARENT, TRACESTATE};
use crate::model::{HeaderValue, Headers, Heartbeat, Message, Properties, Timestamp, TraceContext};
use crate::observe::traces::{Failure, SpanContext, Tracer};
use crate::policy::replies::ReplyRules;
use crate::stages::outbox::progress::{BATCH, Batch, CHECK, LAST_REPLIES, Progress, Target};

mod progress;

pub struct OutboxStage {
    pub journal: Arc<dyn Outbox>,
    pub publisher: Arc<dyn Publisher>,
    pub exchange: String,
    pub replies: Arc<ReplyRules>,
    /// The accounts of this instance's lanes. Each event is sent by one instance, except at the moment of a take-over.
    pub accounts: Vec<(AccountId, watch::Receiver<Option<Lease>>)>,
    pub wake: Arc<Notify>,
    pub beat: Heartbeat,
    pub tracer: Tracer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Read a page, and began to publish what could be.
    Read,
    /// Nothing is to do before a batch has ended, an event comes, or a pause ends.
    Idle,
}

impl OutboxStage {
    /// Publishes until cancelled, and then until the outbox has nothing that is taken, or the broker fails.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut progress = Progress::default();
        let mut stopping_since: Option<Instant> = None;
        loop {
            self.beat.beat();
            if self.step(&mut progress).await? == Step::Read {
                continue;
            }
            let mut until = progress.due_at();
            if cancel.is_cancelled() {
                let Some(since) = stopping_since else {
                    stopping_since = Some(Instant::now());
                    progress.whole_pass_at = Instant::now();
                    continue;
                };
                if !progress.is_worth_waiting_for(since) {
                    return Ok(());
                }
                // After that only batches on their way are waited for.
                if since.elapsed() < LAST_REPLIES {
                    until = until.min(since + LAST_REPLIES);
                }
            }
            let ended = tokio::select! {
                biased;
                ended = progress.publishing.next(), if !progress.publishing.is_empty() => ended,
                () = self.wake.notified() => { progress.has_news = true; None }
                () = cancel.cancelled(), if stopping_since.is_none() => None,
                () = tokio::time::sleep_until(until.min(Instant::now() + CHECK)) => None,
            };
            if let Some(batch) = ended {
                self.finish(&mut progress, batch).await?;
            }
        }
    }

    /// Finishes what has ended, reads a page of the outbox if that is due, and starts to publish what can be.
    async fn step(&self, progress: &mut Progress) -> Result<Step, JournalError> {
        while let Some(Some(batch)) = progress.publishing.next().now_or_never() {
            self.finish(progress, batch).await?;
        }
        let now = Instant::now();
        let Some(mut pass) = progress.next_pass(now) else { return Ok(Step::Idle) };
        let mine: Vec<_> =
            self.accounts.iter().filter(|(_, lease)| lease.borrow().is_some()).map(|(account, _)| *account).collect();
        let rows = self.journal.events(&mine, pass.after, BATCH).await?;
        let is_last = rows.len() < BATCH as usize;
        let mut starting: BTreeMap<Target, Vec<OutboxRow>> = BTreeMap::new();
        let (mut given_up, mut dropped) = (0_usize, Vec::new());
        for row in rows {
            pass.after = row.id;
            let target = Target::of(&row);
            if self.is_denied(progress, &target) {
                dropped.push(row.id);
            } else if self.is_given_up(progress, &target, now) {
                given_up += 1;
                dropped.push(row.id);
            } else if !progress.pauses.may_try(&target, now) {
                pass.paused += 1;
            } else if progress.may_start(&target, &starting) {
                starting.entry(target).or_default().push(row);
            } else {
                pass.first_passed_over.get_or_insert(row.id);
            }
        }
        for (target, rows) in starting {
            progress.busy.insert(target.clone());
            progress.publishing.push(self.publish(target, &rows));
        }
        if given_up > 0 {
            warn!(
                replies = given_up,
                "replies given up: their queues have taken none for request.reply_timeout; the events are on the exchange"
            );
        }
        if !dropped.is_empty() {
            self.journal.events_sent(dropped).await?;
        }
        progress.end_page(pass, is_last, now);
        Ok(Step::Read)
    }

    fn is_denied(&self, progress: &mut Progress, target: &Target) -> bool {
        let Target::Queue(queue) = target else { return false };
        let denial = self.replies.denial(queue);
        if let Some(denial) = denial.filter(|denial| progress.logged.insert(*denial)) {
            warn!(queue, why = %denial, "a message asks for a reply that is not allowed: it gets none; logged once for each reason");
        }
        denial.is_some()
    }

    /// Returns whether a reply is for a queue that has refused for so long. One is still tried after each pause.
    fn is_given_up(&self, progress: &Progress, target: &Target, now: Instant) -> bool {
        let is_reply = matches!(target, Target::Queue(_));
        let is_refused = progress.pauses.refused_for(target, now) >= self.replies.give_up_after;
        is_reply && is_refused && !progress.pauses.may_try(target, now)
    }

    fn publish(&self, target: Target, rows: &[OutboxRow]) -> Pin<Box<dyn Future<Output = Batch> + Send>> {
        let (outgoing, spans): (Vec<_>, Vec<_>) = rows.iter().map(|row| self.outgoing(row)).unzip();
        let rows = rows.iter().map(|row| row.id).collect();
        let (publisher, tracer) = (Arc::clone(&self.publisher), self.tracer.clone());
        Box::pin(async move {
            let began = Instant::now();
            let results = publisher.publish_unrouted(&outgoing).await;
            for ((outgoing, span), result) in outgoing.iter().zip(spans).zip(&results) {
                let Some(span) = span else { continue };
                let failure = result.as_ref().err().map(|error| Failure::unconfirmed(error.to_string()));
                tracer.record(span.took(began.elapsed(), outgoing.work(), failure));
            }
            Batch { target, rows, results }
        })
    }

    /// Deletes the rows that are confirmed. After a failure the others wait: for the broker, or for their target.
    async fn finish(&self, progress: &mut Progress, batch: Batch) -> Result<(), JournalError> {
        let Batch { target, rows, results } = batch;
        let now = Instant::now();
        progress.busy.remove(&target);
        progress.has_news = true;
        let sent: Vec<_> =
            rows.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(row, _)| *row).collect();
        let waiting = rows.len() - sent.len();
        match results.into_iter().find_map(Result::err) {
            None => {
                progress.pauses.accepted(&target);
                progress.lengthen(&target, rows.len());
                progress.outage.reset();
            }
            // The broker is away for all targets. Why nothing is published before this journal serves the queue, the claim says.
            Some(error @ (PublishError::NotConnected | PublishError::NotServing)) => {
                if matches!(error, PublishError::NotConnected) {
                    warn!(%error, events.waiting = waiting, "events have no publisher confirm; they stay in the outbox");
                }
                if progress.resumes_at <= now {
                    progress.resumes_at = now + progress.outage.next_wait();
                }
                progress.whole_pass_at = progress.resumes_at;
            }
            Some(
                error @ (PublishError::Timeout
                | PublishError::Returned { .. }
                | PublishError::Refused { .. }
                | PublishError::Channel(_)),
            ) => {
                let wait = progress.pauses.refused(&target, now);
                if matches!(error, PublishError::Timeout | PublishError::Channel(_)) {
                    progress.shorten(&target, rows.len());
                }
                progress.whole_pass_at = progress.whole_pass_at.min(now + wait);
                warn!(%error, events.waiting = waiting, retry_in_ms = wait.as_millis(), "events have no publisher confirm; they stay in the outbox");
            }
        }
        if !sent.is_empty() {
            self.journal.events_sent(sent).await?;
        }
        Ok(())
    }

    /// Returns the message of a row, with its span where a trace is recorded.
    fn outgoing(&self, row: &OutboxRow) -> (Outgoing, Option<SpanContext>) {
        let trace = trace(row);
        let span = trace.as_ref().and_then(|trace| self.tracer.within(trace));
        let mut message = message(row, trace.as_ref());
        if let Some(publish) = span.as_ref().and_then(SpanContext::outgoing) {
            message.headers.insert(TRACEPARENT.to_owned(), publish.parent().into());
        }
        let (exchange, routing_key) = match Target::of(row) {
            Target::Kind(kind) => (self.exchange.clone(), kind),
            Target::Queue(queue) => (String::new(), queue),
        };
        (Outgoing { exchange, routing_key, message }, span)
    }
}

/// The trace fields of an event's document.
#[derive(Default, Deserialize)]
struct TraceFields {
    traceparent: Option<String>,
    tracestate: Option<String>,
}

fn trace(row: &OutboxRow) -> Option<TraceContext> {
    let TraceFields { traceparent, tracestate } = serde_json::from_str(&row.body).unwrap_or_default();
    TraceContext::new(&traceparent?, tracestate.as_deref())
}

/// Returns a CloudEvent in structured mode, with its attributes as headers too, named as in the AMQP binding. A trace is also in
/// the W3C headers, which tracing libraries read; there the span of the publish replaces it where that is recorded.
fn message(row: &OutboxRow, trace: Option<&TraceContext>) -> Message {
    let kind = format!("io.chainwriter.request.{}.v1", row.kind);
    let header = |name: &str, value: &str| (format!("cloudEvents:{name}"), HeaderValue::from(value));
    let mut headers = Headers::from([header("id", &row.event_id), header("type", &kind), header("specversion", "1.0")]);
    let parent = trace.map(|trace| (TRACEPARENT, trace.parent()));
    let state = trace.and_then(|trace| Some((TRACESTATE, trace.state()?)));
    for (name, value) in parent.into_iter().chain(state) {
        headers.extend([header(name, value), (name.to_owned(), value.into())]);
    }
    Message {
        body: row.body.clone().into_bytes().into(),
        properties: Properties {
            content_type: Some("application/cloudevents+json; charset=utf-8".to_owned()),
            message_id: Some(row.event_id.clone()),
            correlation_id: row.reply.correlation_id.clone(),
            timestamp: u64::try_from(Timestamp::now().0 / 1000).ok(),
            kind: Some(kind.clone()),
            app_id: Some("chainwriter".to_owned()),
            ..Properties::default()
        },
        headers,
        ..Message::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::contract::{Set, event, refused, set};
    use crate::model::{Event, EventKind};
    use crate::policy::replies::{Allowed, tests::rules};
    use crate::simulation::fakes::{FakePublisher, journal};
    use crate::stages::outbox::progress::LONGEST_CHECK;

    struct Bench {
        stage: OutboxStage,
        lease: watch::Sender<Option<Lease>>,
        publisher: Arc<FakePublisher>,
        set: Set,
        progress: Progress,
    }

    impl Bench {
        async fn new() -> Self {
            let journal = journal();
            let set = set(journal.clone(), &["a", "b"]).await;
            let (lease, publisher) = (watch::Sender::new(Some(set.lease.clone())), Arc::new(FakePublisher::default()));
            let stage = OutboxStage {
                journal,
                publisher: publisher.clone(),
                exchange: "q.events".to_owned(),
                replies: Arc::new(rules()),
                accounts: vec![(set.account, lease.subscribe())],
                wake: Arc::default(),
                beat: Heartbeat::default(),
                tracer: Tracer::default(),
            };
            Self { stage, lease, publisher, set, progress: Progress::default() }
        }

        /// The stage with the events of two final requests.
        async fn with_two() -> Self {
            let bench = Self::new().await;
            bench.set.write_to_the_end(0, 0, "a").await;
            bench.set.write_to_the_end(1, 1, "b").await;
            bench
        }

        /// Stores an event with a reply for this queue.
        async fn asks_for_reply(&self, id: &str, queue: &str) {
            let message = refused(self.set.account, id);
            let event = Event { reply_to: Some(queue.to_owned()), ..event(id) };
            let message = crate::journal::RefusedMessage { event, ..message };
            self.set.journal.record_refused(vec![message]).await.unwrap();
        }

        async fn happens(&self, id: &str, kind: EventKind) {
            let message = refused(self.set.account, id);
            let message = crate::journal::RefusedMessage { event: Event { kind, ..event(id) }, ..message };
            self.set.journal.record_refused(vec![message]).await.unwrap();
        }

        async fn waiting(&self) -> usize {
            self.set.journal.events(&[self.set.account], 0, 10_000).await.unwrap().len()
        }

        /// Runs until nothing is to do at this moment.
        async fn settle_down(&mut self) {
            loop {
                let step = self.stage.step(&mut self.progress).await.unwrap();
                if step == Step::Idle && self.progress.publishing.is_empty() && !self.progress.has_news {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }

        fn sent_to(&self, key: &str) -> usize {
            self.publisher.routing_keys().iter().filter(|sent| *sent == key).count()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn events_leave_the_outbox_once_they_are_confirmed() {
        let mut bench = Bench::with_two().await;
        bench.settle_down().await;
        assert_eq!((bench.publisher.routing_keys().len(), bench.waiting().await), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_without_a_confirm_stays() {
        let mut bench = Bench::with_two().await;
        bench.publisher.fail_next(PublishError::Timeout);
        bench.settle_down().await;
        assert_eq!((bench.publisher.routing_keys().len(), bench.waiting().await), (1, 1));
        tokio::time::advance(CHECK).await;
        bench.settle_down().await;
        assert_eq!(bench.waiting().await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_without_confirms_in_time_is_followed_by_shorter_ones() {
        let mut bench = Bench::new().await;
        let kind = Target::Kind("dead".to_owned());
        for number in 0..40 {
            bench.happens(&format!("r-{number}"), EventKind::Dead).await;
        }
        bench.publisher.fail_next(PublishError::Timeout);
        bench.settle_down().await;
        assert_eq!((bench.waiting().await, bench.progress.most_at_once(&kind)), (1, 20));
        for number in 40..100 {
            bench.happens(&format!("r-{number}"), EventKind::Dead).await;
        }
        tokio::time::advance(CHECK).await;
        bench.settle_down().await;
        // One, twenty and forty.
        assert_eq!((bench.waiting().await, bench.progress.most_at_once(&kind)), (0, 80));
    }

    #[tokio::test(start_paused = true)]
    async fn events_of_an_account_that_another_instance_owns_are_left_to_it() {
        let mut bench = Bench::with_two().await;
        bench.lease.send_replace(None);
        bench.settle_down().await;
        assert_eq!((bench.publisher.routing_keys().len(), bench.waiting().await), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_goes_to_its_queue_beside_the_event() {
        let mut bench = Bench::new().await;
        bench.asks_for_reply("a", "answers").await;
        bench.settle_down().await;
        assert_eq!((bench.sent_to("answers"), bench.sent_to("dead"), bench.waiting().await), (1, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_refuses_holds_up_nothing_else_and_is_given_up() {
        let mut bench = Bench::new().await;
        bench.publisher.refuse("full");
        // More than one page.
        for number in 0..2 * BATCH {
            bench.asks_for_reply(&format!("full-{number}"), "full").await;
        }
        bench.asks_for_reply("last", "answers").await;
        bench.settle_down().await;
        let events = 2 * BATCH as usize + 1;
        assert_eq!((bench.sent_to("dead"), bench.sent_to("answers")), (events, 1), "none of them waits");
        assert_eq!(bench.waiting().await, events - 1);
        let mut pauses = 0;
        while bench.waiting().await > 0 {
            assert!(
                bench.progress.pauses.refused_for(&Target::Queue("full".to_owned()), Instant::now())
                    < 2 * rules().give_up_after
            );
            tokio::time::advance(CHECK).await;
            bench.settle_down().await;
            pauses += 1;
        }
        assert!(pauses >= 60, "it was tried for a minute");
        assert_eq!(bench.sent_to("dead"), events, "each event once");
        assert!(bench.publisher.tries_of("full") < 20 * BATCH as usize, "in growing pauses");
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_of_one_kind_that_refuses_holds_up_no_other_kind_and_loses_nothing() {
        let mut bench = Bench::with_two().await;
        bench.asks_for_reply("c", "answers").await;
        bench.happens("d", EventKind::Final).await;
        bench.publisher.refuse("dead");
        bench.settle_down().await;
        assert_eq!((bench.sent_to("final"), bench.sent_to("answers"), bench.waiting().await), (1, 1, 3));
        tokio::time::advance(10 * rules().give_up_after).await;
        bench.settle_down().await;
        assert_eq!(bench.waiting().await, 3, "an event is never given up");
        bench.publisher.take_again("dead");
        tokio::time::advance(2 * LONGEST_CHECK).await;
        bench.settle_down().await;
        assert_eq!((bench.sent_to("dead"), bench.waiting().await), (3, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn replies_that_are_not_allowed_are_dropped_and_their_events_are_not() {
        let mut bench = Bench::new().await;
        for (number, queue) in ["q", "q.dead", "q.wait.5s", "q.journal"].into_iter().enumerate() {
            bench.asks_for_reply(&number.to_string(), queue).await;
        }
        bench.settle_down().await;
        assert_eq!((bench.publisher.routing_keys(), bench.waiting().await), (vec!["dead".to_owned(); 4], 0));
        bench.stage.replies = Arc::new(ReplyRules { allowed: Allowed::None, ..rules() });
        bench.asks_for_reply("x", "answers").await;
        bench.progress.has_news = true;
        bench.settle_down().await;
        assert_eq!((bench.sent_to("answers"), bench.sent_to("dead"), bench.waiting().await), (0, 5, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_stage_empties_the_outbox_and_gives_up_on_a_broker_that_is_away() {
        for (is_away, left) in [(false, 0), (true, 2)] {
            let bench = Bench::with_two().await;
            for _ in 0..usize::from(is_away) * 2 {
                bench.publisher.fail_next(PublishError::NotConnected);
            }
            let cancel = CancellationToken::new();
            cancel.cancel();
            let Bench { stage, set, .. } = bench;
            stage.run(cancel).await.unwrap();
            assert_eq!(set.journal.events(&[set.account], 0, 10).await.unwrap().len(), left);
        }
    }
}
