//! A second node: like the real one, until it has to lag behind it.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::other_node::refusal;
use crate::support::rpc::hex;
use crate::support::{Reply, RpcClient, ScriptedNode};

#[derive(Clone, Copy)]
pub(crate) struct Lag {
    /// The number of newest blocks that it does not know.
    pub(crate) blocks: u64,
    /// Takes transactions and passes them to no other node.
    pub(crate) swallows: bool,
}

pub(crate) struct LaggingNode {
    pub(crate) node: ScriptedNode,
    lag: Arc<Mutex<Option<Lag>>>,
}

impl LaggingNode {
    /// Not lagging yet.
    pub(crate) async fn start(real: RpcClient) -> Self {
        let lag = Arc::new(Mutex::new(None::<Lag>));
        let told = Arc::clone(&lag);
        let node = ScriptedNode::filtering(real.address(), move |method, params| {
            let lag = *told.lock().unwrap_or_else(PoisonError::into_inner);
            async move {
                match (refusal(&method, &params), lag) {
                    (Some(refusal), _) => refusal,
                    (None, Some(lag)) => lag.say(real, &method, params).await,
                    (None, None) => Reply::Pass,
                }
            }
        });
        Self { node: node.await, lag }
    }

    pub(crate) fn set(&self, lag: Option<Lag>) {
        *self.lag.lock().unwrap_or_else(PoisonError::into_inner) = lag;
    }
}

impl Lag {
    /// Where the real node does not know so old a state, because it has started anew, its present one has to do: like an
    /// address with several nodes behind it.
    async fn say(self, real: RpcClient, method: &str, mut params: Value) -> Reply {
        let Ok(head) = real.block_number().await else { return Reply::Pass };
        let newest = head.saturating_sub(self.blocks);
        match method {
            "eth_blockNumber" => return Reply::Result(json!(hex(newest))),
            // The hash of a transaction is that of its bytes.
            "eth_sendRawTransaction" if self.swallows => {
                return real.call("web3_sha3", params).await.map_or(Reply::Pass, Reply::Result);
            }
            "eth_sendRawTransaction" => return Reply::Pass,
            _ => {}
        }
        for param in params.as_array_mut().into_iter().flatten() {
            if matches!(param.as_str(), Some("latest" | "pending" | "safe" | "finalized")) {
                *param = json!(hex(newest));
            }
        }
        let asks_for_state =
            matches!(method, "eth_getTransactionCount" | "eth_call" | "eth_estimateGas" | "eth_getBalance");
        if asks_for_state && number(&params[1]).is_some_and(|asked| asked > newest) {
            return Reply::refusal("header not found".to_owned());
        }
        match real.call(method, params).await {
            Ok(result) if block_of(&result).is_some_and(|block| block > newest) => Reply::Result(Value::Null),
            Ok(result) => Reply::Result(result),
            Err(_) => Reply::Pass,
        }
    }
}

/// The height of a block, of a transaction, of a receipt, or of all receipts of a block.
fn block_of(result: &Value) -> Option<u64> {
    let result = result.get(0).unwrap_or(result);
    number(result.get("blockNumber").or_else(|| result.get("number"))?)
}

fn number(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;
    use tokio::net::TcpStream;

    use super::*;
    use crate::support::{ACCOUNTS, Anvil, AnvilConfig, http, services_are_here};

    struct Client(BufReader<TcpStream>);

    impl Client {
        /// The answers to a batch of calls.
        async fn ask(&mut self, calls: &[(&str, Value)]) -> Vec<Value> {
            let call = |(method, params): &(&str, Value)| json!({ "jsonrpc": "2.0", "id": 0, "method": method, "params": params });
            let batch = Value::Array(calls.iter().map(call).collect());
            let answer = http::ask(&mut self.0, batch.to_string().as_bytes()).await.unwrap();
            let answers: Vec<Value> = serde_json::from_slice(&answer).unwrap();
            answers.into_iter().map(|mut answer| answer["result"].take()).collect()
        }
    }

    #[tokio::test]
    async fn a_node_that_lags_knows_nothing_of_the_newest_blocks_and_then_everything_again() {
        if !services_are_here() {
            return;
        }
        let real = Anvil::start(AnvilConfig::default()).await;
        real.mine(5).await.unwrap();
        let [from, to] = [ACCOUNTS[0].0, ACCOUNTS[1].0];
        let transaction = json!({ "from": from, "to": to, "gas": "0x5208" });
        let hash = real.call("eth_sendTransaction", json!([transaction])).await.unwrap();
        // The answer may come before the block.
        while real.block_number().await.unwrap() < 6 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let node = LaggingNode::start(real.rpc()).await;
        let mut client = Client(BufReader::new(TcpStream::connect(node.node.address()).await.unwrap()));
        let calls = [
            ("eth_blockNumber", json!([])),
            ("eth_getBlockByNumber", json!(["latest", false])),
            ("eth_getBlockByNumber", json!(["0x6", false])),
            ("eth_getTransactionReceipt", json!([hash])),
            ("eth_getTransactionByHash", json!([hash])),
            ("eth_getBlockReceipts", json!(["0x6"])),
            ("eth_getTransactionCount", json!([from, "pending"])),
            ("eth_getTransactionCount", json!([from, "0x6"])),
            ("eth_chainId", json!([])),
        ];
        let known = client.ask(&calls).await;
        assert!(known.iter().all(|answer| !answer.is_null()), "{known:?}");
        node.set(Some(Lag { blocks: 2, swallows: true }));
        let mut answers = client.ask(&calls).await;
        answers[1] = answers[1]["number"].take();
        let null = Value::Null;
        let expected = [
            "0x4".into(),
            "0x4".into(),
            null.clone(),
            null.clone(),
            null.clone(),
            null.clone(),
            "0x0".into(),
            null,
            "0x7a69".into(),
        ];
        assert_eq!(answers, expected);
        // The hash of no bytes, from the Keccak reference.
        let swallowed = client.ask(&[("eth_sendRawTransaction", json!(["0x"]))]).await;
        assert_eq!(swallowed, ["0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"]);
        node.set(None);
        assert_eq!(client.ask(&calls).await, known);
    }
}
