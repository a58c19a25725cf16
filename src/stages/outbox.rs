//! The stage that publishes the events of the outbox, and deletes those that have their publisher confirm.
//! An event may be published twice, under the same id; it is never lost.

use std::sync::Arc;
use std::time::Duration;

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
use crate::policy::retry_schedule::RetryPauses;

/// Events read and published together at most.
const BATCH: u32 = 512;
/// Interval between reads without a wake-up, for the events of an instance that has ended.
const CHECK: Duration = Duration::from_secs(1);
/// First and longest pause between tries while the broker is out of reach.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

pub struct OutboxStage {
    pub journal: Arc<dyn Outbox>,
    pub publisher: Arc<dyn Publisher>,
    pub exchange: String,
    /// The accounts of this instance's lanes. Each event is sent by one instance, except at the moment of a take-over.
    pub accounts: Vec<(AccountId, watch::Receiver<Option<Lease>>)>,
    pub wake: Arc<Notify>,
    pub beat: Heartbeat,
    pub tracer: Tracer,
}

impl OutboxStage {
    /// Publishes until cancelled, and then until the outbox is empty or the broker fails.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut pause = RetryPauses::between(PAUSE.0, PAUSE.1);
        loop {
            self.beat.beat();
            match self.step().await? {
                Sent::Nothing if cancel.is_cancelled() => return Ok(()),
                Sent::All => pause.reset(),
                Sent::Nothing => {
                    tokio::select! {
                        biased;
                        () = self.wake.notified() => {}
                        () = cancel.cancelled() => {}
                        () = tokio::time::sleep(CHECK) => {}
                    }
                }
                Sent::NotAll if cancel.is_cancelled() => return Ok(()),
                Sent::NotAll => tokio::time::sleep(pause.next_wait()).await,
            }
        }
    }

    /// Publishes one batch of events, and deletes those that are confirmed.
    async fn step(&self) -> Result<Sent, JournalError> {
        let mine: Vec<_> =
            self.accounts.iter().filter(|(_, lease)| lease.borrow().is_some()).map(|(account, _)| *account).collect();
        let rows = self.journal.events(&mine, 0, BATCH).await?;
        if rows.is_empty() {
            return Ok(Sent::Nothing);
        }
        let (outgoing, spans): (Vec<_>, Vec<_>) = rows.iter().flat_map(|row| self.outgoing(row)).unzip();
        let began = Instant::now();
        let results = self.publisher.publish_unrouted(&outgoing).await;
        for ((outgoing, span), result) in outgoing.iter().zip(spans).zip(&results) {
            let Some(span) = span else { continue };
            let failure = result.as_ref().err().map(|error| Failure::unconfirmed(error.to_string()));
            self.tracer.record(span.took(began.elapsed(), outgoing.work(), failure));
        }
        let mut results = results.into_iter();
        let mut sent = Vec::with_capacity(rows.len());
        let mut failure = None;
        for row in &rows {
            let copies = 1 + usize::from(row.reply.reply_to.is_some());
            let failed = results.by_ref().take(copies).filter_map(Result::err).last();
            match failed {
                None => sent.push(row.id),
                Some(error) => failure = Some(error),
            }
        }
        let all = sent.len() == rows.len();
        // Why nothing is published before this journal serves the queue, the claim says.
        if let Some(error) = failure.filter(|error| !matches!(error, PublishError::NotServing)) {
            warn!(%error, events.waiting = rows.len() - sent.len(), "events have no publisher confirm; they stay in the outbox");
        }
        if !sent.is_empty() {
            self.journal.events_sent(sent).await?;
        }
        Ok(if all { Sent::All } else { Sent::NotAll })
    }

    /// Returns the messages of an event: for the events exchange, and for the producer's own queue if it named one. Each comes
    /// with its span where a trace is recorded.
    fn outgoing(&self, row: &OutboxRow) -> impl Iterator<Item = (Outgoing, Option<SpanContext>)> + use<> {
        let trace = trace(row);
        let message = message(row, trace.as_ref());
        let send = |exchange: &str, routing_key: &str| {
            let span = trace.as_ref().and_then(|trace| self.tracer.within(trace));
            let mut message = message.clone();
            if let Some(publish) = span.as_ref().and_then(SpanContext::outgoing) {
                message.headers.insert(TRACEPARENT.to_owned(), publish.parent().into());
            }
            (Outgoing { exchange: exchange.to_owned(), routing_key: routing_key.to_owned(), message }, span)
        };
        let reply = row.reply.reply_to.as_ref().map(|queue| send("", queue));
        std::iter::once(send(&self.exchange, &row.kind)).chain(reply)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Sent {
    All,
    NotAll,
    Nothing,
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
    use crate::journal::contract::{Set, set};
    use crate::simulation::fakes::{FakePublisher, journal};

    /// The stage with the events of two final requests.
    async fn bench() -> (OutboxStage, watch::Sender<Option<Lease>>, Arc<FakePublisher>, Set) {
        let journal = journal();
        let set = set(journal.clone(), &["a", "b"]).await;
        set.write_to_the_end(0, 0, "a").await;
        set.write_to_the_end(1, 1, "b").await;
        let (lease, publisher) = (watch::Sender::new(Some(set.lease.clone())), Arc::new(FakePublisher::default()));
        let stage = OutboxStage {
            journal,
            publisher: publisher.clone(),
            exchange: "q.events".to_owned(),
            accounts: vec![(set.account, lease.subscribe())],
            wake: Arc::default(),
            beat: Heartbeat::default(),
            tracer: Tracer::default(),
        };
        (stage, lease, publisher, set)
    }

    async fn waiting(set: &Set) -> usize {
        set.journal.events(&[set.account], 0, 10).await.unwrap().len()
    }

    #[tokio::test]
    async fn events_leave_the_outbox_once_they_are_confirmed() {
        let (stage, _lease, publisher, set) = bench().await;
        assert_eq!(stage.step().await.unwrap(), Sent::All);
        assert_eq!((publisher.routing_keys().len(), waiting(&set).await), (2, 0));
        assert_eq!(stage.step().await.unwrap(), Sent::Nothing);
    }

    #[tokio::test]
    async fn an_event_without_a_confirm_stays() {
        let (stage, _lease, publisher, set) = bench().await;
        publisher.fail_next(PublishError::Timeout);
        assert_eq!(stage.step().await.unwrap(), Sent::NotAll);
        assert_eq!((publisher.routing_keys().len(), waiting(&set).await), (1, 1));
        assert_eq!(stage.step().await.unwrap(), Sent::All);
        assert_eq!(waiting(&set).await, 0);
    }

    #[tokio::test]
    async fn events_of_an_account_that_another_instance_owns_are_left_to_it() {
        let (stage, lease, publisher, set) = bench().await;
        lease.send_replace(None);
        assert_eq!(stage.step().await.unwrap(), Sent::Nothing);
        assert_eq!((publisher.routing_keys().len(), waiting(&set).await), (0, 2));
    }

    #[tokio::test]
    async fn a_stopped_stage_empties_the_outbox_and_gives_up_on_a_broker_that_is_away() {
        for (is_away, left) in [(false, 0), (true, 2)] {
            let (stage, _lease, publisher, set) = bench().await;
            for _ in 0..usize::from(is_away) * 2 {
                publisher.fail_next(PublishError::NotConnected);
            }
            let cancel = CancellationToken::new();
            cancel.cancel();
            stage.run(cancel).await.unwrap();
            assert_eq!(waiting(&set).await, left);
        }
    }
}
