//! What a lane is told at its start, and what it tells about itself.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::journal::{AccountId, Bumps, Hold, Holds, Lease, Leases, StandingHolds, Transactions};
use crate::model::{BlockNumber, Fee, Heartbeat, Nonce, PauseReason, RequestId, Timestamp};
use crate::observe::metrics::LaneMeter;
use crate::observe::traces::Tracer;
use crate::policy::abi::Errors;
use crate::policy::batch::Batching;
use crate::policy::classify::ErrorTable;
use crate::policy::fee::FeeRules;
use crate::policy::finality::FinalityRule;
use crate::policy::limits::{Limit, Limits};
use crate::policy::permits::Permits;
use crate::policy::poll::PollRule;
use crate::policy::routes::FixedGas;
use crate::policy::send_window::{SendWindow, WindowLimit};
use crate::stages::claim::Serving;

/// The pause before bytes that no node has confirmed to have are sent again.
pub(super) const RESEND_UNKNOWN: Duration = Duration::from_secs(2);

/// Decides about requests without a transaction in an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutagePolicy {
    /// Lets them wait, however long.
    Hold,
    /// Counts it as a failure of theirs.
    Retry,
}

/// Holds what may change while a lane runs, from one use to the next: what is signed stays as it is.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    pub fees: FeeRules,
    /// Limits what may be begun, over all lanes of the chain.
    pub limits: Limits,
    /// Bytes that a node has are given to it again after this.
    pub resend_after: Duration,
    /// The lowest nonce that is not in a block is replaced after this.
    pub replace_after: Duration,
    /// A transaction that was only ever refused is cancelled after this.
    pub refused_after: Duration,
    /// Without a new block for this long, while transactions wait for one, the chain counts as standing still; `None`:
    /// never.
    pub max_head_age: Option<Duration>,
    pub outage: OutagePolicy,
}

/// Holds what is the same for all lanes, as long as the process runs.
#[derive(Debug, Clone)]
pub struct LaneRules {
    /// EIP-155 chain id.
    pub chain_id: u64,
    pub finality: FinalityRule,
    /// Transactions not yet in a block at most; the lane finds by itself how many of these are of use.
    pub in_flight: usize,
    /// Requests may wait for the end of others.
    pub is_strict: bool,
    pub batching: Arc<Batching>,
    /// Checked once more before signing, since the operator may have tightened them.
    pub permits: Arc<Permits>,
    /// The errors that contracts revert with, as far as routes know them.
    pub contract_errors: Arc<Errors>,
    /// Routes whose gas is set.
    pub fixed_gas: Arc<[FixedGas]>,
    /// Between polls of the chain.
    pub poll: PollRule,
    /// The meanings of nodes' texts.
    pub errors: Arc<ErrorTable>,
    /// For how long a lease holds without being renewed.
    pub lease_ttl: Duration,
}

/// Holds what routes and policy say to a lane. They may change while a term runs, from one occurrence to the next.
#[derive(Debug, Clone)]
pub struct RouteRules {
    pub batching: Arc<Batching>,
    pub permits: Arc<Permits>,
    pub contract_errors: Arc<Errors>,
    pub fixed_gas: Arc<[FixedGas]>,
}

impl From<&LaneRules> for RouteRules {
    fn from(LaneRules { batching, permits, contract_errors, fixed_gas, .. }: &LaneRules) -> Self {
        Self {
            batching: Arc::clone(batching),
            permits: Arc::clone(permits),
            contract_errors: Arc::clone(contract_errors),
            fixed_gas: Arc::clone(fixed_gas),
        }
    }
}

/// Settings of one lane.
#[derive(Debug, Clone)]
pub struct LaneSettings {
    /// The journal's number for the account.
    pub account: AccountId,
    pub rules: LaneRules,
    pub tuning: watch::Receiver<Tuning>,
    /// Brings rules that are newer than those that it began with.
    pub newer_routes: watch::Receiver<Option<RouteRules>>,
    /// This run of this instance.
    pub owner: Arc<str>,
    pub tracer: Tracer,
}

impl LaneSettings {
    /// Returns what routes and policy say now.
    pub(super) fn routes(&self) -> RouteRules {
        self.newer_routes.borrow().clone().unwrap_or_else(|| (&self.rules).into())
    }

    /// Returns the rules that count now.
    pub(super) fn tuning(&self) -> Tuning {
        *self.tuning.borrow()
    }
}

/// Shows a lane, for the status line and for intake.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneState {
    /// This instance owns the account.
    pub is_owner: bool,
    /// Why nothing new is taken on, in words.
    pub paused: Option<(PauseReason, String)>,
    /// The operator's hold on the account, or on everything.
    pub hold: Option<Hold>,
    /// The limit that holds requests back, or has within the last seconds.
    pub throttled: Option<Throttling>,
    pub in_flight: usize,
    /// The number that may wait for a block now.
    pub window: usize,
    /// The limit that keeps it from being more.
    pub window_limit: WindowLimit,
    /// The nonce that the next transaction gets, once it is known.
    pub next_nonce: Option<Nonce>,
    /// The newest block seen.
    pub head: Option<BlockNumber>,
    /// The timestamp of that block, in seconds since 1970.
    pub head_at: Option<u64>,
    /// The price of a new transaction now, unless that is above the cap.
    pub fee: Option<Fee>,
    /// Nonces in gaps that something was sent for since the start.
    pub nonces_filled: u64,
    /// Requests that wait while others pass them, or that others wait for; the first [`LaneState::MOST_HELD`].
    pub held: Vec<Held>,
}

impl LaneState {
    /// Requests named in [`Self::held`] at most.
    pub const MOST_HELD: usize = 10;
}

/// A request that does not move for a reason of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub request: RequestId,
    /// The reason, in words for a person.
    pub why: String,
}

/// A limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttling {
    pub limit: Limit,
    /// The time at which there is room again; `None`: when others are final.
    pub until: Option<Timestamp>,
}

impl fmt::Display for Throttling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            Some(until) => write!(f, "{} until {until}", self.limit),
            None => write!(f, "{} until others are final", self.limit),
        }
    }
}

/// Connects a lane with those that watch or wake it.
#[derive(Debug, Clone)]
pub struct LaneSignals {
    /// Requests may be in its queue.
    pub wake: Arc<Notify>,
    /// Whether this instance is to own the account, as lanes are spread over instances; `None` before the first look at
    /// the others.
    pub is_assigned: watch::Sender<Option<bool>>,
    /// The account's work here waits for something that is away; another instance may reach it.
    pub is_cut_off: watch::Sender<bool>,
    /// The lease may be free now.
    pub released: Arc<Notify>,
    /// Requests have ended, of whichever lane.
    pub ended: Arc<Notify>,
    pub state: watch::Sender<LaneState>,
    /// The lease that it holds. It keeps it when it stops: settle has yet to write under it, and the outbox to tell what
    /// was settled. Whoever stops the process gives it up then.
    pub lease: watch::Sender<Option<Lease>>,
    /// Says whether it takes requests, or another instance does.
    pub is_open: watch::Sender<bool>,
    /// Says whether it could write more than it has.
    pub is_hungry: watch::Sender<bool>,
    /// Says whether this journal serves the queue: before that nothing new is signed.
    pub serving: watch::Receiver<Serving>,
    /// Operators' holds, as this instance knows them; a lane that meets a new one shows it to the others.
    pub holds: watch::Sender<StandingHolds>,
    pub beat: Heartbeat,
    pub meter: LaneMeter,
}

impl LaneSignals {
    pub fn new(meter: LaneMeter, serving: watch::Receiver<Serving>, holds: watch::Sender<StandingHolds>) -> Self {
        Self {
            serving,
            holds,
            wake: Arc::default(),
            is_assigned: watch::Sender::new(None),
            is_cut_off: watch::Sender::new(false),
            released: Arc::default(),
            ended: Arc::default(),
            state: watch::Sender::new(LaneState::default()),
            lease: watch::Sender::new(None),
            is_open: watch::Sender::new(false),
            is_hungry: watch::Sender::new(false),
            beat: Heartbeat::default(),
            meter,
        }
    }

    pub(super) fn serves(&self) -> bool {
        *self.serving.borrow() == Serving::Serves
    }

    /// Returns the operator's hold on the whole account, or on everything.
    pub(super) fn hold_on(&self, account: AccountId) -> Option<Hold> {
        self.holds.borrow().on(account).cloned()
    }

    /// Publishes whether requests may come for this account.
    pub(super) fn publish_open(&self, is_open: bool) {
        self.is_open.send_if_modified(|now| std::mem::replace(now, is_open) != is_open);
    }

    /// Publishes how the lane stands, to those for whom that is new.
    pub(super) fn publish(&self, state: LaneState, is_open: bool, is_cut_off: bool) {
        self.is_cut_off.send_if_modified(|now| std::mem::replace(now, is_cut_off) != is_cut_off);
        self.publish_open(is_open);
        self.state.send_if_modified(|now| {
            let changes = *now != state;
            *now = state;
            changes
        });
    }

    pub(super) fn publish_hunger(&self, is_hungry: bool) {
        self.is_hungry.send_if_modified(|now| std::mem::replace(now, is_hungry) != is_hungry);
    }

    /// Publishes that the lane does not work.
    pub(super) fn publish_idle(&self, settings: &LaneSettings) {
        let idle = LaneState {
            is_owner: self.lease.borrow().is_some(),
            window: SendWindow::new(settings.rules.in_flight).size(),
            hold: self.hold_on(settings.account),
            nonces_filled: self.state.borrow().nonces_filled,
            ..LaneState::default()
        };
        self.publish_hunger(false);
        let is_open = idle.hold.is_none() && settings.tuning().outage == OutagePolicy::Retry;
        self.publish(idle, is_open, false);
    }
}

/// The part of the journal that a lane uses.
pub trait LaneJournal: Leases + Transactions + Holds + Bumps {}
impl<T: Leases + Transactions + Holds + Bumps> LaneJournal for T {}
