//! How much may be begun now, over all lanes of a chain: transactions for each second, unfinished ones at once, gas for
//! each hour. What is begun already is ended whatever the limits say: replacements, cancellations and fillers do not count.

use std::fmt;
use std::time::Duration;

use crate::model::Gas;

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
/// A minute counts until all of it lies an hour back.
const MINUTES: i64 = 61;

/// What an operator allows. `None`: any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// New transactions for each second. As many may go at once after a second without any.
    pub writes_per_second: Option<u32>,
    /// Transactions that are signed and not final.
    pub in_flight: Option<u64>,
    /// The gas limits of new transactions, over an hour.
    pub gas_per_hour: Option<Gas>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    /// `limits.writes_per_second`
    WritesPerSecond,
    /// `limits.in_flight`
    InFlight,
    /// `limits.gas_per_hour`
    GasPerHour,
}

impl Limit {
    /// Its key in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WritesPerSecond => "limits.writes_per_second",
            Self::InFlight => "limits.in_flight",
            Self::GasPerHour => "limits.gas_per_hour",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What holds back the next transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttled {
    /// The limit that is reached.
    pub limit: Limit,
    /// When there is room for it again; `None`: when others are final.
    pub again_in: Option<Duration>,
}

/// How many of those that were asked for may be begun: the first ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// How many.
    pub count: usize,
    /// What holds back the next one, if there is a next one.
    pub throttled: Option<Throttled>,
}

/// What the journal holds of a chain, and the time by its clock, in microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    /// Now.
    pub now_us: i64,
    /// Transactions that are signed and not final.
    pub live: u64,
    /// When a whole second's writes may go at once again.
    pub whole_at_us: i64,
    /// Gas by minutes since 1970, in their order.
    pub gas: Vec<(i64, u64)>,
}

impl Usage {
    /// The minute that it is.
    pub fn minute(&self) -> i64 {
        self.now_us.div_euclid(MINUTE_US)
    }

    /// The first minute that still counts.
    pub fn oldest_minute(&self) -> i64 {
        self.minute() - MINUTES + 1
    }

    /// The gas of the minute that it is.
    pub fn gas_of_minute(&self) -> u64 {
        self.gas.iter().filter(|(minute, _)| *minute == self.minute()).map(|(_, gas)| *gas).sum()
    }

    /// Forgets what is over. What a clock that was set back had noted counts as begun now: that grants no more than is
    /// allowed, and holds nothing back for longer than a limit says.
    fn set_right(&mut self, limits: &Limits) {
        let (now, oldest) = (self.minute(), self.oldest_minute());
        let ahead: u64 = self.gas.iter().filter(|(minute, _)| *minute > now).map(|(_, gas)| *gas).sum();
        self.gas.retain(|(minute, _)| (oldest..=now).contains(minute));
        self.add_gas(ahead);
        if let Some(rate) = limits.writes_per_second {
            self.whole_at_us = self.whole_at_us.clamp(self.now_us, self.now_us + whole_us(rate));
        }
    }

    fn add_gas(&mut self, gas: u64) {
        let minute = self.minute();
        match self.gas.last_mut().filter(|(last, _)| *last == minute) {
            Some((_, sum)) => *sum = sum.saturating_add(gas),
            None if gas > 0 => self.gas.push((minute, gas)),
            None => {}
        }
    }

    /// How long until `gas` fits under `limit`, which it does by itself.
    fn gas_fits_in(&self, limit: Gas, gas: Gas) -> Duration {
        let mut used: u64 = self.gas.iter().map(|(_, gas)| *gas).sum();
        for (minute, freed) in &self.gas {
            used = used.saturating_sub(*freed);
            if used.saturating_add(gas.0) <= limit.0 {
                return micros((minute + MINUTES).saturating_mul(MINUTE_US) - self.now_us);
            }
        }
        micros(MINUTES * MINUTE_US)
    }
}

impl Limits {
    /// There is none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// How many transactions with these gas limits may be begun now. Each must fit under `gas_per_hour` by itself.
    pub fn grant(&self, usage: &Usage, wanted: &[Gas]) -> Granted {
        self.take(&mut usage.clone(), wanted)
    }

    /// The same, and `usage` is what it is once they are begun.
    pub fn take(&self, usage: &mut Usage, wanted: &[Gas]) -> Granted {
        usage.set_right(self);
        let room = [
            self.writes_per_second.map(|rate| self.writes_now(usage, rate)),
            self.in_flight.map(|most| (usize_of(most.saturating_sub(usage.live)), Limit::InFlight)),
            self.gas_per_hour.map(|most| (fitting(usage, most, wanted), Limit::GasPerHour)),
        ];
        // Of several that hold at the same transaction, the one that holds for longest.
        let least = room.into_iter().flatten().min_by_key(|(count, limit)| (*count, std::cmp::Reverse(*limit)));
        let held = least.filter(|(count, _)| *count < wanted.len());
        let count = held.map_or(wanted.len(), |(count, _)| count);
        let (begun, rest) = wanted.split_at(count);
        if let Some(rate) = self.writes_per_second {
            usage.whole_at_us += i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(share_us(rate));
        }
        if self.gas_per_hour.is_some() {
            usage.add_gas(begun.iter().fold(0, |sum: u64, gas| sum.saturating_add(gas.0)));
        }
        usage.live = usage.live.saturating_add(count as u64);
        let throttled = held.map(|(_, limit)| Throttled { limit, again_in: self.again_in(usage, limit, rest) });
        Granted { count, throttled }
    }

    fn writes_now(&self, usage: &Usage, rate: u32) -> (usize, Limit) {
        let room_us = usage.now_us + whole_us(rate) - usage.whole_at_us;
        (usize::try_from(room_us / share_us(rate)).unwrap_or(0), Limit::WritesPerSecond)
    }

    fn again_in(&self, usage: &Usage, limit: Limit, rest: &[Gas]) -> Option<Duration> {
        match limit {
            Limit::InFlight => None,
            Limit::WritesPerSecond => self.writes_per_second.map(|rate| {
                // All but one share is used when the bucket has room for one.
                micros(usage.whole_at_us + share_us(rate) - whole_us(rate) - usage.now_us)
            }),
            Limit::GasPerHour => self.gas_per_hour.zip(rest.first()).map(|(most, gas)| usage.gas_fits_in(most, *gas)),
        }
    }
}

/// How long one write takes of the second; rounded up, so that a second never has more than it may.
fn share_us(rate: u32) -> i64 {
    SECOND_US.saturating_add(i64::from(rate) - 1) / i64::from(rate.max(1))
}

fn whole_us(rate: u32) -> i64 {
    share_us(rate) * i64::from(rate)
}

fn fitting(usage: &Usage, most: Gas, wanted: &[Gas]) -> usize {
    let used: u64 = usage.gas.iter().fold(0, |sum: u64, (_, gas)| sum.saturating_add(*gas));
    let sums = wanted.iter().scan(used, |sum, gas| {
        *sum = sum.saturating_add(gas.0);
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= most.0).count()
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn micros(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_000 * MINUTE_US;
    const WRITE: Gas = Gas(21_000);

    fn at(now_us: i64) -> Usage {
        Usage { now_us, ..Usage::default() }
    }

    fn writes(rate: u32) -> Limits {
        Limits { writes_per_second: Some(rate), ..Limits::default() }
    }

    fn gas(most: u64) -> Limits {
        Limits { gas_per_hour: Some(Gas(most)), ..Limits::default() }
    }

    fn throttled(limit: Limit, again_in: Option<Duration>) -> Option<Throttled> {
        Some(Throttled { limit, again_in })
    }

    #[test]
    fn without_limits_everything_goes() {
        assert!(Limits::default().is_none());
        assert_eq!(Limits::default().grant(&at(NOW), &[WRITE; 9]), Granted { count: 9, throttled: None });
    }

    #[test]
    fn a_second_without_writes_gives_a_seconds_worth_and_no_more() {
        let mut usage = at(NOW);
        let limits = writes(4);
        let wait = throttled(Limit::WritesPerSecond, Some(Duration::from_millis(250)));
        assert_eq!(limits.take(&mut usage, &[WRITE; 9]), Granted { count: 4, throttled: wait });
        usage.now_us += 249_999;
        assert_eq!(limits.grant(&usage, &[WRITE]).count, 0);
        usage.now_us += 1;
        assert_eq!(limits.take(&mut usage, &[WRITE]), Granted { count: 1, throttled: None });
        usage.now_us += 3_600 * SECOND_US;
        assert_eq!(limits.take(&mut usage, &[WRITE; 9]).count, 4, "what is not used is not saved up");
    }

    #[test]
    fn a_clock_that_is_set_back_gives_nothing_and_holds_back_no_longer_than_a_second() {
        let mut usage = at(NOW);
        let limits = writes(3);
        limits.take(&mut usage, &[WRITE; 3]);
        usage.now_us -= 86_400 * SECOND_US;
        let held = limits.take(&mut usage, &[WRITE]);
        assert_eq!((held.count, held.throttled.unwrap().again_in), (0, Some(Duration::from_micros(333_334))));
        usage.now_us += 333_334;
        assert_eq!(limits.take(&mut usage, &[WRITE; 3]).count, 1);
    }

    #[test]
    fn as_many_are_in_flight_as_allowed() {
        let limits = Limits { in_flight: Some(5), ..Limits::default() };
        let with = |live| limits.grant(&Usage { live, ..at(NOW) }, &[WRITE; 3]);
        let held = throttled(Limit::InFlight, None);
        assert_eq!(with(0), Granted { count: 3, throttled: None });
        assert_eq!(with(3), Granted { count: 2, throttled: held });
        assert_eq!(with(9), Granted { count: 0, throttled: held });
    }

    #[test]
    fn gas_counts_for_an_hour_and_up_to_a_minute_more() {
        let mut usage = at(NOW + 30 * SECOND_US);
        let limits = gas(50_000);
        let held = limits.take(&mut usage, &[WRITE; 3]);
        let wait = Duration::from_secs(60 * 60 + 30);
        assert_eq!(held, Granted { count: 2, throttled: throttled(Limit::GasPerHour, Some(wait)) });
        assert_eq!((usage.gas_of_minute(), usage.minute()), (42_000, 1_000));
        usage.now_us += 3_630 * SECOND_US - 1;
        assert_eq!(limits.grant(&usage, &[WRITE]).count, 0);
        usage.now_us += 1;
        assert_eq!(limits.take(&mut usage, &[WRITE]).count, 1);
        assert_eq!(usage.gas, [(1_061, 21_000)], "what is over is forgotten");
    }

    #[test]
    fn gas_noted_by_a_clock_that_was_ahead_counts_for_an_hour_from_now() {
        let mut usage = Usage { gas: vec![(990, 5), (1_000, 10), (5_000, 20), (9_000, 10)], ..at(NOW) };
        let limits = gas(45);
        assert_eq!(limits.take(&mut usage, &[Gas(1)]).count, 0);
        assert_eq!(usage.gas, [(990, 5), (1_000, 40)]);
        usage.now_us += 61 * MINUTE_US;
        assert_eq!(limits.take(&mut usage, &[Gas(45)]).count, 1);
    }

    #[test]
    fn of_two_limits_the_nearer_one_holds() {
        let limits = Limits { writes_per_second: Some(10), in_flight: Some(2), gas_per_hour: Some(Gas(63_000)) };
        assert_eq!(limits.grant(&at(NOW), &[WRITE; 9]).throttled.unwrap().limit, Limit::InFlight);
        let limits = Limits { in_flight: Some(3), ..limits };
        assert_eq!(limits.grant(&at(NOW), &[WRITE; 9]).throttled.unwrap().limit, Limit::GasPerHour, "for longer");
    }

    proptest! {
        /// Whoever asks whenever for however much.
        #[test]
        fn never_more_than_allowed(
            rate in 1u32..50,
            most in 21_000u64..200_000,
            steps in prop::collection::vec((0i64..900 * SECOND_US, 1usize..9), 1..60),
        ) {
            let limits = Limits { writes_per_second: Some(rate), in_flight: None, gas_per_hour: Some(Gas(most)) };
            let mut usage = at(NOW);
            let mut begun: Vec<(i64, usize)> = Vec::new();
            for (step, wanted) in steps {
                usage.now_us += step;
                let granted = limits.take(&mut usage, &vec![WRITE; wanted]);
                begun.push((usage.now_us, granted.count));
                let within = |us: i64| -> usize {
                    begun.iter().filter(|(at, _)| *at > usage.now_us - us).map(|(_, count)| *count).sum()
                };
                prop_assert!(within(SECOND_US) <= 2 * rate as usize);
                prop_assert!(within(60 * MINUTE_US) as u64 * WRITE.0 <= most);
                if let Some(Throttled { limit, again_in: Some(wait) }) = granted.throttled {
                    let alone = match limit {
                        Limit::GasPerHour => Limits { writes_per_second: None, ..limits },
                        Limit::WritesPerSecond | Limit::InFlight => Limits { gas_per_hour: None, ..limits },
                    };
                    let mut later = usage.clone();
                    later.now_us += i64::try_from(wait.as_micros()).unwrap() - 1;
                    prop_assert_eq!(alone.grant(&later, &[WRITE]).count, 0);
                    later.now_us += 1;
                    prop_assert_eq!(alone.grant(&later, &[WRITE]).count, 1, "just then");
                }
            }
        }
    }
}
