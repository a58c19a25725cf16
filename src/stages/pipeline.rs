//! The pipeline: every stage between the four seams, built and connected. What is behind the seams is not its business.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::broker::{Delivery, Flow, Publisher};
use crate::chain::Chain;
use crate::journal::{AccountId, Changes, Instance, Journal, JournalError, Upkeep};
use crate::model::{Heartbeat, Timestamp};
use crate::observe::metrics::{LaneMeter, Meters};
use crate::policy::admission::AdmissionRules;
use crate::signer::Signer;
use crate::stages::assignment::{AssignedLane, Assignment};
use crate::stages::intake::{Intake, IntakeLane};
use crate::stages::lane::{Lane, LaneSettings, LaneSignals, LaneState};
use crate::stages::outbox::OutboxStage;
use crate::stages::settle::{Settle, SettleSettings};

/// Receipts and rulings between stages.
const HANDOVERS: usize = 1024;
/// How often old rows are looked for, and how many go in one commit.
const PRUNE: (Duration, u32) = (Duration::from_secs(600), 512);

/// What the stages stand on.
pub struct Seams<J> {
    pub journal: Arc<J>,
    pub chain: Arc<dyn Chain>,
    /// One signer for each lane, in the order of the lanes' settings.
    pub signers: Vec<Arc<dyn Signer>>,
    pub publisher: Arc<dyn Publisher>,
    pub deliveries: mpsc::Receiver<Delivery>,
}

/// What the stages are told.
pub struct PipelineSettings {
    /// This run, as other instances see it.
    pub instance: Instance,
    /// For how long a lease holds without being renewed, and an instance counts as there after its last word.
    pub lease_ttl: Duration,
    /// One for each account.
    pub lanes: Vec<LaneSettings>,
    /// What makes a message a request.
    pub admission: AdmissionRules,
    pub settle: SettleSettings,
    /// No new deliveries while this many requests are open.
    pub max_open: watch::Receiver<u64>,
    /// For how long settled requests are remembered.
    pub retention: Duration,
}

/// What ends the stages, in the order of a drain: no more deliveries and no new transactions; then everything settles by
/// itself; then the events go out.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    pub intake: CancellationToken,
    pub lanes: CancellationToken,
    /// Ends the outbox, once it is empty, and the upkeep.
    pub outbox: CancellationToken,
}

/// A stage, ready to run.
pub struct Stage {
    /// What it is called in logs.
    pub name: &'static str,
    /// Sign of life; the upkeep gives none.
    pub beat: Option<Heartbeat>,
    /// Runs until it is stopped, or until the journal fails.
    pub run: Pin<Box<dyn Future<Output = Result<(), JournalError>> + Send>>,
}

/// The stages, and what can be seen of them from outside.
pub struct Pipeline {
    /// All of them; none runs yet.
    pub stages: Vec<Stage>,
    /// Accounts and how their lanes stand.
    pub lanes: Vec<(AccountId, LaneSignals)>,
    /// Whether deliveries are wanted.
    pub flow: watch::Receiver<Flow>,
    /// What the stages count.
    pub meters: Meters,
}

impl Pipeline {
    /// Builds every stage and connects them.
    pub fn new<J: Journal + 'static>(seams: Seams<J>, settings: PipelineSettings, stops: &Stops) -> Self {
        let Seams { journal, chain, signers, publisher, deliveries } = seams;
        let mut stages = Vec::new();
        let outbox_wake = Arc::new(Notify::new());
        let (to_settle, from_intake) = mpsc::channel(HANDOVERS);
        let (from_lane, from_lanes) = mpsc::channel(HANDOVERS);
        let flow = watch::Sender::new(Flow::Paused);
        let wants = flow.subscribe();

        let mut meters = Meters::default();
        let mut lanes = Vec::new();
        for (lane_settings, signer) in settings.lanes.into_iter().zip(signers) {
            let (account, signals) = (lane_settings.account, lane_signals(meters.lane.clone()));
            let chain = Arc::clone(&chain);
            let lane = Lane::new(lane_settings, chain, signer, journal.clone(), from_lane.clone(), signals.clone());
            stages.push(stage("lane", &signals.beat, lane.run(stops.lanes.clone())));
            lanes.push((account, signals));
        }
        // Settle ends when the last lane has gone.
        drop(from_lane);

        let beat = Heartbeat::default();
        let owners_changed = Arc::new(Notify::new());
        let spreading = Assignment {
            instance: settings.instance,
            ttl: settings.lease_ttl,
            journal: journal.clone(),
            lanes: lanes.iter().map(|(account, signals)| seat(*account, signals)).collect(),
            changed: Arc::clone(&owners_changed),
            beat: beat.clone(),
        };
        stages.push(stage("spreading", &beat, spreading.run(stops.lanes.clone())));

        let beat = Heartbeat::default();
        let intake = Intake {
            rules: settings.admission,
            lanes: lanes.iter().map(|(account, signals)| door(*account, signals)).collect(),
            journal: journal.clone(),
            settle: to_settle,
            flow,
            max_open: settings.max_open,
            beat: beat.clone(),
            meter: meters.intake.clone(),
        };
        stages.push(stage("intake", &beat, intake.run(deliveries, stops.intake.clone())));

        let beat = Heartbeat::default();
        let exchange = settings.settle.names.events.clone();
        let (notify, publishes) = (Arc::clone(&outbox_wake), Arc::clone(&publisher));
        let ended = lanes.iter().map(|(_, signals)| Arc::clone(&signals.ended)).collect();
        let tracer = settings.settle.tracer.clone();
        let settle = Settle::new(settings.settle, journal.clone(), publishes, notify, ended, beat.clone());
        let settled = settle.settled();
        meters.settle = settle.meter();
        stages.push(stage("settle", &beat, settle.run(from_intake, from_lanes)));

        let beat = Heartbeat::default();
        let outbox = OutboxStage {
            journal: journal.clone(),
            publisher,
            exchange,
            accounts: lanes.iter().map(|(account, signals)| (*account, signals.lease.subscribe())).collect(),
            wake: outbox_wake,
            beat: beat.clone(),
            tracer,
        };
        stages.push(stage("outbox", &beat, outbox.run(stops.outbox.clone())));
        if let Some(changes) = journal.changes() {
            let wakes = lanes.iter().map(|(_, signals)| Arc::clone(&signals.wake)).collect();
            let news = pass_on(changes, owners_changed, wakes, settled, stops.outbox.clone());
            stages.push(Stage { name: "news", beat: None, run: Box::pin(news) });
        }
        let upkeep = upkeep(journal, settings.retention, stops.outbox.clone());
        stages.push(Stage { name: "upkeep", beat: None, run: Box::pin(upkeep) });
        Self { stages, lanes, flow: wants, meters }
    }
}

fn stage(
    name: &'static str,
    beat: &Heartbeat,
    run: impl Future<Output = Result<(), JournalError>> + Send + 'static,
) -> Stage {
    Stage { name, beat: Some(beat.clone()), run: Box::pin(run) }
}

fn lane_signals(meter: LaneMeter) -> LaneSignals {
    LaneSignals {
        wake: Arc::new(Notify::new()),
        is_assigned: watch::Sender::new(None),
        is_cut_off: watch::Sender::new(false),
        released: Arc::new(Notify::new()),
        ended: Arc::new(Notify::new()),
        state: watch::Sender::new(LaneState::default()),
        lease: watch::Sender::new(None),
        is_open: watch::Sender::new(false),
        beat: Heartbeat::default(),
        meter,
    }
}

fn door(account: AccountId, signals: &LaneSignals) -> IntakeLane {
    IntakeLane { account, wake: Arc::clone(&signals.wake), is_open: signals.is_open.subscribe(), load: 0 }
}

fn seat(account: AccountId, signals: &LaneSignals) -> AssignedLane {
    AssignedLane {
        account,
        is_assigned: signals.is_assigned.clone(),
        lease: signals.lease.subscribe(),
        is_cut_off: signals.is_cut_off.subscribe(),
        look: Arc::clone(&signals.released),
    }
}

/// Wakes whoever waits for what another instance did.
async fn pass_on(
    mut changes: Changes,
    owners_changed: Arc<Notify>,
    lanes: Vec<Arc<Notify>>,
    settled: Arc<Notify>,
    cancel: CancellationToken,
) -> Result<(), JournalError> {
    loop {
        let (owners, worked) = tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            news = changes.next() => news,
        };
        if owners {
            owners_changed.notify_one();
        }
        if worked {
            lanes.iter().for_each(|lane| lane.notify_one());
            settled.notify_one();
        }
    }
}

/// Forgets settled requests when their time has come, few at a time.
async fn upkeep<J: Upkeep>(
    journal: Arc<J>,
    retention: Duration,
    cancel: CancellationToken,
) -> Result<(), JournalError> {
    loop {
        while journal.prune(Timestamp::now().before(retention), PRUNE.1).await? > 0 && !cancel.is_cancelled() {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(PRUNE.0) => {}
        }
    }
}
