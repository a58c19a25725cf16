//! Why a request did not get through: its class, its reason in one word, the detail for a person.

use std::fmt;

use crate::model::reasons::{FailureClass, Reason};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: Reason,
    /// For a person; at most [`Cause::MAX_DETAIL_BYTES`].
    pub detail: String,
}

impl Cause {
    /// A header of more than a few KiB can end the whole connection, since header frames are not split.
    pub const MAX_DETAIL_BYTES: usize = 1024;

    /// Returns a cause whose detail is cut to [`Self::MAX_DETAIL_BYTES`].
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: cut(detail.into(), Self::MAX_DETAIL_BYTES) }
    }

    pub fn class(&self) -> FailureClass {
        self.reason.class()
    }

    /// Returns `<class>.<reason>`, the routing key of the dead letter.
    pub fn routing_key(&self) -> String {
        self.reason.routing_key()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.routing_key(), self.detail)
    }
}

/// Cuts the text to its beginning, between two characters.
pub fn cut(mut text: String, most_bytes: usize) -> String {
    if text.len() > most_bytes {
        const ELLIPSIS: &str = "…";
        let end = text.floor_char_boundary(most_bytes.saturating_sub(ELLIPSIS.len()));
        text.truncate(end);
        text.push_str(ELLIPSIS);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_detail_is_cut_between_two_characters() {
        let cause = Cause::new(Reason::Reverted, "ü".repeat(400_000));
        assert!(cause.detail.len() <= Cause::MAX_DETAIL_BYTES);
        assert!(cause.detail.ends_with("ü…"));
    }

    #[test]
    fn every_class_is_found_by_its_word() {
        for class in [FailureClass::Invalid, FailureClass::Policy, FailureClass::Rejected, FailureClass::Unavailable] {
            assert_eq!(FailureClass::from_word(class.as_str()), Some(class));
        }
    }
}
