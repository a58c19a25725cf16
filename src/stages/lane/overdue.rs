//! The lowest transaction that gets into no block though no node refuses it: blocks pass it over at any price, or pools keep it
//! out. Decides when it is cancelled for those behind it, or that the lane pauses and says why.

use crate::model::{Cause, Fee, PauseReason, Reason};
use crate::policy::fee::{FeeMode, Market};
use crate::stages::lane::care::Stuck;
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::pool_status::PoolStatus;
use crate::stages::lane::term::Term;

impl Term<'_> {
    /// Returns what a write ends with that blocks pass over although it offers what the market asks for, for longer than a
    /// refusal is waited for. Its nonce is cancelled for others, where a higher price is left for that.
    pub(super) fn cause_of_passing_over(&self, place: usize, transaction: &InFlight, market: &Market) -> Option<Cause> {
        let is_left = place == 0 && !transaction.is_cancelling() && self.was_passed_over(transaction);
        let head = self.view.height()?;
        if !is_left
            || !self.offers_enough(transaction.newest().fee, market)
            || !transaction.wait.has_been_next_for(self.tuning().refused_after, head)
        {
            return None;
        }
        self.tuning().fees.replacement(transaction.newest().fee, market)?;
        let detail = format!(
            "pools had it and blocks passed it over, with {} for a unit of gas at last; its nonce was cancelled",
            transaction.newest().fee.ceiling()
        );
        Some(Cause::new(Reason::RefusedByNode, detail))
    }

    /// Returns whether a new transaction would offer no more than this.
    fn offers_enough(&self, fee: Fee, market: &Market) -> bool {
        let quoted = self.tuning().fees.quote(market);
        quoted.is_ok_and(|quoted| quoted.tip() <= fee.tip() && quoted.ceiling() <= fee.ceiling())
    }

    /// Returns the pause for the lowest transaction that nothing else names: nodes keep it out, or blocks pass it over, for
    /// longer than a refusal is waited for, and neither a price nor a cancellation changes that.
    pub(super) fn stuck_in_silence(&self, place: usize, transaction: &InFlight) -> Option<Stuck> {
        let head = self.view.height()?;
        let has_waited = || transaction.wait.has_been_next_for(self.tuning().refused_after, head);
        if place > 0 || self.gate.is_head_stale() || !has_waited() {
            return None;
        }
        let why = match &transaction.pool {
            PoolStatus::HeldBack(words) => format!("nodes have no room for it: {words}"),
            PoolStatus::NonceUsed => {
                "nodes say that its nonce is used, and no block shows by which transaction".to_owned()
            }
            PoolStatus::Pooled if self.tuning().fees.mode == FeeMode::Zero => {
                "pools have it, blocks pass it over, and fees.mode = \"zero\" offers no more".to_owned()
            }
            PoolStatus::Pooled
            | PoolStatus::Unknown
            | PoolStatus::Underpriced(_)
            | PoolStatus::Outbid(_)
            | PoolStatus::Refused(_) => return None,
        };
        let request = &transaction.payload.requests.first.id;
        let detail = format!("request {request} at nonce {} is in no block for long: {why}", transaction.nonce);
        Some(Stuck { reason: PauseReason::TransactionStuck, detail })
    }

    /// Returns whether a cancellation can still offer more than this. The market may fall, and blocks pass the write over all the
    /// same.
    pub(super) fn leaves_room(&self, transaction: &InFlight, fee: Fee, market: &Market) -> bool {
        transaction.is_cancelling() || self.tuning().fees.replacement(fee, market).is_some()
    }
}
