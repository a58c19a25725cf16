//! The signer's seam: who turns transactions into bytes that a node takes.

use async_trait::async_trait;

use crate::model::{Address, Nonce, RawTransaction, UnsignedTransaction};
use crate::observe::traces::Traced;

mod answer;
pub mod keystore;
mod local;
mod remote;

pub use local::LocalSigner;
pub use remote::{RemoteSettings, RemoteSigner, RemoteTls};

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The signer does not answer now.
    #[error("the signer for {address} does not answer: {detail}")]
    Unavailable {
        /// Whose key it has.
        address: Address,
        detail: String,
    },
    /// What it answered is not what it was asked for. Nothing of it may be used.
    #[error(
        "the signer {label} answered for nonce {nonce} of {address} with something else than it was asked for: {problem}; nothing was sent"
    )]
    Wrong {
        label: String,
        /// Whose key it should have used.
        address: Address,
        /// Which transaction it was asked for.
        nonce: Nonce,
        problem: String,
    },
}

/// Signs for one account.
#[async_trait]
pub trait Signer: Send + Sync {
    /// The account that it signs for.
    fn address(&self) -> Address;

    /// Signs all of them, or none. Computes off the runtime's threads.
    async fn sign(&self, transactions: Vec<Traced<UnsignedTransaction>>) -> Result<Vec<RawTransaction>, SignerError>;
}
