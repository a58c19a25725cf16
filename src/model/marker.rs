//! The marker: a message at the broker that names the journal which serves a queue, and the start of an instance that left it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;
use crate::model::cause::cut;

/// A longer message is no marker.
const LONGEST_BYTES: usize = 4096;
/// A longer name is cut where it is read.
const LONGEST_NAME_BYTES: usize = 255;

/// Names a journal. Copies of a journal have the same one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JournalId(pub String);

/// A random text that tells a start from one with the same number in a copy of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StartToken(pub String);

/// One start of an instance, as its journal counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    pub journal: JournalId,
    /// Counts from 1.
    pub number: u64,
    pub token: StartToken,
}

/// The start of a journal that a marker names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedStart {
    pub journal: JournalId,
    pub number: u64,
}

/// An operator's permission to take a queue over from the journal whose start its marker named then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    pub by: String,
    pub at: Timestamp,
    pub from: MarkedStart,
}

/// Holds what the marker's message says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    pub journal: JournalId,
    /// The number of the start.
    pub start: u64,
    pub token: StartToken,
    /// The name that operators gave the instance.
    pub worker: String,
    pub host: String,
    pub pid: u32,
    pub at: Timestamp,
}

impl Marker {
    pub fn marked_start(&self) -> MarkedStart {
        MarkedStart { journal: self.journal.clone(), number: self.start }
    }

    /// Returns the marker in a message's body, or `None` for a message that is something else. A later version may add
    /// fields.
    pub fn read(body: &[u8]) -> Option<Self> {
        if body.len() > LONGEST_BYTES {
            return None;
        }
        let Self { journal, start, token, worker, host, pid, at } = serde_json::from_slice(body).ok()?;
        let is_word = |text: &str| !text.is_empty() && text.len() <= 64 && text.bytes().all(is_of_word);
        let (worker, host) = (printable(&worker), printable(&host));
        (is_word(&journal.0) && is_word(&token.0)).then_some(Self { journal, start, token, worker, host, pid, at })
    }

    pub fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// Replaces what could forge a line of a log or a sequence of a terminal: the text comes from the broker.
fn printable(text: &str) -> String {
    cut(text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect(), LONGEST_NAME_BYTES)
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, start {}", self.journal.0, self.number)
    }
}

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { journal: JournalId(journal), start, worker, host, pid, at, .. } = self;
        write!(f, "journal {journal} (start {start}, by {worker} on {host}, process {pid}, at {at})")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn marker(journal: &str, start: u64, token: &str) -> Marker {
        Marker {
            journal: JournalId(journal.to_owned()),
            start,
            token: StartToken(token.to_owned()),
            worker: "acme/a".to_owned(),
            host: "one".to_owned(),
            pid: 7,
            at: Timestamp(1_700_000_000_000),
        }
    }

    #[test]
    fn a_marker_is_read_as_it_was_written_and_a_later_version_may_say_more() {
        let written = marker("j-1", 3, "t");
        assert_eq!(Marker::read(&written.body()), Some(written.clone()));
        let mut more: serde_json::Value = serde_json::from_slice(&written.body()).unwrap();
        more["new"] = 1.into();
        assert_eq!(Marker::read(more.to_string().as_bytes()), Some(written));
    }

    #[test]
    fn another_message_is_no_marker_and_no_text_of_one_reaches_a_terminal_raw() {
        let long = [b"{\"worker\":\"".as_slice(), &vec![b'x'; LONGEST_BYTES], b"\"}"].concat();
        for body in [b"".as_slice(), b"{}", b"order-1", b"\xff\xfe", b"[1]", &long] {
            assert_eq!(Marker::read(body), None);
        }
        for journal in ["", "a b", "a\n", &"x".repeat(65)] {
            assert_eq!(Marker::read(&marker(journal, 1, "t").body()), None, "{journal:?}");
        }
        let forged = Marker { host: "one\n\u{1b}[2J".to_owned(), ..marker("j", 1, "t") };
        assert_eq!(Marker::read(&forged.body()).unwrap().host, "one??[2J");
    }
}
