//! Remembers when nodes' pools were compared with what was sent, and whether their counts are to be believed.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::model::BlockNumber;
use crate::stages::lane::settings::RESEND_UNKNOWN;

/// For how long counts that were wrong are not asked for.
const DISTRUST: Duration = Duration::from_secs(600);
/// Counts that do not show what was just taken, one after the other, until they are distrusted.
const BLIND: u32 = 3;
/// Gaps in a pool that show that it takes batches out of order.
const GAPS: u32 = 2;
/// Drops of the lowest nonce count once in so long, and where counts are distrusted it is tried as often.
pub(super) const DROP_SPACING: Duration = Duration::from_secs(5);

/// The term's memory of the pools.
#[derive(Debug, Default)]
pub(super) struct PoolCheck {
    /// The head at the last comparison that came to a result, and when that was.
    checked: Option<(BlockNumber, Instant)>,
    distrusted_until: Option<Instant>,
    dropped_at: Option<Instant>,
    blind: u32,
    gaps: u32,
}

impl PoolCheck {
    pub(super) fn is_due(&self, head: BlockNumber, now: Instant) -> bool {
        // A chain that makes blocks for transactions alone makes none while its pool is empty.
        self.checked.is_none_or(|(at, since)| at != head || now.duration_since(since) >= RESEND_UNKNOWN)
    }

    pub(super) fn trusts_counts(&self, now: Instant) -> bool {
        self.distrusted_until.is_none_or(|until| now >= until)
    }

    pub(super) fn distrust(&mut self, why: &'static str) {
        info!(why, "the count of pending transactions says nothing about pools; it is asked for again later");
        (self.distrusted_until, self.blind) = (Some(Instant::now() + DISTRUST), 0);
    }

    /// A comparison has come to a result.
    pub(super) fn record_check(&mut self, head: BlockNumber) {
        self.checked = Some((head, Instant::now()));
    }

    /// Records whether a count shows what a pool was just given. After some that do not, counts are distrusted.
    pub(super) fn record_sight(&mut self, is_shown: bool) {
        self.blind = if is_shown { 0 } else { self.blind + 1 };
        if self.blind >= BLIND {
            self.distrust("it does not show what a pool has just taken");
        }
    }

    /// Records a gap in a pool. Returns whether there were enough to show that it takes batches out of order.
    pub(super) fn record_gap(&mut self) -> bool {
        self.gaps += 1;
        self.gaps >= GAPS
    }

    /// Returns whether a drop of the lowest nonce counts, and counts it.
    pub(super) fn counts_drop(&mut self, now: Instant) -> bool {
        let counts = self.dropped_at.is_none_or(|at| now.duration_since(at) >= DROP_SPACING);
        if counts {
            self.dropped_at = Some(now);
        }
        counts
    }
}
