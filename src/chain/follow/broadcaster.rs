//! Sends journalled bytes to the nodes, in nonce order, a few rounds at a time, whatever they answer. It goes on while the lane
//! waits for its journal or its signer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::chain::{Chain, ChainError};
use crate::model::{Nonce, RawTransaction, TxHash};
use crate::observe::traces::Traced;

/// Highest number of transactions in one round, which the chain splits into JSON-RPC batches.
const ROUND: usize = 100;
/// Rounds on their way at once. One may overtake another: pools keep transactions that come before their turn. Where a node
/// does not, it is one round at a time.
const ROUNDS_AT_ONCE: usize = 4;

/// The nodes' answer to one signed transaction.
#[derive(Debug)]
pub struct Answer {
    pub nonce: Nonce,
    pub hash: TxHash,
    /// Decides nothing: the bytes may be on their way after an error too.
    pub result: Result<(), ChainError>,
}

#[derive(Debug)]
pub struct Answered {
    /// One for each signed transaction.
    pub answers: Vec<Answer>,
    /// Set where no other round was on its way that this one could have overtaken.
    pub was_alone: bool,
}

#[derive(Debug)]
struct Waiting {
    nonce: Nonce,
    signed: Traced<RawTransaction>,
}

/// The lane's side. The lane's window limits what waits: a nonce is sent again only after its answer.
#[derive(Debug)]
pub struct Broadcaster {
    waiting: mpsc::UnboundedSender<Waiting>,
    answered: mpsc::UnboundedReceiver<Answered>,
    /// Number of transactions without an answer.
    open: usize,
    in_order: Arc<AtomicBool>,
}

/// The sending side, for one term of a lane. Once dropped it sends nothing more; bytes on their way still arrive.
pub struct Rounds {
    chain: Arc<dyn Chain>,
    waiting: mpsc::UnboundedReceiver<Waiting>,
    answered: mpsc::UnboundedSender<Answered>,
    in_order: Arc<AtomicBool>,
}

/// Returns a broadcaster, and the rounds to run beside the lane.
pub fn start(chain: Arc<dyn Chain>) -> (Broadcaster, Rounds) {
    let (to_send, waiting) = mpsc::unbounded_channel();
    let (to_answer, answered) = mpsc::unbounded_channel();
    let in_order = Arc::new(AtomicBool::new(false));
    let rounds = Rounds { chain, waiting, answered: to_answer, in_order: Arc::clone(&in_order) };
    (Broadcaster { waiting: to_send, answered, open: 0, in_order }, rounds)
}

impl Broadcaster {
    /// Returns a broadcaster that sends nowhere.
    #[cfg(test)]
    pub fn unconnected() -> Self {
        let (waiting, _) = mpsc::unbounded_channel();
        let (_, answered) = mpsc::unbounded_channel();
        Self { waiting, answered, open: 0, in_order: Arc::default() }
    }

    /// Queues bytes behind those that wait. The journal holds them already.
    pub fn send(&mut self, nonce: Nonce, signed: Traced<RawTransaction>) {
        // Without rounds the lane's term is over, and the next term sends everything again.
        if self.waiting.send(Waiting { nonce, signed }).is_ok() {
            self.open += 1;
        }
    }

    /// Returns true when every transaction has its answer.
    pub fn is_idle(&self) -> bool {
        self.open == 0
    }

    /// Returns the answers of the next round. Waits for ever when idle. Dropping this future loses nothing.
    pub async fn next(&mut self) -> Answered {
        match self.answered.recv().await {
            Some(answered) => {
                self.open = self.open.saturating_sub(answered.answers.len());
                answered
            }
            None => std::future::pending().await,
        }
    }

    /// Sends one round at a time from now on, for a node that drops what comes before its turn. Returns whether that is new.
    pub fn keep_order(&self) -> bool {
        !self.in_order.swap(true, Ordering::Relaxed)
    }
}

impl Rounds {
    /// Sends and answers for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        let mut on_way = FuturesUnordered::new();
        let mut next = Vec::with_capacity(ROUND);
        loop {
            let places = if self.in_order.load(Ordering::Relaxed) { 1 } else { ROUNDS_AT_ONCE };
            tokio::select! {
                biased;
                Some(answered) = on_way.next(), if !on_way.is_empty() => {
                    // Without a receiver the lane has ended, and these rounds with it.
                    let _ = self.answered.send(answered);
                }
                taken = self.waiting.recv_many(&mut next, ROUND), if on_way.len() < places => {
                    if taken == 0 {
                        return std::future::pending().await;
                    }
                    let was_alone = on_way.is_empty();
                    on_way.push(round(Arc::clone(&self.chain), std::mem::take(&mut next), was_alone));
                }
            }
        }
    }
}

async fn round(chain: Arc<dyn Chain>, batch: Vec<Waiting>, was_alone: bool) -> Answered {
    let (nonces, transactions): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|Waiting { nonce, signed }| (nonce, signed)).unzip();
    let results = chain.broadcast(&transactions).await;
    let answers = nonces.into_iter().zip(transactions).zip(results);
    let answers = answers.map(|((nonce, signed), result)| Answer { nonce, hash: signed.item.hash, result }).collect();
    Answered { answers, was_alone }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulation::fakes::{FakeChain, own_hash, raw};

    /// Sends these nonces over a chain that takes a second for each round, for this many milliseconds.
    async fn send(
        chain: &Arc<FakeChain>,
        nonces: u64,
        milliseconds: u64,
        in_order: bool,
    ) -> (Broadcaster, Vec<Answered>) {
        chain.change(|state| state.latency = Duration::from_secs(1));
        let (mut broadcaster, rounds) = start(chain.clone());
        if in_order {
            assert!(broadcaster.keep_order() && !broadcaster.keep_order(), "it is new once");
        }
        (0..nonces).for_each(|nonce| broadcaster.send(Nonce(nonce), raw(nonce).into()));
        let mut answered = Vec::new();
        let collect = async {
            loop {
                answered.push(broadcaster.next().await);
            }
        };
        tokio::select! {
            _ = rounds.run() => {}
            () = collect => {}
            () = tokio::time::sleep(Duration::from_millis(milliseconds)) => {}
        }
        (broadcaster, answered)
    }

    #[tokio::test(start_paused = true)]
    async fn every_transaction_gets_an_answer_and_a_refusal_is_one() {
        let chain = FakeChain::sent_in(&[]);
        chain.change(|state| _ = state.refused.insert(own_hash(1), "nonce too low".to_owned()));
        let (broadcaster, answered) = send(&chain, 3, 1500, false).await;
        let [round] = answered.as_slice() else { panic!("one round: {answered:?}") };
        let answers: Vec<_> = round.answers.iter().map(|answer| (answer.nonce.0, answer.result.is_ok())).collect();
        assert_eq!((answers, round.was_alone), (vec![(0, true), (1, false), (2, true)], true));
        assert!(broadcaster.is_idle());
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_rounds_go_out_at_once_in_nonce_order() {
        let chain = FakeChain::sent_in(&[]);
        let (broadcaster, _) = send(&chain, 250, 500, false).await;
        let sent = chain.change(|state| state.broadcasts.clone());
        assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [ROUND, ROUND, 50]);
        assert_eq!(sent.concat(), (0..250).map(own_hash).collect::<Vec<_>>());
        assert!(!broadcaster.is_idle());
    }

    /// Invariant 17
    #[tokio::test(start_paused = true)]
    async fn where_a_node_keeps_nothing_before_its_turn_each_round_waits_for_the_one_before() {
        let chain = FakeChain::sent_in(&[]);
        let (_, answered) = send(&chain, 250, 2500, true).await;
        assert_eq!(chain.change(|state| state.broadcasts.len()), 3);
        assert_eq!(answered.iter().map(|round| round.was_alone).collect::<Vec<_>>(), [true, true]);
    }
}
