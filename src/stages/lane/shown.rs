//! Shows the state of a term: for the status, for intake, and for the other instances.

use crate::stages::lane::settings::{Held, LaneState, OutagePolicy};
use crate::stages::lane::term::Term;

impl Term<'_> {
    /// Returns the first requests that do not move for a reason of their own.
    fn held(&self) -> Vec<Held> {
        let held = self.gate.awaits_funds().cloned().into_iter().chain(self.queue.aside().held());
        let held = held.chain(self.queue.priced_out().held());
        held.take(LaneState::MOST_HELD).collect()
    }

    pub(super) fn publish_state(&self) {
        let paused = self.gate.paused();
        let head = self.view.head();
        let now = LaneState {
            is_owner: self.context.signals.lease.borrow().is_some(),
            paused: paused.map(|pause| (pause.reason, pause.detail.clone())),
            hold: self.context.signals.hold_on(self.lease.account),
            throttled: self.gate.throttling(),
            in_flight: self.flight.len(),
            window: self.flight.window().size(),
            window_limit: self.flight.window().limit(),
            next_nonce: self.next_nonce,
            head: head.map(|head| head.number),
            head_at: head.map(|head| head.timestamp),
            fee: self.view.market().and_then(|market| self.tuning().fees.quote(&market).ok()),
            nonces_filled: self.gaps.filled(),
            held: self.held(),
        };
        let needs_request = self.gate.is_probed_by_requests() && self.queue.is_empty() && self.may_try();
        let can_take = head.is_some() && (paused.is_none() || needs_request);
        let is_open = !self.is_on_hold() && (can_take || self.tuning().outage == OutagePolicy::Retry);
        self.context.signals.publish_hunger(can_take && self.is_hungry());
        let is_cut_off = paused.is_some_and(|pause| pause.reason.is_outage());
        self.context.signals.publish(now, is_open, is_cut_off);
    }
}
