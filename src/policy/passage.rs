//! Passages: dated messages of our own that go through the work queue from time to time. What has come out of the queue shows
//! what is not in it any more, and only that may be forgotten. AMQP itself does not say how old waiting messages are.

use std::time::Duration;

use crate::model::Timestamp;

/// Between passages at most.
const INTERVAL: Duration = Duration::from_secs(3600);
/// Passages in each `journal.retention` at least.
const IN_RETENTION: u32 = 24;
/// Passages that are kept. The broker's repeat of one is recognised by them.
pub const KEPT: u32 = 32;
/// Passages in the time for which a consumer may hold a message, at most: two that are further apart are among those kept.
const IN_HOLD: u32 = KEPT / 2;
/// After this, what a dead consumer held is back in the queue: heartbeats end its connection within 30 s.
pub const GRACE: Duration = Duration::from_secs(60);
/// A passage without a publisher confirm is published again after this.
const REPUBLISH: Duration = Duration::from_secs(60);
/// One that does not come out is given up after so many intervals, and another is sent: the queue may have been purged.
const PATIENCE: u32 = 24;
/// `doctor` warns when nothing may be forgotten that is younger than so many times `journal.retention`.
pub const LATE: u32 = 2;
/// Clocks agree when they are no further apart.
const CLOCKS_AGREE: Duration = Duration::from_secs(24 * 3600);

/// A band of priority. A quorum queue of RabbitMQ 4 has two, and what is in one overtakes what is in the other. In queues that
/// order by each priority, what came before the last of both has come out when both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Band {
    /// Priorities 0 to 4, and messages that have none.
    Low,
    /// Priorities from 5 on.
    High,
}

impl Band {
    pub const ALL: [Self; 2] = [Self::Low, Self::High];

    /// Returns the priority of a passage through it: the last of the low ones, and one of the high ones.
    pub fn priority(self) -> u8 {
        match self {
            Self::Low => 0,
            Self::High => 9,
        }
    }

    pub fn of(priority: Option<u8>) -> Self {
        if priority.is_some_and(|priority| priority > 4) { Self::High } else { Self::Low }
    }
}

/// Returns the interval between passages, where a consumer may hold a message for as long as `hold`.
pub fn interval(retention: Duration, hold: Duration) -> Duration {
    INTERVAL.min(retention / IN_RETENTION).max(hold / IN_HOLD)
}

/// Returns for how long a message may be at a consumer that does nothing with it: until the broker takes it back.
pub fn longest_hold(consumer_timeout: Duration) -> Duration {
    consumer_timeout.saturating_add(GRACE)
}

/// The newest passage, as the journal has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// Read before it was published for the first time.
    pub published_at: Timestamp,
    pub is_confirmed: bool,
    /// The time at which it had come out in both bands.
    pub passed_at: Option<Timestamp>,
}

/// Returns up to when all messages have come out of the queue and were taken in: what was in the queue when a passage was
/// published was at a consumer when the passage came out. One that does nothing loses it to the queue after `hold` at the
/// latest, and a passage that was published after that and has come out too has it before itself.
pub fn taken_in_up_to(passed: &[Newest], hold: Duration) -> Option<Timestamp> {
    let ends = |first: &&Newest| {
        let back_at = first.passed_at.map(|passed_at| passed_at.after(hold));
        back_at.is_some_and(|back_at| {
            passed.iter().any(|second| second.passed_at.is_some() && second.published_at >= back_at)
        })
    };
    passed.iter().filter(ends).map(|first| first.published_at).max()
}

/// Returns the time by which the broker must have had a retry that is lost if it still waits, where all that was in the work queue
/// up to `taken_in` has come out: it was there after the longest delay. The hold once more allows for clocks that differ, and for
/// a worker with another journal that has yet to stop.
pub fn lost_if_confirmed_by(taken_in: Timestamp, longest_wait: Duration, hold: Duration) -> Timestamp {
    taken_in.before(longest_wait.saturating_add(hold))
}

/// Says what to send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Nothing,
    /// The newest once more: the broker may not have it.
    Again,
    New,
}

/// Returns what to send now. One is on its way at a time. A clock that was set back waits no longer than one that was not.
pub fn next(newest: Option<Newest>, now: Timestamp, interval: Duration) -> Next {
    let Some(newest) = newest else { return Next::New };
    let is_past = |since: Timestamp, wait: Duration| now.0.abs_diff(since.0) >= millis(wait);
    match newest.passed_at {
        Some(passed_at) if is_past(passed_at, interval) => Next::New,
        Some(_) => Next::Nothing,
        None if is_past(newest.published_at, interval.saturating_mul(PATIENCE)) => Next::New,
        None if !newest.is_confirmed && is_past(newest.published_at, REPUBLISH) => Next::Again,
        None => Next::Nothing,
    }
}

/// Returns the clock's time if others agree with it: the database's, where it has one, and that of a block that was made
/// since this start. One that was set wrong by weeks would have requests forgotten weeks too early.
///
/// # Errors
/// What speaks against the clock, in words.
pub fn trusted(now: Timestamp, database: Option<Timestamp>, block: Option<Timestamp>) -> Result<Timestamp, String> {
    let agrees = |other: Timestamp| now.0.abs_diff(other.0) <= millis(CLOCKS_AGREE);
    if let Some(database) = database.filter(|database| !agrees(*database)) {
        return Err(format!("this host's clock says {now}, the journal's database {database}"));
    }
    match block {
        Some(block) if agrees(block) => Ok(now),
        Some(block) => Err(format!("this host's clock says {now}, the newest block {block}")),
        None => Err("no block was made since this start that could confirm this host's clock".to_owned()),
    }
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const NOON: Timestamp = Timestamp(1_700_000_000_000);

    fn after(wait: Duration) -> Timestamp {
        NOON.after(wait)
    }

    #[test]
    fn a_passage_is_sent_each_hour_or_more_often_where_little_is_kept() {
        for (retention, hold, expected) in [
            (30 * 24 * HOUR, HOUR / 2, HOUR),
            (HOUR, HOUR / 2, Duration::from_secs(150)),
            (30 * 24 * HOUR, 12 * HOUR, HOUR),
            (30 * 24 * HOUR, 32 * HOUR, 2 * HOUR),
        ] {
            assert_eq!(interval(retention, hold), expected, "{retention:?} {hold:?}");
            assert!(interval(retention, hold) * (KEPT - 2) > hold, "two that are far enough apart are kept");
        }
    }

    #[test]
    fn what_a_consumer_may_hold_is_waited_for_between_two_passages() {
        let minute = Duration::from_secs(60);
        let passage = |sent: u32, out: Option<u32>| Newest {
            published_at: after(sent * minute),
            is_confirmed: true,
            passed_at: out.map(|out| after(out * minute)),
        };
        for (hold, passed, expected) in [
            (30, vec![], None),
            (30, vec![passage(0, Some(1))], None),
            // The second was sent while a consumer may have held what came before the first.
            (30, vec![passage(0, Some(1)), passage(30, Some(31))], None),
            (30, vec![passage(0, Some(1)), passage(31, Some(32))], Some(0)),
            (30, vec![passage(0, Some(1)), passage(31, None)], None),
            (30, vec![passage(0, Some(1)), passage(20, Some(21)), passage(40, Some(41))], Some(0)),
            (30, vec![passage(0, Some(1)), passage(20, Some(21)), passage(51, Some(52))], Some(20)),
            // The first came out long after it was sent.
            (30, vec![passage(0, Some(90)), passage(100, Some(101))], None),
            (0, vec![passage(0, Some(1)), passage(1, Some(2))], Some(0)),
            (12 * 60, vec![passage(0, Some(1)), passage(60, Some(61))], None),
        ] {
            let found = taken_in_up_to(&passed, hold * minute);
            assert_eq!(found, expected.map(|expected: u32| after(expected * minute)), "{hold} {passed:?}");
        }
    }

    #[test]
    fn a_retry_is_lost_if_it_came_to_the_queue_before_what_has_all_come_out() {
        let minute = Duration::from_secs(60);
        assert_eq!(lost_if_confirmed_by(after(HOUR), 10 * minute, 30 * minute), after(20 * minute));
        assert_eq!(lost_if_confirmed_by(Timestamp(0), Duration::MAX, HOUR), Timestamp(-i64::MAX), "no overflow");
    }

    #[test]
    fn each_band_of_priority_has_a_passage_of_its_own() {
        for (priority, band) in [(None, Band::Low), (Some(0), Band::Low), (Some(4), Band::Low), (Some(5), Band::High)] {
            assert_eq!(Band::of(priority), band, "{priority:?}");
        }
        assert!(Band::ALL.iter().all(|band| Band::of(Some(band.priority())) == *band));
    }

    #[test]
    fn one_passage_is_on_its_way_at_a_time() {
        let newest = |is_confirmed, passed_at| Some(Newest { published_at: NOON, is_confirmed, passed_at });
        let minute = Duration::from_secs(60);
        for (found, now, expected) in [
            (None, NOON, Next::New),
            (newest(true, None), after(23 * HOUR), Next::Nothing),
            (newest(true, None), after(24 * HOUR), Next::New),
            (newest(false, None), after(minute / 2), Next::Nothing),
            (newest(false, None), after(minute), Next::Again),
            (newest(true, Some(after(minute))), after(HOUR), Next::Nothing),
            (newest(true, Some(after(minute))), after(HOUR + minute), Next::New),
            (newest(true, Some(after(minute))), NOON.before(2 * HOUR), Next::New),
            (newest(true, None), NOON.before(24 * HOUR), Next::New),
        ] {
            assert_eq!(next(found, now, HOUR), expected, "{found:?} {now}");
        }
    }

    #[test]
    fn a_clock_counts_that_the_database_and_a_new_block_agree_with() {
        let day = 24 * HOUR;
        let (near, far) = (Some(after(day)), Some(after(day + HOUR)));
        for (database, block, counts) in [
            (None, near, true),
            (near, near, true),
            (None, Some(NOON.before(day)), true),
            (None, None, false),
            (near, None, false),
            (far, near, false),
            (near, far, false),
            (None, Some(NOON.before(day + HOUR)), false),
        ] {
            assert_eq!(trusted(NOON, database, block).is_ok(), counts, "{database:?} {block:?}");
        }
    }
}
