//! From what was fetched to what can be signed: does it run, and with how much gas?

use std::sync::Arc;

use tracing::debug;

use crate::chain::{Call, ChainError};
use crate::model::{Cause, Gas, GasRule, PauseReason, Reason, Write};
use crate::observe::traces::Traced;
use crate::policy::classify::SimulationMeaning;
use crate::policy::records::{self, Taken};
use crate::policy::{gas, revert};
use crate::stages::lane::conclude;
use crate::stages::lane::payload::Draft;
use crate::stages::lane::term::Term;
use crate::stages::settle::inbox::Ruling;

enum Simulated {
    Runs(Gas),
    Fails(Cause),
    /// The contract has a record under its id.
    Taken(Taken),
    NotAnswered(PauseReason, String),
}

/// What a round of simulations leaves.
struct Round {
    /// In order; some may still lack their gas.
    drafts: Vec<Draft>,
    rulings: Vec<Ruling>,
    /// Why the round, and what is behind it, was not finished.
    stopped: Option<(PauseReason, String)>,
}

impl Term<'_> {
    /// Moves what was fetched to what is ready, in order; rules on what cannot run. What runs only without others of its
    /// batch is found by halving it, so that none of them is hurt by another. What could not be simulated stays fetched,
    /// with all behind it.
    pub(super) async fn simulate_fetched(&mut self) -> Result<(), (PauseReason, String)> {
        let batching = Arc::clone(&self.context.settings.batching);
        let groups =
            batching.group(self.queue.take_fetched(), |fetched| (fetched.alike, fetched.request.calldata().len()));
        let mut drafts: Vec<_> = groups.into_iter().flat_map(|group| Draft::of(group, &batching)).collect();
        let (mut rulings, mut stopped) = (Vec::new(), None);
        while stopped.is_none() && drafts.iter().any(|draft| draft.gas.is_none()) {
            let round = self.simulate_round(drafts).await;
            drafts = round.drafts;
            rulings.extend(round.rulings);
            stopped = round.stopped;
        }
        let mut waits = false;
        for draft in drafts {
            match draft.gas.filter(|_| !waits) {
                Some(gas) => self.queue.add_ready(draft.into_payload(gas)),
                None => {
                    waits = true;
                    self.queue.add_fetched(draft.members);
                }
            }
        }
        self.rule(rulings).await;
        stopped.map_or(Ok(()), Err)
    }

    async fn simulate_round(&mut self, drafts: Vec<Draft>) -> Round {
        let mut simulated = self.simulate(&drafts).await.into_iter();
        let mut round = Round { drafts: Vec::with_capacity(drafts.len()), rulings: Vec::new(), stopped: None };
        for draft in drafts {
            if round.stopped.is_some() || draft.gas.is_some() {
                round.drafts.push(draft);
                continue;
            }
            match simulated.next() {
                Some(outcome) => self.apply_simulated(draft, outcome, &mut round).await,
                None => round.drafts.push(draft),
            }
        }
        round
    }

    async fn apply_simulated(&mut self, mut draft: Draft, outcome: Simulated, round: &mut Round) {
        match outcome {
            Simulated::Runs(gas) => draft.gas = Some(gas),
            // A batch never says so: its calldata names no single record.
            Simulated::Taken(taken) => {
                match self.verdict_on_taken(draft.members.first.request.write.to, &taken).await {
                    Ok(Some(verdict)) => {
                        round.rulings.push(conclude::ended(&self.lease, draft.members.first.request, verdict));
                        return;
                    }
                    // It stays in the queue, and the next page of that has it.
                    Ok(None) => return,
                    Err(error) => round.stopped = Some((error.pause_reason(), error.to_string())),
                }
            }
            Simulated::Fails(cause) if draft.members.is_batch() => {
                debug!(request.id = %draft.members.first.request.id, requests = draft.members.count(), %cause, "a batch does not run: its halves are tried");
                round.drafts.extend(draft.halves(&self.context.settings.batching));
                return;
            }
            Simulated::Fails(cause) => {
                round.rulings.push(conclude::failed(&self.lease, draft.members.first.request, cause));
                return;
            }
            Simulated::NotAnswered(reason, detail) => round.stopped = Some((reason, detail)),
        }
        round.drafts.push(draft);
    }

    /// Simulates those drafts that are not known to run, in their order.
    async fn simulate(&self, drafts: &[Draft]) -> Vec<Simulated> {
        let unknown = || drafts.iter().filter(|draft| draft.gas.is_none());
        let is_estimated = |draft: &&Draft| {
            matches!(draft.members.first.request.write.gas, GasRule::Estimate { .. })
                && self.learnt.check_size(draft.calldata(), draft.members.is_batch()).is_ok()
        };
        let traced = |draft: &Draft| Traced { item: self.call(draft), span: self.processing_one(draft.requests()) };
        let calls: Vec<_> = unknown().filter(is_estimated).map(traced).collect();
        let estimates = if calls.is_empty() { Vec::new() } else { self.context.chain.estimate(&calls).await };
        let mut estimates = estimates.into_iter();
        let simulated = unknown().map_while(|draft| {
            let (calldata, is_batch) = (draft.calldata(), draft.members.is_batch());
            if let Err(cause) = self.learnt.check_size(calldata, is_batch) {
                return Some(Simulated::Fails(cause));
            }
            let simulated = match draft.members.first.request.write.gas {
                GasRule::Fixed(gas) => self.with_fixed(gas, calldata),
                GasRule::Estimate { margin } => self.with_estimate(estimates.next()?, margin, calldata),
            };
            Some(match simulated {
                Simulated::Runs(gas) => {
                    self.learnt.check_gas(gas, is_batch).map_or_else(Simulated::Fails, |()| Simulated::Runs(gas))
                }
                other => other,
            })
        });
        simulated.collect()
    }

    fn with_estimate(&self, estimate: Result<Gas, ChainError>, margin: u32, calldata: &[u8]) -> Simulated {
        let block_limit = self.view.head().map_or(Gas(u64::MAX), |head| head.gas_limit);
        let (message, data) = match estimate {
            Ok(estimate) => return self.within_limits(gas::limit(estimate, margin, block_limit)),
            Err(ChainError::Node { message, data, .. }) => (message, data),
            Err(error) => return Simulated::NotAnswered(error.pause_reason(), error.to_string()),
        };
        match self.context.settings.errors.meaning_of_simulation(&message) {
            SimulationMeaning::Failed => match data.as_deref().and_then(|data| records::taken(calldata, data)) {
                Some(taken) => Simulated::Taken(taken),
                None => Simulated::Fails(self.simulation_cause(&message, data.as_deref())),
            },
            SimulationMeaning::InsufficientFunds => Simulated::NotAnswered(PauseReason::InsufficientFunds, message),
            SimulationMeaning::Unavailable => Simulated::NotAnswered(PauseReason::NodeUnreachable, message),
        }
    }

    /// A node may take a transaction with too little gas, and drop it when it makes a block: it would hold up its account.
    fn with_fixed(&self, gas: Gas, calldata: &[u8]) -> Simulated {
        let least = self.learnt.least_gas(calldata);
        if gas >= least {
            return self.within_limits(gas);
        }
        let detail = format!("its calldata takes {least} gas, its gas is set to {gas}");
        Simulated::Fails(Cause::new(Reason::GasTooLow, detail))
    }

    /// What takes more than a whole hour may have would hold up its account for ever.
    fn within_limits(&self, gas: Gas) -> Simulated {
        let permits = &self.context.settings.permits;
        let tuning = self.tuning();
        let fee = self.view.market().and_then(|market| tuning.fees.quote(&market).ok());
        let is_permitted = permits.check_gas(gas).and_then(|()| fee.map_or(Ok(()), |fee| permits.check_fee(gas, fee)));
        if let Err(cause) = is_permitted {
            return Simulated::Fails(cause);
        }
        match tuning.limits.gas_per_hour.filter(|most| gas > *most) {
            None => Simulated::Runs(gas),
            Some(most) => Simulated::Fails(Cause::new(
                Reason::GasAboveLimit,
                format!("it takes {gas} gas, limits.gas_per_hour is {most}; raise it and send the request back"),
            )),
        }
    }

    fn simulation_cause(&self, message: &str, data: Option<&[u8]>) -> Cause {
        match data {
            Some(data) if !data.is_empty() => revert::explain(data, &self.context.settings.contract_errors),
            Some(_) | None => Cause::new(Reason::SimulationFailed, message),
        }
    }

    fn call(&self, draft: &Draft) -> Call {
        let Write { to, value, .. } = draft.members.first.request.write;
        Call { from: self.account(), to, value, data: draft.calldata().clone() }
    }
}
