//! Signs with a key in memory, on threads for computing. All fields go in: web3 asks a node for what is left out, and
//! takes the gas price for a missing tip.

use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use jsonrpc_core::{Call, Value};
use secrecy::{ExposeSecret, SecretString};
use web3::api::{Accounts, Namespace};
use web3::signing::{Key, SecretKey, SecretKeyRef, Signature, SigningError};
use web3::types::{H160, TransactionParameters, U64, U256};
use web3::{RequestId, Transport};
use zeroize::Zeroize;

use crate::model::{Address, Fee, RawTransaction, TxHash, UnsignedTransaction, Wei};
use crate::observe::traces::Traced;
use crate::signer::{Signer, SignerError};

/// Below this many a second thread costs more than it saves.
const SIGNATURES_PER_THREAD: usize = 16;

/// Why a text is no key. Says nothing of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a private key as 64 hexadecimal digits, with or without 0x")]
pub struct KeyError;

/// A [`Signer`] with its key in memory. The key is overwritten when the last handle goes.
#[derive(Clone)]
pub struct LocalSigner {
    key: Arc<Secret>,
    address: Address,
}

struct Secret(SecretKey);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.non_secure_erase();
    }
}

impl std::fmt::Debug for LocalSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalSigner").field("address", &self.address).finish_non_exhaustive()
    }
}

impl LocalSigner {
    /// Returns the signer with this private key.
    pub fn from_hex(key: &SecretString) -> Result<Self, KeyError> {
        let text = key.expose_secret().trim();
        let mut digits = text.strip_prefix("0x").unwrap_or(text).to_owned();
        let parsed = SecretKey::from_str(&digits);
        digits.zeroize();
        let key = Secret(parsed.map_err(|_| KeyError)?);
        let address = Address(SecretKeyRef::new(&key.0).address().0);
        Ok(Self { key: Arc::new(key), address })
    }

    fn sign_one(&self, transaction: &UnsignedTransaction) -> Result<RawTransaction, SignerError> {
        let accounts = Accounts::new(NoNode);
        let signing = accounts.sign_transaction(parameters(transaction), self);
        let unavailable = |detail: String| SignerError::Unavailable { address: self.address, detail };
        // Nothing is left out, so nothing is awaited.
        match signing.now_or_never() {
            Some(Ok(signed)) => Ok(RawTransaction {
                hash: TxHash(signed.transaction_hash.0),
                bytes: Bytes::from(signed.raw_transaction.0),
            }),
            Some(Err(error)) => Err(unavailable(error.to_string())),
            None => Err(unavailable("a field was left out".to_owned())),
        }
    }
}

/// web3 asks a key for its address with every signature, and computes it from the key each time.
impl Key for &LocalSigner {
    fn sign(&self, message: &[u8], chain_id: Option<u64>) -> Result<Signature, SigningError> {
        SecretKeyRef::new(&self.key.0).sign(message, chain_id)
    }

    fn sign_message(&self, message: &[u8]) -> Result<Signature, SigningError> {
        SecretKeyRef::new(&self.key.0).sign_message(message)
    }

    fn address(&self) -> H160 {
        H160(self.address.0)
    }
}

#[async_trait]
impl Signer for LocalSigner {
    fn address(&self) -> Address {
        self.address
    }

    async fn sign(&self, transactions: Vec<Traced<UnsignedTransaction>>) -> Result<Vec<RawTransaction>, SignerError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = transactions.len().div_ceil(threads).max(SIGNATURES_PER_THREAD);
        let shares = transactions.chunks(share).map(|share| {
            let (signer, share) = (self.clone(), share.to_vec());
            tokio::task::spawn_blocking(move || {
                share.iter().map(|transaction| signer.sign_one(&transaction.item)).collect::<Result<Vec<_>, _>>()
            })
        });
        let mut signed = Vec::with_capacity(transactions.len());
        for share in shares.collect::<Vec<_>>() {
            let ended = |error: tokio::task::JoinError| SignerError::Unavailable {
                address: self.address,
                detail: format!("its thread ended: {error}"),
            };
            signed.extend(share.await.map_err(ended)??);
        }
        Ok(signed)
    }
}

fn parameters(transaction: &UnsignedTransaction) -> TransactionParameters {
    let price = |wei: Wei| U256::from(wei.0);
    let (transaction_type, gas_price, max_fee_per_gas, max_priority_fee_per_gas) = match transaction.fee {
        Fee::Eip1559 { max_fee, tip } => (2, None, Some(price(max_fee)), Some(price(tip))),
        Fee::Legacy { gas_price } => (0, Some(price(gas_price)), None, None),
    };
    TransactionParameters {
        nonce: Some(U256::from(transaction.nonce.0)),
        to: transaction.to.map(|to| H160(to.0)),
        gas: U256::from(transaction.gas.0),
        gas_price,
        value: U256::from(transaction.value.0),
        data: web3::types::Bytes(transaction.data.to_vec()),
        chain_id: Some(transaction.chain_id),
        transaction_type: Some(U64::from(transaction_type)),
        access_list: None,
        max_fee_per_gas,
        max_priority_fee_per_gas,
    }
}

/// web3 wants a transport to sign with. This one never answers, so that a field left out shows as such.
#[derive(Debug, Clone)]
struct NoNode;

impl Transport for NoNode {
    type Out = std::future::Pending<web3::error::Result<Value>>;

    fn prepare(&self, method: &str, params: Vec<Value>) -> (RequestId, Call) {
        (0, web3::helpers::build_request(0, method, params))
    }

    fn send(&self, _: RequestId, _: Call) -> Self::Out {
        std::future::pending()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::transaction_hash;
    use crate::model::{Gas, Nonce};

    const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

    fn signer() -> LocalSigner {
        LocalSigner::from_hex(&SecretString::from(KEY)).unwrap()
    }

    fn transaction(nonce: u64, fee: Fee) -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: 31337,
            nonce: Nonce(nonce),
            to: Some(Address([0x11; 20])),
            value: Wei(1),
            gas: Gas(21_000),
            data: Bytes::from_static(b"data"),
            fee,
        }
    }

    #[test]
    fn the_address_is_the_keys_and_the_key_is_never_printed() {
        let signer = signer();
        assert_eq!(signer.address().to_string(), "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266");
        assert!(!format!("{signer:?}").contains("ac0974"));
        for text in ["", "0x", "xyz", "0x00", &"0".repeat(64)] {
            assert_eq!(LocalSigner::from_hex(&SecretString::from(text)).unwrap_err(), KeyError, "{text}");
        }
    }

    #[tokio::test]
    async fn signatures_come_in_order_with_the_hash_of_their_bytes() {
        let fee = Fee::Eip1559 { max_fee: Wei(20), tip: Wei(2) };
        let signed = signer().sign((0..100).map(|nonce| transaction(nonce, fee).into()).collect()).await.unwrap();
        assert_eq!(signed.len(), 100);
        for (nonce, signed) in signed.iter().enumerate() {
            assert_eq!(signed.hash, transaction_hash(&signed.bytes));
            let again = signer().sign(vec![transaction(nonce as u64, fee).into()]).await.unwrap();
            assert_eq!(again[0], *signed, "the same transaction gives the same bytes");
        }
    }

    #[tokio::test]
    async fn type_2_and_type_0_are_encoded_as_such() {
        let fees = [Fee::Eip1559 { max_fee: Wei(20), tip: Wei(0) }, Fee::Legacy { gas_price: Wei(0) }];
        let signed = signer().sign(fees.map(|fee| transaction(0, fee).into()).to_vec()).await.unwrap();
        assert_eq!(signed[0].bytes[0], 2);
        assert!(signed[1].bytes[0] >= 0xc0, "a legacy transaction is an RLP list");
    }
}
