//! Limits the cancellations of refused transactions that are open at once.

use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::pool_status::PoolStatus;

/// Limits the cancellations of refused transactions, lowest nonce first. Where nodes take nothing from the account, more of
/// them would change nothing: the lowest goes first, and those behind it follow once a node has taken one. A cancellation
/// never holds up a lower nonce, for which it may itself wait.
#[derive(Debug, Default)]
pub(super) struct Canary {
    is_taken: bool,
    /// One of those before is open.
    is_open: bool,
}

impl Canary {
    pub(super) fn of<'f>(not_included: impl Iterator<Item = &'f InFlight>) -> Self {
        let is_taken = not_included.filter(|own| Self::is_one(own)).any(InFlight::is_pooled);
        Self { is_taken, is_open: false }
    }

    fn is_one(own: &InFlight) -> bool {
        own.is_cancelling() && own.wanted_cause().is_none()
    }

    /// Goes on to those behind it.
    pub(super) fn pass(&mut self, own: &InFlight) {
        let is_or_was_one = Self::is_one(own) || own.has_failed_cancellation();
        self.is_open |= is_or_was_one && matches!(own.pool, PoolStatus::Unknown | PoolStatus::Refused(_));
    }

    /// Returns whether one more may be cancelled; counts as its cancellation.
    pub(super) fn allows(&mut self) -> bool {
        let allows = self.is_taken || !self.is_open;
        self.is_open = true;
        allows
    }
}
