//! An account's transaction counts, as each endpoint has them.

use std::time::Duration;

use futures_util::future::join_all;
use jsonrpc_core::Value;
use serde_json::json;
use tokio::time::timeout;

use crate::chain::calls::{count, tag};
use crate::chain::client::NodeClient;
use crate::chain::endpoint::Endpoint;
use crate::chain::{BlockTag, ChainError, CountAt, Result};
use crate::model::{Address, Nonce};

/// Timeout for each endpoint that is asked what its pool has: nothing waits long for that.
const POOL_LIMIT: Duration = Duration::from_secs(2);

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
                CountAt::Block(_) | CountAt::Pending => answer.await,
            };
            let counted = answer.and_then(|answer| count(answer).map_err(|detail| endpoint.nonsense(detail)));
            (endpoint.label().to_owned(), counted)
        };
        // What another chain has says nothing; what waits in a pool counts wherever it is, unless it has to be what was sent.
        let counts = |endpoint: &&Endpoint| match at {
            CountAt::Pending => true,
            CountAt::Block(_) => endpoint.health().is_verified(),
            CountAt::Pools => endpoint.health().is_verified() && endpoint.gets_transactions(),
        };
        join_all(self.endpoints.readers().filter(counts).map(ask)).await
    }
}

fn late(endpoint: &Endpoint) -> ChainError {
    let detail = format!("no answer within {POOL_LIMIT:?}");
    ChainError::Unreachable { endpoint: endpoint.label().to_owned(), detail }
}
