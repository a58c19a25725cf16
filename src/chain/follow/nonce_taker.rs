//! Who took a nonce: finds the very transaction of the account that has it in the chain. What is merely missing at some
//! node proves nothing, since behind one address may stand nodes that know less than others.

use std::collections::{BTreeMap, BTreeSet};

use crate::chain::{Chain, Inclusion, Result, count_at, known};
use crate::model::{Address, BlockNumber, Nonce};

/// Blocks read one by one for one nonce in one go, where nodes have no state for old blocks. The next go carries on below.
const MAX_READ: u64 = 64;

/// A search for the takers of an account's nonces, over as many looks as it takes.
#[derive(Debug, Default)]
pub struct NonceTakers {
    /// Found in a block that was read; good for one look, since the next may see another chain.
    found: BTreeMap<Nonce, Inclusion>,
    /// Where reading block by block goes on: every block from here up is known not to hold the nonce, or to be past it.
    reading: BTreeMap<Nonce, BlockNumber>,
    warned: BTreeSet<Nonce>,
}

impl NonceTakers {
    /// The transaction with this nonce, in a block at or below `height`, at which the account's count must be past the
    /// nonce. `None` where no node has shown it: nothing is decided then, and a later look goes on.
    ///
    /// # Errors
    /// When a node is out of reach.
    pub async fn taker(
        &mut self,
        chain: &dyn Chain,
        account: Address,
        nonce: Nonce,
        height: BlockNumber,
    ) -> Result<Option<Inclusion>> {
        if let Some(taker) = self.found.get(&nonce).filter(|taker| taker.block_number <= height) {
            return Ok(Some(*taker));
        }
        let block = match self.reading.get(&nonce) {
            None => match lowest_past(chain, account, nonce, height).await? {
                Lowest::Known(block) => {
                    self.read(chain, account, block).await?;
                    return Ok(self.found.get(&nonce).copied());
                }
                Lowest::AtMost(block) => block,
            },
            Some(block) => *block,
        };
        self.read_down(chain, account, nonce, block).await
    }

    /// Says once for each nonce that there is no evidence yet.
    pub fn is_first_failure(&mut self, nonce: Nonce) -> bool {
        self.warned.insert(nonce)
    }

    /// Another look begins: what blocks held was true for the chain of the last one.
    pub fn begin(&mut self) {
        self.found.clear();
    }

    /// The nonce has ended.
    pub fn forget(&mut self, nonce: Nonce) {
        self.reading.remove(&nonce);
        self.warned.remove(&nonce);
    }

    /// All is void: another chain may be there, or another owner was.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    async fn read_down(
        &mut self,
        chain: &dyn Chain,
        account: Address,
        nonce: Nonce,
        from: BlockNumber,
    ) -> Result<Option<Inclusion>> {
        let lowest = from.0.saturating_sub(MAX_READ - 1);
        for number in (lowest..=from.0).rev().map(BlockNumber) {
            let Some(sent) = self.read(chain, account, number).await? else {
                self.reading.insert(nonce, number);
                return Ok(None);
            };
            if let Some(taker) = self.found.get(&nonce) {
                return Ok(Some(*taker));
            }
            if sent.is_some_and(|highest| highest < nonce) {
                // Nonces only grow with the height: further down it cannot be. Some block was another chain's; start over.
                self.reading.remove(&nonce);
                return Ok(None);
            }
        }
        match lowest.checked_sub(1) {
            Some(next) => self.reading.insert(nonce, BlockNumber(next)),
            None => self.reading.remove(&nonce),
        };
        Ok(None)
    }

    /// Notes what the account sent in this block; returns the highest nonce in it. The outer `None` is a block that cannot
    /// be read.
    async fn read(
        &mut self,
        chain: &dyn Chain,
        account: Address,
        number: BlockNumber,
    ) -> Result<Option<Option<Nonce>>> {
        let Some(block) = known(chain.sent_in(account, number).await)?.flatten() else { return Ok(None) };
        for sent in &block.sent {
            let taker = Inclusion { tx_hash: sent.tx_hash, block_number: block.number, block_hash: block.hash };
            self.found.insert(sent.nonce, taker);
        }
        Ok(Some(block.sent.iter().map(|sent| sent.nonce).max()))
    }
}

enum Lowest {
    /// In this block the count went past the nonce.
    Known(BlockNumber),
    /// In this block or in one below it, for which no node has the state.
    AtMost(BlockNumber),
}

/// The block in which the account's count went past the nonce: from `height` down in growing steps, since it is rarely
/// far and nodes keep the state of their newest blocks longest, then by halves.
async fn lowest_past(chain: &dyn Chain, account: Address, nonce: Nonce, height: BlockNumber) -> Result<Lowest> {
    let (mut past, mut step) = (height.0, 1_u64);
    let mut not_past = loop {
        let Some(below) = past.checked_sub(1) else { return Ok(Lowest::Known(BlockNumber(0))) };
        let look = below.saturating_sub(step - 1);
        match count_at(chain, account, look).await? {
            None => return Ok(Lowest::AtMost(BlockNumber(past))),
            Some(count) if count > nonce => past = look,
            Some(_) => break look,
        }
        step = step.saturating_mul(2);
    };
    while past - not_past > 1 {
        let middle = not_past + (past - not_past) / 2;
        match count_at(chain, account, middle).await? {
            None => return Ok(Lowest::AtMost(BlockNumber(past))),
            Some(count) if count > nonce => past = middle,
            Some(_) => not_past = middle,
        }
    }
    Ok(Lowest::Known(BlockNumber(past)))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::chain::{BlockTag, Call, ChainError, Header, Log, LogQuery, Receipt, Sent, SentInBlock};
    use crate::model::{BlockHash, Gas, RawTransaction, TxHash, Wei};
    use crate::observe::traces::Traced;
    use crate::policy::fee::Market;

    const ACCOUNT: Address = Address([7; 20]);

    /// A chain in which the account sent one transaction in each of these blocks, by nonce.
    #[derive(Default)]
    struct Fake {
        /// The block of nonce 0, of nonce 1, and so on.
        blocks: Vec<u64>,
        /// No state below this block.
        state_from: u64,
        /// No blocks below this one.
        blocks_from: u64,
        /// Blocks that the node behind the balancer does not have.
        lags: bool,
        asked: Mutex<usize>,
    }

    fn hash_of(nonce: u64) -> TxHash {
        TxHash([u8::try_from(nonce).unwrap() + 1; 32])
    }

    impl Fake {
        fn refuses<T>(&self, message: &str) -> Result<T> {
            let (endpoint, message) = ("fake".to_owned(), message.to_owned());
            Err(ChainError::Node { endpoint, code: -32000, message, data: None })
        }
    }

    #[async_trait]
    impl Chain for Fake {
        async fn transaction_count(&self, _: Address, block: BlockTag) -> Result<Nonce> {
            *self.asked.lock().unwrap() += 1;
            let BlockTag::Number(BlockNumber(number)) = block else { unreachable!("only heights are asked for") };
            if number < self.state_from {
                return self.refuses("missing trie node");
            }
            Ok(Nonce(self.blocks.iter().filter(|sent| **sent <= number).count() as u64))
        }

        async fn sent_in(&self, _: Address, number: BlockNumber) -> Result<Option<SentInBlock>> {
            *self.asked.lock().unwrap() += 1;
            if self.lags {
                return Ok(None);
            }
            if number.0 < self.blocks_from {
                return self.refuses("pruned history unavailable");
            }
            let sent = self.blocks.iter().zip(0..).filter(|(block, _)| **block == number.0);
            let sent = sent
                .map(|(_, nonce)| Sent { nonce: Nonce(nonce), tx_hash: hash_of(nonce), to: None, data: Bytes::new() })
                .collect();
            Ok(Some(SentInBlock { number, hash: BlockHash([1; 32]), sent }))
        }

        async fn header(&self, _: BlockTag) -> Result<Option<Header>> {
            unreachable!()
        }
        async fn receipts_in(&self, _: BlockHash, _: &[TxHash]) -> Result<Vec<Receipt>> {
            unreachable!()
        }
        async fn receipts(&self, _: &[TxHash]) -> Result<Vec<Option<Receipt>>> {
            unreachable!()
        }
        async fn market(&self, _: &Header) -> Result<Market> {
            unreachable!()
        }
        async fn estimate(&self, _: &[Traced<Call>]) -> Result<Vec<Result<Gas>>> {
            unreachable!()
        }
        async fn call(&self, _: &Call, _: BlockNumber) -> Result<Bytes> {
            unreachable!()
        }
        async fn logs(&self, _: &LogQuery) -> Result<Vec<Log>> {
            unreachable!()
        }
        async fn broadcast(&self, _: &[Traced<RawTransaction>]) -> Vec<Result<()>> {
            unreachable!()
        }
        async fn balance(&self, _: Address) -> Result<Wei> {
            unreachable!()
        }
    }

    async fn taker(evidence: &mut NonceTakers, chain: &Fake, nonce: u64, height: u64) -> Option<Inclusion> {
        evidence.begin();
        evidence.taker(chain, ACCOUNT, Nonce(nonce), BlockNumber(height)).await.unwrap()
    }

    /// C15: wherever the transaction is, it is found, and with few calls.
    #[tokio::test]
    async fn the_transaction_that_took_a_nonce_is_found_at_any_depth() {
        for depth in [0, 1, 2, 3, 17, 1_000, 123_456, 999_999] {
            let block = 1_000_000 - depth;
            let chain = Fake { blocks: vec![1, block, 1_000_000], ..Fake::default() };
            let found = taker(&mut NonceTakers::default(), &chain, 1, 1_000_000).await;
            let expected =
                Inclusion { tx_hash: hash_of(1), block_number: BlockNumber(block), block_hash: BlockHash([1; 32]) };
            assert_eq!(found, Some(expected), "{depth} blocks deep");
            let asked = *chain.asked.lock().unwrap();
            assert!(asked < 50, "{asked} calls");
        }
    }

    #[tokio::test]
    async fn a_nonce_taken_in_the_first_block_is_found() {
        let chain = Fake { blocks: vec![0], ..Fake::default() };
        assert_eq!(taker(&mut NonceTakers::default(), &chain, 0, 100).await.unwrap().block_number, BlockNumber(0));
    }

    /// C15 on nodes that keep little state: the blocks themselves are read, some in each look.
    #[tokio::test]
    async fn without_old_state_blocks_are_read_downwards_over_several_looks() {
        let chain = Fake { blocks: vec![100, 500, 990], state_from: 950, ..Fake::default() };
        let mut evidence = NonceTakers::default();
        let mut looks = 1;
        let found = loop {
            match taker(&mut evidence, &chain, 1, 1_000).await {
                Some(found) => break found,
                None => looks += 1,
            }
            assert!(looks < 20, "it gets further with each look");
        };
        assert_eq!((found.tx_hash, found.block_number), (hash_of(1), BlockNumber(500)));
        assert!(looks > 2, "no look reads more than its share");
    }

    /// C18: a count without the block to it is no evidence.
    #[tokio::test]
    async fn a_node_that_lags_behind_the_count_proves_nothing_until_it_has_the_block() {
        let mut chain = Fake { blocks: vec![10, 20], lags: true, ..Fake::default() };
        let mut evidence = NonceTakers::default();
        for _ in 0..3 {
            assert_eq!(taker(&mut evidence, &chain, 1, 30).await, None);
        }
        assert!(evidence.is_first_failure(Nonce(1)));
        assert!(!evidence.is_first_failure(Nonce(1)), "it is told once");
        chain.lags = false;
        assert_eq!(taker(&mut evidence, &chain, 1, 30).await.unwrap().tx_hash, hash_of(1));
    }

    #[tokio::test]
    async fn blocks_that_no_node_keeps_are_asked_for_once_in_each_look() {
        let chain = Fake { blocks: vec![10, 2_000], state_from: 1_990, blocks_from: 1_980, ..Fake::default() };
        let mut evidence = NonceTakers::default();
        for _ in 0..5 {
            assert_eq!(taker(&mut evidence, &chain, 0, 2_010).await, None);
        }
        let before = *chain.asked.lock().unwrap();
        assert_eq!(taker(&mut evidence, &chain, 0, 2_010).await, None);
        assert_eq!(*chain.asked.lock().unwrap(), before + 1);
    }
}
