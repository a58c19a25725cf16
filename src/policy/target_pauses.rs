//! Targets that refuse what is published to them, each with growing pauses of its own: one that refuses holds up no other.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::policy::retry_schedule::RetryPauses;

/// Targets that are remembered at most. Producers name some of them.
const MOST_TARGETS: usize = 1024;

#[derive(Debug)]
pub struct TargetPauses<T> {
    first_and_longest: (Duration, Duration),
    refusing: BTreeMap<T, Refusing>,
}

#[derive(Debug)]
struct Refusing {
    since: Instant,
    try_at: Instant,
    pauses: RetryPauses,
}

impl<T: Ord + Clone> TargetPauses<T> {
    pub fn between(first: Duration, longest: Duration) -> Self {
        Self { first_and_longest: (first, longest), refusing: BTreeMap::new() }
    }

    /// Records a refusal. Returns the pause before the next try. Of several that were on their way, the first counts.
    pub fn refused(&mut self, target: &T, now: Instant) -> Duration {
        if !self.refusing.contains_key(target) && self.refusing.len() >= MOST_TARGETS {
            let next = self.refusing.iter().min_by_key(|(_, refusing)| refusing.try_at);
            if let Some(forgotten) = next.map(|(target, _)| target.clone()) {
                self.refusing.remove(&forgotten);
            }
        }
        let (first, longest) = self.first_and_longest;
        let refusing = self.refusing.entry(target.clone()).or_insert_with(|| Refusing {
            since: now,
            try_at: now,
            pauses: RetryPauses::between(first, longest),
        });
        if refusing.try_at <= now {
            refusing.try_at = now + refusing.pauses.next_wait();
        }
        refusing.try_at - now
    }

    /// Forgets the refusals of a target that has taken something.
    pub fn accepted(&mut self, target: &T) {
        self.refusing.remove(target);
    }

    pub fn may_try(&self, target: &T, now: Instant) -> bool {
        self.refusing.get(target).is_none_or(|refusing| refusing.try_at <= now)
    }

    pub fn is_refusing(&self, target: &T) -> bool {
        self.refusing.contains_key(target)
    }

    /// Returns for how long the target has taken nothing; zero where it has not refused since.
    pub fn refused_for(&self, target: &T, now: Instant) -> Duration {
        self.refusing.get(target).map_or(Duration::ZERO, |refusing| now.saturating_duration_since(refusing.since))
    }

    /// Returns when the next pause ends.
    pub fn next_after(&self, now: Instant) -> Option<Instant> {
        self.refusing.values().map(|refusing| refusing.try_at).filter(|try_at| *try_at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn a_target_that_refuses_waits_longer_each_time_and_no_other_waits() {
        let (mut pauses, mut now) = (TargetPauses::between(FIRST, LONGEST), Instant::now());
        let began = now;
        let mut waits = Vec::new();
        for _ in 0..20 {
            let wait = pauses.refused(&"full", now);
            assert!(!pauses.may_try(&"full", now) && pauses.may_try(&"full", now + wait));
            assert!(pauses.may_try(&"other", now));
            assert_eq!((pauses.next_after(now), pauses.next_after(now + wait)), (Some(now + wait), None));
            now += wait;
            waits.push(wait);
        }
        assert!(waits[0] <= 2 * FIRST && waits[19] >= LONGEST / 2 && waits[19] <= 2 * LONGEST, "{waits:?}");
        assert_eq!(pauses.refused_for(&"full", now), now - began);
        assert_eq!(pauses.refused_for(&"other", now), Duration::ZERO);
        pauses.accepted(&"full");
        assert!(pauses.may_try(&"full", now) && pauses.refused(&"full", now) <= 2 * FIRST);
    }

    #[test]
    fn refusals_that_come_together_count_once() {
        let (mut pauses, now) = (TargetPauses::between(FIRST, LONGEST), Instant::now());
        let waits = [0; 12].map(|_| pauses.refused(&"full", now));
        assert!(waits[0] <= 2 * FIRST && waits.iter().all(|wait| *wait == waits[0]), "{waits:?}");
    }

    #[test]
    fn no_more_targets_are_remembered_than_the_limit_allows() {
        let (mut pauses, now) = (TargetPauses::between(FIRST, LONGEST), Instant::now());
        for target in 0..3 * MOST_TARGETS {
            pauses.refused(&target, now);
        }
        assert_eq!(pauses.refusing.len(), MOST_TARGETS);
        assert!(pauses.is_refusing(&(3 * MOST_TARGETS - 1)));
    }
}
