//! Signers: the local one with a key in memory, and the simulated one.

use secrecy::SecretString;

use crate::chain::transaction_hash;
use crate::model::{Address, Fee, Gas, Nonce, UnsignedTransaction, Wei};
use crate::signer::{LocalSigner, Signer};
use crate::simulation::signer::SimSigner;
use crate::simulation::world::{Shared, World};

const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

fn transaction(nonce: u64) -> UnsignedTransaction {
    UnsignedTransaction {
        chain_id: crate::simulation::ledger::CHAIN_ID,
        nonce: Nonce(nonce),
        to: Some(Address([2; 20])),
        value: Wei(0),
        gas: Gas(21_000),
        data: bytes::Bytes::from_static(b"data"),
        fee: Fee::Eip1559 { max_fee: Wei(20), tip: Wei(2) },
    }
}

async fn simulated() -> Box<dyn Signer> {
    let world = World::new(fastrand::Rng::with_seed(1), tokio::time::Instant::now());
    Box::new(SimSigner { world: Shared::new(world), address: Address([1; 20]) })
}

async fn local() -> Box<dyn Signer> {
    Box::new(LocalSigner::from_hex(&SecretString::from(KEY)).unwrap())
}

async fn each_transaction_gets_bytes_of_its_own_in_order(signer: &mut Box<dyn Signer>) {
    let signed = signer.sign((0..20).map(|nonce| transaction(nonce).into()).collect()).await.unwrap();
    assert_eq!(signed.len(), 20);
    for signed in &signed {
        assert_eq!(signed.hash, transaction_hash(&signed.bytes));
    }
    let mut hashes: Vec<_> = signed.iter().map(|signed| signed.hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 20);
}

async fn nothing_to_sign_is_no_error(signer: &mut Box<dyn Signer>) {
    assert_eq!(signer.sign(Vec::new()).await.unwrap(), []);
    assert_ne!(signer.address(), Address([0; 20]));
}

super::both!(simulated(), local(), each_transaction_gets_bytes_of_its_own_in_order, nothing_to_sign_is_no_error);
