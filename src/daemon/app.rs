//! The composition root: the only place that sees all settings. Builds every part, connects them, starts the tasks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::broker::{Broker, BrokerSettings, Topology};
use crate::chain::{ClientSettings, NodeClient};
use crate::config::{Settings, SignerSection};
use crate::daemon::reload::{self, Adjustable, Hangups, Reloading};
use crate::daemon::status::{self, LaneView, Observer, RecentLines, Sources};
use crate::daemon::supervisor::{Tasks, tell_systemd};
use crate::journal::{
    AccountId, Instance, Journal, JournalAddress, JournalError, Lease, LetterDeeds, PostgresJournal, SqliteJournal,
};
use crate::model::{Address, Timestamp, ids};
use crate::observe::metrics::{Meters, Metrics, ReplayMeter, SpanMeter};
use crate::observe::traces::Tracer;
use crate::policy::retry_schedule::RetrySchedule;
use crate::policy::routes::contract_errors;
use crate::signer::{LocalSigner, RemoteSigner, Signer};
use crate::stages::dead_letters::replay_guard::ReplayGuard;
use crate::stages::dead_letters::replayer::{OPERATOR, Replayer};
use crate::stages::lane::{LaneSettings, LaneSignals, LaneState};
use crate::stages::pipeline::{Pipeline, PipelineSettings, Seams, Stage, Stops};
use crate::stages::settle::SettleSettings;

/// Deliveries between the broker and intake; what waits there is unacked and counts to the prefetch.
const DELIVERIES: usize = 256;
/// A stage that stands still longer than this, or than several answers of a node or a signer may take, is stuck.
const STALL: Duration = Duration::from_secs(60);
/// Answers of a node, and rounds of a signer's answers, that a stage may wait for one after the other.
const NODE_ANSWERS: u32 = 6;
const SIGNER_ROUNDS: u32 = 8;

/// The names of the tasks that drain first, in their order.
const BEFORE_SETTLE: [&str; 2] = ["intake", "lane"];

/// The names of the tasks that end when no other runs.
const LAST: [&str; 3] = ["systemd", "http", "exporter"];

/// What the broker needs of the settings.
pub fn broker_settings(settings: &Settings) -> BrokerSettings {
    let broker = &settings.broker;
    BrokerSettings {
        uri: broker.uri.clone(),
        client_name: settings.worker.full_name(),
        prefetch: broker.prefetch,
        is_ordered: broker.single_active_consumer || settings.admission.is_strict(),
        topology: Topology::new(broker.names.clone(), delays(settings))
            .with_binds(broker.binds.clone())
            .with_single_active_consumer(broker.single_active_consumer),
        topology_mode: broker.topology,
        call_timeout: broker.call_timeout,
        confirm_timeout: broker.confirm_timeout,
        publish_channels: broker.publish_channels,
        reconnect: broker.reconnect,
    }
}

/// What the chain's client needs of the settings.
pub fn client_settings(settings: &Settings) -> ClientSettings {
    let chain = &settings.chain;
    ClientSettings {
        chain_id: chain.id,
        endpoints: chain.endpoints.clone(),
        timeout: chain.timeout,
        batch_size: chain.batch_size,
        max_lag: chain.max_lag,
        errors: Arc::clone(&chain.errors),
        tracer: Tracer::default(),
    }
}

fn schedule(settings: &Settings) -> RetrySchedule {
    let retry = &settings.retry;
    RetrySchedule::new(retry.max_attempts, retry.initial_delay, retry.multiplier, retry.max_delay)
}

/// One wait queue for each delay of a retry, and one for parks.
fn delays(settings: &Settings) -> Vec<Duration> {
    let mut delays = schedule(settings).levels();
    delays.push(settings.broker.park_delay);
    delays.sort_unstable();
    delays.dedup();
    delays
}

/// What the daemon has from whoever starts it.
pub struct RunContext {
    /// What its log said last.
    pub recent: RecentLines,
    /// How its configuration is read once more.
    pub reloading: Reloading,
}

/// The daemon: runs until it has drained after a signal.
///
/// # Errors
/// What keeps it from starting, or the first task that fails. A [`JournalError`] is in the chain if it was the journal.
pub async fn run(settings: Settings, around: RunContext) -> anyhow::Result<()> {
    let hangups = Hangups::new()?;
    match settings.journal.address.clone() {
        JournalAddress::Sqlite(path) => run_with(SqliteJournal::open(&path).await?, settings, around, hangups).await,
        JournalAddress::Postgres(address) => {
            run_with(PostgresJournal::open(&address).await?, settings, around, hangups).await
        }
    }
}

async fn run_with<J: Journal + LetterDeeds + 'static>(
    journal: J,
    settings: Settings,
    around: RunContext,
    hangups: Hangups,
) -> anyhow::Result<()> {
    let RunContext { recent, reloading } = around;
    let journal = Arc::new(journal);
    let owner: Arc<str> = format!("{}/{}", settings.worker.full_name(), ids::unique()).into();
    let mut tasks = Tasks::default();
    let tokens = Tokens::default();
    let broker = Broker::new(broker_settings(&settings), tasks.heartbeat("broker"));
    let broker_state = broker.state();
    let (deliver, deliveries) = mpsc::channel(DELIVERIES);
    let span_meter = SpanMeter::default();
    let tracer = tracer(&settings, &span_meter, &mut tasks, &tokens.last)?;
    let signers = settings.signers.iter().map(|section| signer(section, &tracer)).collect::<Result<Vec<_>, _>>()?;
    let mut accounts = Vec::with_capacity(signers.len());
    for signer in &signers {
        accounts.push(journal.account(settings.chain.id, signer.address()).await?);
    }
    let client = ClientSettings { tracer: tracer.clone(), ..client_settings(&settings) };
    let node = Arc::new(NodeClient::new(&client).context("cannot make the HTTP client")?);
    let addresses: Vec<_> = signers.iter().map(|signer| signer.address()).collect();
    let seams = Seams {
        journal: journal.clone(),
        chain: node.clone(),
        signers,
        publisher: Arc::new(broker.publisher()),
        deliveries,
    };
    let adjustable = Adjustable::new(&settings);
    let Pipeline { stages, lanes, flow, meters } =
        Pipeline::new(seams, pipeline_settings(&settings, &adjustable, accounts, &owner, tracer), &tokens.stages);
    for Stage { name, beat, run } in stages {
        if let Some(beat) = beat {
            tasks.watch(name, beat);
        }
        tasks.spawn(name, run);
    }
    let replay_meter = ReplayMeter::default();
    let meters = Meters {
        chain: node.meter(),
        publisher: broker.meter(),
        journal: journal.meter(),
        log: recent.meter(),
        replay: replay_meter.clone(),
        traces: span_meter,
        ..meters
    };
    let (told_stuck, stuck) = watch::channel(Vec::new());
    let sources = Sources {
        worker: settings.worker.full_name(),
        queue: settings.broker.names.work.clone(),
        chain_id: settings.chain.id,
        broker: broker_state.clone(),
        flow: flow.clone(),
        lanes: addresses.into_iter().zip(&lanes).map(|(account, (_, signals))| view(account, signals)).collect(),
        node,
        journal: journal.clone(),
        settle: meters.settle.clone(),
        stuck,
        draining: tokens.stages.intake.clone(),
        recent,
    };
    let observer = Arc::new(Observer::new(sources, Metrics::new(&meters)));
    let (looks, stop_looking) = (Arc::clone(&observer), tokens.stages.outbox.clone());
    tasks.spawn("observer", async move {
        looks.run(stop_looking).await;
        Ok::<_, JournalError>(())
    });
    if let Some(listen) = settings.http_listen {
        tasks.spawn("http", status::serve(listen, observer, tokens.last.clone()));
    }

    let (stop_consuming, close) = (tokens.stages.intake.clone(), tokens.broker.clone());
    let sessions = broker.run(deliver, flow, stop_consuming, close);
    tasks.spawn("broker", async {
        sessions.await;
        Ok::<_, JournalError>(())
    });

    if !settings.dead.rules.is_empty() {
        let replayer = Replayer {
            rules: settings.dead.rules.clone(),
            look_every: settings.dead.look_every,
            admission: settings.admission.clone(),
            broker: broker_settings(&settings),
            judge: ReplayGuard::new(journal.clone(), OPERATOR.to_owned(), settings.journal.retention),
            instances: journal.clone(),
            owner: Arc::clone(&owner),
            meter: replay_meter,
        };
        tasks.spawn("replayer", replayer.run(tokens.stages.intake.clone()));
    }
    let stop_reading = tokens.stages.intake.clone();
    tasks.spawn("reload", reload::run(settings.clone(), reloading, adjustable, hangups, stop_reading));

    let states: Vec<_> = lanes.iter().map(|(_, signals)| signals.state.subscribe()).collect();
    let status = move || status_line(&broker_state.borrow(), &states);
    tasks.spawn("systemd", tell_systemd(tasks.beats(), stall(&settings), status, told_stuck, tokens.last.clone()));

    info!(
        worker = settings.worker.full_name(),
        queue = settings.broker.names.work,
        chain.id = settings.chain.id,
        signers = lanes.len(),
        "chainwriter {} runs",
        env!("CARGO_PKG_VERSION")
    );
    let drained = tasks.run_until_drained(settings.worker.drain_deadline, |running| tokens.stop_next(running)).await;
    release_leases(journal.as_ref(), lanes.iter().map(|(_, signals)| signals.lease.borrow().clone())).await;
    journal.close().await;
    drained
}

/// Who follows requests, with the task that sends what it makes to a collector.
#[cfg(feature = "otlp")]
fn tracer(
    settings: &Settings,
    meter: &SpanMeter,
    tasks: &mut Tasks,
    stop: &CancellationToken,
) -> anyhow::Result<Tracer> {
    let Some(traces) = &settings.traces else { return Ok(Tracer::default()) };
    let exporter = crate::observe::exporter::Exporter::new(&exporter_settings(settings, traces))?;
    let share = traces.sample;
    let scope = format!("{}/{}", settings.broker.names.work, settings.chain.id);
    let (tracer, spans) = Tracer::new(crate::observe::traces::Sampling { scope, share }, meter.clone());
    tasks.spawn("exporter", exporter.run(spans, meter.clone(), stop.clone()));
    Ok(tracer)
}

/// Nobody: this build exports nothing, and a configuration that wants it is refused.
#[cfg(not(feature = "otlp"))]
fn tracer(_: &Settings, _: &SpanMeter, _: &mut Tasks, _: &CancellationToken) -> anyhow::Result<Tracer> {
    Ok(Tracer::default())
}

/// What the exporter needs of the settings.
#[cfg(feature = "otlp")]
pub fn exporter_settings(
    settings: &Settings,
    traces: &crate::config::TracesSection,
) -> crate::observe::exporter::ExporterSettings {
    crate::observe::exporter::ExporterSettings {
        endpoint: traces.endpoint.clone(),
        timeout: traces.timeout,
        queue: settings.broker.names.work.clone(),
        organisation: settings.worker.organisation.clone(),
        instance: settings.worker.instance.clone(),
    }
}

/// The signer that this section describes.
///
/// # Errors
/// When its HTTP client cannot be made.
pub fn signer(section: &SignerSection, tracer: &Tracer) -> anyhow::Result<Arc<dyn Signer>> {
    Ok(match section {
        SignerSection::Local(signer) => Arc::new(LocalSigner::clone(signer)),
        SignerSection::Remote(settings) => {
            Arc::new(RemoteSigner::new(settings, tracer.clone()).context("cannot make the HTTP client")?)
        }
    })
}

fn stall(settings: &Settings) -> Duration {
    // A call may be tried at each endpoint.
    let endpoints = u32::try_from(settings.chain.endpoints.len()).unwrap_or(u32::MAX);
    let node = settings.chain.timeout.saturating_mul(endpoints).saturating_mul(NODE_ANSWERS);
    let signers = settings.signers.iter().map(|signer| match signer {
        SignerSection::Local(_) => Duration::ZERO,
        SignerSection::Remote(settings) => settings.timeout.saturating_mul(SIGNER_ROUNDS),
    });
    signers.fold(STALL.max(node), Duration::max)
}

/// So that another instance need not wait for them to run out. Only when nothing writes under them any more.
async fn release_leases<J: Journal>(journal: &J, leases: impl Iterator<Item = Option<Lease>>) {
    for lease in leases.flatten() {
        if let Err(error) = journal.release_lease(&lease).await {
            info!(account = %lease.account, %error, "the lease was not given up; it runs out by itself");
        }
    }
}

fn view(account: Address, signals: &LaneSignals) -> LaneView {
    LaneView { account, state: signals.state.subscribe(), is_open: signals.is_open.subscribe() }
}

/// What ends the tasks: the stages first, then the broker's connections, then those that tell how it goes.
#[derive(Default)]
struct Tokens {
    stages: Stops,
    broker: CancellationToken,
    last: CancellationToken,
}

impl Tokens {
    fn stop_next(&self, running: &[&'static str]) {
        let runs = |name| running.contains(&name);
        self.stages.intake.cancel();
        self.stages.lanes.cancel();
        if !BEFORE_SETTLE.into_iter().any(runs) && !runs("settle") {
            self.stages.outbox.cancel();
            if !runs("outbox") {
                self.broker.cancel();
            }
        }
        if running.iter().all(|name| LAST.contains(name)) {
            self.last.cancel();
        }
    }
}

fn pipeline_settings(
    settings: &Settings,
    adjustable: &Adjustable,
    accounts: Vec<AccountId>,
    owner: &Arc<str>,
    tracer: Tracer,
) -> PipelineSettings {
    PipelineSettings {
        lanes: accounts
            .iter()
            .map(|account| lane_settings(settings, adjustable, *account, Arc::clone(owner), tracer.clone()))
            .collect(),
        admission: settings.admission.clone(),
        settle: settle_settings(settings, tracer),
        max_open: adjustable.max_open.subscribe(),
        retention: settings.journal.retention,
        lease_ttl: settings.lease_ttl,
        instance: Instance {
            owner: Arc::clone(owner),
            worker: settings.worker.full_name(),
            host: hostname::get().unwrap_or_default().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Timestamp::now(),
            accounts,
        },
    }
}

fn lane_settings(
    settings: &Settings,
    adjustable: &Adjustable,
    account: AccountId,
    owner: Arc<str>,
    tracer: Tracer,
) -> LaneSettings {
    let chain = &settings.chain;
    LaneSettings {
        chain_id: chain.id,
        account,
        tuning: adjustable.tuning.subscribe(),
        finality: chain.finality,
        in_flight: chain.in_flight,
        is_strict: settings.admission.is_strict(),
        batching: Arc::clone(&settings.batching),
        permits: Arc::clone(&settings.admission.permits),
        poll_interval: chain.poll_interval,
        contract_errors: Arc::new(contract_errors(&settings.admission.routes)),
        errors: Arc::clone(&chain.errors),
        lease_ttl: settings.lease_ttl,
        owner,
        tracer,
    }
}

fn settle_settings(settings: &Settings, tracer: Tracer) -> SettleSettings {
    SettleSettings {
        organisation: settings.worker.organisation.clone(),
        worker: settings.worker.full_name(),
        names: settings.broker.names.clone(),
        schedule: schedule(settings),
        max_hold: settings.broker.max_hold,
        park_delay: settings.broker.park_delay,
        waits: delays(settings),
        publishes_in_flight: settings.broker.publish_channels,
        tracer,
    }
}

fn status_line(broker: &crate::broker::BrokerState, lanes: &[watch::Receiver<LaneState>]) -> String {
    use crate::broker::BrokerState as B;
    let broker = match broker {
        B::Connecting(why) => format!("broker away: {why}"),
        B::Consuming => "consuming".to_owned(),
        B::Paused => "connected, deliveries paused".to_owned(),
        B::Blocked(why) => format!("broker takes no messages: {why}"),
    };
    let lanes = lanes.iter().map(|lane| {
        let lane = lane.borrow();
        let throttled = lane.throttled.map_or(String::new(), |throttled| format!(", throttled by {throttled}"));
        let block = lane.head.map_or("no block seen".to_owned(), |head| format!("block {head}"));
        match &lane.paused {
            Some((reason, detail)) => format!("paused ({reason}): {detail}"),
            None if !lane.is_owner => "stands by".to_owned(),
            None => format!("{} in flight, {block}{throttled}", lane.in_flight),
        }
    });
    std::iter::once(broker).chain(lanes).collect::<Vec<_>>().join("; ")
}
