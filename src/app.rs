//! The composition root: the only place that sees all settings. Builds every part, connects them, starts the tasks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;
use uuid::Uuid;

use crate::broker::{Broker, BrokerSettings, Flow, Publisher, Topology};
use crate::chain::{Chain, ClientSettings, NodeClient};
use crate::config::Settings;
use crate::intake::{Intake, LaneDoor};
use crate::journal::{AccountId, JournalError, Lease, Leases, SqliteJournal, Upkeep};
use crate::lane::{Lane, LaneSettings, LaneSignals, LaneState};
use crate::model::{Heartbeat, Timestamp};
use crate::outbox::OutboxStage;
use crate::policy::pause::RetrySchedule;
use crate::settle::{Settle, SettleSettings};
use crate::signer::{LocalSigner, Signer};
use crate::supervisor::{Tasks, tell_systemd};

/// Deliveries between the broker and intake; what waits there is unacked and counts to the prefetch.
const DELIVERIES: usize = 256;
/// Receipts and rulings between stages.
const HANDOVERS: usize = 1024;
/// How often old rows are looked for, and how many go in one commit.
const PRUNE: (Duration, u32) = (Duration::from_secs(600), 512);
/// A stage that stands still longer than this, or than several answers of a node may take, is stuck.
const STALL: Duration = Duration::from_secs(60);

/// The names of the tasks that drain first, in their order.
const BEFORE_SETTLE: [&str; 2] = ["intake", "lane"];

/// What the broker needs of the settings.
pub fn broker_settings(settings: &Settings) -> BrokerSettings {
    let broker = &settings.broker;
    BrokerSettings {
        uri: broker.uri.clone(),
        client_name: settings.worker.full_name(),
        prefetch: broker.prefetch,
        topology: Topology::new(broker.names.clone(), delays(settings)),
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

/// The daemon: runs until it has drained after a signal.
///
/// # Errors
/// What keeps it from starting, or the first task that fails. A [`JournalError`] is in the chain if it was the journal.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let journal = Arc::new(SqliteJournal::open(&settings.journal.path).await?);
    let owner: Arc<str> = format!("{}/{}", settings.worker.full_name(), Uuid::now_v7()).into();
    let chain: Arc<dyn Chain> =
        Arc::new(NodeClient::new(&client_settings(&settings)).context("cannot make the HTTP client")?);
    let mut tasks = Tasks::default();
    let tokens = Tokens::default();

    let broker = Broker::new(broker_settings(&settings), tasks.heartbeat("broker"));
    let publisher: Arc<dyn Publisher> = Arc::new(broker.publisher());
    let broker_state = broker.state();
    let outbox_wake = Arc::new(Notify::new());
    let (deliver, deliveries) = mpsc::channel(DELIVERIES);
    let (to_settle, from_intake) = mpsc::channel(HANDOVERS);
    let (from_lane, from_lanes) = mpsc::channel(HANDOVERS);
    let flow = watch::Sender::new(Flow::Paused);

    let mut lanes = Vec::new();
    for signer in &settings.signers {
        let account = journal.account(settings.chain.id, signer.address()).await?;
        let signals = lane_signals(tasks.heartbeat("lane"));
        let lane = Lane::new(
            lane_settings(&settings, account, Arc::clone(&owner)),
            Arc::clone(&chain),
            Arc::new(LocalSigner::clone(signer)),
            journal.clone(),
            from_lane.clone(),
            signals.clone(),
        );
        tasks.spawn("lane", lane.run(tokens.lanes.clone()));
        lanes.push((account, signals));
    }
    drop(from_lane);

    let doors = lanes.iter().map(|(account, signals)| LaneDoor {
        account: *account,
        wake: Arc::clone(&signals.wake),
        is_open: signals.is_open.subscribe(),
    });
    let intake = Intake {
        rules: settings.admission.clone(),
        lanes: doors.collect(),
        journal: journal.clone(),
        settle: to_settle,
        flow: flow.clone(),
        max_open: settings.worker.max_open,
        beat: tasks.heartbeat("intake"),
    };
    tasks.spawn("intake", intake.run(deliveries, tokens.intake.clone()));
    let settle = Settle::new(
        settle_settings(&settings),
        journal.clone(),
        Arc::clone(&publisher),
        Arc::clone(&outbox_wake),
        tasks.heartbeat("settle"),
    );
    tasks.spawn("settle", settle.run(from_intake, from_lanes));
    let outbox = OutboxStage {
        journal: journal.clone(),
        publisher,
        exchange: settings.broker.names.events.clone(),
        accounts: lanes.iter().map(|(account, signals)| (*account, signals.lease.subscribe())).collect(),
        wake: outbox_wake,
        beat: tasks.heartbeat("outbox"),
    };
    tasks.spawn("outbox", outbox.run(tokens.outbox.clone()));
    let (stop_consuming, close) = (tokens.intake.clone(), tokens.broker.clone());
    let sessions = broker.run(deliver, flow.subscribe(), stop_consuming, close);
    tasks.spawn("broker", async {
        sessions.await;
        Ok::<_, JournalError>(())
    });
    tasks.spawn("upkeep", upkeep(journal.clone(), settings.journal.retention, tokens.outbox.clone()));

    let (systemd_ends, systemd_stop) = mpsc::channel(1);
    let states: Vec<_> = lanes.iter().map(|(_, signals)| signals.state.subscribe()).collect();
    let status = move || status_line(&broker_state.borrow(), &states);
    let stall = STALL.max(settings.chain.timeout * 6);
    tasks.spawn("systemd", tell_systemd(tasks.beats(), stall, status, systemd_stop));

    info!(
        worker = settings.worker.full_name(),
        queue = settings.broker.names.work,
        chain.id = settings.chain.id,
        signers = lanes.len(),
        "chainwriter {} runs",
        env!("CARGO_PKG_VERSION")
    );
    let systemd_ends = std::sync::Mutex::new(Some(systemd_ends));
    let drained = tasks
        .run_until_drained(settings.worker.drain_deadline, |running| {
            tokens.stop_next(running);
            if running == ["systemd"] {
                systemd_ends.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            }
        })
        .await;
    release_leases(journal.as_ref(), lanes.iter().map(|(_, signals)| signals.lease.borrow().clone())).await;
    journal.close().await;
    drained
}

/// So that another instance need not wait for them to run out. Only when nothing writes under them any more.
async fn release_leases(journal: &SqliteJournal, leases: impl Iterator<Item = Option<Lease>>) {
    for lease in leases.flatten() {
        if let Err(error) = journal.release_lease(&lease).await {
            info!(account = %lease.account, %error, "the lease was not given up; it runs out by itself");
        }
    }
}

/// What ends the tasks, in the order of a drain: no more deliveries and no new transactions; then everything settles;
/// then the events go out; then the broker's connections close.
#[derive(Default)]
struct Tokens {
    intake: CancellationToken,
    lanes: CancellationToken,
    outbox: CancellationToken,
    broker: CancellationToken,
}

impl Tokens {
    fn stop_next(&self, running: &[&'static str]) {
        let runs = |name| running.contains(&name);
        self.intake.cancel();
        self.lanes.cancel();
        if !BEFORE_SETTLE.into_iter().any(runs) && !runs("settle") {
            self.outbox.cancel();
            if !runs("outbox") {
                self.broker.cancel();
            }
        }
    }
}

fn lane_signals(beat: Heartbeat) -> LaneSignals {
    LaneSignals {
        wake: Arc::new(Notify::new()),
        state: watch::Sender::new(LaneState::default()),
        lease: watch::Sender::new(None),
        is_open: watch::Sender::new(false),
        beat,
    }
}

fn lane_settings(settings: &Settings, account: AccountId, owner: Arc<str>) -> LaneSettings {
    let chain = &settings.chain;
    LaneSettings {
        chain_id: chain.id,
        account,
        to: settings.write.to,
        value: settings.write.value,
        gas: settings.write.gas,
        fees: settings.fees,
        finality: chain.finality,
        in_flight: chain.in_flight,
        poll_interval: chain.poll_interval,
        resend_after: chain.resend_after,
        replace_after: chain.replace_after,
        refused_after: chain.refused_after,
        max_head_age: chain.max_head_age,
        lease_ttl: settings.lease_ttl,
        outage: settings.outage,
        owner,
    }
}

fn settle_settings(settings: &Settings) -> SettleSettings {
    SettleSettings {
        organisation: settings.worker.organisation.clone(),
        worker: settings.worker.full_name(),
        names: settings.broker.names.clone(),
        schedule: schedule(settings),
        max_hold: settings.broker.max_hold,
        park_delay: settings.broker.park_delay,
        publishes_in_flight: settings.broker.publish_channels,
    }
}

/// Forgets settled requests when their time has come, few at a time.
async fn upkeep(
    journal: Arc<SqliteJournal>,
    retention: Duration,
    cancel: CancellationToken,
) -> Result<(), JournalError> {
    loop {
        while journal.prune(Timestamp::now().before(retention), PRUNE.1).await? > 0 && !cancel.is_cancelled() {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            () = tokio::time::sleep(PRUNE.0) => {}
            () = cancel.cancelled() => return Ok(()),
        }
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
        let block = lane.head.map_or("no block seen".to_owned(), |head| format!("block {head}"));
        match &lane.paused {
            Some((reason, detail)) => format!("paused ({reason}): {detail}"),
            None if !lane.is_owner => "stands by".to_owned(),
            None => format!("{} in flight, {block}", lane.in_flight),
        }
    });
    std::iter::once(broker).chain(lanes).collect::<Vec<_>>().join("; ")
}
