//! Requests whose call reverts while transactions of the account are open before it: it may need what those change. Where a node
//! can, such a call is run once more on top of them. Else it waits until they are in blocks, and then counts for what it says.
//! Others pass it meanwhile.

use std::time::Duration;

use crate::chain::{Call, ChainError, OnTop};
use crate::journal::QueuedRequest;
use crate::model::{Address, Cause, Gas, GasRule, Nonce};
use crate::observe::traces::Traced;
use crate::policy::classify::is_revert;
use crate::stages::lane::aside::{Wait, Waiting};
use crate::stages::lane::flight::Flight;
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::simulate::Simulated;
use crate::stages::lane::term::Term;

/// Transactions on top of which a call is run at most, and bytes of their calldata.
const MOST_BEFORE: usize = 32;
const MOST_BYTES: usize = 512 << 10;
/// A call counts for what it says after this, whatever is still open before it.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Says what is done about a request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Wait,
    /// Runs on top of all that is open: what has passed it comes before it, too.
    RunOnTop,
    Judge,
}

impl Term<'_> {
    /// Returns whether what a request needs may come from a transaction before it that is in no block. Where many are aside, none is
    /// added: the account does not stop for calls that fail.
    pub(super) fn may_need_others(&self, request: &QueuedRequest, has_drafts: bool) -> bool {
        let aside = self.queue.aside();
        let is_behind_another = || aside.first_successor().is_some_and(|turn| turn < request.turn);
        let has_open = || self.flight.not_included().next().is_some();
        !aside.is_crowded() && (has_drafts || !self.queue.ready().is_empty() || has_open() || is_behind_another())
    }

    /// Tries those that wait: on top of what is before them, or alone once that is in blocks.
    pub(super) fn try_successors(&mut self) {
        let unsigned = self.queue.first_unsigned();
        let lowest_open = self.flight.not_included().next().map(|open| open.nonce);
        let block_gas = self.view.head().map_or(Gas(u64::MAX), |head| head.gas_limit);
        let account = self.account();
        let (mut first_waiting, mut calls) = (unsigned, Vec::new());
        for (request, wait, is_asked) in self.queue.aside_mut().successors() {
            let is_behind = first_waiting.is_some_and(|turn| turn < request.turn);
            first_waiting = Some(first_waiting.map_or(request.turn, |first| first.min(request.turn)));
            if *is_asked {
                continue;
            }
            if !is_behind {
                wait.below = wait.below.or_else(|| Some(end_of_those_before(&self.flight, request)));
            }
            let next = next_step(wait, lowest_open);
            if next != Next::Wait {
                *is_asked = true;
                calls.push((request.clone(), next));
            }
        }
        for (request, next) in calls {
            let call = call_of(account, &request);
            match next {
                Next::Wait => {}
                Next::RunOnTop => {
                    let on_top = on_top(&self.flight, call, block_gas);
                    self.queue.aside_mut().set_complete(request.seq, on_top.is_complete);
                    self.estimator.ask_on_top(request.seq.0, on_top);
                }
                Next::Judge => {
                    let span = self.processing_one(std::iter::once(&request));
                    self.estimator.ask(request.seq.0, Traced { item: call, span });
                }
            }
        }
    }

    /// Applies the outcome of a call that was run on top of others. What reverts on top of all that come before it fails; what could
    /// not be run so waits on.
    pub(super) async fn handle_on_top(&mut self, waiting: Waiting, estimate: Result<Gas, ChainError>) {
        let GasRule::Estimate { margin } = waiting.request.write.gas else {
            return self.queue.aside_mut().wait_on(waiting);
        };
        let is_complete = waiting.wait.is_some_and(|wait| wait.is_complete);
        match estimate {
            Ok(gas) => match self.with_estimate(Ok(gas), margin, waiting.request.calldata(), false) {
                Simulated::Runs(gas) => self.make_ready(waiting, gas),
                Simulated::Fails(cause) | Simulated::Reverts(cause) => self.fail_waiting_one(waiting, cause).await,
                Simulated::Taken(_) | Simulated::Unpaid(_) | Simulated::NotAnswered(_) => {
                    self.queue.aside_mut().wait_on(waiting);
                }
            },
            Err(ChainError::Node { message, data, .. }) if is_complete && is_revert(&message) => {
                let cause: Cause = self.simulation_cause(&message, data.as_deref());
                self.fail_waiting_one(waiting, cause).await;
            }
            Err(_) => self.queue.aside_mut().wait_on(waiting),
        }
    }
}

fn next_step(wait: &mut Wait, lowest_open: Option<Nonce>) -> Next {
    if wait.since.elapsed() >= LONGEST_WAIT {
        return Next::Judge;
    }
    let Some(below) = wait.below else { return Next::Wait };
    if lowest_open.is_none_or(|lowest| lowest >= below) {
        return Next::Judge;
    }
    if std::mem::replace(&mut wait.is_simulated, true) { Next::Wait } else { Next::RunOnTop }
}

fn call_of(account: Address, request: &QueuedRequest) -> Call {
    Call { from: account, to: request.write.to, value: request.write.value, data: request.calldata().clone() }
}

/// Returns the nonce behind the last open transaction of what was in the queue before this request.
fn end_of_those_before(flight: &Flight, request: &QueuedRequest) -> Nonce {
    let is_before = |open: &&InFlight| open.payload.requests.iter().any(|own| own.turn < request.turn);
    flight.not_included().filter(is_before).last().map_or(Nonce(0), |last| last.nonce.plus(1))
}

/// Gathers what is open: of more than a simulation takes, those to the same receiver first, the newest first.
fn on_top(flight: &Flight, call: Call, block_gas: Gas) -> OnTop {
    let mut open: Vec<_> = flight.not_included().filter(|open| !open.is_cancelling()).collect();
    let all = open.len();
    open.sort_by_key(|open| (open.payload.to == call.to, open.nonce));
    let mut bytes = 0;
    let fits = open.iter().rev().take(MOST_BEFORE).take_while(|open| {
        bytes += open.payload.calldata().len();
        bytes <= MOST_BYTES
    });
    let mut before: Vec<_> = fits.copied().collect();
    before.sort_by_key(|open| open.nonce);
    let is_complete = before.len() == all;
    let before = before.into_iter().map(|open| {
        let payload = &open.payload;
        let earlier = Call { from: call.from, to: payload.to, value: payload.value, data: payload.calldata().clone() };
        (earlier, payload.gas)
    });
    OnTop { before: before.collect(), call, block_gas, is_complete }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_has_one_run_on_top_and_ends_with_the_last_before_it_or_with_its_time() {
        let mut wait = Wait { since: Instant::now(), below: None, is_simulated: false, is_complete: false };
        let open = |nonce| Some(Nonce(nonce));
        assert_eq!(next_step(&mut wait, open(3)), Next::Wait, "not all before it have a nonce");
        wait.below = Some(Nonce(5));
        let steps = [open(3), open(3), open(4), open(5)].map(|open| next_step(&mut wait, open));
        assert_eq!(steps, [Next::RunOnTop, Next::Wait, Next::Wait, Next::Judge]);
        assert_eq!(next_step(&mut wait, None), Next::Judge);
        tokio::time::advance(LONGEST_WAIT).await;
        assert_eq!(next_step(&mut wait, open(3)), Next::Judge);
    }
}
