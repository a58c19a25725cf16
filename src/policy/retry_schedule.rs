//! How long to wait: the delays of retries and the pauses between tries to reach something. The only user of `backoff`.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule {
    delays: Vec<Duration>,
}

impl RetrySchedule {
    /// Returns the delays between `max_attempts` tries: `initial`, then each `multiplier` times the one before, never above
    /// `max`. Delays are whole milliseconds, since the broker counts in those.
    pub fn new(max_attempts: u32, initial: Duration, multiplier: f64, max: Duration) -> Self {
        let mut backoff = exponential(initial, multiplier, max, 0.0);
        let delays = (1..max_attempts)
            .map(|_| backoff.next_backoff().unwrap_or(max).min(max))
            .map(|delay| Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)))
            .collect();
        Self { delays }
    }

    /// Returns the delay before retry number `retry`, counted from 1; `None` when the tries are used up.
    pub fn delay_before(&self, retry: u32) -> Option<Duration> {
        let index = usize::try_from(retry.checked_sub(1)?).ok()?;
        self.delays.get(index).copied()
    }

    /// Returns the delay of each wait queue, shortest first: one for each delay of a retry, and one for parks.
    pub fn waits(&self, park_delay: Duration) -> Vec<Duration> {
        let mut waits = self.delays.clone();
        waits.push(park_delay);
        waits.sort_unstable();
        waits.dedup();
        waits
    }
}

/// Growing pauses with jitter between tries to reach something that is out of reach.
#[derive(Debug)]
pub struct RetryPauses {
    backoff: ExponentialBackoff,
}

impl RetryPauses {
    /// Pauses around `first`, doubling up to about `longest`, for as long as it takes.
    pub fn between(first: Duration, longest: Duration) -> Self {
        Self { backoff: exponential(first, 2.0, longest, jitter()) }
    }

    pub fn next_wait(&mut self) -> Duration {
        self.backoff.next_backoff().unwrap_or(self.backoff.max_interval)
    }

    /// Resets the pauses to the first one, after a success.
    pub fn reset(&mut self) {
        self.backoff.reset();
    }
}

fn exponential(first: Duration, multiplier: f64, longest: Duration, jitter: f64) -> ExponentialBackoff {
    ExponentialBackoff {
        current_interval: first,
        initial_interval: first,
        randomization_factor: jitter,
        multiplier,
        max_interval: longest,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    }
}

/// Adds or takes up to half, so that many callers do not come at once.
fn jitter() -> f64 {
    #[cfg(test)]
    if crate::model::ids::virtual_host::is_on() {
        return 0.0;
    }
    0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn delays_grow_by_the_multiplier_up_to_the_longest() {
        let schedule = RetrySchedule::new(7, seconds(5), 3.0, seconds(900));
        let delays: Vec<_> = (1..=6).map(|retry| schedule.delay_before(retry)).collect();
        assert_eq!(delays, [5, 15, 45, 135, 405, 900].map(|count| Some(seconds(count))));
        assert_eq!(schedule.delay_before(7), None);
        assert_eq!(schedule.delay_before(0), None);
    }

    #[test]
    fn one_attempt_means_no_retry() {
        assert_eq!(RetrySchedule::new(1, seconds(5), 3.0, seconds(900)).delay_before(1), None);
    }

    #[test]
    fn equal_delays_share_a_level() {
        let schedule = RetrySchedule::new(6, seconds(5), 10.0, seconds(60));
        assert_eq!(schedule.waits(seconds(5)), [seconds(5), seconds(50), seconds(60)]);
    }

    #[test]
    fn pauses_grow_to_about_the_longest_and_start_over_after_a_reset() {
        let mut pause = RetryPauses::between(seconds(1), seconds(30));
        assert!(pause.next_wait() <= seconds(2));
        let late = (0..20).map(|_| pause.next_wait()).last().unwrap();
        assert!(late >= seconds(15) && late <= seconds(45), "{late:?}");
        pause.reset();
        assert!(pause.next_wait() <= seconds(2));
    }
}
