//! Tries each request that is set aside on its own, and applies the outcome: it becomes ready, it fails, or it waits on.

use tokio::time::Instant;

use crate::chain::Call;
use crate::chain::follow::estimator::Estimated;
use crate::journal::RequestSeq;
use crate::model::{Cause, Gas, GasRule, Members, PauseReason, Reason};
use crate::observe::traces::Traced;
use crate::stages::lane::aside::{Silence, Waiting};
use crate::stages::lane::conclude;
use crate::stages::lane::lapses::Part;
use crate::stages::lane::payload::Payload;
use crate::stages::lane::settings::OutagePolicy;
use crate::stages::lane::simulate::{Simulated, Unpaid, silence_of};
use crate::stages::lane::term::Term;

impl Term<'_> {
    /// Tries what is aside and due. While the node is known to be away, nothing is tried.
    pub(super) fn try_aside(&mut self) {
        if self.gate.is_known_outage() {
            return;
        }
        let from = self.account();
        for request in self.queue.aside_mut().take_due() {
            let (to, value, data) = (request.write.to, request.write.value, request.calldata().clone());
            let span = self.processing_one(std::iter::once(&request));
            self.estimator.ask(request.seq.0, Traced { item: Call { from, to, value, data }, span });
        }
        self.try_successors();
    }

    pub(super) fn make_ready(&mut self, waiting: Waiting, gas: Gas) {
        let (to, value) = (waiting.request.write.to, waiting.request.write.value);
        self.queue.aside_mut().forget(waiting.request.seq);
        let requests = Members::one(waiting.request);
        let l1_fee = self.rollup.of(requests.first.calldata().len(), gas);
        self.queue.add_ready(Payload { requests, to, value, batch_data: None, gas, l1_fee });
    }

    /// Applies the outcome of a try: what runs becomes ready, what fails is ruled on, what has no answer waits on.
    pub(super) async fn handle_estimated(&mut self, estimated: Estimated) {
        let Estimated { key, estimate, is_answering, is_on_top } = estimated;
        // It may have been cancelled meanwhile.
        let waiting = self.queue.aside_mut().take(RequestSeq(key));
        if is_on_top {
            if let Some(waiting) = waiting {
                self.handle_on_top(waiting, estimate).await;
            }
            return;
        }
        if is_answering {
            self.lapses.end(Part::Estimates);
        }
        let Some(waiting) = waiting else { return };
        let request = &waiting.request;
        let GasRule::Estimate { margin } = request.write.gas else { return };
        match self.with_estimate(estimate, margin, request.calldata(), false) {
            Simulated::Runs(gas) => self.make_ready(waiting, gas),
            Simulated::Fails(cause) => self.fail_waiting_one(waiting, cause).await,
            Simulated::Reverts(cause) => {
                // Those before it are in blocks, or it has waited for long enough.
                if waiting.wait.is_none() && self.may_need_others(request, false) {
                    self.queue.aside_mut().add_successor(waiting.request, cause.to_string());
                } else {
                    self.fail_waiting_one(waiting, cause).await;
                }
            }
            Simulated::Taken(taken) => match self.verdict_on_taken(request.write.to, &taken).await {
                Ok(Some(verdict)) => {
                    self.rule(vec![conclude::ended(&self.lease, waiting.request, verdict)]).await;
                }
                // The record is not final yet.
                Ok(None) => {
                    let detail = "its record is in the chain, and not final yet".to_owned();
                    let silence = Silence { reason: PauseReason::NodeUnreachable, detail, is_text: false };
                    self.queue.aside_mut().put_back(waiting, silence, false);
                }
                Err(error) => self.queue.aside_mut().put_back(waiting, silence_of(&error), false),
            },
            Simulated::Unpaid(message) => match self.judge_unpaid(request.write.value, message, Instant::now()).await {
                Unpaid::Own(cause) => self.fail_waiting_one(waiting, cause).await,
                Unpaid::Unclear(silence) => self.keep_waiting(waiting, silence, true).await,
                Unpaid::Exhausted(detail) => {
                    self.gate.pause(PauseReason::InsufficientFunds, detail.clone());
                    let silence = Silence { reason: PauseReason::InsufficientFunds, detail, is_text: true };
                    self.queue.aside_mut().put_back(waiting, silence, false);
                }
            },
            Simulated::NotAnswered(silence) => self.keep_waiting(waiting, silence, is_answering).await,
        }
    }

    /// Puts back what a try has brought no answer for, or fails it: after its last try, or for an outage where the operator
    /// asks for that.
    async fn keep_waiting(&mut self, waiting: Waiting, silence: Silence, is_answering: bool) {
        let seq = waiting.request.seq;
        if !is_answering {
            self.lapses.begin_for(Part::Estimates, silence.reason, silence.detail.clone());
            self.gate.pause(silence.reason, silence.detail.clone());
            if self.tuning().outage == OutagePolicy::Retry {
                let (reason, detail) = (silence.reason, &silence.detail);
                self.rule(vec![conclude::unavailable(&self.lease, waiting.request, reason, detail)]).await;
                return;
            }
        }
        self.queue.aside_mut().put_back(waiting, silence, is_answering);
        let failure = self.queue.aside_mut().take_failed(seq);
        if let Some((waiting, detail)) = failure {
            self.fail_waiting_one(waiting, Cause::new(Reason::SimulationFailed, detail)).await;
        }
    }

    pub(super) async fn fail_waiting_one(&mut self, waiting: Waiting, cause: Cause) {
        self.rule(vec![conclude::failed(&self.lease, waiting.request, cause)]).await;
    }
}
