//! How much may be begun now, over all lanes of a chain: transactions for each second, unfinished ones at once, gas for
//! each hour, value and fees for each day. What is begun already is ended whatever the limits say: replacements, cancellations and fillers do not count.

use std::time::Duration;

use crate::model::words::words;
use crate::model::{Gas, Wei};

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;

/// A sliding window of slots: a slot counts until its end is this long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    slot_us: i64,
    slots: i64,
}

pub const HOUR: Span = Span { slot_us: MINUTE_US, slots: 61 };
/// A day, by quarters of an hour.
pub const DAY: Span = Span { slot_us: 15 * MINUTE_US, slots: 97 };

/// Sums by slots since 1970, in their order.
pub type Sums = Vec<(i64, u128)>;

impl Span {
    /// Returns the slot that it is.
    pub fn slot(self, now_us: i64) -> i64 {
        now_us.div_euclid(self.slot_us)
    }

    pub fn oldest(self, now_us: i64) -> i64 {
        self.slot(now_us) - self.slots + 1
    }

    /// Returns the sum of the slot that it is.
    pub fn now(self, now_us: i64, sums: &Sums) -> u128 {
        sums.iter().filter(|(slot, _)| *slot == self.slot(now_us)).map(|(_, sum)| *sum).sum()
    }

    /// Forgets what is over. What a clock that was set back had noted counts as begun now: that grants no more than is
    /// allowed, and holds nothing back for longer than a limit says.
    fn set_right(self, now_us: i64, sums: &mut Sums) {
        let (now, oldest) = (self.slot(now_us), self.oldest(now_us));
        let ahead =
            sums.iter().filter(|(slot, _)| *slot > now).fold(0, |sum: u128, (_, more)| sum.saturating_add(*more));
        sums.retain(|(slot, _)| (oldest..=now).contains(slot));
        self.add(now_us, sums, ahead);
    }

    fn add(self, now_us: i64, sums: &mut Sums, amount: u128) {
        let now = self.slot(now_us);
        match sums.last_mut().filter(|(last, _)| *last == now) {
            Some((_, sum)) => *sum = sum.saturating_add(amount),
            None if amount > 0 => sums.push((now, amount)),
            None => {}
        }
    }

    /// Returns how long until `amount` fits under `most`, which it does by itself.
    fn fits_in(self, now_us: i64, sums: &Sums, most: u128, amount: u128) -> Duration {
        let mut used = total(sums);
        for (slot, freed) in sums {
            used = used.saturating_sub(*freed);
            if used.saturating_add(amount) <= most {
                return micros((slot + self.slots).saturating_mul(self.slot_us) - now_us);
            }
        }
        micros(self.slots * self.slot_us)
    }
}

/// The share of a new transaction in the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Share {
    pub gas: Gas,
    pub value: Wei,
    /// The most that its gas may cost, as it is first offered.
    pub fee: Wei,
}

/// The operator's limits; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// New transactions for each second. As many may go at once after a second without any.
    pub writes_per_second: Option<u32>,
    pub in_flight: Option<u64>,
    /// The gas limits of new transactions, over an hour.
    pub gas_per_hour: Option<Gas>,
    pub value_per_day: Option<Wei>,
    /// Highest fees of new transactions, over a day.
    pub fee_per_day: Option<Wei>,
}

words!(
    /// A limit, by its key in the configuration.
    Limit {
        WritesPerSecond = "limits.writes_per_second",
        InFlight = "limits.in_flight",
        GasPerHour = "limits.gas_per_hour",
        ValuePerDay = "policy.value_per_day",
        FeePerDay = "policy.fee_per_day",
    }
);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttled {
    pub limit: Limit,
    /// The time until there is room for it again; `None`: when others are final.
    pub again_in: Option<Duration>,
}

/// Grants the first of those that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    pub count: usize,
    /// The limit that holds back the next one, if there is one.
    pub throttled: Option<Throttled>,
}

/// The use of a chain's limits, and the time by the journal's clock in microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage {
    pub now_us: i64,
    pub live: u64,
    /// The time at which a whole second's writes may go at once again.
    pub whole_at_us: i64,
    /// Within [`HOUR`].
    pub gas: Sums,
    /// Within [`DAY`].
    pub value: Sums,
    /// Within [`DAY`].
    pub fee: Sums,
}

impl Usage {
    /// Takes value and fees of a day's slots, in their order.
    pub fn add_days(&mut self, days: Vec<(i64, Wei, Wei)>) {
        self.value.extend(days.iter().map(|(slot, value, _)| (*slot, value.0)));
        self.fee.extend(days.iter().map(|(slot, _, fee)| (*slot, fee.0)));
    }

    fn set_right(&mut self, limits: &Limits) {
        HOUR.set_right(self.now_us, &mut self.gas);
        DAY.set_right(self.now_us, &mut self.value);
        DAY.set_right(self.now_us, &mut self.fee);
        if let Some(rate) = limits.writes_per_second {
            self.whole_at_us = self.whole_at_us.clamp(self.now_us, self.now_us + whole_us(rate));
        }
    }
}

/// A limit on what is added up over a span of time.
struct Budget {
    limit: Limit,
    span: Span,
    most: u128,
    amount: fn(&Share) -> u128,
    sums: fn(&mut Usage) -> &mut Sums,
}

impl Limits {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub fn is_by_day(&self) -> bool {
        self.value_per_day.is_some() || self.fee_per_day.is_some()
    }

    /// Returns how many of these transactions may be begun now, in their order. Each must fit by itself.
    pub fn grant(&self, usage: &Usage, wanted: &[Share]) -> Granted {
        self.take(&mut usage.clone(), wanted)
    }

    /// Returns the same, and `usage` is what it is once they are begun.
    pub fn take(&self, usage: &mut Usage, wanted: &[Share]) -> Granted {
        usage.set_right(self);
        let fitting = |budget: &Budget, sums: &Sums| fitting(sums, budget.most, wanted.iter().map(budget.amount));
        let mut room: Vec<_> =
            self.budgets().map(|budget| (fitting(&budget, (budget.sums)(usage)), budget.limit)).collect();
        room.extend(self.writes_per_second.map(|rate| (writes_now(usage, rate), Limit::WritesPerSecond)));
        room.extend(self.in_flight.map(|most| (usize_of(most.saturating_sub(usage.live)), Limit::InFlight)));
        // Of several that hold at the same transaction, the one that holds for longest.
        let least = room.into_iter().min_by_key(|(count, limit)| (*count, std::cmp::Reverse(*limit)));
        let held = least.filter(|(count, _)| *count < wanted.len());
        let count = held.map_or(wanted.len(), |(count, _)| count);
        let (begun, rest) = wanted.split_at(count);
        if let Some(rate) = self.writes_per_second {
            usage.whole_at_us += i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(share_us(rate));
        }
        for Budget { span, amount, sums, .. } in self.budgets() {
            let sum = begun.iter().map(amount).fold(0, u128::saturating_add);
            span.add(usage.now_us, sums(usage), sum);
        }
        usage.live = usage.live.saturating_add(count as u64);
        let throttled = held.map(|(_, limit)| Throttled { limit, again_in: self.again_in(usage, limit, rest.first()) });
        Granted { count, throttled }
    }

    fn budgets(&self) -> impl Iterator<Item = Budget> + use<> {
        let gas = self.gas_per_hour.map(|most| {
            let amount = |share: &Share| share.gas.0.into();
            Budget { limit: Limit::GasPerHour, span: HOUR, most: most.0.into(), amount, sums: |usage| &mut usage.gas }
        });
        let value = self.value_per_day.map(|Wei(most)| {
            let amount = |share: &Share| share.value.0;
            Budget { limit: Limit::ValuePerDay, span: DAY, most, amount, sums: |usage| &mut usage.value }
        });
        let fee = self.fee_per_day.map(|Wei(most)| {
            let amount = |share: &Share| share.fee.0;
            Budget { limit: Limit::FeePerDay, span: DAY, most, amount, sums: |usage| &mut usage.fee }
        });
        [gas, value, fee].into_iter().flatten()
    }

    fn again_in(&self, usage: &mut Usage, limit: Limit, next: Option<&Share>) -> Option<Duration> {
        let now = usage.now_us;
        match limit {
            Limit::InFlight => None,
            Limit::WritesPerSecond => self.writes_per_second.map(|rate| {
                // All but one share is used when the bucket has room for one.
                micros(usage.whole_at_us + share_us(rate) - whole_us(rate) - now)
            }),
            Limit::GasPerHour | Limit::ValuePerDay | Limit::FeePerDay => {
                let Budget { span, most, amount, sums, .. } = self.budgets().find(|budget| budget.limit == limit)?;
                Some(span.fits_in(now, sums(usage), most, amount(next?)))
            }
        }
    }
}

fn writes_now(usage: &Usage, rate: u32) -> usize {
    let room_us = usage.now_us + whole_us(rate) - usage.whole_at_us;
    usize::try_from(room_us / share_us(rate)).unwrap_or(0)
}

/// Returns how long one write takes of the second; rounded up, so that a second never has more than it may.
fn share_us(rate: u32) -> i64 {
    SECOND_US.saturating_add(i64::from(rate) - 1) / i64::from(rate.max(1))
}

fn whole_us(rate: u32) -> i64 {
    share_us(rate) * i64::from(rate)
}

fn total(sums: &Sums) -> u128 {
    sums.iter().fold(0, |sum: u128, (_, more)| sum.saturating_add(*more))
}

fn fitting(sums: &Sums, most: u128, wanted: impl Iterator<Item = u128>) -> usize {
    let sums = wanted.scan(total(sums), |sum, more| {
        *sum = sum.saturating_add(more);
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= most).count()
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
    const WRITE: Share = Share { gas: Gas(21_000), value: Wei(3), fee: Wei(7) };

    fn at(now_us: i64) -> Usage {
        Usage { now_us, ..Usage::default() }
    }

    fn writes(rate: u32) -> Limits {
        Limits { writes_per_second: Some(rate), ..Limits::default() }
    }

    fn gas(most: u64) -> Limits {
        Limits { gas_per_hour: Some(Gas(most)), ..Limits::default() }
    }

    fn of_gas(gas: u64) -> Share {
        Share { gas: Gas(gas), ..WRITE }
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
        assert_eq!((HOUR.now(usage.now_us, &usage.gas), HOUR.slot(usage.now_us)), (42_000, 1_000));
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
        assert_eq!(limits.take(&mut usage, &[of_gas(1)]).count, 0);
        assert_eq!(usage.gas, [(990, 5), (1_000, 40)]);
        usage.now_us += 61 * MINUTE_US;
        assert_eq!(limits.take(&mut usage, &[of_gas(45)]).count, 1);
    }

    #[test]
    fn value_and_fees_count_for_a_day_and_up_to_a_quarter_of_an_hour_more() {
        let mut usage = at(NOW + 10 * MINUTE_US);
        let limits = Limits { value_per_day: Some(Wei(6)), fee_per_day: Some(Wei(100)), ..Limits::default() };
        let held = limits.take(&mut usage, &[WRITE; 3]);
        let quarter = DAY.slot(usage.now_us);
        let wait = Duration::from_micros(((quarter + 97) * 15 * MINUTE_US - usage.now_us) as u64);
        assert_eq!(held, Granted { count: 2, throttled: throttled(Limit::ValuePerDay, Some(wait)) });
        assert_eq!((&usage.value, &usage.fee), (&vec![(quarter, 6)], &vec![(quarter, 14)]));
        let free = Share { value: Wei(0), ..WRITE };
        assert_eq!(limits.grant(&usage, &[free; 3]).count, 3, "what pays nothing goes on");
        usage.now_us += 24 * 60 * MINUTE_US - 10 * MINUTE_US;
        assert_eq!(limits.grant(&usage, &[WRITE]).count, 0, "a day later the quarter may not be over");
        usage.now_us += 20 * MINUTE_US;
        assert_eq!(limits.grant(&usage, &[WRITE; 2]).count, 2);
        let full = Usage { value: vec![(DAY.slot(usage.now_us), u128::MAX)], ..usage };
        assert_eq!(limits.grant(&full, &[WRITE]).count, 0);
    }

    #[test]
    fn of_two_limits_the_nearer_one_holds() {
        let limits = Limits {
            writes_per_second: Some(10),
            in_flight: Some(2),
            gas_per_hour: Some(Gas(63_000)),
            ..Limits::default()
        };
        assert_eq!(limits.grant(&at(NOW), &[WRITE; 9]).throttled.unwrap().limit, Limit::InFlight);
        let limits = Limits { in_flight: Some(3), ..limits };
        assert_eq!(limits.grant(&at(NOW), &[WRITE; 9]).throttled.unwrap().limit, Limit::GasPerHour, "for longer");
    }

    proptest! {
        /// Holds for any requests at any time.
        #[test]
        fn never_more_than_allowed(
            rate in 1u32..50,
            most in 21_000u64..200_000,
            fees in 7u64..200,
            steps in prop::collection::vec((0i64..900 * SECOND_US, 1usize..9), 1..60),
        ) {
            let limits = Limits {
                writes_per_second: Some(rate),
                gas_per_hour: Some(Gas(most)),
                fee_per_day: Some(Wei(u128::from(fees))),
                ..Limits::default()
            };
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
                prop_assert!(within(60 * MINUTE_US) as u64 * WRITE.gas.0 <= most);
                prop_assert!(within(24 * 60 * MINUTE_US) as u64 * 7 <= fees);
                if let Some(Throttled { limit, again_in: Some(wait) }) = granted.throttled {
                    let none = Limits::default();
                    let alone = match limit {
                        Limit::GasPerHour => Limits { gas_per_hour: limits.gas_per_hour, ..none },
                        Limit::FeePerDay => Limits { fee_per_day: limits.fee_per_day, ..none },
                        Limit::WritesPerSecond => Limits { writes_per_second: limits.writes_per_second, ..none },
                        Limit::InFlight | Limit::ValuePerDay => none,
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
