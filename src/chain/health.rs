//! The health of an endpoint: whether it is verified, how far it is behind, until when it rests. No I/O.

use std::time::Duration;

use tokio::time::Instant;

use crate::chain::ChainError;
use crate::model::BlockNumber;
use crate::policy::retry_schedule::RetryPauses;

/// First and longest rest of an endpoint that fails again and again.
const REST: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Longest rest of an endpoint that takes transactions only, where others take them too: each try may hold a broadcast up.
pub(super) const LONG_REST: Duration = Duration::from_secs(60);
/// Rest of an endpoint that asks for fewer calls without a time.
const RATE_LIMIT_REST: Duration = Duration::from_secs(1);
/// Shortest time between two lines about failures of one endpoint.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// For how long an endpoint's head counts, whether or not the endpoint still answers. While it is fresh no older head is
/// believed; after that an endpoint that is behind is better than none.
pub(super) const HEAD_MEMORY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Health {
    /// The last check of its chain id; `None` since that failed.
    verified_at: Option<Instant>,
    /// The newest block that it has reported, and when.
    head: Option<(BlockNumber, Instant)>,
    /// The last time at which that was higher than the one before.
    advanced_at: Option<Instant>,
    /// Blocks behind the best head at the last comparison.
    behind: u64,
    failures: u32,
    rests_until: Option<Instant>,
    last_error: Option<ChainError>,
    pause: RetryPauses,
    /// The last failure that was worth a line, and whether its end is.
    logged_at: Option<Instant>,
    is_logged: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            verified_at: None,
            head: None,
            advanced_at: None,
            behind: 0,
            failures: 0,
            rests_until: None,
            last_error: None,
            pause: RetryPauses::between(REST.0, REST.1),
            logged_at: None,
            is_logged: false,
        }
    }
}

impl Health {
    /// Returns the health of an endpoint that rests for so long at most.
    pub(super) fn resting_up_to(longest: Duration) -> Self {
        Self { pause: RetryPauses::between(REST.0, longest), ..Self::default() }
    }

    /// Returns whether it has served its chain since its last failure.
    pub(super) fn is_verified(&self) -> bool {
        self.verified_at.is_some()
    }

    /// Returns whether its chain id was checked within this time.
    pub(super) fn is_verified_within(&self, now: Instant, age: Duration) -> bool {
        self.verified_at.is_some_and(|at| now.duration_since(at) < age)
    }

    /// Returns true while it must not be asked.
    pub(super) fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    pub(super) fn behind(&self) -> u64 {
        self.behind
    }

    pub(super) fn last_error(&self) -> Option<ChainError> {
        self.last_error.clone()
    }

    /// Records that it serves the right chain. Returns the number of failures before, and whether their begin was logged.
    pub(super) fn record_verified(&mut self, now: Instant) -> (u32, bool) {
        self.verified_at = Some(now);
        self.rests_until = None;
        self.last_error = None;
        (self.failures, std::mem::take(&mut self.is_logged))
    }

    /// Records an answer. An answer that comes after the failure of a call at the same time does not make up for it.
    pub(super) fn record_answer(&mut self) {
        if self.is_verified() {
            self.failures = 0;
            self.pause.reset();
        }
    }

    /// Records a failure, after which it rests. Failures of calls at the same time count as one. Returns whether that is worth a
    /// line: once until it serves again, and not more than once in a while.
    pub(super) fn record_failure(&mut self, now: Instant, error: &ChainError) -> bool {
        let asked_for = match error {
            ChainError::RateLimited { retry_after, .. } => Some(retry_after.unwrap_or(RATE_LIMIT_REST)),
            ChainError::Unreachable { .. }
            | ChainError::Denied { .. }
            | ChainError::NoState { .. }
            | ChainError::NoStatus { .. }
            | ChainError::WrongChain { .. }
            | ChainError::Syncing { .. }
            | ChainError::Lagging { .. }
            | ChainError::Unconfirmed { .. }
            | ChainError::Nonsense { .. }
            | ChainError::Node { .. } => None,
        };
        if !self.rests(now) {
            self.failures = self.failures.saturating_add(1);
            let rest = self.pause.next_wait().max(asked_for.unwrap_or_default());
            self.rests_until = Some(now + rest);
        } else if let Some(wait) = asked_for {
            self.rests_until = self.rests_until.max(Some(now + wait));
        }
        // A server that asks for fewer calls serves the same chain as before.
        if asked_for.is_none() {
            self.verified_at = None;
        }
        self.last_error = Some(error.clone());
        if asked_for.is_some() {
            return self.failures == 1;
        }
        if self.is_logged || self.logged_at.is_some_and(|at| now.duration_since(at) < LOG_EVERY) {
            return false;
        }
        (self.is_logged, self.logged_at) = (true, Some(now));
        true
    }

    /// Requires a new check of its chain id and state: an answer did not fit them.
    pub(super) fn doubt(&mut self) {
        self.verified_at = None;
    }

    pub(super) fn record_head(&mut self, head: BlockNumber, now: Instant) {
        if self.head.is_some_and(|(before, _)| head > before) {
            self.advanced_at = Some(now);
        }
        self.head = Some((head, now));
    }

    /// Returns whether it has shown further blocks within this time.
    pub(super) fn has_advanced_within(&self, now: Instant, age: Duration) -> bool {
        self.advanced_at.is_some_and(|at| now.duration_since(at) < age)
    }

    /// Returns the head that it has reported lately.
    pub(super) fn fresh_head(&self, now: Instant) -> Option<BlockNumber> {
        self.head.filter(|(_, at)| now.duration_since(*at) <= HEAD_MEMORY).map(|(number, _)| number)
    }

    /// Compares its head with the best there is.
    pub(super) fn compare(&mut self, best: BlockNumber) {
        self.behind = self.head.map_or(0, |(number, _)| best.0.saturating_sub(number.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> ChainError {
        ChainError::Unreachable { endpoint: "here".to_owned(), detail: "no".to_owned() }
    }

    fn limited(retry_after: Option<u64>) -> ChainError {
        ChainError::RateLimited { endpoint: "here".to_owned(), retry_after: retry_after.map(Duration::from_secs) }
    }

    #[test]
    fn rests_grow_with_failures_and_are_short_again_after_an_answer() {
        let mut health = Health::default();
        let mut now = Instant::now();
        let rest_after_failure = |health: &mut Health, now: &mut Instant| {
            health.record_failure(*now, &unreachable());
            let rest = health.rests_until.unwrap() - *now;
            *now += rest;
            rest
        };
        let first = rest_after_failure(&mut health, &mut now);
        let last = (0..20).map(|_| rest_after_failure(&mut health, &mut now)).last().unwrap();
        assert!(first <= REST.0 * 2 && last >= REST.1 / 2 && last <= REST.1 * 2, "{first:?} {last:?}");
        health.record_answer();
        assert_eq!(health.failures, 21, "not verified: a late answer makes up for nothing");
        assert_eq!(health.record_verified(now), (21, true));
        health.record_answer();
        assert!(rest_after_failure(&mut health, &mut now) <= REST.0 * 2);
    }

    #[test]
    fn failures_of_calls_under_way_together_count_once() {
        let mut health = Health::default();
        let now = Instant::now();
        for first in (0..50).map(|place| place == 0) {
            assert_eq!((health.record_failure(now, &unreachable()), health.failures), (first, 1));
        }
        assert!(health.rests(now) && !health.rests(now + REST.0 * 2));
    }

    /// C12
    #[test]
    fn a_node_that_asks_for_a_pause_gets_it_also_when_it_rests_already() {
        let mut health = Health::default();
        let now = Instant::now();
        health.record_failure(now, &unreachable());
        health.record_failure(now, &limited(Some(30)));
        assert!(health.rests(now + Duration::from_secs(29)) && !health.rests(now + Duration::from_secs(30)));
        let mut health = Health::default();
        health.record_failure(now, &limited(None));
        assert!(health.rests(now + RATE_LIMIT_REST - Duration::from_millis(1)));
    }

    /// One line at its begin, one at its end, and no pair more than once a minute.
    #[test]
    fn an_endpoint_that_comes_and_goes_is_logged_once_in_a_while() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        let mut lines = 0;
        for _ in 0..600 {
            lines += usize::from(health.record_failure(now, &unreachable()));
            now += Duration::from_millis(500);
            lines += usize::from(health.record_verified(now).1);
            health.record_answer();
        }
        assert!((8..=12).contains(&lines), "{lines} lines in five minutes");
        health.record_failure(now + LOG_EVERY, &unreachable());
        assert_eq!(health.record_verified(now + LOG_EVERY * 2), (1, true), "the end of what was logged is logged");
    }

    #[test]
    fn a_node_that_asks_for_fewer_calls_stays_verified() {
        let (mut health, now) = (Health::default(), Instant::now());
        health.record_verified(now);
        health.record_failure(now, &limited(None));
        assert!(health.is_verified() && health.rests(now));
        health.record_failure(now, &unreachable());
        assert!(!health.is_verified());
    }

    #[test]
    fn heads_count_while_they_are_fresh() {
        let mut health = Health::default();
        let now = Instant::now();
        health.record_head(BlockNumber(7), now);
        health.compare(BlockNumber(10));
        assert_eq!(health.behind(), 3);
        health.compare(BlockNumber(6));
        assert_eq!(health.behind(), 0);
        assert_eq!(health.fresh_head(now + HEAD_MEMORY), Some(BlockNumber(7)));
        assert_eq!(health.fresh_head(now + HEAD_MEMORY * 2), None);
    }
}
