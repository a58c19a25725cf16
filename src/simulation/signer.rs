//! The simulated signer: instant, or away, and with seeds that want it another signature each time.

use async_trait::async_trait;

use crate::chain::transaction_hash;
use crate::model::{Address, RawTransaction, UnsignedTransaction};
use crate::observe::traces::Traced;
use crate::signer::{Signer, SignerError};
use crate::simulation::ledger::encode;
use crate::simulation::world::Shared;

pub(super) struct SimSigner {
    pub(super) world: Shared,
    pub(super) address: Address,
}

#[async_trait]
impl Signer for SimSigner {
    fn address(&self) -> Address {
        self.address
    }

    async fn sign(&self, transactions: Vec<Traced<UnsignedTransaction>>) -> Result<Vec<RawTransaction>, SignerError> {
        let latency = self.world.lock().latency();
        tokio::time::sleep(latency).await;
        let mut world = self.world.lock();
        let odds = world.weather.signer_away;
        if world.happens(odds) {
            return Err(SignerError::Unavailable { address: self.address, detail: "simulated".to_owned() });
        }
        let sign = |unsigned: Traced<UnsignedTransaction>| {
            let salt = world.salt();
            let raw = encode(self.address, &unsigned.item, salt);
            RawTransaction { hash: transaction_hash(&raw), bytes: raw }
        };
        Ok(transactions.into_iter().map(sign).collect())
    }
}
