//! What nodes say of their chain's forks, and of the transactions that they take at all.

use futures_util::future::join_all;
use jsonrpc_core::Value;

use crate::chain::NodeClient;
use crate::policy::forks::{self, Forks};

/// Holds what is known before any transaction is refused. A node that does not say it is no worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeRules {
    /// By `eth_config` (EIP-7910).
    pub forks: Option<Forks>,
    /// The most bytes of a transaction that any endpoint takes.
    pub most_bytes: Option<u64>,
}

impl NodeClient {
    pub(super) async fn read_rules(&self) -> NodeRules {
        let config = self.ask("eth_config", vec![], Ok::<Value, _>).await;
        let serving = self.endpoints.all().iter().filter(|endpoint| endpoint.health().is_verified());
        let programs = serving.map(|endpoint| endpoint.ask::<Value>("web3_clientVersion", vec![]));
        let sizes =
            join_all(programs).await.into_iter().map(|program| program.ok()?.as_str().and_then(forks::most_bytes));
        // One endpoint that may take more is enough.
        let sizes: Option<Vec<u64>> = sizes.collect();
        NodeRules {
            forks: config.ok().and_then(|config| forks::read(&config)),
            most_bytes: sizes.and_then(|sizes| sizes.into_iter().max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::rpc::any_json;

    proptest! {
        #[test]
        fn whatever_eth_config_answers_is_read_or_is_nothing(answer in any_json(), part in any_json()) {
            let _ = forks::read(&answer);
            let current = json!({ "precompiles": { "ECREC": part }, "blobSchedule": answer, "systemContracts": part });
            let config = json!({ "current": current, "next": answer });
            prop_assert!(forks::read(&config).is_some());
        }
    }
}
