//! Builds every stage between the four seams, and connects them.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::broker::{Delivery, Flow, MarkerQueue, Publisher};
use crate::chain::Chain;
use crate::journal::{AccountId, Changes, Instance, Journal, JournalError, StandingHolds};
use crate::model::{Address, Heartbeat};
use crate::observe::metrics::Meters;
use crate::observe::traces::Tracer;
use crate::policy::admission::AdmissionRules;
use crate::policy::replies::ReplyRules;
use crate::signer::Signer;
use crate::stages::assignment::{AssignedLane, Assignment};
use crate::stages::claim::{Claim, ServedPublisher, Serving};
use crate::stages::holds::HoldsStage;
use crate::stages::intake::{Intake, IntakeLane};
use crate::stages::lane::{Lane, LaneSettings, LaneSignals};
use crate::stages::lost_retries::LostRetriesWatch;
use crate::stages::outbox::OutboxStage;
use crate::stages::settle::inbox::{Admitted, FromLane};
use crate::stages::settle::{Settle, SettleSettings};
use crate::stages::upkeep::{Pace, UpkeepStage};

const HANDOVERS: usize = 1024;

pub struct Seams<J> {
    pub journal: Arc<J>,
    pub chain: Arc<dyn Chain>,
    /// One signer for each lane, in the order of the lanes' settings.
    pub signers: Vec<Arc<dyn Signer>>,
    pub publisher: Arc<dyn Publisher>,
    pub markers: Arc<dyn MarkerQueue>,
    pub deliveries: mpsc::Receiver<Delivery>,
}

pub struct PipelineSettings {
    pub instance: Instance,
    /// The time for which a lease holds without renewal, and a registration of an instance counts.
    pub lease_ttl: Duration,
    /// One for each account.
    pub lanes: Vec<LaneSettings>,
    pub admission: watch::Receiver<AdmissionRules>,
    /// Accounts that take no new messages.
    pub retiring: watch::Receiver<BTreeSet<Address>>,
    pub settle: SettleSettings,
    pub replies: Arc<ReplyRules>,
    /// Deliveries pause while this many requests are open.
    pub max_open: watch::Receiver<u64>,
    pub upkeep: Pace,
}

/// Ends the stages, in the order of a drain: no more deliveries and no new transactions; then everything settles by itself;
/// then the events go out.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    pub intake: CancellationToken,
    pub lanes: CancellationToken,
    /// Ends the outbox, once it is empty, and the upkeep.
    pub outbox: CancellationToken,
}

pub struct Stage {
    /// Names the stage in logs.
    pub name: &'static str,
    /// None for stages without a heartbeat.
    pub beat: Option<Heartbeat>,
    /// Runs until it is stopped, or until the journal fails.
    pub run: Pin<Box<dyn Future<Output = Result<(), JournalError>> + Send>>,
}

/// The stages, and how the shell watches them.
pub struct Pipeline {
    /// The caller starts them: none runs yet.
    pub stages: Vec<Stage>,
    pub lanes: Vec<(AccountId, LaneSignals)>,
    pub flow: watch::Receiver<Flow>,
    pub serving: watch::Receiver<Serving>,
    pub meters: Meters,
}

/// Holds what several stages are built with.
struct Parts<'p, J> {
    journal: Arc<J>,
    publisher: Arc<dyn Publisher>,
    holds: watch::Sender<StandingHolds>,
    owners_changed: Arc<Notify>,
    wake_outbox: Arc<Notify>,
    stops: &'p Stops,
}

/// Holds what intake alone is built with.
struct IntakeParts {
    admission: watch::Receiver<AdmissionRules>,
    retiring: watch::Receiver<BTreeSet<Address>>,
    max_open: watch::Receiver<u64>,
    flow: watch::Sender<Flow>,
    settle: mpsc::Sender<Admitted>,
    addresses: BTreeMap<AccountId, Address>,
}

impl Pipeline {
    /// Builds every stage and connects them.
    pub fn new<J: Journal + 'static>(seams: Seams<J>, settings: PipelineSettings, stops: &Stops) -> Self {
        let Seams { journal, chain, signers, publisher, markers, deliveries } = seams;
        let PipelineSettings { instance, lease_ttl, lanes, admission, retiring, settle, replies, max_open, upkeep } =
            settings;
        let (to_settle, from_intake) = mpsc::channel(HANDOVERS);
        let (to_settle_from_lanes, from_lanes) = mpsc::channel(HANDOVERS);
        let flow = watch::Sender::new(Flow::Paused);
        let serving = watch::Sender::new(Serving::Waiting("the broker is not connected".to_owned()));
        let mut pipeline = Self {
            stages: Vec::new(),
            lanes: Vec::new(),
            flow: flow.subscribe(),
            serving: serving.subscribe(),
            meters: Meters::default(),
        };
        let publisher: Arc<dyn Publisher> = Arc::new(ServedPublisher { publisher, serving: pipeline.serving.clone() });
        let (holds, owners_changed, wake_outbox) = Default::default();
        let parts = Parts { journal, publisher, holds, owners_changed, wake_outbox, stops };

        let addresses: BTreeMap<_, _> =
            lanes.iter().zip(&signers).map(|(lane, signer)| (lane.account, signer.address())).collect();
        for (settings, signer) in lanes.into_iter().zip(signers) {
            pipeline.add_lane(&parts, settings, (Arc::clone(&chain), signer), to_settle_from_lanes.clone());
        }
        // Settle ends when the last lane has ended.
        drop(to_settle_from_lanes);
        pipeline.add_claim(&parts, instance.clone(), markers, serving);
        pipeline.add_assignment(&parts, instance, lease_ttl);
        let intake = IntakeParts { admission, retiring, max_open, flow, settle: to_settle, addresses };
        pipeline.add_intake(&parts, intake, settle.park_delay, deliveries);
        let (exchange, tracer) = (settle.names.events.clone(), settle.tracer.clone());
        let shortest = settle.waits.iter().min().copied().unwrap_or(settle.park_delay);
        let way = (settle.names.retry.clone(), settle.names.wait_queue(shortest));
        let (settled, lost) = pipeline.add_settle(&parts, settle, from_intake, from_lanes);
        pipeline.add_outbox(&parts, exchange, replies, tracer);
        pipeline.add_watchers(&parts, settled, way, upkeep, lost);
        pipeline
    }

    fn add_lane<J: Journal + 'static>(
        &mut self,
        parts: &Parts<'_, J>,
        settings: LaneSettings,
        (chain, signer): (Arc<dyn Chain>, Arc<dyn Signer>),
        settle: mpsc::Sender<FromLane>,
    ) {
        let account = settings.account;
        let signals = LaneSignals::new(self.meters.lane.clone(), self.serving.clone(), parts.holds.clone());
        let lane = Lane::new(settings, chain, signer, parts.journal.clone(), settle, signals.clone());
        self.add("lane", &signals.beat, lane.run(parts.stops.lanes.clone()));
        self.lanes.push((account, signals));
    }

    fn add_claim<J: Journal + 'static>(
        &mut self,
        parts: &Parts<'_, J>,
        instance: Instance,
        markers: Arc<dyn MarkerQueue>,
        serving: watch::Sender<Serving>,
    ) {
        let beat = Heartbeat::default();
        let claim = Claim { instance, journal: parts.journal.clone(), markers, serving, beat: beat.clone() };
        // What settle still has to publish at the end waits for it.
        self.add("claim", &beat, claim.run(parts.stops.outbox.clone()));
    }

    fn add_assignment<J: Journal + 'static>(&mut self, parts: &Parts<'_, J>, instance: Instance, ttl: Duration) {
        let beat = Heartbeat::default();
        let (journal, changed) = (parts.journal.clone(), Arc::clone(&parts.owners_changed));
        let lanes = self.of_lanes(assigned_lane);
        let assignment = Assignment { instance, ttl, journal, lanes, changed, beat: beat.clone() };
        self.add("spreading", &beat, assignment.run(parts.stops.lanes.clone()));
    }

    fn add_intake<J: Journal + 'static>(
        &mut self,
        parts: &Parts<'_, J>,
        IntakeParts { mut admission, retiring, max_open, flow, settle, addresses }: IntakeParts,
        park_delay: Duration,
        deliveries: mpsc::Receiver<Delivery>,
    ) {
        let beat = Heartbeat::default();
        let rules = admission.borrow_and_update().clone();
        let intake = Intake {
            rules,
            newer_rules: admission,
            retiring,
            lanes: self.of_lanes(|account, signals| intake_lane(account, &addresses, signals)),
            journal: parts.journal.clone(),
            passages: parts.journal.clone(),
            serving: self.serving.clone(),
            holds: parts.holds.subscribe(),
            park_delay,
            open: 0,
            open_by_route: BTreeMap::new(),
            settle,
            flow,
            max_open,
            beat: beat.clone(),
            meter: self.meters.intake.clone(),
        };
        self.add("intake", &beat, intake.run(deliveries, parts.stops.intake.clone()));
    }

    /// Returns what to notify when another instance may have settled something, and what watches over retries.
    fn add_settle<J: Journal + 'static>(
        &mut self,
        parts: &Parts<'_, J>,
        settings: SettleSettings,
        from_intake: mpsc::Receiver<Admitted>,
        from_lanes: mpsc::Receiver<FromLane>,
    ) -> (Arc<Notify>, LostRetriesWatch) {
        let beat = Heartbeat::default();
        let ended = self.of_lanes(|_, signals| Arc::clone(&signals.ended));
        let (event_source, tracer) = (settings.event_source.clone(), settings.tracer.clone());
        let (newer_retries, outbox) = (settings.newer_retries.clone(), Arc::clone(&parts.wake_outbox));
        let (journal, publisher) = (parts.journal.clone(), Arc::clone(&parts.publisher));
        let settle = Settle::new(settings, journal, publisher, Arc::clone(&outbox), ended.clone(), beat.clone());
        let settled = settle.settled();
        let (journal, meter) = (parts.journal.clone(), settle.meter());
        self.meters.settle = meter.clone();
        self.add("settle", &beat, settle.run(from_intake, from_lanes));
        (settled, LostRetriesWatch { journal, event_source, tracer, newer_retries, outbox, ended, meter })
    }

    fn add_outbox<J: Journal + 'static>(
        &mut self,
        parts: &Parts<'_, J>,
        exchange: String,
        replies: Arc<ReplyRules>,
        tracer: Tracer,
    ) {
        let beat = Heartbeat::default();
        let accounts = self.of_lanes(|account, signals| (account, signals.lease.subscribe()));
        let (journal, wake) = (parts.journal.clone(), Arc::clone(&parts.wake_outbox));
        let publisher = Arc::clone(&parts.publisher);
        let outbox = OutboxStage { journal, publisher, exchange, replies, accounts, wake, beat: beat.clone(), tracer };
        self.add("outbox", &beat, outbox.run(parts.stops.outbox.clone()));
    }

    /// Adds the stages without a heartbeat: operators' holds, the news of other instances, the upkeep.
    fn add_watchers<J: Journal + 'static>(
        &mut self,
        parts: &Parts<'_, J>,
        settled: Arc<Notify>,
        way: (String, String),
        pace: Pace,
        lost: LostRetriesWatch,
    ) {
        let stop = &parts.stops.outbox;
        let standing = HoldsStage { journal: parts.journal.clone(), standing: parts.holds.clone() };
        self.stages.push(Stage { name: "holds", beat: None, run: Box::pin(standing.run(stop.clone())) });
        if let Some(changes) = parts.journal.changes() {
            let wakes = self.of_lanes(|_, signals| Arc::clone(&signals.wake));
            let news = pass_on(changes, Arc::clone(&parts.owners_changed), wakes, settled, stop.clone());
            self.stages.push(Stage { name: "news", beat: None, run: Box::pin(news) });
        }
        let lanes = self.of_lanes(|_, signals| signals.state.subscribe());
        let (journal, publisher) = (parts.journal.clone(), Arc::clone(&parts.publisher));
        let upkeep = UpkeepStage { journal, publisher, way, pace, lanes, serving: self.serving.clone(), lost };
        self.stages.push(Stage { name: "upkeep", beat: None, run: Box::pin(upkeep.run(stop.clone())) });
    }

    fn add(
        &mut self,
        name: &'static str,
        beat: &Heartbeat,
        run: impl Future<Output = Result<(), JournalError>> + Send + 'static,
    ) {
        self.stages.push(Stage { name, beat: Some(beat.clone()), run: Box::pin(run) });
    }

    fn of_lanes<T>(&self, part: impl Fn(AccountId, &LaneSignals) -> T) -> Vec<T> {
        self.lanes.iter().map(|(account, signals)| part(*account, signals)).collect()
    }
}

fn intake_lane(account: AccountId, addresses: &BTreeMap<AccountId, Address>, signals: &LaneSignals) -> IntakeLane {
    let (wake, is_open) = (Arc::clone(&signals.wake), signals.is_open.subscribe());
    let address = addresses.get(&account).copied().unwrap_or(Address([0; 20]));
    IntakeLane { account, address, is_retiring: false, wake, is_open, load: 0 }
}

fn assigned_lane(account: AccountId, signals: &LaneSignals) -> AssignedLane {
    AssignedLane {
        account,
        is_assigned: signals.is_assigned.clone(),
        lease: signals.lease.subscribe(),
        is_cut_off: signals.is_cut_off.subscribe(),
        may_be_free: Arc::clone(&signals.released),
    }
}

/// Wakes the stages that wait for what another instance does.
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
