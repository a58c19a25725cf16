//! What nodes have shown of their limits: named in a refusal, or found by what they took. It spares later transactions the
//! same refusal, for a while: a node may be replaced, and one may have been wrong.

use std::time::Duration;

use tokio::time::Instant;

use crate::chain::NodeRules;
use crate::model::{Cause, Fee, Gas, Reason, Timestamp, Wei};
use crate::policy::fee::{FeeRules, Market};
use crate::policy::forks::{Fork, GasRules};
use crate::policy::gas::{self, Floor};
use crate::policy::refusals::Lasting;
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::refusal::{Refusal, RefusalKind};

/// The time for which a limit counts.
const LASTS: Duration = Duration::from_secs(3600);
/// Bytes of a signed transaction beside its calldata, at least.
const AROUND_CALLDATA: u64 = 100;
/// Nodes take no transaction that may cost more, unless set otherwise: `--rpc.txfeecap` of Geth and Bor, and the same of Besu.
const USUAL_TOTAL_FEE: Wei = Wei(1_000_000_000_000_000_000);
/// The interval between estimates of a self-transfer's gas, and the pause after a node has refused one.
const ESTIMATED: Duration = Duration::from_secs(600);
const ESTIMATED_AGAIN: Duration = Duration::from_secs(5);

/// Signed transactions of one nonce at most, writes and cancellations each. A tip that doubles reaches 4 gwei from one wei in
/// so many, and a price that rises by an eighth the 40-fold.
pub(super) const SIGNED_PER_NONCE: usize = 33;

#[derive(Debug, Clone, Copy)]
struct Limit<T> {
    value: T,
    since: Instant,
}

impl<T: Copy> Limit<T> {
    fn new(value: T) -> Self {
        Self { value, since: Instant::now() }
    }

    fn now(limit: Option<Self>) -> Option<T> {
        limit.filter(|limit| limit.since.elapsed() < LASTS).map(|limit| limit.value)
    }
}

/// The limits that one term knows.
#[derive(Debug)]
pub(super) struct Learnt {
    /// Most bytes of a signed transaction.
    bytes: Option<Limit<u64>>,
    /// The same for batches, which can be smaller.
    batch_bytes: Option<Limit<u64>>,
    gas: Option<Limit<Gas>>,
    batch_gas: Option<Limit<Gas>>,
    /// Most that a transaction may cost.
    total_fee: Option<Limit<Wei>>,
    tip: Option<Limit<Wei>>,
    transfer: Gas,
    /// Gas of a transaction without calldata, as far as that is below a transfer's.
    base: Gas,
    /// The floor that estimates showed; none before they did.
    floor: Option<Option<Floor>>,
    nodes: NodeRules,
    /// The fork for which the routes were checked last.
    checked_for: Option<Option<Fork>>,
    estimated_at: Option<Instant>,
    must_estimate: bool,
}

impl Default for Learnt {
    fn default() -> Self {
        Self {
            bytes: None,
            batch_bytes: None,
            gas: None,
            batch_gas: None,
            total_fee: None,
            tip: None,
            transfer: gas::TRANSFER,
            base: gas::TRANSFER,
            floor: None,
            nodes: NodeRules::default(),
            checked_for: None,
            estimated_at: None,
            must_estimate: false,
        }
    }
}

impl Learnt {
    /// Learns from a refusal that lasts. A limit counts only where this transaction is beyond it; one that is not named
    /// makes batches smaller, and decides nothing about a single request.
    pub(super) fn record_refusal(&mut self, transaction: &InFlight, lasting: Lasting) {
        let (bytes, gas) = (transaction.newest().raw.bytes.len() as u64, transaction.payload.gas);
        let is_batch = transaction.payload.requests.is_batch();
        match lasting {
            Lasting::TooLarge(Some(most)) if bytes > most => self.bytes = Some(Limit::new(most)),
            Lasting::TooLarge(_) if is_batch => self.batch_bytes = Some(Limit::new(bytes / 2)),
            Lasting::TooMuchGas(most) if gas > most.unwrap_or(gas::MOST) => {
                self.gas = Some(Limit::new(most.unwrap_or(gas::MOST)));
            }
            Lasting::TooMuchGas(_) if is_batch => self.batch_gas = Some(Limit::new(Gas(gas.0 / 2))),
            Lasting::TooExpensive(Some(most)) => self.total_fee = Some(Limit::new(most)),
            Lasting::TooLarge(_)
            | Lasting::TooMuchGas(_)
            | Lasting::TooExpensive(None)
            | Lasting::TooLittleGas(_)
            | Lasting::Malformed => {}
        }
    }

    /// Learns the least tip that nodes take: they named it, or took this one after a lower one.
    pub(super) fn record_tip(&mut self, tip: Wei) {
        // What is known already is no younger for being shown again: each transaction that is priced by it is.
        if Limit::now(self.tip).is_none_or(|known| tip > known) {
            self.tip = Some(Limit::new(tip));
        }
    }

    /// Returns the market as these nodes have it.
    pub(super) fn raise(&self, market: Market) -> Market {
        Limit::now(self.tip).map_or(market, |tip| market.with_least_tip(tip))
    }

    /// Returns this price with no more headroom than nodes allow for so much gas, by their word or by Geth's default. Where
    /// even the price of the next block is above that it stays: the node says so.
    pub(super) fn within(&self, fee: Fee, gas: Gas, market: &Market) -> Fee {
        let most = Limit::now(self.total_fee).unwrap_or(USUAL_TOTAL_FEE);
        FeeRules::within(fee, gas, most, market).unwrap_or(fee)
    }

    /// Returns why no node takes a transaction with this calldata.
    pub(super) fn check_size(&self, calldata: &[u8], is_batch: bool) -> Result<(), Cause> {
        let bytes = calldata.len() as u64 + AROUND_CALLDATA;
        let learnt = [self.bytes, self.batch_bytes.filter(|_| is_batch)].into_iter().filter_map(Limit::now);
        let most = learnt.chain(self.nodes.most_bytes).min();
        match most.filter(|most| bytes > *most) {
            None => Ok(()),
            Some(most) => {
                let detail = format!("a transaction with it has {bytes} bytes or more, the node takes {most}");
                Err(Cause::new(Reason::TooLarge, detail))
            }
        }
    }

    /// Returns why no node takes a transaction with so much gas.
    pub(super) fn check_gas(&self, gas: Gas, is_batch: bool) -> Result<(), Cause> {
        let most = [self.gas, self.batch_gas.filter(|_| is_batch)].into_iter().filter_map(Limit::now).min();
        match most.filter(|most| gas > *most) {
            None => Ok(()),
            Some(most) => {
                let detail = format!("it has {gas} gas, the node takes transactions with {most} at most");
                Err(Cause::new(Reason::GasAboveLimit, detail))
            }
        }
    }

    /// Returns why gas that is set, and that no node has estimated, does not do for a call with this calldata.
    pub(super) fn check_fixed_gas(&self, gas: Gas, calldata: &[u8]) -> Result<(), Cause> {
        self.rules().check(gas, calldata)
    }

    /// Returns the most gas that a margin may take one transaction to; `None` where no node has shown it.
    pub(super) fn most_gas(&self, is_batch: bool) -> Option<Gas> {
        let learnt = [self.gas, self.batch_gas.filter(|_| is_batch)].into_iter().filter_map(Limit::now);
        learnt.chain(self.rules().most).min()
    }

    /// Returns what every transaction takes at least.
    pub(super) fn base_gas(&self) -> Gas {
        self.base
    }

    /// Returns the fork that the chain is at, where a node says so.
    pub(super) fn fork(&self) -> Option<Fork> {
        self.nodes.forks.map(|forks| forks.at(Timestamp::now()))
    }

    /// Returns the rules of the chain. What estimates showed corrects what the fork is said to be.
    fn rules(&self) -> GasRules {
        let of_fork = self.fork().unwrap_or(Fork::Cancun).rules();
        GasRules { base: self.base.min(of_fork.base), floor: self.floor.unwrap_or(of_fork.floor), ..of_fork }
    }

    /// Returns whether routes are to be checked; counts as that check.
    pub(super) fn begin_check_of_routes(&mut self) -> bool {
        let fork = Some(self.fork());
        std::mem::replace(&mut self.checked_for, fork) != fork
    }

    /// Forgets that the routes were checked: they are others now.
    pub(super) fn doubt_routes(&mut self) {
        self.checked_for = None;
    }

    /// Records what nodes say of their rules. What was known stays where they say nothing now.
    pub(super) fn record_rules(&mut self, NodeRules { forks, most_bytes }: NodeRules) {
        self.nodes.forks = forks.or(self.nodes.forks);
        self.nodes.most_bytes = most_bytes;
    }

    /// Returns the gas of a transfer to the account itself.
    pub(super) fn transfer_gas(&self) -> Gas {
        self.transfer
    }

    /// A node refused a self-transfer: it may cost more by now.
    pub(super) fn doubt_transfer(&mut self) {
        self.must_estimate = true;
    }

    /// Returns whether it is time to estimate a self-transfer; counts as the estimate.
    pub(super) fn begin_estimate(&mut self) -> bool {
        let wait = if self.must_estimate { ESTIMATED_AGAIN } else { ESTIMATED };
        let is_time = self.estimated_at.is_none_or(|at| at.elapsed() >= wait);
        if is_time {
            (self.estimated_at, self.must_estimate) = (Some(Instant::now()), false);
        }
        is_time
    }

    /// Applies estimates of a self-transfer without calldata, and with so many bytes of it.
    pub(super) fn record_estimates(&mut self, empty: Gas, filled: Option<Gas>, bytes: u64) {
        self.transfer = empty.max(gas::TRANSFER);
        self.base = empty.min(gas::TRANSFER);
        if let Some(filled) = filled {
            self.floor = Some(gas::floor_seen(empty, filled, bytes));
        }
    }
}

/// Returns the gas for the next cancellation after a refusal of one with `used`: what the node names, else twice as much where
/// it says that this is too little.
pub(super) fn corrected_gas(refusal: RefusalKind, used: Gas, estimated: Gas) -> Gas {
    match refusal {
        RefusalKind::Lasting(Lasting::TooLittleGas(Some(named))) => named.max(estimated),
        RefusalKind::Lasting(Lasting::TooLittleGas(None)) if estimated <= used => Gas(used.0.saturating_mul(2)),
        RefusalKind::Lasting(_)
        | RefusalKind::Passing
        | RefusalKind::Unknown
        | RefusalKind::Unanswered
        | RefusalKind::NotPermitted
        | RefusalKind::Dropped
        | RefusalKind::Unpaid => estimated,
    }
}

/// Returns what a request ends with whose transaction is cancelled for this refusal. A limit counts against the request
/// itself only where the node named it, and the transaction is beyond it. A batch is divided for a limit.
pub(super) fn cause_of(refusal: &Refusal, transaction: &InFlight) -> Cause {
    let bytes = transaction.newest().raw.bytes.len() as u64;
    let payload = &transaction.payload;
    let (gas, is_batch) = (payload.gas, payload.requests.is_batch());
    let reason = match refusal.kind {
        RefusalKind::Lasting(Lasting::TooLarge(most)) if is_batch || most.is_some_and(|most| bytes > most) => {
            Reason::TooLarge
        }
        // Nodes that do not name the cap mean that of EIP-7825.
        RefusalKind::Lasting(Lasting::TooMuchGas(most)) if is_batch || gas > most.unwrap_or(gas::MOST) => {
            Reason::GasAboveLimit
        }
        RefusalKind::Lasting(Lasting::TooLittleGas(Some(least))) if payload.has_fixed_gas() && gas < least => {
            Reason::GasTooLow
        }
        RefusalKind::Unpaid => Reason::InsufficientFunds,
        RefusalKind::Lasting(_)
        | RefusalKind::Passing
        | RefusalKind::Unknown
        | RefusalKind::Unanswered
        | RefusalKind::NotPermitted
        | RefusalKind::Dropped => Reason::RefusedByNode,
    };
    let detail = match refusal.kind {
        RefusalKind::Dropped => format!("{}; its nonce was cancelled", refusal.answer),
        RefusalKind::Unanswered => format!(
            "nodes answered other calls and failed at this transaction each time, its nonce was cancelled: {}",
            refusal.answer
        ),
        RefusalKind::Lasting(_)
        | RefusalKind::Passing
        | RefusalKind::NotPermitted
        | RefusalKind::Unknown
        | RefusalKind::Unpaid => {
            format!("every node refused the transaction, its nonce was cancelled: {}", refusal.answer)
        }
    };
    Cause::new(reason, detail)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{GasRule, Members, Nonce, RawTransaction, SignedTransaction};
    use crate::policy::classify::SendMeaning;
    use crate::policy::forks::Forks;
    use crate::stages::lane::fixtures::{payload, request, signed};

    /// A transaction of so many bytes and so much gas, for one request or two.
    fn transaction(bytes: usize, gas: u64, requests: i64) -> InFlight {
        let mut payload = payload(1);
        payload.gas = Gas(gas);
        payload.requests = Members::from_vec((1..=requests).map(request).collect()).unwrap();
        let raw = RawTransaction { bytes: Bytes::from(vec![1; bytes]), ..signed(0, 0).raw };
        InFlight::new(payload, Nonce(0), vec![SignedTransaction { raw, ..signed(0, 0) }])
    }

    #[tokio::test(start_paused = true)]
    async fn a_tip_is_forgotten_in_time_though_transactions_priced_by_it_are_taken_all_the_while() {
        let (mut learnt, market) = (Learnt::default(), Market::default());
        learnt.record_tip(Wei(5));
        for _ in 0..3 {
            tokio::time::advance(LASTS / 4).await;
            learnt.record_tip(Wei(5));
        }
        assert_eq!(learnt.raise(market).tip, Wei(5));
        tokio::time::advance(LASTS / 4).await;
        assert_eq!(learnt.raise(market).tip, Wei(0));
        learnt.record_tip(Wei(2));
        assert_eq!(learnt.raise(market).tip, Wei(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_a_node_names_counts_for_all_that_follow_for_a_while() {
        let mut learnt = Learnt::default();
        let large = transaction(1_000, 50_000, 1);
        learnt.record_refusal(&large, Lasting::TooLarge(Some(2_000)));
        assert!(learnt.check_size(&[0; 3_000], false).is_ok(), "it is not beyond that: the limit explains nothing");
        learnt.record_refusal(&large, Lasting::TooLarge(Some(500)));
        assert_eq!(learnt.check_size(&[0; 401], false).unwrap_err().reason, Reason::TooLarge);
        assert!(learnt.check_size(&[0; 400], false).is_ok());
        learnt.record_refusal(&large, Lasting::TooMuchGas(Some(Gas(40_000))));
        assert_eq!(learnt.check_gas(Gas(40_001), false).unwrap_err().reason, Reason::GasAboveLimit);
        let huge = transaction(1_000, 20_000_000, 1);
        learnt.record_refusal(&huge, Lasting::TooMuchGas(None));
        assert_eq!(learnt.most_gas(false), Some(gas::MOST), "what a cap without a number means");
        tokio::time::advance(LASTS).await;
        assert!(learnt.check_size(&[0; 401], false).is_ok() && learnt.check_gas(Gas(40_001), false).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_without_a_name_halves_batches_and_no_single_request_fails_for_it() {
        let mut learnt = Learnt::default();
        learnt.record_refusal(&transaction(1_000, 50_000, 1), Lasting::TooLarge(None));
        assert!(learnt.check_size(&[0; 1_000], true).is_ok());
        learnt.record_refusal(&transaction(1_000, 50_000, 2), Lasting::TooLarge(None));
        learnt.record_refusal(&transaction(1_000, 50_000, 2), Lasting::TooMuchGas(None));
        let fits = |bytes: usize, gas, is_batch| {
            (learnt.check_size(&vec![0; bytes], is_batch).is_ok(), learnt.check_gas(Gas(gas), is_batch).is_ok())
        };
        assert_eq!(fits(1_000, 50_000, true), (false, false));
        assert_eq!(fits(400, 25_000, true), (true, true));
        assert_eq!(fits(1_000, 50_000, false), (true, true));
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_tip_raises_what_the_market_says() {
        let market = Market { base_fee: Some(Wei(10)), tip: Wei(1), gas_price: Wei(11) };
        let mut learnt = Learnt::default();
        assert_eq!(learnt.raise(market), market);
        learnt.record_tip(Wei(2_000));
        learnt.record_tip(Wei(3));
        assert_eq!(learnt.raise(market), Market { tip: Wei(2_000), gas_price: Wei(2_000), ..market });
    }

    #[tokio::test(start_paused = true)]
    async fn a_self_transfer_costs_what_the_node_says_and_never_less_than_a_transfer() {
        let mut learnt = Learnt::default();
        assert!(learnt.begin_estimate() && !learnt.begin_estimate());
        learnt.record_estimates(Gas(20_000), None, 1024);
        assert_eq!(learnt.transfer_gas(), gas::TRANSFER);
        learnt.record_estimates(Gas(90_000), Some(Gas(90_000 + 40 * 1024)), 1024);
        assert_eq!(learnt.transfer_gas(), Gas(90_000));
        assert!(learnt.check_fixed_gas(Gas(24_999), &[1; 100]).is_err(), "the estimate with calldata shows a floor");
        assert!(learnt.check_fixed_gas(Gas(25_000), &[1; 100]).is_ok());
        learnt.doubt_transfer();
        assert!(!learnt.begin_estimate(), "not at once");
        tokio::time::advance(ESTIMATED_AGAIN).await;
        assert!(learnt.begin_estimate());
    }

    #[tokio::test(start_paused = true)]
    async fn gas_that_is_set_is_checked_against_the_fork_and_estimates_correct_it() {
        let mut learnt = Learnt::default();
        let reason =
            |learnt: &Learnt, gas, data: &[u8]| learnt.check_fixed_gas(Gas(gas), data).err().map(|cause| cause.reason);
        let over = 16_777_217;
        assert_eq!(reason(&learnt, over, &[]), None, "the chain may have no such rule");
        assert_eq!(reason(&learnt, 22_599, &[1; 100]), Some(Reason::GasTooLow));
        assert_eq!(reason(&learnt, 22_600, &[1; 100]), None);
        let of = |fork| NodeRules { forks: Some(Forks { current: fork, next: None }), most_bytes: None };
        learnt.record_rules(of(Fork::Osaka));
        assert_eq!(reason(&learnt, over, &[]), Some(Reason::GasAboveLimit));
        assert_eq!(reason(&learnt, over - 1, &[]), None);
        assert_eq!(
            (reason(&learnt, 24_999, &[1; 100]), reason(&learnt, 25_000, &[1; 100])),
            (Some(Reason::GasTooLow), None)
        );
        assert_eq!(learnt.most_gas(false), Some(Gas(over - 1)));
        learnt.record_rules(NodeRules::default());
        assert_eq!(learnt.fork(), Some(Fork::Osaka), "a node that does not say now has said before");
        learnt.record_estimates(gas::TRANSFER, Some(Gas(21_000 + 16 * 1024)), 1024);
        assert_eq!(reason(&learnt, 22_600, &[1; 100]), None, "the chain took over a precompile, and not the floor");
        learnt.record_rules(of(Fork::Amsterdam));
        learnt.record_estimates(Gas(12_000), Some(Gas(12_000 + 64 * 1024)), 1024);
        assert_eq!(
            (reason(&learnt, 12_639, &[0; 10]), reason(&learnt, 12_640, &[0; 10])),
            (Some(Reason::GasTooLow), None)
        );
        assert_eq!((reason(&learnt, over, &[]), learnt.transfer_gas()), (None, gas::TRANSFER));
    }

    #[tokio::test(start_paused = true)]
    async fn a_size_that_a_program_never_takes_is_known_before_any_refusal() {
        let mut learnt = Learnt::default();
        learnt.record_rules(NodeRules { forks: None, most_bytes: Some(131_072) });
        assert_eq!(learnt.check_size(&[0; 131_500], false).unwrap_err().reason, Reason::TooLarge);
        assert!(learnt.check_size(&[0; 129_000], false).is_ok());
        learnt.record_rules(NodeRules::default());
        assert!(learnt.check_size(&[0; 131_500], false).is_ok(), "another endpoint may take it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_with_the_limit_that_it_is_beyond_and_else_with_the_nodes_words() {
        let cause = |text: &str, mut transaction: InFlight, is_fixed: bool| {
            if is_fixed {
                transaction.payload.requests.first.write.gas = GasRule::Fixed(transaction.payload.gas);
            }
            transaction.record_answer(SendMeaning::Refused, text, Instant::now());
            let cause = cause_of(transaction.refusal().unwrap(), &transaction);
            assert!(cause.detail.ends_with(text), "{cause}");
            cause.reason
        };
        let one = || transaction(1_000, 50_000, 1);
        assert_eq!(cause("oversized data: transaction size 1000, limit 500", one(), false), Reason::TooLarge);
        assert_eq!(cause("oversized data", one(), false), Reason::RefusedByNode);
        assert_eq!(cause("oversized data", transaction(1_000, 50_000, 2), false), Reason::TooLarge, "it is divided");
        assert_eq!(cause("transaction gas limit too high (cap: 40000)", one(), false), Reason::GasAboveLimit);
        let huge = || transaction(1_000, 20_000_000, 1);
        assert_eq!(cause("Transaction gas limit cap exceeded", huge(), false), Reason::GasAboveLimit);
        assert_eq!(cause("Transaction gas limit cap exceeded", one(), false), Reason::RefusedByNode);
        let too_low = "intrinsic gas too low: gas 50000, minimum needed 60000";
        assert_eq!(cause(too_low, one(), true), Reason::GasTooLow);
        assert_eq!(cause(too_low, one(), false), Reason::RefusedByNode, "an estimate may be better the next time");
        assert_eq!(cause("transaction type not supported", one(), false), Reason::RefusedByNode);
    }
}
