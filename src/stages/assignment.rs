//! The stage that shows this instance to the others, and tells each lane whether it is to own its account here: lanes are
//! spread evenly over the instances that are there. Nothing here is needed for safety, which is the lease's: whoever
//! errs about the others only waits for a lease, or gives one up too early.

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
use crate::policy::retry_schedule::Backoff;

/// How often in each `lease.ttl` an instance shows itself, and how often it looks who is there in between.
const SHOWS: u32 = 3;
const LOOKS: u32 = 5;
/// The least often that the stage shows that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// An account that was given up for want of a node or a signer is not asked for again for so long, longer each time.
const REST: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(1800));
/// Who could take an account that nobody owns, and is not the one who should, waits for so many `lease.ttl`.
const PATIENCE: u32 = 2;

/// What the stage needs to know of a lane.
#[derive(Debug, Clone)]
pub struct AssignedLane {
    pub account: AccountId,
    /// Whether it is to own it; `None` before the first look.
    pub is_assigned: watch::Sender<Option<bool>>,
    pub lease: watch::Receiver<Option<Lease>>,
    /// Its work here waits for something that is away.
    pub is_cut_off: watch::Receiver<bool>,
    /// Says that the lease may be free now.
    pub look: Arc<Notify>,
}

pub struct Assignment {
    pub instance: Instance,
    /// For how long an instance counts as there after its last word, and a lease without being renewed.
    pub ttl: Duration,
    pub journal: Arc<dyn Instances>,
    /// The lanes of this instance.
    pub lanes: Vec<AssignedLane>,
    /// Another instance has come, has gone, or has given a lease up.
    pub changed: Arc<Notify>,
    pub beat: Heartbeat,
}

impl Assignment {
    /// Until cancelled; then the others are told that this one goes.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut memory = Memory::default();
        while !cancel.is_cancelled() {
            let instance = Instance { accounts: self.workable(&mut memory), ..self.instance.clone() };
            let attendance = self.journal.attend(&instance, self.ttl).await?;
            self.assign(&attendance, &mut memory);
            for _ in 1..LOOKS {
                self.wait(&cancel).await;
                if !cancel.is_cancelled() {
                    self.assign(&self.journal.attendance().await?, &mut memory);
                }
            }
            self.wait(&cancel).await;
        }
        self.journal.leave(&self.instance).await
    }

    async fn wait(&self, cancel: &CancellationToken) {
        let until = Instant::now() + self.ttl / (SHOWS * LOOKS);
        while Instant::now() < until && !cancel.is_cancelled() {
            self.beat.beat();
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = self.changed.notified() => return,
                () = tokio::time::sleep_until(until.min(Instant::now() + BEAT)) => {}
            }
        }
    }

    /// The accounts that this instance can work. One that has been without its node or signer for a whole `ttl` is not
    /// among them: if another instance can work it, it is to have it; if none can, it stays where it is.
    fn workable(&self, memory: &mut Memory) -> Vec<AccountId> {
        let can_work = |lane: &&AssignedLane| {
            let attempts = memory.attempts.entry(lane.account).or_insert_with(Attempts::new);
            attempts.can_work(lane.lease.borrow().is_some(), *lane.is_cut_off.borrow(), self.ttl)
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
            let is_ours = plan.get(&lane.account).is_none_or(|heir| **heir == self.instance.owner);
            let is_owned = owners.contains_key(&lane.account);
            let waits_too_long = memory.has_waited(lane.account, is_owned, self.ttl * PATIENCE);
            let is_assigned = is_ours || waits_too_long;
            lane.is_assigned.send_if_modified(|now| now.replace(is_assigned) != Some(is_assigned));
            if is_assigned && lane.lease.borrow().is_none() {
                lane.look.notify_one();
            }
        }
    }
}

/// What was seen before.
#[derive(Debug, Default)]
struct Memory {
    instances: BTreeSet<Arc<str>>,
    /// How each lease looks, and since when. Hosts' clocks may disagree about when it runs out.
    marks: BTreeMap<AccountId, (LeaseMark, Instant)>,
    ownerless: BTreeMap<AccountId, Instant>,
    attempts: BTreeMap<AccountId, Attempts>,
}

/// How it went with an account here.
#[derive(Debug)]
struct Attempts {
    cut_off_since: Option<Instant>,
    rests_until: Option<Instant>,
    rests: Backoff,
}

impl Attempts {
    fn new() -> Self {
        Self { cut_off_since: None, rests_until: None, rests: Backoff::between(REST.0, REST.1) }
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
        let owners: BTreeSet<_> = there.iter().map(|instance| Arc::clone(&instance.owner)).collect();
        if self.instances != owners {
            let names: Vec<_> = there.iter().map(|instance| instance.worker.as_str()).collect();
            info!(instances = names.len(), names = names.join(", "), "the instances that share the journal");
            self.instances = owners;
        }
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

    #[tokio::test(start_paused = true)]
    async fn an_account_without_its_node_is_left_to_others_for_longer_each_time() {
        const PATIENCE: Duration = Duration::from_secs(15);
        let mut attempts = Attempts::new();
        assert!(attempts.can_work(false, false, PATIENCE), "why not");
        for round in 0..3_u32 {
            assert!(attempts.can_work(true, true, PATIENCE), "it may be back in a moment");
            tokio::time::advance(PATIENCE + Duration::from_secs(1)).await;
            assert!(!attempts.can_work(true, true, PATIENCE), "round {round}");
            // Another instance has it.
            assert!(!attempts.can_work(false, false, PATIENCE));
            tokio::time::advance(REST.0 * 2_u32.pow(round) / 3).await;
            assert!(!attempts.can_work(false, false, PATIENCE), "round {round}");
            tokio::time::advance(REST.0 * 2_u32.pow(round) * 2).await;
            assert!(attempts.can_work(false, false, PATIENCE), "round {round}");
        }
        assert!(attempts.can_work(true, false, PATIENCE));
        assert!(attempts.can_work(false, false, PATIENCE), "it went well, so nothing is held against it");
    }
}
