//! Finds in a contract's log who wrote a record, from the newest block down, in ranges as long as nodes take.

use crate::chain::{Chain, ChainError, Inclusion, LogQuery};
use crate::model::{Address, BlockNumber, RecordId};
use crate::policy::records::{self, Logged};

/// A record, and where it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What the log says of it.
    pub logged: Logged,
    /// The transaction, and its block.
    pub inclusion: Inclusion,
}

#[derive(Debug, Clone, Copy)]
pub struct Search {
    pub contract: Address,
    /// Of this record; without one, of all.
    pub id: Option<RecordId>,
    /// From this block on.
    pub from: BlockNumber,
    /// Up to this one, and it too.
    pub to: BlockNumber,
    pub calls: u32,
}

/// Why a search ended early.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// It took too many calls.
    #[error("{calls} calls of eth_getLogs were not enough; blocks below {below} were not looked at")]
    TooLong {
        calls: u32,
        /// It came down to this one.
        below: BlockNumber,
    },
}

/// The newest range's first record that is wanted. `progress` is told each block down to which it has looked.
///
/// # Errors
/// When a node does not answer, or it takes more calls than it may.
pub async fn find(
    chain: &dyn Chain,
    search: Search,
    is_wanted: impl Fn(&Record) -> bool,
    progress: impl Fn(BlockNumber),
) -> Result<Option<Record>, SearchError> {
    let Search { contract, id, from, to, calls } = search;
    let mut end = to.0;
    let mut length = end.saturating_sub(from.0).saturating_add(1);
    let mut asked = 0;
    while end >= from.0 {
        if asked == calls {
            return Err(SearchError::TooLong { calls, below: BlockNumber(end.saturating_add(1)) });
        }
        asked += 1;
        let start = end.saturating_sub(length - 1).max(from.0);
        let query = LogQuery { contract, topics: records::topics(id), from: BlockNumber(start), to: BlockNumber(end) };
        match chain.logs(&query).await {
            Ok(logs) => {
                let record = |log: &crate::chain::Log| {
                    Some(Record { logged: records::logged(&log.topics, &log.data)?, inclusion: log.inclusion })
                };
                progress(query.from);
                if let Some(found) = logs.iter().filter_map(record).find(&is_wanted) {
                    return Ok(Some(found));
                }
                let Some(next) = start.checked_sub(1) else { return Ok(None) };
                end = next;
            }
            // Whatever the words: providers limit the range, the number of entries, the time. What one block has is little.
            Err(ChainError::Node { .. }) if length > 1 => length = length.min(end - start + 1).div_ceil(2),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}
