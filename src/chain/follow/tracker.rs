//! The stage that follows the chain: which blocks are new, which went away, which of our transactions they hold, what is
//! final. It reports; the lane decides.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::chain::{BlockTag, Chain, ChainError, Header, Inclusion, Result};
use crate::model::{BlockHash, BlockNumber, TxHash};
use crate::policy::finality::{FinalityRule, highest_final};

/// Blocks read one by one after a pause or a reorg. What is further away is looked up by transaction instead.
const MAX_WALK: u64 = 64;
/// Headers kept to recognise blocks by: beyond the finality of any chain in use, and hours of an outage deep.
const REMEMBERED: usize = 16_384;
/// A chain whose newest block is lower than one seen before is taken for what a node behind still believes, until it has
/// been all that nodes show for so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a look at the chain has shown.
#[derive(Debug)]
pub struct Sighting {
    pub head: Header,
    /// Blocks that are no longer part of the chain.
    pub orphaned: Vec<BlockHash>,
    /// One of them had been reported as final.
    pub lost_final: bool,
    /// Everything known before is void: what stands below is all that is included now.
    pub anew: bool,
    /// Which of ours are in new blocks, lowest block first.
    pub included: Vec<Inclusion>,
    /// The highest final block.
    pub final_up_to: Option<BlockNumber>,
}

/// The stage of one lane.
pub struct Tracker {
    chain: Arc<dyn Chain>,
    rule: FinalityRule,
    /// The chain as seen last, lowest first, without holes and without the blocks' transactions.
    recent: VecDeque<Header>,
    /// The highest block ever reported as final.
    highest_final: Option<BlockNumber>,
    /// Since when nodes show a lower chain alone.
    lower_since: Option<Instant>,
}

/// Where a block stands that was part of the chain once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is part of it.
    Canonical,
    /// Another one is in its place.
    Gone,
    /// Nobody can tell yet: it is above the newest block that was seen, or too far below to be linked with it in one look.
    Unknown,
}

impl Tracker {
    /// A tracker that has seen nothing yet.
    pub fn new(chain: Arc<dyn Chain>, rule: FinalityRule) -> Self {
        Self { chain, rule, recent: VecDeque::new(), highest_final: None, lower_since: None }
    }

    /// Looks at the chain once. `None` when there is no new block.
    ///
    /// # Errors
    /// When a node does not answer, or its answers do not fit together. Nothing is forgotten then; look again.
    pub async fn step(&mut self, ours: &[TxHash]) -> Result<Option<Sighting>> {
        let head = self.chain.header(BlockTag::Latest).await?;
        let mut head = head.ok_or_else(|| inconsistent("there is no newest block"))?;
        if self.knows(&head) {
            // The newest, or what a node behind says: it knows less than we do already.
            return Ok(None);
        }
        let Some(last) = self.recent.back().map(|last| last.number) else {
            return self.look_anew(head, ours).await.map(Some);
        };
        if head.number >= last {
            self.lower_since = None;
        } else if self.lower_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
            return Ok(None);
        }
        if head.number.0.abs_diff(last.0) > MAX_WALK {
            return self.look_anew(head, ours).await.map(Some);
        }
        let Some(mut new_blocks) = self.walk_down(&head).await? else {
            return self.look_anew(head, ours).await.map(Some);
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

    /// Whether this block is known to be part of the chain.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn is_canonical(&mut self, number: BlockNumber, hash: BlockHash) -> Result<bool> {
        self.standing(number, hash).await.map(|standing| standing == Standing::Canonical)
    }

    /// Where this block stands: on the way from the newest block down, by each one's parent. What a node says of a height
    /// alone proves nothing, since it may be behind and on another fork. What is far below is reached over several looks.
    ///
    /// # Errors
    /// When the node does not answer.
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

    /// So far below the newest block that no reorganisation is thought of: the node's word counts.
    async fn standing_by_number(&self, number: BlockNumber, hash: BlockHash) -> Result<Standing> {
        let of = |found: BlockHash| if found == hash { Standing::Canonical } else { Standing::Gone };
        let header = self.chain.header(BlockTag::Number(number)).await?;
        Ok(header.map_or(Standing::Unknown, |header| of(header.hash)))
    }

    /// Forgets everything, so that the next look starts anew.
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

    /// Takes the block's list of transactions, which is not needed any more then.
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

    async fn look_anew(&mut self, mut head: Header, ours: &[TxHash]) -> Result<Sighting> {
        let included = self.included(ours).await?;
        head.transactions = None;
        self.recent.clear();
        self.recent.push_back(head.clone());
        let final_up_to = self.final_up_to(&head).await?;
        self.highest_final = self.highest_final.max(final_up_to);
        Ok(Sighting { head, orphaned: Vec::new(), lost_final: false, anew: true, included, final_up_to })
    }

    /// The new blocks up to `head`, lowest first, standing on one that is remembered; `None` where that lies too deep.
    async fn walk_down(&self, head: &Header) -> Result<Option<Vec<Header>>> {
        let mut blocks = VecDeque::from([head.clone()]);
        for _ in 0..MAX_WALK {
            let lowest = blocks.front().unwrap_or(head);
            let Some(below) = lowest.number.0.checked_sub(1).map(BlockNumber) else { return Ok(None) };
            if self.remembered(below).is_some_and(|known| known.hash == lowest.parent) {
                return Ok(Some(blocks.into()));
            }
            let found = self.chain.header(BlockTag::Number(below)).await?;
            // A node behind, or a reorg between two calls: the next look will fit together.
            let found = found.filter(|found| found.hash == lowest.parent);
            blocks.push_front(found.ok_or_else(|| inconsistent("a block's parent is not the block below it"))?);
        }
        Ok(None)
    }

    /// The highest final block of the chain that ends in `head`. A tag may be answered by another node than the one that
    /// gave `head`: its block counts only once it is linked with it.
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
