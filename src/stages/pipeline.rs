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
    /// How long a lease holds without renewal, and a registration of an instance counts.
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
    /// None runs yet.
    pub stages: Vec<Stage>,
    pub lanes: Vec<(AccountId, LaneSignals)>,
    pub flow: watch::Receiver<Flow>,
    pub serving: watch::Receiver<Serving>,
    pub meters: Meters,
}

impl Pipeline {
    /// Builds every stage and connects them.
    pub fn new<J: Journal + 'static>(seams: Seams<J>, settings: PipelineSettings, stops: &Stops) -> Self {
        let Seams { journal, chain, signers, publisher, markers, deliveries } = seams;
        let PipelineSettings {
            instance,
            lease_ttl,
            lanes,
            mut admission,
            retiring,
            settle,
            replies,
            max_open,
            upkeep: pace,
        } = settings;
        let (to_settle, from_intake) = mpsc::channel(HANDOVERS);
        let (to_settle_from_lanes, from_lanes) = mpsc::channel(HANDOVERS);
        let (owners_changed, wake_outbox) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let flow = watch::Sender::new(Flow::Paused);
        let serving = watch::Sender::new(Serving::Waiting("the broker is not connected".to_owned()));
        let holds = watch::Sender::new(StandingHolds::default());
        let mut pipeline = Self {
            stages: Vec::new(),
            lanes: Vec::new(),
            flow: flow.subscribe(),
            serving: serving.subscribe(),
            meters: Meters::default(),
        };

        let publisher: Arc<dyn Publisher> = Arc::new(ServedPublisher { publisher, serving: pipeline.serving.clone() });

        let addresses: BTreeMap<_, _> =
            lanes.iter().zip(&signers).map(|(lane, signer)| (lane.account, signer.address())).collect();
        for (settings, signer) in lanes.into_iter().zip(signers) {
            let account = settings.account;
            let signals = LaneSignals::new(pipeline.meters.lane.clone(), pipeline.serving.clone(), holds.clone());
            let (chain, journal, settle) = (Arc::clone(&chain), journal.clone(), to_settle_from_lanes.clone());
            let lane = Lane::new(settings, chain, signer, journal, settle, signals.clone());
            pipeline.add("lane", &signals.beat, lane.run(stops.lanes.clone()));
            pipeline.lanes.push((account, signals));
        }
        // Settle ends when the last lane has ended.
        drop(to_settle_from_lanes);

        let beat = Heartbeat::default();
        let claim =
            Claim { instance: instance.clone(), journal: journal.clone(), markers, serving, beat: beat.clone() };
        // What settle still has to publish at the end waits for it.
        pipeline.add("claim", &beat, claim.run(stops.outbox.clone()));

        let beat = Heartbeat::default();
        let (journal_of_instances, changed) = (journal.clone(), Arc::clone(&owners_changed));
        let lanes = pipeline.of_lanes(assigned_lane);
        let assignment =
            Assignment { instance, ttl: lease_ttl, journal: journal_of_instances, lanes, changed, beat: beat.clone() };
        pipeline.add("spreading", &beat, assignment.run(stops.lanes.clone()));

        let beat = Heartbeat::default();
        let rules = admission.borrow_and_update().clone();
        let intake = Intake {
            rules,
            newer_rules: admission,
            retiring,
            lanes: pipeline.of_lanes(|account, signals| intake_lane(account, &addresses, signals)),
            journal: journal.clone(),
            passages: journal.clone(),
            serving: pipeline.serving.clone(),
            holds: holds.subscribe(),
            park_delay: settle.park_delay,
            open: 0,
            open_by_route: BTreeMap::new(),
            settle: to_settle,
            flow,
            max_open,
            beat: beat.clone(),
            meter: pipeline.meters.intake.clone(),
        };
        pipeline.add("intake", &beat, intake.run(deliveries, stops.intake.clone()));

        let beat = Heartbeat::default();
        let (exchange, tracer) = (settle.names.events.clone(), settle.tracer.clone());
        let shortest = settle.waits.iter().min().copied().unwrap_or(settle.park_delay);
        let way = (settle.names.retry.clone(), settle.names.wait_queue(shortest));
        let ended = pipeline.of_lanes(|_, signals| Arc::clone(&signals.ended));
        let (event_source, newer_retries) = (settle.event_source.clone(), settle.newer_retries.clone());
        let (publisher_of_copies, outbox) = (Arc::clone(&publisher), Arc::clone(&wake_outbox));
        let settle = Settle::new(settle, journal.clone(), publisher_of_copies, outbox, ended.clone(), beat.clone());
        let settled = settle.settled();
        pipeline.meters.settle = settle.meter();
        let lost = LostRetriesWatch {
            journal: journal.clone(),
            event_source,
            tracer: tracer.clone(),
            newer_retries,
            outbox: Arc::clone(&wake_outbox),
            ended,
            meter: settle.meter(),
        };
        pipeline.add("settle", &beat, settle.run(from_intake, from_lanes));

        let beat = Heartbeat::default();
        let accounts = pipeline.of_lanes(|account, signals| (account, signals.lease.subscribe()));
        let (outbox, wake) = (journal.clone(), wake_outbox);
        let publisher_of_passages = Arc::clone(&publisher);
        let outbox =
            OutboxStage { journal: outbox, publisher, exchange, replies, accounts, wake, beat: beat.clone(), tracer };
        pipeline.add("outbox", &beat, outbox.run(stops.outbox.clone()));

        let standing = HoldsStage { journal: journal.clone(), standing: holds };
        pipeline.stages.push(Stage { name: "holds", beat: None, run: Box::pin(standing.run(stops.outbox.clone())) });

        if let Some(changes) = journal.changes() {
            let wakes = pipeline.of_lanes(|_, signals| Arc::clone(&signals.wake));
            let news = pass_on(changes, owners_changed, wakes, settled, stops.outbox.clone());
            pipeline.stages.push(Stage { name: "news", beat: None, run: Box::pin(news) });
        }
        let lanes = pipeline.of_lanes(|_, signals| signals.state.subscribe());
        let (publisher, serving) = (publisher_of_passages, pipeline.serving.clone());
        let upkeep = UpkeepStage { journal, publisher, way, pace, lanes, serving, lost };
        pipeline.stages.push(Stage { name: "upkeep", beat: None, run: Box::pin(upkeep.run(stops.outbox.clone())) });
        pipeline
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
