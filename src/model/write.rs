//! The write that a request asks for: the contract, the calldata, the value and the gas.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::model::ids::{Address, BlockNumber, BodyHash, Gas, Nonce, TxHash, Wei, WriteHash};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GasRule {
    /// The node's estimate and a margin.
    Estimate {
        /// The share on top of the estimate, in percent.
        margin: u32,
    },
    /// Always this much; nothing is simulated.
    Fixed(Gas),
}

/// All that a request decides of its transaction. It is fixed when the request is taken in and stored with it, so that
/// every attempt and every instance signs the same, whatever their configuration says by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub to: Address,
    pub value: Wei,
    pub gas: GasRule,
    /// The calldata; `None`: the body.
    pub data: Option<Bytes>,
    /// The most that it offers for one unit of gas; `None`: as much as any.
    pub max_fee: Option<Wei>,
}

impl Write {
    /// Returns the hash of what a contract is called with, given that of the body.
    pub fn data_hash(&self, of_body: BodyHash) -> BodyHash {
        self.data.as_deref().map_or(of_body, BodyHash::of)
    }

    /// Returns a hash over every field.
    pub fn hash(&self) -> WriteHash {
        let (kind, gas) = match self.gas {
            GasRule::Estimate { margin } => (0_u8, u64::from(margin)),
            GasRule::Fixed(gas) => (1, gas.0),
        };
        let mut hasher = Sha256::new();
        hasher.update(self.to.as_bytes());
        hasher.update(self.value.0.to_be_bytes());
        hasher.update([kind]);
        hasher.update(gas.to_be_bytes());
        hasher.update([u8::from(self.data.is_some())]);
        hasher.update(self.data.as_deref().unwrap_or_default());
        if let Some(most) = self.max_fee {
            hasher.update(b"max_fee");
            hasher.update(most.0.to_be_bytes());
        }
        WriteHash(hasher.finalize().into())
    }
}

/// A call in a transaction of one of our accounts that the journal has no row for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredWrite {
    pub nonce: Nonce,
    /// The index of its call in a batch.
    pub place: u32,
    pub tx_hash: TxHash,
    pub block_number: BlockNumber,
    /// The hash of its calldata; where it was a batch, of the calldata that the request would have had alone.
    pub data_hash: BodyHash,
    pub to: Address,
    pub value: Wei,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_different_has_another_hash() {
        let write =
            Write { to: Address([1; 20]), value: Wei(1), gas: GasRule::Fixed(Gas(30_000)), data: None, max_fee: None };
        let others = [
            Write { to: Address([2; 20]), ..write.clone() },
            Write { value: Wei(2), ..write.clone() },
            Write { gas: GasRule::Fixed(Gas(30_001)), ..write.clone() },
            Write { gas: GasRule::Estimate { margin: 30_000 }, ..write.clone() },
            Write { data: Some(Bytes::new()), ..write.clone() },
            Write { data: Some(Bytes::from_static(b"a")), ..write.clone() },
            Write { max_fee: Some(Wei(0)), ..write.clone() },
            Write { max_fee: Some(Wei(1)), ..write.clone() },
        ];
        let mut hashes: Vec<_> = others.iter().chain([&write]).map(Write::hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), others.len() + 1);
    }
}
