//! From a queued request to bytes ready for the journal: simulate, price, fill in the fields.

use crate::chain::{Call, ChainError};
use crate::handover::Ruling;
use crate::journal::{Lease, NewTransaction, QueuedRequest};
use crate::lane::window::InFlight;
use crate::lane::{Lane, ending};
use crate::model::{
    Address, Attempt, AttemptKind, Cause, Fee, Gas, GasRule, Nonce, PauseReason, SignedTransaction, Timestamp,
    UnsignedTransaction, Wei, Write,
};
use crate::policy::classify::SimulationMeaning;
use crate::policy::fee::Market;
use crate::policy::limits::Share;
use crate::policy::records::{self, Taken};
use crate::policy::{gas, revert};

/// A request from the queue, and what it asks for.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) request: QueuedRequest,
    pub(super) write: Write,
}

/// A request that can be signed.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) request: QueuedRequest,
    pub(super) to: Address,
    pub(super) value: Wei,
    pub(super) gas: Gas,
}

impl Prepared {
    /// What it counts with against the limits.
    pub(super) fn share(&self, fee: Fee) -> Share {
        Share { gas: self.gas, value: self.value, fee: fee.total(self.gas) }
    }
}

enum Simulated {
    Runs(Gas),
    Fails(Cause),
    /// The contract has a record under its id.
    Taken(Taken),
    NotLooked(PauseReason, String),
}

impl Lane {
    /// Moves what was fetched to what is ready, in order; rules on what cannot run. What could not be looked at stays
    /// fetched, with all behind it.
    pub(super) async fn prepare(&mut self, lease: &Lease) -> Result<(), (PauseReason, String)> {
        if self.fetched.is_empty() {
            return Ok(());
        }
        let simulated = self.simulate().await.map_err(|error| (error.pause_reason(), error.to_string()))?;
        let mut rulings: Vec<Ruling> = Vec::new();
        let mut stopped = None;
        let mut fetched = std::mem::take(&mut self.fetched).into_iter();
        for outcome in simulated {
            let (gas, Fetched { request, write }) = match (outcome, fetched.next()) {
                (Simulated::Runs(gas), Some(fetched)) => (gas, fetched),
                (Simulated::Fails(cause), Some(Fetched { request, .. })) => {
                    rulings.push(ending::failed(lease, request, cause));
                    continue;
                }
                (Simulated::Taken(taken), Some(fetched)) => {
                    match self.judge_taken(fetched.write.to, &taken).await {
                        Ok(Some(verdict)) => rulings.push(ending::ended(lease, fetched.request, verdict)),
                        // It stays in the queue, and the next look at that finds it.
                        Ok(None) => {}
                        Err(error) => {
                            self.fetched.push(fetched);
                            stopped = Some((error.pause_reason(), error.to_string()));
                            break;
                        }
                    }
                    continue;
                }
                (Simulated::NotLooked(reason, detail), fetched) => {
                    self.fetched.extend(fetched);
                    stopped = Some((reason, detail));
                    break;
                }
                (Simulated::Runs(_) | Simulated::Fails(_) | Simulated::Taken(_), None) => break,
            };
            self.prepared.push_back(Prepared { request, to: write.to, value: write.value, gas });
        }
        self.fetched.extend(fetched);
        self.rule(rulings).await;
        stopped.map_or(Ok(()), Err)
    }

    async fn simulate(&self) -> Result<Vec<Simulated>, ChainError> {
        let block_limit = self.head.as_ref().map_or(Gas(u64::MAX), |head| head.gas_limit);
        let is_estimated = |fetched: &&Fetched| matches!(fetched.write.gas, GasRule::Estimate { .. });
        let calls: Vec<_> = self.fetched.iter().filter(is_estimated).map(|fetched| self.call(fetched)).collect();
        let estimates = if calls.is_empty() { Vec::new() } else { self.chain.estimate(&calls).await? };
        let mut estimates = estimates.into_iter();
        let judge = |estimate, margin, calldata: &[u8]| match estimate {
            Ok(estimate) => self.within_limits(gas::limit(estimate, margin, block_limit)),
            Err(ChainError::Node { message, data, .. }) => match self.settings.errors.meaning_of_simulation(&message) {
                SimulationMeaning::Failed => match data.as_deref().and_then(|data| records::taken(calldata, data)) {
                    Some(taken) => Simulated::Taken(taken),
                    None => Simulated::Fails(self.simulation_cause(&message, data.as_deref())),
                },
                SimulationMeaning::InsufficientFunds => Simulated::NotLooked(PauseReason::InsufficientFunds, message),
                SimulationMeaning::Unavailable => Simulated::NotLooked(PauseReason::NodeUnreachable, message),
            },
            Err(error) => Simulated::NotLooked(error.pause_reason(), error.to_string()),
        };
        let judged = self.fetched.iter().map_while(|fetched| match fetched.write.gas {
            GasRule::Fixed(gas) => Some(self.with_fixed(gas, fetched.request.calldata())),
            GasRule::Estimate { margin } => Some(judge(estimates.next()?, margin, fetched.request.calldata())),
        });
        Ok(judged.collect())
    }

    /// A node may take a transaction with too little gas, and drop it when it makes a block: it would hold up its account.
    fn with_fixed(&self, gas: Gas, calldata: &[u8]) -> Simulated {
        let least = gas::intrinsic(calldata);
        if gas >= least {
            return self.within_limits(gas);
        }
        let detail = format!("its calldata takes {least} gas, its gas is set to {gas}");
        Simulated::Fails(Cause::invalid("gas_too_low", detail))
    }

    /// What takes more than a whole hour may have would hold up its account for ever.
    fn within_limits(&self, gas: Gas) -> Simulated {
        if let Err(cause) = self.settings.permits.check_gas(gas) {
            return Simulated::Fails(cause);
        }
        match self.settings.limits.gas_per_hour.filter(|most| gas > *most) {
            None => Simulated::Runs(gas),
            Some(most) => Simulated::Fails(Cause::invalid(
                "gas_above_limit",
                format!("it takes {gas} gas, limits.gas_per_hour is {most}; raise it and send the request back"),
            )),
        }
    }

    fn simulation_cause(&self, message: &str, data: Option<&[u8]>) -> Cause {
        match data {
            Some(data) if !data.is_empty() => revert::explain(data, &self.settings.contract_errors),
            Some(_) | None => Cause::rejected("simulation_failed", message),
        }
    }

    fn call(&self, fetched: &Fetched) -> Call {
        let Write { to, value, .. } = fetched.write;
        Call { from: self.signer.address(), to, value, data: fetched.request.calldata().clone() }
    }

    /// The price of new transactions; above the cap the lane pauses until it has come down.
    pub(super) fn quote(&mut self) -> Option<Fee> {
        match self.settings.fees.quote(&self.market?) {
            Ok(fee) => Some(fee),
            Err(above) => {
                self.pause(PauseReason::FeeAboveCap, above.to_string());
                None
            }
        }
    }

    pub(super) fn unsigned(&self, prepared: &Prepared, nonce: Nonce, fee: Fee) -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: self.settings.chain_id,
            nonce,
            to: Some(prepared.to),
            value: prepared.value,
            gas: prepared.gas,
            data: prepared.request.calldata().clone(),
            fee,
        }
    }

    pub(super) fn new_transactions(
        &self,
        prepared: Vec<Prepared>,
        signed: Vec<SignedTransaction>,
        first: Nonce,
        fee: Fee,
    ) -> Vec<InFlight> {
        let signed_at = Timestamp::now();
        let with_nonces = prepared.into_iter().zip(signed).zip(first.0..);
        let transaction = |((prepared, signed), nonce): ((Prepared, SignedTransaction), u64)| {
            let attempt = Attempt { kind: AttemptKind::Write, signed, fee, signed_at };
            let Prepared { request, to, value, gas } = prepared;
            InFlight::new(request, Nonce(nonce), to, value, gas, vec![attempt])
        };
        with_nonces.map(transaction).collect()
    }

    /// Signs them all. `None` where the signer does not answer: the lane pauses, until it has signed something.
    pub(super) async fn signed(&mut self, unsigned: Vec<UnsignedTransaction>) -> Option<Vec<SignedTransaction>> {
        match self.signer.sign(unsigned).await {
            Ok(signed) => {
                self.resume_if(|reason| reason == PauseReason::SignerUnavailable);
                Some(signed)
            }
            Err(error) => {
                self.pause(PauseReason::SignerUnavailable, error.to_string());
                None
            }
        }
    }

    /// Another attempt at a live nonce, where the cap leaves room for one.
    pub(super) fn replacement(
        &self,
        nonce: Nonce,
        kind: AttemptKind,
        market: &Market,
    ) -> Option<(AttemptKind, UnsignedTransaction)> {
        let transaction = self.window.get(nonce)?;
        let previous = transaction.newest().fee;
        let replaced = self.settings.fees.replacement(previous, market);
        let unsigned = match kind {
            AttemptKind::Write => UnsignedTransaction {
                chain_id: self.settings.chain_id,
                nonce,
                to: Some(transaction.to),
                value: transaction.value,
                gas: transaction.gas,
                data: transaction.request.calldata().clone(),
                // A day's fees were counted when it was begun.
                fee: replaced.filter(|fee| self.settings.permits.may_offer(transaction.gas, *fee))?,
            },
            // No pool has the refused write, so a cancellation may go out at its price where none higher is allowed.
            AttemptKind::Cancel => self.self_transfer(nonce, replaced.unwrap_or(previous)),
        };
        Some((kind, unsigned))
    }

    /// Takes the nonce and does nothing else.
    pub(super) fn self_transfer(&self, nonce: Nonce, fee: Fee) -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: self.settings.chain_id,
            nonce,
            to: Some(self.signer.address()),
            value: Wei(0),
            gas: gas::TRANSFER,
            data: bytes::Bytes::new(),
            fee,
        }
    }
}

/// A new transaction as the journal takes it.
pub(super) fn to_store(transaction: &InFlight) -> NewTransaction {
    NewTransaction {
        request: transaction.request.seq,
        nonce: transaction.nonce,
        to: transaction.to,
        value: transaction.value,
        gas: transaction.gas,
        attempt: transaction.newest().clone(),
    }
}
