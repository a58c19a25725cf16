//! The longest batch that a node takes: shorter once it has refused or garbled longer ones, and tried again after a while. No I/O.

use std::time::Duration;

use tokio::time::Instant;

/// Divides the size of a batch that failed for the next try, down to single calls.
const SHRINK: usize = 4;
/// After so long a longer batch is tried again, and after this at the latest however often that was in vain.
const AGAIN_AFTER: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

#[derive(Debug)]
pub(super) struct BatchSize {
    configured: usize,
    size: usize,
    changed_at: Instant,
    again_after: Duration,
}

impl BatchSize {
    pub(super) fn new(configured: usize) -> Self {
        let configured = configured.max(1);
        Self { configured, size: configured, changed_at: Instant::now(), again_after: AGAIN_AFTER.0 }
    }

    /// Returns how many calls to send in a batch now; one stands for single calls.
    pub(super) fn now(&self, now: Instant) -> usize {
        if self.size < self.configured && now.duration_since(self.changed_at) >= self.again_after {
            return self.size.saturating_mul(SHRINK).min(self.configured);
        }
        self.size
    }

    /// Returns the size to try after a batch of this length has failed.
    pub(super) fn shorter(length: usize) -> usize {
        (length / SHRINK).max(1)
    }

    /// Records that calls were answered in batches of this size, after longer ones had failed.
    pub(super) fn record_shrunk(&mut self, size: usize, now: Instant) {
        self.again_after = if size > self.size || self.size == self.configured {
            AGAIN_AFTER.0
        } else {
            (self.again_after * 2).min(AGAIN_AFTER.1)
        };
        (self.size, self.changed_at) = (size.max(1), now);
    }

    /// Records a batch that was answered. Returns true where it is longer than those that were taken before.
    pub(super) fn record_taken(&mut self, length: usize, now: Instant) -> bool {
        let is_longer = length > self.size;
        if is_longer {
            (self.size, self.changed_at, self.again_after) = (length.min(self.configured), now, AGAIN_AFTER.0);
        }
        is_longer
    }

    /// Forgets what was learnt: another node may be behind the address.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.configured);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn batches_become_shorter_and_come_back_step_by_step_less_often_in_vain() {
        let (mut size, mut now) = (BatchSize::new(100), Instant::now());
        assert_eq!((size.now(now), BatchSize::shorter(100), BatchSize::shorter(3)), (100, 25, 1));
        size.record_shrunk(1, now);
        for vain in 0..4 {
            let wait = AGAIN_AFTER.0 * 2_u32.pow(vain);
            assert_eq!(size.now(now + wait - Duration::from_secs(1)), 1);
            now += wait;
            assert_eq!(size.now(now), 4);
            size.record_shrunk(1, now);
        }
        now += AGAIN_AFTER.1;
        for (taken, next) in [(4, 16), (16, 64), (64, 100)] {
            assert!(size.record_taken(taken, now) && !size.record_taken(taken, now));
            now += AGAIN_AFTER.0;
            assert_eq!(size.now(now), next);
        }
        size.record_taken(100, now);
        assert_eq!(size.now(now + AGAIN_AFTER.1), 100);
    }
}
