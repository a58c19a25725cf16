//! The chain's seam: the trait [`Chain`], its values and errors, and the client that speaks JSON-RPC to several nodes.
//!
//! # A call
//!
//! A stage calls a method of `Chain`. `client` turns it into JSON-RPC calls, and `route` chooses the endpoint: the first in the
//! configured order that serves and is there for such calls (`access`). `endpoint` makes single calls and `batches` many, both at the `pace` that the endpoint takes, and
//! `rpc` (outside of this folder) moves the bytes. `answers` reads what something depends on strictly, and nothing else: another
//! request's id, HTML or null where there must be a value is [`ChainError::Nonsense`]. A batch that a node refuses or garbles
//! becomes shorter ones (`batch_size`), and then single calls.
//!
//! After a failure `route` goes on with the next endpoint; each is tried once. An endpoint
//! that then does not show its chain id and its head at once is rested by `health`, for longer each time; one that does has failed this call alone.
//! HTTP statuses and error texts of outages are failures of the endpoint, whatever the body: `policy/classify` has the rule. A
//! refusal by the node is an answer. An endpoint that asks for fewer calls is no failure while its turn comes in time.
//!
//! Calls that are about something of their own (estimates, receipts) have an answer or an error each: what one endpoint answered
//! stays, and only the rest is asked of the next one.
//!
//! An endpoint is used only after it has shown the right chain id and that it is not syncing (`verify`), and again after each
//! failure. One that lacked the state of its newest block has to show that too. With several endpoints their heads are compared
//! every ten seconds; one that lags is left out until it has caught up.
//!
//! Where the configuration names WebSockets, `heads` listens there for new blocks: a hint to poll at once.
//!
//! `confirm` asks another endpoint about what is final, where `chain.confirm_with` names one.
//!
//! `on_top` runs a call on top of transactions that are in no block yet, where a node has a method for that.
//!
//! `receipts` and `market` hide what some nodes lack (`eth_getBlockReceipts`, a fee history): other calls replace it, whatever the
//! failure is, and `lacks` remembers the method.
//!
//! # A broadcast
//!
//! `broadcast` sends the same bytes to every endpoint that serves and gets transactions, in nonce order, and returns the best answer for each
//! transaction. An answer decides nothing (invariant 2): after any error a node may have the bytes. The journal holds them
//! already, so a crash, a timeout or a lost answer leads to the same bytes being sent again.
//!
//! # Following the chain
//!
//! `follow` holds the parts that a lane runs on top of these calls. They report; the lane decides.
//!
//! | file | reports |
//! |---|---|
//! | `follow/tracker` | new and orphaned blocks, which of our transactions they hold, what is final |
//! | `follow/receipt_reader` | the receipts of final blocks |
//! | `follow/broadcaster` | the answers to what it sends, round by round |
//! | `follow/estimator` | the estimates of single calls, beside the lane |
//! | `follow/nonce_taker` | the foreign transaction that took a nonce |
//! | `follow/record_search` | who wrote a record, from a contract's log |
//! | `follow/history` | all that an account wrote, where its journal was lost |
//!
//! A block counts as part of the chain only when the parents from the newest block lead to it: what one node says of a height
//! alone proves nothing. Errors leave a part's state as it was, so the next poll starts from there.

use std::ops::RangeInclusive;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::model::event::FinalTransaction;
use crate::model::{Address, BlockHash, BlockNumber, Fee, Gas, Nonce, RawTransaction, Topic, TxHash, Wei};
use crate::observe::traces::Traced;
use crate::policy::fee::Market;
use crate::policy::finality::FinalityRule;
use crate::policy::forks::Forks;

mod access;
pub(crate) mod answers;
mod batch_size;
mod batches;
mod broadcast;
mod calls;
mod client;
mod confirm;
mod counts;
mod endpoint;
mod error;
mod faults;
pub mod follow;
mod heads;
mod health;
mod inspection;
mod lacks;
mod market;
mod on_top;
mod pace;
mod pooled;
mod receipts;
mod route;
mod rules;
mod scalars;
mod settings;
mod signature;
mod single_calls;
mod standing;
mod verify;

pub use access::{EndpointAccess, Role};
pub use client::NodeClient;
pub use error::{ChainError, Result, known};
#[cfg(test)]
pub(crate) use faults::refused;
pub use settings::{ClientSettings, Confirmation};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub number: BlockNumber,
    pub hash: BlockHash,
    /// The hash of the block below.
    pub parent: BlockHash,
    /// Seconds since 1970.
    pub timestamp: u64,
    /// Base fee of this block, on chains that have one.
    pub base_fee: Option<Wei>,
    pub gas_limit: Gas,
    /// The hashes of its transactions, where the node lists them.
    pub transactions: Option<Vec<TxHash>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockTag {
    Latest,
    Safe,
    Finalized,
    Number(BlockNumber),
}

impl BlockTag {
    /// Returns the tag of a finality rule; none where the rule counts blocks.
    pub fn of(rule: FinalityRule) -> Option<Self> {
        match rule {
            FinalityRule::Depth(_) => None,
            FinalityRule::Safe => Some(Self::Safe),
            FinalityRule::Finalized => Some(Self::Finalized),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inclusion {
    pub tx_hash: TxHash,
    pub block_number: BlockNumber,
    /// As the node gave it. Before a decision, check that the block is canonical.
    pub block_hash: BlockHash,
}

/// Where a transaction was included, and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub transaction: FinalTransaction,
    /// False when it reverted.
    pub succeeded: bool,
}

impl Receipt {
    pub fn inclusion(&self) -> Inclusion {
        let FinalTransaction { tx_hash, block_number, block_hash, .. } = self.transaction;
        Inclusion { tx_hash, block_number, block_hash }
    }
}

/// Holds what one account sent in one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentInBlock {
    pub number: BlockNumber,
    pub hash: BlockHash,
    pub sent: Vec<Sent>,
    /// Nonces of the account that authorisations in this block may have taken (EIP-7702), each with its transaction.
    pub authorised: Vec<(Nonce, TxHash)>,
}

/// A transaction of an account, as its block shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub nonce: Nonce,
    pub tx_hash: TxHash,
    /// The receiver; none where a contract is deployed.
    pub to: Option<Address>,
    pub value: Wei,
    pub data: Bytes,
    /// The account's signature stands on just these fields. A node can make up everything else.
    pub is_signed: bool,
}

/// Where the endpoints count an account's transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountAt {
    Block(BlockNumber),
    /// With those that wait in the endpoint's pool.
    Pending,
    /// The same, of the endpoints that serve, get transactions, and answer soon.
    Pools,
}

/// A transaction that waits in a node's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooled {
    pub tx_hash: TxHash,
    pub fee: Option<Fee>,
}

/// Holds what is known before any transaction is refused. A node that does not say it is no worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeRules {
    /// By `eth_config` (EIP-7910).
    pub forks: Option<Forks>,
    /// The most bytes of a transaction that any endpoint takes.
    pub most_bytes: Option<u64>,
}

/// A call without a signature, to estimate or to explain.
#[derive(Debug, Clone)]
pub struct Call {
    pub from: Address,
    pub to: Address,
    pub value: Wei,
    pub data: Bytes,
}

/// A call to be run on top of transactions that are in no block yet.
#[derive(Debug, Clone)]
pub struct OnTop {
    /// Their calls, each with its gas, lowest nonce first.
    pub before: Vec<(Call, Gas)>,
    pub call: Call,
    /// The gas that a block holds.
    pub block_gas: Gas,
    /// Those are all that come before it.
    pub is_complete: bool,
}

/// Selects the log entries of a contract whose topics match, place by place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogQuery {
    pub contract: Address,
    /// The topics that match at each place; an empty list matches any.
    pub topics: Vec<Vec<Topic>>,
    /// The lowest block, which is included.
    pub from: BlockNumber,
    /// The highest block, which is included.
    pub to: BlockNumber,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub topics: Vec<Topic>,
    pub data: Bytes,
    /// The transaction that wrote it.
    pub inclusion: Inclusion,
}

/// Shows an endpoint; `/status` has the same form.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EndpointState {
    #[serde(rename = "endpoint")]
    pub label: String,
    #[serde(default)]
    pub role: Role,
    /// False also beside a private endpoint.
    #[serde(default)]
    pub gets_transactions: bool,
    pub serves: bool,
    /// At the last comparison of heads.
    pub blocks_behind: u64,
    /// Why it is not asked.
    pub problem: Option<String>,
    /// Calls a second that it gets, with one digit behind the point, where it has asked for fewer than there were or the
    /// configuration allows no more.
    #[serde(default)]
    pub calls_per_second: Option<String>,
}

impl EndpointState {
    /// Calls that a write needs: its estimate unless its gas is fixed, its broadcast, and its receipt unless those of its block are
    /// asked for together.
    pub const CALLS_PER_WRITE: &'static str = "1 to 3";
}

/// The calls of a chain. Each has a timeout for each endpoint it tries; a call that is dropped may have been sent.
#[async_trait]
pub trait Chain: Send + Sync {
    /// Checks that the endpoint that answers now serves the configured chain.
    async fn check_chain(&self) -> Result<()>;

    /// Returns `None` where there is no such block (yet).
    async fn header(&self, block: BlockTag) -> Result<Option<Header>>;

    /// Returns these blocks in order, `None` where a node does not have one. All are of one endpoint.
    async fn headers(&self, numbers: RangeInclusive<u64>) -> Result<Vec<Option<Header>>> {
        let mut headers = Vec::new();
        for number in numbers {
            headers.push(self.header(BlockTag::Number(BlockNumber(number))).await?);
        }
        Ok(headers)
    }

    /// Returns the receipts of those of `ours` that are in this very block.
    async fn receipts_in(&self, block: BlockHash, ours: &[TxHash]) -> Result<Vec<Receipt>>;

    /// Has another endpoint confirm that this block is final and that its transactions went so, where the operator asks for that.
    async fn confirm(&self, number: BlockNumber, block: BlockHash, receipts: &[Receipt]) -> Result<()>;

    /// Returns the receipt of each transaction, where the node has one. Each call has its own error.
    async fn receipts(&self, hashes: &[TxHash]) -> Vec<Result<Option<Receipt>>>;

    /// Returns the number of the account's transactions up to this block: its next nonce there. Never counts pending ones.
    async fn transaction_count(&self, account: Address, block: BlockTag) -> Result<Nonce>;

    /// Returns the account's next nonce as each endpoint reports it, by the endpoint's label.
    async fn counts(&self, account: Address, at: CountAt) -> Vec<(String, Result<Nonce>)>;

    /// Returns the account's transactions in this block, read from the block itself. `None` where there is no such block.
    async fn sent_in(&self, account: Address, block: BlockNumber) -> Result<Option<SentInBlock>>;

    async fn market(&self, head: &Header) -> Result<Market>;

    /// Estimates the gas of each call at the newest block. Each has its own error: a failure of the endpoint there means that
    /// no endpoint answered this call.
    async fn estimate(&self, calls: &[Traced<Call>]) -> Vec<Result<Gas>>;

    /// Estimates the gas of a call on top of others. [`ChainError::Node`] is the call's own failure there; any other error says that
    /// no endpoint simulates this.
    async fn estimate_on_top(&self, on_top: &OnTop) -> Result<Gas> {
        let _ = on_top;
        Err(error::unsupported())
    }

    /// Runs a call on the state after this block. The error of a reverted call holds its revert data.
    async fn call(&self, call: &Call, block: BlockNumber) -> Result<Bytes>;

    /// Returns the log entries that the node has. A node refuses a query whose range or answer is too large.
    async fn logs(&self, query: &LogQuery) -> Result<Vec<Log>>;

    /// Sends signed bytes to every node that can be reached, in order. Each result is the best answer of any node; after an
    /// error a node may have the bytes all the same.
    async fn broadcast(&self, transactions: &[Traced<RawTransaction>]) -> Vec<Result<()>>;

    async fn balance(&self, account: Address) -> Result<Wei>;

    /// Returns whether a node has this transaction, in its pool or in a block.
    async fn has_transaction(&self, hash: TxHash) -> Result<bool>;

    /// Returns whether the pool of every node that gets transactions shows this one. An error of one of them counts as no.
    async fn all_pools_have(&self, hash: TxHash) -> bool;

    /// Returns what nodes say of the chain's forks and of the transactions that they take.
    async fn node_rules(&self) -> NodeRules {
        NodeRules::default()
    }

    /// Returns the calls a second that the endpoints in use get, where they have asked for fewer than there were or the
    /// configuration allows no more.
    fn calls_per_second(&self) -> Option<f64> {
        None
    }

    /// Returns a count that changes whenever an endpoint announces a new block; none where no endpoint announces any. A block may
    /// come without: an announcement is a hint.
    fn announcements(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// Returns the transaction of the account that a node's pool holds at this nonce. `None` where there is none, or where no
    /// node shows its pool.
    async fn pooled(&self, account: Address, nonce: Nonce) -> Result<Option<Pooled>> {
        let _ = (account, nonce);
        Ok(None)
    }
}

/// Returns the account's transaction count at this block; `None` where no node has the state.
pub async fn count_at(chain: &dyn Chain, account: Address, block: u64) -> Result<Option<Nonce>> {
    known(chain.transaction_count(account, BlockTag::Number(BlockNumber(block))).await)
}

/// Returns the transaction hash of signed bytes: their keccak-256.
pub fn transaction_hash(raw: &[u8]) -> TxHash {
    TxHash(web3::signing::keccak256(raw))
}

#[cfg(test)]
mod tests;
