//! What the chain asks for L1 beside the gas, where it is a rollup: by its own oracle, else by the last receipts. It counts in what
//! a transaction may cost, before anything is signed.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::chain::{Call, Receipt};
use crate::model::{BlockNumber, Wei};
use crate::policy::l1_fee::{L1Fees, ORACLES, Oracle, PROBES};
use crate::stages::lane::term::Term;

/// How often an oracle is asked: L1 makes a block in twelve seconds, and its prices change by an eighth with each.
const ASKED: Duration = Duration::from_secs(60);

/// How the chain shows what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Source {
    /// It was not asked.
    #[default]
    Unknown,
    /// It has no oracle that is known.
    Receipts,
    Oracle(Oracle),
}

/// The fees of one term.
#[derive(Debug, Default)]
pub(super) struct RollupFees {
    source: Source,
    fees: Option<L1Fees>,
    asked_at: Option<Instant>,
}

impl RollupFees {
    /// Returns what may be asked for a transaction with so many bytes of calldata.
    pub(super) fn of(&self, calldata: usize) -> Wei {
        self.fees.map_or(Wei(0), |fees| fees.of(calldata))
    }

    /// Returns the oracles that are to be asked now; counts as asking.
    fn begin(&mut self) -> Vec<Oracle> {
        if self.asked_at.is_some_and(|at| at.elapsed() < ASKED) {
            return Vec::new();
        }
        let oracles = match self.source {
            Source::Unknown => ORACLES.to_vec(),
            Source::Receipts => return Vec::new(),
            Source::Oracle(oracle) => vec![oracle],
        };
        self.asked_at = Some(Instant::now());
        oracles
    }

    /// Records an oracle's answers. What was known stays where there are none.
    fn record(&mut self, oracle: Oracle, answers: [Wei; 2]) {
        self.source = Source::Oracle(oracle);
        self.fees = Some(L1Fees::through(answers));
    }

    /// Records that the chain's nodes answered, and that it has no oracle.
    fn record_none(&mut self) {
        if self.source == Source::Unknown {
            self.source = Source::Receipts;
        }
    }

    /// Learns from the receipt of a transaction of so many bytes.
    fn record_receipt(&mut self, bytes: u64, fee: Wei) {
        if !matches!(self.source, Source::Oracle(_)) {
            self.fees = Some(L1Fees::of_receipt(bytes, fee));
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_oracle_is_asked_now_and_then_and_a_chain_without_one_is_asked_once() {
        let mut fees = RollupFees::default();
        assert_eq!((fees.begin().len(), fees.begin().len()), (ORACLES.len(), 0));
        tokio::time::advance(ASKED).await;
        assert_eq!(fees.begin().len(), ORACLES.len(), "nothing was answered");
        fees.record(ORACLES[1], [Wei(100), Wei(20_100)]);
        tokio::time::advance(ASKED).await;
        assert_eq!(fees.begin(), [ORACLES[1]]);
        assert_eq!((fees.of(0), fees.of(1_080)), (Wei(100), Wei(1_100)));
        fees.record_receipt(100, Wei(9));
        assert_eq!(fees.of(0), Wei(100), "the oracle knows better");
        let mut other = RollupFees::default();
        other.begin();
        other.record_none();
        tokio::time::advance(ASKED * 100).await;
        assert!(other.begin().is_empty());
        assert_eq!(other.of(500), Wei(0));
        other.record_receipt(120, Wei(80));
        assert_eq!(other.of(0), Wei(100), "a quarter more than the last one");
    }
}
