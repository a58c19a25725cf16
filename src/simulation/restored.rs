//! A journal that comes back as it was some time ago, while the chain and the broker went on; and the operator who reads
//! from the chain what it lacks.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use crate::chain::follow::history::{Patience, account_history};
use crate::journal::{RecoveredAccount, Recoveries, Recovery};
use crate::model::{BlockNumber, Marker, Order, RequestId, Timestamp};
use crate::policy::marker::newest;
use crate::simulation::journal::{MemoryJournal, NoFaults};
use crate::simulation::ledger::Ledger;
use crate::simulation::nodes::SimNodes;
use crate::simulation::queues::Queued;
use crate::simulation::settings::RunSettings;
use crate::simulation::store::Store;
use crate::simulation::workload::{Behaviour, Body};
use crate::simulation::world::{Shared, World};

/// The operator sees a pause after so many milliseconds.
pub(super) const REACTION_MS: u64 = 6_000;

/// Copies of the journal, and what is done with them.
#[derive(Debug, Default)]
pub(super) struct Copies {
    copy: Option<Store>,
    /// The copy comes back once all processes have ended.
    pub(super) is_due: bool,
    /// The operator acts then.
    pub(super) acts_at: Option<u64>,
}

impl Copies {
    pub(super) fn take(&mut self, world: &World) {
        let store = world.store();
        self.copy = Some(store.lock().unwrap_or_else(PoisonError::into_inner).clone());
    }

    pub(super) fn is_there(&self) -> bool {
        self.copy.is_some()
    }

    /// Puts the copy in the journal's place. What no pool shows any more never comes again: see "What it cannot see" in the
    /// README.
    pub(super) fn restore(&mut self, world: &mut World) {
        let Some(copy) = self.copy.take() else { return };
        *world.store().lock().unwrap_or_else(PoisonError::into_inner) = copy;
        world.restores += 1;
        // The broker was restored too, say: what it remembers is the first line, and this is about the second.
        world.queues.markers.clear();
        drop_what_follows_a_gap(&mut world.ledger);
        let dead = world.queues.dead.iter().map(|dead| (dead.id().to_owned(), dead.generation()));
        world.checker.dead_before_restore = dead.collect::<BTreeSet<_>>();
        world.checker.was_restored = true;
        world.note("the journal is what it was some time ago");
    }
}

/// Drops also transactions that no block takes, which leave a gap sooner or later: an operator replaces them.
fn drop_what_follows_a_gap(ledger: &mut Ledger) {
    let is_left = |body: &Body| matches!(body.behaviour, Behaviour::Dropped | Behaviour::Unmined);
    ledger.pool.retain(|_, hash| !Body::all(&ledger.known[hash].data).iter().any(is_left));
    let accounts: BTreeSet<_> = ledger.pool.keys().map(|(account, _)| *account).collect();
    for account in accounts {
        let end = ledger.pending(account);
        ledger.pool.retain(|(of, nonce), _| *of != account || *nonce < end);
    }
}

impl World {
    /// Some lane has yet to see what its account has written with the newer journal. A node that lags in this moment shows
    /// nothing of it.
    pub(super) fn is_behind_unseen(&self) -> bool {
        let store = self.store();
        let store = store.lock().unwrap_or_else(PoisonError::into_inner);
        self.checker.was_restored
            && store
                .accounts()
                .values()
                .any(|row| row.next_nonce.unwrap_or_default() < self.ledger.pending(row.address))
    }

    /// Cancels what the journal names as lost: an operator reads `status`. The broker must not have it.
    pub(super) fn cancel_lost_retries(&mut self) {
        let store = self.store();
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        for lost in store.lost_retries() {
            let id = RequestId::new(&lost.request).expect("the journal knows it");
            if self.checker.cancelled.insert(lost.request) || !store.is_cancelled(&id) {
                let answer = store.cancel(Timestamp::now(), &id, Order::new("operator", "its retry is lost"));
                self.note(format!("cancel {id}, whose retry is lost: {answer:?}"));
            }
            let generation = store.request(&id).map(|row| row.generation);
            let is_it = |copy: &Queued| copy.id() == id.as_str() && Some(copy.generation()) == generation;
            if !self.checker.clocks_were_set && self.queues.has(is_it) {
                self.violated(format!("{id} counts as lost, and the broker has its retry"));
            }
        }
    }

    pub(super) fn is_paused_as_behind(&self) -> bool {
        self.store().lock().unwrap_or_else(PoisonError::into_inner).foreign_use().behind.is_some()
    }

    /// Nothing of the accounts is on its way.
    pub(super) fn is_all_final(&self, settings: &RunSettings) -> bool {
        let is_final = |ledger: &Ledger, account| ledger.final_count(account) == ledger.pending(account);
        settings.accounts.iter().all(|(account, _)| is_final(&self.ledger, *account))
    }
}

/// Does what `chainwriter recover --from-block 0` does. The processes have ended.
pub(super) async fn recover(world: &Shared, settings: &RunSettings) -> Result<(), String> {
    let (store, height) = {
        let world = world.lock();
        (world.store(), world.ledger.final_height)
    };
    let journal = MemoryJournal::new(store, Arc::new(NoFaults));
    let chain = SimNodes { world: world.clone() };
    let blocks = (BlockNumber(0), BlockNumber(height));
    let mut accounts = Vec::new();
    for (address, account) in &settings.accounts {
        let batching = &settings.lane.rules.batching;
        let history = account_history(&chain, *address, blocks, batching, &Patience::NONE, |_| ()).await;
        let history = history.map_err(|error| error.to_string())?;
        let (account, writes) = (*account, history.writes);
        world.lock().note(format!("read {} writes up to nonce {}", writes.len(), history.next_nonce));
        let (first_nonce, next_nonce) = (history.first_nonce, history.next_nonce);
        accounts.push(RecoveredAccount { account, first_nonce, next_nonce, writes });
    }
    let recovery = Recovery {
        begun_at: Timestamp::now(),
        operator: "operator".to_owned(),
        from_block: blocks.0,
        to_block: blocks.1,
    };
    let marked = newest(&world.lock().queues.markers).map(Marker::marked_start);
    journal.begin_recovery(recovery, accounts, marked, Order::new("eve", "")).await.map_err(|error| error.to_string())
}
