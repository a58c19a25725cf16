//! From a queued request to bytes ready for the journal: simulate, price, fill in the fields.

use std::sync::Arc;

use tracing::debug;

use crate::chain::{Call, ChainError};
use crate::journal::{Lease, NewTransaction, RequestSeq};
use crate::model::{
    Cause, Fee, Gas, GasRule, Members, Nonce, PauseReason, Purpose, RawTransaction, SignedTransaction, Timestamp,
    UnsignedTransaction, Wei, Write,
};
use crate::observe::traces::Within;
use crate::policy::classify::SimulationMeaning;
use crate::policy::fee::Market;
use crate::policy::records::{self, Taken};
use crate::policy::{gas, revert};
use crate::stages::lane::draft::{Draft, Fetched, Prepared};
use crate::stages::lane::window::InFlight;
use crate::stages::lane::{Lane, ending};
use crate::stages::settle::inbox::Ruling;

enum Simulated {
    Runs(Gas),
    Fails(Cause),
    /// The contract has a record under its id.
    Taken(Taken),
    NotLooked(PauseReason, String),
}

impl Lane {
    /// Moves what was fetched to what is ready, in order; rules on what cannot run. What runs only without others of its
    /// batch is found by halving it, so that none of them is hurt by another. What could not be looked at stays fetched, with
    /// all behind it.
    pub(super) async fn prepare(&mut self, lease: &Lease) -> Result<(), (PauseReason, String)> {
        let batching = Arc::clone(&self.settings.batching);
        let of = |fetched: &Fetched| (fetched.alike, fetched.request.calldata().len());
        let groups = batching.group(std::mem::take(&mut self.fetched), of);
        let mut drafts: Vec<_> = groups.into_iter().flat_map(|group| Draft::of(group, &batching)).collect();
        let mut rulings: Vec<Ruling> = Vec::new();
        let mut stopped = None;
        let mut goes_on = true;
        while goes_on && drafts.iter().any(|draft| draft.gas.is_none()) {
            let mut simulated = match self.simulate(&drafts).await {
                Ok(simulated) => simulated.into_iter(),
                Err(error) => {
                    stopped = Some((error.pause_reason(), error.to_string()));
                    break;
                }
            };
            let mut looked_at = Vec::with_capacity(drafts.len());
            for mut draft in drafts {
                let outcome = if goes_on && draft.gas.is_none() { simulated.next() } else { None };
                match outcome {
                    Some(Simulated::Runs(gas)) => draft.gas = Some(gas),
                    // A batch never tells so: its calldata names no single record.
                    Some(Simulated::Taken(taken)) => match self.judge_taken(draft.first.request.write.to, &taken).await
                    {
                        Ok(Some(verdict)) => {
                            rulings.push(ending::ended(lease, draft.first.request, verdict));
                            continue;
                        }
                        // It stays in the queue, and the next look at that finds it.
                        Ok(None) => continue,
                        Err(error) => (stopped, goes_on) = (Some((error.pause_reason(), error.to_string())), false),
                    },
                    Some(Simulated::Fails(cause)) if draft.others.is_empty() => {
                        rulings.push(ending::failed(lease, draft.first.request, cause));
                        continue;
                    }
                    Some(Simulated::Fails(cause)) => {
                        debug!(request.id = %draft.first.request.id, requests = draft.others.len() + 1, %cause, "a batch does not run: its halves are tried");
                        looked_at.extend(draft.halves(&batching));
                        continue;
                    }
                    Some(Simulated::NotLooked(reason, detail)) => {
                        (stopped, goes_on) = (Some((reason, detail)), false);
                    }
                    None => goes_on &= draft.gas.is_some(),
                }
                looked_at.push(draft);
            }
            drafts = looked_at;
        }
        for draft in drafts {
            match draft.gas.filter(|_| self.fetched.is_empty()) {
                Some(gas) => {
                    let Draft { first: Fetched { request, .. }, others, data, .. } = draft;
                    let others = others.into_iter().map(|other| other.request).collect();
                    let Write { to, value, .. } = request.write;
                    self.prepared.push_back(Prepared { request, others, to, value, data, gas });
                }
                None => self.fetched.extend(draft.into_fetched()),
            }
        }
        self.rule(rulings).await;
        stopped.map_or(Ok(()), Err)
    }

    /// Takes what is ready for this request back, with all behind it, but for the request.
    pub(super) fn unprepare(&mut self, request: RequestSeq) {
        let is_it = |prepared: &Prepared| prepared.requests().any(|own| own.seq == request);
        if let Some(place) = self.prepared.iter().position(is_it) {
            let back: Vec<_> = self.prepared.drain(place..).flat_map(Prepared::into_requests).collect();
            let back = back.into_iter().filter(|own| own.seq != request);
            let batching = &self.settings.batching;
            let back = back.map(|request| Fetched::new(request, batching));
            let back: Vec<_> = back.collect();
            self.fetched.splice(0..0, back);
        }
    }

    /// Of those drafts that are not known to run, in their order.
    async fn simulate(&self, drafts: &[Draft]) -> Result<Vec<Simulated>, ChainError> {
        let block_limit = self.head.as_ref().map_or(Gas(u64::MAX), |head| head.gas_limit);
        let unknown = || drafts.iter().filter(|draft| draft.gas.is_none());
        let is_estimated = |draft: &&Draft| matches!(draft.first.request.write.gas, GasRule::Estimate { .. });
        let calls: Vec<_> = unknown().filter(is_estimated).map(|draft| self.call(draft)).collect();
        let spans = self.spans(unknown().filter(is_estimated).map(Draft::requests));
        let estimates = if calls.is_empty() { Vec::new() } else { self.chain.estimate(&calls, &spans).await? };
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
        let judged = unknown().map_while(|draft| match draft.first.request.write.gas {
            GasRule::Fixed(gas) => Some(self.with_fixed(gas, draft.calldata())),
            GasRule::Estimate { margin } => Some(judge(estimates.next()?, margin, draft.calldata())),
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
        let permits = &self.settings.permits;
        let fee = self.market.and_then(|market| self.settings.tuning().fees.quote(&market).ok());
        let is_permitted = permits.check_gas(gas).and_then(|()| fee.map_or(Ok(()), |fee| permits.check_fee(gas, fee)));
        if let Err(cause) = is_permitted {
            return Simulated::Fails(cause);
        }
        match self.settings.tuning().limits.gas_per_hour.filter(|most| gas > *most) {
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

    fn call(&self, draft: &Draft) -> Call {
        let Write { to, value, .. } = draft.first.request.write;
        Call { from: self.signer.address(), to, value, data: draft.calldata().clone() }
    }

    /// The price of new transactions; above the cap the lane pauses until it has come down.
    pub(super) fn quote(&mut self) -> Option<Fee> {
        match self.settings.tuning().fees.quote(&self.market?) {
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
            data: prepared.calldata().clone(),
            fee,
        }
    }

    pub(super) fn new_transactions(
        &self,
        prepared: Vec<Prepared>,
        signed: Vec<RawTransaction>,
        first: Nonce,
        fee: Fee,
    ) -> Vec<InFlight> {
        let signed_at = Timestamp::now();
        let with_nonces = prepared.into_iter().zip(signed).zip(first.0..);
        let transaction = |((prepared, signed), nonce): ((Prepared, RawTransaction), u64)| {
            let attempt = SignedTransaction { purpose: Purpose::Write, raw: signed, fee, signed_at };
            InFlight::new(prepared, Nonce(nonce), vec![attempt])
        };
        with_nonces.map(transaction).collect()
    }

    /// Signs them all. `None` where the signer does not answer: the lane pauses, until it has signed something.
    pub(super) async fn signed(
        &mut self,
        unsigned: Vec<UnsignedTransaction>,
        within: Within<'_>,
    ) -> Option<Vec<RawTransaction>> {
        match self.signer.sign(unsigned, within).await {
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
        kind: Purpose,
        market: &Market,
    ) -> Option<(Purpose, UnsignedTransaction)> {
        let transaction = self.window.get(nonce)?;
        let previous = transaction.newest().fee;
        let replaced = self.settings.tuning().fees.replacement(previous, market);
        let unsigned = match kind {
            Purpose::Write => UnsignedTransaction {
                chain_id: self.settings.chain_id,
                nonce,
                to: Some(transaction.to),
                value: transaction.value,
                gas: transaction.gas,
                data: transaction.calldata().clone(),
                // A day's fees were counted when it was begun.
                fee: replaced.filter(|fee| self.settings.permits.may_offer(transaction.gas, *fee))?,
            },
            // No pool has the refused write, so a cancellation may go out at its price where none higher is allowed.
            Purpose::Cancel => self.self_transfer(nonce, replaced.unwrap_or(previous)),
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
        requests: Members {
            first: transaction.request.seq,
            others: transaction.others.iter().map(|other| other.seq).collect(),
        },
        nonce: transaction.nonce,
        to: transaction.to,
        value: transaction.value,
        data: transaction.data.clone(),
        gas: transaction.gas,
        signed: transaction.newest().clone(),
    }
}
