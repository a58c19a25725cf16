//! Why a request did not get through: its class, its reason in one word, the detail for a person.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure it is, and so what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureClass {
    /// Can never succeed as it stands: dead letter at once.
    Invalid,
    /// The operator does not allow it: dead letter at once, unless it is only too dear for now.
    Policy,
    /// The chain refused it: retry up to the limit, then dead letter.
    Rejected,
    /// Something that the request needs was out of reach. Counted only with `[outage] policy = "retry"`.
    Unavailable,
}

impl FailureClass {
    /// The word used in headers, routing keys and the journal.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Policy => "policy",
            Self::Rejected => "rejected",
            Self::Unavailable => "unavailable",
        }
    }

    /// The class with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Invalid, Self::Policy, Self::Rejected, Self::Unavailable]
            .into_iter()
            .find(|class| class.as_str() == word)
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the operator does not allow at the price that the chain asks now.
pub const TOO_DEAR: [&str; 2] = ["max_fee", "fee_per_day"];

/// One failure of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// What kind it is.
    pub class: FailureClass,
    /// One word in snake case, from a fixed set: the second half of the dead letter's routing key.
    pub reason: Cow<'static, str>,
    /// For a person; at most [`Cause::MAX_DETAIL_BYTES`].
    pub detail: String,
}

impl Cause {
    /// A header of more than a few KiB can end the whole connection, since header frames are not split.
    pub const MAX_DETAIL_BYTES: usize = 1024;

    /// A failure; a longer detail is cut at a character.
    pub fn new(class: FailureClass, reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self { class, reason: reason.into(), detail: cut(detail.into(), Self::MAX_DETAIL_BYTES) }
    }

    /// A request that can never succeed as it stands.
    pub fn invalid(reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Invalid, reason, detail)
    }

    /// A request that the operator does not allow.
    pub fn forbidden(reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Policy, reason, detail)
    }

    /// It may be different next time.
    pub fn may_pass(&self) -> bool {
        match self.class {
            FailureClass::Invalid => false,
            FailureClass::Policy => TOO_DEAR.contains(&self.reason.as_ref()),
            FailureClass::Rejected | FailureClass::Unavailable => true,
        }
    }

    /// A request that the chain refused.
    pub fn rejected(reason: impl Into<Cow<'static, str>>, detail: impl Into<String>) -> Self {
        Self::new(FailureClass::Rejected, reason, detail)
    }

    /// `<class>.<reason>`, the routing key of its dead letter.
    pub fn routing_key(&self) -> String {
        format!("{}.{}", self.class, self.reason)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}: {}", self.class, self.reason, self.detail)
    }
}

/// The text, or as much of its beginning as fits, cut between two characters.
pub fn cut(mut text: String, most_bytes: usize) -> String {
    if text.len() > most_bytes {
        const ELLIPSIS: &str = "…";
        let end = text.floor_char_boundary(most_bytes.saturating_sub(ELLIPSIS.len()));
        text.truncate(end);
        text.push_str(ELLIPSIS);
    }
    text
}

/// Why a lane takes on nothing new for now. It resumes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// No endpoint answers, or none with sense.
    NodeUnreachable,
    /// The node asks for fewer calls.
    RateLimited,
    /// The node is still catching up.
    NodeSyncing,
    /// The chain makes no block although transactions wait for one.
    HeadStale,
    /// The endpoint serves another chain than `chain.id`.
    WrongChain,
    /// The account cannot pay.
    InsufficientFunds,
    /// The chain does not let this account send.
    NotPermitted,
    /// The chain asks for more than `fees.max_fee`.
    FeeAboveCap,
    /// The signer does not answer.
    SignerUnavailable,
}

impl PauseReason {
    /// Something is away that the account's work needs: another instance may still reach it.
    pub fn is_outage(self) -> bool {
        match self {
            Self::NodeUnreachable
            | Self::RateLimited
            | Self::NodeSyncing
            | Self::HeadStale
            | Self::WrongChain
            | Self::SignerUnavailable => true,
            Self::InsufficientFunds | Self::NotPermitted | Self::FeeAboveCap => false,
        }
    }

    /// The word used in logs, headers and the status line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeUnreachable => "node_unreachable",
            Self::RateLimited => "rate_limited",
            Self::NodeSyncing => "node_syncing",
            Self::HeadStale => "head_stale",
            Self::WrongChain => "wrong_chain",
            Self::InsufficientFunds => "insufficient_funds",
            Self::NotPermitted => "not_permitted",
            Self::FeeAboveCap => "fee_above_cap",
            Self::SignerUnavailable => "signer_unavailable",
        }
    }
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_detail_is_cut_between_two_characters() {
        let cause = Cause::rejected("reverted", "ü".repeat(400_000));
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
