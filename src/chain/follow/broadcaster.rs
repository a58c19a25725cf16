//! The stage that gives journalled bytes to the node: in nonce order, a few batches at a time, whatever it answers. It goes
//! on while the lane waits for its journal or its signer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;

use crate::chain::{Chain, ChainError};
use crate::model::{Nonce, RawTransaction, TxHash};
use crate::observe::traces::Traced;

/// Transactions in one round at most; the chain cuts it into JSON-RPC batches.
const ROUND: usize = 100;
/// Rounds on their way at once. One may overtake another: pools keep what comes before its turn. Where a node does not, it
/// is one at a time.
const ROUNDS_AT_ONCE: usize = 4;

/// What a node answered to one attempt.
#[derive(Debug)]
pub struct Answer {
    pub nonce: Nonce,
    pub hash: TxHash,
    /// Decides nothing about whether the bytes are on their way.
    pub result: Result<(), ChainError>,
}

/// The answers of one round.
#[derive(Debug)]
pub struct Answered {
    /// One for each attempt.
    pub answers: Vec<Answer>,
    /// No other round was on its way beside it, that it could have overtaken.
    pub was_alone: bool,
}

#[derive(Debug)]
struct Waiting {
    nonce: Nonce,
    signed: Traced<RawTransaction>,
}

/// What the lane has of the stage. What waits is limited by the lane's window: a nonce is sent again only when it has its
/// answer.
#[derive(Debug)]
pub struct Broadcaster {
    waiting: mpsc::UnboundedSender<Waiting>,
    answered: mpsc::UnboundedReceiver<Answered>,
    /// Sent, and not yet answered.
    open: usize,
    in_order: Arc<AtomicBool>,
}

/// The stage itself, for one term of a lane. Dropped, it sends nothing more; what is on its way stays so.
pub struct Rounds {
    chain: Arc<dyn Chain>,
    waiting: mpsc::UnboundedReceiver<Waiting>,
    answered: mpsc::UnboundedSender<Answered>,
    in_order: Arc<AtomicBool>,
}

/// A broadcaster with nothing to send, and the rounds that somebody has to run.
pub fn start(chain: Arc<dyn Chain>) -> (Broadcaster, Rounds) {
    let (to_send, waiting) = mpsc::unbounded_channel();
    let (to_answer, answered) = mpsc::unbounded_channel();
    let in_order = Arc::new(AtomicBool::new(false));
    let rounds = Rounds { chain, waiting, answered: to_answer, in_order: Arc::clone(&in_order) };
    (Broadcaster { waiting: to_send, answered, open: 0, in_order }, rounds)
}

impl Broadcaster {
    /// Queues bytes behind those that wait. The journal holds them already.
    pub fn send(&mut self, nonce: Nonce, signed: Traced<RawTransaction>) {
        // Without rounds the lane's term is over, and the next one sends everything again.
        if self.waiting.send(Waiting { nonce, signed }).is_ok() {
            self.open += 1;
        }
    }

    /// Nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.open == 0
    }

    /// The answers of the next round; waits for ever when idle. Dropping this future loses nothing.
    pub async fn next(&mut self) -> Answered {
        match self.answered.recv().await {
            Some(answered) => {
                self.open = self.open.saturating_sub(answered.answers.len());
                answered
            }
            None => std::future::pending().await,
        }
    }

    /// From now on one round at a time: the node keeps nothing that comes before its turn. Returns whether that is new.
    pub fn keep_order(&self) -> bool {
        !self.in_order.swap(true, Ordering::Relaxed)
    }
}

impl Rounds {
    /// Sends and answers, for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        let mut on_way = FuturesUnordered::new();
        let mut next = Vec::with_capacity(ROUND);
        loop {
            let places = if self.in_order.load(Ordering::Relaxed) { 1 } else { ROUNDS_AT_ONCE };
            tokio::select! {
                biased;
                Some(answered) = on_way.next(), if !on_way.is_empty() => {
                    // A lane that does not listen has ended, and with it this.
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
