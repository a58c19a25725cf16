//! Methods that a node is not asked for, since other calls replace them: it says that it lacks them, or fails them again and again
//! while it answers those. No I/O.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// After so many failures in a row a method is not asked for, for a while.
const FAILURES: u32 = 3;
const RESTS_FOR: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Lacks(HashMap<&'static str, Lack>);

#[derive(Debug, Clone, Copy)]
enum Lack {
    /// For as long as this node is behind the address.
    Missing,
    /// So many failures in a row, the last one then.
    Failing(u32, Instant),
}

/// A failure of a method that other calls replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failing {
    /// The node says that it has no such method.
    Lacking,
    /// Says nothing of the method itself: the failure may pass.
    Otherwise,
}

impl Lacks {
    pub(super) fn has(&self, method: &str, now: Instant) -> bool {
        match self.0.get(method) {
            Some(Lack::Missing) => true,
            Some(Lack::Failing(times, last)) => *times >= FAILURES && now.duration_since(*last) < RESTS_FOR,
            None => false,
        }
    }

    /// Records a failure. Returns true from when on the method is not asked for.
    pub(super) fn record(&mut self, method: &'static str, failing: Failing, now: Instant) -> bool {
        let had = self.has(method, now);
        let times = match self.0.get(method) {
            Some(Lack::Failing(times, _)) => *times,
            Some(Lack::Missing) => return false,
            None => 0,
        };
        let lack = match failing {
            Failing::Lacking => Lack::Missing,
            Failing::Otherwise => Lack::Failing(times.saturating_add(1), now),
        };
        self.0.insert(method, lack);
        !had && self.has(method, now)
    }

    pub(super) fn record_answer(&mut self, method: &str) {
        self.0.remove(method);
    }

    /// Forgets everything: another node may be behind the address.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_a_node_lacks_is_not_asked_for_and_what_it_fails_rests_after_some_times() {
        let (mut lacks, now) = (Lacks::default(), Instant::now());
        assert!(lacks.record("lacking", Failing::Lacking, now) && !lacks.record("lacking", Failing::Lacking, now));
        assert!(lacks.has("lacking", now + RESTS_FOR * 100) && !lacks.has("other", now));
        let said: Vec<_> = (0..FAILURES).map(|_| lacks.record("failing", Failing::Otherwise, now)).collect();
        assert_eq!(said, [false, false, true]);
        assert!(lacks.has("failing", now) && !lacks.has("failing", now + RESTS_FOR));
        lacks.record_answer("failing");
        assert!(!lacks.record("failing", Failing::Otherwise, now), "only failures in a row count");
        lacks.clear();
        assert!(!lacks.has("lacking", now));
    }
}
