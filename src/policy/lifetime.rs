//! Until when a request is of use: what its producer says, and what the operator's `expires` says. Once something is signed for
//! it, none of this counts any more.

use std::time::Duration;

use crate::model::headers::header;
use crate::model::{Cause, HeaderValue, Message, Reason, Timestamp};
use crate::policy::postpone::{LATEST, time_in};

/// Limits the time for which a message is of use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lifetime {
    ends: Option<Timestamp>,
    /// Counted from when the message is taken in.
    expires: Option<Duration>,
}

impl Lifetime {
    /// Reads it from a message. What an operator has sent back begins anew: of what its producer says, `cw-not-after` counts
    /// alone, and `expires` counts from when it is taken in.
    ///
    /// # Errors
    /// `cw-not-after` is wrong: the text says how.
    pub fn read(message: &Message, is_replay: bool, expires: Option<Duration>) -> Result<Self, String> {
        let not_after = time_in(&message.headers, header::NOT_AFTER)?;
        if let (Some(not_after), Some(not_before)) = (not_after, time_in(&message.headers, header::NOT_BEFORE)?)
            && not_before >= not_after
        {
            let (before, after) = (header::NOT_BEFORE, header::NOT_AFTER);
            return Err(format!(
                "header {before} is {not_before}, and header {after} is {not_after}, which is not later"
            ));
        }
        let published_at = published_at(message).filter(|_| !is_replay);
        let since = |lives: Option<Duration>| Some(published_at?.after(lives?));
        let ends = [not_after, since(expiration(message)), since(expires)].into_iter().flatten().min();
        Ok(Self { ends, expires: expires.filter(|_| published_at.is_none()) })
    }

    /// Returns when it ends for a message that is taken in at this time.
    pub fn ends(&self, taken_at: Timestamp) -> Option<Timestamp> {
        let counted = self.expires.map(|expires| taken_at.after(expires));
        [self.ends, counted].into_iter().flatten().min()
    }
}

/// Returns why nothing is signed for a request that lives until `ends`, if that has passed.
pub fn expired(ends: Option<Timestamp>, now: Timestamp) -> Option<Cause> {
    let ends = ends.filter(|ends| *ends <= now)?;
    let detail = format!("it was of use until {ends}, and nothing was signed for it by then");
    Some(Cause::new(Reason::Expired, detail))
}

/// Returns the producer's `timestamp`. One beyond 2100 is no time in seconds, and counts as none.
fn published_at(message: &Message) -> Option<Timestamp> {
    let seconds = i64::try_from(message.properties.timestamp?).ok()?;
    seconds.checked_mul(1000).map(Timestamp).filter(|at| *at < LATEST)
}

/// Returns the producer's `expiration`, which copies have as a header. RabbitMQ takes a number of milliseconds alone.
fn expiration(message: &Message) -> Option<Duration> {
    let of_copy = || match message.headers.get(header::ORIGINAL_EXPIRATION) {
        Some(HeaderValue::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    let text = message.properties.expiration.as_deref().or_else(of_copy)?;
    text.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Headers, Properties};

    const NOW: Timestamp = Timestamp(1_700_000_000_000);
    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp(NOW.0 + seconds * 1000))
    }

    struct Case {
        not_after: Option<&'static str>,
        timestamp: Option<u64>,
        expiration: Option<&'static str>,
        original_expiration: Option<&'static str>,
        expires: Option<u64>,
        is_replay: bool,
    }

    const NONE: Case = Case {
        not_after: None,
        timestamp: None,
        expiration: None,
        original_expiration: None,
        expires: None,
        is_replay: false,
    };

    fn ends(case: &Case) -> Option<Timestamp> {
        let headers = [(header::NOT_AFTER, case.not_after), (header::ORIGINAL_EXPIRATION, case.original_expiration)];
        let headers = headers.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into())));
        let message = Message {
            headers: headers.collect(),
            properties: Properties {
                timestamp: case.timestamp,
                expiration: case.expiration.map(str::to_owned),
                ..Properties::default()
            },
            ..Message::default()
        };
        let expires = case.expires.map(|seconds| SECOND * u32::try_from(seconds).unwrap());
        Lifetime::read(&message, case.is_replay, expires).unwrap().ends(NOW)
    }

    #[test]
    fn the_earliest_end_that_something_says_counts() {
        let (sent, ten) = (Some(1_700_000_000 - 60), Some("10000"));
        let later = Some("2023-11-14T22:13:30Z");
        for (name, case, expected) in [
            ("nothing", NONE, None),
            ("a time", Case { not_after: later, ..NONE }, at(10)),
            ("an expiration from no time", Case { expiration: ten, ..NONE }, None),
            ("an expiration from a time", Case { expiration: ten, timestamp: sent, ..NONE }, at(-50)),
            ("that of a copy", Case { original_expiration: ten, timestamp: sent, ..NONE }, at(-50)),
            ("milliseconds for seconds", Case { expiration: ten, timestamp: Some(1_700_000_000_000), ..NONE }, None),
            ("no number", Case { expiration: Some("soon"), timestamp: sent, ..NONE }, None),
            ("the route, from now", Case { expires: Some(30), ..NONE }, at(30)),
            ("the route, from a time", Case { expires: Some(30), timestamp: sent, ..NONE }, at(-30)),
            ("the route, from no sound time", Case { expires: Some(30), timestamp: Some(u64::MAX), ..NONE }, at(30)),
            ("two", Case { expires: Some(30), not_after: later, ..NONE }, at(10)),
            ("a replay, by the route", Case { expires: Some(30), timestamp: sent, is_replay: true, ..NONE }, at(30)),
            ("a replay", Case { original_expiration: ten, timestamp: sent, is_replay: true, ..NONE }, None),
            ("a replay with a time", Case { not_after: later, is_replay: true, ..NONE }, at(10)),
        ] {
            assert_eq!(ends(&case), expected, "{name}");
        }
    }

    #[test]
    fn a_time_that_cannot_be_is_refused() {
        let of = |pairs: &[(&str, HeaderValue)]| {
            let headers = pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Headers>();
            Lifetime::read(&Message { headers, ..Message::default() }, false, None)
        };
        for value in ["soon".into(), HeaderValue::Int(7), HeaderValue::Time(u64::MAX), "2100-01-01T00:00:00Z".into()] {
            assert!(of(&[(header::NOT_AFTER, value)]).unwrap_err().contains("cw-not-after"));
        }
        let (early, late) = (HeaderValue::Time(1_700_000_000), HeaderValue::Time(1_700_000_001));
        assert!(of(&[(header::NOT_BEFORE, early.clone()), (header::NOT_AFTER, late.clone())]).is_ok());
        for (before, after) in [(late.clone(), early.clone()), (late.clone(), late)] {
            let fault = of(&[(header::NOT_BEFORE, before), (header::NOT_AFTER, after)]).unwrap_err();
            assert!(fault.contains("which is not later"), "{fault}");
        }
    }

    #[test]
    fn a_request_is_of_use_until_its_end_and_not_at_it() {
        assert_eq!(expired(None, NOW), None);
        assert_eq!(expired(at(1), NOW), None);
        for ends in [at(0), at(-1)] {
            assert_eq!(expired(ends, NOW).unwrap().routing_key(), "invalid.expired");
        }
    }
}
