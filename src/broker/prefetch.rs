//! How many deliveries a worker holds unacknowledged. It begins with a thousand, and takes more while all of them are held and a
//! lane could write more: that is the case where much is written and finality takes long. AMQP allows 65,535.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Begins small: the size of bodies is not known yet.
const START: u16 = 1000;
/// For so long lanes have to want more, so that what is on its way to them can arrive.
const PATIENCE: Duration = Duration::from_millis(200);

/// Names the limit of the prefetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefetchLimit {
    /// No lane could write more.
    Lanes,
    /// The size of the messages.
    Bytes,
    /// The configuration allows no more.
    Prefetch,
}

impl fmt::Display for PrefetchLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lanes => "no lane wants more",
            Self::Bytes => "the size of the messages",
            Self::Prefetch => "broker.prefetch",
        })
    }
}

/// Shows the prefetch, for the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchState {
    pub size: u16,
    pub limit: PrefetchLimit,
}

#[derive(Debug)]
pub(super) struct Prefetch {
    /// The operator's limit.
    most: u16,
    most_bytes: u64,
    wanted: u16,
    /// The size of a large message among the last ones.
    large: u64,
    /// Since when lanes want more than is held.
    wants_since: Option<Instant>,
}

impl Prefetch {
    pub(super) fn new(most: u16, most_bytes: u64) -> Self {
        Self { most, most_bytes, wanted: most.min(START), large: 0, wants_since: None }
    }

    pub(super) fn state(&self) -> PrefetchState {
        let by_bytes = self.by_bytes();
        let (size, limit) = if by_bytes < self.wanted {
            (by_bytes, PrefetchLimit::Bytes)
        } else if self.wanted == self.most {
            (self.wanted, PrefetchLimit::Prefetch)
        } else {
            (self.wanted, PrefetchLimit::Lanes)
        };
        PrefetchState { size, limit }
    }

    pub(super) fn size(&self) -> u16 {
        self.state().size
    }

    fn by_bytes(&self) -> u16 {
        u16::try_from(self.most_bytes / self.large.max(1)).unwrap_or(u16::MAX).max(1)
    }

    /// Records how large a delivery is. A large one counts less with each further delivery, so that one alone does not keep the
    /// prefetch small.
    pub(super) fn record(&mut self, bytes: usize) {
        self.large = (bytes as u64).max(self.large - self.large / 64);
    }

    /// Doubles it once all that it allows was held and lanes wanted more for a while. Returns whether it did.
    pub(super) fn adapt(&mut self, wants_more: bool, now: Instant) -> bool {
        if !wants_more || self.state().limit != PrefetchLimit::Lanes {
            self.wants_since = None;
            return false;
        }
        let since = *self.wants_since.get_or_insert(now);
        if now.duration_since(since) < PATIENCE {
            return false;
        }
        self.wants_since = None;
        self.wanted = self.wanted.saturating_mul(2).min(self.most);
        true
    }

    /// Returns when lanes have wanted more for long enough.
    pub(super) fn adapts_at(&self) -> Option<Instant> {
        self.wants_since.map(|since| since + PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_doubles_while_lanes_want_more_up_to_what_the_operator_allows() {
        let mut prefetch = Prefetch::new(7000, u64::MAX);
        assert!(!prefetch.adapt(true, Instant::now()), "it may be on its way");
        tokio::time::advance(PATIENCE).await;
        assert!(!prefetch.adapt(false, Instant::now()), "it was");
        let mut sizes = Vec::new();
        for _ in 0..6 {
            prefetch.adapt(true, Instant::now());
            tokio::time::advance(PATIENCE).await;
            assert!(prefetch.adapts_at().is_none_or(|at| at <= Instant::now()));
            prefetch.adapt(true, Instant::now());
            sizes.push(prefetch.size());
        }
        assert_eq!(sizes, [2000, 4000, 7000, 7000, 7000, 7000]);
        assert_eq!((prefetch.state().limit, prefetch.adapts_at()), (PrefetchLimit::Prefetch, None));
        assert_eq!(Prefetch::new(10, u64::MAX).size(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn the_larger_the_bodies_the_fewer_are_held() {
        for (most, bytes, large, expected) in [
            (1000, 1_000_000, 0, 1000),
            (1000, 1_000_000, 1000, 1000),
            (1000, 1_000_000, 10_000, 100),
            (1000, 1_000_000, 1_000_000, 1),
            (1000, 1_000_000, 128_000_000, 1),
            (5, 1_000_000, 10_000, 5),
            (u16::MAX, u64::MAX, 1, 1000),
        ] {
            let mut prefetch = Prefetch::new(most, bytes);
            prefetch.record(large);
            assert_eq!(prefetch.size(), expected, "{prefetch:?}");
        }
        let mut prefetch = Prefetch::new(1000, 10_000_000);
        prefetch.record(1_000_000);
        assert_eq!(prefetch.state(), PrefetchState { size: 10, limit: PrefetchLimit::Bytes });
        assert!(!prefetch.adapt(true, Instant::now()));
        (0..2000).for_each(|_| prefetch.record(100));
        assert_eq!(prefetch.size(), 1000, "one alone does not keep it small");
    }
}
