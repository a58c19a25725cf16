//! Spans at a collector: what is done for a message, in one trace, whoever does it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};

use crate::chain::records::with_contract;
use crate::stage::{BINARY, DEAD, EVENTS, LONG, QUEUE, Stage};
use crate::support::contracts::ALWAYS_REVERTS;
use crate::support::{ACCOUNTS, Reply, ScriptedNode, WorkerConfig, WorkerHome, headers, http, wait_until, with_id};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PRODUCER: &str = "00f067aa0ba902b7";

/// Takes spans as a collector does: OTLP over HTTP, by the published definitions of its messages.
struct Collector {
    address: SocketAddr,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    heads: Vec<String>,
    resources: Vec<Vec<KeyValue>>,
    spans: Vec<Span>,
}

impl Collector {
    async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = Arc::<Mutex<Taken>>::default();
        let shared = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&shared)));
            }
        });
        Self { address, taken }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn spans(&self) -> Vec<Span> {
        self.taken.lock().unwrap().spans.clone()
    }

    /// Those of this request, by name.
    fn named(&self, name: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.name == name).collect()
    }
}

async fn serve(client: TcpStream, taken: Arc<Mutex<Taken>>) -> Option<()> {
    let mut client = BufReader::new(client);
    loop {
        let (head, body) = http::read_whole(&mut client).await?;
        let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        {
            let mut taken = taken.lock().unwrap();
            taken.heads.push(head);
            for resource in request.resource_spans {
                taken.resources.extend(resource.resource.map(|resource| resource.attributes));
                taken.spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        http::write(&mut client, "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n", b"").await?;
    }
}

/// As text, whatever it is; nothing where there is none of this name.
fn attribute(attributes: &[KeyValue], name: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    let value = found.value.as_ref()?.value.as_ref()?;
    if let Value::StringValue(text) = value {
        return Some(text.clone());
    }
    let Value::IntValue(number) = value else { panic!("{name} is {value:?}") };
    Some(number.to_string())
}

fn expect(span: &Span, attributes: &[(&str, &str)]) {
    for (name, value) in attributes {
        assert_eq!(attribute(&span.attributes, name).as_deref(), Some(*value), "{name} of {span:?}");
    }
}

fn parent(trace: &str, span: &str, flags: &str) -> String {
    format!("00-{trace}-{span}-{flags}")
}

fn exporting(config: WorkerConfig, collector: &str) -> WorkerConfig {
    config.with("traces", format!("endpoint = {collector:?}\ntimeout = \"2s\""))
}

async fn arrived(collector: &Collector, name: &str, count: usize) -> Vec<Span> {
    wait_until(&format!("{count} spans {name:?}"), LONG, async || collector.named(name).len() >= count).await;
    let spans = collector.named(name);
    assert_eq!(spans.len(), count, "{spans:?}");
    spans
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

#[tokio::test]
async fn what_is_done_for_a_message_is_in_the_trace_of_its_producer() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let collector = Collector::start().await;
    let home = WorkerHome::new(&exporting(stage.config(), &collector.url()).with("traces", "sample = 0.0"));
    stage.topology(&home).await;
    let mut events = stage.amqp.watch(&[(EVENTS, "final")]).await;
    let traced = |flags| headers(&[("traceparent", &parent(TRACE, PRODUCER, flags)), ("tracestate", "acme=1")]);
    stage.amqp.publish(QUEUE, with_id("order-1").with_headers(traced("01")), b"one").await;
    stage.amqp.publish(QUEUE, with_id("order-2").with_headers(traced("00")), b"two").await;
    stage.amqp.publish(QUEUE, with_id("order-3"), b"three").await;
    let environment = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=0123"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging"),
    ];
    let mut worker = home.start_with(BINARY, &environment);
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(events.next(LONG).await);
    }
    told.sort_by_key(|event| event.json()["subject"].to_string());
    assert_eq!(worker.stop().await.code(), Some(0));

    let spans = collector.spans();
    assert!(spans.iter().all(|span| hex::encode(&span.trace_id) == TRACE), "the others are not followed: {spans:?}");
    assert!(spans.iter().all(|span| span.trace_state == "acme=1" && !is_error(span)), "{spans:?}");
    assert!(spans.iter().all(|span| span.start_time_unix_nano <= span.end_time_unix_nano), "{spans:?}");
    let one = |name: &str| match collector.named(name).as_slice() {
        [span] => span.clone(),
        others => panic!("{name}: {others:?} among {spans:?}"),
    };
    let event = &told[0];
    let hash = event.json()["data"]["transaction"]["tx_hash"].as_str().unwrap().to_owned();

    let process = one("process acme.writes");
    assert_eq!((process.kind(), hex::encode(&process.parent_span_id)), (SpanKind::Consumer, PRODUCER.to_owned()));
    assert_eq!(process.links.iter().map(|link| hex::encode(&link.span_id)).collect::<Vec<_>>(), [PRODUCER]);
    expect(
        &process,
        &[
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.name", "process"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", QUEUE),
            ("messaging.message.id", "order-1"),
            ("messaging.message.body.size", "3"),
            ("chainwriter.request.attempt", "0"),
            ("chainwriter.request.outcome", "final"),
        ],
    );

    let port = stage.anvil.url().rsplit_once(':').unwrap().1.trim_end_matches('/').to_owned();
    let estimate = one("eth_estimateGas");
    assert_eq!((estimate.kind(), &estimate.parent_span_id), (SpanKind::Client, &process.span_id));
    let node = [("rpc.system.name", "jsonrpc"), ("server.address", "127.0.0.1"), ("server.port", &port)];
    expect(&estimate, &node);
    expect(&estimate, &[("rpc.method", "eth_estimateGas"), ("jsonrpc.protocol.version", "2.0")]);

    let transaction = one("transaction");
    assert_eq!((transaction.kind(), &transaction.parent_span_id), (SpanKind::Internal, &process.span_id));
    expect(
        &transaction,
        &[("chainwriter.tx.hash", &hash), ("chainwriter.tx.state", "succeeded"), ("chainwriter.chain.id", "31337")],
    );
    assert_eq!(transaction.events.len(), 1, "one attempt");
    assert_eq!(attribute(&transaction.events[0].attributes, "chainwriter.tx.hash"), Some(hash));
    // A millisecond is all that the journal's times tell.
    assert!(transaction.start_time_unix_nano + 1_000_000 >= process.start_time_unix_nano);

    let sent = collector.named("eth_sendRawTransaction");
    assert!(!sent.is_empty(), "{spans:?}");
    for sent in &sent {
        assert_eq!((sent.kind(), &sent.parent_span_id), (SpanKind::Client, &transaction.span_id));
        expect(sent, &node);
    }

    let publish = one("publish acme.writes.events:final");
    assert_eq!((publish.kind(), &publish.parent_span_id), (SpanKind::Producer, &process.span_id));
    expect(&publish, &[("messaging.operation.type", "send"), ("messaging.rabbitmq.destination.routing_key", "final")]);
    expect(&publish, &[("messaging.message.id", event.json()["id"].as_str().unwrap())]);
    let processed = parent(TRACE, &hex::encode(&process.span_id), "01");
    let published = parent(TRACE, &hex::encode(&publish.span_id), "01");
    assert_eq!(event.json()["traceparent"], processed, "an event is about what was done");
    assert_eq!(event.header("traceparent"), Some(published), "and was sent by its publish");
    assert_eq!(
        told[1].json()["traceparent"],
        parent(TRACE, PRODUCER, "00"),
        "who is not followed is told what it said"
    );
    assert_eq!(told[2].json().get("traceparent"), None);

    let resource = collector.taken.lock().unwrap().resources[0].clone();
    assert_eq!(attribute(&resource, "service.name").as_deref(), Some("chainwriter"));
    assert_eq!(attribute(&resource, "service.namespace").as_deref(), Some("acme"));
    assert!(attribute(&resource, "service.instance.id").is_some());
    assert_eq!(attribute(&resource, "deployment.environment.name").as_deref(), Some("staging"));
    let heads = collector.taken.lock().unwrap().heads.clone();
    assert!(heads.iter().all(|head| head.starts_with("post /v1/traces ") && head.contains("x-key: 0123")), "{heads:?}");
}

#[tokio::test]
async fn retries_and_the_dead_letter_of_a_message_without_a_trace_are_one_trace() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let collector = Collector::start().await;
    let config = stage.config_for(ALWAYS_REVERTS).await;
    let config = config.with("retry", "max_attempts = 2\ninitial_delay = \"1s\"\nmax_delay = \"1s\"");
    let home = WorkerHome::new(&exporting(config, &collector.url()));
    stage.topology(&home).await;
    let body = b"what nobody else may read";
    stage.amqp.publish(QUEUE, with_id("order-1"), body).await;
    stage.amqp.publish(QUEUE, with_id(""), body).await;
    let mut worker = home.start(BINARY);
    let mut dead = vec![stage.amqp.wait_for(DEAD, LONG).await, stage.amqp.wait_for(DEAD, LONG).await];
    dead.retain(|letter| letter.id() == "order-1");
    assert_eq!(dead[0].header("traceparent"), None, "a dead letter says what its message said");
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));

    let told = format!("{:?}", collector.spans());
    assert!(told.contains("order-1"), "{told}");
    for shape in [String::from_utf8(body.to_vec()).unwrap(), hex::encode(body)] {
        assert!(!told.contains(&shape), "a body in {told}");
    }
    let mut of_refused = collector.named("process acme.writes");
    let mut processes: Vec<_> = of_refused
        .extract_if(.., |span| attribute(&span.attributes, "messaging.message.id").as_deref() == Some("order-1"))
        .collect();
    processes.sort_by_key(|span| span.start_time_unix_nano);
    let [first, second] = processes.as_slice() else { panic!("{processes:?}") };
    for (process, attempt, outcome) in [(first, "0", "retry"), (second, "1", "dead")] {
        expect(process, &[("chainwriter.request.attempt", attempt), ("chainwriter.request.outcome", outcome)]);
        let kind = attribute(&process.attributes, "error.type").unwrap();
        assert!(kind.starts_with("rejected.") && is_error(process), "{kind}");
        assert!(process.parent_span_id.is_empty() && process.links.is_empty(), "the trace begins here");
    }
    assert_eq!(first.trace_id, second.trace_id);
    let gap = second.start_time_unix_nano - first.end_time_unix_nano;
    assert!(gap >= 900_000_000, "the wait between them is in none: {gap}");

    let estimates = collector.named("eth_estimateGas");
    assert_eq!(estimates.len(), 2);
    for (estimate, process) in estimates.iter().zip([first, second]) {
        assert_eq!(estimate.parent_span_id, process.span_id);
        assert!(is_error(estimate));
        let code = attribute(&estimate.attributes, "rpc.response.status_code");
        assert_eq!((code.as_deref(), attribute(&estimate.attributes, "error.type")), (Some("3"), code.clone()));
    }
    let retry = collector.named("publish acme.writes.retry:acme.writes.wait.1s");
    assert_eq!(retry.iter().map(|span| &span.parent_span_id).collect::<Vec<_>>(), [&first.span_id]);
    assert_eq!(retry[0].kind(), SpanKind::Client, "the copy keeps its message's trace");
    let kind = attribute(&second.attributes, "error.type").unwrap();
    let letter = collector.named(&format!("publish acme.writes.dead:{kind}"));
    assert_eq!(letter.iter().map(|span| &span.parent_span_id).collect::<Vec<_>>(), [&second.span_id]);
    let events: Vec<_> =
        ["retry", "dead"].map(|kind| collector.named(&format!("publish acme.writes.events:{kind}"))).concat();
    let parents: Vec<_> =
        events.iter().filter(|span| span.trace_id == first.trace_id).map(|span| &span.parent_span_id).collect();
    assert_eq!(parents, [&first.span_id, &second.span_id]);

    let [refused] = of_refused.as_slice() else { panic!("{of_refused:?}") };
    expect(refused, &[("chainwriter.request.outcome", "refused"), ("error.type", "invalid.missing_id")]);
    assert_ne!(refused.trace_id, first.trace_id);
}

/// Nothing of a trace is kept but what the message said.
#[tokio::test]
async fn what_one_worker_began_and_another_ended_fits_together() {
    let Some(stage) = Stage::set().await else { return };
    stage.anvil.set_auto_mine(false).await.unwrap();
    let collector = Collector::start().await;
    let home = WorkerHome::new(&exporting(stage.config(), &collector.url()));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    let mut first = home.start(BINARY);
    let sent = arrived(&collector, "eth_sendRawTransaction", 1).await.remove(0);
    first.kill().await;
    stage.anvil.mine(5).await.unwrap();
    let mut second = home.start(BINARY);
    let transaction = arrived(&collector, "transaction", 1).await.remove(0);
    let process = arrived(&collector, "process acme.writes", 1).await.remove(0);
    assert_eq!((&sent.trace_id, &sent.parent_span_id), (&transaction.trace_id, &transaction.span_id));
    assert_eq!(transaction.parent_span_id, process.span_id);
    assert!(process.start_time_unix_nano <= sent.start_time_unix_nano + 1_000_000, "it began with the first worker");
    assert_eq!(second.stop().await.code(), Some(0));
}

#[tokio::test]
async fn without_its_collector_a_worker_loses_spans_and_nothing_else() {
    let Some(stage) = Stage::with_blocks().await else { return };
    // Bound, and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let home = WorkerHome::new(&exporting(stage.config(), &format!("http://{address}/")));
    stage.topology(&home).await;
    let (_, report) = home.command(BINARY, &["doctor"]).await;
    let line = report.lines().find(|line| line.contains(" traces: ")).unwrap_or_else(|| panic!("{report}"));
    assert!(
        line.starts_with("warn") && line.contains("no answer in time") && line.contains("traces.endpoint"),
        "{line}"
    );
    let mut events = stage.amqp.watch(&[(EVENTS, "final")]).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    let mut worker = home.start(BINARY);
    events.next(LONG).await;
    wait_until("the loss is told", LONG, async || worker.log().contains("spans are lost")).await;
    drop(silent);
    let collector = Collector::start_at(address).await;
    stage.amqp.publish(QUEUE, with_id("order-2"), b"two").await;
    arrived(&collector, "process acme.writes", 1).await;
    wait_until("it is told", LONG, async || worker.log().contains("spans are exported again")).await;
    let (_, report) = home.command(BINARY, &["doctor"]).await;
    assert!(report.contains(&format!("ok    traces: {address} takes spans")), "{report}");
    assert_eq!(worker.stop().await.code(), Some(0));
    let lost = worker.log().lines().filter(|line| line.contains("spans are lost")).count();
    assert_eq!(lost, 1, "an outage is told once");
}

/// A drain does not wait for it longer than for anything else.
#[tokio::test]
async fn a_silent_collector_does_not_hold_up_a_stop() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = exporting(stage.config(), &format!("http://{}", silent.local_addr().unwrap()));
    let home = WorkerHome::new(&config.with("traces", "timeout = \"1m\"").with("worker", "drain_deadline = \"30s\""));
    stage.topology(&home).await;
    let mut events = stage.amqp.watch(&[(EVENTS, "final")]).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    let mut worker = home.start(BINARY);
    events.next(LONG).await;
    // The first export is under way by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    assert!(!worker.log().contains("not everything was finished in time"), "{}", worker.log());
}

/// Each message of a batch has its own trace, with the transaction in it.
#[tokio::test]
async fn messages_that_share_a_transaction_each_have_it_in_their_trace() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let collector = Collector::start().await;
    let (config, _) = with_contract(&stage, "").await;
    let config = exporting(config, &collector.url()).with("batch", "max_requests = 3\nmax_wait = \"5s\"");
    let home = WorkerHome::new(&config);
    stage.topology(&home).await;
    for number in 0..3 {
        let id = format!("order-{number}");
        // The first of them is not followed.
        let flags = if number == 0 { "00" } else { "01" };
        let traced = headers(&[("traceparent", &parent(&format!("{number:032x}").replace('0', "a"), PRODUCER, flags))]);
        stage.amqp.publish(QUEUE, with_id(&id).with_headers(traced), id.as_bytes()).await;
    }
    let mut worker = home.start(BINARY);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let transactions = collector.named("transaction");
    let told = |name| {
        let told: Vec<_> = transactions.iter().map(|span| attribute(&span.attributes, name).unwrap()).collect();
        told
    };
    assert_eq!(told("chainwriter.request.id"), ["order-1", "order-2"]);
    let hashes = told("chainwriter.tx.hash");
    assert_eq!((hashes[0] == hashes[1], told("chainwriter.tx.others")[0].as_str()), (true, "2"));
    assert_ne!(transactions[0].trace_id, transactions[1].trace_id);
    for name in ["eth_estimateGas", "eth_sendRawTransaction"] {
        let calls = collector.named(name);
        assert!(!calls.is_empty(), "{name}");
        assert!(
            calls.iter().all(|call| call.trace_id == transactions[0].trace_id),
            "{name}: in the first that is followed"
        );
    }
}

/// Anvil signs for its accounts, as Clef does.
#[tokio::test]
async fn a_server_that_signs_is_in_the_trace_and_its_refusals_are_too() {
    let Some(stage) = Stage::with_blocks().await else { return };
    let collector = Collector::start().await;
    let refuses = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&refuses);
    let server = ScriptedNode::start(Some(stage.anvil.address()), move |call| match call["method"].as_str() {
        Some("eth_signTransaction") if still.load(Ordering::SeqCst) => Reply::error(-32000, "the vault is closed"),
        _ => Reply::Pass,
    })
    .await;
    let signer = format!("url = {:?}\naddress = {:?}", server.url(), ACCOUNTS[0].0);
    let home = WorkerHome::new(&exporting(stage.config(), &collector.url()).with("signer", signer));
    stage.topology(&home).await;
    stage.amqp.publish(QUEUE, with_id("order-1"), b"one").await;
    let mut worker = home.start(BINARY);
    wait_until("it was refused", LONG, async || !collector.named("eth_signTransaction").is_empty()).await;
    refuses.store(false, Ordering::SeqCst);
    stage.wait_empty(QUEUE).await;
    assert_eq!(worker.stop().await.code(), Some(0));
    let process = collector.named("process acme.writes").remove(0);
    let mut signed = collector.named("eth_signTransaction");
    assert!(signed.iter().all(|span| span.parent_span_id == process.span_id && span.kind() == SpanKind::Client));
    let last = signed.pop().unwrap();
    assert!(!is_error(&last));
    let port = server.url().rsplit_once(':').unwrap().1.trim_end_matches('/').to_owned();
    expect(&last, &[("rpc.method", "eth_signTransaction"), ("server.port", &port)]);
    expect(&signed[0], &[("error.type", "-32000"), ("rpc.response.status_code", "-32000")]);
    assert!(is_error(&signed[0]) && signed[0].status.as_ref().unwrap().message.contains("the vault is closed"));
}
