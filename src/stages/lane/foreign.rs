//! What a term knows of foreign use: a count that nothing of the journal explains, and what is waited for before anything
//! new may be signed. `foreign_search` asks the chain, and tells the story.

use std::time::Duration;

use tokio::time::Instant;

use crate::journal::ForeignUse;
use crate::model::{BlockNumber, Nonce};
use crate::stages::lane::unsettled::Unsettled;

/// A count that no block confirms is a pause with a reason after this.
const UNPROVEN_AFTER: Duration = Duration::from_secs(60);

/// A count above the next nonce, and since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) count: Nonce,
    since: Instant,
    /// The log has it.
    pub(super) is_logged: bool,
}

/// A condition that is waited for when the term begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Not asked yet, or waited for since then.
    Since(Option<Instant>),
    Over,
}

/// Holds what a term knows of foreign use.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) known: ForeignUse,
    /// Transactions below it are another program's, says an operator.
    pub(super) below: Nonce,
    /// The account's count was compared with the next nonce.
    is_counted: bool,
    claim: Option<Claim>,
    /// The last count that no endpoint confirmed.
    wrong: Option<Nonce>,
    /// The first count of an account that the journal has no nonce for, and the block that it was asked for at.
    first: Option<(BlockNumber, Nonce)>,
    /// The endpoints' words about that count, where they do not agree.
    pub(super) disagreement: Option<String>,
    /// The count, pending ones included, that pools had when they were asked first: all below it must be explained.
    pooled: Option<Nonce>,
    /// Why those in the pools hold back what is new, once that has lasted.
    pub(super) stuck_in_pool: Option<String>,
    /// Nonces of others that are not final.
    pub(super) unsettled: Unsettled,
    pub(super) pools: Wait,
    pub(super) others: Wait,
}

impl Foreign {
    pub(super) fn new() -> Self {
        Self {
            known: ForeignUse::default(),
            below: Nonce(0),
            is_counted: false,
            claim: None,
            wrong: None,
            first: None,
            disagreement: None,
            pooled: None,
            stuck_in_pool: None,
            unsettled: Unsettled::default(),
            pools: Wait::Since(None),
            others: Wait::Since(None),
        }
    }

    pub(super) fn is_behind(&self) -> bool {
        self.known.behind.is_some()
    }

    pub(super) fn is_recovering(&self) -> bool {
        self.known.recovery.is_some()
    }

    /// Returns whether anything new may be signed, as far as foreign use goes.
    pub(super) fn allows_signing(&self) -> bool {
        self.is_explained() && self.pools == Wait::Over && self.others == Wait::Over && !self.is_behind()
    }

    /// Compares the account's count with the next nonce.
    pub(super) fn record_count(&mut self, next: Option<Nonce>, count: Nonce) {
        let is_claim = next.is_none_or(|next| count > next);
        self.is_counted = next.is_some();
        self.claim = match self.claim {
            Some(claim) if is_claim => Some(Claim { count, ..claim }),
            None if is_claim => Some(Claim { count, since: Instant::now(), is_logged: false }),
            Some(_) | None => None,
        };
    }

    pub(super) fn claim(&self) -> Option<Claim> {
        self.claim
    }

    /// Returns whether the account's count is explained: it was compared, and claims nothing.
    pub(super) fn is_explained(&self) -> bool {
        self.is_counted && self.claim.is_none() && !self.unsettled.is_searching()
    }

    /// Returns the claim that has lasted too long to wait for in silence.
    pub(super) fn unproven(&self) -> Option<Claim> {
        self.claim.filter(|claim| claim.since.elapsed() >= UNPROVEN_AFTER)
    }

    /// Returns the first nonce whose block left the chain and that has been searched for too long to do it in silence.
    pub(super) fn lost(&self) -> Option<Nonce> {
        self.unsettled.searched_for(UNPROVEN_AFTER)
    }

    /// Drops a claim that no endpoint confirms. Returns whether this count is a new one.
    pub(super) fn drop_claim(&mut self, count: Nonce) -> bool {
        self.claim = None;
        self.wrong.replace(count) != Some(count)
    }

    /// Records the highest count of the pools. Returns the one that counts: what enters a pool later is not waited for, or a
    /// program that uses the account all the time would stop it for ever.
    pub(super) fn record_pooled(&mut self, pending: Nonce) -> Nonce {
        *self.pooled.get_or_insert(pending)
    }

    /// Takes the nonces below this one for explained; what the claim has above it stays claimed, and is logged already.
    pub(super) fn explain_up_to(&mut self, raised: Nonce) {
        self.claim = self.claim.filter(|claim| raised < claim.count).map(|claim| Claim { is_logged: true, ..claim });
    }

    /// Returns the block at which the account's first count was asked for in an earlier poll.
    pub(super) fn first_asked_at(&self) -> Option<BlockNumber> {
        self.first.map(|(block, _)| block)
    }

    /// Records the count on which all endpoints agree at a block, or that they do not. Returns whether an earlier poll found
    /// the same.
    pub(super) fn record_first(&mut self, at: BlockNumber, first: Option<Nonce>) -> bool {
        let found = first.map(|first| (at, first));
        let before = std::mem::replace(&mut self.first, found);
        found.is_some() && before == found
    }
}

impl Wait {
    /// Returns true once it has lasted for this long.
    pub(super) fn has_lasted(&mut self, limit: Duration) -> bool {
        match self {
            Self::Over => true,
            Self::Since(since) => since.get_or_insert_with(Instant::now).elapsed() >= limit,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        !matches!(self, Self::Since(None))
    }
}
