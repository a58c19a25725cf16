//! Sends spans to an OpenTelemetry collector, with OTLP over HTTP. The only place with `opentelemetry`, and the one where what
//! was done gets the names that its semantic conventions have for it.
//!
//! Sources: <https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/>,
//! <https://opentelemetry.io/docs/specs/semconv/rpc/json-rpc/>, <https://opentelemetry.io/docs/specs/otlp/>.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use opentelemetry::trace::{
    Event, Link, SpanContext as OtelContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};
use opentelemetry_semantic_conventions as conventions;
use opentelemetry_semantic_conventions::attribute;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::model::Timestamp;
use crate::observe::metrics::{SpanEnd, SpanMeter};
use crate::observe::traces::{ExporterSettings, Span, SpanContext, Work};
use crate::rpc;

/// Spans in one request at most.
const BATCH: usize = 512;
/// For how long the first of them waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// A collector has little to say.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// For what is left when the process ends.
const FLUSH: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The HTTP client or what is built on it.
    #[error("the exporter of spans cannot be made: {0}")]
    NotMade(String),
    #[error("{collector} takes no spans: {problem}")]
    NotTaken { collector: String, problem: String },
}

#[derive(Debug)]
pub struct Exporter {
    otlp: OtlpExporter,
    collector: Arc<Collector>,
    conventions: Conventions,
}

impl Exporter {
    /// Returns an exporter for this collector; connects to nothing yet. Headers and more about the resource come from
    /// `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_RESOURCE_ATTRIBUTES`.
    ///
    /// # Errors
    /// When the system has no certificates, or those variables ask for what this build cannot do.
    pub fn new(settings: &ExporterSettings) -> Result<Self, ExportError> {
        let client = rpc::client(settings.timeout).map_err(|error| ExportError::NotMade(error.to_string()))?;
        let label = rpc::label(&settings.endpoint);
        let collector = Arc::new(Collector { client, label, problem: Mutex::default() });
        let mut otlp = OtlpExporter::builder()
            .with_http()
            .with_http_client(Shared(Arc::clone(&collector)))
            .with_endpoint(settings.endpoint.as_str())
            .with_timeout(settings.timeout)
            .build()
            .map_err(|error| ExportError::NotMade(error.to_string()))?;
        otlp.set_resource(&resource(settings));
        Ok(Self { otlp, collector, conventions: Conventions::new(settings.queue.clone()) })
    }

    /// Sends what comes, some of it together, until stopped; then what is left. What is not taken in time is gone.
    pub async fn run(
        self,
        mut spans: mpsc::Receiver<Span>,
        meter: SpanMeter,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        info!(collector = self.collector.label, "traces are exported");
        let mut batch = Vec::with_capacity(BATCH);
        let mut was_taken = true;
        loop {
            let is_over = tokio::select! {
                biased;
                () = gather(&mut spans, &mut batch) => false,
                () = stop.cancelled() => true,
            };
            while is_over && let Ok(span) = spans.try_recv() {
                batch.push(span);
            }
            if !batch.is_empty() {
                let count = batch.len();
                let too_late = async {
                    stop.cancelled().await;
                    tokio::time::sleep(FLUSH).await;
                };
                let sent = tokio::select! {
                    sent = self.send(batch.drain(..).map(|span| self.conventions.data(span)).collect()) => sent,
                    () = too_late => Err(self.not_taken("no answer before the end of the process".to_owned())),
                };
                meter.spans.add(if sent.is_ok() { SpanEnd::Exported } else { SpanEnd::Failed }, count);
                match sent {
                    Ok(()) if !was_taken => info!(collector = self.collector.label, "spans are exported again"),
                    Err(ref error) if was_taken => {
                        warn!(%error, spans = count, "spans are lost; nothing else depends on them");
                    }
                    Ok(()) | Err(_) => {}
                }
                was_taken = sent.is_ok();
            }
            if is_over {
                return Ok(());
            }
        }
    }

    pub fn collector(&self) -> &str {
        &self.collector.label
    }

    /// Checks that the collector takes spans: sends it none.
    ///
    /// # Errors
    /// When it does not.
    pub async fn probe(&self) -> Result<(), ExportError> {
        self.send(Vec::new()).await
    }

    async fn send(&self, spans: Vec<SpanData>) -> Result<(), ExportError> {
        self.otlp.export(spans).await.map_err(|error| {
            let said = match error {
                OTelSdkError::InternalFailure(said) => said,
                OTelSdkError::Timeout(_) | OTelSdkError::AlreadyShutdown => error.to_string(),
            };
            let cause = self.collector.problem.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.not_taken(cause.unwrap_or(said))
        })
    }

    fn not_taken(&self, problem: String) -> ExportError {
        ExportError::NotTaken { collector: self.collector.label.clone(), problem }
    }
}

/// Waits for the first span, and takes what comes soon after it.
async fn gather(spans: &mut mpsc::Receiver<Span>, batch: &mut Vec<Span>) {
    if spans.recv_many(batch, BATCH).await == 0 {
        // The makers of spans have gone; the process ends.
        std::future::pending::<()>().await;
    }
    // What was received stays in the batch.
    let _ = timeout(GATHER, async {
        while batch.len() < BATCH && spans.recv_many(batch, BATCH - batch.len()).await > 0 {}
    })
    .await;
}

fn resource(settings: &ExporterSettings) -> Resource {
    let ExporterSettings { organisation, instance, .. } = settings;
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new(attribute::SERVICE_NAME, "chainwriter"),
            KeyValue::new(attribute::SERVICE_NAMESPACE, organisation.clone()),
            KeyValue::new(attribute::SERVICE_INSTANCE_ID, instance.clone()),
            KeyValue::new(attribute::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
        ])
        .with_detector(Box::new(EnvResourceDetector::new()))
        .build()
}

/// The way to the collector. Remembers why a request got no answer, which the exporter does not report.
#[derive(Debug)]
struct Collector {
    client: reqwest::Client,
    label: String,
    problem: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Shared(Arc<Collector>);

#[async_trait]
impl HttpClient for Shared {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let Self(collector) = self;
        let answer = async {
            let mut response = collector.client.execute(request.try_into()?).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                    break;
                }
                body.extend_from_slice(&chunk);
            }
            let mut answer = Response::new(body.into());
            (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
            Ok::<_, reqwest::Error>(answer)
        };
        let answer = answer.await.map_err(|error| rpc::cause_of(&error));
        *collector.problem.lock().unwrap_or_else(PoisonError::into_inner) = answer.as_ref().err().cloned();
        Ok(answer?)
    }
}

/// Names work as the semantic conventions do.
#[derive(Debug)]
struct Conventions {
    queue: String,
    scope: InstrumentationScope,
}

impl Conventions {
    fn new(queue: String) -> Self {
        let scope = InstrumentationScope::builder("chainwriter")
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(conventions::SCHEMA_URL)
            .build();
        Self { queue, scope }
    }

    fn data(&self, span: Span) -> SpanData {
        let Span { context, ended, took, work, failure } = span;
        let status = failure.as_ref().map_or(Status::Unset, |failure| Status::error(failure.detail.clone()));
        let end_time = system_time(ended);
        let mut data = SpanData {
            span_context: otel_context(&context),
            parent_span_id: context.parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.span_id)),
            parent_span_is_remote: context.parent.is_some_and(|parent| parent.is_remote),
            span_kind: SpanKind::Internal,
            name: Cow::Borrowed(""),
            start_time: end_time.checked_sub(took).unwrap_or(end_time),
            end_time,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.scope.clone(),
        };
        self.describe(work, &context, &mut data);
        data.attributes.extend(failure.map(|failure| KeyValue::new(attribute::ERROR_TYPE, failure.kind)));
        data
    }

    /// Sets name, kind, attributes, events and links.
    fn describe(&self, work: Work, context: &SpanContext, data: &mut SpanData) {
        let SpanData { name, span_kind, attributes, events, links, .. } = data;
        attributes.extend(self.attributes(&work));
        match work {
            Work::Process { .. } => {
                *name = format!("process {}", self.queue).into();
                *span_kind = SpanKind::Consumer;
                let parent = context.parent.filter(|parent| parent.is_remote);
                links.links.extend(parent.map(|parent| link(context.trace_id, parent.span_id)));
            }
            Work::Transaction { attempts, .. } => {
                *name = "transaction".into();
                events.events.extend(attempts.into_iter().map(|(at, hash, kind)| {
                    let hash = KeyValue::new("chainwriter.tx.hash", hash.to_string());
                    let kind = KeyValue::new("chainwriter.tx.kind", kind.as_str());
                    Event::new("signed", system_time(at), vec![hash, kind], 0)
                }));
            }
            Work::Call { method, .. } => (*name, *span_kind) = (method.into(), SpanKind::Client),
            Work::Publish { exchange, routing_key, creation, .. } => {
                let is_own = creation.as_ref().is_some_and(|creation| creation.span_id() == context.span_id);
                *span_kind = if is_own { SpanKind::Producer } else { SpanKind::Client };
                let created = creation.filter(|_| !is_own);
                links.links.extend(created.map(|creation| link(creation.trace_id(), creation.span_id())));
                // A queue that a producer wants answers in may be one of many.
                let shown =
                    if exchange.is_empty() { "amq.default".to_owned() } else { destination(&exchange, &routing_key) };
                *name = format!("publish {shown}").into();
            }
        }
    }

    fn attributes(&self, work: &Work) -> Vec<KeyValue> {
        match work {
            Work::Process { request, generation, bytes, outcome } => vec![
                KeyValue::new(attribute::MESSAGING_SYSTEM, "rabbitmq"),
                KeyValue::new(attribute::MESSAGING_OPERATION_NAME, "process"),
                KeyValue::new(attribute::MESSAGING_OPERATION_TYPE, "process"),
                KeyValue::new(attribute::MESSAGING_DESTINATION_NAME, self.queue.clone()),
                KeyValue::new(attribute::MESSAGING_MESSAGE_ID, request.to_string()),
                KeyValue::new(attribute::MESSAGING_MESSAGE_BODY_SIZE, number(*bytes)),
                KeyValue::new("chainwriter.request.id", request.to_string()),
                KeyValue::new("chainwriter.request.attempt", i64::from(generation.retry)),
                KeyValue::new("chainwriter.request.replay", i64::from(generation.replay)),
                KeyValue::new("chainwriter.request.outcome", outcome.as_str()),
            ],
            Work::Transaction { request, chain_id, nonce, attempts, included, state, others } => {
                let own = [
                    KeyValue::new("chainwriter.request.id", request.to_string()),
                    KeyValue::new("chainwriter.chain.id", number(*chain_id)),
                    KeyValue::new("chainwriter.tx.nonce", number(nonce.0)),
                    KeyValue::new("chainwriter.tx.state", state.as_str()),
                    KeyValue::new("chainwriter.tx.signed", number(attempts.len())),
                    KeyValue::new("chainwriter.tx.others", number(*others)),
                ];
                let of_block = included.iter().flat_map(|(hash, block)| {
                    let hash = KeyValue::new("chainwriter.tx.hash", hash.to_string());
                    [hash, KeyValue::new("chainwriter.block.number", number(block.0))]
                });
                own.into_iter().chain(of_block).collect()
            }
            Work::Call { method, endpoint, code } => {
                let (host, port) = host_and_port(endpoint);
                let own = [
                    KeyValue::new(attribute::RPC_SYSTEM_NAME, "jsonrpc"),
                    KeyValue::new(attribute::RPC_METHOD, *method),
                    KeyValue::new(attribute::JSONRPC_PROTOCOL_VERSION, "2.0"),
                    KeyValue::new(attribute::SERVER_ADDRESS, host.to_owned()),
                ];
                let port = port.map(|port| KeyValue::new(attribute::SERVER_PORT, i64::from(port)));
                let code =
                    code.as_ref().map(|code| KeyValue::new(attribute::RPC_RESPONSE_STATUS_CODE, code.to_string()));
                own.into_iter().chain(port).chain(code).collect()
            }
            Work::Publish { exchange, routing_key, message_id, .. } => {
                let own = [
                    KeyValue::new(attribute::MESSAGING_SYSTEM, "rabbitmq"),
                    KeyValue::new(attribute::MESSAGING_OPERATION_NAME, "publish"),
                    KeyValue::new(attribute::MESSAGING_OPERATION_TYPE, "send"),
                    KeyValue::new(attribute::MESSAGING_DESTINATION_NAME, destination(exchange, routing_key)),
                    KeyValue::new(attribute::MESSAGING_RABBITMQ_DESTINATION_ROUTING_KEY, routing_key.clone()),
                ];
                let id = message_id.as_ref().map(|id| KeyValue::new(attribute::MESSAGING_MESSAGE_ID, id.clone()));
                own.into_iter().chain(id).collect()
            }
        }
    }
}

/// Names where a message goes, as the conventions for RabbitMQ write it.
fn destination(exchange: &str, routing_key: &str) -> String {
    match (exchange, routing_key) {
        ("", "") => "amq.default".to_owned(),
        ("", only) | (only, "") => only.to_owned(),
        (exchange, routing_key) => format!("{exchange}:{routing_key}"),
    }
}

fn otel_context(context: &SpanContext) -> OtelContext {
    let state = context.state.as_deref().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let (trace_id, span_id) = (TraceId::from_bytes(context.trace_id), SpanId::from_bytes(context.span_id));
    OtelContext::new(trace_id, span_id, TraceFlags::SAMPLED, false, state)
}

/// Links to the span of another program.
fn link(trace_id: [u8; 16], span_id: [u8; 8]) -> Link {
    let (trace_id, span_id) = (TraceId::from_bytes(trace_id), SpanId::from_bytes(span_id));
    let remote = OtelContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::NONE);
    Link::new(remote, Vec::new(), 0)
}

/// Reads an endpoint's label, which may distinguish two behind them. An IPv6 address has colons of its own.
fn host_and_port(label: &str) -> (&str, Option<u16>) {
    let address = label.split(' ').next().unwrap_or(label);
    let parts = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    parts.map_or((address, None), |(host, port)| (host, Some(port)))
}

fn system_time(at: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(at.0).unwrap_or(0))
}

fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_taken_apart_whatever_address_it_has() {
        for (label, expected) in [
            ("node.example:8545", ("node.example", Some(8545))),
            ("[::1]:8545", ("[::1]", Some(8545))),
            ("node.example:443 (number 2)", ("node.example", Some(443))),
            ("node.example", ("node.example", None)),
        ] {
            assert_eq!(host_and_port(label), expected, "{label}");
        }
    }
}
