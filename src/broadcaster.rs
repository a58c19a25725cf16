//! The stage that gives journalled bytes to the node: in nonce order, one batch at a time, whatever it answers.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio_util::sync::ReusableBoxFuture;

use crate::chain::{Chain, ChainError};
use crate::model::{Nonce, SignedTransaction, TxHash};

/// Transactions in one round at most; the chain cuts it into JSON-RPC batches.
const ROUND: usize = 256;

/// What a node answered to one attempt.
#[derive(Debug)]
pub struct Answer {
    /// Its nonce.
    pub nonce: Nonce,
    /// Its hash.
    pub hash: TxHash,
    /// Decides nothing about whether the bytes are on their way.
    pub result: Result<(), ChainError>,
}

/// The stage of one lane.
pub struct Broadcaster {
    chain: Arc<dyn Chain>,
    waiting: VecDeque<(Nonce, SignedTransaction)>,
    round: Option<ReusableBoxFuture<'static, Vec<Answer>>>,
}

impl Broadcaster {
    /// A broadcaster with nothing to send.
    pub fn new(chain: Arc<dyn Chain>) -> Self {
        Self { chain, waiting: VecDeque::new(), round: None }
    }

    /// Bytes to send after those before. They stand in the journal.
    pub fn send(&mut self, nonce: Nonce, signed: SignedTransaction) {
        self.waiting.push_back((nonce, signed));
    }

    /// Nothing waits and nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.round.is_none()
    }

    /// The answers of the next round; waits for ever when idle. Dropping this future loses nothing.
    pub async fn next(&mut self) -> Vec<Answer> {
        if self.round.is_none() && !self.waiting.is_empty() {
            let batch: Vec<_> = self.waiting.drain(..ROUND.min(self.waiting.len())).collect();
            let chain = Arc::clone(&self.chain);
            self.round = Some(ReusableBoxFuture::new(async move {
                let (nonces, signed): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                let results = chain.broadcast(&signed).await;
                let answers = nonces.into_iter().zip(signed).zip(results);
                answers.map(|((nonce, signed), result)| Answer { nonce, hash: signed.hash, result }).collect()
            }));
        }
        match &mut self.round {
            Some(round) => {
                let answers = round.await;
                self.round = None;
                answers
            }
            None => std::future::pending().await,
        }
    }

    /// Forgets what waits; what is on its way stays so.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.round = None;
    }
}
