//! The composition root: the only place that sees all settings. Builds every part, connects them, starts the tasks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal as hangups};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::broker::{Broker, BrokerState};
use crate::chain::{ClientSettings, NodeClient};
use crate::config::{Settings, SignerSection};
use crate::daemon::control;
use crate::daemon::reload::{self, Adjustable, Reloading, Triggers};
use crate::daemon::status::{self, LaneView, Observer, RecentLines, RequestPages, Sources, status_line};
use crate::daemon::supervisor::{Tasks, notify_systemd, while_starting};
use crate::journal::{
    AccountId, Actor, Instance, Journal, JournalAddress, JournalError, Lease, LetterDeeds, OperatorLog,
    PostgresJournal, SentEvents, SqliteJournal,
};
use crate::model::{Heartbeat, Timestamp, ids};
use crate::observe::metrics::{Meters, Metrics, ReplayMeter, SpanMeter};
use crate::observe::traces::Tracer;
use crate::policy::admission::AdmissionRules;
use crate::signer::{LocalSigner, RemoteSigner, Signer};
use crate::stages::claim::Serving;
use crate::stages::dead_letters::replay_guard::ReplayGuard;
use crate::stages::dead_letters::replayer::Replayer;
use crate::stages::lane::{LaneSettings, LaneSignals};
use crate::stages::pipeline::{Pipeline, PipelineSettings, Seams, Stage, Stops};
use crate::stages::settle::SettleSettings;
use crate::stages::upkeep::Pace;

/// Deliveries between the broker and intake; what waits there is unacked and counts to the prefetch.
const DELIVERIES: usize = 256;
/// A stage that stands still longer than this, or than several answers of a node or a signer may take, is stuck.
const STALL: Duration = Duration::from_secs(60);
/// Answers of a node, and rounds of a signer's answers, that a stage may wait for one after the other.
const NODE_ANSWERS: u32 = 6;
const SIGNER_ROUNDS: u32 = 8;

/// The tasks that end before the outbox may.
const BEFORE_OUTBOX: [&str; 3] = ["intake", "lane", "settle"];

/// The tasks that end when no other runs.
const LAST: [&str; 3] = ["systemd", "http", "exporter"];

/// Runs the daemon until it has drained after a signal.
///
/// # Errors
/// When the daemon cannot start, or when a task fails. A [`JournalError`] is in the chain if it was the journal.
pub async fn run(settings: Settings, recent: RecentLines, reloading: Reloading) -> anyhow::Result<()> {
    // From here on the signal no longer ends the process.
    let hangups = hangups(SignalKind::hangup())?;
    let parts = (recent, reloading, hangups);
    let doing = "starting: opening the journal";
    match settings.journal.address.clone() {
        JournalAddress::Sqlite(path) => {
            let journal = while_starting(doing, SqliteJournal::open(&path)).await?;
            run_with(journal, settings, parts).await
        }
        JournalAddress::Postgres(address) => {
            let journal = while_starting(doing, PostgresJournal::open(&address)).await?;
            run_with(journal, settings, parts).await
        }
    }
}

/// The parts that the settings do not describe: the log's last lines, how the settings are read again, and the signal that
/// asks for that.
type Parts = (RecentLines, Reloading, Signal);

async fn run_with<J: Journal + LetterDeeds + OperatorLog + SentEvents + 'static>(
    journal: J,
    settings: Settings,
    parts: Parts,
) -> anyhow::Result<()> {
    let owner = format!("{}/{}", settings.worker.full_name(), ids::unique()).into();
    let (journal, tasks, tokens) = (Arc::new(journal), Tasks::default(), Tokens::default());
    let mut daemon = Daemon { settings: &settings, journal, owner, tasks, tokens };
    let lanes = daemon.start(parts).await?;
    info!(
        worker = settings.worker.full_name(),
        queue = settings.queue(),
        chain.id = settings.chain.chain_id,
        signers = settings.signers.len(),
        "chainwriter {} runs",
        env!("CARGO_PKG_VERSION")
    );
    let Daemon { journal, tasks, tokens, .. } = daemon;
    let drained = tasks.run_until_drained(settings.worker.drain_deadline, |running| tokens.stop_next(running)).await;
    release_leases(journal.as_ref(), lanes.iter().map(|(_, signals)| signals.lease.borrow().clone())).await;
    journal.close().await;
    drained
}

struct Daemon<'s, J> {
    settings: &'s Settings,
    journal: Arc<J>,
    /// This run's name as an owner of lanes.
    owner: Arc<str>,
    tasks: Tasks,
    tokens: Tokens,
}

impl<J: Journal + LetterDeeds + OperatorLog + SentEvents + 'static> Daemon<'_, J> {
    /// Builds all parts, connects them, and spawns their tasks. Returns the lanes.
    async fn start(&mut self, (recent, reloading, hangups): Parts) -> anyhow::Result<Vec<(AccountId, LaneSignals)>> {
        let (settings, journal) = (self.settings, Arc::clone(&self.journal));
        let beat = Heartbeat::default();
        self.tasks.watch("broker", beat.clone());
        let broker = Broker::new(settings.broker.clone(), beat);
        let (broker_state, publish_meter, prefetch) = (broker.state(), broker.meter(), broker.prefetch());
        let (deliver, deliveries) = mpsc::channel(DELIVERIES);
        let (traces, replay) = (SpanMeter::default(), ReplayMeter::default());
        let tracer = self.tracer(&traces)?;
        let signers = settings.signers.iter().map(|section| signer(section, &tracer)).collect::<Result<Vec<_>, _>>()?;
        let accounts = self.accounts(&signers).await?;
        let client = ClientSettings { tracer: tracer.clone(), ..settings.chain.clone() };
        let node = Arc::new(NodeClient::new(&client).context("cannot make the HTTP client")?);
        let adjustable = Adjustable::new(settings);
        let (publisher, markers) = (Arc::new(broker.publisher()), Arc::new(broker.markers()));
        let seams = Seams { journal: journal.clone(), chain: node.clone(), signers, publisher, markers, deliveries };
        let of_stages = self.pipeline_settings(&adjustable, accounts, tracer);
        let Pipeline { stages, lanes, flow, serving, meters } = Pipeline::new(seams, of_stages, &self.tokens.stages);
        self.spawn_stages(stages);
        let meters = Meters {
            chain: node.meter(),
            publisher: publish_meter,
            journal: journal.meter(),
            log: recent.meter(),
            replay: replay.clone(),
            traces,
            ..meters
        };
        self.spawn_heads(&node);
        let (publish_stuck, stuck) = watch::channel(Vec::new());
        let sources = Sources {
            worker: settings.worker.full_name(),
            queue: settings.queue().to_owned(),
            chain_id: settings.chain.chain_id,
            broker: broker_state.clone(),
            prefetch,
            flow: flow.clone(),
            serving: serving.clone(),
            lanes: settings.signers.iter().zip(&lanes).map(|(signer, (_, signals))| view(signer, signals)).collect(),
            retiring: adjustable.retiring.subscribe(),
            node,
            journal,
            intake: meters.intake.clone(),
            settle: meters.settle.clone(),
            stuck,
            draining: self.tokens.stages.intake.clone(),
            recent,
        };
        self.spawn_observer(Observer::new(sources, Metrics::new(&meters)));
        let hunger = lanes.iter().map(|(_, signals)| signals.is_hungry.subscribe()).collect();
        let sessions = broker.run(deliver, flow, hunger, self.tokens.stages.intake.clone(), self.tokens.broker.clone());
        self.tasks.spawn_endless("broker", sessions);
        self.spawn_replayer(replay, adjustable.admission.subscribe(), serving.clone());
        self.spawn_reloads(reloading, adjustable, hangups);
        self.spawn_systemd((broker_state, serving), &lanes, publish_stuck);
        Ok(lanes)
    }

    fn spawn_heads(&mut self, node: &Arc<NodeClient>) {
        if !self.settings.chain.heads.is_empty() {
            let listening = Arc::clone(node);
            let heads = async move { match listening.listen().await {} };
            self.tasks.spawn_until("heads", self.tokens.stages.outbox.clone(), heads);
        }
    }

    fn spawn_stages(&mut self, stages: Vec<Stage>) {
        for Stage { name, beat, run } in stages {
            if let Some(beat) = beat {
                self.tasks.watch(name, beat);
            }
            self.tasks.spawn(name, run);
        }
    }

    fn spawn_observer(&mut self, observer: Observer) {
        let observer = Arc::new(observer);
        let polls = Arc::clone(&observer);
        self.tasks.spawn_until("observer", self.tokens.stages.outbox.clone(), async move { polls.run().await });
        if let Some(listen) = self.settings.http_listen {
            let token = self.settings.http_token.clone();
            let requests = token.map(|token| Arc::new(RequestPages::new(self.journal.clone(), token)));
            self.tasks.spawn_until("http", self.tokens.last.clone(), status::serve(listen, observer, requests));
        }
    }

    fn spawn_replayer(
        &mut self,
        meter: ReplayMeter,
        admission: watch::Receiver<AdmissionRules>,
        mut serving: watch::Receiver<Serving>,
    ) {
        let Self { settings, journal, .. } = self;
        if settings.dead.rules.is_empty() {
            return;
        }
        let replayer = Replayer {
            rules: settings.dead.clone(),
            admission,
            broker: settings.broker.clone(),
            guard: ReplayGuard::new(journal.clone(), Actor::Rule, settings.journal.retention),
            instances: journal.clone(),
            owner: Arc::clone(&self.owner),
            meter,
        };
        let stop = self.tokens.stages.intake.clone();
        self.tasks.spawn("replayer", async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = serving.wait_for(|serving| *serving == Serving::Serves) => {}
            }
            replayer.run(stop).await
        });
    }

    fn spawn_reloads(&mut self, reloading: Reloading, adjustable: Adjustable, hangups: Signal) {
        let (ask, requests) = mpsc::channel(1);
        let stop = &self.tokens.stages.intake;
        if let Some(folder) = control::folder() {
            self.tasks.spawn_until("control", stop.clone(), control::listen(folder, ask));
        }
        let reloads = reload::run(self.settings.clone(), reloading, adjustable, Triggers { hangups, requests });
        self.tasks.spawn_until("reload", stop.clone(), reloads);
    }

    fn spawn_systemd(
        &mut self,
        (broker, serving): (watch::Receiver<BrokerState>, watch::Receiver<Serving>),
        lanes: &[(AccountId, LaneSignals)],
        publish_stuck: watch::Sender<Vec<&'static str>>,
    ) {
        let states: Vec<_> = lanes.iter().map(|(_, signals)| signals.state.subscribe()).collect();
        let status = move || status_line(&broker.borrow(), &serving.borrow(), &states);
        let notifier = notify_systemd(self.tasks.beats(), stall(self.settings), status, publish_stuck);
        self.tasks.spawn_until("systemd", self.tokens.last.clone(), notifier);
    }

    /// Returns the journal's number of each signer's account.
    async fn accounts(&self, signers: &[Arc<dyn Signer>]) -> Result<Vec<AccountId>, JournalError> {
        let mut accounts = Vec::with_capacity(signers.len());
        for signer in signers {
            accounts.push(self.journal.account(self.settings.chain.chain_id, signer.address()).await?);
        }
        Ok(accounts)
    }

    /// Makes the tracer, and spawns the task that sends its spans to a collector.
    #[cfg(feature = "otlp")]
    fn tracer(&mut self, meter: &SpanMeter) -> anyhow::Result<Tracer> {
        let Some(traces) = &self.settings.traces else { return Ok(Tracer::default()) };
        let exporter = crate::observe::exporter::Exporter::new(&traces.exporter)?;
        let (tracer, spans) = Tracer::new(traces.sampling.clone(), meter.clone());
        self.tasks.spawn("exporter", exporter.run(spans, meter.clone(), self.tokens.last.clone()));
        Ok(tracer)
    }

    /// Makes one that traces nothing: this build exports nothing, and refuses a configuration that wants it.
    #[cfg(not(feature = "otlp"))]
    fn tracer(&mut self, _: &SpanMeter) -> anyhow::Result<Tracer> {
        Ok(Tracer::default())
    }

    fn pipeline_settings(&self, adjustable: &Adjustable, accounts: Vec<AccountId>, tracer: Tracer) -> PipelineSettings {
        let Self { settings, owner, .. } = self;
        let lane = |account: &AccountId| LaneSettings {
            account: *account,
            rules: settings.lane.clone(),
            tuning: adjustable.tuning.subscribe(),
            newer_routes: adjustable.routes.subscribe(),
            owner: Arc::clone(owner),
            tracer: tracer.clone(),
        };
        PipelineSettings {
            lanes: accounts.iter().map(lane).collect(),
            admission: adjustable.admission.subscribe(),
            retiring: adjustable.retiring.subscribe(),
            settle: SettleSettings {
                tracer: tracer.clone(),
                read_headers: adjustable.read_headers.subscribe(),
                newer_retries: adjustable.retries.subscribe(),
                ..settings.settle.clone()
            },
            replies: Arc::clone(&settings.replies),
            max_open: adjustable.max_open.subscribe(),
            upkeep: Pace::of(
                settings.journal.retention,
                settings.journal.keep_events,
                settings.settle.waits.iter().max().copied().unwrap_or_default(),
                settings.broker.consumer_timeout,
            ),
            lease_ttl: settings.lane.lease_ttl,
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
}

/// Makes the signer that this section describes.
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

/// Gives the leases up, so that another instance need not wait for them to run out. Only when nothing writes under them any
/// more.
async fn release_leases<J: Journal>(journal: &J, leases: impl Iterator<Item = Option<Lease>>) {
    for lease in leases.flatten() {
        if let Err(error) = journal.release_lease(&lease).await {
            info!(account = %lease.account, %error, "the lease was not given up; it runs out by itself");
        }
    }
}

fn view(signer: &SignerSection, signals: &LaneSignals) -> LaneView {
    LaneView { account: signer.address(), state: signals.state.subscribe(), is_open: signals.is_open.subscribe() }
}

/// Ends the tasks: the stages first, then the broker's connections, then those that report.
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
        if !BEFORE_OUTBOX.into_iter().any(runs) {
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
