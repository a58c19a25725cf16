//! The journal's numbers for accounts and requests, and the lease that every write of a lane carries.

use std::fmt;
use std::sync::Arc;

use crate::model::Timestamp;

/// The journal's number for an account on a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct AccountId(pub i64);

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestSeq(pub i64);

/// The right to write for an account. Every write of a lane carries it; one with a past epoch is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub account: AccountId,
    /// The instance's run, not its name: a restarted instance is another owner.
    pub owner: Arc<str>,
    pub epoch: i64,
}

/// The state of a lease at some moment. Each renewal changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseMark {
    pub epoch: i64,
    /// Until when it holds, by its owner's clock.
    pub until: Timestamp,
}
