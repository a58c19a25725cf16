//! Every section of the configuration: its keys, their ranges, and what must fit together.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use tokio::sync::watch;
use url::Url;

use crate::broker::{Bind, BrokerSettings, Names, Topology, TopologyMode};
use crate::config::faults::Faults;
use crate::config::fingerprints::{Prints, files, prints};
use crate::config::reader::{DAY, Findings, HOUR, MINUTE, MS, SECOND, Section, http_url, or_off, tables, texts};
use crate::config::secrets::{Places, private_file};
use crate::config::settings::{JournalSection, LogFormat, LogSection, Settings, TracesSettings, WorkerSection};
use crate::config::{access, bind, chain, policy, routes, signers};
use crate::journal::JournalAddress;
use crate::model::event::source_of;
use crate::observe::traces::{ExporterSettings, Sampling, Tracer};
use crate::policy::admission::{AdmissionRules, OrderBy, Ordering, Scope, TextSource};
use crate::policy::batch::{BatchKind, Batching};
use crate::policy::letters::rules::{ReplayRule, ReplayRules};
use crate::policy::replies::{Allowed, ReplyRules};
use crate::policy::retry_schedule::RetrySchedule;
use crate::policy::routes::Route;
use crate::stages::lane::OutagePolicy;
use crate::stages::settle::SettleSettings;

const LARGEST_BODY: u64 = 16 << 20;
/// Below a collector's address: <https://opentelemetry.io/docs/specs/otlp/#otlphttp-request>.
const TRACES_PATH: &str = "/v1/traces";

/// Where relative names begin: those of routes' files at the configuration's folder.
pub(super) struct Bases<'b> {
    pub(super) folder: &'b Path,
    pub(super) places: &'b Places,
}

/// Reads all sections, and collects every fault.
pub(super) fn read(values: Value, bases: &Bases<'_>) -> Result<Settings, Faults> {
    let (settings, findings) = read_all(&values, bases);
    match findings.into_lines() {
        faults if faults.is_empty() => Ok(settings),
        faults => Err(Faults(faults)),
    }
}

/// Reads all sections. With faults, settings have stand-ins.
pub(super) fn read_all(values: &Value, bases: &Bases<'_>) -> (Settings, Findings) {
    let mut tables = values.as_object().cloned().unwrap_or_else(Map::new);
    let mut findings = Findings::default();
    let settings = settings(&mut tables, bases, prints(values), &mut findings);
    for (key, problem) in settings.contradictions() {
        findings.add(key, problem);
    }
    for name in tables.keys() {
        findings.add(name, "is not a section; see worker.toml for those there are");
    }
    (settings, findings)
}

/// Takes every section that there is out of the tables.
fn settings(
    tables: &mut Map<String, Value>,
    &Bases { folder, places }: &Bases<'_>,
    mut prints: Prints,
    findings: &mut Findings,
) -> Settings {
    macro_rules! section {
        ($name:literal) => {
            Section::new($name, tables.remove($name), findings)
        };
    }
    let schedule = retry(section!("retry"));
    let binds = bind::read(tables.remove("bind"), findings);
    let (mut broker, max_hold, park_delay, max_body_bytes) = broker(section!("broker"), binds, &schedule, places);
    let (id_source, scope, order_by, replies) = request(section!("request"), &broker.topology);
    let permits = Arc::new(policy::read(section!("policy")));
    let routes = routes::read(tables.remove("write"), tables.remove("route"), folder, findings);
    prints.extend(files(&routes));
    let keeps_order = order_by.as_ref().is_some_and(|order_by| order_by.ordering == Ordering::Nonce);
    let batching = Arc::new(batching(section!("batch"), &routes, keeps_order));
    let queue = broker.topology.names.work.clone();
    let admission = AdmissionRules { id_source, scope, order_by, routes, max_body_bytes, permits, queue };
    let worker = worker(section!("worker"));
    let outage = section!("outage").choice("policy", &[("hold", OutagePolicy::Hold), ("retry", OutagePolicy::Retry)]);
    let fees = chain::fees(section!("fees"));
    let limits = policy::limits(section!("limits"), &admission.permits);
    let lease_ttl = section!("lease").duration("ttl", 3 * SECOND..=10 * MINUTE);
    let (chain, lane, tuning) =
        chain::read(section!("chain"), &admission, batching, lease_ttl, places, (fees, limits, outage));
    policy::compare(&admission, &lane.batching, findings);
    broker.client_name = worker.full_name();
    broker.is_ordered |= admission.is_strict();
    let settle = settle(&worker, &broker, &admission, chain.chain_id, (schedule, max_hold, park_delay));
    let (http_listen, http_token) = http(section!("http"), places);
    let (signers, retiring) = signers::read(tables.remove("signer"), places, findings);
    Settings {
        signers,
        retiring,
        dead: dead(section!("dead")),
        journal: journal(section!("journal"), places),
        traces: traces(section!("traces"), &worker, &broker.topology.names, chain.chain_id),
        http_listen,
        http_token,
        log: log(section!("log")),
        worker,
        broker,
        admission,
        replies: Arc::new(replies),
        settle,
        chain,
        lane,
        tuning,
        prints,
    }
}

/// Puts together what the stage that settles needs; the journal and the broker's connection come later.
fn settle(
    worker: &WorkerSection,
    broker: &BrokerSettings,
    admission: &AdmissionRules,
    chain_id: u64,
    (schedule, max_hold, park_delay): (RetrySchedule, Duration, Duration),
) -> SettleSettings {
    SettleSettings {
        event_source: source_of(&worker.organisation, chain_id, &broker.topology.names.work),
        worker: worker.full_name(),
        names: broker.topology.names.clone(),
        waits: schedule.waits(park_delay),
        schedule,
        newer_retries: watch::channel(None).1,
        max_hold,
        park_delay,
        publishes_in_flight: broker.publish_channels,
        read_headers: watch::channel(admission.headers()).1,
        tracer: Tracer::default(),
    }
}

fn worker(mut section: Section<'_>) -> WorkerSection {
    let is_name = |text: &str| {
        let fits = (1..=64).contains(&text.len());
        fits && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let name = |text: &str| Some(text.to_owned()).filter(|text| is_name(text));
    let expected = "1 to 64 letters, digits, \"-\", \"_\" or \".\"";
    let organisation = section.read("organisation", expected, String::new(), name);
    let host = hostname::get().unwrap_or_default().to_string_lossy().into_owned();
    let instance =
        section.read("instance", expected, String::new(), |text| if text.is_empty() { Some(host) } else { name(text) });
    WorkerSection {
        organisation,
        instance,
        max_open: section.number("max_open", 1..=1_000_000),
        drain_deadline: section.duration("drain_deadline", SECOND..=10 * MINUTE),
    }
}

/// Reads how the broker is used, how long a delivery is held and then parked, and the longest body.
fn broker(
    mut section: Section<'_>,
    binds: Vec<Bind>,
    schedule: &RetrySchedule,
    places: &Places,
) -> (BrokerSettings, Duration, Duration, u64) {
    let (uri, access) = access::read(&mut section, places);
    let names = names(&mut section);
    let park_delay = section.duration("park_delay", 100 * MS..=HOUR);
    let single_active_consumer = section.choice("single_active_consumer", &[("false", false), ("true", true)]);
    let settings = BrokerSettings {
        uri,
        access,
        client_name: String::new(),
        prefetch: section.number("prefetch", 1..=u16::MAX),
        prefetch_bytes: size(
            &mut section,
            "prefetch_bytes",
            "a size from 1 MiB to 64 GiB, such as \"256 MiB\"",
            1 << 20..=64 << 30,
        ),
        is_ordered: single_active_consumer,
        topology: Topology { binds, single_active_consumer, ..Topology::new(names, schedule.waits(park_delay)) },
        topology_mode: section
            .choice("topology", &[("declare", TopologyMode::Declare), ("verify", TopologyMode::Verify)]),
        call_timeout: section.duration("call_timeout", 100 * MS..=5 * MINUTE),
        confirm_timeout: section.duration("confirm_timeout", 100 * MS..=5 * MINUTE),
        consumer_timeout: section.duration("consumer_timeout", MINUTE..=30 * DAY),
        publish_channels: section.number("publish_channels", 1..=256),
        reconnect: (
            section.duration("reconnect_initial", 10 * MS..=10 * MINUTE),
            section.duration("reconnect_max", 10 * MS..=10 * MINUTE),
        ),
    };
    if settings.reconnect.0 > settings.reconnect.1 {
        section.fault("reconnect_initial", "is longer than reconnect_max; make it shorter");
    }
    let max_hold = section.duration("max_hold", SECOND..=12 * HOUR);
    let max_body_bytes =
        size(&mut section, "max_body", "a size from 1 B to 16 MiB, such as \"256 KiB\"", 1..=LARGEST_BODY);
    (settings, max_hold, park_delay, max_body_bytes)
}

fn size(section: &mut Section<'_>, key: &'static str, expected: &str, range: RangeInclusive<u64>) -> u64 {
    section.read(key, expected, *range.start(), |text| {
        let size: bytesize::ByteSize = text.parse().ok()?;
        Some(size.as_u64()).filter(|bytes| range.contains(bytes))
    })
}

fn names(section: &mut Section<'_>) -> Names {
    // Names longer than 255 bytes cannot be; the longest suffix takes some of them.
    let expected = "the name of the work queue, 1 to 200 ASCII characters";
    let queue = section.read("queue", expected, String::new(), |text| {
        Some(text.to_owned()).filter(|text| (1..=200).contains(&text.len()) && text.is_ascii())
    });
    let mut names = Names::derived_from(&queue);
    for (key, name) in [
        ("retry_exchange", &mut names.retry),
        ("wait_prefix", &mut names.wait),
        ("dead_exchange", &mut names.dead),
        ("events_exchange", &mut names.events),
        ("journal_queue", &mut names.journal),
    ] {
        if let Some(text) = section.text(key).filter(|text| !text.is_empty()) {
            *name = text;
        }
    }
    names
}

/// Reads where ids and ordering keys stand, among which they are unique, and which queues get replies.
fn request(mut section: Section<'_>, topology: &Topology) -> (TextSource, Scope, Option<OrderBy>, ReplyRules) {
    let expected = "\"message_id\", \"header:NAME\" or \"json:/pointer\"";
    let source = section.read("id", expected, TextSource::MessageId, id_source);
    let expected = "\"none\", \"user_id\", \"exchange\" or \"header:NAME\"";
    let scope = section.read("scope", expected, Scope::None, |text| match text {
        "none" => Some(Scope::None),
        "user_id" => Some(Scope::UserId),
        "exchange" => Some(Scope::Exchange),
        text => text.strip_prefix("header:").filter(|name| !name.is_empty()).map(|name| Scope::Header(name.to_owned())),
    });
    let expected = "\"none\", \"message_id\", \"header:NAME\" or \"json:/pointer\"";
    let order_by = section.read("order_by", expected, None, |text| match text {
        "none" => Some(None),
        text => id_source(text).map(Some),
    });
    let ordering = section.choice("ordering", &[("nonce", Ordering::Nonce), ("strict", Ordering::Strict)]);
    if ordering == Ordering::Strict && order_by.is_none() {
        section.fault("ordering", "is \"strict\", but nothing says what is ordered: set request.order_by");
    }
    let replies = ReplyRules {
        allowed: allowed_replies(&mut section),
        own: topology.queue_names(),
        own_prefix: format!("{}.", topology.names.wait),
        give_up_after: section.duration("reply_timeout", SECOND..=DAY),
    };
    (source, scope, order_by.map(|source| OrderBy { source, ordering }), replies)
}

/// Reads `reply_to`. A text with commas is the environment's list.
fn allowed_replies(section: &mut Section<'_>) -> Allowed {
    let value = section.take("reply_to").unwrap_or_default();
    let listed = match value.as_str() {
        Some("on") => return Allowed::All,
        Some("off") => return Allowed::None,
        Some(text) if text.contains(',') => {
            Some(text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect())
        }
        Some(_) => None,
        None => texts(&value),
    };
    let prefixes = listed.filter(|texts| texts.iter().all(|text| (1..=255).contains(&text.len())));
    if prefixes.is_none() {
        section.fault("reply_to", "expected \"on\", \"off\" or a list of prefixes, such as [\"replies.\"]");
    }
    Allowed::Prefixes(prefixes.unwrap_or_default().into_iter().map(str::to_owned).collect())
}

fn id_source(text: &str) -> Option<TextSource> {
    if text == "message_id" {
        return Some(TextSource::MessageId);
    }
    match text.split_once(':')? {
        ("header", name) if !name.is_empty() => Some(TextSource::Header(name.to_owned())),
        ("json", pointer) if pointer.starts_with('/') => Some(TextSource::JsonPointer(pointer.to_owned())),
        _ => None,
    }
}

fn retry(mut section: Section<'_>) -> RetrySchedule {
    let max_attempts = section.number("max_attempts", 1..=100);
    let initial_delay = section.duration("initial_delay", 100 * MS..=DAY);
    let multiplier = section.number("multiplier", 1.0..=100.0);
    let max_delay = section.duration("max_delay", 100 * MS..=DAY);
    if initial_delay > max_delay {
        section.fault("initial_delay", "is longer than max_delay; make it shorter");
    }
    RetrySchedule::new(max_attempts, initial_delay, multiplier, max_delay)
}

/// Reads how requests are batched. Among requests of strict ordering that are to be written, no two have the same key.
fn batching(mut section: Section<'_>, routes: &[Route], keeps_order: bool) -> Batching {
    let kind = |route: &Route| Some(BatchKind { to: route.to?, many: route.many.clone()? });
    Batching {
        max_requests: section.number("max_requests", 1..=1000),
        max_bytes: section.number("max_bytes", 1024..=120_000),
        max_wait: section.duration("max_wait", Duration::ZERO..=MINUTE),
        keeps_order,
        kinds: routes.iter().filter_map(kind).collect(),
    }
}

fn dead(mut section: Section<'_>) -> ReplayRules {
    let read_every = section.duration("read_every", SECOND..=DAY);
    let listed = section.take("replay").filter(|value| *value != Value::Array(Vec::new()));
    let expected = "must be a list of tables: [[dead.replay]]";
    let rules = tables("dead.replay", listed, expected, section.findings, |mut section| {
        let cause = section.text("cause").unwrap_or_default();
        let after = section.duration("after", SECOND..=365 * DAY);
        let up_to = section.number("up_to", 1..=100);
        ReplayRule::new(&cause, after, up_to).map_err(|problem| section.fault("cause", problem)).ok()
    });
    ReplayRules { read_every, rules: rules.into_iter().flatten().flatten().collect() }
}

fn journal(mut section: Section<'_>, places: &Places) -> JournalSection {
    let inline = section.text("url").unwrap_or_default();
    let (key, text) = match section.text("url_file") {
        Some(file) => ("url_file", places.secret(&file).and_then(|path| private_file(&path))),
        None => ("url", Ok(SecretString::from(inline))),
    };
    let address = text.and_then(|text| JournalAddress::parse(text.expose_secret().trim())).unwrap_or_else(|problem| {
        section.fault(key, problem);
        JournalAddress::Sqlite(PathBuf::new())
    });
    let address = match address {
        JournalAddress::Sqlite(path) => JournalAddress::Sqlite(places.state.join(path)),
        JournalAddress::Postgres(_) => address,
    };
    let retention = section.duration("retention", HOUR..=3650 * DAY);
    let keep_events = section.duration("keep_events", Duration::ZERO..=3650 * DAY);
    JournalSection { address, retention, keep_events }
}

fn traces(mut section: Section<'_>, worker: &WorkerSection, names: &Names, chain_id: u64) -> Option<TracesSettings> {
    let expected = "the URL of an OpenTelemetry collector, such as \"http://127.0.0.1:4318\", or \"off\"";
    let collector = |url: &str| http_url(url).and_then(traces_at);
    let endpoint = section.read("endpoint", expected, None, |text| or_off(text, collector));
    if endpoint.is_some() && !cfg!(feature = "otlp") {
        section.fault("endpoint", "needs a build with `--features otlp`, which this is not; set it to \"off\"");
    }
    let (share, timeout) = (section.number("sample", 0.0..=1.0), section.duration("timeout", 100 * MS..=MINUTE));
    let (organisation, instance) = (worker.organisation.clone(), worker.instance.clone());
    let queue = names.work.clone();
    let sampling = Sampling { scope: format!("{queue}/{chain_id}"), share };
    let exporter = ExporterSettings { endpoint: endpoint?, timeout, queue, organisation, instance };
    Some(TracesSettings { exporter, sampling })
}

/// Returns where a collector takes traces: its base address may be given, or that very path.
fn traces_at(mut url: Url) -> Option<Url> {
    if !url.path().ends_with(TRACES_PATH) {
        let path = format!("{}{TRACES_PATH}", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Some(url).filter(|url| url.query().is_none() && url.fragment().is_none())
}

/// Reads where HTTP is served, and the file with the token for requests.
fn http(mut section: Section<'_>, places: &Places) -> (Option<SocketAddr>, Option<PathBuf>) {
    let expected = "an address and a port, such as \"127.0.0.1:19746\", or \"\" for none";
    let listen = section.read("listen", expected, None, |text| match text {
        "" => Some(None),
        address => address.parse().ok().map(Some),
    });
    (listen, access::secret(&mut section, places, "token_file"))
}

fn log(mut section: Section<'_>) -> LogSection {
    let level = section.choice(
        "level",
        &[
            ("info", tracing::Level::INFO),
            ("error", tracing::Level::ERROR),
            ("warn", tracing::Level::WARN),
            ("debug", tracing::Level::DEBUG),
            ("trace", tracing::Level::TRACE),
        ],
    );
    let format = section.choice("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    LogSection { level, format }
}
