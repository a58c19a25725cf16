//! Finds the transaction that wrote a record in a contract's log, from the newest block down, in ranges as long as nodes take.

use crate::chain::{Chain, ChainError, Inclusion, LogQuery};
use crate::model::{Address, BlockNumber, RecordId};
use crate::policy::records::{self, Logged};

/// A record, and where it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub logged: Logged,
    pub inclusion: Inclusion,
}

#[derive(Debug, Clone, Copy)]
pub struct Search {
    pub contract: Address,
    /// The record, or none for all records.
    pub id: Option<RecordId>,
    /// The lowest block, which is included.
    pub from: BlockNumber,
    /// The highest block, which is included.
    pub to: BlockNumber,
    /// Highest number of calls.
    pub calls: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("{calls} calls of eth_getLogs were not enough; blocks below {below} were not looked at")]
    TooLong { calls: u32, below: BlockNumber },
}

/// Returns the first wanted record of the newest range that has one. Calls `progress` with each block down to which it has read.
///
/// # Errors
/// When a node does not answer, or the search takes too many calls.
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
            // Whatever the text: providers limit the range, the number of entries, the time. One block has few entries.
            Err(ChainError::Node { .. }) if length > 1 => length = length.min(end - start + 1).div_ceil(2),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;

    use super::*;
    use crate::chain::Log;
    use crate::model::{BlockHash, TxHash};
    use crate::simulation::fakes::{ACCOUNT, FakeChain};

    /// A chain of a hundred blocks whose block 40 has a record.
    fn chain() -> Arc<FakeChain> {
        let (topics, data) = records::tests::entry(RecordId([1; 32]), ACCOUNT, crate::model::ContentHash([2; 32]));
        let (tx_hash, block_number, block_hash) = (TxHash([3; 32]), BlockNumber(40), BlockHash([4; 32]));
        let log = Log { topics, data, inclusion: Inclusion { tx_hash, block_number, block_hash } };
        let chain = FakeChain::sent_in(&[100]);
        chain.change(|state| state.logs = vec![log]);
        chain
    }

    fn search(from: u64, calls: u32) -> Search {
        let (contract, id) = (Address([8; 20]), Some(RecordId([1; 32])));
        Search { contract, id, from: BlockNumber(from), to: BlockNumber(100), calls }
    }

    #[tokio::test]
    async fn ranges_shrink_until_the_node_takes_them_and_go_down_to_the_record() {
        let (chain, reached) = (chain(), RefCell::new(Vec::new()));
        chain.change(|state| state.longest_range = Some(30));
        let found = find(&*chain, search(0, 99), |_| true, |block| reached.borrow_mut().push(block.0)).await.unwrap();
        assert_eq!(found.unwrap().inclusion.block_number, BlockNumber(40));
        assert_eq!(reached.into_inner(), [75, 49, 23], "and no further");
    }

    #[tokio::test]
    async fn what_is_not_wanted_or_below_the_range_is_not_found() {
        let chain = chain();
        assert_eq!(find(&*chain, search(0, 9), |_| false, |_| ()).await.unwrap(), None);
        assert_eq!(find(&*chain, search(41, 9), |_| true, |_| ()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_search_ends_after_its_calls_and_with_a_node_that_is_away() {
        let chain = chain();
        chain.change(|state| state.longest_range = Some(10));
        let ended = find(&*chain, search(0, 5), |_| true, |_| ()).await;
        assert!(matches!(ended, Err(SearchError::TooLong { calls: 5, .. })), "{ended:?}");
        chain.change(|state| state.is_away = true);
        assert!(matches!(find(&*chain, search(0, 5), |_| true, |_| ()).await, Err(SearchError::Chain(_))));
    }
}
