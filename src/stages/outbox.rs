//! The stage that tells producers: publishes the events of the outbox, and deletes what has its publisher confirm.
//! An event may be published twice, under the same id; it is never lost.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::{Outgoing, Publisher};
use crate::journal::{AccountId, JournalError, Lease, Outbox, OutboxRow};
use crate::model::trace::{TRACEPARENT, TRACESTATE};
use crate::model::{HeaderValue, Headers, Heartbeat, Message, Properties, Timestamp, TraceContext};
use crate::observe::traces::{Failure, SpanContext, Tracer};
use crate::policy::retry_schedule::Backoff;

/// Events read and published together at most.
const BATCH: u32 = 512;
/// How often it is looked for events that nobody announced: those of an instance that is gone.
const LOOK: Duration = Duration::from_secs(1);
/// Pauses between tries while the broker is out of reach.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

pub struct OutboxStage {
    pub journal: Arc<dyn Outbox>,
    pub publisher: Arc<dyn Publisher>,
    /// The exchange for events.
    pub exchange: String,
    /// The accounts whose lanes are here. Each event is sent by one instance, but for the moment of a take-over.
    pub accounts: Vec<(AccountId, watch::Receiver<Option<Lease>>)>,
    /// Says that there is something.
    pub wake: Arc<Notify>,
    pub beat: Heartbeat,
    /// Who follows what events are about.
    pub tracer: Tracer,
}

impl OutboxStage {
    /// Publishes until cancelled, then once more what is there.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut pause = Backoff::between(PAUSE.0, PAUSE.1);
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
                        () = tokio::time::sleep(LOOK) => {}
                    }
                }
                Sent::NotAll if cancel.is_cancelled() => return Ok(()),
                Sent::NotAll => tokio::time::sleep(pause.next_wait()).await,
            }
        }
    }

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
        if let Some(error) = failure {
            warn!(%error, events.waiting = rows.len() - sent.len(), "events have no publisher confirm; they stay in the outbox");
        }
        if !sent.is_empty() {
            self.journal.events_sent(sent).await?;
        }
        Ok(if all { Sent::All } else { Sent::NotAll })
    }

    /// To the events exchange, and to the producer's own queue if it named one; each with its span, where somebody follows
    /// what it is about.
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

enum Sent {
    All,
    NotAll,
    Nothing,
}

/// What an event's own document says of its trace.
#[derive(Default, Deserialize)]
struct Traced {
    traceparent: Option<String>,
    tracestate: Option<String>,
}

fn trace(row: &OutboxRow) -> Option<TraceContext> {
    let Traced { traceparent, tracestate } = serde_json::from_str(&row.body).unwrap_or_default();
    TraceContext::new(&traceparent?, tracestate.as_deref())
}

/// Structured mode of CloudEvents, with the attributes as headers too, as its AMQP binding names them. A trace also as W3C
/// names it, which is where tracing libraries look: there the span of the publish takes its place, where that is followed.
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
