//! What operators are shown of a request.

use crate::model::event::BatchPlace;
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, TxHash};

/// All that the journal knows of one request.
#[derive(Debug, Clone, serde::Serialize)]
pub struct History {
    pub id: String,
    pub state: String,
    /// `cw-attempt` of the copy that it stands at.
    pub attempt: u32,
    /// `cw-replay-count` of it.
    pub replay: u32,
    /// RFC 3339.
    pub received_at: String,
    /// RFC 3339.
    pub changed_at: String,
    /// Chain id of its account.
    pub chain_id: u64,
    pub account: Address,
    /// `class.reason: detail` of its last failure.
    pub failure: Option<String>,
    /// Its transactions, oldest first.
    pub transactions: Vec<TransactionHistory>,
    /// What happened off the straight way, oldest first.
    pub incidents: Vec<Incident>,
}

/// One nonce of a request.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TransactionHistory {
    pub nonce: Nonce,
    pub state: String,
    /// RFC 3339.
    pub created_at: String,
    /// Everything signed for it, oldest first.
    #[serde(rename = "attempts")]
    pub signed: Vec<SignedHistory>,
    /// The hash that is final.
    pub final_hash: Option<TxHash>,
    pub block_number: Option<BlockNumber>,
    pub block_hash: Option<BlockHash>,
    /// Gas that it used.
    pub gas_used: Option<Gas>,
    /// Since when its block is no part of the chain any more, until it is final again. RFC 3339.
    pub reorged_at: Option<String>,
    /// Which of several requests in it this one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchPlace>,
}

#[derive(Debug, Clone, serde::Serialize)]
pub struct SignedHistory {
    pub hash: TxHash,
    /// `write` or `cancel`.
    pub kind: String,
    /// Most wei for one unit of gas.
    pub max_fee: String,
    /// RFC 3339.
    pub signed_at: String,
}

/// Something that happened off the straight way.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Incident {
    /// RFC 3339.
    pub at: String,
    pub what: String,
    pub detail: String,
}
