//! Signs of life: each stage counts its rounds, and the watchdog checks that the counts still move.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One stage's count of rounds. Cloning gives another handle on the same count.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    /// Counts a round; an idle stage makes one at least every second.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
