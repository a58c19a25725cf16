//! Follows the chain for a lane: which blocks are new, which are orphaned, which of our transactions they hold, what is final.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::chain::{BlockTag, Chain, ChainError, Header, Inclusion, Result};
use crate::model::{BlockHash, BlockNumber, TxHash};
use crate::policy::finality::{FinalityRule, highest_final};

/// Blocks read one by one after a pause or a reorganisation. Beyond that, transactions are asked for one by one instead.
const MAX_WALK: u64 = 64;
/// Headers kept: beyond the finality of any chain in use, and for hours of an outage.
const REMEMBERED: usize = 16_384;
/// A chain whose newest block is lower than before counts as a node that is behind, until nodes have shown nothing else for
/// this long.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Sighting {
    pub head: Header,
    /// Blocks that are not part of the chain any more.
    pub orphaned: Vec<BlockHash>,
    /// Set where one of them had been reported as final.
    pub lost_final: bool,
    /// Set where everything known before is void: `included` is all that is included now.
    pub anew: bool,
    /// Our transactions in new blocks, lowest block first.
    pub included: Vec<Inclusion>,
    pub final_up_to: Option<BlockNumber>,
}

pub struct Tracker {
    chain: Arc<dyn Chain>,
    rule: FinalityRule,
    /// The chain at the last step, lowest block first, without holes and without the blocks' transactions.
    recent: VecDeque<Header>,
    /// The highest block ever reported as final.
    highest_final: Option<BlockNumber>,
    /// Since when nodes show only a lower chain.
    lower_since: Option<Instant>,
}

/// Whether a block that was part of the chain still is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Canonical,
    /// Another block has its height.
    Gone,
    /// Undecided: it is above the newest block that was seen, or too far below to be linked with it in one call.
    Unknown,
}

impl Tracker {
    pub fn new(chain: Arc<dyn Chain>, rule: FinalityRule) -> Self {
        Self { chain, rule, recent: VecDeque::new(), highest_final: None, lower_since: None }
    }

    /// Reads the newest block and those below it. Returns `None` when there is no new block.
    ///
    /// # Errors
    /// When a node does not answer, or its answers do not fit together. Nothing is forgotten then.
    pub async fn step(&mut self, ours: &[TxHash]) -> Result<Option<Sighting>> {
        let head = self.chain.header(BlockTag::Latest).await?;
        let mut head = head.ok_or_else(|| inconsistent("there is no newest block"))?;
        if self.knows(&head) {
            // The newest block, or an older one from a node that is behind.
            return Ok(None);
        }
        let Some(last) = self.recent.back().map(|last| last.number) else {
            return self.start_over(head, ours).await.map(Some);
        };
        if head.number >= last {
            self.lower_since = None;
        } else if self.lower_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return Ok(None);
        }
        if head.number.0.abs_diff(last.0) > MAX_WALK {
            return self.start_over(head, ours).await.map(Some);
        }
        let Some(mut new_blocks) = self.walk_down(&head).await? else {
            return self.start_over(head, ours).await.map(Some);
        };
        let ours: BTreeSet<_> = ours.iter().copied().collect();
        let mut included = Vec::new();
        for block in &mut new_blocks {
            included.extend(self.included_in(block, &ours).await?);
        }
        let lowest_new = new_blocks.first().map_or(head.number, |block| block.number);
        let mut orphaned = Vec::new();
        let mut lost_final = false;
        while let Some(block) = self.recent.pop_back_if(|block| block.number >= lowest_new) {
            lost_final |= self.highest_final.is_some_and(|highest| block.number <= highest);
            orphaned.push(block.hash);
        }
        self.recent.extend(new_blocks);
        let surplus = self.recent.len().saturating_sub(REMEMBERED);
        self.recent.drain(..surplus);
        head.transactions = None;
        let final_up_to = self.final_up_to(&head).await?;
        self.highest_final = self.highest_final.max(final_up_to);
        Ok(Some(Sighting { head, orphaned, lost_final, anew: false, included, final_up_to }))
    }

    /// Returns whether this block is known to be part of the chain.
    pub async fn is_canonical(&mut self, number: BlockNumber, hash: BlockHash) -> Result<bool> {
        self.standing(number, hash).await.map(|standing| standing == Standing::Canonical)
    }

    /// Returns whether this block is part of the chain, following the parents from the newest block down. What a node says of
    /// a height alone proves nothing, since the node may be behind and on another fork. A block far below takes several calls.
    pub async fn standing(&mut self, number: BlockNumber, hash: BlockHash) -> Result<Standing> {
        for _ in 0..MAX_WALK {
            if let Some(block) = self.remembered(number) {
                return Ok(if block.hash == hash { Standing::Canonical } else { Standing::Gone });
            }
            let Some(lowest) = self.recent.front().filter(|lowest| lowest.number > number) else { break };
            if self.recent.len() >= REMEMBERED {
                return self.standing_by_number(number, hash).await;
            }
            let below = BlockNumber(lowest.number.0.saturating_sub(1));
            let found = self.chain.header(BlockTag::Number(below)).await?;
            let Some(found) = found.filter(|found| found.hash == lowest.parent) else { break };
            self.recent.push_front(Header { transactions: None, ..found });
        }
        Ok(Standing::Unknown)
    }

    /// Asks the node, far below the newest block, where no reorganisation reaches.
    async fn standing_by_number(&self, number: BlockNumber, hash: BlockHash) -> Result<Standing> {
        let of = |found: BlockHash| if found == hash { Standing::Canonical } else { Standing::Gone };
        let header = self.chain.header(BlockTag::Number(number)).await?;
        Ok(header.map_or(Standing::Unknown, |header| of(header.hash)))
    }

    /// Forgets everything, so that the next step starts over.
    pub fn forget(&mut self) {
        self.recent.clear();
    }

    fn remembered(&self, number: BlockNumber) -> Option<&Header> {
        let first = self.recent.front()?.number.0;
        let index = usize::try_from(number.0.checked_sub(first)?).ok()?;
        self.recent.get(index)
    }

    fn knows(&self, block: &Header) -> bool {
        self.remembered(block.number).is_some_and(|known| known.hash == block.hash)
    }

    /// Returns our transactions in a block, and drops its list of transactions.
    async fn included_in(&self, block: &mut Header, ours: &BTreeSet<TxHash>) -> Result<Vec<Inclusion>> {
        let (block_number, block_hash) = (block.number, block.hash);
        let inclusion = |tx_hash| Inclusion { tx_hash, block_number, block_hash };
        if let Some(listed) = block.transactions.take() {
            return Ok(listed.into_iter().filter(|hash| ours.contains(hash)).map(inclusion).collect());
        }
        let ours: Vec<_> = ours.iter().copied().collect();
        let included = self.included(&ours).await?;
        Ok(included.into_iter().filter(|inclusion| inclusion.block_hash == block_hash).collect())
    }

    async fn included(&self, ours: &[TxHash]) -> Result<Vec<Inclusion>> {
        let receipts = self.chain.receipts(ours).await?;
        Ok(receipts.into_iter().flatten().map(|receipt| receipt.inclusion()).collect())
    }

    async fn start_over(&mut self, mut head: Header, ours: &[TxHash]) -> Result<Sighting> {
        let included = self.included(ours).await?;
        head.transactions = None;
        self.recent.clear();
        self.recent.push_back(head.clone());
        let final_up_to = self.final_up_to(&head).await?;
        self.highest_final = self.highest_final.max(final_up_to);
        Ok(Sighting { head, orphaned: Vec::new(), lost_final: false, anew: true, included, final_up_to })
    }

    /// Returns the new blocks up to `head`, lowest first, on top of a remembered one; `None` where that lies too deep.
    async fn walk_down(&self, head: &Header) -> Result<Option<Vec<Header>>> {
        let mut blocks = VecDeque::from([head.clone()]);
        for _ in 0..MAX_WALK {
            let lowest = blocks.front().unwrap_or(head);
            let Some(below) = lowest.number.0.checked_sub(1).map(BlockNumber) else { return Ok(None) };
            if self.remembered(below).is_some_and(|known| known.hash == lowest.parent) {
                return Ok(Some(blocks.into()));
            }
            let found = self.chain.header(BlockTag::Number(below)).await?;
            // A node that is behind, or a reorganisation between two calls: the next step will fit together.
            let found = found.filter(|found| found.hash == lowest.parent);
            blocks.push_front(found.ok_or_else(|| inconsistent("a block's parent is not the block below it"))?);
        }
        Ok(None)
    }

    /// Returns the highest final block of the chain that ends in `head`. Another node than the one that gave `head` may answer
    /// for a tag: its block counts only once it is linked with `head`.
    async fn final_up_to(&mut self, head: &Header) -> Result<Option<BlockNumber>> {
        let Some(tag) = BlockTag::of(self.rule) else { return Ok(highest_final(self.rule, head.number, None)) };
        let Some(tagged) = self.chain.header(tag).await? else { return Ok(None) };
        let is_linked = self.is_canonical(tagged.number, tagged.hash).await?;
        Ok(highest_final(self.rule, head.number, is_linked.then_some(tagged.number)))
    }
}

fn inconsistent(detail: &str) -> ChainError {
    ChainError::Nonsense { endpoint: "the node".to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::fakes::{FakeChain, inclusion, own_hash};

    const DEPTH: FinalityRule = FinalityRule::Depth(2);

    /// A chain of ten blocks, and a tracker that has seen it. Nonce 0 is in block 9, nonce 1 will be in block 11.
    async fn bench(rule: FinalityRule) -> (Arc<FakeChain>, Tracker) {
        let chain = FakeChain::sent_in(&[9, 11]);
        chain.change(|state| (state.head, state.finalized) = (10, 5));
        let mut tracker = Tracker::new(chain.clone(), rule);
        let first = tracker.step(&ours()).await.unwrap().unwrap();
        assert!(first.anew && first.included == [inclusion(&chain, 0)]);
        (chain, tracker)
    }

    fn ours() -> [TxHash; 2] {
        [own_hash(0), own_hash(1)]
    }

    #[tokio::test]
    async fn new_blocks_show_our_transactions_and_what_is_final() {
        for lacks_lists in [false, true] {
            let (chain, mut tracker) = bench(DEPTH).await;
            assert!(tracker.step(&ours()).await.unwrap().is_none(), "no new block");
            chain.change(|state| (state.head, state.lacks_lists) = (12, lacks_lists));
            let seen = tracker.step(&ours()).await.unwrap().unwrap();
            assert_eq!((seen.head.number, seen.anew, seen.orphaned.len()), (BlockNumber(12), false, 0));
            assert_eq!(seen.included, [inclusion(&chain, 1)]);
            assert_eq!(seen.final_up_to, highest_final(DEPTH, BlockNumber(12), None));
        }
    }

    #[tokio::test]
    async fn a_reorganisation_orphans_blocks_and_says_whether_one_was_final() {
        for (from, orphaned, lost_final) in [(10, 1, false), (7, 4, true)] {
            let (chain, mut tracker) = bench(DEPTH).await;
            chain.change(|state| state.head = 6);
            let mut tracker_from_below = Tracker::new(chain.clone(), DEPTH);
            tracker_from_below.step(&ours()).await.unwrap();
            chain.change(|state| state.head = 10);
            tracker_from_below.step(&ours()).await.unwrap();
            std::mem::swap(&mut tracker, &mut tracker_from_below);
            chain.reorganise_from(from);
            chain.change(|state| state.head = 11);
            let seen = tracker.step(&ours()).await.unwrap().unwrap();
            assert_eq!((seen.orphaned.len(), seen.lost_final), (orphaned, lost_final), "from {from}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_chain_counts_only_when_nodes_show_nothing_else_for_a_while() {
        let (chain, mut tracker) = bench(DEPTH).await;
        chain.reorganise_from(10);
        chain.change(|state| state.head = 8);
        let (known, unknown) = (8, 7);
        for head in [known, unknown] {
            chain.change(|state| state.head = head);
            assert!(tracker.step(&ours()).await.unwrap().is_none(), "a node is behind");
        }
        tokio::time::advance(PATIENCE).await;
        assert_eq!(tracker.step(&ours()).await.unwrap().unwrap().head.number, BlockNumber(unknown));
    }

    #[tokio::test]
    async fn a_tag_counts_once_its_block_is_linked_with_the_head() {
        let (chain, mut tracker) = bench(FinalityRule::Finalized).await;
        chain.change(|state| (state.head, state.finalized) = (11, 9));
        let seen = tracker.step(&ours()).await.unwrap().unwrap();
        assert_eq!(seen.final_up_to, Some(BlockNumber(9)));
    }

    #[tokio::test]
    async fn a_block_is_judged_by_the_parents_from_the_newest_down() {
        let (chain, mut tracker) = bench(DEPTH).await;
        let (stands, above) = (chain.hash_of(3), chain.hash_of(11));
        assert_eq!(tracker.standing(BlockNumber(3), stands).await.unwrap(), Standing::Canonical);
        assert_eq!(tracker.standing(BlockNumber(3), above).await.unwrap(), Standing::Gone);
        assert_eq!(tracker.standing(BlockNumber(11), above).await.unwrap(), Standing::Unknown);
    }

    #[tokio::test]
    async fn a_node_that_is_away_changes_nothing() {
        let (chain, mut tracker) = bench(DEPTH).await;
        chain.change(|state| (state.head, state.is_away) = (11, true));
        assert!(tracker.step(&ours()).await.is_err());
        chain.change(|state| state.is_away = false);
        assert_eq!(tracker.step(&ours()).await.unwrap().unwrap().included, [inclusion(&chain, 1)]);
    }
}
