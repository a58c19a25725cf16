//! Estimates calls one by one, beside the lane: those that a round of estimates brought no answer for. A call that hangs, or
//! that a node always fails at, then holds up no other.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::chain::{Call, Chain, ChainError, OnTop, Result};
use crate::model::{Address, Gas, Wei};
use crate::observe::traces::Traced;
use crate::policy::classify::{ErrorTable, SimulationMeaning};

/// Calls that are estimated at the same time at most.
const AT_ONCE: usize = 16;

/// A call that failed within this is made once more. One that hangs is not: that takes long.
const FAILED_AT_ONCE: Duration = Duration::from_secs(1);

/// The outcome of one call.
#[derive(Debug)]
pub struct Estimated {
    pub key: i64,
    pub estimate: Result<Gas>,
    /// The node answers estimates: this one, or else a transfer of the account to itself that was asked right after it.
    pub is_answering: bool,
    /// Set where it was run on top of transactions that are in no block.
    pub is_on_top: bool,
}

/// A call to estimate.
#[derive(Debug)]
enum Wanted {
    Alone(Traced<Call>),
    OnTop(Box<OnTop>),
}

/// The lane's side. The lane limits what waits.
#[derive(Debug)]
pub struct Estimator {
    wanted: mpsc::UnboundedSender<(i64, Wanted)>,
    estimated: mpsc::UnboundedReceiver<Estimated>,
}

/// The estimating side, for one term of a lane.
pub struct Estimating {
    chain: Arc<dyn Chain>,
    errors: Arc<ErrorTable>,
    wanted: mpsc::UnboundedReceiver<(i64, Wanted)>,
    estimated: mpsc::UnboundedSender<Estimated>,
}

/// Returns an estimator, and its work to run beside the lane.
pub fn start(chain: Arc<dyn Chain>, errors: Arc<ErrorTable>) -> (Estimator, Estimating) {
    let (want, wanted) = mpsc::unbounded_channel();
    let (to_estimated, estimated) = mpsc::unbounded_channel();
    (Estimator { wanted: want, estimated }, Estimating { chain, errors, wanted, estimated: to_estimated })
}

impl Estimator {
    /// Asks for the estimate of one call.
    pub fn ask(&self, key: i64, call: Traced<Call>) {
        // Without the estimating side the lane's term is over, and the next term asks again.
        let _ = self.wanted.send((key, Wanted::Alone(call)));
    }

    /// Asks for the estimate of one call on top of others.
    pub fn ask_on_top(&self, key: i64, on_top: OnTop) {
        let _ = self.wanted.send((key, Wanted::OnTop(Box::new(on_top))));
    }

    /// Returns the next outcome. Waits for ever when nothing is asked for. Dropping this future loses nothing.
    pub async fn next(&mut self) -> Estimated {
        match self.estimated.recv().await {
            Some(estimated) => estimated,
            None => std::future::pending().await,
        }
    }
}

impl Estimating {
    /// Estimates for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        let mut on_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some(estimated) = on_way.next(), if !on_way.is_empty() => {
                    // Without a receiver the lane has ended, and these calls with it.
                    let _ = self.estimated.send(estimated);
                }
                wanted = self.wanted.recv(), if on_way.len() < AT_ONCE => {
                    let Some((key, wanted)) = wanted else { return std::future::pending().await };
                    on_way.push(estimate(Arc::clone(&self.chain), Arc::clone(&self.errors), key, wanted));
                }
            }
        }
    }
}

async fn estimate(chain: Arc<dyn Chain>, errors: Arc<ErrorTable>, key: i64, wanted: Wanted) -> Estimated {
    let call = match wanted {
        Wanted::Alone(call) => call,
        Wanted::OnTop(on_top) => {
            let estimate = chain.estimate_on_top(&on_top).await;
            return Estimated { key, estimate, is_answering: true, is_on_top: true };
        }
    };
    let (from, began) = (call.item.from, Instant::now());
    let mut estimate = alone(chain.as_ref(), call.clone()).await;
    let mut is_answering = is_answer(&estimate, &errors);
    let failed_at_once = began.elapsed() < FAILED_AT_ONCE;
    if !is_answering {
        is_answering = answers_estimates(chain.as_ref(), from, &errors).await;
        // A node that fails calls by chance may answer the next one.
        if is_answering && failed_at_once {
            estimate = alone(chain.as_ref(), call).await;
        }
    }
    Estimated { key, estimate, is_answering, is_on_top: false }
}

/// Returns whether the node answers an estimate now: that of a transfer of the account to itself, which no contract can fail.
pub async fn answers_estimates(chain: &dyn Chain, account: Address, errors: &ErrorTable) -> bool {
    let transfer = Call { from: account, to: account, value: Wei(0), data: bytes::Bytes::new() };
    is_answer(&alone(chain, transfer.into()).await, errors)
}

async fn alone(chain: &dyn Chain, call: Traced<Call>) -> Result<Gas> {
    let nothing =
        || ChainError::Nonsense { endpoint: "the node".to_owned(), detail: "no estimate for a call".to_owned() };
    chain.estimate(&[call]).await.pop().unwrap_or_else(|| Err(nothing()))
}

fn is_answer(estimate: &Result<Gas>, errors: &ErrorTable) -> bool {
    match estimate {
        Ok(_) => true,
        Err(ChainError::Node { message, .. }) => {
            errors.meaning_of_simulation(message) != SimulationMeaning::Unavailable
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::fakes::{ACCOUNT, FakeChain};

    fn call(name: &'static [u8]) -> Traced<Call> {
        Call { from: ACCOUNT, to: Address([9; 20]), value: Wei(0), data: bytes::Bytes::from_static(name) }.into()
    }

    /// Asks for these calls, and returns each outcome: its key, its gas, whether the node answers estimates.
    async fn outcomes(chain: &Arc<FakeChain>, calls: &[&'static [u8]]) -> Vec<(i64, Option<Gas>, bool)> {
        let (mut estimator, estimating) = start(chain.clone(), Arc::default());
        (0..).zip(calls).for_each(|(key, name)| estimator.ask(key, call(name)));
        let mut outcomes = Vec::new();
        let collect = async {
            for _ in calls {
                let Estimated { key, estimate, is_answering, .. } = estimator.next().await;
                outcomes.push((key, estimate.ok(), is_answering));
            }
        };
        tokio::select! {
            _ = estimating.run() => unreachable!("it never ends"),
            () = collect => {}
        }
        outcomes
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_answer_holds_up_no_other_and_is_told_from_an_outage() {
        let chain = FakeChain::sent_in(&[]);
        chain.change(|state| {
            state.estimates.insert(b"hangs".as_slice().into(), None);
            state.estimates.insert(b"fails".as_slice().into(), Some("Internal error".to_owned()));
            state.estimates.insert(b"reverts".as_slice().into(), Some("execution reverted".to_owned()));
        });
        let mut found = outcomes(&chain, &[b"hangs", b"fails", b"runs", b"reverts"]).await;
        assert_eq!(found.last().map(|(key, ..)| *key), Some(0), "the others do not wait for it");
        found.sort();
        assert_eq!(found, [(0, None, true), (1, None, true), (2, Some(Gas(21_000)), true), (3, None, true)]);
        chain.change(|state| state.is_away = true);
        assert_eq!(outcomes(&chain, &[b"runs"]).await, [(0, None, false)]);
    }
}
