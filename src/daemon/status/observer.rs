//! The observer: puts the report together from what the parts show of themselves, and polls what has to be
//! asked for: the journal's counts and the accounts' balances.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::broker::{BrokerState, Flow, PrefetchState};
use crate::chain::{Chain, NodeClient};
use crate::daemon::status::report::{BrokerReport, HeldReport, LaneReport, PauseReport, Retiring, WorkerReport};
use crate::daemon::status::{RecentLines, gauges};
use crate::journal::{AccountOverview, Hold, JournalOverview, Upkeep};
use crate::model::{Address, Timestamp, Wei};
use crate::observe::metrics::{IntakeMeter, Metrics, SettleMeter};
use crate::stages::claim::Serving;
use crate::stages::lane::LaneState;

/// The interval between reads of the journal.
const JOURNAL_POLL: Duration = Duration::from_secs(5);
/// The interval between reads of the balances.
const BALANCE_POLL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct LaneView {
    pub account: Address,
    pub state: watch::Receiver<LaneState>,
    pub is_open: watch::Receiver<bool>,
}

/// The parts' own views of themselves.
pub struct Sources {
    pub worker: String,
    pub queue: String,
    pub chain_id: u64,
    pub broker: watch::Receiver<BrokerState>,
    pub prefetch: watch::Receiver<PrefetchState>,
    pub flow: watch::Receiver<Flow>,
    /// Says whether this journal serves the queue.
    pub serving: watch::Receiver<Serving>,
    pub lanes: Vec<LaneView>,
    /// Accounts that take no new messages.
    pub retiring: watch::Receiver<BTreeSet<Address>>,
    pub node: Arc<NodeClient>,
    pub journal: Arc<dyn Upkeep>,
    pub intake: IntakeMeter,
    pub settle: SettleMeter,
    /// Stages that stand still, as the watchdog sees it.
    pub stuck: watch::Receiver<Vec<&'static str>>,
    /// Cancelled when the process begins to stop.
    pub draining: CancellationToken,
    pub recent: RecentLines,
}

pub struct Observer {
    sources: Sources,
    metrics: Metrics,
    started_at: Timestamp,
    asked: watch::Sender<Asked>,
}

/// The last answers of the journal and the node.
#[derive(Default)]
struct Asked {
    journal: Option<JournalOverview>,
    /// In the order of the lanes.
    balances: Vec<Option<Wei>>,
}

impl Observer {
    pub fn new(sources: Sources, metrics: Metrics) -> Self {
        Self { sources, metrics, started_at: Timestamp::now(), asked: watch::Sender::default() }
    }

    /// Polls until it is dropped. What cannot be read now stays as it was read last: the parts that use it report its
    /// failures.
    pub async fn run(&self) {
        let mut tick = tokio::time::interval(JOURNAL_POLL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut balances_at: Option<Instant> = None;
        let mut retired = BTreeSet::new();
        loop {
            tick.tick().await;
            self.read_journal().await;
            self.log_retired(&mut retired);
            if balances_at.is_none_or(|at| at.elapsed() >= BALANCE_POLL) {
                self.read_balances().await;
                balances_at = self.has_balances().then(Instant::now).or(balances_at);
            }
        }
    }

    async fn read_journal(&self) {
        match self.sources.journal.overview().await {
            Ok(overview) => self.asked.send_modify(|asked| asked.journal = Some(overview)),
            Err(error) => {
                warn!(%error, "could not read counts from the journal; those in /status and /metrics are old")
            }
        }
    }

    /// Logs once for each account that retires that nothing is left of it.
    fn log_retired(&self, logged: &mut BTreeSet<Address>) {
        for account in self.sources.retiring.borrow().iter() {
            let has_left = self.left_of(*account) != Some(0);
            if has_left {
                logged.remove(account);
            } else if logged.insert(*account) {
                info!(%account, "the account has retired: nothing is left, and its [[signer]] can be taken out");
            }
        }
    }

    /// Returns what an account has left to finish; `None` before the journal was read.
    fn left_of(&self, account: Address) -> Option<u64> {
        let asked = self.asked.borrow();
        let known = &asked.journal.as_ref()?.accounts;
        let chain_id = self.sources.chain_id;
        let known = known.iter().find(|known| (known.chain_id, known.address) == (chain_id, account));
        Some(known.map_or(0, AccountOverview::left))
    }

    async fn read_balances(&self) {
        let mut balances = Vec::with_capacity(self.sources.lanes.len());
        for lane in &self.sources.lanes {
            balances.push(self.sources.node.balance(lane.account).await.ok());
        }
        self.asked.send_modify(|asked| {
            let old = std::mem::take(&mut asked.balances).into_iter().chain(std::iter::repeat(None));
            asked.balances = balances.into_iter().zip(old).map(|(new, old)| new.or(old)).collect();
        });
    }

    fn has_balances(&self) -> bool {
        self.asked.borrow().balances.iter().all(Option::is_some)
    }

    pub fn report(&self) -> WorkerReport {
        let asked = self.asked.borrow();
        let sources = &self.sources;
        let balances = asked.balances.iter().copied().chain(std::iter::repeat(None));
        let report = |(lane, balance): (&LaneView, Option<Wei>)| {
            let is_retiring = sources.retiring.borrow().contains(&lane.account);
            let retiring = is_retiring.then(|| Retiring { left: self.left_of(lane.account) });
            LaneReport { retiring, ..lane.report(balance) }
        };
        let lanes: Vec<_> = sources.lanes.iter().zip(balances).map(report).collect();
        let broker = sources.broker.borrow().clone();
        let prefetch = *sources.prefetch.borrow();
        let is_draining = sources.draining.is_cancelled();
        WorkerReport {
            worker: sources.worker.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            queue: sources.queue.clone(),
            chain_id: sources.chain_id,
            started_at: self.started_at,
            at: Timestamp::now(),
            not_ready: not_ready(is_draining, &broker, &sources.serving.borrow(), &lanes),
            stuck: sources.stuck.borrow().iter().map(|stage| (*stage).to_owned()).collect(),
            broker: BrokerReport {
                state: broker.word().to_owned(),
                detail: broker.detail().map(str::to_owned),
                deliveries_wanted: *sources.flow.borrow() == Flow::Open,
                deliveries_held: u64::try_from(sources.settle.held.get()).unwrap_or(0),
                prefetch: prefetch.size,
                prefetch_limit: Some(prefetch.limit),
            },
            lanes,
            endpoints: sources.node.endpoint_states(),
            journal: asked.journal.clone(),
            hex_bodies: u64::try_from(sources.intake.hex_bodies.get()).unwrap_or(0),
            recent: sources.recent.lines(),
        }
    }

    pub fn metrics_page(&self) -> String {
        let report = self.report();
        self.metrics.page(|gauges| gauges::set(gauges, &report))
    }
}

/// Returns why the worker is not ready, in words. It is ready when the broker delivers and a lane takes requests, or would if
/// operators did not hold it.
fn not_ready(is_draining: bool, broker: &BrokerState, serving: &Serving, lanes: &[LaneReport]) -> Vec<String> {
    let mut reasons = Vec::new();
    if is_draining {
        reasons.push("draining".to_owned());
    }
    match broker {
        BrokerState::Connecting(why) => reasons.push(format!("broker away: {why}")),
        BrokerState::Blocked(why) => reasons.push(format!("broker takes no messages: {why}")),
        BrokerState::Consuming | BrokerState::Paused => reasons.extend(serving.problem()),
    }
    if !lanes.iter().any(|lane| lane.open) {
        // What an operator holds is as it is to be.
        let closed = lanes.iter().filter(|lane| lane.on_hold.is_none());
        reasons.extend(closed.map(|lane| match &lane.paused {
            Some(PauseReport { reason, detail }) => format!("lane {}: paused ({reason}): {detail}", lane.account),
            None => format!("lane {}: it has seen no block yet", lane.account),
        }));
    }
    reasons
}

impl LaneView {
    fn report(&self, balance: Option<Wei>) -> LaneReport {
        let state = self.state.borrow();
        let head_at = state.head_at.and_then(|seconds| i64::try_from(seconds.saturating_mul(1000)).ok());
        LaneReport {
            account: self.account,
            owner: state.is_owner,
            retiring: None,
            open: *self.is_open.borrow(),
            paused: state
                .paused
                .as_ref()
                .map(|(reason, detail)| PauseReport { reason: reason.to_string(), detail: detail.clone() }),
            on_hold: state.hold.as_ref().map(Hold::text),
            throttled: state.throttled.map(|throttled| throttled.to_string()),
            in_flight: state.in_flight as u64,
            window: state.window as u64,
            window_limit: state.window_limit.as_str().to_owned(),
            next_nonce: state.next_nonce,
            head: state.head,
            head_at: head_at.map(Timestamp),
            fee_wei: state.fee.map(|fee| fee.ceiling().0.to_string()),
            balance_wei: balance.map(|balance| balance.0.to_string()),
            nonces_filled: state.nonces_filled,
            held: state
                .held
                .iter()
                .map(|held| HeldReport { request: held.request.to_string(), why: held.why.clone() })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(open: bool, reason: Option<&str>) -> LaneReport {
        let paused = reason.map(|reason| PauseReport { reason: reason.to_owned(), detail: "why".to_owned() });
        let view = LaneView {
            account: Address([7; 20]),
            state: watch::channel(LaneState::default()).1,
            is_open: watch::channel(open).1,
        };
        LaneReport { paused, ..view.report(None) }
    }

    #[test]
    fn it_is_ready_while_the_broker_is_there_and_some_lane_takes_requests() {
        let closed = || lane(false, Some("node_unreachable"));
        let on_hold = |lane: LaneReport| LaneReport { on_hold: Some("everything is held".to_owned()), ..lane };
        let cases: [(bool, BrokerState, Vec<LaneReport>, &[&str]); 10] = [
            (false, BrokerState::Consuming, vec![lane(true, None)], &[]),
            (false, BrokerState::Paused, vec![lane(true, None)], &[]),
            (false, BrokerState::Consuming, vec![closed(), lane(true, None)], &[]),
            (false, BrokerState::Consuming, vec![closed(), lane(false, None)], &["node_unreachable", "no block"]),
            (false, BrokerState::Connecting("refused".to_owned()), vec![lane(true, None)], &["broker away: refused"]),
            (false, BrokerState::Blocked("memory".to_owned()), vec![lane(true, None)], &["takes no messages: memory"]),
            (true, BrokerState::Paused, vec![lane(true, None)], &["draining"]),
            (false, BrokerState::Paused, vec![on_hold(lane(false, None))], &[]),
            (false, BrokerState::Paused, vec![on_hold(closed()), closed()], &["node_unreachable"]),
            (false, BrokerState::Connecting("refused".to_owned()), vec![on_hold(closed())], &["broker away: refused"]),
        ];
        for (draining, broker, lanes, expected) in cases {
            let reasons = not_ready(draining, &broker, &Serving::Serves, &lanes);
            assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
            assert!(reasons.iter().zip(expected).all(|(reason, part)| reason.contains(part)), "{reasons:?}");
        }
    }
}
