//! A journal that takes the place of a lost one: what the chain says about its accounts, and the seam of the command that
//! reads it there.

use async_trait::async_trait;

use crate::journal::{AccountId, JournalError, Result};
use crate::model::{BlockNumber, Nonce, RecoveredWrite, Timestamp};

/// That a journal takes the place of a lost one. While this stands, what may be written already is not written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub begun_at: Timestamp,
    pub operator: String,
    /// The first block that was read.
    pub from_block: BlockNumber,
    /// The last one; it was final.
    pub to_block: BlockNumber,
}

/// An account as the chain shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredAccount {
    pub account: AccountId,
    /// All below it are taken, and final.
    pub next_nonce: Nonce,
    /// What it wrote in the blocks that were read.
    pub writes: Vec<RecoveredWrite>,
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
