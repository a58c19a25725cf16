//! Reads from the chain what an account has written, for a journal that takes the place of a lost one.

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::chain::{BlockTag, Chain, ChainError, Receipt, Sent, SentInBlock, count_at};
use crate::model::{Address, BlockNumber, BodyHash, Nonce, RecoveredWrite, TxHash};
use crate::policy::batch::Batching;

/// Blocks read at once.
const READS: usize = 8;
/// Fewer blocks are read without asking whether the account sent anything in them.
const FEW_BLOCKS: u64 = 16;
/// Receipts asked for together.
const RECEIPTS: usize = 100;

/// Why what was read cannot be relied on.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The node did not answer.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A block that must be there is not.
    #[error(
        "the node has no block {0}; name an endpoint in chain.endpoints that keeps old blocks, or a later --from-block"
    )]
    NoBlock(BlockNumber),
    /// A final transaction has no receipt.
    #[error("the node has no receipt of nonce {0}; name an endpoint in chain.endpoints that keeps old receipts")]
    NoReceipt(Nonce),
    /// The blocks do not show every nonce.
    #[error(
        "the blocks that were read show {found} transactions, the account's count says {expected}; the node may have been on another fork, so try again"
    )]
    Holes {
        /// What the blocks show.
        found: usize,
        /// How many there must be.
        expected: u64,
    },
}

/// What the chain shows of an account.
#[derive(Debug)]
pub struct AccountHistory {
    /// The account's next nonce.
    pub next_nonce: Nonce,
    /// Transactions of it in the blocks that were read.
    pub transactions: usize,
    /// Those that called somebody and did not revert.
    pub writes: Vec<RecoveredWrite>,
}

/// A transaction of the account, and its block.
struct Found {
    nonce: Nonce,
    tx_hash: TxHash,
    to: Option<Address>,
    /// The hash of its calldata; of a batch those of all its calls.
    data: Vec<BodyHash>,
    block_number: BlockNumber,
}

/// All that the account wrote in these blocks, both included, of which `to` is final. `batching` tells batches apart.
/// `progress` is told each block up to which it is done.
///
/// # Errors
/// When not every transaction of the account in these blocks could be read.
pub async fn account_history(
    chain: &dyn Chain,
    account: Address,
    (from, to): (BlockNumber, BlockNumber),
    batching: &Batching,
    progress: impl Fn(BlockNumber),
) -> Result<AccountHistory, HistoryError> {
    let next_nonce = chain.transaction_count(account, BlockTag::Number(to)).await?;
    let before = match from.0.checked_sub(1) {
        Some(before) => count_at(chain, account, before).await?,
        None => Some(Nonce(0)),
    };
    let mut sent: Vec<Found> = Vec::new();
    // The next range is the last one; what is not known of a count is asked for again in smaller ones.
    let mut ranges = vec![Range { from: from.0, to: to.0, before, after: Some(next_nonce) }];
    while let Some(range) = ranges.pop() {
        if range.before.is_some() && range.before == range.after {
            progress(BlockNumber(range.to));
            continue;
        }
        let middle = range.from + (range.to - range.from) / 2;
        let count = if range.to - range.from < FEW_BLOCKS { None } else { count_at(chain, account, middle).await? };
        if let Some(count) = count {
            ranges.push(Range { from: middle + 1, before: Some(count), ..range });
            ranges.push(Range { to: middle, after: Some(count), ..range });
            continue;
        }
        let mut blocks = stream::iter(range.from..=range.to).map(|number| read(chain, account, number)).buffered(READS);
        while let Some(block) = blocks.try_next().await? {
            sent.extend(block.sent.into_iter().map(|sent| found(sent, block.number, batching)));
            progress(block.number);
        }
    }
    let first = before.or(sent.first().map(|sent| sent.nonce)).unwrap_or(next_nonce);
    let expected = next_nonce.0.saturating_sub(first.0);
    let is_whole =
        sent.len() as u64 == expected && sent.iter().zip(first.0..).all(|(sent, nonce)| sent.nonce.0 == nonce);
    if !is_whole {
        return Err(HistoryError::Holes { found: sent.len(), expected });
    }
    let transactions = sent.len();
    // To itself an account sends only what closes a nonce.
    sent.retain(|sent| sent.to.is_some_and(|to| to != account));
    let mut writes = Vec::with_capacity(sent.len());
    for sent in sent.chunks(RECEIPTS) {
        let hashes: Vec<_> = sent.iter().map(|sent| sent.tx_hash).collect();
        for (sent, receipt) in sent.iter().zip(chain.receipts(&hashes).await?) {
            let Receipt { succeeded, .. } = receipt.ok_or(HistoryError::NoReceipt(sent.nonce))?;
            let Found { nonce, tx_hash, block_number, .. } = *sent;
            let write = |(place, data_hash): (u32, &BodyHash)| RecoveredWrite {
                nonce,
                place,
                tx_hash,
                block_number,
                data_hash: *data_hash,
            };
            writes.extend((0..).zip(&sent.data).filter(|_| succeeded).map(write));
        }
    }
    Ok(AccountHistory { next_nonce, transactions, writes })
}

/// Blocks, and the account's counts before and after them, where a node has them.
#[derive(Clone, Copy)]
struct Range {
    from: u64,
    to: u64,
    before: Option<Nonce>,
    after: Option<Nonce>,
}

fn found(sent: Sent, block_number: BlockNumber, batching: &Batching) -> Found {
    let Sent { nonce, tx_hash, to, data } = sent;
    let calls = to.and_then(|to| batching.split(to, &data));
    let data =
        calls.map_or_else(|| vec![BodyHash::of(&data)], |calls| calls.iter().map(|call| BodyHash::of(call)).collect());
    Found { nonce, tx_hash, to, data, block_number }
}

async fn read(chain: &dyn Chain, account: Address, number: u64) -> Result<SentInBlock, HistoryError> {
    let block = chain.sent_in(account, BlockNumber(number)).await?;
    block.ok_or(HistoryError::NoBlock(BlockNumber(number)))
}
