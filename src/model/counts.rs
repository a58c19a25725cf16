//! The counts of a copy, in its headers.

use crate::model::headers::{HeaderValue, Headers, header};
use crate::model::request::Generation;

/// Limits `cw-attempt` and `cw-replay-count`. A worker makes fewer tries, and at the highest number a further replay would be taken for
/// the one before.
const MOST_RETRIES: u32 = 1000;
const MOST_REPLAYS: u32 = 1_000_000;

/// A header of ours that does not hold what it must.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("header {name} must be a whole number from 0 to {most}, but is {found}")]
pub struct BadHeader {
    pub name: &'static str,
    pub most: u32,
    pub found: String,
}

impl Generation {
    /// Reads the counts from a message's headers; an absent header means zero.
    ///
    /// # Errors
    /// When a header is there but is not a whole number in range.
    pub fn read_from(headers: &Headers) -> Result<Self, BadHeader> {
        let replay = read_count(headers, header::REPLAY_COUNT, MOST_REPLAYS)?;
        Ok(Self { replay, retry: read_count(headers, header::ATTEMPT, MOST_RETRIES)? })
    }

    pub fn write_to(self, headers: &mut Headers) {
        headers.insert(header::ATTEMPT.to_owned(), HeaderValue::Int(self.retry.into()));
        if self.replay > 0 {
            headers.insert(header::REPLAY_COUNT.to_owned(), HeaderValue::Int(self.replay.into()));
        }
    }
}

fn read_count(headers: &Headers, name: &'static str, most: u32) -> Result<u32, BadHeader> {
    match headers.get(name) {
        None => Ok(0),
        Some(HeaderValue::Int(count)) => {
            let within = u32::try_from(*count).ok().filter(|count| *count <= most);
            within.ok_or_else(|| BadHeader { name, most, found: count.to_string() })
        }
        Some(other) => Err(BadHeader { name, most, found: format!("a value of type {}", other.type_name()) }),
    }
}
