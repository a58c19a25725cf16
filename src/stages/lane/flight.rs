//! The live transactions of an account, by nonce and by hash; how many may wait for a block; and the broadcaster.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::chain::follow::broadcaster::{Answer, Answered, Broadcaster, RoundSize};
use crate::chain::{ChainError, Inclusion};
use crate::journal::RequestSeq;
use crate::model::{BlockHash, BlockNumber, Gas, Nonce, Purpose, SignedTransaction, TxHash};
use crate::observe::traces::{SpanContext, Traced};
use crate::policy::classify::{ErrorTable, SendMeaning};
use crate::policy::fee::{Market, is_underpriced};
use crate::policy::send_order::SendOrder;
use crate::policy::send_window::SendWindow;
use crate::stages::lane::in_flight::InFlight;

/// Bytes of signed transactions that are not final, beyond which nothing new is signed.
const MOST_BYTES: usize = 32 << 20;

/// An answer that is about the newest signed transaction of a live nonce.
#[derive(Debug)]
pub(super) enum Heard {
    Meaning(SendMeaning, String),
    Failure(ChainError),
}

/// Holds what is signed and has not ended.
pub(super) struct Flight {
    by_nonce: BTreeMap<Nonce, InFlight>,
    by_hash: BTreeMap<TxHash, Nonce>,
    /// The number that is in no block, and a nonce below which all are in one.
    open: usize,
    open_from: Nonce,
    /// Of all signed transactions.
    bytes: usize,
    window: SendWindow,
    order: SendOrder,
    broadcaster: Broadcaster,
}

impl Flight {
    pub(super) fn new(most: usize, broadcaster: Broadcaster) -> Self {
        Self {
            by_nonce: BTreeMap::new(),
            by_hash: BTreeMap::new(),
            open: 0,
            open_from: Nonce(0),
            bytes: 0,
            window: SendWindow::new(most),
            order: SendOrder::default(),
            broadcaster,
        }
    }

    pub(super) fn insert(&mut self, transaction: InFlight) {
        self.by_hash.extend(transaction.hashes().map(|hash| (hash, transaction.nonce)));
        self.bytes += bytes_of(&transaction);
        if transaction.included.is_none() {
            self.open += 1;
            self.open_from = self.open_from.min(transaction.nonce);
        }
        self.by_nonce.insert(transaction.nonce, transaction);
    }

    /// Adds a replacement at a live nonce.
    pub(super) fn replace(&mut self, nonce: Nonce, signed: SignedTransaction, gas: Gas) {
        if let Some(transaction) = self.by_nonce.get_mut(&nonce) {
            transaction.cancel_gas = (signed.purpose == Purpose::Cancel).then_some(gas);
            self.bytes += signed.raw.bytes.len();
            self.by_hash.insert(signed.raw.hash, nonce);
            transaction.replace(signed);
        }
    }

    pub(super) fn remove(&mut self, nonce: Nonce) -> Option<InFlight> {
        let transaction = self.by_nonce.remove(&nonce)?;
        for hash in transaction.hashes() {
            self.by_hash.remove(&hash);
        }
        self.bytes = self.bytes.saturating_sub(bytes_of(&transaction));
        self.open -= usize::from(transaction.included.is_none());
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

    /// Returns what is in no block, lowest nonce first.
    pub(super) fn not_included(&self) -> impl Iterator<Item = &InFlight> {
        let from = self.by_nonce.range(self.open_from..);
        from.map(|(_, transaction)| transaction).filter(|transaction| transaction.included.is_none())
    }

    fn not_included_mut(&mut self) -> impl Iterator<Item = &mut InFlight> {
        let from = self.by_nonce.range_mut(self.open_from..);
        from.map(|(_, transaction)| transaction).filter(|transaction| transaction.included.is_none())
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
        if self.bytes >= MOST_BYTES { 0 } else { self.window.size().saturating_sub(self.open) }
    }

    pub(super) fn window(&self) -> &SendWindow {
        &self.window
    }

    pub(super) fn order_mut(&mut self) -> &mut SendOrder {
        &mut self.order
    }

    /// Narrows the window to what pools keep, once for each head. Returns whether they had room for all until now.
    pub(super) fn narrow(&mut self, kept: usize, head: BlockNumber) -> bool {
        self.window.had_no_room(kept, head)
    }

    /// Returns how many a node has, from the lowest in no block up to the first that none has.
    pub(super) fn pooled(&self) -> usize {
        self.not_included().take_while(|transaction| transaction.is_pooled()).count()
    }

    /// Returns the first nonce that comes before its turn: it is behind one that nodes have answered for and none has.
    pub(super) fn first_early(&self) -> Option<Nonce> {
        self.not_included().find(|transaction| transaction.blocks_others()).map(|blocking| blocking.nonce.plus(1))
    }

    /// Returns what can be sent now for the first time or again, lowest nonce first: it is in the window and not before its
    /// turn.
    pub(super) fn to_send(&self) -> Vec<Nonce> {
        let in_turn = self.not_included().take(self.window.size()).scan(false, |is_early, transaction| {
            let nonce = (!*is_early).then_some(transaction);
            *is_early |= transaction.blocks_others();
            nonce
        });
        in_turn.filter(|transaction| transaction.is_to_be_sent()).map(|transaction| transaction.nonce).collect()
    }

    /// Gives the newest signed transaction of a live nonce to the broadcaster.
    pub(super) fn send(&mut self, nonce: Nonce, span: Option<SpanContext>) {
        let size = if self.order.is_single(Instant::now()) { RoundSize::Single } else { RoundSize::Full };
        self.broadcaster.set_size(size);
        if let Some(transaction) = self.by_nonce.get_mut(&nonce) {
            transaction.begin_sending();
            self.broadcaster.send(nonce, Traced { item: transaction.newest().raw.clone(), span });
        }
    }

    /// Ends a round: what came before its turn was perhaps not kept, and what waits to be sent is called back if it would come
    /// before its turn.
    pub(super) fn end_round(&mut self, taken: &[Nonce]) {
        if let Some(early) = self.first_early() {
            for nonce in taken.iter().filter(|nonce| **nonce >= early) {
                if let Some(transaction) = self.by_nonce.get_mut(nonce) {
                    transaction.came_early();
                }
            }
            let by_nonce = &self.by_nonce;
            let back = self.broadcaster.call_back(|nonce| nonce >= early && by_nonce.contains_key(&nonce));
            for nonce in back {
                if let Some(transaction) = self.by_nonce.get_mut(&nonce) {
                    transaction.call_back();
                }
            }
        }
        self.broadcaster.go_on();
    }

    /// Lets out at once what was held back for another reason than lack of room.
    pub(super) fn release_held_back(&mut self) {
        self.not_included_mut().filter(|own| own.is_held_back()).for_each(InFlight::send_again);
    }

    /// No pool has these nonces any more, nor those behind them.
    pub(super) fn record_missing_from(&mut self, nonce: Nonce) {
        self.not_included_mut().filter(|own| own.nonce >= nonce).for_each(InFlight::record_missing);
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
        if meaning == SendMeaning::AlreadyKnown && !transaction.was_taken() {
            self.window.taken(1);
        }
        transaction.record_answer(meaning, &text, now);
        Some(Heard::Meaning(meaning, text))
    }

    /// Sends again what was signed before for this purpose.
    pub(super) fn switch(&mut self, nonce: Nonce, purpose: Purpose) {
        if let Some(transaction) = self.by_nonce.get_mut(&nonce) {
            transaction.switch_to(purpose);
        }
    }

    /// Records that nodes failed at the newest of this nonce as in an outage, and whether they answer other calls.
    pub(super) fn record_failure(&mut self, nonce: Nonce, text: &str, others_answered: bool) {
        if let Some(transaction) = self.by_nonce.get_mut(&nonce) {
            transaction.record_failure(text, others_answered, Instant::now());
        }
    }

    pub(super) fn record_head(&mut self, head: BlockNumber, count: Nonce) {
        self.by_nonce.values_mut().for_each(|transaction| transaction.record_head(head, count));
    }

    /// Records where ours are included, and widens the window by what blocks hold.
    pub(super) fn include(&mut self, included: Vec<Inclusion>) {
        let mut blocks: BTreeMap<BlockNumber, usize> = BTreeMap::new();
        for inclusion in included {
            let nonce = self.by_hash.get(&inclusion.tx_hash);
            if let Some(transaction) = nonce.and_then(|nonce| self.by_nonce.get_mut(nonce))
                && transaction.include(inclusion)
            {
                *blocks.entry(inclusion.block_number).or_default() += 1;
            }
        }
        for count in blocks.into_values() {
            self.open = self.open.saturating_sub(count);
            self.window.included(count, self.open);
        }
        let first_open = self.not_included().next().map(|transaction| transaction.nonce);
        self.open_from = first_open.unwrap_or(Nonce(u64::MAX));
    }

    /// Applies a new block to the window. Returns whether pools have room for all again.
    pub(super) fn widen(&mut self) -> bool {
        self.window.next_block()
    }

    /// Forgets inclusions that do not hold, for example because their blocks left the chain.
    pub(super) fn orphan(&mut self, is_gone: impl Fn(&Inclusion) -> bool) {
        for transaction in self.by_nonce.values_mut() {
            if transaction.included.as_ref().is_some_and(&is_gone) {
                transaction.orphan();
                self.open += 1;
                self.open_from = self.open_from.min(transaction.nonce);
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

fn bytes_of(transaction: &InFlight) -> usize {
    transaction.signed.iter().map(|signed| signed.raw.bytes.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Timestamp, Wei};
    use crate::stages::lane::fixtures::{hash, live, signed};
    use crate::stages::lane::pool_status::PoolStatus;

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
        assert_eq!((flight.window().size(), flight.room()), (4, 1));
        assert!(flight.narrow(2, BlockNumber(1)), "there was room until now");
        assert!(!flight.narrow(1, BlockNumber(1)));
        assert_eq!((flight.window().size(), flight.room()), (2, 0));
        flight.include(vec![inclusion(0, 0, 2), inclusion(1, 0, 2)]);
        assert_eq!((flight.not_included().count(), flight.room()), (1, 1));
        flight.orphan(|found| found.tx_hash == hash(0, 0));
        assert_eq!((flight.not_included().count(), flight.room()), (2, 0));
        flight.remove(Nonce(0)).unwrap();
        assert_eq!((flight.not_included().count(), flight.room()), (1, 1));
        flight.insert(InFlight::recovered(live(9, 0), Timestamp(0), Duration::ZERO));
        flight.include(vec![inclusion(2, 0, 3), inclusion(9, 0, 3)]);
        assert_eq!((flight.not_included().count(), flight.room()), (0, 2));
        flight.insert(InFlight::recovered(live(10, 0), Timestamp(0), Duration::ZERO));
        assert_eq!(flight.not_included().map(|own| own.nonce).collect::<Vec<_>>(), [Nonce(10)]);
    }

    /// Invariant 12
    #[tokio::test(start_paused = true)]
    async fn nothing_more_is_signed_while_what_is_signed_takes_much_memory() {
        let mut flight = flight(0);
        let mut large = live(0, 0);
        large.signed[0].raw.bytes = bytes::Bytes::from(vec![1; MOST_BYTES]);
        flight.insert(InFlight::recovered(large, Timestamp(0), Duration::ZERO));
        assert_eq!(flight.room(), 0);
        flight.remove(Nonce(0)).unwrap();
        assert_eq!(flight.room(), 4);
    }

    /// Invariant 17
    #[tokio::test(start_paused = true)]
    async fn what_is_behind_a_transaction_that_no_node_took_waits_for_it() {
        let nonces = |numbers: &[u64]| numbers.iter().map(|nonce| Nonce(*nonce)).collect::<Vec<_>>();
        let refused = |text: &str| {
            Err(ChainError::Node { endpoint: String::new(), code: -32000, message: text.to_owned(), data: None })
        };
        let mut flight = flight(5);
        assert_eq!(flight.to_send(), nonces(&[0, 1, 2, 3]), "as many as the window holds");
        (0..4).for_each(|nonce| flight.send(Nonce(nonce), None));
        answer(&mut flight, 0, 0, Ok(()));
        answer(&mut flight, 1, 0, refused("txpool is full"));
        answer(&mut flight, 2, 0, Ok(()));
        flight.end_round(&nonces(&[0, 2]));
        assert_eq!((flight.first_early(), flight.pooled()), (Some(Nonce(2)), 1));
        assert!(!flight.get(Nonce(2)).unwrap().is_pooled(), "the node may have dropped it");
        assert!(!flight.get(Nonce(3)).unwrap().is_being_sent(), "it was called back");
        assert_eq!(flight.to_send(), nonces(&[]));
        flight.send(Nonce(1), None);
        answer(&mut flight, 1, 0, Ok(()));
        flight.end_round(&nonces(&[1]));
        assert_eq!((flight.first_early(), flight.to_send()), (None, nonces(&[2, 3])));
    }

    #[tokio::test(start_paused = true)]
    async fn what_pools_lost_goes_again_at_once_in_order() {
        let mut flight = flight(3);
        for nonce in 0..3 {
            flight.send(Nonce(nonce.into()), None);
            answer(&mut flight, nonce, 0, Ok(()));
        }
        assert_eq!(flight.to_send(), []);
        flight.record_missing_from(Nonce(1));
        assert_eq!((flight.to_send(), flight.pooled()), (vec![Nonce(1), Nonce(2)], 1));
        assert!(flight.get(Nonce(1)).unwrap().is_held_back());
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
