//! From what was fetched to what can be signed: does it run, and with how much gas?

use std::sync::Arc;

use tokio::time::Instant;
use tracing::debug;

use crate::chain::follow::estimator::answers_estimates;
use crate::chain::{Call, ChainError};
use crate::model::{Cause, Gas, GasRule, Members, PauseReason, Reason, Wei, Write};
use crate::observe::traces::Traced;
use crate::policy::classify::{SendMeaning, SimulationMeaning, is_revert};
use crate::policy::gas::{self, Caps};
use crate::policy::node_texts::is_missing_state;
use crate::policy::records::{self, Taken};
use crate::policy::revert;
use crate::stages::lane::aside::Silence;
use crate::stages::lane::conclude;
use crate::stages::lane::gate::pause_for;
use crate::stages::lane::payload::{Draft, Fetched};
use crate::stages::lane::term::Term;
use crate::stages::settle::inbox::Ruling;

/// Rounds in which an endpoint may refuse one call and answer others, before that call is tried on its own.
const ROUNDS_PASSED_OVER: u32 = 3;

pub(super) enum Simulated {
    Runs(Gas),
    Fails(Cause),
    /// Reverts on the newest block.
    Reverts(Cause),
    /// The contract has a record under its id.
    Taken(Taken),
    /// The node says that the account cannot pay the call.
    Unpaid(String),
    NotAnswered(Silence),
}

/// Holds what the account's funds make of a call that it cannot pay, by the node's word.
pub(super) enum Unpaid {
    /// The account can pay nothing.
    Exhausted(String),
    /// The call alone asks too much.
    Own(Cause),
    /// The account should be able to pay: the node's word is no answer.
    Unclear(Silence),
}

/// Holds what a round of simulations leaves.
#[derive(Default)]
struct Round {
    /// In order; some may still lack their gas.
    drafts: Vec<Draft>,
    rulings: Vec<Ruling>,
    unanswered: Vec<(Draft, Silence)>,
    /// Why no other round is tried now.
    outage: Option<(PauseReason, String)>,
}

impl Term<'_> {
    /// Moves what was fetched to what is ready, in order; rules on what cannot run. What runs only without others of its
    /// batch is found by halving it, so that none of them is hurt by another. What the node does not simulate, though it
    /// answers other calls, is set aside. Where it answers none, all stays fetched, and the pause that asks for is returned.
    pub(super) async fn simulate_fetched(&mut self) -> Option<(PauseReason, String)> {
        self.set_suspects_aside();
        let batching = Arc::clone(&self.routes.batching);
        let groups =
            batching.group(self.queue.take_fetched(), |fetched| (fetched.alike, fetched.request.calldata().len()));
        let mut drafts: Vec<_> = groups.into_iter().flat_map(|group| Draft::of(group, &batching)).collect();
        let (mut rulings, mut outage) = (Vec::new(), None);
        while outage.is_none() && drafts.iter().any(|draft| draft.gas.is_none()) {
            let round = self.simulate_round(drafts).await;
            drafts = round.drafts;
            rulings.extend(round.rulings);
            outage = round.outage;
        }
        for draft in drafts {
            match draft.gas {
                Some(gas) => {
                    let l1_fee = self.rollup.of(draft.calldata().len(), gas);
                    self.queue.add_ready(draft.into_payload(gas, l1_fee));
                }
                None => self.queue.add_fetched(draft.members),
            }
        }
        self.rule(rulings).await;
        self.try_aside();
        outage
    }

    /// Sets aside what an earlier attempt had no answer for: tried on its own it holds up no round.
    fn set_suspects_aside(&mut self) {
        for fetched in self.queue.take_fetched() {
            if self.queue.aside().remembers(fetched.request.seq) {
                self.queue.aside_mut().add(fetched.request, not_answered_before());
            } else {
                self.queue.add_fetched([fetched]);
            }
        }
    }

    async fn simulate_round(&mut self, drafts: Vec<Draft>) -> Round {
        let began = Instant::now();
        let (simulated, mut is_well) = self.simulate(&drafts).await;
        let (mut simulated, mut round) = (simulated.into_iter(), Round::default());
        for draft in drafts {
            match simulated.next().filter(|_| draft.gas.is_none()) {
                Some(outcome) => self.apply_simulated(draft, outcome, began, &mut round).await,
                None => round.drafts.push(draft),
            }
        }
        let unanswered = std::mem::take(&mut round.unanswered);
        if !is_well && !unanswered.is_empty() {
            let (chain, errors) = (self.context.chain.as_ref(), &self.context.settings.rules.errors);
            is_well = self.context.hear(answers_estimates(chain, self.account(), errors)).await;
        }
        for (draft, silence) in unanswered {
            self.apply_silence(draft, silence, is_well, &mut round);
        }
        round
    }

    async fn apply_simulated(&mut self, mut draft: Draft, outcome: Simulated, began: Instant, round: &mut Round) {
        match outcome {
            Simulated::Runs(gas) => {
                draft.gas = Some(gas);
                round.drafts.push(draft);
            }
            // A batch never says so: its calldata names no single record.
            Simulated::Taken(taken) => {
                match self.verdict_on_taken(draft.members.first.request.write.to, &taken).await {
                    Ok(Some(verdict)) => {
                        round.rulings.push(conclude::ended(&self.lease, draft.members.first.request, verdict));
                    }
                    // It stays in the queue, and the next page of that has it.
                    Ok(None) => {}
                    // It is tried on its own until another endpoint confirms it, and holds up no other.
                    Err(error @ ChainError::Unconfirmed { .. }) => self.set_aside(draft.members, silence_of(&error)),
                    Err(error) => round.unanswered.push((draft, silence_of(&error))),
                }
            }
            Simulated::Fails(cause) => self.fail_draft(draft, cause, round),
            Simulated::Reverts(cause) => {
                let is_batch = draft.members.is_batch();
                if !is_batch && self.may_need_others(&draft.members.first.request, !round.drafts.is_empty()) {
                    self.queue.aside_mut().add_successor(draft.members.first.request, cause.to_string());
                } else {
                    self.fail_draft(draft, cause, round);
                }
            }
            Simulated::Unpaid(message) => {
                match self.judge_unpaid(draft.members.first.request.write.value, message, began).await {
                    Unpaid::Own(cause) => self.fail_draft(draft, cause, round),
                    Unpaid::Unclear(silence) => round.unanswered.push((draft, silence)),
                    Unpaid::Exhausted(detail) => {
                        round.outage.get_or_insert((PauseReason::InsufficientFunds, detail));
                        round.drafts.push(draft);
                    }
                }
            }
            Simulated::NotAnswered(silence) => round.unanswered.push((draft, silence)),
        }
    }

    fn fail_draft(&self, draft: Draft, cause: Cause, round: &mut Round) {
        if draft.members.is_batch() {
            debug!(request.id = %draft.members.first.request.id, requests = draft.members.count(), %cause, "a batch does not run: its halves are tried");
            round.drafts.extend(draft.halves(&self.routes.batching));
        } else {
            round.rulings.push(conclude::failed(&self.lease, draft.members.first.request, cause));
        }
    }

    /// Decides about a draft that has no answer, in a round in which the node answered others, or did not.
    fn apply_silence(&mut self, mut draft: Draft, silence: Silence, is_well: bool, round: &mut Round) {
        if !is_well {
            round.outage.get_or_insert((silence.reason, silence.detail));
            round.drafts.push(draft);
        } else if silence.is_of_call() && silence.is_text && draft.members.is_batch() {
            round.drafts.extend(draft.halves(&self.routes.batching));
        } else if silence.is_of_call() {
            self.set_aside(draft.members, silence);
        } else {
            draft.members.first.unanswered += 1;
            if draft.members.first.unanswered >= ROUNDS_PASSED_OVER {
                self.set_aside(draft.members, silence);
            } else {
                round.outage.get_or_insert((silence.reason, silence.detail));
                round.drafts.push(draft);
            }
        }
    }

    /// Sets requests aside. A text was an answer to this one; silence may be another's fault of the same round.
    fn set_aside(&mut self, members: Members<Fetched>, silence: Silence) {
        for Fetched { request, .. } in members {
            if silence.is_text && silence.is_of_call() {
                self.queue.aside_mut().add_tried(request, silence.clone());
            } else {
                self.queue.aside_mut().add(request, silence.clone());
            }
        }
    }

    /// Compares what the account has with what a call asks that it cannot pay, by the node's word.
    pub(super) async fn judge_unpaid(&mut self, value: Wei, message: String, began: Instant) -> Unpaid {
        let detail = |least: Wei, balance: Wei| {
            format!("it may cost {} wei or more, the account has {} wei: {message}", least.0, balance.0)
        };
        match self.funds_since(began).await {
            Some(funds) if funds.are_exhausted() => Unpaid::Exhausted(funds.shortage()),
            Some(funds) => {
                let least = value.plus(funds.least);
                if least > funds.balance {
                    Unpaid::Own(Cause::new(Reason::InsufficientFunds, detail(least, funds.balance)))
                } else {
                    let reason = PauseReason::NodeUnreachable;
                    Unpaid::Unclear(Silence { reason, detail: detail(least, funds.balance), is_text: true })
                }
            }
            // Without a price, a call is run for its value alone.
            None if value > Wei(0) => Unpaid::Own(Cause::new(Reason::InsufficientFunds, message)),
            None => Unpaid::Exhausted(message),
        }
    }

    /// Returns why no node takes a transaction of this size, as far as that was learnt.
    fn check_size(&self, draft: &Draft) -> Result<(), Cause> {
        self.learnt.check_size(draft.calldata(), draft.members.is_batch())
    }

    /// Returns the same of its gas.
    fn check_gas(&self, draft: &Draft, simulated: Simulated) -> Simulated {
        match simulated {
            Simulated::Runs(gas) => match self.learnt.check_gas(gas, draft.members.is_batch()) {
                Ok(()) => Simulated::Runs(gas),
                Err(cause) => Simulated::Fails(cause),
            },
            Simulated::Fails(_)
            | Simulated::Reverts(_)
            | Simulated::Taken(_)
            | Simulated::Unpaid(_)
            | Simulated::NotAnswered(_) => simulated,
        }
    }

    /// Simulates those drafts that are not known to run, in their order: an outcome for each draft, which says nothing where
    /// it is known to run. Returns also whether the node answered for one of them.
    async fn simulate(&self, drafts: &[Draft]) -> (Vec<Simulated>, bool) {
        let is_estimated = |draft: &&Draft| {
            draft.gas.is_none()
                && matches!(draft.members.first.request.write.gas, GasRule::Estimate { .. })
                && self.check_size(draft).is_ok()
        };
        let traced = |draft: &Draft| Traced { item: self.call(draft), span: self.processing_one(draft.requests()) };
        let calls: Vec<_> = drafts.iter().filter(is_estimated).map(traced).collect();
        let estimates = self.context.chain.estimate(&calls);
        let estimates = if calls.is_empty() { Vec::new() } else { self.context.hear(estimates).await };
        let (mut estimates, mut is_well) = (estimates.into_iter(), false);
        let simulated = drafts.iter().map(|draft| match (draft.gas, draft.members.first.request.write.gas) {
            (Some(gas), _) => Simulated::Runs(gas),
            (None, _) if self.check_size(draft).is_err() => {
                self.check_size(draft).map_or_else(Simulated::Fails, |()| Simulated::Runs(Gas(0)))
            }
            (None, GasRule::Fixed(gas)) => self.check_gas(draft, self.with_fixed(gas, draft.calldata())),
            (None, GasRule::Estimate { margin }) => {
                let estimate = estimates.next().unwrap_or_else(|| Err(no_estimate()));
                let simulated = self.with_estimate(estimate, margin, draft.calldata(), draft.members.is_batch());
                is_well |= !matches!(simulated, Simulated::NotAnswered(_));
                self.check_gas(draft, simulated)
            }
        });
        (simulated.collect(), is_well)
    }

    pub(super) fn with_estimate(
        &self,
        estimate: Result<Gas, ChainError>,
        margin: u32,
        calldata: &[u8],
        is_batch: bool,
    ) -> Simulated {
        let (message, data) = match estimate {
            Ok(estimate) => return self.within_limits(gas::limit(estimate, margin, self.gas_caps(is_batch))),
            Err(ChainError::Node { message, data, .. }) => (message, data),
            Err(error) => return Simulated::NotAnswered(silence_of(&error)),
        };
        let errors = &self.context.settings.rules.errors;
        match errors.meaning_of_simulation(&message) {
            SimulationMeaning::Failed => match data.as_deref().and_then(|data| records::taken(calldata, data)) {
                Some(taken) => Simulated::Taken(taken),
                None => self.failed_run(&message, data.as_deref()),
            },
            SimulationMeaning::InsufficientFunds => Simulated::Unpaid(message),
            SimulationMeaning::Unavailable => {
                let reason = endpoints_reason(errors.meaning_of(&message), &message);
                let reason = reason.unwrap_or(PauseReason::NodeUnreachable);
                Simulated::NotAnswered(Silence { reason, detail: message, is_text: true })
            }
        }
    }

    /// A node may take a transaction with too little gas, and drop it when it makes a block: it would hold up its account.
    fn with_fixed(&self, gas: Gas, calldata: &[u8]) -> Simulated {
        self.learnt.check_fixed_gas(gas, calldata).map_or_else(Simulated::Fails, |()| self.within_limits(gas))
    }

    /// Returns what a margin never goes past.
    fn gas_caps(&self, is_batch: bool) -> Caps {
        let of_operator = [self.routes.permits.max_gas, self.tuning().limits.gas_per_hour];
        Caps {
            block: self.view.head().map_or(Gas(u64::MAX), |head| head.gas_limit),
            transaction: self.learnt.most_gas(is_batch),
            permitted: of_operator.into_iter().flatten().min(),
        }
    }

    /// Fails what takes more than a whole hour may have: it would hold up its account for ever.
    fn within_limits(&self, gas: Gas) -> Simulated {
        let permits = &self.routes.permits;
        let tuning = self.tuning();
        let fee = self.view.market().and_then(|market| tuning.fees.quote(&market).ok());
        let is_permitted =
            permits.check_gas(gas).and_then(|()| fee.map_or(Ok(()), |fee| permits.check_fee(gas, fee, Wei(0))));
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

    /// Returns what a call makes of a run that failed: what reverts may need others first.
    fn failed_run(&self, message: &str, data: Option<&[u8]>) -> Simulated {
        let cause = self.simulation_cause(message, data);
        let has_data = data.is_some_and(|data| !data.is_empty());
        if has_data || is_revert(message) { Simulated::Reverts(cause) } else { Simulated::Fails(cause) }
    }

    pub(super) fn simulation_cause(&self, message: &str, data: Option<&[u8]>) -> Cause {
        match data {
            Some(data) if !data.is_empty() => revert::explain(data, &self.routes.contract_errors),
            Some(_) | None if is_revert(message) => Cause::new(Reason::Reverted, message),
            Some(_) | None => Cause::new(Reason::SimulationFailed, message),
        }
    }

    fn call(&self, draft: &Draft) -> Call {
        let Write { to, value, .. } = draft.members.first.request.write;
        Call { from: self.account(), to, value, data: draft.calldata().clone() }
    }
}

/// Returns the pause for an answer that is about the endpoint or the account, whatever was asked.
fn endpoints_reason(meaning: SendMeaning, message: &str) -> Option<PauseReason> {
    pause_for(meaning).or_else(|| is_missing_state(message).then_some(PauseReason::NodeLacksState))
}

pub(super) fn silence_of(error: &ChainError) -> Silence {
    Silence { reason: error.pause_reason(), detail: error.to_string(), is_text: false }
}

fn not_answered_before() -> Silence {
    let detail = "it had no answer in an earlier attempt".to_owned();
    Silence { reason: PauseReason::NodeUnreachable, detail, is_text: false }
}

fn no_estimate() -> ChainError {
    ChainError::Nonsense { endpoint: "the node".to_owned(), detail: "no estimate for a call".to_owned() }
}
