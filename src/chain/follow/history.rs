//! Reads from the chain what an account has written, for a journal that replaces a lost one.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use crate::chain::{BlockTag, Chain, ChainError, Receipt, Sent, SentInBlock, count_at};
use crate::model::{Address, BlockNumber, BodyHash, Nonce, RecoveredWrite, TxHash, Wei};
use crate::policy::batch::Batching;
use crate::policy::retry_schedule::RetryPauses;

/// Pauses between tries of one call.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Blocks read at once.
const READS: usize = 8;
/// Shorter ranges are read without asking for the account's count.
const FEW_BLOCKS: u64 = 16;
/// Receipts asked for together.
const RECEIPTS: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(
        "the node has no block {0}; name an endpoint in chain.endpoints that keeps old blocks, or a later --from-block"
    )]
    NoBlock(BlockNumber),
    #[error("the node has no receipt of nonce {0}; name an endpoint in chain.endpoints that keeps old receipts")]
    NoReceipt(Nonce),
    #[error(
        "the blocks that were read show {found} transactions, the account's count says {expected}; the node may have been on another fork, so try again"
    )]
    Holes { found: usize, expected: u64 },
}

/// Holds what an account has written, as the chain shows it.
#[derive(Debug)]
pub struct AccountHistory {
    /// The first nonce in the blocks that were read, or the next one where there is none.
    pub first_nonce: Nonce,
    pub next_nonce: Nonce,
    /// Number of its transactions in the blocks that were read.
    pub transactions: usize,
    /// The account's successful calls of others.
    pub writes: Vec<RecoveredWrite>,
}

/// How long a call is made again that fails, or whose answer lacks what the chain must have: one bad answer must not end a
/// long reading.
pub struct Patience<'a> {
    /// From the first failure of a call to the last try.
    pub limit: Duration,
    /// Hears of each failure after which the call is made again.
    pub on_failure: &'a (dyn Fn(&HistoryError) + Sync),
}

impl Patience<'_> {
    #[cfg(test)]
    pub const NONE: Patience<'static> = Patience { limit: Duration::ZERO, on_failure: &|_| () };

    pub async fn with<T>(&self, ask: impl AsyncFn() -> Result<T, HistoryError>) -> Result<T, HistoryError> {
        let mut pauses = RetryPauses::between(PAUSES.0, PAUSES.1);
        let mut failing_since = None;
        loop {
            let error = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if failing_since.get_or_insert_with(Instant::now).elapsed() >= self.limit {
                return Err(error);
            }
            (self.on_failure)(&error);
            tokio::time::sleep(pauses.next_wait()).await;
        }
    }
}

/// A transaction of the account, and its block.
struct Found {
    nonce: Nonce,
    tx_hash: TxHash,
    to: Option<Address>,
    value: Wei,
    /// Hash of its calldata; of a batch the hash of each call.
    data: Vec<BodyHash>,
    block_number: BlockNumber,
}

/// Reads all that the account wrote in these blocks, both included, of which `to` is final. `batching` recognises batches.
/// Calls `progress` with each block up to which everything is read.
///
/// # Errors
/// When not every transaction of the account in these blocks could be read.
pub async fn account_history(
    chain: &dyn Chain,
    account: Address,
    (from, to): (BlockNumber, BlockNumber),
    batching: &Batching,
    patience: &Patience<'_>,
    progress: impl Fn(BlockNumber),
) -> Result<AccountHistory, HistoryError> {
    let reading = Reading { chain, account, batching, patience };
    let next_nonce = patience.with(async || Ok(chain.transaction_count(account, BlockTag::Number(to)).await?)).await?;
    let before = match from.0.checked_sub(1) {
        Some(before) => reading.count_at(before).await?,
        None => Some(Nonce(0)),
    };
    let blocks = Range { from: from.0, to: to.0, before, after: Some(next_nonce) };
    let mut sent = reading.sent_in(blocks, progress).await?;
    let first = before.or(sent.first().map(|sent| sent.nonce)).unwrap_or(next_nonce);
    let expected = next_nonce.0.saturating_sub(first.0);
    let is_whole =
        sent.len() as u64 == expected && sent.iter().zip(first.0..).all(|(sent, nonce)| sent.nonce.0 == nonce);
    if !is_whole {
        return Err(HistoryError::Holes { found: sent.len(), expected });
    }
    let transactions = sent.len();
    let first_nonce = first;
    // To itself an account sends only what closes a nonce.
    sent.retain(|sent| sent.to.is_some_and(|to| to != account));
    Ok(AccountHistory { first_nonce, next_nonce, transactions, writes: reading.successful_writes(&sent).await? })
}

/// One reading of an account's history. Each call is made with patience.
struct Reading<'a> {
    chain: &'a dyn Chain,
    account: Address,
    batching: &'a Batching,
    patience: &'a Patience<'a>,
}

impl Reading<'_> {
    async fn count_at(&self, block: u64) -> Result<Option<Nonce>, HistoryError> {
        self.patience.with(async || Ok(count_at(self.chain, self.account, block).await?)).await
    }

    async fn block(&self, number: u64) -> Result<SentInBlock, HistoryError> {
        let number = BlockNumber(number);
        let read = async || {
            let block = self.chain.sent_in(self.account, number).await?;
            block.ok_or(HistoryError::NoBlock(number))
        };
        self.patience.with(read).await
    }

    /// Reads the account's transactions in these blocks, in order. Ranges in which its count does not change are passed over.
    async fn sent_in(&self, blocks: Range, progress: impl Fn(BlockNumber)) -> Result<Vec<Found>, HistoryError> {
        let mut sent = Vec::new();
        // The next range is the last one. An unknown count is asked for again in smaller ranges.
        let mut ranges = vec![blocks];
        while let Some(range) = ranges.pop() {
            if range.before.is_some() && range.before == range.after {
                progress(BlockNumber(range.to));
                continue;
            }
            let middle = range.from + (range.to - range.from) / 2;
            let count = if range.to - range.from < FEW_BLOCKS { None } else { self.count_at(middle).await? };
            if let Some(count) = count {
                ranges.push(Range { from: middle + 1, before: Some(count), ..range });
                ranges.push(Range { to: middle, after: Some(count), ..range });
                continue;
            }
            let mut blocks = stream::iter(range.from..=range.to).map(|number| self.block(number)).buffered(READS);
            while let Some(block) = blocks.try_next().await? {
                progress(block.number);
                sent.extend(found(block, self.batching));
            }
        }
        Ok(sent)
    }

    async fn successful_writes(&self, sent: &[Found]) -> Result<Vec<RecoveredWrite>, HistoryError> {
        let mut writes = Vec::with_capacity(sent.len());
        for sent in sent.chunks(RECEIPTS) {
            let hashes: Vec<_> = sent.iter().map(|sent| sent.tx_hash).collect();
            let receipts = async || {
                let answers = self.chain.receipts(&hashes).await;
                let receipt = |(answer, sent): (Result<Option<Receipt>, ChainError>, &Found)| {
                    answer?.ok_or(HistoryError::NoReceipt(sent.nonce))
                };
                answers.into_iter().zip(sent).map(receipt).collect::<Result<Vec<_>, _>>()
            };
            for (sent, Receipt { succeeded, .. }) in sent.iter().zip(self.patience.with(receipts).await?) {
                let Found { nonce, tx_hash, to: Some(to), value, block_number, .. } = *sent else { continue };
                let write = |(place, data_hash): (u32, &BodyHash)| RecoveredWrite {
                    nonce,
                    place,
                    tx_hash,
                    block_number,
                    data_hash: *data_hash,
                    to,
                    value,
                };
                writes.extend((0..).zip(&sent.data).filter(|_| succeeded).map(write));
            }
        }
        Ok(writes)
    }
}

/// Blocks, and the account's counts before and after them where a node has the state.
#[derive(Clone, Copy)]
struct Range {
    from: u64,
    to: u64,
    before: Option<Nonce>,
    after: Option<Nonce>,
}

/// Returns what took nonces of the account in this block, in their order. An authorisation has no calldata.
fn found(block: SentInBlock, batching: &Batching) -> Vec<Found> {
    let block_number = block.number;
    let sent = block.sent.into_iter().map(|sent| {
        let Sent { nonce, tx_hash, to, value, ref data, .. } = sent;
        let data = calls(&sent, batching).unwrap_or_else(|| vec![BodyHash::of(data)]);
        (nonce, Found { nonce, tx_hash, to, value, data, block_number })
    });
    let authorised = |(nonce, tx_hash): (Nonce, TxHash)| {
        (nonce, Found { nonce, tx_hash, to: None, value: Wei(0), data: Vec::new(), block_number })
    };
    // A transaction of the account is the better evidence where both have the nonce.
    let mut found: BTreeMap<_, _> = block.authorised.into_iter().map(authorised).collect();
    found.extend(sent);
    found.into_values().collect()
}

/// Returns the hashes of the calls in a batch; none where it is none.
fn calls(sent: &Sent, batching: &Batching) -> Option<Vec<BodyHash>> {
    let calls = batching.split(sent.to?, &sent.data)?;
    Some(calls.iter().map(|call| BodyHash::of(call)).collect())
}

/// Returns what a transaction of the account wrote, each call of a batch for itself. To itself an account sends only what
/// closes a nonce.
pub fn writes_of(sent: &Sent, account: Address, block_number: BlockNumber, batching: &Batching) -> Vec<RecoveredWrite> {
    let Some(to) = sent.to.filter(|to| *to != account) else { return Vec::new() };
    let data = calls(sent, batching).unwrap_or_else(|| vec![BodyHash::of(&sent.data)]);
    let Sent { nonce, tx_hash, value, .. } = *sent;
    let write = |(place, data_hash)| RecoveredWrite { nonce, place, tx_hash, block_number, data_hash, to, value };
    (0..).zip(data).map(write).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::simulation::fakes::{ACCOUNT, FakeChain, FakeChainState, data_hash, own_hash};

    async fn history(chain: &FakeChain, from: u64) -> Result<AccountHistory, HistoryError> {
        account_history(
            chain,
            ACCOUNT,
            (BlockNumber(from), BlockNumber(1000)),
            &Batching::NONE,
            &Patience::NONE,
            |_| (),
        )
        .await
    }

    fn nonces(history: &AccountHistory) -> Vec<u64> {
        history.writes.iter().map(|write| write.nonce.0).collect()
    }

    #[tokio::test]
    async fn successful_calls_of_others_are_writes_and_few_blocks_are_read_for_them() {
        let chain = FakeChain::sent_in(&[10, 500, 501, 1000]);
        chain.change(|state| {
            state.reverted = vec![own_hash(1)];
            state.sent[2].1.to = Some(ACCOUNT);
        });
        let history = history(&chain, 0).await.unwrap();
        assert_eq!((history.next_nonce, history.transactions, nonces(&history)), (Nonce(4), 4, vec![0, 3]));
        assert_eq!((history.writes[0].data_hash, history.writes[0].block_number), (data_hash(0), BlockNumber(10)));
        assert!(chain.calls() < 100, "{} calls", chain.calls());
    }

    #[tokio::test]
    async fn without_old_state_all_blocks_are_read() {
        let chain = FakeChain::sent_in(&[10, 500, 1000]);
        chain.change(|state| state.state_from = 1000);
        assert_eq!(nonces(&history(&chain, 0).await.unwrap()), [0, 1, 2]);
        assert!(chain.calls() > 1000, "{} calls", chain.calls());
    }

    #[tokio::test]
    async fn a_later_start_leaves_out_what_was_before() {
        let chain = FakeChain::sent_in(&[10, 500, 1000]);
        assert_eq!(nonces(&history(&chain, 11).await.unwrap()), [1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_asked_again_and_one_that_lasts_ends_the_reading() {
        type Fault = fn(&mut FakeChainState, bool);
        type IsIts = fn(&HistoryError) -> bool;
        let faults: [(Fault, IsIts); 3] = [
            (|state, on| state.is_away = on, |error| matches!(error, HistoryError::Chain(_))),
            (|state, on| state.lacks_blocks = on, |error| matches!(error, HistoryError::NoBlock(_))),
            (|state, on| state.lacks_receipts = on, |error| matches!(error, HistoryError::NoReceipt(Nonce(0)))),
        ];
        for (ends, (fault, is_its)) in [true, false].into_iter().flat_map(|ends| faults.map(|fault| (ends, fault))) {
            let chain = FakeChain::sent_in(&[10, 500, 1000]);
            chain.change(|state| fault(state, true));
            let (failures, began) = (AtomicU64::new(0), Instant::now());
            let on_failure = |error: &HistoryError| {
                assert!(is_its(error), "{error}");
                failures.fetch_add(1, Ordering::Relaxed);
                chain.change(|state| fault(state, !ends));
            };
            let patience = Patience { limit: Duration::from_secs(300), on_failure: &on_failure };
            let blocks = (BlockNumber(0), BlockNumber(1000));
            let history = account_history(&*chain, ACCOUNT, blocks, &Batching::NONE, &patience, |_| ()).await;
            match history {
                Ok(history) => assert!(ends && nonces(&history) == [0, 1, 2] && failures.into_inner() > 0),
                Err(error) => {
                    assert!(!ends && is_its(&error), "{error}");
                    assert!(began.elapsed() >= Duration::from_secs(300));
                }
            }
        }
    }

    #[tokio::test]
    async fn a_history_with_a_hole_is_an_error() {
        let chain = FakeChain::sent_in(&[10, 500, 1000]);
        chain.change(|state| state.lacks_blocks = true);
        assert!(matches!(history(&chain, 0).await, Err(HistoryError::NoBlock(_))));
        let chain = FakeChain::sent_in(&[10, 500, 1000]);
        chain.change(|state| state.sent[1].1.nonce = Nonce(7));
        assert!(matches!(history(&chain, 0).await, Err(HistoryError::Holes { found: 3, expected: 3 })));
    }
}
