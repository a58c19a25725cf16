//! The chain's seam: what a lane asks of a node, and every way in which the answer can fail.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::model::event::FinalTransaction;
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, PauseReason, RawTransaction, Topic, TxHash, Wei};
use crate::observe::traces::Traced;
use crate::policy::fee::Market;
use crate::policy::finality::FinalityRule;

mod answers;
mod broadcast;
mod client;
mod endpoint;
pub mod follow;
mod health;
mod market;
mod receipts;
mod route;

pub use client::{ClientSettings, NodeClient};

/// Why a node did not answer what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChainError {
    /// No connection, no answer in time, or an HTTP error.
    #[error("{endpoint} does not answer: {detail}")]
    Unreachable {
        /// Host and port; never the URL, which may hold a key.
        endpoint: String,
        detail: String,
    },
    /// HTTP 429, or the same in words.
    #[error("{endpoint} asks for fewer calls")]
    RateLimited {
        endpoint: String,
        /// For how long it wants to be left alone, if it said so.
        retry_after: Option<Duration>,
    },
    /// The node is still catching up, by its own word.
    #[error("{endpoint} is still syncing")]
    Syncing { endpoint: String },
    /// Another endpoint has shown newer blocks.
    #[error("{endpoint} is {blocks} blocks behind another endpoint")]
    Lagging { endpoint: String, blocks: u64 },
    /// Another chain is behind the endpoint.
    #[error("{endpoint} serves chain {found}, chain.id is {expected}; correct chain.endpoints or chain.id")]
    WrongChain {
        endpoint: String,
        found: u64,
        /// What the configuration says.
        expected: u64,
    },
    /// An answer that cannot be one: another request's id, HTML, half a JSON document, null where there must be a value.
    #[error("{endpoint} answered nonsense: {detail}")]
    Nonsense { endpoint: String, detail: String },
    #[error("{endpoint} refuses: {message}")]
    Node {
        endpoint: String,
        /// Its code. Says nothing for sure: clients disagree about the meanings.
        code: i64,
        message: String,
        /// Its data: what a reverted call returned.
        data: Option<Bytes>,
    },
}

impl ChainError {
    /// It is about the endpoint, not about what was asked: another endpoint may do better.
    pub fn is_of_endpoint(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::RateLimited { .. }
            | Self::Syncing { .. }
            | Self::Lagging { .. }
            | Self::WrongChain { .. }
            | Self::Nonsense { .. } => true,
            Self::Node { .. } => false,
        }
    }

    /// Why a lane pauses that got this error from a call which must succeed.
    pub fn pause_reason(&self) -> PauseReason {
        match self {
            Self::Unreachable { .. } | Self::Nonsense { .. } | Self::Node { .. } => PauseReason::NodeUnreachable,
            Self::RateLimited { .. } => PauseReason::RateLimited,
            Self::Syncing { .. } | Self::Lagging { .. } => PauseReason::NodeSyncing,
            Self::WrongChain { .. } => PauseReason::WrongChain,
        }
    }
}

/// What the chain's calls return.
pub type Result<T, E = ChainError> = std::result::Result<T, E>;

/// What matters of a block's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub number: BlockNumber,
    pub hash: BlockHash,
    /// The hash of the block below.
    pub parent: BlockHash,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// Its own base fee, on chains that have one.
    pub base_fee: Option<Wei>,
    /// The most gas that fits into it.
    pub gas_limit: Gas,
    /// The transactions in it, where the node names them.
    pub transactions: Option<Vec<TxHash>>,
}

/// Which block is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockTag {
    Latest,
    /// The newest that the node calls safe.
    Safe,
    /// The newest that the node calls finalized.
    Finalized,
    /// The one at this height.
    Number(BlockNumber),
}

impl BlockTag {
    /// The tag that a rule looks at; none where it counts blocks.
    pub fn of(rule: FinalityRule) -> Option<Self> {
        match rule {
            FinalityRule::Depth(_) => None,
            FinalityRule::Safe => Some(Self::Safe),
            FinalityRule::Finalized => Some(Self::Finalized),
        }
    }
}

/// Where a transaction is included. How it went, its receipt tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inclusion {
    pub tx_hash: TxHash,
    pub block_number: BlockNumber,
    /// Its block's hash, as the node gave it. Whoever decides anything on it asks first whether the block is canonical.
    pub block_hash: BlockHash,
}

/// Where a transaction was included, and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub transaction: FinalTransaction,
    /// It did not revert.
    pub succeeded: bool,
}

impl Receipt {
    /// Where it was included.
    pub fn inclusion(&self) -> Inclusion {
        let FinalTransaction { tx_hash, block_number, block_hash, .. } = self.transaction;
        Inclusion { tx_hash, block_number, block_hash }
    }
}

/// What one account sent in one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentInBlock {
    pub number: BlockNumber,
    pub hash: BlockHash,
    /// The account's transactions in it.
    pub sent: Vec<Sent>,
}

/// A transaction of an account, as its block shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub nonce: Nonce,
    pub tx_hash: TxHash,
    /// Who is called; nobody where a contract is made.
    pub to: Option<Address>,
    pub data: Bytes,
}

/// A call without a signature, to estimate or to explain.
#[derive(Debug, Clone)]
pub struct Call {
    pub from: Address,
    pub to: Address,
    pub value: Wei,
    pub data: Bytes,
}

/// Which entries of contracts' logs are wanted: those of this contract whose topics fit, place by place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    pub contract: Address,
    /// For each place the topics that fit; none: any.
    pub topics: Vec<Vec<Topic>>,
    /// From this block on.
    pub from: BlockNumber,
    /// Up to this one, and it too.
    pub to: BlockNumber,
}

/// An entry of a contract's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// What it can be found by.
    pub topics: Vec<Topic>,
    pub data: Bytes,
    /// The transaction that wrote it, and where that is.
    pub inclusion: Inclusion,
}

/// How an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointState {
    pub label: String,
    pub serves: bool,
    /// When heads were compared last.
    pub blocks_behind: u64,
    /// Why it is not asked, if it has failed.
    pub problem: Option<String>,
}

/// What a lane asks of the chain. Every call has a timeout for each endpoint it is tried at; a call that is dropped has no effect but may have been sent.
#[async_trait]
pub trait Chain: Send + Sync {
    /// The header of this block, `None` where there is none (yet).
    async fn header(&self, block: BlockTag) -> Result<Option<Header>>;

    /// The receipts of those of `ours` that are in this very block.
    async fn receipts_in(&self, block: BlockHash, ours: &[TxHash]) -> Result<Vec<Receipt>>;

    /// The receipt of each of these, where the node has one.
    async fn receipts(&self, hashes: &[TxHash]) -> Result<Vec<Option<Receipt>>>;

    /// How many transactions the account has in the chain up to this block: its next nonce there. Never counts what is
    /// only pending.
    async fn transaction_count(&self, account: Address, block: BlockTag) -> Result<Nonce>;

    /// The account's transactions in the block at this height, read from the block itself. `None` where there is no block.
    async fn sent_in(&self, account: Address, block: BlockNumber) -> Result<Option<SentInBlock>>;

    /// What the chain asks for now.
    async fn market(&self, head: &Header) -> Result<Market>;

    /// How much gas each call takes at the newest block. A call that fails has its own error; the outer error means that none was looked at.
    async fn estimate(&self, calls: &[Traced<Call>]) -> Result<Vec<Result<Gas>>>;

    /// Runs a call on the state after this block: what it returns, or the error with what it reverted with.
    async fn call(&self, call: &Call, block: BlockNumber) -> Result<Bytes>;

    /// What the contract has logged, of what the node has. A query whose range or answer is too large for the node is refused.
    async fn logs(&self, query: &LogQuery) -> Result<Vec<Log>>;

    /// Gives signed bytes to every node that can be reached, in their order. The answer is the best that any of them gave;
    /// an error says only what a node said, not that it does not have them.
    async fn broadcast(&self, transactions: &[Traced<RawTransaction>]) -> Vec<Result<()>>;

    async fn balance(&self, account: Address) -> Result<Wei>;
}

/// How many transactions the account has in the chain up to this block; `None` where no node has the state for it.
pub async fn count_at(chain: &dyn Chain, account: Address, block: u64) -> Result<Option<Nonce>> {
    known(chain.transaction_count(account, BlockTag::Number(BlockNumber(block))).await)
}

/// What a node will not or cannot tell is no evidence and no outage either: "missing trie node", pruned history.
pub fn known<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ChainError::Node { .. } | ChainError::Nonsense { .. }) => Ok(None),
        Err(
            error @ (ChainError::Unreachable { .. }
            | ChainError::RateLimited { .. }
            | ChainError::Syncing { .. }
            | ChainError::Lagging { .. }
            | ChainError::WrongChain { .. }),
        ) => Err(error),
    }
}

/// The hash that a node gives these signed bytes: keccak-256.
pub fn transaction_hash(raw: &[u8]) -> TxHash {
    TxHash(web3::signing::keccak256(raw))
}

#[cfg(test)]
mod tests;
