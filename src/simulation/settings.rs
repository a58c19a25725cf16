//! What a run is told: a worker's settings with short times, the rest drawn from the seed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::sync::watch;

use crate::broker::Names;
use crate::journal::AccountId;
use crate::model::{Address, Gas, GasRule, Wei};
use crate::observe::traces::Tracer;
use crate::policy::abi::{self, Call, Encoding, Pointer, Source};
use crate::policy::admission::{AdmissionRules, OrderBy, Ordering, Scope, TextSource};
use crate::policy::batch::{BatchKind, Batching};
use crate::policy::fee::{FeeMode, FeeRules};
use crate::policy::finality::FinalityRule;
use crate::policy::limits::Limits;
use crate::policy::poll::PollRule;
use crate::policy::records::Kept;
use crate::policy::replies::{self, ReplyRules};
use crate::policy::retry_schedule::RetrySchedule;
use crate::policy::routes::{Calldata, Route};
use crate::simulation::ledger::CHAIN_ID;
use crate::simulation::workload::{FUNCTION, MANY, RECORDS};
use crate::stages::lane::{LaneRules, LaneSettings, OutagePolicy, Tuning};
use crate::stages::settle::SettleSettings;
use crate::stages::upkeep::Pace;

/// Above this the lanes pause.
pub(super) const HIGHEST_FEE: u128 = 1000;
/// The header with a message's ordering key.
pub(super) const KEY: &str = "key";
const LEASE: Duration = Duration::from_secs(5);

pub(super) struct RunSettings {
    pub(super) accounts: Vec<(Address, AccountId)>,
    /// Of each lane; its account and owner are set at its start.
    pub(super) lane: LaneSettings,
    pub(super) settle: SettleSettings,
    pub(super) admission: AdmissionRules,
    pub(super) replies: Arc<ReplyRules>,
    pub(super) max_open: u64,
    pub(super) upkeep: Pace,
}

impl RunSettings {
    pub(super) fn draw(rng: &mut Rng, accounts: Vec<(Address, AccountId)>, depth: u64) -> Self {
        let seconds = Duration::from_secs;
        let schedule = RetrySchedule::new(rng.u32(1..=4), seconds(1), 2.0, seconds(8));
        let park_delay = seconds(3);
        let waits = schedule.waits(park_delay);
        let tuning = Tuning {
            fees: FeeRules { mode: FeeMode::Auto, max_fee: Wei(HIGHEST_FEE), min_tip: Wei(0), max_tip: None },
            limits: Limits::default(),
            resend_after: seconds(4),
            replace_after: seconds(rng.u64(3..9)),
            refused_after: seconds(10),
            max_head_age: None,
            outage: OutagePolicy::Hold,
        };
        let rules = LaneRules {
            chain_id: CHAIN_ID,
            finality: if rng.bool() { FinalityRule::Depth(depth) } else { FinalityRule::Finalized },
            in_flight: rng.usize(1..=16),
            is_strict: false,
            batching: Arc::new(Batching::NONE),
            permits: Arc::default(),
            contract_errors: Arc::default(),
            fixed_gas: Arc::default(),
            poll: PollRule::Every(Duration::from_millis(rng.u64(100..900))),
            errors: Arc::default(),
            lease_ttl: LEASE,
        };
        let lane = LaneSettings {
            account: AccountId(0),
            rules,
            tuning: watch::channel(tuning).1,
            newer_routes: watch::channel(None).1,
            owner: Arc::from(""),
            tracer: Tracer::default(),
        };
        let settle = SettleSettings {
            event_source: "/chainwriter/sim/31337/q".to_owned(),
            worker: "sim/worker".to_owned(),
            names: Names::derived_from("q"),
            schedule,
            newer_retries: watch::channel(None).1,
            max_hold: seconds(rng.u64(8..40)),
            park_delay,
            waits,
            publishes_in_flight: rng.usize(1..=8),
            read_headers: watch::channel(BTreeSet::from([KEY.to_owned()])).1,
            tracer: Tracer::default(),
        };
        let admission = AdmissionRules {
            id_source: TextSource::MessageId,
            scope: Scope::None,
            order_by: None,
            routes: vec![Route::of_all(Address([0xaa; 20]), Wei(0), GasRule::Estimate { margin: 20 })],
            max_body_bytes: 200,
            permits: Default::default(),
            queue: "q".to_owned(),
        };
        let upkeep = Pace::of(seconds(30 * 86_400), seconds(30 * 86_400), seconds(8), seconds(1800));
        let replies = Arc::new(ReplyRules { give_up_after: seconds(20), ..replies::tests::rules() });
        Self { accounts, lane, settle, admission, replies, max_open: rng.u64(3..60), upkeep }
    }

    /// In some of the runs requests are forgotten soon, and freezes are short.
    pub(super) fn draw_upkeep(&mut self, rng: &mut Rng) -> bool {
        let forgets = rng.u8(0..3) == 0;
        if forgets {
            let milliseconds = Duration::from_millis;
            let [interval, hold, grace, step] = [6000, 5000, 5000, 700].map(milliseconds);
            // Longer than the longest wait, and than an instance takes to notice what another one has settled.
            self.upkeep = Pace { kept: Duration::from_secs(40), interval, hold, grace, step, ..self.upkeep };
        }
        forgets
    }

    /// Strict ordering, in some of the runs: over how many keys.
    pub(super) fn draw_ordering(&mut self, rng: &mut Rng) -> Option<u64> {
        let keys = (rng.u8(0..4) == 0).then(|| rng.u64(1..=5))?;
        let source = TextSource::Header(KEY.to_owned());
        self.admission.order_by = Some(OrderBy { source, ordering: Ordering::Strict });
        self.lane.rules.is_strict = true;
        Some(keys)
    }

    /// Batches, in some of the runs.
    pub(super) fn draw_batches(&mut self, rng: &mut Rng) {
        if rng.bool() {
            return;
        }
        let [route] = self.admission.routes.as_mut_slice() else { return };
        let function = abi::function(FUNCTION).expect("it is a signature");
        let body = Source::At(Pointer::new("", Encoding::Hex));
        let call = Call::new(function, vec![body]).expect("it has one argument");
        route.calldata = Calldata::Call(Box::new(call));
        route.many = Some(MANY.clone());
        self.lane.rules.batching = Arc::new(Batching {
            max_requests: rng.usize(2..=6),
            max_bytes: rng.usize(150..=800),
            max_wait: Duration::from_millis(rng.u64(0..2000)),
            keeps_order: rng.bool(),
            kinds: route.to.map(|to| BatchKind { to, many: MANY.clone() }).into_iter().collect(),
        });
    }

    /// In some of the runs the contract keeps records.
    pub(super) fn draw_records(&mut self, rng: &mut Rng) -> bool {
        let [route] = self.admission.routes.as_mut_slice() else { return false };
        if rng.u8(0..4) != 0 {
            return false;
        }
        route.calldata = Calldata::Record(Kept::Body);
        if self.lane.rules.batching.is_on() {
            route.many = Some(RECORDS.clone());
            let kinds = route.to.map(|to| BatchKind { to, many: RECORDS.clone() }).into_iter().collect();
            self.lane.rules.batching = Arc::new(Batching { kinds, ..Batching::clone(&self.lane.rules.batching) });
        }
        true
    }

    /// What a pool drops has to be noticed before it is time to send it again anyway.
    pub(super) fn resend_late(&mut self) {
        let tuning = Tuning { resend_after: Duration::from_secs(120), ..*self.lane.tuning.borrow() };
        self.lane.tuning = watch::channel(tuning).1;
    }

    /// An operator's limits, in some of the runs.
    pub(super) fn draw_limits(&mut self, rng: &mut Rng) {
        let limits = Limits {
            writes_per_second: (rng.u8(0..4) == 0).then(|| rng.u32(1..=3)),
            in_flight: (rng.u8(0..4) == 0).then(|| rng.u64(1..=6)),
            gas_per_hour: (rng.u8(0..24) == 0).then(|| Gas(rng.u64(1_200_000..2_400_000))),
            ..Limits::default()
        };
        let tuning = Tuning { limits, ..*self.lane.tuning.borrow() };
        self.lane.tuning = watch::channel(tuning).1;
    }
}
