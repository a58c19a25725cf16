//! Passages: dated messages of our own that go through the work queue from time to time. What has come out of the queue shows
//! what is not in it any more, and only that may be forgotten. AMQP itself does not say how old waiting messages are.

use std::time::Duration;

use crate::model::Timestamp;

/// Between passages at most.
const INTERVAL: Duration = Duration::from_secs(3600);
/// Passages in each `journal.retention` at least.
const IN_RETENTION: u32 = 24;
/// What a consumer held that died is back in the queue after this: heartbeats end its connection within 30 s.
pub const GRACE: Duration = Duration::from_secs(60);
/// A passage without a publisher confirm is published again after this.
const REPUBLISH: Duration = Duration::from_secs(60);
/// One that does not come out is given up after so many intervals, and another is sent: the queue may have been purged.
const PATIENCE: u32 = 24;
/// `doctor` warns when nothing may be forgotten that is younger than so many times `journal.retention`.
pub const LATE: u32 = 2;
/// Clocks agree when they are no further apart.
const CLOCKS_AGREE: Duration = Duration::from_secs(24 * 3600);

/// Returns the interval between passages.
pub fn interval(retention: Duration) -> Duration {
    INTERVAL.min(retention / IN_RETENTION)
}

/// The newest passage, as the journal has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// Read before it was published for the first time.
    pub published_at: Timestamp,
    pub is_confirmed: bool,
    pub passed_at: Option<Timestamp>,
}

/// What to send now.
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
        assert_eq!(interval(30 * 24 * HOUR), HOUR);
        assert_eq!(interval(HOUR), Duration::from_secs(150));
        assert!(interval(HOUR) > 2 * GRACE, "what a dead consumer held is back before the next one is sent");
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
