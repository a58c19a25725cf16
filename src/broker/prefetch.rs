//! How many deliveries a worker holds unacknowledged. It begins with a thousand, and takes more while all of them are held and a
//! lane could write more: that is the case where much is written and finality takes long. AMQP allows 65,535.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// At the start.
const START: u16 = 1000;
/// Bytes of bodies that are held at most, by the average body.
const MOST_BYTES: u64 = 64 << 20;
/// For so long lanes have to want more, so that what is on its way to them can arrive.
const PATIENCE: Duration = Duration::from_millis(200);
/// An average body is that of about so many deliveries.
const AVERAGED: i64 = 256;

/// What keeps the prefetch from being larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefetchLimit {
    /// No lane could write more.
    Lanes,
    /// The size of the bodies.
    Bytes,
    /// The configuration.
    Prefetch,
}

impl fmt::Display for PrefetchLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lanes => "no lane wants more",
            Self::Bytes => "the size of the bodies",
            Self::Prefetch => "broker.prefetch",
        })
    }
}

/// How it stands, for the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefetchState {
    pub size: u16,
    pub limit: PrefetchLimit,
}

#[derive(Debug)]
pub(super) struct Prefetch {
    /// What the operator allows.
    most: u16,
    wanted: u16,
    /// Bytes of an average body, times [`AVERAGED`].
    body: i64,
    /// Since when lanes want more than is held.
    wants_since: Option<Instant>,
}

impl Prefetch {
    pub(super) fn new(most: u16) -> Self {
        Self { most, wanted: most.min(START), body: 0, wants_since: None }
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
        let average = u64::try_from(self.body / AVERAGED).unwrap_or(0).max(1);
        u16::try_from(MOST_BYTES / average).unwrap_or(u16::MAX).max(1)
    }

    /// Takes note of a delivery's body.
    pub(super) fn record(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX / AVERAGED);
        self.body += bytes - self.body / AVERAGED;
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
        let mut prefetch = Prefetch::new(7000);
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
        assert_eq!(Prefetch::new(10).size(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_keep_it_small() {
        let mut prefetch = Prefetch::new(u16::MAX);
        (0..10_000).for_each(|_| prefetch.record(256));
        assert_eq!(prefetch.state(), PrefetchState { size: 1000, limit: PrefetchLimit::Lanes });
        (0..10_000).for_each(|_| prefetch.record(256 << 10));
        assert_eq!((prefetch.state().limit, prefetch.size().abs_diff(256) <= 1), (PrefetchLimit::Bytes, true));
        prefetch.adapt(true, Instant::now());
        tokio::time::advance(PATIENCE).await;
        assert!(!prefetch.adapt(true, Instant::now()));
        (0..1_000).for_each(|_| prefetch.record(16 << 20));
        assert!((1..=5).contains(&prefetch.size()), "{prefetch:?}");
    }
}
