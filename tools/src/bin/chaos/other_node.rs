//! The first node, which at times answers like other nodes, gateways and providers do. What is marked as unwanted, neither node
//! ever takes.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::messages::UNWANTED;
use crate::schedule::{Fault, Planned};
use crate::support::rpc::hex;
use crate::support::{Reply, RpcClient, ScriptedNode};

/// Texts with which a node refuses for ever.
const REFUSALS: [&str; 3] = [
    "the sequencer does not like it",
    "transaction rejected by the filter: the target is not permitted",
    "invalid transaction: refused by policy",
];
/// Statuses of gateways and providers, with further header lines.
const STATUSES: [(u16, &str); 6] = [(500, ""), (503, ""), (429, "retry-after: 1\r\n"), (429, ""), (403, ""), (402, "")];
const OUTAGES: [(i64, &str); 7] = [
    (-32011, "no backend is currently healthy to serve traffic"),
    (-32603, "Internal error"),
    (-32002, "request timed out"),
    (-32000, "upstream request failed: connection reset"),
    (-32005, "daily request count exceeded, request rate limited"),
    (-32001, "Unable to complete request at this time."),
    (402, "Payment Required"),
];
const KNOWN: [&str; 5] = [
    "already known",
    "ALREADY_EXISTS: already known",
    "transaction already imported",
    "Transaction with the same hash was already imported.",
    "tx already in mempool",
];
/// Methods of which one fails while the others are answered.
const METHODS: [&str; 8] = [
    "eth_getTransactionReceipt",
    "eth_getBlockReceipts",
    "eth_getTransactionCount",
    "eth_getBlockByNumber",
    "eth_estimateGas",
    "eth_sendRawTransaction",
    "eth_maxPriorityFeePerGas",
    "eth_getBalance",
];

pub(crate) struct OtherNode {
    pub(crate) node: ScriptedNode,
    answer: Arc<Mutex<Option<(Fault, u64)>>>,
}

impl OtherNode {
    /// Answers as the real node does, until it is set otherwise.
    pub(crate) async fn start(real: RpcClient) -> Self {
        let answer = Arc::new(Mutex::new(None));
        let set = Arc::clone(&answer);
        let node = ScriptedNode::ruled(real.address(), move |request| {
            let answer = *set.lock().unwrap_or_else(PoisonError::into_inner);
            async move {
                match (answer, request["method"].as_str()) {
                    (Some((Fault::OtherHttpStatus, pick)), _) => outage(pick, &request),
                    (answer, Some(method)) => call(real, answer, method, &request["params"]).await,
                    _ => Reply::Pass,
                }
            }
        });
        Self { node: node.await, answer }
    }

    pub(crate) fn set(&self, planned: Option<&Planned>) {
        let answer = planned.map(|planned| (planned.fault, planned.pick));
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

/// Bytes of a transaction that Geth takes. Anvil takes more.
const LONGEST: usize = 128 * 1024;

/// Returns what every node answers to what it never takes.
pub(crate) fn refusal(method: &str, params: &Value) -> Option<Reply> {
    let raw = (method == "eth_sendRawTransaction").then(|| params[0].as_str())??;
    let length = (raw.len() / 2).saturating_sub(1);
    if length > LONGEST {
        return Some(Reply::refusal(format!("oversized data: transaction size {length}, limit {LONGEST}")));
    }
    let is_unwanted = UNWANTED.iter().any(|mark| raw.contains(mark));
    is_unwanted.then(|| Reply::refusal(of(&REFUSALS, raw.len() as u64)))
}

fn of<T: Copy>(all: &[T], pick: u64) -> T {
    all[(pick % all.len() as u64) as usize]
}

fn outage(pick: u64, request: &Value) -> Reply {
    let (status, headers) = of(&STATUSES, pick);
    let (code, text) = of(&OUTAGES, pick >> 8);
    let error = json!({ "jsonrpc": "2.0", "id": request["id"], "error": { "code": code, "message": text } });
    let body = if (pick >> 16).is_multiple_of(2) { error.to_string() } else { "<html>sorry</html>".to_owned() };
    Reply::Http(status, headers.to_owned(), body)
}

async fn call(real: RpcClient, answer: Option<(Fault, u64)>, method: &str, params: &Value) -> Reply {
    if let Some(refusal) = refusal(method, params) {
        return refusal;
    }
    let Some((fault, pick)) = answer else { return Reply::Pass };
    match (fault, method) {
        (Fault::OtherOutageWords, _) => {
            let (code, text) = of(&OUTAGES, pick);
            Reply::error(code, text)
        }
        (
            Fault::OtherNullReceipts,
            "eth_getTransactionReceipt" | "eth_getTransactionByHash" | "eth_getBlockReceipts",
        ) => Reply::Result(Value::Null),
        (Fault::OtherAlreadyKnown, "eth_sendRawTransaction") => {
            match real.call(method, params.clone()).await {
                Ok(_) => Reply::refusal(of(&KNOWN, pick)),
                // The real node's own words count.
                Err(_) => Reply::Pass,
            }
        }
        (Fault::OtherWrongCounts, "eth_getTransactionCount") => {
            match real.call(method, params.clone()).await.ok().as_ref().and_then(number) {
                Some(count) => Reply::Result(json!(hex(wrong_count(count, pick)))),
                None => Reply::Pass,
            }
        }
        (
            Fault::OtherGarbageNumbers,
            "eth_getTransactionCount"
            | "eth_estimateGas"
            | "eth_gasPrice"
            | "eth_maxPriorityFeePerGas"
            | "eth_blockNumber"
            | "eth_getBalance",
        ) => {
            let garbage =
                [json!("0x8000000000000000"), json!("0x"), json!(-1), json!(format!("0x1{:032}", 0)), json!({})];
            Reply::Result(garbage[(pick % garbage.len() as u64) as usize].clone())
        }
        (Fault::OtherCallFails, _) if method == of(&METHODS, pick) => {
            let (code, text) = of(&OUTAGES, pick >> 8);
            Reply::error(code, text)
        }
        _ => Reply::Pass,
    }
}

/// Off by thousands, by a few, or behind.
fn wrong_count(count: u64, pick: u64) -> u64 {
    match pick % 3 {
        0 => count + 1_000 + (pick >> 8) % 5_000,
        1 => count + 1 + (pick >> 8) % 5,
        _ => count.saturating_sub(1 + (pick >> 8) % 2_000),
    }
}

fn number(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::BufReader;
    use tokio::net::TcpStream;

    use super::*;
    use crate::support::{ACCOUNTS, Anvil, AnvilConfig, http, services_are_here};

    async fn ask(node: &OtherNode, method: &str, params: Value) -> Option<Value> {
        let mut client = BufReader::new(TcpStream::connect(node.node.address()).await.ok()?);
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answers = http::ask(&mut client, json!([call]).to_string().as_bytes()).await?;
        serde_json::from_slice::<Value>(&answers).ok()?.get(0).cloned()
    }

    fn planned(fault: Fault, pick: u64) -> Planned {
        Planned { at: Duration::ZERO, fault, length: Duration::ZERO, pick }
    }

    #[tokio::test]
    async fn each_answer_is_given_while_it_is_set_and_no_longer() {
        if !services_are_here() {
            return;
        }
        let real = Anvil::start(AnvilConfig::default()).await;
        let node = OtherNode::start(real.rpc()).await;
        let count = || ask(&node, "eth_getTransactionCount", json!([ACCOUNTS[0].0, "latest"]));
        let receipt = || ask(&node, "eth_getTransactionReceipt", json!([format!("0x{:064}", 1)]));
        assert_eq!(count().await.unwrap()["result"], "0x0");
        node.set(Some(&planned(Fault::OtherWrongCounts, 0)));
        assert_eq!(count().await.unwrap()["result"], "0x3e8");
        node.set(Some(&planned(Fault::OtherGarbageNumbers, 0)));
        assert_eq!(count().await.unwrap()["result"], "0x8000000000000000");
        node.set(Some(&planned(Fault::OtherOutageWords, 0)));
        assert_eq!(count().await.unwrap()["error"]["code"], -32011);
        node.set(Some(&planned(Fault::OtherCallFails, 2)));
        assert!(count().await.unwrap()["error"].is_object());
        assert!(receipt().await.unwrap()["error"].is_null(), "only one method fails");
        node.set(Some(&planned(Fault::OtherHttpStatus, 1)));
        assert!(count().await.is_none(), "no answer to a batch");
        node.set(None);
        assert_eq!(count().await.unwrap()["result"], "0x0");
    }

    #[test]
    fn what_is_marked_is_refused_and_nothing_else() {
        let sent = |raw: &str| refusal("eth_sendRawTransaction", &json!([raw]));
        for mark in UNWANTED {
            assert!(matches!(sent(&format!("0x02{mark}00")), Some(Reply::Error(-32000, _))));
        }
        assert!(
            matches!(sent(&format!("0x02{}", "00".repeat(LONGEST))), Some(Reply::Error(_, text)) if text.contains("oversized"))
        );
        assert!(sent("0x02badcafe").is_none());
        assert!(refusal("eth_call", &json!([UNWANTED[0]])).is_none());
    }
}
