//! What a transaction needs that is in no block: to be sent again, to offer more, to be cancelled; or a person, since it can
//! do none of these. Decides, and changes nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Cause, Fee, Gas, PauseReason, Purpose, Reason, Wei};
use crate::policy::fee::{FeeMode, FeeRules, Market, is_underpriced};
use crate::policy::gas;
use crate::policy::refusals::{Lack, Lasting};
use crate::stages::lane::canary::Canary;
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::learnt::{SIGNED_PER_NONCE, cause_of, corrected_gas};
use crate::stages::lane::pool_status::{Holder, PoolStatus};
use crate::stages::lane::refusal::{Refusal, RefusalKind};
use crate::stages::lane::settings::RESEND_UNKNOWN;
use crate::stages::lane::term::Term;

/// A signed transaction must have been passed over by this many blocks before it is replaced for its age.
const BLOCKS_BEFORE_REPLACING: u64 = 2;
/// So many of those that pools have, the lowest, are sent again after `chain.resend_after`.
const RESENT: usize = 64;
/// Blocks that pass a write over at this many prices above its first one have another reason than the price.
const RAISES: usize = 4;

/// Says what to do about a transaction that is in no block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Care {
    Wait,
    Send,
    Replace(Replacement),
    /// Sends again what was signed before for this purpose.
    Switch(Purpose),
}

/// The next signed transaction of a nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replacement {
    pub(super) purpose: Purpose,
    pub(super) fee: Fee,
    /// Why it cancels the write.
    pub(super) cause: Option<Cause>,
    /// The gas of a cancellation; a write has its own.
    pub(super) gas: Gas,
}

/// Why no more can be done for a transaction, and so for all behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stuck {
    pub(super) reason: PauseReason,
    pub(super) detail: String,
}

/// A higher or lower price, and why it helps.
#[derive(Debug, Clone, Copy)]
enum Price {
    /// Blocks pass it over, or the market has left it behind.
    Raised,
    Lacking(Lack),
    /// A foreign transaction holds the nonce.
    Over(Holder),
    /// The node's own cap on what a transaction may cost.
    Below(Wei),
    /// The same where nodes do not say what it is: no headroom is left.
    Tightest,
    /// The account cannot pay what it offers, and the market asks for less by now.
    Cheaper,
}

enum Need {
    Nothing,
    Cancel(Cause),
    Switch(Purpose),
    /// The cancellation takes other gas.
    Correct(Gas),
    Price(Price),
    Person(Stuck),
}

impl Term<'_> {
    /// Decides about the transaction at this place of those that are in no block, lowest nonce first. One
    /// that is early comes before its turn, behind one that no node took.
    pub(super) fn care_for(
        &self,
        place: usize,
        is_early: bool,
        transaction: &InFlight,
        market: &Market,
        canary: &mut Canary,
    ) -> (Care, Option<Stuck>) {
        if self.view.height().is_none() || transaction.pool == PoolStatus::NonceUsed {
            return (Care::Wait, self.stuck_in_silence(place, transaction));
        }
        // Without blocks no other transaction would do better, and what nodes refuse they may refuse for being stuck.
        let need =
            if self.gate.is_head_stale() { Need::Nothing } else { self.need_of(place, transaction, market, canary) };
        let stuck = match need {
            Need::Nothing => self.stuck_in_silence(place, transaction),
            Need::Cancel(cause) => {
                let cancellation = self.cancellation(transaction, Some(cause), market);
                return (Care::Replace(cancellation), None);
            }
            Need::Switch(purpose) => return (Care::Switch(purpose), None),
            Need::Correct(gas) => {
                let cause = transaction.cancel_cause.clone();
                return (Care::Replace(Replacement { gas, ..self.cancellation(transaction, cause, market) }), None);
            }
            Need::Price(price) => match self.priced(transaction, price, market) {
                Ok(fee) => return (Care::Replace(self.repriced(transaction, fee)), None),
                Err(stuck) => {
                    let of_route = self.cause_of_route_cap(transaction);
                    let stuck = of_route.is_none().then_some(stuck);
                    let cause = match of_route {
                        // Its own cap holds up the others no longer than any refusal.
                        Some(cause) => (place == 0 && self.has_had_patience(transaction)).then_some(cause),
                        None => self.cause_of_passing_over(place, transaction, market),
                    };
                    if cause.is_some() {
                        return (Care::Replace(self.cancellation(transaction, cause, market)), None);
                    }
                    stuck
                }
            },
            Need::Person(stuck) => Some(stuck),
        };
        let tuning = self.tuning();
        let is_its_turn = place < self.flight.window().size() && !is_early;
        // What pools are known to have goes to them again in order, for endpoints that lack it.
        let goes_again = place < RESENT || !self.pools.trusts_counts(Instant::now());
        let resend_after = if goes_again { tuning.resend_after } else { Duration::MAX };
        let is_due = is_its_turn && transaction.is_due(Instant::now(), RESEND_UNKNOWN, resend_after);
        (if is_due { Care::Send } else { Care::Wait }, stuck)
    }

    fn need_of(&self, place: usize, transaction: &InFlight, market: &Market, canary: &mut Canary) -> Need {
        if transaction.is_cancelling() {
            if let Some(refusal) = transaction.refusal() {
                // The account as a whole is refused, or an outage is of all broadcasts: that is no fault of the request.
                let is_of_account = refusal.kind.may_be_of_account() && transaction.wanted_cause().is_none();
                return if is_of_account && !transaction.is_being_sent() {
                    Need::Switch(Purpose::Write)
                } else {
                    self.need_of_refused_cancellation(transaction, refusal, market)
                };
            }
        } else if let Some(cause) = transaction.wanted_cause() {
            return Need::Cancel(cause.clone());
        } else if let Some(refusal) = transaction.final_refusal(self.patience_with(transaction), Instant::now())
            && canary.allows()
        {
            return if transaction.has_failed_cancellation() && refusal.kind.may_be_of_account() {
                Need::Switch(Purpose::Cancel)
            } else {
                Need::Cancel(cause_of(refusal, transaction))
            };
        }
        if transaction.is_being_sent() {
            return Need::Nothing;
        }
        if transaction.count_of(Purpose::Write) > RAISES
            && let Some(cause) = self.cause_of_passing_over(place, transaction, market)
        {
            return Need::Cancel(cause);
        }
        self.need_of_price(place, transaction, market).map_or(Need::Nothing, Need::Price)
    }

    /// Returns how long a refusal is waited for: longer each time that nodes took the cancellation no more than the write.
    fn patience_with(&self, transaction: &InFlight) -> Duration {
        self.tuning().refused_after.saturating_mul(1 << transaction.failed_cancellations.min(10))
    }

    /// A price changes only for a reason that another price cures: lack of room is none.
    fn need_of_price(&self, place: usize, transaction: &InFlight, market: &Market) -> Option<Price> {
        let newest = transaction.newest().fee;
        let price = match &transaction.pool {
            PoolStatus::Underpriced(lack) => {
                let is_named = matches!(lack, Lack::Tip(Some(_)) | Lack::Price(Some(_)));
                let quoted = self.tuning().fees.quote(market).ok();
                let is_behind =
                    quoted.is_some_and(|quoted| quoted.tip() > newest.tip() || quoted.ceiling() > newest.ceiling());
                // The lowest finds out what nodes take; the others offer the same then.
                (is_named || place == 0 || is_behind).then_some(Price::Lacking(*lack))
            }
            PoolStatus::Outbid(_) if transaction.was_taken() => Some(Price::Raised),
            PoolStatus::Outbid(holder) => holder.map(Price::Over),
            PoolStatus::Refused(Refusal { kind: RefusalKind::Lasting(Lasting::TooExpensive(most)), .. }) => {
                match most.filter(|most| newest.total(self.gas_of(transaction)) > *most) {
                    Some(most) => Some(Price::Below(most)),
                    // The price is within the cap that the node names, which it has rounded up.
                    None => FeeRules::without_headroom(newest, market).map(|_| Price::Tightest),
                }
            }
            PoolStatus::Unknown
            | PoolStatus::Pooled
            | PoolStatus::HeldBack(_)
            | PoolStatus::NonceUsed
            | PoolStatus::Refused(_) => None,
        };
        let is_late = || is_underpriced(newest, market) || (place == 0 && self.was_passed_over(transaction));
        price.or_else(|| is_late().then_some(Price::Raised))
    }

    pub(super) fn was_passed_over(&self, transaction: &InFlight) -> bool {
        let head = self.view.height().map_or(0, |head| head.0);
        let blocks = transaction.wait.since().map_or(0, |since| head.saturating_sub(since.0));
        let tuning = self.tuning();
        tuning.fees.mode != FeeMode::Zero
            && transaction.waits_for_a_block()
            && transaction.wait.lasts() >= tuning.replace_after
            && blocks >= BLOCKS_BEFORE_REPLACING
    }

    fn priced(&self, transaction: &InFlight, price: Price, market: &Market) -> Result<Fee, Stuck> {
        let newest = transaction.newest();
        let fees = self.tuning().fees.capped(route_cap(transaction));
        if transaction.count_of(newest.purpose) >= SIGNED_PER_NONCE {
            return Err(stuck_price(transaction, "no more are signed for one nonce"));
        }
        let leaves_room = |fee: &Fee| !fees.is_beyond_reach(market) && self.leaves_room(transaction, *fee, market);
        let fee = match price {
            Price::Raised => fees.replacement(newest.fee, market).filter(leaves_room),
            Price::Lacking(lack) => fees.raised(newest.fee, market, lack),
            Price::Over(holder) => fees.replacement(over(newest.fee, holder), market).filter(leaves_room),
            Price::Below(most) => FeeRules::within(newest.fee, self.gas_of(transaction), most, market),
            Price::Tightest => FeeRules::without_headroom(newest.fee, market),
            Price::Cheaper => self.cheaper(transaction, market),
        };
        let permits = &self.routes.permits;
        // A day's fees were counted when it was begun.
        let is_permitted =
            |fee: &Fee| newest.purpose == Purpose::Cancel || permits.may_offer(transaction.payload.gas, *fee);
        match (fee, price) {
            (Some(fee), _) if !self.can_pay_cancellation(transaction, fee) => {
                Err(stuck_price(transaction, "the account cannot pay a higher one"))
            }
            (Some(fee), _) if is_permitted(&fee) => Ok(fee),
            (Some(_), _) => Err(stuck_price(transaction, "policy.max_fee allows no higher one")),
            (None, Price::Over(holder)) => Err(held(transaction, holder, fees.max_fee)),
            (None, Price::Below(most)) => {
                Err(stuck_price(transaction, &format!("its nodes take {most} at most for one transaction")))
            }
            (None, Price::Tightest) => Err(stuck_price(transaction, "its nodes call that too much")),
            (None, Price::Cheaper) => Err(stuck_price(transaction, "the account cannot pay that")),
            (None, Price::Raised | Price::Lacking(_)) => Err(stuck_price(transaction, &fees.cap_on_rise(newest.fee))),
        }
    }

    /// Returns what a write ends with that is cancelled since the chain asks for more than its route's cap.
    fn cause_of_route_cap(&self, transaction: &InFlight) -> Option<Cause> {
        let cap = route_cap(transaction).filter(|cap| *cap < self.tuning().fees.max_fee)?;
        let detail = format!(
            "the max_fee of its route is {cap}, which got it into no block; its nonce was cancelled for others"
        );
        Some(Cause::new(Reason::MaxFee, detail))
    }

    fn has_had_patience(&self, transaction: &InFlight) -> bool {
        transaction.wait.signed().elapsed() >= self.tuning().refused_after
    }

    /// Returns the price of a new transaction, where that is below what this one offers.
    fn cheaper(&self, transaction: &InFlight, market: &Market) -> Option<Fee> {
        let offered = transaction.newest().fee.ceiling();
        let fee = self.tuning().fees.quote(market).ok().filter(|fee| fee.ceiling() < offered)?;
        self.can_pay_cancellation(transaction, fee).then_some(fee)
    }

    /// Returns whether the account can pay this for a cancellation, where it could not pay an earlier one: one that it cannot
    /// pay replaces nothing.
    fn can_pay_cancellation(&self, transaction: &InFlight, fee: Fee) -> bool {
        let is_doubtful = transaction.is_cancelling() && transaction.was_unpaid;
        !is_doubtful || self.view.balance().is_none_or(|balance| fee.total(self.cancel_gas(transaction)) <= balance)
    }

    pub(super) fn repriced(&self, transaction: &InFlight, fee: Fee) -> Replacement {
        let newest = transaction.newest();
        Replacement { purpose: newest.purpose, fee, cause: newest.cause.clone(), gas: self.cancel_gas(transaction) }
    }

    /// No pool has a refused write, so its cancellation may go out at its price where none higher is allowed.
    fn cancellation(&self, transaction: &InFlight, cause: Option<Cause>, market: &Market) -> Replacement {
        let previous = transaction.newest().fee;
        let fee = self.tuning().fees.replacement(previous, market).unwrap_or(previous);
        Replacement { purpose: Purpose::Cancel, fee, cause, gas: self.cancel_gas(transaction) }
    }

    fn cancel_gas(&self, transaction: &InFlight) -> Gas {
        transaction.cancel_gas.unwrap_or(gas::TRANSFER).max(self.learnt.transfer_gas())
    }

    pub(super) fn gas_of(&self, transaction: &InFlight) -> Gas {
        if transaction.is_cancelling() { self.cancel_gas(transaction) } else { transaction.payload.gas }
    }

    /// Sends a refused cancellation again with the gas that the node names, or estimates by now, or at a price that the
    /// account can pay. Nothing else is left then, so the account waits.
    fn need_of_refused_cancellation(&self, transaction: &InFlight, refusal: &Refusal, market: &Market) -> Need {
        let used = transaction.cancel_gas;
        let block_limit = self.view.head().map_or(Gas(u64::MAX), |head| head.gas_limit);
        let estimated = self.learnt.transfer_gas();
        let wanted = corrected_gas(refusal.kind, used.unwrap_or(gas::TRANSFER), estimated).min(block_limit);
        let has_room = transaction.count_of(Purpose::Cancel) < SIGNED_PER_NONCE;
        if has_room && !transaction.is_being_sent() && used.is_none_or(|used| wanted > used) && wanted > gas::TRANSFER {
            return Need::Correct(wanted);
        }
        if let RefusalKind::Lasting(Lasting::TooExpensive(Some(most))) = refusal.kind
            && !transaction.is_being_sent()
        {
            return Need::Price(Price::Below(most));
        }
        if refusal.kind == RefusalKind::Lasting(Lasting::TooExpensive(None))
            && !transaction.is_being_sent()
            && FeeRules::without_headroom(transaction.newest().fee, market).is_some()
        {
            return Need::Price(Price::Tightest);
        }
        if refusal.kind == RefusalKind::Unpaid
            && !transaction.is_being_sent()
            && self.cheaper(transaction, market).is_some()
        {
            return Need::Price(Price::Cheaper);
        }
        let detail = format!(
            "nodes refuse request {} at nonce {}, and the cancellation of that nonce too: {}",
            transaction.payload.requests.first.id, transaction.nonce, refusal.answer
        );
        Need::Person(Stuck { reason: PauseReason::Refused, detail })
    }
}

/// Returns the route's cap on the price of a write. Its cancellation is for the others, and has none.
fn route_cap(transaction: &InFlight) -> Option<Wei> {
    transaction.payload.max_fee().filter(|_| !transaction.is_cancelling())
}

/// Returns the price that a replacement has to beat. Where no node shows what the foreign transaction offers, twice our own
/// is assumed.
fn over(own: Fee, holder: Holder) -> Fee {
    let foreign = holder.found.and_then(|found| found.fee);
    match (own, foreign) {
        (Fee::Eip1559 { max_fee, tip }, Some(foreign)) => {
            Fee::Eip1559 { max_fee: max_fee.max(foreign.ceiling()), tip: tip.max(foreign.tip()) }
        }
        (Fee::Legacy { gas_price }, Some(foreign)) => Fee::Legacy { gas_price: gas_price.max(foreign.ceiling()) },
        (Fee::Eip1559 { max_fee, tip }, None) => {
            Fee::Eip1559 { max_fee: max_fee.scaled_up(2, 1), tip: tip.scaled_up(2, 1) }
        }
        (Fee::Legacy { gas_price }, None) => Fee::Legacy { gas_price: gas_price.scaled_up(2, 1) },
    }
}

fn held(transaction: &InFlight, holder: Holder, cap: Wei) -> Stuck {
    let hash = holder.found.map_or_else(|| "no node shows".to_owned(), |found| found.tx_hash.to_string());
    let price = holder.found.and_then(|found| found.fee).map(|fee| format!(", at {} for a unit of gas", fee.ceiling()));
    let detail = format!(
        "a transaction that is not ours ({hash}{}) waits at nonce {}; fees.max_fee is {cap}, too little to replace it",
        price.unwrap_or_default(),
        transaction.nonce
    );
    Stuck { reason: PauseReason::NonceHeld, detail }
}

fn stuck_price(transaction: &InFlight, why: &str) -> Stuck {
    let newest = transaction.newest();
    let detail = format!(
        "request {} at nonce {} is in no block; it offers {} for a unit of gas after {} signed transactions, and {why}",
        transaction.payload.requests.first.id,
        transaction.nonce,
        newest.fee.ceiling(),
        transaction.signed.len()
    );
    Stuck { reason: PauseReason::PriceStuck, detail }
}
