//! For how long a transaction has waited for a block.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::BlockNumber;

/// Counts from when the newest signed transaction of a nonce could be in the next block.
#[derive(Debug)]
pub(super) struct Wait {
    /// The time at which the newest was signed, by the monotonic clock.
    signed: Instant,
    /// The newest block when the newest was first waited for: it was next, and no pool has dropped it since.
    since: Option<BlockNumber>,
    /// The time of that, not before it was signed.
    from: Instant,
    /// A block has come since it was signed, or dropped.
    has_seen_block: bool,
    /// The account is not past any nonce before it: it can be in the next block.
    is_next: bool,
    /// The time at which the account first was past all before it. A replacement does not change that.
    next_since: Option<Instant>,
}

impl Wait {
    /// Begins with one that was signed this long ago.
    pub(super) fn of_age(age: Duration) -> Self {
        let now = Instant::now();
        let signed = now.checked_sub(age).unwrap_or(now);
        Self { signed, since: None, from: now, has_seen_block: false, is_next: false, next_since: None }
    }

    pub(super) fn signed(&self) -> Instant {
        self.signed
    }

    pub(super) fn since(&self) -> Option<BlockNumber> {
        self.since
    }

    /// Returns whether it can be in the next block, as far as nonces go.
    pub(super) fn is_next(&self) -> bool {
        self.is_next
    }

    /// Returns for how long it has been next, and in a pool as far as is known.
    pub(super) fn lasts(&self) -> Duration {
        self.from.elapsed()
    }

    /// Returns whether it has been next for so long, with any price, and blocks came meanwhile.
    pub(super) fn has_been_next_for(&self, patience: Duration, head: BlockNumber) -> bool {
        let blocks = self.since.map_or(0, |since| head.0.saturating_sub(since.0));
        blocks > 0 && self.next_since.is_some_and(|since| since.elapsed() >= patience)
    }

    /// Begins with another that is the newest.
    pub(super) fn begin(&mut self) {
        self.signed = Instant::now();
        (self.since, self.has_seen_block) = (None, false);
    }

    /// Begins anew with the same: no pool has it, or may not have had it until now.
    pub(super) fn restart(&mut self) {
        (self.since, self.has_seen_block) = (None, true);
    }

    /// Begins anew with every price: the block that had it is gone.
    pub(super) fn orphan(&mut self) {
        self.next_since = None;
    }

    /// Applies a new block: the newest waits from here on, if it is next.
    pub(super) fn record_head(&mut self, head: BlockNumber, is_next: bool) {
        self.is_next = is_next;
        self.next_since = if is_next { self.next_since.or_else(|| Some(Instant::now())) } else { None };
        if is_next && self.since.is_none() {
            self.since = Some(head);
            self.from = if self.has_seen_block { Instant::now() } else { self.signed };
        }
        self.has_seen_block = true;
    }
}
