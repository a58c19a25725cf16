//! Calls that are each about something of their own: what one of them fails at leaves the others, and the endpoint in use.

use std::sync::PoisonError;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jsonrpc_core::Value;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::chain::batches::SINGLE_CALLS;
use crate::chain::endpoint::{Endpoint, MethodCall, Order};
use crate::chain::faults::first_failure;
use crate::chain::{ChainError, Result};

/// Time that an endpoint has to show that it still serves its chain, after a call that it failed.
const CHECK_LIMIT: Duration = Duration::from_secs(3);
/// Time in which calls of a batch that failed are begun anew, each alone. What is not begun by then has no answer here.
const BEGIN_LIMIT: Duration = Duration::from_secs(5);
/// Shortest time between two warnings of single calls that failed.
const WARN_EVERY: Duration = Duration::from_secs(60);

impl Endpoint {
    /// Returns whether it shows at once that it serves this chain, and the chain's head: some nodes know their chain id
    /// while all else hangs.
    async fn still_serves(&self, chain_id: u64) -> bool {
        let check = async {
            let answer = self.check("eth_chainId", vec![]).await?;
            self.check_chain_id(&answer, chain_id)?;
            self.newest_header().await
        };
        matches!(timeout(CHECK_LIMIT, check).await, Ok(Ok(_)))
    }

    /// Records the answer to one call. What fails a call and still serves its chain is not rested: the failure is this call's.
    pub(super) async fn record_call<T>(&self, answer: &Result<T>, chain_id: u64) {
        match answer {
            Err(failure) if failure.may_be_of_call() && self.still_serves(chain_id).await => self.warn_of_call(failure),
            answer => self.record(answer),
        }
    }

    /// Warns now and then of calls that an endpoint fails while it serves others.
    fn warn_of_call(&self, failure: &ChainError) {
        let mut warned_at = self.warned_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if warned_at.is_none_or(|at| now.duration_since(at) >= WARN_EVERY) {
            *warned_at = Some(now);
            warn!(endpoint = self.label(), "the endpoint fails a call and answers others; it stays in use: {failure}");
        }
    }

    /// Makes calls each of which is about something of its own, and records what that says of the endpoint. What one call
    /// fails at leaves the others: an endpoint that still serves its chain is not rested, and of a batch that failed each
    /// call is made alone.
    pub(super) async fn ask_each(&self, calls: &[MethodCall], chain_id: u64) -> Vec<Result<Value>> {
        let mut answers = self.ask_many(calls, Order::Any).await;
        let Some(failure) = first_failure(&answers).cloned() else {
            self.record(&Ok(()));
            return answers;
        };
        if matches!(failure, ChainError::RateLimited { .. }) || !self.still_serves(chain_id).await {
            self.record::<()>(&Err(failure));
            return answers;
        }
        self.warn_of_call(&failure);
        let is_failed = |answer: &Result<Value>| answer.as_ref().is_err_and(ChainError::is_of_endpoint);
        let failed: Vec<_> =
            calls.iter().zip(&mut answers).filter(|(_, answer)| calls.len() > 1 && is_failed(answer)).collect();
        self.ask_again(failed, is_failed).await;
        answers
    }

    /// Makes calls of a batch that failed, each alone. A call that hangs holds up no other, and where the first ones all fail,
    /// or time is up, the rest keep the batch's failure.
    async fn ask_again(
        &self,
        failed: Vec<(&MethodCall, &mut Result<Value>)>,
        is_failed: impl Fn(&Result<Value>) -> bool,
    ) {
        let until = Instant::now() + BEGIN_LIMIT;
        let (mut waiting, mut on_way) = (failed.into_iter().enumerate().peekable(), FuturesUnordered::new());
        let mut is_answering = false;
        loop {
            let may_begin = |place: usize| (is_answering || place < SINGLE_CALLS) && Instant::now() < until;
            while on_way.len() < SINGLE_CALLS
                && let Some((_, (call, slot))) = waiting.next_if(|(place, _)| may_begin(*place))
            {
                on_way.push(async move { (slot, self.ask_alone(call, false).await) });
            }
            let Some((slot, answer)) = on_way.next().await else { return };
            is_answering |= !is_failed(&answer);
            *slot = answer;
        }
    }
}
