//! Why a request did not get through: its class, its reason in one word, the detail for a person.

use std::fmt;

use crate::model::reasons::{FailureClass, Reason};
use crate::model::text::cleaned;
pub use crate::model::text::cut;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: Reason,
    /// For a person; at most [`Cause::MAX_DETAIL_BYTES`].
    pub detail: String,
}

impl Cause {
    /// A header of more than a few KiB can end the whole connection, since header frames are not split.
    pub const MAX_DETAIL_BYTES: usize = 1024;

    /// Returns a cause whose detail is cleaned, and cut to [`Self::MAX_DETAIL_BYTES`]: most of it is a contract's, a node's or a
    /// producer's.
    pub fn new(reason: Reason, detail: impl AsRef<str>) -> Self {
        Self { reason, detail: cleaned(detail.as_ref(), Self::MAX_DETAIL_BYTES) }
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
    fn a_detail_cannot_steer_what_shows_it() {
        let cause = Cause::new(Reason::Reverted, "no\u{1b}[2J\nWATCHDOG=trigger");
        assert_eq!(cause.to_string(), "rejected.reverted: no [2J WATCHDOG=trigger");
    }

    #[test]
    fn every_class_is_found_by_its_word() {
        for class in [FailureClass::Invalid, FailureClass::Policy, FailureClass::Rejected, FailureClass::Unavailable] {
            assert_eq!(FailureClass::from_word(class.as_str()), Some(class));
        }
    }
}
