//! Asks the chain what it takes for L1 beside the gas, where it is a rollup, and learns from receipts. It counts in what a
//! transaction may cost, before anything is signed.

use bytes::Bytes;

use crate::chain::{Call, Receipt};
use crate::model::{BlockNumber, Wei};
use crate::policy::l1_fee::{Oracle, PROBES};
use crate::stages::lane::term::Term;

impl Term<'_> {
    /// Asks the chain's oracle from time to time. Where it has none it is asked once.
    pub(super) async fn read_l1_fees(&mut self) {
        let Some(head) = self.view.height() else { return };
        let mut is_answered = false;
        for oracle in self.rollup.begin() {
            match self.ask_oracle(oracle, head).await {
                Ok(answers) => return self.rollup.record(oracle, answers),
                Err(is_of_chain) => is_answered |= is_of_chain,
            }
        }
        if is_answered {
            self.rollup.record_none();
        }
    }

    /// Fails with whether it was the chain that did not say, and not an endpoint that did not answer.
    async fn ask_oracle(&self, oracle: Oracle, head: BlockNumber) -> Result<[Wei; 2], bool> {
        let mut fees = [Wei(0); 2];
        for (fee, bytes) in fees.iter_mut().zip(PROBES) {
            let data = Bytes::from(oracle.question(bytes));
            let call = Call { from: self.account(), to: oracle.contract, value: Wei(0), data };
            let answer = self.context.hear(self.context.chain.call(&call, head)).await;
            let answer = answer.map_err(|error| !error.is_of_endpoint())?;
            *fee = Oracle::answer(&answer).ok_or(true)?;
        }
        Ok(fees)
    }

    /// Learns what a transaction of ours cost for L1.
    pub(super) fn record_l1_cost(&mut self, receipt: &Receipt) {
        let Some(fee) = receipt.transaction.l1.fee else { return };
        let landed = self.flight.included_as(receipt.inclusion());
        let bytes = landed.and_then(|own| {
            let hash = receipt.transaction.tx_hash;
            own.signed.iter().find(|signed| signed.raw.hash == hash).map(|signed| signed.raw.bytes.len() as u64)
        });
        if let Some(bytes) = bytes {
            self.rollup.record_receipt(bytes, fee);
        }
    }
}
