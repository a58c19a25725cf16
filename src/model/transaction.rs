//! Transactions: before they are signed, once they are signed, and where their nonce stands.

use bytes::Bytes;

use crate::model::cause::Cause;
use crate::model::ids::{Address, Gas, Nonce, Timestamp, TxHash, Wei};
use crate::model::words::words;

/// The price that a transaction offers for each unit of gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fee {
    /// A type 2 transaction (EIP-1559).
    Eip1559 {
        /// The most that it pays for one unit of gas, base fee included.
        max_fee: Wei,
        /// The most of it that goes to the block's producer.
        tip: Wei,
    },
    /// A type 0 transaction with an EIP-155 signature.
    Legacy { gas_price: Wei },
}

impl Fee {
    /// Returns the most that one unit of gas can cost.
    pub fn ceiling(self) -> Wei {
        match self {
            Self::Eip1559 { max_fee, .. } => max_fee,
            Self::Legacy { gas_price } => gas_price,
        }
    }

    /// Returns the most that this much gas can cost.
    pub fn total(self, gas: Gas) -> Wei {
        Wei(self.ceiling().0.saturating_mul(gas.0.into()))
    }

    /// Returns the most that goes to the block's producer.
    pub fn tip(self) -> Wei {
        match self {
            Self::Eip1559 { tip, .. } => tip,
            Self::Legacy { gas_price } => gas_price,
        }
    }
}

/// All fields of a transaction. Signing consumes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsignedTransaction {
    pub chain_id: u64,
    pub nonce: Nonce,
    /// `None` where a contract is made.
    pub to: Option<Address>,
    pub value: Wei,
    pub gas: Gas,
    pub data: Bytes,
    pub fee: Fee,
}

words!(
    /// Why a transaction is signed; the journal stores the word.
    Purpose {
        /// Does what the request asks for.
        Write = "write",
        /// A self-transfer that takes the nonce, so that the write can never land.
        Cancel = "cancel",
    }
);

/// The encoding of a signed transaction that a node takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTransaction {
    /// keccak-256 of `bytes`.
    pub hash: TxHash,
    /// EIP-2718 envelope, or RLP for a legacy transaction.
    pub bytes: Bytes,
}

/// A signed transaction, as the journal keeps it: one encoding, and why it was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedTransaction {
    pub purpose: Purpose,
    pub raw: RawTransaction,
    pub fee: Fee,
    pub signed_at: Timestamp,
    /// Why a cancellation was signed: what the request ends with if it lands.
    pub cause: Option<Cause>,
}

words!(
    /// Where a nonce stands; the journal stores the word.
    TransactionState {
        /// A signed transaction with this nonce may still land.
        Live = "live",
        Succeeded = "succeeded",
        Reverted = "reverted",
        /// Final with its cancellation.
        Cancelled = "cancelled",
        /// Final with a transaction that is not ours.
        Displaced = "displaced",
    }
);

impl TransactionState {
    /// Returns true where the requests must have no other transaction: this one may land, or has landed and succeeded.
    pub fn has_effect(self) -> bool {
        match self {
            Self::Live | Self::Succeeded => true,
            Self::Reverted | Self::Cancelled | Self::Displaced => false,
        }
    }
}
