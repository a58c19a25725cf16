//! Asks the chain what it takes for L1 beside the gas, where it is a rollup, and learns from receipts. It counts in what a
//! transaction may cost, before anything is signed.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::chain::{Call, ChainError, Receipt};
use crate::model::{BlockNumber, Wei};
use crate::policy::classify::SimulationMeaning;
use crate::policy::l1_fee::{OPERATOR_PROBES, OperatorFees, Oracle, PROBES};
use crate::stages::lane::term::Term;

/// For all questions to oracles.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// Holds what comes of asking oracles.
enum Asked {
    Answers(Oracle, [Wei; 2], OperatorFees),
    /// Nodes ran the calls, and the chain has no such contract.
    NoOracle,
    /// Some call had no answer that says so.
    Silence,
}

impl Term<'_> {
    /// Asks the chain's oracle from time to time. Where it has none it is asked once.
    pub(super) async fn read_l1_fees(&mut self) {
        let Some(head) = self.view.height() else { return };
        let oracles = self.rollup.begin();
        if oracles.is_empty() {
            return;
        }
        // Nothing waits long for it.
        match timeout(ASK_LIMIT, self.ask_oracles(oracles, head)).await.unwrap_or(Asked::Silence) {
            Asked::Answers(oracle, answers, operator) => self.rollup.record(oracle, answers, operator),
            Asked::NoOracle => self.rollup.record_none(),
            Asked::Silence => {}
        }
    }

    async fn ask_oracles(&self, oracles: Vec<Oracle>, head: BlockNumber) -> Asked {
        let mut is_silent = false;
        for oracle in oracles {
            match self.ask_oracle(oracle, head).await {
                answers @ Asked::Answers(..) => return answers,
                Asked::NoOracle => {}
                Asked::Silence => is_silent = true,
            }
        }
        if is_silent { Asked::Silence } else { Asked::NoOracle }
    }

    async fn ask_oracle(&self, oracle: Oracle, head: BlockNumber) -> Asked {
        let mut fees = [Wei(0); 2];
        for (fee, bytes) in fees.iter_mut().zip(PROBES) {
            match self.answer_of(oracle, oracle.question(bytes), head).await {
                Ok(Some(answer)) => *fee = answer,
                Ok(None) => return Asked::NoOracle,
                Err(error) if self.has_run(&error) => return Asked::NoOracle,
                Err(_) => return Asked::Silence,
            }
        }
        match self.ask_operator(oracle, head).await {
            Some(operator) => Asked::Answers(oracle, fees, operator),
            None => Asked::Silence,
        }
    }

    async fn answer_of(&self, oracle: Oracle, question: Vec<u8>, head: BlockNumber) -> Result<Option<Wei>, ChainError> {
        let data = Bytes::from(question);
        let call = Call { from: self.account(), to: oracle.contract, value: Wei(0), data };
        self.context.hear(self.context.chain.call(&call, head)).await.map(|data| Oracle::answer(&data))
    }

    /// Returns the operator's fees; zero where the chain is older than that fee. `None` where no node answered.
    async fn ask_operator(&self, oracle: Oracle, head: BlockNumber) -> Option<OperatorFees> {
        let mut fees = [Wei(0); 2];
        for (fee, gas) in fees.iter_mut().zip(OPERATOR_PROBES) {
            let Some(question) = oracle.operator_question(gas) else { return Some(OperatorFees::default()) };
            match self.answer_of(oracle, question, head).await {
                Ok(Some(answer)) => *fee = answer,
                Ok(None) => return Some(OperatorFees::default()),
                Err(error) if self.has_run(&error) => return Some(OperatorFees::default()),
                Err(_) => return None,
            }
        }
        Some(OperatorFees::through(fees))
    }

    /// Returns whether the node ran the call: there is no such contract, or it knows no such function.
    fn has_run(&self, error: &ChainError) -> bool {
        let ChainError::Node { message, .. } = error else { return false };
        self.context.settings.rules.errors.meaning_of_simulation(message) == SimulationMeaning::Failed
    }

    /// Learns what a transaction of ours cost for L1.
    pub(super) fn record_l1_cost(&mut self, receipt: &Receipt) {
        let Some(fee) = receipt.transaction.l1.fee else { return };
        let own = self.flight.included_as(receipt.inclusion());
        if let Some(landed) = own.and_then(|own| own.signed_as(receipt.transaction.tx_hash)) {
            self.rollup.record_receipt(landed.raw.bytes.len() as u64, fee);
        }
    }
}
