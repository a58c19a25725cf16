//! Sends journalled bytes to the nodes, in nonce order, one round after the other. It goes on while the lane waits for its
//! journal or its signer.
//!
//! Pools keep only a few transactions that come before their turn, and drop the others after answering with their hash
//! (invariant 17). So no round overtakes another, what waits goes out lowest nonce first, and after a round that nodes did not
//! take as a whole nothing goes out until the lane has seen the answers and has called back what comes before its turn.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc};

use crate::chain::{Chain, ChainError};
use crate::model::{Nonce, RawTransaction, TxHash};
use crate::observe::traces::Traced;

/// Highest number of transactions in one round, which the chain splits into JSON-RPC batches.
const ROUND: usize = 200;

/// The nodes' answer to one signed transaction.
#[derive(Debug)]
pub struct Answer {
    pub nonce: Nonce,
    pub hash: TxHash,
    /// Decides nothing: the bytes may be on their way after an error too.
    pub result: Result<(), ChainError>,
}

/// The answers to one round, one for each signed transaction, lowest nonce first.
#[derive(Debug)]
pub struct Answered {
    pub answers: Vec<Answer>,
}

/// Limits the transactions that go out together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundSize {
    Full,
    /// For nodes that take the calls of a batch out of order.
    Single,
}

#[derive(Debug)]
struct Queue {
    waiting: BTreeMap<Nonce, Traced<RawTransaction>>,
    size: RoundSize,
    /// The lane has yet to see that nodes did not take all of a round.
    is_held: bool,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Shared {
    fn new() -> Arc<Self> {
        let queue = Queue { waiting: BTreeMap::new(), size: RoundSize::Full, is_held: false };
        Arc::new(Self { queue: Mutex::new(queue), changed: Notify::new() })
    }

    /// Never held over an await.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Takes the lowest nonces.
    fn take_round(&mut self) -> Vec<(Nonce, Traced<RawTransaction>)> {
        let most = match self.size {
            _ if self.is_held => 0,
            RoundSize::Full => ROUND,
            RoundSize::Single => 1,
        };
        std::iter::from_fn(|| self.waiting.pop_first()).take(most).collect()
    }
}

/// The lane's side. The lane's window limits what waits: a nonce is sent again only after its answer.
#[derive(Debug)]
pub struct Broadcaster {
    shared: Arc<Shared>,
    answered: mpsc::UnboundedReceiver<Answered>,
    /// Transactions without an answer that the lane has seen.
    open: usize,
}

/// The sending side, for one term of a lane. Once dropped it sends nothing more; bytes on their way still arrive.
pub struct Rounds {
    chain: Arc<dyn Chain>,
    shared: Arc<Shared>,
    answered: mpsc::UnboundedSender<Answered>,
}

/// Returns a broadcaster, and the rounds to run beside the lane.
pub fn start(chain: Arc<dyn Chain>) -> (Broadcaster, Rounds) {
    let (to_answer, answered) = mpsc::unbounded_channel();
    let shared = Shared::new();
    let rounds = Rounds { chain, shared: Arc::clone(&shared), answered: to_answer };
    (Broadcaster { shared, answered, open: 0 }, rounds)
}

impl Broadcaster {
    /// Returns a broadcaster that sends nowhere.
    #[cfg(test)]
    pub fn unconnected() -> Self {
        let (_, answered) = mpsc::unbounded_channel();
        Self { shared: Shared::new(), answered, open: 0 }
    }

    /// Queues bytes by their nonce, in place of others that wait at it. The journal holds them already.
    pub fn send(&mut self, nonce: Nonce, signed: Traced<RawTransaction>) {
        if self.shared.queue().waiting.insert(nonce, signed).is_none() {
            self.open += 1;
        }
        self.shared.changed.notify_one();
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

    /// Takes back what waits and is not to be sent now. Returns its nonces.
    pub fn call_back(&mut self, is_early: impl Fn(Nonce) -> bool) -> Vec<Nonce> {
        let back: Vec<_> =
            self.shared.queue().waiting.extract_if(.., |nonce, _| is_early(*nonce)).map(|(nonce, _)| nonce).collect();
        self.open = self.open.saturating_sub(back.len());
        back
    }

    /// Goes on after a round that nodes did not take as a whole, once the lane has seen all answers there are.
    pub fn go_on(&self) {
        let mut queue = self.shared.queue();
        if self.open == queue.waiting.len() {
            queue.is_held = false;
            self.shared.changed.notify_one();
        }
    }

    pub fn set_size(&self, size: RoundSize) {
        self.shared.queue().size = size;
    }
}

impl Rounds {
    /// Sends and answers for as long as it is polled.
    pub async fn run(self) -> Infallible {
        loop {
            let round = self.shared.queue().take_round();
            if round.is_empty() {
                self.shared.changed.notified().await;
                continue;
            }
            let answers = self.broadcast(round).await;
            if answers.iter().any(|answer| answer.result.is_err()) {
                self.shared.queue().is_held = true;
            }
            // Without a receiver the lane has ended, and these rounds with it.
            let _ = self.answered.send(Answered { answers });
        }
    }

    async fn broadcast(&self, round: Vec<(Nonce, Traced<RawTransaction>)>) -> Vec<Answer> {
        let (nonces, transactions): (Vec<_>, Vec<_>) = round.into_iter().unzip();
        let results = self.chain.broadcast(&transactions).await;
        let answers = nonces.into_iter().zip(transactions).zip(results);
        answers.map(|((nonce, signed), result)| Answer { nonce, hash: signed.item.hash, result }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulation::fakes::{FakeChain, own_hash, raw};

    /// Runs rounds over a chain that takes a second for each, for this many milliseconds.
    async fn run(broadcaster: &mut Broadcaster, rounds: Rounds, milliseconds: u64) -> Vec<Answered> {
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
        answered
    }

    fn connected() -> (Arc<FakeChain>, Broadcaster, Rounds) {
        let chain = FakeChain::sent_in(&[]);
        chain.change(|state| state.latency = Duration::from_secs(1));
        let (broadcaster, rounds) = start(chain.clone());
        (chain, broadcaster, rounds)
    }

    fn send(broadcaster: &mut Broadcaster, nonces: impl IntoIterator<Item = u64>) {
        nonces.into_iter().for_each(|nonce| broadcaster.send(Nonce(nonce), raw(nonce).into()));
    }

    fn lengths(chain: &FakeChain) -> Vec<usize> {
        chain.change(|state| state.broadcasts.iter().map(Vec::len).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn every_transaction_gets_an_answer_and_a_refusal_is_one() {
        let (chain, mut broadcaster, rounds) = connected();
        chain.change(|state| _ = state.refused.insert(own_hash(1), "nonce too low".to_owned()));
        send(&mut broadcaster, 0..3);
        let answered = run(&mut broadcaster, rounds, 1500).await;
        let [round] = answered.as_slice() else { panic!("one round: {answered:?}") };
        let answers: Vec<_> = round.answers.iter().map(|answer| (answer.nonce.0, answer.result.is_ok())).collect();
        assert_eq!(answers, [(0, true), (1, false), (2, true)]);
        assert!(broadcaster.is_idle());
    }

    /// Invariant 17
    #[tokio::test(start_paused = true)]
    async fn each_round_waits_for_the_one_before_and_has_the_lowest_nonces_that_wait() {
        let (chain, mut broadcaster, rounds) = connected();
        send(&mut broadcaster, (0..250).rev());
        let answered = run(&mut broadcaster, rounds, 1500).await;
        assert_eq!((answered.len(), lengths(&chain)), (1, vec![200, 50]), "the second is on its way");
        let sent = chain.change(|state| state.broadcasts.concat());
        assert_eq!(sent, (0..250).map(own_hash).collect::<Vec<_>>());
        assert!(!broadcaster.is_idle());
    }

    /// Invariant 17
    #[tokio::test(start_paused = true)]
    async fn after_a_refusal_nothing_goes_out_until_the_lane_has_called_back_what_comes_too_early() {
        let (chain, mut broadcaster, rounds) = connected();
        chain.change(|state| _ = state.refused.insert(own_hash(150), "transaction underpriced".to_owned()));
        send(&mut broadcaster, 0..250);
        let rounds = tokio::spawn(rounds.run());
        assert_eq!(broadcaster.next().await.answers.len(), 200);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(lengths(&chain), [200], "the lane has not said anything");
        let back = broadcaster.call_back(|nonce| nonce.0 > 220);
        assert_eq!(back, (221..250).map(Nonce).collect::<Vec<_>>());
        broadcaster.go_on();
        assert_eq!(broadcaster.next().await.answers.len(), 21);
        assert!(broadcaster.is_idle());
        rounds.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_replacement_takes_the_place_of_what_waits_at_its_nonce() {
        let (chain, mut broadcaster, rounds) = connected();
        broadcaster.send(Nonce(0), raw(7).into());
        send(&mut broadcaster, [0]);
        run(&mut broadcaster, rounds, 1500).await;
        assert_eq!(chain.change(|state| state.broadcasts.concat()), [own_hash(0)]);
        assert!(broadcaster.is_idle());
    }

    /// Invariant 17
    #[tokio::test(start_paused = true)]
    async fn a_node_that_shuffles_batches_gets_one_at_a_time() {
        let (chain, mut broadcaster, rounds) = connected();
        broadcaster.set_size(RoundSize::Single);
        send(&mut broadcaster, 0..3);
        run(&mut broadcaster, rounds, 3500).await;
        assert_eq!(lengths(&chain), [1, 1, 1]);
    }
}
