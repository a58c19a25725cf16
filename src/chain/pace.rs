//! Counts the calls that an endpoint gets a second: as many as there are, or as the configuration allows, until it asks for fewer. Then the
//! pace that it takes is found: it falls when calls are refused, rises while they are not, and is forgotten after some minutes without
//! a refusal. No I/O.
//!
//! Calls take their turns one after the other (a virtual clock moves on by each, as in the generic cell rate algorithm), so that
//! none waits for ever, whichever part makes it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Over this time the calls are counted that an endpoint has answered when it first asks for fewer.
const COUNTED: Duration = Duration::from_secs(1);
/// Lowest and highest number of calls a second to begin with.
const FIRST: (f64, f64) = (2.0, 500.0);
/// Lowest number of calls a second: one in ten seconds.
const LEAST: f64 = 0.1;
/// After a refusal the pace is this share of the calls that were answered within a second.
const SLOWER: f64 = 0.85;
/// Refusals within this count as one: the calls were under way together.
const TOGETHER: Duration = Duration::from_millis(500);
/// The interval between two rises of the pace.
const GROWS_EVERY: Duration = Duration::from_millis(500);
/// Factors of a rise: near the pace that is known to be too fast, far from it, and where none is known.
const FASTER: (f64, f64, f64) = (1.01, 1.2, 1.5);
/// From this part of the pace that is too fast on, it is near.
const NEAR: f64 = 0.8;
/// After so long without a refusal the limit is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// Calls may be this much ahead of the pace.
const AHEAD: Duration = Duration::from_millis(300);
/// A request's calls are those of this time at most, and of one as long as an answer takes.
const PER_REQUEST: (f64, f64) = (0.25, 1.0);
/// Bounds of the wait after a refusal that names none.
const WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The last answers: their time, and how many calls they answered.
    answered: VecDeque<(Instant, usize)>,
    limit: Option<Limit>,
    /// Calls a second at most, where that is configured.
    most: Option<f64>,
    /// The time that an answer takes, in seconds.
    takes: f64,
}

#[derive(Debug)]
struct Limit {
    per_second: f64,
    /// The pace that was too fast at the last refusal; none where that said little.
    too_fast: Option<f64>,
    /// Most calls in one request.
    longest: f64,
    /// The turn of the next call.
    turn: Instant,
    /// Nothing is sent before it.
    not_before: Instant,
    refused_at: Instant,
    /// The last refusal that made it slower.
    slowed_at: Instant,
    changed_at: Instant,
    /// Calls waited for their turn since the last rise: a faster pace would be of use.
    is_used: bool,
}

/// The turn of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) at: Instant,
    /// Calls that it may have.
    pub(super) calls: usize,
}

impl Pace {
    /// Returns the pace of an endpoint that never gets more calls a second than this.
    pub(super) fn at_most(most: Option<f64>) -> Self {
        let limit = most.map(|per_second| Limit::new(per_second, Instant::now()));
        Self { limit, most, ..Self::default() }
    }

    /// Takes a turn for a request of at most `wanted` calls. A turn that would come after `until` is not taken: the error is the
    /// wait for it.
    pub(super) fn take_turn(&mut self, now: Instant, wanted: usize, until: Instant) -> Result<Turn, Duration> {
        let Some(limit) = &mut self.limit else { return Ok(Turn { at: now, calls: wanted }) };
        let seconds = self.takes.clamp(PER_REQUEST.0, PER_REQUEST.1);
        let most = (limit.per_second * seconds).min(limit.longest).max(1.0);
        let calls = wanted.min(whole(most)).max(1);
        let at = limit.turn.checked_sub(AHEAD).map_or(now, |turn| turn.max(now)).max(limit.not_before);
        if at > until {
            return Err(at.duration_since(now));
        }
        limit.is_used |= at > now || calls < wanted;
        limit.turn = limit.turn.max(now) + limit.time_of(calls);
        Ok(Turn { at, calls })
    }

    /// Counts calls that waited for no turn.
    pub(super) fn count(&mut self, now: Instant, calls: usize) {
        if let Some(limit) = &mut self.limit {
            limit.turn = limit.turn.max(now) + limit.time_of(calls);
        }
    }

    /// Records calls that were answered, after so long. Returns true where the limit is forgotten.
    pub(super) fn record_answered(&mut self, now: Instant, calls: usize, after: Duration) -> bool {
        self.takes += (after.as_secs_f64() - self.takes) / 4.0;
        self.answered.push_back((now, calls));
        while self.answered.pop_front_if(|(at, _)| now.duration_since(*at) > COUNTED).is_some() {}
        let Some(limit) = &mut self.limit else { return false };
        let is_slowed = self.most.is_none_or(|most| limit.per_second < most);
        if is_slowed && now.duration_since(limit.refused_at) >= FORGOTTEN_AFTER {
            self.limit = self.most.map(|per_second| Limit::new(per_second, now));
            return true;
        }
        limit.grow(now, calls, self.most);
        false
    }

    /// Records a refusal of these calls, or of a request that had them. Returns the pace from now on where there was none before.
    pub(super) fn record_refused(&mut self, now: Instant, calls: usize, retry_after: Option<Duration>) -> Option<f64> {
        let answered: usize =
            self.answered.iter().filter(|(at, _)| now.duration_since(*at) <= COUNTED).map(|(_, calls)| calls).sum();
        let answered = f64::from(u32::try_from(answered).unwrap_or(u32::MAX));
        let is_new = self.limit.is_none();
        let limit = self.limit.get_or_insert_with(|| Limit::new((answered * SLOWER).clamp(FIRST.0, FIRST.1), now));
        if !is_new && now.duration_since(limit.slowed_at) >= TOGETHER {
            // The calls answered lately show best how many the endpoint takes.
            let too_fast = answered.clamp(limit.per_second / 2.0, limit.per_second);
            (limit.too_fast, limit.per_second) = (Some(too_fast), (too_fast * SLOWER).max(LEAST));
            limit.slowed_at = now;
        }
        if calls > 1 {
            limit.longest = limit.longest.min(f64::from(u32::try_from(calls / 2).unwrap_or(u32::MAX))).max(1.0);
        }
        let wait = retry_after.unwrap_or_else(|| limit.time_of(1).min(WAIT.1)).max(WAIT.0);
        limit.not_before = limit.not_before.max(now + wait);
        limit.turn = limit.turn.max(now);
        (limit.refused_at, limit.changed_at, limit.is_used) = (now, now, false);
        is_new.then_some(limit.per_second)
    }

    /// Returns the calls a second that the endpoint gets now, where it has asked for fewer or the configuration allows no more.
    pub(super) fn per_second(&self) -> Option<f64> {
        self.limit.as_ref().map(|limit| limit.per_second)
    }
}

impl Limit {
    fn new(per_second: f64, now: Instant) -> Self {
        Self {
            per_second,
            too_fast: None,
            longest: f64::INFINITY,
            turn: now,
            not_before: now,
            refused_at: now,
            slowed_at: now,
            changed_at: now,
            is_used: false,
        }
    }

    fn time_of(&self, calls: usize) -> Duration {
        let calls = f64::from(u32::try_from(calls).unwrap_or(u32::MAX));
        Duration::from_secs_f64((calls / self.per_second).min(3600.0))
    }

    fn grow(&mut self, now: Instant, calls: usize, most: Option<f64>) {
        let was_whole = calls >= whole(self.longest.min(f64::from(u32::MAX)));
        if now.duration_since(self.changed_at) < GROWS_EVERY {
            return;
        }
        self.changed_at = now;
        if was_whole {
            self.longest *= FASTER.1;
            self.longest = self.longest.max(2.0);
        }
        if std::mem::take(&mut self.is_used) {
            let (near, far, unknown) = FASTER;
            self.per_second *= match self.too_fast.map(|too_fast| self.per_second / too_fast) {
                Some(part) if (NEAR..1.0 / NEAR).contains(&part) => near,
                Some(_) => far,
                None => unknown,
            };
            self.per_second = most.map_or(self.per_second, |most| self.per_second.min(most));
        }
    }
}

/// Returns a number without its fraction; what is below zero or too large becomes the nearest that there is.
fn whole(number: f64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A provider with a bucket: so many calls a second, and as many at once. A request is answered call by call, or as a whole.
    struct Provider {
        per_second: f64,
        tokens: f64,
        filled_at: Instant,
        refuses_whole: bool,
    }

    impl Provider {
        fn new(per_second: f64, refuses_whole: bool) -> Self {
            Self { per_second, tokens: per_second, filled_at: Instant::now(), refuses_whole }
        }

        /// Returns how many of these calls it answers.
        fn answer(&mut self, now: Instant, calls: usize) -> usize {
            let since = now.duration_since(self.filled_at).as_secs_f64();
            self.tokens = (self.tokens + since * self.per_second).min(self.per_second.max(1.0));
            self.filled_at = now;
            let has = whole(self.tokens);
            let answered = if has >= calls {
                calls
            } else if self.refuses_whole {
                0
            } else {
                has
            };
            self.tokens -= f64::from(u32::try_from(answered).unwrap());
            answered
        }
    }

    /// Makes calls in batches of 100 at most for so many seconds, each after the answer to the one before, and returns how many
    /// were answered and how many requests were refused.
    fn answered_within(
        pace: &mut Pace,
        provider: &mut Provider,
        now: &mut Instant,
        seconds: u64,
        takes: Duration,
    ) -> (usize, usize) {
        let (end, mut answered, mut refused) = (*now + Duration::from_secs(seconds), 0, 0);
        while *now < end {
            let turn = pace.take_turn(*now, 100, end + Duration::from_secs(60)).unwrap();
            *now = turn.at;
            let taken = provider.answer(*now, turn.calls);
            *now += takes;
            if taken > 0 {
                pace.record_answered(*now, taken, takes);
                answered += taken;
            }
            if taken < turn.calls {
                pace.record_refused(*now, if taken == 0 { turn.calls } else { 1 }, None);
                refused += 1;
            }
        }
        (answered, refused)
    }

    #[tokio::test(start_paused = true)]
    async fn the_pace_of_any_limit_is_found_and_mostly_used() {
        for (per_second, takes_ms) in
            [(1.0, 20), (5.0, 50), (20.0, 5), (20.0, 300), (20.0, 900), (100.0, 50), (300.0, 20)]
        {
            for refuses_whole in [false, true] {
                let (mut pace, mut provider) = (Pace::default(), Provider::new(per_second, refuses_whole));
                let mut now = Instant::now();
                let takes = Duration::from_millis(takes_ms);
                let (answered, refused) = answered_within(&mut pace, &mut provider, &mut now, 120, takes);
                let allowed = per_second * 120.0;
                let what = format!(
                    "{per_second} a second in {takes_ms} ms, whole {refuses_whole}: {answered} of {allowed}, {refused} refused"
                );
                assert!(f64::from(u32::try_from(answered).unwrap()) > allowed * 0.6, "{what}");
                assert!(refused < 60, "{what}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_rises_is_followed_and_one_that_ends_is_forgotten() {
        let (mut pace, mut provider) = (Pace::default(), Provider::new(5.0, true));
        let mut now = Instant::now();
        let takes = Duration::from_millis(20);
        answered_within(&mut pace, &mut provider, &mut now, 60, takes);
        assert!(pace.per_second().unwrap() < 8.0, "{pace:?}");
        provider.per_second = 50.0;
        let (answered, _) = answered_within(&mut pace, &mut provider, &mut now, 60, takes);
        assert!(answered > 1200, "{answered}");
        now += FORGOTTEN_AFTER;
        assert!(pace.record_answered(now, 1, takes) && pace.per_second().is_none());
        assert_eq!(pace.take_turn(now, 1000, now), Ok(Turn { at: now, calls: 1000 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_configured_limit_is_kept_from_the_first_call_on_and_a_refusal_leads_below_it_for_a_while() {
        for (most, takes_ms) in [(0.5, 20), (5.0, 5), (20.0, 300), (200.0, 50)] {
            let (mut pace, mut now) = (Pace::at_most(Some(most)), Instant::now());
            let (takes, mut provider) = (Duration::from_millis(takes_ms), Provider::new(100_000.0, false));
            let (answered, _) = answered_within(&mut pace, &mut provider, &mut now, 60, takes);
            let answered = f64::from(u32::try_from(answered).unwrap());
            // A request of a second's calls may come at the start, and one at the end.
            assert!((most * 45.0..=most * 62.5 + 1.0).contains(&answered), "{answered} at {most} a second");
            assert_eq!(pace.per_second(), Some(most));
        }
        let (mut pace, mut provider) = (Pace::at_most(Some(50.0)), Provider::new(5.0, true));
        let (mut now, takes) = (Instant::now(), Duration::from_millis(20));
        answered_within(&mut pace, &mut provider, &mut now, 60, takes);
        assert!(pace.per_second().unwrap() < 8.0, "{pace:?}");
        now += FORGOTTEN_AFTER;
        assert!(pace.record_answered(now, 1, takes));
        assert_eq!(pace.per_second(), Some(50.0), "the configured limit is not forgotten");
        assert!(!pace.record_answered(now + FORGOTTEN_AFTER * 2, 1, takes), "nothing was slowed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_asked_for_is_kept_and_no_turn_is_taken_beyond_what_the_caller_waits() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let wait = Duration::from_secs(7);
        pace.record_refused(now, 1, Some(wait));
        assert_eq!(pace.take_turn(now, 1, now + Duration::from_secs(6)), Err(wait));
        assert_eq!(pace.take_turn(now, 1, now + wait).unwrap().at, now + wait);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_of_calls_under_way_together_count_once_and_turns_come_one_after_the_other() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.record_answered(now, 100, Duration::ZERO);
        let first = pace.record_refused(now, 1, None);
        for _ in 0..50 {
            assert_eq!(pace.record_refused(now, 1, None), None);
        }
        assert_eq!(pace.per_second(), first);
        let later = now + Duration::from_secs(3600);
        let turns: Vec<_> = (0..70).map(|_| pace.take_turn(now, 1, later).unwrap().at).collect();
        assert!(turns.is_sorted() && turns[69] - turns[0] >= Duration::from_millis(250), "{turns:?}");
    }
}
