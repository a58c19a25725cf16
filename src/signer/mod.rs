//! The signer's seam: turns transactions into signed bytes. `local` holds a key in memory, `remote` asks a server that has
//! the key, and `answer` checks what that server returns.

use async_trait::async_trait;

use crate::model::{Address, Nonce, RawTransaction, UnsignedTransaction};
use crate::observe::traces::Traced;

mod answer;
pub mod keystore;
mod local;
mod remote;

pub use local::LocalSigner;
pub use remote::{RemoteKind, RemoteSettings, RemoteSigner};

#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    #[error("the signer for {address} does not answer: {detail}")]
    Unavailable { address: Address, detail: String },
    /// The answer is not what was asked for. Nothing of it may be used.
    #[error(
        "the signer {label} answered for nonce {nonce} of {address} with something else than it was asked for: {problem}; nothing was sent"
    )]
    Wrong {
        label: String,
        /// The account whose key it should have used.
        address: Address,
        /// The nonce that it was asked for.
        nonce: Nonce,
        problem: String,
    },
}

#[async_trait]
pub trait Signer: Send + Sync {
    /// Returns the account that it signs for.
    fn address(&self) -> Address;

    /// Signs all of them, or none. Computes off the runtime's threads.
    async fn sign(&self, transactions: Vec<Traced<UnsignedTransaction>>) -> Result<Vec<RawTransaction>, SignerError>;
}
