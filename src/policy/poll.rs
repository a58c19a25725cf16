//! How often a lane polls for new blocks: as the chain makes them, and as often as the endpoint takes calls.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::BlockNumber;

/// Until two blocks have shown how fast they come.
const AT_FIRST: Duration = Duration::from_millis(500);
/// Polls within the time between two blocks: a block is seen this part of that too late at most.
const PER_BLOCK: u32 = 4;
/// The shortest interval. Faster chains show several blocks at once.
const SHORTEST: Duration = Duration::from_millis(250);
/// The longest interval while transactions wait for a block, and while none do: chains that make blocks on demand make the first
/// one at once, after however long a silence.
const LONGEST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// Calls that a poll takes where there is a new block.
const CALLS: f64 = 8.0;
/// The part of the calls that an endpoint takes which polls may use.
const SHARE: f64 = 0.25;
/// The longest interval that an endpoint's limit leads to.
const LONGEST_LIMITED: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollRule {
    /// As the operator says.
    Every(Duration),
    /// The interval follows the time between blocks.
    Auto,
}

impl PollRule {
    /// Returns an interval for work that knows nothing of the chain's blocks.
    pub fn usual(self) -> Duration {
        match self {
            Self::Every(interval) => interval,
            Self::Auto => AT_FIRST,
        }
    }
}

/// Measures the interval between blocks by the monotonic clock: what a block says of its time may be anything.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlockPace {
    last: Option<(BlockNumber, Instant)>,
    spacing: Option<Duration>,
}

impl BlockPace {
    /// Records a newest block.
    pub fn record(&mut self, number: BlockNumber, now: Instant) {
        let before = self.last.replace((number, now));
        let Some((last, at)) = before else { return };
        let Some(blocks) = number.0.checked_sub(last.0).filter(|blocks| *blocks > 0) else { return };
        let sample = now.duration_since(at) / u32::try_from(blocks).unwrap_or(u32::MAX);
        // Recent blocks count more: a chain may become faster or slower.
        self.spacing = Some(self.spacing.map_or(sample, |spacing| spacing * 3 / 4 + sample / 4));
    }

    /// Returns how long to wait before the next poll. `waits` says whether transactions wait for a block, `calls_per_second` what
    /// the endpoint takes where it has asked for fewer calls.
    pub fn interval(&self, rule: PollRule, waits: bool, calls_per_second: Option<f64>) -> Duration {
        let interval = match (rule, self.spacing) {
            (PollRule::Every(interval), _) => interval,
            (PollRule::Auto, None) => AT_FIRST,
            (PollRule::Auto, Some(spacing)) => {
                (spacing / PER_BLOCK).clamp(SHORTEST, if waits { LONGEST.0 } else { LONGEST.1 })
            }
        };
        let affordable = calls_per_second.map(|calls| {
            Duration::try_from_secs_f64(CALLS / (calls * SHARE))
                .map_or(LONGEST_LIMITED, |wait| wait.min(LONGEST_LIMITED))
        });
        interval.max(affordable.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn after_blocks(every: Duration) -> BlockPace {
        let (mut pace, mut now) = (BlockPace::default(), Instant::now());
        for number in 0..20 {
            pace.record(BlockNumber(number), now);
            now += every;
        }
        pace
    }

    #[tokio::test(start_paused = true)]
    async fn polls_follow_the_blocks_from_milliseconds_to_hours() {
        for (every, waiting, idle) in [
            (ms(50), ms(250), ms(250)),
            (ms(250), ms(250), ms(250)),
            (ms(2000), ms(500), ms(500)),
            (ms(12_000), ms(1000), ms(2000)),
            (ms(7_200_000), ms(1000), ms(2000)),
        ] {
            let pace = after_blocks(every);
            let interval = |waits| pace.interval(PollRule::Auto, waits, None);
            assert_eq!((interval(true), interval(false)), (waiting, idle), "{every:?}");
            assert_eq!(pace.interval(PollRule::Every(ms(77)), true, None), ms(77), "the operator's word counts");
        }
        assert_eq!(BlockPace::default().interval(PollRule::Auto, true, None), AT_FIRST);
    }

    /// Heads that jump, stand or go back, as on fast chains and behind load balancers.
    #[tokio::test(start_paused = true)]
    async fn blocks_that_are_seen_together_count_each_and_those_that_go_back_do_not() {
        let (mut pace, now) = (BlockPace::default(), Instant::now());
        pace.record(BlockNumber(10), now);
        pace.record(BlockNumber(20), now + ms(20_000));
        assert_eq!(pace.spacing, Some(ms(2000)));
        pace.record(BlockNumber(19), now + ms(21_000));
        pace.record(BlockNumber(19), now + ms(22_000));
        assert_eq!(pace.spacing, Some(ms(2000)));
        pace.record(BlockNumber(u64::MAX), now + ms(23_000));
        assert!(pace.interval(PollRule::Auto, true, None) >= SHORTEST);
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_takes_few_calls_is_polled_less() {
        let pace = after_blocks(ms(1000));
        let interval = |calls| pace.interval(PollRule::Auto, true, Some(calls));
        assert_eq!((interval(1000.0), interval(20.0), interval(0.1)), (ms(250), ms(1600), LONGEST_LIMITED));
        assert_eq!(interval(0.0), LONGEST_LIMITED);
        assert_eq!(pace.interval(PollRule::Every(ms(50)), true, Some(20.0)), ms(1600));
    }
}
