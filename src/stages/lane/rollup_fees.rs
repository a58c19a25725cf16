//! Holds what is known of the fees of a rollup for L1: by its own oracle, else by the last receipts. No I/O.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::{Gas, Wei};
use crate::policy::l1_fee::{L1Fees, ORACLES, OperatorFees, Oracle};

/// Interval between questions to an oracle: L1 makes a block in twelve seconds, and its prices change by an eighth with each.
const ASKED: Duration = Duration::from_secs(60);

/// Says how the chain shows what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Source {
    /// No oracle was asked yet.
    #[default]
    Unknown,
    /// The chain has no oracle that is known.
    Receipts,
    Oracle(Oracle),
}

/// The fees of one term.
#[derive(Debug, Default)]
pub(super) struct RollupFees {
    source: Source,
    fees: Option<L1Fees>,
    /// Receipts have it in the fee for L1.
    operator: OperatorFees,
    asked_at: Option<Instant>,
}

impl RollupFees {
    /// Returns the fees beside its gas of a transaction with this number of bytes of calldata and this much gas.
    pub(super) fn of(&self, calldata: usize, gas: Gas) -> Wei {
        self.fees.map_or(Wei(0), |fees| fees.of(calldata)).plus(self.operator.of(gas))
    }

    /// Returns the oracles that are to be asked now; counts as asking.
    pub(super) fn begin(&mut self) -> Vec<Oracle> {
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
    pub(super) fn record(&mut self, oracle: Oracle, answers: [Wei; 2], operator: OperatorFees) {
        self.source = Source::Oracle(oracle);
        self.fees = Some(L1Fees::through(answers));
        self.operator = operator;
    }

    /// Records that the chain's nodes answered, and that it has no oracle.
    pub(super) fn record_none(&mut self) {
        if self.source == Source::Unknown {
            self.source = Source::Receipts;
        }
    }

    /// Records the fee of a transaction of this size in bytes. It counts where the chain has no oracle.
    pub(super) fn record_receipt(&mut self, bytes: u64, fee: Wei) {
        if !matches!(self.source, Source::Oracle(_)) {
            self.fees = Some(L1Fees::of_receipt(bytes, fee));
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
        let operator = OperatorFees::through([Wei(3), Wei(1_000_003)]);
        fees.record(ORACLES[1], [Wei(100), Wei(20_100)], operator);
        tokio::time::advance(ASKED).await;
        assert_eq!(fees.begin(), [ORACLES[1]]);
        assert_eq!((fees.of(0, Gas(0)), fees.of(1_080, Gas(50))), (Wei(103), Wei(1_153)));
        fees.record_receipt(100, Wei(9));
        assert_eq!(fees.of(0, Gas(0)), Wei(103), "the oracle knows better");
        let mut other = RollupFees::default();
        other.begin();
        other.record_none();
        tokio::time::advance(ASKED * 100).await;
        assert!(other.begin().is_empty());
        assert_eq!(other.of(500, Gas(21_000)), Wei(0));
        other.record_receipt(120, Wei(80));
        assert_eq!(other.of(0, Gas(21_000)), Wei(100), "a quarter more than the last one");
    }
}
