//! Simulated processes: the whole pipeline, which can be killed between any two of its steps, frozen, or asked to stop.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::journal::{Instance, Instances, JournalError, Leases};
use crate::model::Timestamp;
use crate::model::ids::virtual_host;
use crate::simulation::journal::{Faults, MemoryJournal, in_doubt, not_written};
use crate::simulation::markers::SimMarkers;
use crate::simulation::nodes::SimNodes;
use crate::simulation::queues::{SimPublisher, deliver};
use crate::simulation::settings::RunSettings;
use crate::simulation::signer::SimSigner;
use crate::simulation::store::Store;
use crate::simulation::world::Shared;
use crate::stages::lane::LaneSettings;
use crate::stages::pipeline::{Pipeline, PipelineSettings, Seams, Stops};

/// Whether a process lives, and what its host's clock says.
#[derive(Debug, Default)]
pub(super) struct Life {
    is_dead: AtomicBool,
    is_frozen: AtomicBool,
    /// Dies after so many more polls of its tasks; 0: lives on.
    polls_left: AtomicU64,
    skew_ms: AtomicI64,
    sleepers: Mutex<Vec<Waker>>,
}

impl Life {
    pub(super) fn kill(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
        self.thaw();
    }

    /// Between two awaits, in so many polls' time.
    pub(super) fn kill_after(&self, polls: u64) {
        self.polls_left.store(polls, Ordering::Relaxed);
    }

    pub(super) fn freeze(&self) {
        self.is_frozen.store(true, Ordering::Relaxed);
    }

    pub(super) fn thaw(&self) {
        self.is_frozen.store(false, Ordering::Relaxed);
        let sleepers = std::mem::take(&mut *self.sleepers.lock().unwrap_or_else(PoisonError::into_inner));
        sleepers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn jump(&self, milliseconds: i64) {
        self.skew_ms.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// The host's clock is right again.
    pub(super) fn set_right(&self) {
        self.skew_ms.store(0, Ordering::Relaxed);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.is_frozen.load(Ordering::Relaxed)
    }
}

/// How a task of a process ended.
#[derive(Debug)]
pub(super) enum End {
    /// As it should, or with the journal's error.
    Ended(&'static str, Result<(), JournalError>),
    Killed,
}

type Task = Pin<Box<dyn Future<Output = Result<(), JournalError>> + Send>>;

/// A task that lives as long as its process. All that it holds in memory goes with it.
struct Mortal {
    task: Option<Task>,
    name: &'static str,
    life: Arc<Life>,
}

impl Future for Mortal {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<End> {
        let life = Arc::clone(&self.life);
        if life.polls_left.load(Ordering::Relaxed) > 0 && life.polls_left.fetch_sub(1, Ordering::Relaxed) == 1 {
            life.is_dead.store(true, Ordering::Relaxed);
        }
        if life.is_dead() {
            self.task = None;
            return Poll::Ready(End::Killed);
        }
        if life.is_frozen() {
            life.sleepers.lock().unwrap_or_else(PoisonError::into_inner).push(context.waker().clone());
            return Poll::Pending;
        }
        let name = self.name;
        let Some(task) = &mut self.task else { return Poll::Ready(End::Killed) };
        virtual_host::set_skew(life.skew_ms.load(Ordering::Relaxed));
        let polled = task.as_mut().poll(context);
        virtual_host::set_skew(0);
        polled.map(|result| End::Ended(name, result))
    }
}

pub(super) struct Process {
    pub(super) life: Arc<Life>,
    tasks: JoinSet<End>,
    running: Vec<&'static str>,
    stops: Stops,
    is_stopping: bool,
    /// Its name as an owner.
    name: Arc<str>,
    journal: Arc<MemoryJournal>,
    lanes: Vec<(crate::journal::AccountId, crate::stages::lane::LaneSignals)>,
    session: watch::Receiver<u64>,
    world: Shared,
}

impl Process {
    /// Starts the whole pipeline over the world. `name` is this run of this instance.
    pub(super) fn start(world: &Shared, settings: &RunSettings, name: &str) -> Self {
        let store = world.lock().store();
        Self::start_on(store, world, settings, name)
    }

    /// With a journal of its own.
    pub(super) fn start_on(store: Arc<Mutex<Store>>, world: &Shared, settings: &RunSettings, name: &str) -> Self {
        let life = Arc::new(Life::default());
        let faults = Arc::new(Disk { world: world.clone() });
        let journal = Arc::new(MemoryJournal::new(store, faults));
        let publisher = Arc::new(SimPublisher {
            world: world.clone(),
            names: settings.settle.names.clone(),
            delays: settings.settle.waits.clone(),
        });
        let (sender, deliveries) = mpsc::channel(4);
        let mut lanes = Vec::new();
        let mut signers: Vec<Arc<dyn crate::signer::Signer>> = Vec::new();
        for (address, account) in &settings.accounts {
            signers.push(Arc::new(SimSigner { world: world.clone(), address: *address }));
            lanes.push(LaneSettings { account: *account, owner: name.into(), ..settings.lane.clone() });
        }
        let chain = Arc::new(SimNodes { world: world.clone() });
        let (sessions, admitted) = (watch::Sender::new(0), watch::Sender::new(0));
        let (of_markers, gate) = (sessions.subscribe(), (sessions, admitted.subscribe()));
        let markers = Arc::new(SimMarkers { world: world.clone(), sessions: of_markers, admitted });
        let seams = Seams { journal: Arc::clone(&journal), chain, signers, publisher, markers, deliveries };
        let stops = Stops::default();
        let told = PipelineSettings {
            lanes,
            admission: watch::channel(settings.admission.clone()).1,
            retiring: watch::channel(BTreeSet::new()).1,
            settle: settings.settle.clone(),
            replies: settings.replies.clone(),
            max_open: watch::channel(settings.max_open).1,
            upkeep: settings.upkeep,
            lease_ttl: settings.lane.rules.lease_ttl,
            instance: Instance {
                owner: name.into(),
                worker: name.to_owned(),
                host: "simulated".to_owned(),
                version: "0".to_owned(),
                started_at: Timestamp::now(),
                accounts: settings.accounts.iter().map(|(_, account)| *account).collect(),
            },
        };
        let Pipeline { stages, lanes, flow, .. } = Pipeline::new(seams, told, &stops);
        let mut tasks = JoinSet::new();
        let mut running = Vec::new();
        for stage in stages {
            running.push(stage.name);
            tasks.spawn(Mortal { task: Some(stage.run), name: stage.name, life: Arc::clone(&life) });
        }
        let (numbers, session) = watch::channel(0);
        let sessions = deliver(world.clone(), sender, flow, stops.intake.clone(), (numbers, gate));
        let sessions = async {
            sessions.await;
            Ok(())
        };
        tasks.spawn(Mortal { task: Some(Box::pin(sessions)), name: "broker", life: Arc::clone(&life) });
        let (name, world) = (name.into(), world.clone());
        Self { life, tasks, running, stops, is_stopping: false, name, journal, lanes, session, world }
    }

    /// Asks it to finish, as a signal does.
    pub(super) fn stop(&mut self) {
        self.is_stopping = true;
        self.stop_next();
    }

    fn stop_next(&mut self) {
        let runs = |name| self.running.contains(&name);
        self.stops.intake.cancel();
        self.stops.lanes.cancel();
        if !runs("intake") && !runs("lane") && !runs("settle") {
            self.stops.outbox.cancel();
        }
    }

    /// The others learn soon that the process has ended, or never: then its leases have to run out. They never learn that of a
    /// frozen one.
    fn let_others_know(&self) {
        let within = {
            let rng = &mut self.world.lock().rng;
            (rng.u8(0..3) > 0).then(|| Duration::from_millis(rng.u64(0..2000)))
        };
        let Some(within) = within else { return };
        let (journal, name) = (Arc::clone(&self.journal), Arc::clone(&self.name));
        tokio::spawn(async move {
            tokio::time::sleep(within).await;
            journal.end_life(&name).await;
        });
    }

    /// Looks after it: true while it runs. One that has ended has given its deliveries back.
    pub(super) async fn look(&mut self) -> bool {
        while let Some(ended) = self.tasks.try_join_next() {
            match ended {
                Ok(End::Ended(name, Ok(()))) if self.is_stopping => {
                    if let Some(place) = self.running.iter().position(|running| *running == name) {
                        self.running.remove(place);
                    }
                    self.stop_next();
                }
                Ok(End::Ended(name, result)) => {
                    // No fault makes the journal refuse a write: a stage wanted what must not be.
                    if let Err(error @ JournalError::Inconsistent { .. }) = &result {
                        self.world.lock().violated(format!("{name}: {error}"));
                    }
                    self.world.lock().note(format!("{name} ends the process: {result:?}"));
                    self.life.kill();
                }
                Ok(End::Killed) => self.life.kill(),
                Err(panic) => {
                    self.world.lock().violated(format!("a task panicked: {panic}"));
                    self.life.kill();
                }
            }
        }
        let has_drained = self.running.is_empty();
        if has_drained && !self.life.is_dead() {
            for lease in self.lanes.iter().filter_map(|(_, signals)| signals.lease.borrow().clone()) {
                let _ = self.journal.release_lease(&lease).await;
            }
        }
        if has_drained || self.life.is_dead() {
            if self.life.is_dead() {
                self.let_others_know();
            }
            self.life.kill();
            self.tasks.abort_all();
            while self.tasks.join_next().await.is_some() {}
            self.world.lock().queues.end_session(*self.session.borrow());
            return false;
        }
        true
    }
}

struct Disk {
    world: Shared,
}

#[async_trait]
impl Faults for Disk {
    async fn before(&self, operation: &'static str, writes: bool) -> Result<(), JournalError> {
        let (latency, fails) = {
            let mut world = self.world.lock();
            let odds = world.weather.commits_fail;
            (world.latency(), writes && world.happens(odds))
        };
        tokio::time::sleep(latency).await;
        if fails {
            self.world.lock().note(format!("{operation} is not written"));
            return Err(not_written(operation));
        }
        Ok(())
    }

    async fn after(&self, operation: &'static str, writes: bool) -> Result<(), JournalError> {
        let (latency, fails) = {
            let mut world = self.world.lock();
            if writes {
                world.check_journal();
            }
            let odds = world.weather.commits_unknown;
            (world.latency(), writes && world.happens(odds))
        };
        tokio::time::sleep(latency).await;
        if fails {
            self.world.lock().note(format!("{operation} is written, and nobody is told"));
            return Err(in_doubt());
        }
        Ok(())
    }
}
