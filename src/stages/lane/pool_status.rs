//! The status of a transaction that is in no block, as nodes report it, and the transitions that observations cause.

use tokio::time::Instant;

use crate::chain::Pooled;
use crate::model::Purpose;
use crate::policy::refusals::Lack;
use crate::stages::lane::refusal::{Refusal, RefusalKind};

/// Holds what the nodes say of the newest signed transaction of a nonce. An answer decides when the bytes are sent again and
/// whether they are replaced; it never ends a nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PoolStatus {
    /// No node has said that it has the transaction.
    Unknown,
    /// A node has it.
    Pooled,
    /// A node has no room for it, has dropped it, or wants earlier nonces first. The next block may change that; a higher price
    /// does not. Holds the node's words.
    HeldBack(String),
    /// A node wants a higher price.
    Underpriced(Lack),
    /// A node has another transaction at the nonce, and wants more to replace it. Holds the one that is there, once it was asked
    /// for.
    Outbid(Option<Holder>),
    /// A node says that the nonce is used: by one of ours, or by a foreign transaction. Finality decides which.
    NonceUsed,
    /// A node does not take it, for a reason that stands in its text.
    Refused(Refusal),
}

/// A foreign transaction that holds a nonce in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    /// The transaction, where a node shows it.
    pub(super) found: Option<Pooled>,
    pub(super) asked_at: Instant,
}

/// Holds what was seen of the newest signed transaction, or of its nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Observation<'a> {
    /// A node has it.
    Taken,
    /// Nodes have taken it so often since then, and dropped it each time.
    DroppedOften { since: Instant, times: u32, words: &'a str },
    /// A node says that its nonce is used.
    NonceUsed,
    /// A node wants a higher price.
    Underpriced(Lack),
    /// A node wants more than for another transaction at the nonce.
    Outbid,
    /// The search for that other transaction has ended.
    HolderSought(Holder),
    /// A node takes it only after others, or has no room.
    Later(&'a str),
    /// A node does not take it.
    Refused { kind: RefusalKind, words: &'a str, at: Instant },
    /// A node does not take it since the account cannot pay it, and the node's balance is right.
    Unpaid { words: &'a str, at: Instant, purpose: Purpose },
    /// The account can pay it, or nothing known says otherwise any more.
    Payable,
    /// Nodes fail at it as in an outage. Where they answer other calls the fault may be its own.
    Failed { words: &'a str, at: Instant, others_answered: bool },
    /// A pool that had it lacks it.
    Missing,
    /// The transaction came before its turn: nodes that answered with its hash may have kept it or not.
    Early,
    /// A block came. The account is, or is not, past the nonce.
    Head { is_past: bool },
    /// A block has one of ours.
    Included,
    /// The block with one of ours has left the chain.
    Orphaned,
    /// Another was signed for the nonce, with this purpose.
    Replaced(Purpose),
    /// One that was signed before is the newest again.
    Switched,
}

impl PoolStatus {
    /// Returns what an observation makes of the status. Pure: what it depends on stands in the two.
    pub(super) fn next(self, observation: Observation<'_>) -> Self {
        use Observation as O;
        match (self, observation) {
            (_, O::Taken) => Self::Pooled,
            (_, O::DroppedOften { since, times, words }) => {
                Self::Refused(Refusal::of_drops(since, words.to_owned(), times))
            }
            (_, O::NonceUsed) => Self::NonceUsed,
            (_, O::Underpriced(lack)) => Self::Underpriced(lack),
            (Self::Outbid(holder), O::Outbid) => Self::Outbid(holder),
            (_, O::Outbid) => Self::Outbid(None),
            (Self::Outbid(_), O::HolderSought(holder)) => Self::Outbid(Some(holder)),
            (status, O::HolderSought(_)) => status,
            // The balance may have been wrong when a node said that, and this answer does not repeat it.
            (Self::Refused(refusal), O::Later(_)) if refusal.kind != RefusalKind::Unpaid => Self::Refused(refusal),
            (_, O::Later(words)) => Self::HeldBack(words.to_owned()),
            (status, O::Refused { kind, words, at }) => status.refused(kind, words, at),
            (status, O::Unpaid { words, at, purpose }) => {
                match status.refusal().filter(|_| purpose == Purpose::Write) {
                    // A refusal of the transaction itself stays one, however little the account has meanwhile.
                    Some(Refusal { kind, answer, .. }) if kind.is_of_its_own() => {
                        let (kind, answer) = (*kind, answer.clone());
                        status.refused(kind, &answer, at)
                    }
                    Some(_) | None => status.refused(RefusalKind::Unpaid, words, at),
                }
            }
            (Self::Refused(Refusal { kind: RefusalKind::Unpaid, .. }), O::Payable) => Self::Unknown,
            (status @ (Self::Pooled | Self::NonceUsed), O::Failed { .. }) => status,
            (status, O::Failed { words, at, others_answered: true }) => {
                status.refused(RefusalKind::Unanswered, words, at)
            }
            (Self::Refused(Refusal { kind: RefusalKind::Unanswered, .. }), O::Failed { .. }) => Self::Unknown,
            // It goes out again at the same price: lack of room is no reason for a higher one.
            (Self::Pooled, O::Missing) => Self::HeldBack("pools have dropped it".to_owned()),
            (Self::Pooled, O::Early | O::Orphaned) => Self::Unknown,
            (Self::Refused(refusal), O::Head { .. }) => Self::Refused(refusal.after_block()),
            // A nonce that the account is not past is not used, whatever a node said.
            (Self::NonceUsed, O::Head { is_past: false }) => Self::Unknown,
            (Self::Refused(_), O::Included) => Self::Unknown,
            // The node of that block may have dropped it.
            (Self::NonceUsed, O::Orphaned) => Self::Unknown,
            // Nodes that refuse it for another reason than its price may refuse it at the next price too.
            (Self::Refused(refusal), O::Replaced(Purpose::Write)) if refusal.kind.outlives_price() => {
                Self::Refused(refusal)
            }
            (_, O::Replaced(_) | O::Switched) => Self::Unknown,
            (
                status,
                O::Payable
                | O::Failed { others_answered: false, .. }
                | O::Missing
                | O::Early
                | O::Head { .. }
                | O::Included
                | O::Orphaned,
            ) => status,
        }
    }

    fn refused(self, kind: RefusalKind, words: &str, at: Instant) -> Self {
        Self::Refused(Refusal::after(self.refusal().cloned(), kind, words, at))
    }

    /// Returns the refusals of the newest, without an answer since then that a node takes it.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Unknown
            | Self::Pooled
            | Self::HeldBack(_)
            | Self::Underpriced(_)
            | Self::Outbid(_)
            | Self::NonceUsed => None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const STATES: [&str; 9] =
        ["unknown", "pooled", "held back", "underpriced", "outbid", "used", "refused", "unpaid", "unanswered"];

    fn state(word: &str, now: Instant) -> PoolStatus {
        let refused = |kind| PoolStatus::Refused(Refusal::after(None, kind, "no", now));
        match word {
            "unknown" => PoolStatus::Unknown,
            "pooled" => PoolStatus::Pooled,
            "held back" => PoolStatus::HeldBack("full".to_owned()),
            "underpriced" => PoolStatus::Underpriced(Lack::Price(None)),
            "outbid" => PoolStatus::Outbid(Some(holder(now))),
            "used" => PoolStatus::NonceUsed,
            "refused" => refused(RefusalKind::Passing),
            "unpaid" => refused(RefusalKind::Unpaid),
            _ => refused(RefusalKind::Unanswered),
        }
    }

    pub(in crate::stages::lane) fn word(status: &PoolStatus) -> &'static str {
        match status {
            PoolStatus::Unknown => "unknown",
            PoolStatus::Pooled => "pooled",
            PoolStatus::HeldBack(_) => "held back",
            PoolStatus::Underpriced(_) => "underpriced",
            PoolStatus::Outbid(_) => "outbid",
            PoolStatus::NonceUsed => "used",
            PoolStatus::Refused(Refusal { kind: RefusalKind::Unpaid, .. }) => "unpaid",
            PoolStatus::Refused(Refusal { kind: RefusalKind::Unanswered, .. }) => "unanswered",
            PoolStatus::Refused(Refusal { kind: RefusalKind::Dropped, .. }) => "dropped",
            PoolStatus::Refused(_) => "refused",
        }
    }

    fn holder(now: Instant) -> Holder {
        Holder { found: None, asked_at: now }
    }

    /// Lists what an observation makes of each state, in the order of `STATES`; "" is the state itself.
    fn rows(now: Instant) -> Vec<(Observation<'static>, [&'static str; 9])> {
        use Observation as O;
        let all = |word| [word; 9];
        let refused = |kind| O::Refused { kind, words: "no", at: now };
        let unpaid = |purpose| O::Unpaid { words: "poor", at: now, purpose };
        let failed = |others_answered| O::Failed { words: "gone", at: now, others_answered };
        let u = "unknown";
        vec![
            (O::Taken, all("pooled")),
            (O::DroppedOften { since: now, times: 3, words: "thrice" }, all("dropped")),
            (O::NonceUsed, all("used")),
            (O::Underpriced(Lack::Tip(None)), all("underpriced")),
            (O::Outbid, all("outbid")),
            (O::HolderSought(holder(now)), all("")),
            (
                O::Later("full"),
                ["held back", "held back", "", "held back", "held back", "held back", "", "held back", ""],
            ),
            (refused(RefusalKind::Passing), all("refused")),
            // Known words count, whatever unknown ones come after them.
            (
                refused(RefusalKind::Unknown),
                ["refused", "refused", "refused", "refused", "refused", "refused", "", "", "refused"],
            ),
            (unpaid(Purpose::Write), ["unpaid", "unpaid", "unpaid", "unpaid", "unpaid", "unpaid", "", "", ""]),
            (unpaid(Purpose::Cancel), all("unpaid")),
            (O::Payable, ["", "", "", "", "", "", "", u, ""]),
            (failed(true), ["unanswered", "", "unanswered", "unanswered", "unanswered", "", "", "", ""]),
            (failed(false), ["", "", "", "", "", "", "", "", u]),
            (O::Missing, ["", "held back", "", "", "", "", "", "", ""]),
            (O::Early, ["", u, "", "", "", "", "", "", ""]),
            (O::Head { is_past: true }, all("")),
            (O::Head { is_past: false }, ["", "", "", "", "", u, "", "", ""]),
            (O::Included, ["", "", "", "", "", "", u, u, u]),
            (O::Orphaned, ["", u, "", "", "", u, "", "", ""]),
            (O::Replaced(Purpose::Write), [u, u, u, u, u, u, "", u, ""]),
            (O::Replaced(Purpose::Cancel), all(u)),
            (O::Switched, all(u)),
        ]
    }

    #[tokio::test(start_paused = true)]
    async fn every_observation_leads_from_every_state_to_the_one_of_the_table() {
        let now = Instant::now();
        for (observation, row) in rows(now) {
            for (from, to) in STATES.iter().zip(row) {
                let next = state(from, now).next(observation);
                assert_eq!(word(&next), if to.is_empty() { from } else { to }, "{from}, {observation:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_at_the_nonce_is_kept_while_it_holds_the_nonce() {
        let now = Instant::now();
        let outbid = PoolStatus::Outbid(None).next(Observation::HolderSought(holder(now)));
        assert_eq!(outbid.clone().next(Observation::Outbid), PoolStatus::Outbid(Some(holder(now))));
        assert_eq!(outbid.next(Observation::Taken).next(Observation::Outbid), PoolStatus::Outbid(None));
    }
}
