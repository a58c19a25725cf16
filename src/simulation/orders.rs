//! An operator who holds, releases and bumps while everything else goes wrong: drawn apart, so that runs without one are as they were.

use fastrand::Rng;

use crate::journal::{AccountId, HoldScope};
use crate::model::{Order, RequestState, Timestamp, Wei};
use crate::simulation::settings::HIGHEST_FEE;
use crate::simulation::world::World;

/// One run in this many has one.
const RUNS: u8 = 4;

pub(super) struct Operator {
    rng: Rng,
    next: u64,
}

impl Operator {
    pub(super) fn draw(mut rng: Rng) -> Option<Self> {
        (rng.u8(0..RUNS) == 0).then(|| Self { next: rng.u64(0..10_000), rng })
    }

    /// Does the next thing, if it is time.
    pub(super) fn act(&mut self, now: u64, accounts: &[AccountId], world: &mut World) {
        if now < self.next {
            return;
        }
        self.next = now + self.rng.u64(200..12_000);
        let store = world.store();
        let mut store = store.lock().expect("nobody panics with it");
        if self.rng.bool() {
            let mut writing: Vec<_> =
                store.requests().values().filter(|row| row.state == RequestState::Writing).collect();
            writing.sort_by_key(|row| row.turn);
            let Some(id) = self.rng.choice(writing).map(|row| row.id.clone()) else { return };
            let max_fee = self.rng.bool().then(|| Wei(self.rng.u128(1..=HIGHEST_FEE)));
            let answer = store.bump(Timestamp::now(), &id, max_fee, &Order::new("operator", "it is stuck"));
            world.note(format!("bump {id} {max_fee:?}: {answer:?}"));
            return;
        }
        let scope = match self.rng.u8(0..4) {
            0 => HoldScope::Everything,
            1 => HoldScope::Route(self.rng.choice(["write", "records", "other"]).unwrap_or_default().to_owned()),
            _ => HoldScope::Account(accounts[self.rng.usize(..accounts.len())]),
        };
        if self.rng.bool() {
            let _ = store.hold(Timestamp::now(), &scope, Order::new("operator", "why not"));
            world.note(format!("hold {scope:?}"));
        } else if let Some(released) = store.release(Timestamp::now(), &scope) {
            world.note(format!("release {}", released.scope_text()));
        }
    }

    /// Releases all that is held.
    pub(super) fn end(world: &mut World) {
        world.store().lock().expect("nobody panics with it").release_all();
    }
}
