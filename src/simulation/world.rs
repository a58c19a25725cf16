//! What everything in a run shares: the seed's random numbers, the weather, the chain, the broker, the journal's disk,
//! and what the checker has to say.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use crate::model::TxHash;
use crate::simulation::checker::Checker;
use crate::simulation::ledger::{Ledger, Rules, View};
use crate::simulation::pools::PoolRules;
use crate::simulation::queues::Queues;
use crate::simulation::store::Store;
use crate::simulation::workload::Words;

/// Odds in a thousand.
pub(super) type Odds = u16;

/// Calls that can fail while others are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallKind {
    Tagged,
    Block,
    Receipt,
    BlockReceipts,
    Count,
    CountAtBlock,
    SentIn,
    Market,
    Estimate,
    Log,
}

impl CallKind {
    pub(super) const ALL: [Self; 10] = [
        Self::Tagged,
        Self::Block,
        Self::Receipt,
        Self::BlockReceipts,
        Self::Count,
        Self::CountAtBlock,
        Self::SentIn,
        Self::Market,
        Self::Estimate,
        Self::Log,
    ];
}

/// What can go wrong at this moment, and how often.
#[derive(Debug, Clone, Default)]
pub(super) struct Weather {
    /// A read of the chain gets no answer, or nonsense.
    pub(super) reads_fail: Odds,
    /// Bytes reach no node, and the sender hears nothing.
    pub(super) sends_lost: Odds,
    /// A node has the bytes, and the sender hears nothing.
    pub(super) answers_lost: Odds,
    /// A node gets the bytes long after the sender was told that it failed.
    pub(super) sends_late: Odds,
    /// A node gets them twice.
    pub(super) sends_doubled: Odds,
    /// A node has the bytes, and its answer cannot be read.
    pub(super) answers_garbled: Odds,
    /// A node answers a hash, and keeps nothing.
    pub(super) sends_forgotten: Odds,
    /// A text that nobody ever saw.
    pub(super) answers_unknown: Odds,
    /// Calls of one kind get no answer, while others do.
    pub(super) calls_fail: Option<(CallKind, Odds)>,
    /// Single calls fail as with a provider without nodes behind it, in any shape.
    pub(super) outages: Odds,
    /// Blocks with the largest time and gas limit that are believed.
    pub(super) odd_numbers: Odds,
    /// Nodes refuse whatever comes, in these words.
    pub(super) refuses_all: Option<Words>,
    /// The node that is behind answers.
    pub(super) stale_reads: Odds,
    /// Counts of transactions that are wrong by a few.
    pub(super) count_lies: Odds,
    /// Counts of transactions that are wrong by thousands, at whichever block.
    pub(super) count_jumps: Odds,
    /// Blocks that name no transactions, or others than they have.
    pub(super) lists_lie: Odds,
    /// The signer is away.
    pub(super) signer_away: Odds,
    /// The broker has the message, and its confirm is lost.
    pub(super) confirms_lost: Odds,
    /// The broker never had the message, and no answer comes.
    pub(super) publishes_lost: Odds,
    /// No queue takes it.
    pub(super) publishes_returned: Odds,
    /// The broker says no.
    pub(super) publishes_refused: Odds,
    /// The broker gets it long after the sender was told that it failed.
    pub(super) publishes_late: Odds,
    /// The session ends while an ack is on its way.
    pub(super) acks_lost: Odds,
    /// A commit fails and nothing is written.
    pub(super) commits_fail: Odds,
    /// A commit is written and nobody is told.
    pub(super) commits_unknown: Odds,
    /// Every call takes up to so many milliseconds.
    pub(super) slowness_ms: u64,
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) begin: Instant,
    pub(super) weather: Weather,
    pub(super) ledger: Ledger,
    /// What the node that is behind still believes.
    pub(super) stale_view: Option<View>,
    pub(super) queues: Queues,
    pub(super) store: Arc<Mutex<Store>>,
    pub(super) checker: Checker,
    /// Requests are forgotten some seconds after their end.
    pub(super) forgets: bool,
    /// The same transaction gets another signature each time.
    pub(super) signatures_vary: bool,
    /// How often an older copy of the journal came back. Bytes that were on their way before are lost.
    pub(super) restores: u32,
    trace: Vec<String>,
}

/// A handle on the world. Never held over an await.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(super) fn new(world: World) -> Self {
        Self(Arc::new(Mutex::new(world)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// Nodes took these and do not have them any more.
    pub(super) fn note_drops(&mut self, hashes: impl IntoIterator<Item = TxHash>) {
        for hash in hashes {
            *self.checker.dropped.entry(hash).or_default() += 1;
        }
    }

    pub(super) fn new(mut rng: Rng, begin: Instant) -> Self {
        let depth = rng.u64(1..=4);
        let mut ledger = Ledger::new(depth);
        ledger.no_gaps = rng.bool();
        // Drawn apart, so that all else in a run is as it is without them.
        ledger.rules = Rules::draw(&mut Rng::with_seed(!rng.get_seed()));
        ledger.pool_rules = PoolRules::draw(&mut Rng::with_seed(rng.get_seed().rotate_left(24)));
        Self {
            begin,
            weather: Weather { slowness_ms: 5, ..Weather::default() },
            ledger,
            stale_view: None,
            queues: Queues::default(),
            store: Arc::default(),
            checker: Checker::default(),
            forgets: false,
            signatures_vary: rng.bool(),
            restores: 0,
            trace: Vec::new(),
            rng,
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn happens(&mut self, odds: Odds) -> bool {
        odds > 0 && self.rng.u16(0..1000) < odds
    }

    /// How long a call takes, one way.
    pub(super) fn latency(&mut self) -> Duration {
        Duration::from_millis(self.rng.u64(0..=self.weather.slowness_ms))
    }

    /// What makes two signatures of one transaction differ.
    pub(super) fn salt(&mut self) -> u64 {
        if self.signatures_vary { self.rng.u64(..) } else { 0 }
    }

    /// Something happened: two runs of a seed must have the same story.
    pub(super) fn note(&mut self, what: impl Into<String>) {
        self.trace.push(format!("{:>8} {}", self.now_ms(), what.into()));
    }

    pub(super) fn story(&self) -> &[String] {
        &self.trace
    }

    /// What must never be. The first of them ends the run.
    pub(super) fn violated(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("VIOLATED {what}"));
        self.checker.violations.push(what);
    }

    pub(super) fn store(&self) -> Arc<Mutex<Store>> {
        Arc::clone(&self.store)
    }
}
