//! Spans: work for a request, in a distributed trace. Stages make them with a [`Tracer`]; `exporter` sends them to
//! a collector. Nothing waits for a span, and what becomes of it changes nothing.
//!
//! Ids are derived from what a span is about, and kept nowhere: so any instance, also after a restart, puts what it does
//! into the span that another will end, and the journal needs no more than the message's own `traceparent`.
#![cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "without the exporter nothing reads the spans"))]

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use url::Url;

use crate::model::{
    BlockNumber, Generation, Nonce, Purpose, RequestId, Timestamp, TraceContext, TransactionState, TxHash,
    ids::{self, derived},
};
use crate::observe::metrics::{Outcome, SpanEnd, SpanMeter};

/// Spans that wait to be exported at most; more are dropped, and counted.
const WAITING: usize = 8192;

#[derive(Debug, Clone)]
pub struct Sampling {
    /// Distinguishes requests with the same id: the queue and its chain, say.
    pub scope: String,
    /// The share that is followed of messages without a `traceparent`: 0 to 1. The others say it themselves.
    pub share: f64,
}

#[derive(Clone)]
pub struct ExporterSettings {
    pub endpoint: Url,
    /// For one request, tries included.
    pub timeout: Duration,
    pub queue: String,
    pub organisation: String,
    pub instance: String,
}

impl std::fmt::Debug for ExporterSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a key.
        f.debug_struct("ExporterSettings").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// Makes spans. The default one makes none.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    sampling: Sampling,
    spans: mpsc::Sender<Span>,
    meter: SpanMeter,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    /// The span that it is in; none where the trace begins with it.
    pub parent: Option<ParentSpan>,
    /// Holds what vendors added to the trace.
    pub state: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParentSpan {
    pub span_id: [u8; 8],
    pub is_remote: bool,
}

#[derive(Debug, Clone)]
pub struct Span {
    pub context: SpanContext,
    pub ended: Timestamp,
    pub took: Duration,
    pub work: Work,
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone)]
pub struct Failure {
    /// One of few words.
    pub kind: String,
    pub detail: String,
}

#[derive(Debug, Clone)]
pub enum Work {
    /// All of it: from a copy's acceptance to what was decided about it.
    Process { request: RequestId, generation: Generation, bytes: usize, outcome: Outcome },
    /// A nonce: from its first signature to its end.
    Transaction {
        request: RequestId,
        chain_id: u64,
        nonce: Nonce,
        /// Everything signed for it, oldest first.
        attempts: Vec<(Timestamp, TxHash, Purpose)>,
        /// The final one, and its block.
        included: Option<(TxHash, BlockNumber)>,
        state: TransactionState,
        /// Requests that it was for besides.
        others: usize,
    },
    Call {
        method: &'static str,
        endpoint: String,
        /// The error's code, where the server answered with one.
        code: Option<i64>,
    },
    /// A message to the broker, until its publisher confirm.
    Publish {
        exchange: String,
        routing_key: String,
        message_id: Option<String>,
        /// The trace in its headers.
        creation: Option<TraceContext>,
    },
}

/// Something to work on, and the span that the work belongs to; none where no trace is recorded.
#[derive(Debug, Clone)]
pub struct Traced<T> {
    pub item: T,
    pub span: Option<SpanContext>,
}

impl<T> From<T> for Traced<T> {
    fn from(item: T) -> Self {
        Self { item, span: None }
    }
}

/// A copy of a request, as it can be followed.
#[derive(Debug, Clone, Copy)]
pub struct Followed<'a> {
    pub request: &'a RequestId,
    pub generation: Generation,
    /// The trace in the headers of its message.
    pub trace: Option<&'a TraceContext>,
}

impl Failure {
    pub fn unconfirmed(detail: String) -> Self {
        Self { kind: "unconfirmed".to_owned(), detail }
    }
}

impl Tracer {
    /// Returns a tracer that makes spans, and the channel that they come out of.
    pub fn new(sampling: Sampling, meter: SpanMeter) -> (Self, mpsc::Receiver<Span>) {
        let (spans, out) = mpsc::channel(WAITING);
        (Self(Some(Arc::new(Inner { sampling, spans, meter }))), out)
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the span of all that is done for this copy; `None` where it is not traced.
    pub fn processing(&self, Followed { request, generation, trace }: Followed<'_>) -> Option<SpanContext> {
        let Sampling { scope, share } = &self.0.as_ref()?.sampling;
        let (scope, id) = (scope.as_bytes(), request.as_str().as_bytes());
        let Generation { replay, retry } = generation;
        let span_id = || derived(&[b"process", scope, id, &replay.to_be_bytes(), &retry.to_be_bytes()]);
        match trace {
            Some(trace) => trace.is_sampled().then(|| SpanContext::within(trace, span_id())),
            None => {
                let trace_id = derived(&[b"trace", scope, id]);
                is_among(trace_id, *share).then(|| SpanContext {
                    trace_id,
                    span_id: span_id(),
                    parent: None,
                    state: None,
                })
            }
        }
    }

    /// Returns the trace for an event about this copy: the span of what was done for it, or the one that its message named.
    pub fn outgoing(&self, copy: Followed<'_>) -> Option<TraceContext> {
        let own = self.processing(copy).and_then(|context| context.outgoing());
        own.or_else(|| copy.trace.cloned())
    }

    /// Returns a span within the one that a message names; `None` where that is not traced.
    pub fn within(&self, trace: &TraceContext) -> Option<SpanContext> {
        (self.is_on() && trace.is_sampled()).then(|| SpanContext::within(trace, fresh_id()))
    }

    /// Records a JSON-RPC call that was made in this span. The failure: a word for it, the error's code where the server
    /// answered with one, and the text for a person.
    pub fn record_call(
        &self,
        within: &SpanContext,
        (method, endpoint): (&'static str, &str),
        took: Duration,
        failure: Option<(&'static str, Option<i64>, String)>,
    ) {
        let code = failure.as_ref().and_then(|(_, code, _)| *code);
        let failure = failure.map(|(word, code, detail)| Failure {
            kind: code.map_or_else(|| word.to_owned(), |code| code.to_string()),
            detail,
        });
        self.record(within.child().took(took, Work::Call { method, endpoint: endpoint.to_owned(), code }, failure));
    }

    pub fn record(&self, span: Span) {
        if let Some(Inner { spans, meter, .. }) = self.0.as_deref()
            && spans.try_send(span).is_err()
        {
            meter.spans.count(SpanEnd::Dropped);
        }
    }
}

impl SpanContext {
    fn within(trace: &TraceContext, span_id: [u8; 8]) -> Self {
        Self {
            trace_id: trace.trace_id(),
            span_id,
            parent: Some(ParentSpan { span_id: trace.span_id(), is_remote: true }),
            state: trace.state().map(Into::into),
        }
    }

    pub fn child(&self) -> Self {
        self.with_child(fresh_id())
    }

    /// Returns the span within this one for what happens at a nonce.
    pub fn of_nonce(&self, nonce: Nonce) -> Self {
        self.with_child(derived(&[b"nonce", &self.span_id, &nonce.0.to_be_bytes()]))
    }

    fn with_child(&self, span_id: [u8; 8]) -> Self {
        let parent = Some(ParentSpan { span_id: self.span_id, is_remote: false });
        Self { trace_id: self.trace_id, span_id, parent, state: self.state.clone() }
    }

    /// Returns the context that messages carry.
    pub fn outgoing(&self) -> Option<TraceContext> {
        TraceContext::of_span(self.trace_id, self.span_id, self.state.as_deref())
    }

    /// Returns the span itself, which took from then until now.
    pub fn since(self, began: Timestamp, work: Work, failure: Option<Failure>) -> Span {
        Span { context: self, ended: Timestamp::now(), took: began.age(), work, failure }
    }

    /// Returns the same, by the monotonic clock.
    pub fn took(self, took: Duration, work: Work, failure: Option<Failure>) -> Span {
        Span { context: self, ended: Timestamp::now(), took, work, failure }
    }
}

/// Returns whether a trace of this id is among this share of all: the same in every instance.
fn is_among(trace_id: [u8; 16], share: f64) -> bool {
    let [.., a, b, c, d] = trace_id;
    f64::from(u32::from_be_bytes([a, b, c, d])) < share * (f64::from(u32::MAX) + 1.0)
}

fn fresh_id() -> [u8; 8] {
    derived(&[b"span", ids::unique().as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn tracer(share: f64) -> (Tracer, mpsc::Receiver<Span>) {
        Tracer::new(Sampling { scope: "acme.writes/31337".to_owned(), share }, SpanMeter::default())
    }

    fn request(id: &str) -> RequestId {
        RequestId::new(id).unwrap()
    }

    fn copy<'a>(request: &'a RequestId, trace: Option<&'a TraceContext>, retry: u32) -> Followed<'a> {
        Followed { request, generation: Generation { replay: 0, retry }, trace }
    }

    #[test]
    fn whoever_works_on_a_copy_is_in_the_same_span_of_its_producers_trace() {
        let trace = TraceContext::new(PARENT, Some("acme=1")).unwrap();
        let (one, other) = (tracer(0.0).0, tracer(0.0).0);
        let id = request("a");
        let context = one.processing(copy(&id, Some(&trace), 0)).unwrap();
        assert_eq!(Some(context.clone()), other.processing(copy(&id, Some(&trace), 0)));
        assert_eq!(context.trace_id, trace.trace_id());
        assert_eq!(context.parent, Some(ParentSpan { span_id: trace.span_id(), is_remote: true }));
        assert_eq!(context.state.as_deref(), Some("acme=1"));
        let retry = one.processing(copy(&id, Some(&trace), 1)).unwrap();
        let another = one.processing(copy(&request("b"), Some(&trace), 0)).unwrap();
        for differs in [&retry, &another] {
            assert_ne!(differs.span_id, context.span_id);
        }
        let nonce = context.of_nonce(Nonce(7));
        assert_eq!(nonce, context.of_nonce(Nonce(7)));
        assert_ne!(nonce.span_id, context.of_nonce(Nonce(8)).span_id);
        assert_eq!(nonce.parent, Some(ParentSpan { span_id: context.span_id, is_remote: false }));
        assert_ne!(context.child().span_id, context.child().span_id);
    }

    #[test]
    fn what_its_producer_does_not_follow_is_not_followed() {
        let unsampled = TraceContext::new(&PARENT.replace("-01", "-00"), None).unwrap();
        let id = request("a");
        let unsampled_copy = copy(&id, Some(&unsampled), 0);
        assert_eq!(tracer(1.0).0.processing(unsampled_copy), None);
        assert_eq!(tracer(1.0).0.outgoing(unsampled_copy), Some(unsampled.clone()), "and its events say what it said");
        assert_eq!(tracer(1.0).0.within(&unsampled), None);
        let sampled = TraceContext::new(PARENT, None).unwrap();
        let off = Tracer::default();
        assert_eq!(off.processing(copy(&id, Some(&sampled), 0)), None);
        assert_eq!(off.outgoing(copy(&id, Some(&sampled), 0)), Some(sampled.clone()));
        assert_eq!(off.within(&sampled), None);
    }

    #[test]
    fn of_messages_without_a_trace_so_many_are_followed_whichever_instance_asks() {
        let ids: Vec<_> = (0..4000).map(|number| request(&format!("request-{number}"))).collect();
        let followed = |share: f64| {
            let tracer = tracer(share).0;
            ids.iter().map(|id| tracer.processing(copy(id, None, 0)).is_some()).collect::<Vec<_>>()
        };
        let count = |share| followed(share).into_iter().filter(|is| *is).count();
        assert_eq!((count(0.0), count(1.0)), (0, ids.len()));
        assert!((800..1200).contains(&count(0.25)), "{}", count(0.25));
        assert_eq!(followed(0.25), followed(0.25));
        let tracer = tracer(1.0).0;
        let (first, retry) = (tracer.processing(copy(&ids[0], None, 0)), tracer.processing(copy(&ids[0], None, 1)));
        let (first, retry) = (first.unwrap(), retry.unwrap());
        assert_eq!((first.trace_id, first.parent), (retry.trace_id, None), "retries are in the same trace");
        assert_eq!(tracer.outgoing(copy(&ids[0], None, 0)), first.outgoing());
    }

    #[test]
    fn what_nobody_exports_is_dropped_and_counted() {
        let meter = SpanMeter::default();
        let (tracer, mut out) = Tracer::new(Sampling { scope: String::new(), share: 1.0 }, meter.clone());
        let id = request("a");
        let context = tracer.processing(copy(&id, None, 0)).unwrap();
        let work = Work::Call { method: "eth_call", endpoint: "node:8545".to_owned(), code: None };
        for _ in 0..WAITING + 3 {
            tracer.record(context.child().took(Duration::from_millis(5), work.clone(), None));
        }
        assert_eq!(meter.spans.get(SpanEnd::Dropped), 3);
        let first = out.try_recv().unwrap();
        assert_eq!((first.took, first.context.parent.unwrap().span_id), (Duration::from_millis(5), context.span_id));
    }
}
