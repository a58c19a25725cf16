//! The stage that registers this instance, and decides which lanes own their accounts here: lanes are spread evenly over the
//! instances. Safety rests on the leases alone: an instance that is wrong about the others only waits for a lease, or gives
//! one up too early.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::journal::{AccountId, Attendance, Instance, Instances, JournalError, Lease, LeaseMark};
use crate::model::Heartbeat;
use crate::policy::assignment::spread;
use crate::policy::retry_schedule::RetryPauses;

/// Registrations of an instance in each `lease.ttl`.
const REGISTERS: u32 = 3;
/// Reads of the other instances in each of these intervals.
const CHECKS: u32 = 5;
/// Between checks for instances whose processes have ended, and between heartbeats.
const BEAT: Duration = Duration::from_millis(250);
/// First and longest time for which an account rests that was given up because its node or signer was away.
const REST: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(1800));
/// An instance gives accounts up to another one when that has been there for this part of a `lease.ttl`: one that crashes again
/// and again would only interrupt it.
const SETTLES: u32 = 5;
/// An instance takes an account without an owner that is meant for another one after this many `lease.ttl`.
const PATIENCE: u32 = 2;

#[derive(Debug, Clone)]
pub struct AssignedLane {
    pub account: AccountId,
    /// Whether this instance is to own the account; `None` before the first check.
    pub is_assigned: watch::Sender<Option<bool>>,
    pub lease: watch::Receiver<Option<Lease>>,
    /// Set while its node or signer is away.
    pub is_cut_off: watch::Receiver<bool>,
    /// Notified when the lease may be free.
    pub may_be_free: Arc<Notify>,
}

pub struct Assignment {
    pub instance: Instance,
    /// The time for which a registration counts, and a lease without renewal.
    pub ttl: Duration,
    pub journal: Arc<dyn Instances>,
    pub lanes: Vec<AssignedLane>,
    /// Notified when another instance has come, has gone, or has given a lease up.
    pub changed: Arc<Notify>,
    pub beat: Heartbeat,
}

impl Assignment {
    /// Assigns until cancelled, then deletes the registration.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut memory = Memory::default();
        for number in (0..CHECKS).cycle() {
            if cancel.is_cancelled() {
                break;
            }
            self.remove_ended().await?;
            self.step(&mut memory, number == 0).await?;
            self.wait(&cancel).await?;
        }
        self.journal.leave(&self.instance).await
    }

    /// Registers, or only reads who is there, and assigns the lanes.
    async fn step(&self, memory: &mut Memory, registers: bool) -> Result<(), JournalError> {
        let attendance = if registers {
            let instance = Instance { accounts: self.workable(memory), ..self.instance.clone() };
            self.journal.attend(&instance, self.ttl).await?
        } else {
            self.journal.attendance().await?
        };
        self.assign(&attendance, memory);
        Ok(())
    }

    /// Removes instances whose processes have ended. Returns whether there were any: their lanes are free.
    async fn remove_ended(&self) -> Result<bool, JournalError> {
        let ended = self.journal.remove_ended().await?;
        for owner in &ended {
            info!(owner = &**owner, "the process of an instance has ended; its accounts are free");
        }
        Ok(!ended.is_empty())
    }

    async fn wait(&self, cancel: &CancellationToken) -> Result<(), JournalError> {
        let until = Instant::now() + self.ttl / (REGISTERS * CHECKS);
        while Instant::now() < until && !cancel.is_cancelled() {
            self.beat.beat();
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = self.changed.notified() => return Ok(()),
                () = tokio::time::sleep_until(until.min(Instant::now() + BEAT)) => {}
            }
            if !cancel.is_cancelled() && self.remove_ended().await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns the accounts that this instance can work. One that was without its node or signer for a whole `ttl` is left
    /// out: an instance that can work it gets it; if there is none, it stays where it is.
    fn workable(&self, memory: &mut Memory) -> Vec<AccountId> {
        let can_work = |lane: &&AssignedLane| {
            let health = memory.health.entry(lane.account).or_insert_with(AccountHealth::new);
            health.can_work(lane.lease.borrow().is_some(), *lane.is_cut_off.borrow(), self.ttl)
        };
        self.lanes.iter().filter(can_work).map(|lane| lane.account).collect()
    }

    fn assign(&self, attendance: &Attendance, memory: &mut Memory) {
        memory.note_instances(&attendance.instances);
        let members: BTreeMap<_, BTreeSet<_>> = attendance
            .instances
            .iter()
            .map(|instance| (&instance.owner, instance.accounts.iter().copied().collect()))
            .collect();
        let mut owners = BTreeMap::new();
        for lane in &attendance.lanes {
            let is_kept = memory.is_renewed(lane.account, lane.mark, self.ttl);
            if let Some(owner) = lane.owner.as_ref().filter(|owner| is_kept && members.contains_key(*owner)) {
                owners.insert(lane.account, owner);
            }
        }
        let plan = spread(&members, &owners);
        for lane in &self.lanes {
            let is_working = lane.lease.borrow().is_some();
            let is_ours = plan.get(&lane.account).is_none_or(|heir| {
                **heir == self.instance.owner || (is_working && !memory.has_settled(heir, self.ttl / SETTLES))
            });
            let is_owned = owners.contains_key(&lane.account);
            let waits_too_long = memory.has_waited(lane.account, is_owned, self.ttl * PATIENCE);
            let is_assigned = is_ours || waits_too_long;
            lane.is_assigned.send_if_modified(|now| now.replace(is_assigned) != Some(is_assigned));
            if is_assigned && lane.lease.borrow().is_none() {
                lane.may_be_free.notify_one();
            }
        }
    }
}

#[derive(Debug, Default)]
struct Memory {
    /// Those that are there, and since when.
    instances: BTreeMap<Arc<str>, Instant>,
    /// The mark of each lease, and since when. Hosts' clocks may disagree about when a lease runs out.
    marks: BTreeMap<AccountId, (LeaseMark, Instant)>,
    ownerless: BTreeMap<AccountId, Instant>,
    health: BTreeMap<AccountId, AccountHealth>,
}

/// Rates how well this instance can work an account.
#[derive(Debug)]
struct AccountHealth {
    cut_off_since: Option<Instant>,
    rests_until: Option<Instant>,
    rests: RetryPauses,
}

impl AccountHealth {
    fn new() -> Self {
        Self { cut_off_since: None, rests_until: None, rests: RetryPauses::between(REST.0, REST.1) }
    }

    fn can_work(&mut self, is_owned: bool, is_cut_off: bool, patience: Duration) -> bool {
        let now = Instant::now();
        match (is_owned, is_cut_off) {
            (true, false) => {
                *self = Self::new();
                true
            }
            (true, true) => now.duration_since(*self.cut_off_since.get_or_insert(now)) <= patience,
            (false, _) => {
                if self.cut_off_since.take().is_some() {
                    self.rests_until = Some(now + self.rests.next_wait());
                }
                self.rests_until.is_none_or(|until| now >= until)
            }
        }
    }
}

impl Memory {
    fn note_instances(&mut self, there: &[Instance]) {
        let owners: BTreeSet<_> = there.iter().map(|instance| &instance.owner).collect();
        if self.instances.keys().collect::<BTreeSet<_>>() != owners {
            let names: Vec<_> = there.iter().map(|instance| instance.worker.as_str()).collect();
            info!(instances = names.len(), names = names.join(", "), "the instances that share the journal");
        }
        let since = |owner: &Arc<str>| self.instances.get(owner).copied().unwrap_or_else(Instant::now);
        self.instances = owners.into_iter().map(|owner| (Arc::clone(owner), since(owner))).collect();
    }

    fn has_settled(&self, owner: &str, patience: Duration) -> bool {
        self.instances.get(owner).is_some_and(|since| since.elapsed() >= patience)
    }

    fn is_renewed(&mut self, account: AccountId, mark: LeaseMark, ttl: Duration) -> bool {
        let known = self.marks.entry(account).or_insert_with(|| (mark, Instant::now()));
        if known.0 != mark {
            *known = (mark, Instant::now());
        }
        known.1.elapsed() <= ttl
    }

    fn has_waited(&mut self, account: AccountId, is_owned: bool, patience: Duration) -> bool {
        if is_owned {
            self.ownerless.remove(&account);
            return false;
        }
        self.ownerless.entry(account).or_insert_with(Instant::now).elapsed() > patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Leases;
    use crate::journal::contract::instance;
    use crate::model::Address;
    use crate::simulation::fakes::journal;
    use crate::simulation::journal::MemoryJournal;

    #[tokio::test(start_paused = true)]
    async fn an_account_without_its_node_is_left_to_others_for_longer_each_time() {
        const PATIENCE: Duration = Duration::from_secs(15);
        let mut health = AccountHealth::new();
        assert!(health.can_work(false, false, PATIENCE), "why not");
        for round in 0..3_u32 {
            assert!(health.can_work(true, true, PATIENCE), "it may be back in a moment");
            tokio::time::advance(PATIENCE + Duration::from_secs(1)).await;
            assert!(!health.can_work(true, true, PATIENCE), "round {round}");
            // Another instance has it.
            assert!(!health.can_work(false, false, PATIENCE));
            tokio::time::advance(REST.0 * 2_u32.pow(round) / 3).await;
            assert!(!health.can_work(false, false, PATIENCE), "round {round}");
            tokio::time::advance(REST.0 * 2_u32.pow(round) * 2).await;
            assert!(health.can_work(false, false, PATIENCE), "round {round}");
        }
        assert!(health.can_work(true, false, PATIENCE));
        assert!(health.can_work(false, false, PATIENCE), "it went well, so nothing is held against it");
    }

    const TTL: Duration = Duration::from_secs(15);

    /// The stage of an instance that can work two accounts.
    async fn bench() -> (Assignment, Arc<MemoryJournal>, Vec<watch::Sender<bool>>) {
        let journal = journal();
        let (mut lanes, mut cut_off, mut accounts) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..=2 {
            let account = journal.account(1, Address([number; 20])).await.unwrap();
            let (is_cut_off, lease) = (watch::Sender::new(false), watch::channel(None).1);
            let (is_assigned, may_be_free) = (watch::Sender::new(None), Arc::default());
            lanes.push(AssignedLane { account, is_assigned, lease, is_cut_off: is_cut_off.subscribe(), may_be_free });
            cut_off.push(is_cut_off);
            accounts.push(account);
        }
        let (instance, changed, beat) = (instance("a", &accounts), Arc::default(), Heartbeat::default());
        (Assignment { instance, ttl: TTL, journal: journal.clone(), lanes, changed, beat }, journal, cut_off)
    }

    fn assigned(stage: &Assignment) -> Vec<Option<bool>> {
        stage.lanes.iter().map(|lane| *lane.is_assigned.borrow()).collect()
    }

    #[tokio::test]
    async fn a_lone_instance_owns_every_account_and_shares_them_with_another() {
        let (stage, journal, _cut_off) = bench().await;
        let mut memory = Memory::default();
        stage.step(&mut memory, true).await.unwrap();
        assert_eq!(assigned(&stage), [Some(true), Some(true)]);
        assert_eq!(journal.attendance().await.unwrap().instances.len(), 1, "it is registered");
        journal.attend(&instance("b", &stage.instance.accounts), TTL).await.unwrap();
        stage.step(&mut memory, false).await.unwrap();
        assert_eq!(assigned(&stage), [Some(true), Some(false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_at_work_goes_to_an_instance_that_has_been_there_for_a_while() {
        let (mut stage, journal, _cut_off) = bench().await;
        let mut memory = Memory::default();
        stage.step(&mut memory, true).await.unwrap();
        let mut leases = Vec::new();
        for lane in &mut stage.lanes {
            let owner = Arc::clone(&stage.instance.owner);
            let lease = journal.acquire_lease(lane.account, owner, TTL, None).await.unwrap().ours();
            let sender = watch::Sender::new(lease);
            lane.lease = sender.subscribe();
            leases.push(sender);
        }
        // Crashes each time before it has settled.
        for run in ["b.1", "b.2", "b.3"] {
            journal.attend(&instance(run, &stage.instance.accounts), TTL).await.unwrap();
            stage.step(&mut memory, false).await.unwrap();
            tokio::time::advance(TTL / SETTLES / 2).await;
            stage.step(&mut memory, false).await.unwrap();
            assert_eq!(assigned(&stage), [Some(true), Some(true)], "{run}");
            journal.leave(&instance(run, &[])).await.unwrap();
            stage.step(&mut memory, false).await.unwrap();
        }
        journal.attend(&instance("b.4", &stage.instance.accounts), TTL).await.unwrap();
        stage.step(&mut memory, false).await.unwrap();
        tokio::time::advance(TTL / SETTLES).await;
        stage.step(&mut memory, false).await.unwrap();
        assert_eq!(assigned(&stage), [Some(true), Some(false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_that_its_owner_does_not_take_is_taken_after_a_while() {
        let (stage, journal, _cut_off) = bench().await;
        journal.attend(&instance("b", &stage.instance.accounts), TTL * 100).await.unwrap();
        let mut memory = Memory::default();
        stage.step(&mut memory, true).await.unwrap();
        assert_eq!(assigned(&stage), [Some(true), Some(false)]);
        tokio::time::advance(TTL * PATIENCE + Duration::from_secs(1)).await;
        stage.step(&mut memory, false).await.unwrap();
        assert_eq!(assigned(&stage), [Some(true), Some(true)]);
    }

    #[tokio::test]
    async fn a_stopped_instance_takes_its_registration_back() {
        let (stage, journal, _cut_off) = bench().await;
        stage.step(&mut Memory::default(), true).await.unwrap();
        let cancel = CancellationToken::new();
        cancel.cancel();
        stage.run(cancel).await.unwrap();
        assert!(journal.attendance().await.unwrap().instances.is_empty());
    }
}
