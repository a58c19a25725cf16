//! What nodes say of a transaction that is in no block.

use tokio::time::Instant;

use crate::chain::Pooled;
use crate::policy::refusals::Lack;

/// What the nodes say of the newest signed transaction of a nonce. An answer decides when the bytes are sent again and
/// whether they are replaced; it never ends a nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PoolStatus {
    /// No node has said that it has the transaction.
    Unknown,
    /// A node has it.
    Pooled,
    /// A node has no room for it, has dropped it, or wants earlier nonces first. The next block may change that; a higher price
    /// does not.
    HeldBack,
    /// A node wants a higher price.
    Underpriced(Lack),
    /// A node has another transaction at the nonce, and wants more to replace it.
    Outbid,
    /// A node says that the nonce is used: by one of ours, or by a foreign transaction. Finality decides which.
    NonceUsed,
    /// A node does not take it, for a reason that stands in its text.
    Refused,
}

/// A foreign transaction that holds a nonce in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    /// The transaction, where a node shows it.
    pub(super) found: Option<Pooled>,
    pub(super) asked_at: Instant,
}
