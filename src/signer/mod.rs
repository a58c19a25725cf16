//! The signer's seam: who turns transactions into bytes that a node takes.

use async_trait::async_trait;

use crate::model::{Address, SignedTransaction, UnsignedTransaction};

mod local;

pub use local::{KeyError, LocalSigner};

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The signer does not answer now.
    #[error("the signer for {address} does not answer: {detail}")]
    Unavailable {
        /// Whose key it has.
        address: Address,
        /// What happened.
        detail: String,
    },
}

/// Signs for one account.
#[async_trait]
pub trait Signer: Send + Sync {
    /// The account that it signs for.
    fn address(&self) -> Address;

    /// Signs them all, or none. Off the runtime's threads where it takes computing.
    async fn sign(&self, transactions: Vec<UnsignedTransaction>) -> Result<Vec<SignedTransaction>, SignerError>;
}
