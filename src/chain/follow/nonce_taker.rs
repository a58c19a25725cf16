//! Who took a nonce: finds the very transaction of the account that has it in the chain. What is merely missing at some
//! node proves nothing, since behind one address may stand nodes that know less than others.

use std::collections::{BTreeMap, BTreeSet};

use crate::chain::{Chain, ChainError, Inclusion, Result, Sent, count_at, known};
use crate::model::{Address, BlockNumber, Nonce};

/// Blocks read one by one for one nonce in one poll, where nodes have no state for old blocks. The next poll goes on below.
const MAX_READ: u64 = 64;

/// Nonces whose blocks are remembered at most.
const MOST_SEEN: usize = 65_536;
/// After so many failures in a row, old state or old blocks count as what no node has: a provider may refuse them for good in
/// the words of an outage. In an outage of all calls nothing is searched for.
const FAILURES: u32 = 5;

/// The search for the takers of an account's nonces, over as many polls as it takes.
#[derive(Debug, Default)]
pub struct NonceTakers {
    /// The block at which reading goes on: every block from here up does not hold the nonce, or is past it.
    reading: BTreeMap<Nonce, BlockNumber>,
    /// In which block a nonce was seen. It only says what to read first: the block may have gone since.
    seen: BTreeMap<Nonce, BlockNumber>,
    state: Failures,
    blocks: Failures,
    warned: BTreeSet<Nonce>,
}

/// Failures in a row of one kind of call.
#[derive(Debug, Default)]
struct Failures(u32);

impl Failures {
    /// Turns a failure that lasts into `None`.
    fn record<T>(&mut self, answer: Result<T>) -> Result<Option<T>> {
        match answer {
            Err(error @ (ChainError::Unreachable { .. } | ChainError::Denied { .. })) => {
                self.0 = self.0.saturating_add(1);
                if self.0 < FAILURES { Err(error) } else { Ok(None) }
            }
            answer => {
                self.0 = 0;
                answer.map(Some)
            }
        }
    }
}

/// Names what took a nonce of the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taker {
    pub inclusion: Inclusion,
    /// The account's own transaction; none where an authorisation took the nonce, in a transaction of whichever sender.
    pub sent: Option<Sent>,
}

/// One poll of the chain. Holds what its blocks showed, which the next poll must not rely on: it may see another chain.
pub struct TakerPoll<'t> {
    takers: &'t mut NonceTakers,
    found: BTreeMap<Nonce, Taker>,
}

impl NonceTakers {
    pub fn poll(&mut self) -> TakerPoll<'_> {
        TakerPoll { takers: self, found: BTreeMap::new() }
    }

    /// Remembers where a nonce was seen: those above the one that is searched for need no search of their own then.
    fn see(&mut self, nonce: Nonce, block: BlockNumber) {
        if self.seen.len() < MOST_SEEN || self.seen.contains_key(&nonce) {
            self.seen.insert(nonce, block);
        }
    }

    /// Drops what is known of a nonce that has ended.
    pub fn forget(&mut self, nonce: Nonce) {
        self.reading.remove(&nonce);
        self.seen.remove(&nonce);
        self.warned.remove(&nonce);
    }
}

impl TakerPoll<'_> {
    /// Returns the transaction with this nonce in a block at or below `height`, at which the account's count must be past the
    /// nonce. `None` where no node has shown it, signed by the account: nothing is decided then, and a later poll goes on.
    pub async fn taker(
        &mut self,
        chain: &dyn Chain,
        account: Address,
        nonce: Nonce,
        height: BlockNumber,
    ) -> Result<Option<Taker>> {
        if let Some(taker) = self.found.get(&nonce).filter(|taker| taker.inclusion.block_number <= height) {
            return Ok(Some(taker.clone()));
        }
        if let Some(block) = self.takers.seen.get(&nonce).copied().filter(|block| *block <= height) {
            self.read(chain, account, block).await?;
            if let Some(taker) = self.found.get(&nonce) {
                return Ok(Some(taker.clone()));
            }
            self.takers.seen.remove(&nonce);
        }
        let block = match self.takers.reading.get(&nonce) {
            None => match self.search(chain, account, nonce, height).await? {
                Lowest::Known(block) => {
                    self.read(chain, account, block).await?;
                    return Ok(self.found.get(&nonce).cloned());
                }
                Lowest::AtMost(block) => block,
            },
            Some(block) => *block,
        };
        self.read_down(chain, account, nonce, block).await
    }

    /// Returns true once for each nonce: to warn that its taker is not found yet.
    pub fn is_first_failure(&mut self, nonce: Nonce) -> bool {
        self.takers.warned.insert(nonce)
    }

    /// Finds the block in which the account's count went past the nonce. It is above that of the nonce before, and rarely far.
    async fn search(
        &mut self,
        chain: &dyn Chain,
        account: Address,
        nonce: Nonce,
        height: BlockNumber,
    ) -> Result<Lowest> {
        let before = nonce.0.checked_sub(1).and_then(|before| self.found.get(&Nonce(before)));
        let lowest = match before.map(|before| before.inclusion.block_number) {
            Some(below) if below < height => lowest_past_above(chain, account, nonce, (below, height)).await,
            Some(_) | None => lowest_past(chain, account, nonce, height).await,
        };
        Ok(self.takers.state.record(lowest)?.unwrap_or(Lowest::AtMost(height)))
    }

    async fn read_down(
        &mut self,
        chain: &dyn Chain,
        account: Address,
        nonce: Nonce,
        from: BlockNumber,
    ) -> Result<Option<Taker>> {
        let lowest = from.0.saturating_sub(MAX_READ - 1);
        for number in (lowest..=from.0).rev().map(BlockNumber) {
            let read = self.read(chain, account, number).await;
            let Ok(BlockRead::Sent { highest }) = read else {
                // The next poll goes on here, whatever this block lacks.
                self.takers.reading.insert(nonce, number);
                return read.map(|_| None);
            };
            if let Some(taker) = self.found.get(&nonce) {
                return Ok(Some(taker.clone()));
            }
            if highest.is_some_and(|highest| highest < nonce) {
                // Nonces only grow with the height, so it cannot be further down. Some block was another chain's: start over.
                self.takers.reading.remove(&nonce);
                return Ok(None);
            }
        }
        match lowest.checked_sub(1) {
            Some(next) => self.takers.reading.insert(nonce, BlockNumber(next)),
            None => self.takers.reading.remove(&nonce),
        };
        Ok(None)
    }

    /// Remembers for this poll what the account sent in this block.
    async fn read(&mut self, chain: &dyn Chain, account: Address, number: BlockNumber) -> Result<BlockRead> {
        let block = self.takers.blocks.record(known(chain.sent_in(account, number).await))?;
        let Some(block) = block.flatten().flatten() else {
            return Ok(BlockRead::Unreadable);
        };
        let included = |tx_hash| Inclusion { tx_hash, block_number: block.number, block_hash: block.hash };
        for (nonce, tx_hash) in block.authorised {
            self.takers.see(nonce, number);
            self.found.insert(nonce, Taker { inclusion: included(tx_hash), sent: None });
        }
        let highest = block.sent.iter().map(|sent| sent.nonce).max();
        for sent in block.sent.into_iter().filter(|sent| sent.is_signed) {
            self.takers.see(sent.nonce, number);
            self.found.insert(sent.nonce, Taker { inclusion: included(sent.tx_hash), sent: Some(sent) });
        }
        Ok(BlockRead::Sent { highest })
    }
}

/// One block, read for what the account sent in it.
enum BlockRead {
    Sent { highest: Option<Nonce> },
    Unreadable,
}

enum Lowest {
    /// The count went past the nonce in this block.
    Known(BlockNumber),
    /// Took it in this block or below it, where no node has the state.
    AtMost(BlockNumber),
}

/// Finds the block in which the account's count went past the nonce: from `height` down in growing steps, since it is rarely
/// far and nodes keep the state of their newest blocks longest, then by halves.
async fn lowest_past(chain: &dyn Chain, account: Address, nonce: Nonce, height: BlockNumber) -> Result<Lowest> {
    let (mut past, mut step) = (height.0, 1_u64);
    let not_past = loop {
        let Some(below) = past.checked_sub(1) else { return Ok(Lowest::Known(BlockNumber(0))) };
        let probe = below.saturating_sub(step - 1);
        match count_at(chain, account, probe).await? {
            None => return Ok(Lowest::AtMost(BlockNumber(past))),
            Some(count) if count > nonce => past = probe,
            Some(_) => break probe,
        }
        step = step.saturating_mul(2);
    };
    between(chain, account, nonce, (not_past, past)).await
}

/// Finds the same above a block at which the count was not past the nonce.
async fn lowest_past_above(
    chain: &dyn Chain,
    account: Address,
    nonce: Nonce,
    (below, height): (BlockNumber, BlockNumber),
) -> Result<Lowest> {
    let (mut not_past, mut step) = (below.0, 1_u64);
    loop {
        if not_past >= height.0 {
            return Ok(Lowest::AtMost(height));
        }
        let probe = not_past.saturating_add(step).min(height.0);
        match count_at(chain, account, probe).await? {
            None => return Ok(Lowest::AtMost(height)),
            Some(count) if count > nonce => return between(chain, account, nonce, (not_past, probe)).await,
            Some(_) => not_past = probe,
        }
        step = step.saturating_mul(2);
    }
}

/// Finds it by halves between a block at which the count is not past the nonce and one at which it is.
async fn between(
    chain: &dyn Chain,
    account: Address,
    nonce: Nonce,
    (mut not_past, mut past): (u64, u64),
) -> Result<Lowest> {
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
    use super::*;
    use crate::simulation::fakes::{ACCOUNT, FakeChain, own_hash};

    async fn taker(takers: &mut NonceTakers, chain: &FakeChain, nonce: u64, height: u64) -> Option<Inclusion> {
        let found = takers.poll().taker(chain, ACCOUNT, Nonce(nonce), BlockNumber(height)).await.unwrap();
        found.map(|taker| taker.inclusion)
    }

    /// C15: wherever the transaction is, it is found, and with few calls.
    #[tokio::test]
    async fn the_transaction_that_took_a_nonce_is_found_at_any_depth() {
        for depth in [0, 1, 2, 3, 17, 1_000, 123_456, 999_999] {
            let block = 1_000_000 - depth;
            let chain = FakeChain::sent_in(&[1, block, 1_000_000]);
            let found = taker(&mut NonceTakers::default(), &chain, 1, 1_000_000).await.unwrap();
            let expected = (own_hash(1), BlockNumber(block), chain.hash_of(block));
            assert_eq!((found.tx_hash, found.block_number, found.block_hash), expected, "{depth} blocks deep");
            assert!(chain.calls() < 50, "{} calls", chain.calls());
        }
    }

    #[tokio::test]
    async fn nonces_in_a_row_are_found_upwards_with_few_calls() {
        let blocks: Vec<u64> = (0..20).map(|nonce| 900_000 + nonce * 7).collect();
        let chain = FakeChain::sent_in(&blocks);
        let mut takers = NonceTakers::default();
        let mut poll = takers.poll();
        for (nonce, block) in (0..).map(Nonce).zip(&blocks) {
            let found = poll.taker(chain.as_ref(), ACCOUNT, nonce, BlockNumber(900_200)).await.unwrap().unwrap();
            assert_eq!(found.inclusion.block_number, BlockNumber(*block));
        }
        assert!(chain.calls() < 200, "{} calls", chain.calls());
    }

    /// A node can make up a sender, and not the account's signature.
    #[tokio::test]
    async fn a_transaction_without_the_accounts_signature_took_no_nonce() {
        let chain = FakeChain::sent_in(&[10, 20]);
        chain.change(|state| state.sent[1].1.is_signed = false);
        let mut takers = NonceTakers::default();
        assert_eq!(taker(&mut takers, &chain, 1, 30).await, None);
        assert!(taker(&mut takers, &chain, 0, 30).await.is_some());
    }

    #[tokio::test]
    async fn an_authorisation_takes_the_nonce_at_which_the_count_goes_past_it() {
        let chain = FakeChain::sent_in(&[10, 20, 30]);
        chain.change(|state| state.authorisations.push(1));
        let mut takers = NonceTakers::default();
        let found = takers.poll().taker(chain.as_ref(), ACCOUNT, Nonce(1), BlockNumber(40)).await.unwrap().unwrap();
        assert_eq!((found.inclusion.block_number, found.sent), (BlockNumber(20), None));
    }

    #[tokio::test]
    async fn a_nonce_taken_in_the_first_block_is_found() {
        let chain = FakeChain::sent_in(&[0]);
        assert_eq!(taker(&mut NonceTakers::default(), &chain, 0, 100).await.unwrap().block_number, BlockNumber(0));
    }

    /// C15 on nodes that keep little state: the blocks themselves are read, some in each poll.
    #[tokio::test]
    async fn without_old_state_blocks_are_read_downwards_over_several_looks() {
        let chain = FakeChain::sent_in(&[100, 500, 990]);
        chain.change(|state| state.state_from = 950);
        let mut takers = NonceTakers::default();
        let mut polls = 1;
        let found = loop {
            match taker(&mut takers, &chain, 1, 1_000).await {
                Some(found) => break found,
                None => polls += 1,
            }
            assert!(polls < 20, "it gets further with each poll");
        };
        assert_eq!((found.tx_hash, found.block_number), (own_hash(1), BlockNumber(500)));
        assert!(polls > 2, "no poll reads more than its share");
    }

    /// C18: a count without the block to it is no evidence.
    #[tokio::test]
    async fn a_node_that_lags_behind_the_count_proves_nothing_until_it_has_the_block() {
        let chain = FakeChain::sent_in(&[10, 20]);
        chain.change(|state| state.lacks_blocks = true);
        let mut takers = NonceTakers::default();
        for _ in 0..3 {
            assert_eq!(taker(&mut takers, &chain, 1, 30).await, None);
        }
        assert!(takers.poll().is_first_failure(Nonce(1)));
        assert!(!takers.poll().is_first_failure(Nonce(1)), "it is told once");
        chain.change(|state| state.lacks_blocks = false);
        assert_eq!(taker(&mut takers, &chain, 1, 30).await.unwrap().tx_hash, own_hash(1));
    }

    #[tokio::test]
    async fn blocks_that_no_node_keeps_are_asked_for_once_in_each_look() {
        let chain = FakeChain::sent_in(&[10, 2_000]);
        chain.change(|state| (state.state_from, state.blocks_from) = (1_990, 1_980));
        let mut takers = NonceTakers::default();
        for _ in 0..5 {
            assert_eq!(taker(&mut takers, &chain, 0, 2_010).await, None);
        }
        let before = chain.calls();
        assert_eq!(taker(&mut takers, &chain, 0, 2_010).await, None);
        assert_eq!(chain.calls(), before + 1);
    }

    /// Nodes that keep little state: the way down is gone once, and not again for each nonce.
    #[tokio::test]
    async fn many_nonces_without_state_cost_one_reading_of_the_blocks() {
        let blocks: Vec<u64> = (0..100).map(|nonce| 1_000 + nonce * 5).collect();
        let chain = FakeChain::sent_in(&blocks);
        chain.change(|state| state.state_from = 1_600);
        let (mut takers, mut nonce, mut polls) = (NonceTakers::default(), 0, 0);
        while nonce < 100 {
            while nonce < 100 && taker(&mut takers, &chain, nonce, 1_600).await.is_some() {
                takers.forget(Nonce(nonce));
                nonce += 1;
            }
            polls += 1;
            assert!(polls < 20, "{nonce} after {polls} polls");
        }
        assert!(chain.calls() < 600 + 100 + 50, "{} calls", chain.calls());
    }

    /// A provider's "archive requests need another plan" reads like an outage, and never ends.
    #[tokio::test]
    async fn state_and_blocks_that_are_refused_for_good_count_as_what_no_node_has() {
        let chain = FakeChain::sent_in(&[10, 2_000]);
        chain.change(|state| (state.state_from, state.blocks_from, state.refuses_history) = (2_005, 0, true));
        let (mut takers, at) = (NonceTakers::default(), BlockNumber(2_010));
        for _ in 1..FAILURES {
            assert!(takers.poll().taker(&*chain, ACCOUNT, Nonce(1), at).await.is_err(), "it may be an outage");
        }
        assert_eq!(taker(&mut takers, &chain, 1, 2_010).await.unwrap().block_number, BlockNumber(2_000));
        chain.change(|state| state.blocks_from = 1_990);
        let mut answers = Vec::new();
        for _ in 0..FAILURES + 2 {
            answers.push(takers.poll().taker(&*chain, ACCOUNT, Nonce(0), at).await.is_ok());
        }
        assert_eq!(answers.last(), Some(&true), "it is unknown, and no outage: {answers:?}");
    }

    /// Otherwise a taker in a block that has gone would be reported for ever, and the nonce would never end.
    #[tokio::test]
    async fn what_one_poll_found_is_read_again_in_the_next() {
        let chain = FakeChain::sent_in(&[10, 20]);
        let mut takers = NonceTakers::default();
        let first = taker(&mut takers, &chain, 1, 30).await.unwrap();
        let before = chain.hash_of(20);
        chain.reorganise_from(15);
        let second = taker(&mut takers, &chain, 1, 30).await.unwrap();
        assert_eq!((first.block_hash, second.block_hash), (before, chain.hash_of(20)));
    }
}
