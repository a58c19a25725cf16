//! A journal that takes the place of a lost one: what the chain says about its accounts, and the seam of the command that
//! reads it there.

use async_trait::async_trait;

use crate::journal::{AccountId, JournalError, Result};
use crate::model::{BlockNumber, BodyHash, Nonce, Timestamp, TxHash};

/// That a journal takes the place of a lost one. While this stands, what may be written already is not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Since when.
    pub begun_at: Timestamp,
    /// By whom.
    pub operator: String,
    /// The first block that was read.
    pub from_block: BlockNumber,
    /// The last one; it was final.
    pub to_block: BlockNumber,
}

/// An account as the chain shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredAccount {
    /// The account.
    pub account: AccountId,
    /// All below it are taken, and final.
    pub next_nonce: Nonce,
    /// What it wrote in the blocks that were read.
    pub writes: Vec<RecoveredWrite>,
}

/// A transaction of ours that is final and did not revert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredWrite {
    /// Its nonce.
    pub nonce: Nonce,
    /// Which of several calls in it, from zero.
    pub place: u32,
    /// Its hash.
    pub tx_hash: TxHash,
    /// Its block's height.
    pub block_number: BlockNumber,
    /// The hash of its calldata; where it was a batch, of the calldata that the request would have had alone.
    pub data_hash: BodyHash,
}

/// What `chainwriter recover` needs.
#[async_trait]
pub trait Recoveries: Send + Sync {
    /// Begins a recovery, in place of an earlier one. Refused once the journal knows a request: then it is not lost.
    async fn begin_recovery(&self, recovery: Recovery, accounts: Vec<RecoveredAccount>) -> Result<()>;
    /// Ends it and forgets what was read. `false` if there is none.
    async fn end_recovery(&self) -> Result<bool>;
}

pub(super) fn knows_requests() -> JournalError {
    let detail = "it knows requests, so it is not a new one in the place of a lost one".to_owned();
    JournalError::Inconsistent { doing: "begin a recovery", detail }
}
