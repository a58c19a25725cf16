//! Follows the chain for a lane: which blocks are new, which are orphaned, which of our transactions they hold, what is final.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use crate::chain::{BlockTag, Chain, ChainError, Header, Inclusion, Result};
use crate::model::{BlockHash, BlockNumber, TxHash};
use crate::policy::finality::{FinalityRule, highest_final};

/// Blocks that are followed from the newest one down. Beyond that, transactions are asked for one by one instead.
const MAX_WALK: u64 = 256;
/// Blocks read at once: on fast chains further ones come while these are read.
const READ_AT_ONCE: u64 = 100;
/// Limits the reads of blocks far below in one step: others have their turn after that.
const READS: u32 = 4;
/// Headers kept: beyond the finality of any chain in use, and for hours of an outage.
const REMEMBERED: usize = 16_384;
/// A chain whose newest block is lower than before counts as a node that is behind, until nodes have shown nothing else for
/// this long.
const PATIENCE: Duration = Duration::from_secs(60);
/// A newest block whose parents cannot be followed down to a known block counts as another node's, or as one of a moment, for
/// this long; after that everything is read anew from it.
const UNLINKED_PATIENCE: Duration = Duration::from_secs(10);

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
    /// Since when the newest block cannot be linked with a known one.
    unlinked_since: Option<Instant>,
    /// Ours whose receipt no node gave when it was to show whether they are included. Each step asks again.
    unread: BTreeSet<TxHash>,
}

/// Says whether a block that was part of the chain still is.
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
        Self {
            chain,
            rule,
            recent: VecDeque::new(),
            highest_final: None,
            lower_since: None,
            unlinked_since: None,
            unread: BTreeSet::new(),
        }
    }

    /// Reads the newest block and those below it. Returns `None` when there is nothing new. What is final is asked apart, by
    /// [`Self::final_up_to`]: where a node does not answer that, what is new here still counts.
    ///
    /// # Errors
    /// When no node gives its newest block, or serves the right chain. Nothing is forgotten then.
    pub async fn step(&mut self, ours: &[TxHash]) -> Result<Option<Sighting>> {
        let head = self.chain.header(BlockTag::Latest).await?;
        let mut head = head.ok_or_else(|| inconsistent("there is no newest block"))?;
        if self.knows(&head) {
            // The newest block, or an older one from a node that is behind.
            self.unlinked_since = None;
            return Ok(self.read_again(ours).await);
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
        let mut new_blocks = match self.walk_down(&head).await {
            Ok(Walk::Linked(blocks)) => blocks,
            Ok(Walk::TooDeep) => return self.start_over(head, ours).await.map(Some),
            broken => return self.wait_for_link(head, ours, broken.err()).await,
        };
        self.unlinked_since = None;
        let ours: BTreeSet<_> = ours.iter().copied().collect();
        let mut included = Vec::new();
        for block in &mut new_blocks {
            included.extend(self.included_in(block, &ours).await);
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
        Ok(Some(Sighting { head, orphaned, lost_final, anew: false, included }))
    }

    /// Returns the highest final block of the chain that ends in the newest block that was seen. Another node than the one
    /// that gave that block may answer for a tag: its block counts only once it is linked with the newest.
    ///
    /// # Errors
    /// When no node answers. What was seen before still counts.
    pub async fn final_up_to(&mut self) -> Result<Option<BlockNumber>> {
        let Some(head) = self.recent.back().map(|head| head.number) else { return Ok(None) };
        let tagged = match BlockTag::of(self.rule) {
            Some(tag) => match self.chain.header(tag).await? {
                Some(tagged) if self.is_canonical(tagged.number, tagged.hash).await? => Some(tagged.number),
                Some(_) | None => None,
            },
            None => None,
        };
        let final_up_to = highest_final(self.rule, head, tagged);
        self.highest_final = self.highest_final.max(final_up_to);
        Ok(final_up_to)
    }

    /// Returns whether this block is known to be part of the chain.
    pub async fn is_canonical(&mut self, number: BlockNumber, hash: BlockHash) -> Result<bool> {
        self.standing(number, hash).await.map(|standing| standing == Standing::Canonical)
    }

    /// Returns whether this block is part of the chain, following the parents from the newest block down. What a node says of
    /// a height alone proves nothing, since the node may be behind and on another fork. A block far below takes several calls.
    pub async fn standing(&mut self, number: BlockNumber, hash: BlockHash) -> Result<Standing> {
        for reads in 0..=READS {
            if let Some(block) = self.remembered(number) {
                return Ok(if block.hash == hash { Standing::Canonical } else { Standing::Gone });
            }
            let Some(lowest) = self.recent.front().filter(|lowest| lowest.number > number) else { break };
            if self.recent.len() >= REMEMBERED {
                return self.standing_by_number(number, hash).await;
            }
            let Some(to) = lowest.number.0.checked_sub(1).filter(|_| reads < READS) else { break };
            let from = number.0.max(to.saturating_sub(READ_AT_ONCE - 1));
            let found = self.chain.headers(from..=to).await?;
            if !self.prepend(found) {
                break;
            }
        }
        Ok(Standing::Unknown)
    }

    /// Adds blocks below those that are known, highest last. Returns whether each is the parent of the one above it; none below
    /// the first that is not counts.
    fn prepend(&mut self, found: Vec<Option<Header>>) -> bool {
        for header in found.into_iter().rev() {
            let parent = self.recent.front().map(|lowest| lowest.parent);
            match header.filter(|header| Some(header.hash) == parent) {
                Some(header) => self.recent.push_front(Header { transactions: None, ..header }),
                None => return false,
            }
        }
        true
    }

    /// Asks the node, far below the newest block, where no reorganisation reaches.
    async fn standing_by_number(&self, number: BlockNumber, hash: BlockHash) -> Result<Standing> {
        let of = |found: BlockHash| if found == hash { Standing::Canonical } else { Standing::Gone };
        let header = self.chain.header(BlockTag::Number(number)).await?;
        Ok(header.map_or(Standing::Unknown, |header| of(header.hash)))
    }

    fn remembered(&self, number: BlockNumber) -> Option<&Header> {
        let first = self.recent.front()?.number.0;
        let index = usize::try_from(number.0.checked_sub(first)?).ok()?;
        self.recent.get(index)
    }

    fn knows(&self, block: &Header) -> bool {
        self.remembered(block.number).is_some_and(|known| known.hash == block.hash)
    }

    /// Waits for a newest block that is linked with a known one: a load balancer may have asked two nodes, or the chain may have
    /// changed between two calls. After a while everything is read anew from this block.
    async fn wait_for_link(
        &mut self,
        head: Header,
        ours: &[TxHash],
        failure: Option<ChainError>,
    ) -> Result<Option<Sighting>> {
        let is_new = self.unlinked_since.is_none();
        let since = *self.unlinked_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= UNLINKED_PATIENCE {
            return self.start_over(head, ours).await.map(Some);
        }
        if is_new {
            let why =
                failure.map_or_else(|| "a block's parent is not the block below it".to_owned(), |e| e.to_string());
            debug!(head = %head.number, why, "the newest block is not linked with those that are known");
            self.chain.check_chain().await?;
        }
        Ok(None)
    }

    /// Returns our transactions in a block, and drops its list of transactions.
    async fn included_in(&mut self, block: &mut Header, ours: &BTreeSet<TxHash>) -> Vec<Inclusion> {
        let (block_number, block_hash) = (block.number, block.hash);
        let inclusion = |tx_hash| Inclusion { tx_hash, block_number, block_hash };
        if let Some(listed) = block.transactions.take() {
            return listed.into_iter().filter(|hash| ours.contains(hash)).map(inclusion).collect();
        }
        let ours: Vec<_> = ours.iter().copied().collect();
        let included = self.included(&ours).await;
        included.into_iter().filter(|inclusion| inclusion.block_hash == block_hash).collect()
    }

    /// Asks which of these are included. What cannot be read is asked for again at the next step.
    async fn included(&mut self, ours: &[TxHash]) -> Vec<Inclusion> {
        let mut included = Vec::new();
        for (hash, receipt) in ours.iter().zip(self.chain.receipts(ours).await) {
            match receipt {
                Ok(receipt) => {
                    self.unread.remove(hash);
                    included.extend(receipt.map(|receipt| receipt.inclusion()));
                }
                Err(error) => {
                    debug!(tx.hash = %hash, "the receipt is asked for again: {error}");
                    self.unread.insert(*hash);
                }
            }
        }
        included
    }

    /// Asks again for what could not be read before. Returns what is included, on the newest block that is known.
    async fn read_again(&mut self, ours: &[TxHash]) -> Option<Sighting> {
        let ours: BTreeSet<_> = ours.iter().collect();
        self.unread.retain(|hash| ours.contains(hash));
        if self.unread.is_empty() {
            return None;
        }
        let unread: Vec<_> = self.unread.iter().copied().collect();
        let included = self.included(&unread).await;
        let head = self.recent.back()?.clone();
        (!included.is_empty()).then_some(Sighting {
            head,
            orphaned: Vec::new(),
            lost_final: false,
            anew: false,
            included,
        })
    }

    /// Reads everything anew from a block that is linked with none that is known. Another chain may have come in behind the
    /// address: the chain id is checked first.
    async fn start_over(&mut self, mut head: Header, ours: &[TxHash]) -> Result<Sighting> {
        self.chain.check_chain().await?;
        self.unlinked_since = None;
        let included = self.included(ours).await;
        head.transactions = None;
        self.recent.clear();
        self.recent.push_back(head.clone());
        Ok(Sighting { head, orphaned: Vec::new(), lost_final: false, anew: true, included })
    }

    /// Follows the parents from `head` down to a remembered block. What is above the last known block is read at once, and then
    /// more and more below it.
    async fn walk_down(&self, head: &Header) -> Result<Walk> {
        let last = self.recent.back().map_or(0, |last| last.number.0);
        let (mut blocks, mut below_known) = (VecDeque::from([head.clone()]), 0);
        while blocks.len() as u64 <= MAX_WALK {
            let lowest = blocks.front().unwrap_or(head);
            let Some(below) = lowest.number.0.checked_sub(1) else { return Ok(Walk::TooDeep) };
            if self.is_linked(lowest) {
                return Ok(Walk::Linked(blocks.into()));
            }
            let from = if below > last { last + 1 } else { below.saturating_sub(below_known) };
            if below <= last {
                below_known = below_known * 2 + 1;
            }
            let found = self.chain.headers(from.max(below.saturating_sub(READ_AT_ONCE - 1))..=below).await?;
            for found in found.into_iter().rev() {
                let lowest = blocks.front().unwrap_or(head);
                if self.is_linked(lowest) {
                    break;
                }
                let Some(found) = found.filter(|found| found.hash == lowest.parent) else { return Ok(Walk::Broken) };
                blocks.push_front(found);
            }
        }
        Ok(Walk::TooDeep)
    }

    /// Returns whether the block below this one is known.
    fn is_linked(&self, block: &Header) -> bool {
        let below = block.number.0.checked_sub(1).map(BlockNumber);
        below.and_then(|below| self.remembered(below)).is_some_and(|known| known.hash == block.parent)
    }
}

/// Holds the end of a walk down from the newest block.
enum Walk {
    /// At a remembered block: the new blocks above it, lowest first.
    Linked(Vec<Header>),
    /// The remembered blocks are too far below.
    TooDeep,
    /// At a block whose parent no node has.
    Broken,
}

fn inconsistent(detail: &str) -> ChainError {
    ChainError::Nonsense { endpoint: "the node".to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::fakes::{FakeChain, Part, inclusion, own_hash};

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
            assert_eq!(tracker.final_up_to().await.unwrap(), highest_final(DEPTH, BlockNumber(12), None));
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
            tracker_from_below.final_up_to().await.unwrap();
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
        tracker.step(&ours()).await.unwrap().unwrap();
        assert_eq!(tracker.final_up_to().await.unwrap(), Some(BlockNumber(9)));
    }

    /// What the newest blocks hold is reported whether or not the node has a final block.
    #[tokio::test]
    async fn a_node_without_a_final_block_hides_nothing_that_is_new() {
        let (chain, mut tracker) = bench(FinalityRule::Finalized).await;
        chain.change(|state| (state.head, state.finalized) = (11, 9));
        chain.fail(Part::Finalized, true);
        assert_eq!(tracker.step(&ours()).await.unwrap().unwrap().included, [inclusion(&chain, 1)]);
        assert!(tracker.final_up_to().await.is_err());
        chain.fail(Part::Finalized, false);
        assert!(tracker.step(&ours()).await.unwrap().is_none());
        assert_eq!(tracker.final_up_to().await.unwrap(), Some(BlockNumber(9)));
    }

    #[tokio::test]
    async fn a_receipt_that_cannot_be_read_is_asked_for_until_it_can() {
        let (chain, mut tracker) = bench(DEPTH).await;
        chain.change(|state| (state.head, state.lacks_lists) = (12, true));
        chain.fail(Part::Receipts, true);
        let seen = tracker.step(&ours()).await.unwrap().unwrap();
        assert_eq!((seen.head.number, seen.included.len()), (BlockNumber(12), 0));
        assert!(tracker.step(&ours()).await.unwrap().is_none());
        chain.fail(Part::Receipts, false);
        let seen = tracker.step(&ours()).await.unwrap().unwrap();
        assert!(seen.included.contains(&inclusion(&chain, 1)), "{seen:?}");
        assert!(tracker.step(&ours()).await.unwrap().is_none(), "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_block_whose_parent_no_node_has_holds_nothing_up_for_long() {
        let (chain, mut tracker) = bench(DEPTH).await;
        chain.change(|state| (state.head, state.missing) = (12, Some(11)));
        assert!(tracker.step(&ours()).await.unwrap().is_none());
        tokio::time::advance(UNLINKED_PATIENCE).await;
        let seen = tracker.step(&ours()).await.unwrap().unwrap();
        assert!(seen.anew && seen.head.number == BlockNumber(12) && seen.included.len() == 2, "{seen:?}");
    }

    /// C22: what does not follow from what is known is used only after another look at the chain id.
    #[tokio::test(start_paused = true)]
    async fn a_head_of_another_chain_is_never_used() {
        let (chain, mut tracker) = bench(DEPTH).await;
        for (head, fork) in [(12, 1), (500, 1), (7, 1)] {
            chain.reorganise_from(fork);
            chain.change(|state| (state.head, state.is_other_chain) = (head, true));
            for _ in 0..3 {
                let seen = tracker.step(&ours()).await;
                assert!(matches!(seen, Err(ChainError::WrongChain { .. }) | Ok(None)), "{seen:?}");
                tokio::time::advance(PATIENCE).await;
            }
        }
        assert_eq!(tracker.recent.back().unwrap().number, BlockNumber(10));
    }

    #[tokio::test]
    async fn a_block_is_judged_by_the_parents_from_the_newest_down() {
        let (chain, mut tracker) = bench(DEPTH).await;
        let (stands, above) = (chain.hash_of(3), chain.hash_of(11));
        assert_eq!(tracker.standing(BlockNumber(3), stands).await.unwrap(), Standing::Canonical);
        assert_eq!(tracker.standing(BlockNumber(3), above).await.unwrap(), Standing::Gone);
        assert_eq!(tracker.standing(BlockNumber(11), above).await.unwrap(), Standing::Unknown);
    }

    /// Blocks of milliseconds at round trips of seconds: a step takes as many calls whatever came meanwhile.
    #[tokio::test]
    async fn many_new_blocks_take_no_more_calls_than_one() {
        let (chain, mut tracker) = bench(DEPTH).await;
        let mut head = 10;
        for blocks in [2, 5, 40, 99, 200] {
            head += blocks;
            chain.change(|state| state.head = head);
            let before = chain.calls();
            let seen = tracker.step(&ours()).await.unwrap().unwrap();
            assert!(!seen.anew && seen.head.number == BlockNumber(head), "{blocks}");
            assert!(chain.calls() - before <= 3, "{} calls for {blocks} blocks", chain.calls() - before);
        }
        let known = u64::try_from(tracker.recent.len()).unwrap();
        assert_eq!(known, head - 9, "each is known");
    }

    /// `finalized` is hundreds of blocks below the head on rollups, is missing at first, and goes back behind a load balancer.
    #[tokio::test]
    async fn a_tag_far_below_the_head_counts_after_few_calls_and_may_be_missing_or_go_back() {
        let (chain, mut tracker) = bench(FinalityRule::Finalized).await;
        chain.change(|state| (state.head, state.finalized) = (1000, 100));
        tracker.step(&ours()).await.unwrap().unwrap();
        let before = chain.calls();
        let mut steps = 0;
        while tracker.final_up_to().await.unwrap().is_none() {
            steps += 1;
            assert!(steps < 5, "it never counts");
        }
        assert!(chain.calls() - before <= 16, "{} calls", chain.calls() - before);
        assert_eq!(tracker.final_up_to().await.unwrap(), Some(BlockNumber(100)));
        for (tag, counts) in [(60, Some(60)), (u64::MAX, None), (400, Some(400)), (2000, None)] {
            chain.change(|state| state.finalized = tag);
            let mut counted = tracker.final_up_to().await.unwrap();
            counted = counted.or(tracker.final_up_to().await.unwrap());
            assert_eq!(counted, counts.map(BlockNumber), "{tag}");
        }
    }

    #[tokio::test]
    async fn a_deep_reorganisation_is_followed_with_few_calls() {
        let (chain, mut tracker) = bench(DEPTH).await;
        for head in (20..=200).step_by(20) {
            chain.change(|state| state.head = head);
            tracker.step(&ours()).await.unwrap();
        }
        chain.reorganise_from(120);
        chain.change(|state| state.head = 205);
        let before = chain.calls();
        let seen = tracker.step(&ours()).await.unwrap().unwrap();
        assert_eq!((seen.anew, seen.orphaned.len()), (false, 81));
        assert!(chain.calls() - before < 15, "{} calls", chain.calls() - before);
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
