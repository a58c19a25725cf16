//! The live transactions of an account, by nonce and by hash; how many may wait for a block; and the broadcaster.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::chain::follow::broadcaster::{Answer, Answered, Broadcaster};
use crate::chain::{ChainError, Inclusion};
use crate::journal::RequestSeq;
use crate::model::{BlockHash, BlockNumber, Gas, Nonce, Purpose, SignedTransaction, TxHash};
use crate::observe::traces::{SpanContext, Traced};
use crate::policy::classify::{ErrorTable, SendMeaning};
use crate::policy::fee::{Market, is_underpriced};
use crate::policy::send_window::SendWindow;
use crate::stages::lane::in_flight::InFlight;

/// An answer that is about the newest signed transaction of a live nonce.
#[derive(Debug)]
pub(super) enum Heard {
    Meaning(SendMeaning, String),
    Failure(ChainError),
}

/// What is signed and has not ended.
pub(super) struct Flight {
    by_nonce: BTreeMap<Nonce, InFlight>,
    by_hash: BTreeMap<TxHash, Nonce>,
    window: SendWindow,
    broadcaster: Broadcaster,
}

impl Flight {
    pub(super) fn new(most: usize, broadcaster: Broadcaster) -> Self {
        Self { by_nonce: BTreeMap::new(), by_hash: BTreeMap::new(), window: SendWindow::new(most), broadcaster }
    }

    pub(super) fn insert(&mut self, transaction: InFlight) {
        self.by_hash.extend(transaction.hashes().map(|hash| (hash, transaction.nonce)));
        self.by_nonce.insert(transaction.nonce, transaction);
    }

    /// Adds a replacement at a live nonce.
    pub(super) fn replace(&mut self, nonce: Nonce, signed: SignedTransaction, gas: Gas) {
        if let Some(transaction) = self.by_nonce.get_mut(&nonce) {
            transaction.cancel_gas = (signed.purpose == Purpose::Cancel).then_some(gas);
            self.by_hash.insert(signed.raw.hash, nonce);
            transaction.replace(signed);
        }
    }

    pub(super) fn remove(&mut self, nonce: Nonce) -> Option<InFlight> {
        let transaction = self.by_nonce.remove(&nonce)?;
        for hash in transaction.hashes() {
            self.by_hash.remove(&hash);
        }
        Some(transaction)
    }

    pub(super) fn get(&self, nonce: Nonce) -> Option<&InFlight> {
        self.by_nonce.get(&nonce)
    }

    pub(super) fn get_mut(&mut self, nonce: Nonce) -> Option<&mut InFlight> {
        self.by_nonce.get_mut(&nonce)
    }

    pub(super) fn of_request(&mut self, request: RequestSeq) -> Option<&mut InFlight> {
        let is_for = |transaction: &&mut InFlight| transaction.payload.requests.iter().any(|own| own.seq == request);
        self.by_nonce.values_mut().find(is_for)
    }

    pub(super) fn len(&self) -> usize {
        self.by_nonce.len()
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = TxHash> {
        self.by_hash.keys().copied()
    }

    pub(super) fn not_included(&self) -> impl Iterator<Item = &InFlight> {
        self.by_nonce.values().filter(|transaction| transaction.included.is_none())
    }

    /// Returns all hashes of each nonce below `count` that is in no block, lowest first.
    pub(super) fn hashes_not_included(&self, count: Nonce) -> Vec<(Nonce, Vec<TxHash>)> {
        let below = self.not_included().filter(|transaction| transaction.nonce < count);
        below.map(|transaction| (transaction.nonce, transaction.hashes().collect())).collect()
    }

    /// Returns the lowest nonce from `count` to below `next` that has no transaction.
    pub(super) fn lowest_missing(&self, count: Nonce, next: Nonce) -> Option<Nonce> {
        (count.0..next.0).map(Nonce).find(|nonce| !self.by_nonce.contains_key(nonce))
    }

    /// Returns how many more may wait for a block.
    pub(super) fn room(&self) -> usize {
        self.window.size().saturating_sub(self.not_included().count())
    }

    pub(super) fn window(&self) -> &SendWindow {
        &self.window
    }

    /// Halves the window, once for each head. Returns whether it was fully open before.
    pub(super) fn shrink_window(&mut self, head: BlockNumber) -> bool {
        let was_full = self.window.is_full();
        let waiting = self.not_included().count();
        self.window.refused(waiting, head) && was_full
    }

    /// Gives the newest signed transaction of a live nonce to the broadcaster.
    pub(super) fn send(&mut self, nonce: Nonce, span: Option<SpanContext>) {
        if let Some(transaction) = self.by_nonce.get_mut(&nonce) {
            transaction.begin_sending();
            self.broadcaster.send(nonce, Traced { item: transaction.newest().raw.clone(), span });
        }
    }

    pub(super) fn broadcaster(&mut self) -> &mut Broadcaster {
        &mut self.broadcaster
    }

    /// Waits for the answers of the next round. Cancel safe.
    pub(super) async fn next_answers(&mut self) -> Answered {
        self.broadcaster.next().await
    }

    /// Applies an answer to its transaction. `next` is the nonce that the next block has to begin with. Returns `None` where
    /// the answer is about nothing that is still sent.
    pub(super) fn record_answer(
        &mut self,
        Answer { nonce, hash, result }: Answer,
        next: Option<Nonce>,
        market: Option<Market>,
        errors: &ErrorTable,
    ) -> Option<Heard> {
        let now = Instant::now();
        let transaction = self.by_nonce.get_mut(&nonce)?;
        if transaction.newest().raw.hash != hash {
            return None;
        }
        transaction.end_sending(now);
        let (meaning, text) = match result {
            Ok(()) => {
                let fee = transaction.newest().fee;
                let offers_enough = market.is_some_and(|market| !is_underpriced(fee, &market));
                if next == Some(nonce) && offers_enough {
                    transaction.record_drop(now);
                }
                (SendMeaning::AlreadyKnown, String::new())
            }
            Err(ChainError::Node { message, .. }) => (errors.meaning_of(&message), message),
            Err(error) => return Some(Heard::Failure(error)),
        };
        transaction.record_answer(meaning, &text, now);
        Some(Heard::Meaning(meaning, text))
    }

    pub(super) fn record_head(&mut self, head: BlockNumber, count: Nonce) {
        self.by_nonce.values_mut().for_each(|transaction| transaction.record_head(head, count));
    }

    /// Records where ours are included, and widens the window by as many as were in no block before. Returns whether the
    /// window is fully open again.
    pub(super) fn include(&mut self, included: Vec<Inclusion>) -> bool {
        let mut count = 0;
        for inclusion in included {
            let nonce = self.by_hash.get(&inclusion.tx_hash);
            if let Some(transaction) = nonce.and_then(|nonce| self.by_nonce.get_mut(nonce)) {
                count += usize::from(transaction.include(inclusion));
            }
        }
        self.window.included(count)
    }

    /// Forgets inclusions that do not hold, for example because their blocks left the chain.
    pub(super) fn orphan(&mut self, is_gone: impl Fn(&Inclusion) -> bool) {
        for transaction in self.by_nonce.values_mut() {
            if transaction.included.as_ref().is_some_and(&is_gone) {
                transaction.orphan();
            }
        }
    }

    /// Returns what is included at or below this height, block by block, lowest nonce first.
    pub(super) fn included_up_to(&self, height: BlockNumber) -> Vec<(BlockNumber, BlockHash, Vec<TxHash>)> {
        let mut blocks: Vec<(BlockNumber, BlockHash, Vec<TxHash>)> = Vec::new();
        let included = self.by_nonce.values().filter_map(|transaction| transaction.included);
        for Inclusion { tx_hash, block_number, block_hash } in included.filter(|found| found.block_number <= height) {
            match blocks.last_mut().filter(|(_, hash, _)| *hash == block_hash) {
                Some((_, _, hashes)) => hashes.push(tx_hash),
                None => blocks.push((block_number, block_hash, vec![tx_hash])),
            }
        }
        blocks
    }

    /// Returns the transaction that has this hash, if it counts as included in just this block.
    pub(super) fn included_as(&self, inclusion: Inclusion) -> Option<&InFlight> {
        let transaction = self.by_nonce.get(self.by_hash.get(&inclusion.tx_hash)?)?;
        (transaction.included == Some(inclusion)).then_some(transaction)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Timestamp, Wei};
    use crate::stages::lane::fixtures::{hash, live, signed};
    use crate::stages::lane::in_flight::PoolStatus;

    fn flight(nonces: u8) -> Flight {
        let mut flight = Flight::new(4, Broadcaster::unconnected());
        for nonce in 0..nonces {
            flight.insert(InFlight::recovered(live(nonce, 0), Timestamp(0), Duration::ZERO));
        }
        flight
    }

    fn inclusion(nonce: u8, place: u8, block: u8) -> Inclusion {
        let tx_hash = hash(nonce, place);
        Inclusion { tx_hash, block_number: BlockNumber(block.into()), block_hash: BlockHash([block; 32]) }
    }

    fn answer(flight: &mut Flight, nonce: u8, place: u8, result: Result<(), ChainError>) -> Option<Heard> {
        let answer = Answer { nonce: Nonce(nonce.into()), hash: hash(nonce, place), result };
        let market = Market { base_fee: None, tip: Wei(0), gas_price: Wei(1) };
        flight.record_answer(answer, None, Some(market), &ErrorTable::default())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_about_a_replaced_transaction_says_nothing() {
        let mut flight = flight(1);
        flight.replace(Nonce(0), signed(0, 1), Gas(21_000));
        assert!(answer(&mut flight, 0, 0, Ok(())).is_none());
        assert!(answer(&mut flight, 9, 0, Ok(())).is_none(), "nothing has this nonce");
        assert!(matches!(answer(&mut flight, 0, 1, Ok(())), Some(Heard::Meaning(SendMeaning::AlreadyKnown, _))));
        assert_eq!(flight.get(Nonce(0)).unwrap().pool, PoolStatus::Pooled);
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_counts_what_is_in_no_block_and_shrinks_once_for_each_head() {
        let mut flight = flight(3);
        assert_eq!(flight.room(), 1);
        assert!(flight.shrink_window(BlockNumber(1)), "it was fully open");
        assert!(!flight.shrink_window(BlockNumber(1)));
        assert_eq!((flight.window().size(), flight.room()), (1, 0));
        assert!(!flight.include(vec![inclusion(0, 0, 2)]));
        assert_eq!((flight.window().size(), flight.room()), (2, 0));
        assert!(flight.include(vec![inclusion(1, 0, 2), inclusion(2, 0, 2)]), "fully open again");
        assert_eq!(flight.room(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn inclusions_are_listed_by_block_and_go_with_it() {
        let mut flight = flight(3);
        flight.include(vec![inclusion(0, 0, 5), inclusion(1, 0, 5), inclusion(2, 0, 6)]);
        let up_to = |flight: &Flight, height| flight.included_up_to(BlockNumber(height));
        assert_eq!(up_to(&flight, 5), [(BlockNumber(5), BlockHash([5; 32]), vec![hash(0, 0), hash(1, 0)])]);
        flight.orphan(|found| found.block_hash == BlockHash([5; 32]));
        assert_eq!(up_to(&flight, 6), [(BlockNumber(6), BlockHash([6; 32]), vec![hash(2, 0)])]);
        assert!(flight.included_as(inclusion(2, 0, 6)).is_some());
        assert!(flight.included_as(inclusion(0, 0, 5)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn all_hashes_of_a_nonce_are_known_until_it_ends() {
        let mut flight = flight(2);
        flight.replace(Nonce(0), signed(0, 1), Gas(21_000));
        assert_eq!(flight.hashes_not_included(Nonce(1)), [(Nonce(0), vec![hash(0, 0), hash(0, 1)])]);
        assert_eq!(flight.lowest_missing(Nonce(0), Nonce(3)), Some(Nonce(2)));
        flight.remove(Nonce(0)).unwrap();
        assert_eq!(flight.hashes().collect::<Vec<_>>(), [hash(1, 0)]);
        assert_eq!(flight.lowest_missing(Nonce(0), Nonce(3)), Some(Nonce(0)));
    }
}
