//! Why a node did not answer, and what that is about: the call, or the endpoint.

use std::time::Duration;

use bytes::Bytes;

use crate::model::PauseReason;
use crate::model::text::counted;

/// Runs calls on top of others, where a node has it.
pub(super) const SIMULATE: &str = "eth_simulateV1";

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
    /// An HTTP status says that the server does not serve us, or not this.
    #[error("{endpoint} refuses to serve, HTTP status {status}: {said}")]
    Denied {
        endpoint: String,
        status: u16,
        /// The begin of the body, in one line.
        said: String,
    },
    /// The node shows its newest block and cannot read the state after it.
    #[error("{endpoint} has the newest block and lacks its state: {detail}")]
    NoState { endpoint: String, detail: String },
    /// A chain whose rules are from before Byzantium.
    #[error("{endpoint} gives receipts without a status, which do not say whether a transaction succeeded")]
    NoStatus { endpoint: String },
    /// HTTP 429, or the same in words.
    #[error("{endpoint} asks for fewer calls")]
    RateLimited {
        endpoint: String,
        /// The wait that the node asks for, if it says so.
        retry_after: Option<Duration>,
    },
    /// The node says that it is still catching up.
    #[error("{endpoint} is still syncing")]
    Syncing { endpoint: String },
    /// Another endpoint has shown newer blocks.
    #[error("{endpoint} is {} behind another endpoint", counted(*blocks, "block"))]
    Lagging { endpoint: String, blocks: u64 },
    /// Another chain is behind the endpoint.
    #[error("{endpoint} serves chain {found}, chain.id is {expected}; correct chain.endpoints or chain.id")]
    WrongChain { endpoint: String, found: u64, expected: u64 },
    /// Not an answer to the call: another request's id, HTML, half a JSON document, null instead of a value.
    #[error("{endpoint} answered nonsense: {detail}")]
    Nonsense { endpoint: String, detail: String },
    /// No endpoint of `chain.confirm_with` has confirmed what is final.
    #[error("chain.confirm_with does not confirm: {detail}")]
    Unconfirmed { detail: String },
    #[error("{endpoint} refuses: {message}")]
    Node {
        endpoint: String,
        /// The JSON-RPC code. Clients disagree about the meanings.
        code: i64,
        message: String,
        /// The return data of a reverted call.
        data: Option<Bytes>,
    },
}

impl ChainError {
    /// Returns true where the error is about the endpoint and not about the call: another endpoint may answer.
    pub fn is_of_endpoint(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Denied { .. }
            | Self::NoState { .. }
            | Self::NoStatus { .. }
            | Self::RateLimited { .. }
            | Self::Syncing { .. }
            | Self::Lagging { .. }
            | Self::WrongChain { .. }
            | Self::Unconfirmed { .. }
            | Self::Nonsense { .. } => true,
            Self::Node { .. } => false,
        }
    }

    /// Returns true where the error looks like one of the endpoint, and may be about the call all the same: if the endpoint
    /// answers other calls meanwhile, it is.
    pub fn may_be_of_call(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Denied { .. } | Self::NoStatus { .. } | Self::Nonsense { .. } => true,
            Self::NoState { .. }
            | Self::RateLimited { .. }
            | Self::Syncing { .. }
            | Self::Lagging { .. }
            | Self::WrongChain { .. }
            | Self::Unconfirmed { .. }
            | Self::Node { .. } => false,
        }
    }

    /// Returns why a lane pauses after this error of a call that must succeed.
    pub fn pause_reason(&self) -> PauseReason {
        match self {
            Self::Unreachable { .. } | Self::Denied { .. } | Self::Nonsense { .. } | Self::Node { .. } => {
                PauseReason::NodeUnreachable
            }
            Self::NoState { .. } => PauseReason::NodeLacksState,
            Self::NoStatus { .. } => PauseReason::NoReceiptStatus,
            Self::RateLimited { .. } => PauseReason::RateLimited,
            Self::Syncing { .. } | Self::Lagging { .. } => PauseReason::NodeSyncing,
            Self::WrongChain { .. } => PauseReason::WrongChain,
            Self::Unconfirmed { .. } => PauseReason::FinalityUnconfirmed,
        }
    }
}

pub type Result<T, E = ChainError> = std::result::Result<T, E>;

/// Turns a refusal or nonsense into `None`: "missing trie node" or pruned history is neither evidence nor an outage.
pub fn known<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ChainError::Node { .. } | ChainError::Nonsense { .. }) => Ok(None),
        Err(
            error @ (ChainError::Unreachable { .. }
            | ChainError::Denied { .. }
            | ChainError::NoState { .. }
            | ChainError::NoStatus { .. }
            | ChainError::RateLimited { .. }
            | ChainError::Syncing { .. }
            | ChainError::Lagging { .. }
            | ChainError::Unconfirmed { .. }
            | ChainError::WrongChain { .. }),
        ) => Err(error),
    }
}

/// Returns the error of a chain on which nothing is simulated on top of transactions.
pub(super) fn unsupported() -> ChainError {
    ChainError::Nonsense { endpoint: "no endpoint".to_owned(), detail: format!("{SIMULATE} is not answered") }
}
