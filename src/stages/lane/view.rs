//! What a term knows of the chain: its newest block, what is final, what it asks for gas; and what reads that.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::chain::follow::receipt_reader::{BlockRead, ReceiptReader};
use crate::chain::follow::tracker::{Sighting, Standing, Tracker};
use crate::chain::{BlockTag, Chain, ChainError, Header, Inclusion};
use crate::model::{Address, BlockHash, BlockNumber, Nonce, TxHash, Wei};
use crate::policy::fee::Market;
use crate::policy::poll::BlockPace;

/// Blocks below the head within which a fork may be.
const NEAR: u64 = 256;
/// For how long the answer to a question for the balance is waited for.
const BALANCE_TIMEOUT: Duration = Duration::from_secs(2);
/// For so long a balance that could not be read stays unknown.
const BALANCE_REST: Duration = Duration::from_secs(10);

pub(super) struct View {
    tracker: Tracker,
    receipts: ReceiptReader,
    head: Option<Header>,
    /// The newest block, until the account's count at it is known.
    unread_head: Option<Header>,
    /// The account's count at the head, until all that is final there is closed.
    count_to_close: Option<Nonce>,
    finality_is_due: bool,
    pace: BlockPace,
    /// The time at which the head was first seen.
    head_since: Instant,
    /// The highest final block of the chain that was seen last. Another chain may be seen next, so it is never kept beyond.
    final_up_to: Option<BlockNumber>,
    market: Option<Market>,
    /// The account's balance, and the time at which it was read; none where no node says.
    balance: Option<(Wei, Instant)>,
    /// A balance that could not be read is asked for again then.
    balance_rests_until: Option<Instant>,
}

impl View {
    pub(super) fn new(tracker: Tracker, receipts: ReceiptReader) -> Self {
        Self {
            tracker,
            receipts,
            head: None,
            unread_head: None,
            count_to_close: None,
            finality_is_due: false,
            pace: BlockPace::default(),
            head_since: Instant::now(),
            final_up_to: None,
            market: None,
            balance: None,
            balance_rests_until: None,
        }
    }

    pub(super) fn head(&self) -> Option<&Header> {
        self.head.as_ref()
    }

    pub(super) fn height(&self) -> Option<BlockNumber> {
        self.head.as_ref().map(|head| head.number)
    }

    /// Returns how fast blocks come.
    pub(super) fn block_pace(&self) -> BlockPace {
        self.pace
    }

    pub(super) fn final_up_to(&self) -> Option<BlockNumber> {
        self.final_up_to
    }

    pub(super) fn market(&self) -> Option<Market> {
        self.market
    }

    /// Polls the chain once. Returns `None` where there is no new block.
    pub(super) async fn poll(&mut self, ours: &[TxHash]) -> Result<Option<Sighting>, ChainError> {
        self.tracker.step(ours).await
    }

    /// Returns what the account has, as far as is known.
    pub(super) fn balance(&self) -> Option<Wei> {
        self.balance.map(|(balance, _)| balance)
    }

    /// Reads what the account has, unless that was read at this time or later. Nothing waits long for it.
    pub(super) async fn read_balance_since(&mut self, time: Instant, chain: &dyn Chain, account: Address) {
        let rests = self.balance_rests_until.is_some_and(|until| Instant::now() < until);
        if !rests && self.balance.is_none_or(|(_, read_at)| read_at < time) {
            let (balance, now) = (balance(chain, account).await, Instant::now());
            self.balance = balance.map(|balance| (balance, now));
            self.balance_rests_until = balance.is_none().then(|| now + BALANCE_REST);
        }
    }

    /// Notes a new head, whose chain may have replaced blocks of the one before. What is final of that is kept only if not.
    pub(super) fn see(&mut self, head: Header, replaces: bool) {
        self.pace.record(head.number, Instant::now());
        self.unread_head = Some(head);
        self.finality_is_due = true;
        if replaces {
            self.final_up_to = None;
        }
    }

    /// Returns the newest block that was seen, while the account's count at it is not known.
    pub(super) fn unread_head(&self) -> Option<&Header> {
        self.unread_head.as_ref()
    }

    pub(super) fn set_market(&mut self, market: Market) {
        self.market = Some(market);
    }

    /// Uses a head from now on, together with the account's count at it.
    pub(super) fn set_head(&mut self, head: Header, count: Nonce) {
        if self.head.as_ref().is_none_or(|known| known.hash != head.hash) {
            self.head_since = Instant::now();
        }
        self.head = Some(head);
        self.unread_head = None;
        self.count_to_close = Some(count);
    }

    /// Asks what is final. Returns `None` where that is known for the newest block.
    pub(super) async fn read_finality(&mut self) -> Option<Result<Option<BlockNumber>, ChainError>> {
        if self.finality_is_due { Some(self.tracker.final_up_to().await) } else { None }
    }

    pub(super) fn set_final_up_to(&mut self, height: Option<BlockNumber>) {
        self.final_up_to = height;
        self.finality_is_due = false;
    }

    /// Returns the account's count at the head, until what is final at that head has been closed.
    pub(super) fn count_to_close(&self) -> Option<Nonce> {
        self.count_to_close.filter(|_| self.unread_head.is_none())
    }

    /// Records that all is closed that is final at the head.
    pub(super) fn record_closed(&mut self) {
        if !self.finality_is_due {
            self.count_to_close = None;
        }
    }

    /// Returns for how long there has been no new block for something that waits since `waiting`, once that is longer than
    /// `limit`. Some chains make a block only when there is something to put into it: the wait counts, not the block's age.
    pub(super) fn stale_for(&self, waiting: Instant, limit: Duration) -> Option<Duration> {
        let age = self.head_since.max(waiting).elapsed();
        (age >= limit).then_some(age)
    }

    pub(super) async fn is_canonical(&mut self, number: BlockNumber, hash: BlockHash) -> Result<bool, ChainError> {
        self.tracker.is_canonical(number, hash).await
    }

    pub(super) async fn standing(&mut self, number: BlockNumber, hash: BlockHash) -> Result<Standing, ChainError> {
        self.tracker.standing(number, hash).await
    }

    /// Returns whether a block is part of the chain. Near the head each block's parent is followed; far below, nodes have no
    /// forks, and their word counts.
    pub(super) async fn stands(&mut self, chain: &dyn Chain, inclusion: Inclusion) -> Result<bool, ChainError> {
        let depth = self.height().map_or(0, |head| head.0.saturating_sub(inclusion.block_number.0));
        if depth <= NEAR {
            return self.is_canonical(inclusion.block_number, inclusion.block_hash).await;
        }
        let header = chain.header(BlockTag::Number(inclusion.block_number)).await?;
        Ok(header.is_some_and(|header| header.hash == inclusion.block_hash))
    }

    /// Asks for the receipts of a final block; they come by [`Self::next_receipts`].
    pub(super) fn ask_receipts(&mut self, number: BlockNumber, hash: BlockHash, transactions: Vec<TxHash>) {
        self.receipts.ask(number, hash, transactions);
    }

    /// Waits for the next block's receipts. Cancel safe.
    pub(super) async fn next_receipts(&mut self) -> BlockRead {
        self.receipts.next().await
    }
}

async fn balance(chain: &dyn Chain, account: Address) -> Option<Wei> {
    timeout(BALANCE_TIMEOUT, chain.balance(account)).await.ok()?.ok()
}
