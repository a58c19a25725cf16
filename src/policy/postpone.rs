//! Requests for a later time: when that is, and which wait queue takes a message on towards it.

use std::time::Duration;

use crate::model::headers::header;
use crate::model::{HeaderValue, Headers, Timestamp};

/// The begin of the year 2100. Later times are taken for mistakes: milliseconds for seconds, a wrong century.
pub const LATEST: Timestamp = Timestamp(4_102_444_800_000);

/// Returns the time before which a message is no request yet.
///
/// # Errors
/// The header is wrong: the text says how.
pub fn not_before(headers: &Headers) -> Result<Option<Timestamp>, String> {
    time_in(headers, header::NOT_BEFORE)
}

/// Returns the time in a header: an RFC 3339 text, or an AMQP timestamp in seconds.
///
/// # Errors
/// The header is wrong: the text says how.
pub fn time_in(headers: &Headers, name: &str) -> Result<Option<Timestamp>, String> {
    let time = match headers.get(name) {
        None => return Ok(None),
        Some(HeaderValue::Text(text)) => text.parse().map_err(|_| {
            format!("header {name} is {text:?}; expected RFC 3339, like 2027-01-31T18:30:00Z or with +02:00")
        })?,
        Some(HeaderValue::Time(seconds)) => Timestamp::default().after(Duration::from_secs(*seconds)),
        Some(other) => {
            return Err(format!("header {name} must be a text or a timestamp, but is of type {}", other.type_name()));
        }
    };
    if time >= LATEST {
        return Err(format!("header {name} is {time}; times before {LATEST} are taken"));
    }
    Ok(Some(time))
}

/// Returns the longest of these waits that does not end too late; the shortest where all do. `None` where there are
/// none.
pub fn hop(remaining: Duration, waits: &[Duration]) -> Option<Duration> {
    let fits = waits.iter().filter(|wait| **wait <= remaining).max();
    fits.or_else(|| waits.iter().min()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn read(value: HeaderValue) -> Result<Option<Timestamp>, String> {
        not_before(&Headers::from([(header::NOT_BEFORE.to_owned(), value)]))
    }

    #[test]
    fn times_are_read_in_any_zone() {
        assert_eq!(not_before(&Headers::new()), Ok(None));
        for text in [
            "2023-11-14T22:13:20Z",
            "2023-11-14T23:13:20+01:00",
            "2023-11-14T16:43:20.000-05:30",
            "2023-11-15T00:13:20+02:00",
        ] {
            assert_eq!(read(text.into()), Ok(Some(NOW)), "{text}");
        }
        assert_eq!(read(HeaderValue::Time(1_700_000_000)), Ok(Some(NOW)));
        assert_eq!(read("1970-01-01T00:30:00+01:00".into()), Ok(Some(Timestamp(0))), "long ago is long ago");
    }

    #[test]
    fn what_is_no_time_is_told() {
        for text in [
            "",
            "tomorrow",
            "2023-11-14",
            "2023-11-14T22:13:20",
            "2023-11-14T22:13:20+25:00",
            "2023-11-14T22:13:20+0100",
        ] {
            assert!(read(text.into()).unwrap_err().contains("expected RFC 3339"), "{text}");
        }
        assert!(read(HeaderValue::Int(1_700_000_000)).unwrap_err().contains("integer"));
        assert!(read("2100-01-01T00:00:00Z".into()).unwrap_err().contains("before 2100-01-01"));
        assert!(read(HeaderValue::Time(1_700_000_000_000)).is_err(), "milliseconds for seconds");
    }

    #[test]
    fn a_hop_is_as_long_as_may_be_and_ends_too_late_only_at_the_last() {
        let seconds = Duration::from_secs;
        let waits = [seconds(5), seconds(60), seconds(3600)];
        for (remaining, expected) in [(86_400, 3600), (3600, 3600), (3599, 60), (59, 5), (5, 5), (4, 5), (0, 5)] {
            assert_eq!(hop(seconds(remaining), &waits), Some(seconds(expected)), "{remaining}");
        }
        assert_eq!(hop(seconds(1), &[]), None);
    }
}
