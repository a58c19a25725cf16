//! Reads what nodes say of their chain's forks, and of the transactions that they take at all.

use std::time::Duration;

use futures_util::future::join_all;
use jsonrpc_core::Value;
use tokio::time::timeout;

use crate::chain::NodeRules;
use crate::chain::client::NodeClient;
use crate::chain::endpoint::Endpoint;
use crate::policy::forks;

const CONFIG: &str = "eth_config";
const PROGRAM: &str = "web3_clientVersion";
/// For one answer: a lane waits for it.
const ASK_LIMIT: Duration = Duration::from_secs(2);

impl NodeClient {
    pub(super) async fn read_rules(&self) -> NodeRules {
        let serving = || self.endpoints.readers().filter(|endpoint| endpoint.health().is_verified());
        let forks = async {
            for endpoint in serving() {
                if let Some(config) = endpoint.ask_if_there(CONFIG).await {
                    return forks::read(&config);
                }
            }
            None
        };
        let programs = join_all(serving().map(|endpoint| endpoint.ask_if_there(PROGRAM)));
        let (forks, programs) = tokio::join!(forks, programs);
        let sizes = programs.into_iter().map(|program| program?.as_str().and_then(forks::most_bytes));
        // One endpoint that may take more is enough.
        let sizes: Option<Vec<u64>> = sizes.collect();
        NodeRules { forks, most_bytes: sizes.and_then(|sizes| sizes.into_iter().max()) }
    }
}

impl Endpoint {
    /// Makes a call without parameters that nothing depends on, unless the endpoint is known to lack it.
    async fn ask_if_there(&self, method: &'static str) -> Option<Value> {
        if self.lacks(method) {
            return None;
        }
        match timeout(ASK_LIMIT, self.ask(method, vec![])).await {
            Ok(Ok(answer)) => {
                self.record_method(method);
                Some(answer)
            }
            Ok(Err(error)) => {
                self.record_lack(method, &error);
                None
            }
            Err(_) => None,
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
