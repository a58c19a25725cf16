//! That nodes refuse a transaction: how often, since when, in which words, and when that is final.

use std::time::Duration;

use tokio::time::Instant;

use crate::policy::refusals::Lasting;

/// Refusals in unknown words must have come as often, with a block in between, to be final.
const TIMES: u32 = 2;

/// Says how a refusal may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefusalKind {
    /// Never: no waiting changes it.
    Lasting(Lasting),
    /// By itself, perhaps: the next block may take it.
    Passing,
    /// Not known: no table has the text.
    Unknown,
    /// Not known: nodes fail at it, as in an outage, and answer other calls meanwhile. They may have it.
    Unanswered,
    /// The chain does not let the account send, or not this.
    NotPermitted,
    /// Nodes took it and dropped it again and again.
    Dropped,
    /// The account cannot pay it.
    Unpaid,
}

impl RefusalKind {
    fn is_known(self) -> bool {
        !matches!(self, Self::Unknown | Self::Unanswered)
    }

    /// Returns whether it goes on at another price: it does not begin anew with each.
    pub(super) fn outlives_price(self) -> bool {
        matches!(self, Self::Passing | Self::Unknown | Self::Unanswered | Self::NotPermitted)
    }

    /// Returns whether it is about the transaction itself, in known words: not about the account's funds.
    pub(super) fn is_of_its_own(self) -> bool {
        !matches!(self, Self::Unknown | Self::Unpaid)
    }

    /// Returns whether the account as a whole may be what nodes refuse. The answer to a cancellation shows it.
    pub(super) fn may_be_of_account(self) -> bool {
        matches!(self, Self::Unanswered | Self::NotPermitted)
    }
}

/// Refusals of the newest signed transaction, without an answer since then that a node takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) since: Instant,
    /// The last of the answers.
    pub(super) answer: String,
    pub(super) kind: RefusalKind,
    times: u32,
    /// The time of the last of them.
    last: Instant,
    /// Blocks that came meanwhile.
    blocks: u32,
}

impl Refusal {
    /// Returns what a refusal makes of those before it. In known words it counts, whatever unknown ones come between.
    pub(super) fn after(before: Option<Self>, kind: RefusalKind, text: &str, now: Instant) -> Self {
        let kept = before.as_ref().filter(|before| !kind.is_known() && before.kind.is_known());
        let (kind, answer) = kept.map_or((kind, text), |kept| (kept.kind, kept.answer.as_str()));
        Self {
            since: before.as_ref().map_or(now, |before| before.since),
            answer: answer.to_owned(),
            kind,
            times: before.as_ref().map_or(1, |before| before.times.saturating_add(1)),
            last: now,
            blocks: before.as_ref().map_or(0, |before| before.blocks),
        }
    }

    /// Returns the refusal that drops amount to.
    pub(super) fn of_drops(since: Instant, answer: String, times: u32) -> Self {
        Self { since, answer, kind: RefusalKind::Dropped, times, last: since, blocks: 0 }
    }

    pub(super) fn after_block(self) -> Self {
        Self { blocks: self.blocks.saturating_add(1), ..self }
    }

    /// Returns whether a cancellation ends it: it lasts, or nothing has ended it for so long. In unknown words it must have
    /// come more than once, with blocks in between.
    pub(super) fn is_final(&self, patience: Duration, now: Instant) -> bool {
        let is_old = now.duration_since(self.since) >= patience;
        match self.kind {
            // A lower price cures it, where its cap is known.
            RefusalKind::Lasting(Lasting::TooExpensive(most)) => most.is_none() && is_old,
            RefusalKind::Lasting(_) => true,
            RefusalKind::Passing | RefusalKind::Dropped | RefusalKind::Unpaid => is_old,
            RefusalKind::Unknown => is_old && self.times >= TIMES && self.blocks > 0,
            // An answer from before may have been about the account, and that may be over.
            RefusalKind::Unanswered | RefusalKind::NotPermitted => {
                self.last.duration_since(self.since) >= patience && self.blocks > 0
            }
        }
    }
}
