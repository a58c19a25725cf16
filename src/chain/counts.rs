//! Each endpoint's view of an account: its transaction counts, and a transaction in its pool.

use std::time::Duration;

use futures_util::future::join_all;
use jsonrpc_core::Value;
use serde_json::json;
use tokio::time::timeout;

use crate::chain::calls::{count, tag};
use crate::chain::client::NodeClient;
use crate::chain::endpoint::Endpoint;
use crate::chain::{BlockTag, ChainError, CountAt, Result};
use crate::model::{Address, Nonce, TxHash};

/// Timeout for each endpoint that is asked what its pool has: nothing waits long for that.
const POOL_LIMIT: Duration = Duration::from_secs(2);

fn gets_what_is_sent(endpoint: &&Endpoint) -> bool {
    endpoint.health().is_verified() && endpoint.gets_transactions()
}

impl NodeClient {
    pub(super) async fn counts_at(&self, account: Address, at: CountAt) -> Vec<(String, Result<Nonce>)> {
        let tagged = match at {
            CountAt::Block(number) => tag(BlockTag::Number(number)),
            CountAt::Pending | CountAt::Pools => json!("pending"),
        };
        let tagged = &tagged;
        let ask = |endpoint| async move {
            let params = vec![json!(account), tagged.clone()];
            let answer = Endpoint::ask::<Value>(endpoint, "eth_getTransactionCount", params);
            let answer = match at {
                CountAt::Pools => timeout(POOL_LIMIT, answer).await.unwrap_or_else(|_| Err(late(endpoint))),
                // An endpoint of another chain says nothing of this one. Its error shows that the others are not all there are.
                CountAt::Block(_) if !endpoint.health().is_verified() => Err(late(endpoint)),
                CountAt::Block(_) | CountAt::Pending => answer.await,
            };
            let counted = answer.and_then(|answer| count(answer).map_err(|detail| endpoint.nonsense(detail)));
            (endpoint.label().to_owned(), counted)
        };
        // What waits in a pool counts wherever it is, unless it has to be what was sent.
        let counts = |endpoint: &&Endpoint| match at {
            CountAt::Pending | CountAt::Block(_) => true,
            CountAt::Pools => gets_what_is_sent(endpoint),
        };
        join_all(self.endpoints.readers().filter(counts).map(ask)).await
    }

    pub(super) async fn is_in_all_pools(&self, hash: TxHash) -> bool {
        let shows = |endpoint| async move {
            let answer = Endpoint::ask::<Value>(endpoint, "eth_getTransactionByHash", vec![json!(hash)]);
            // One that a block has is in no pool any more.
            let waits = |found: &Value| found.is_object() && found.get("blockNumber").is_none_or(Value::is_null);
            timeout(POOL_LIMIT, answer).await.is_ok_and(|answer| answer.is_ok_and(|found| waits(&found)))
        };
        let shown = join_all(self.endpoints.readers().filter(gets_what_is_sent).map(shows)).await;
        !shown.is_empty() && shown.into_iter().all(|shows| shows)
    }
}

fn late(endpoint: &Endpoint) -> ChainError {
    let detail = format!("no answer within {POOL_LIMIT:?}");
    ChainError::Unreachable { endpoint: endpoint.label().to_owned(), detail }
}
