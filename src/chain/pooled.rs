//! What waits at a nonce of an account: read from the node's pool, else from its pending block.

use jsonrpc_core::Value;
use serde_json::json;

use crate::chain::client::NodeClient;
use crate::chain::{ChainError, Pooled, Result, scalars};
use crate::model::{Address, Fee, Nonce, TxHash, Wei};

impl NodeClient {
    pub(super) async fn pooled_at(&self, account: Address, nonce: Nonce) -> Result<Option<Pooled>> {
        // What cannot be read shows nothing, and is no fault of the endpoint.
        match self.ask("txpool_contentFrom", vec![json!(account)], Ok::<Value, _>).await {
            Ok(content) => return Ok(at_nonce(&content, nonce)),
            Err(error @ ChainError::RateLimited { .. }) => return Err(error),
            // Few nodes serve their pool. The pending block holds what is executable.
            Err(_) => {}
        }
        let pending = self.ask("eth_getBlockByNumber", vec![json!("pending"), json!(true)], Ok::<Value, _>).await?;
        let is_it = |transaction: &&Value| {
            let sender = transaction.get("from").and_then(Value::as_str);
            let sender = sender.and_then(|text| text.to_lowercase().parse().ok());
            let at = transaction.get("nonce").and_then(scalars::place);
            sender == Some(account) && at == Some(nonce.0)
        };
        let transactions = pending.get("transactions").and_then(Value::as_array);
        Ok(transactions.and_then(|all| all.iter().find(is_it)).and_then(pooled))
    }
}

/// Finds a nonce in the answer of `txpool_contentFrom`.
fn at_nonce(content: &Value, nonce: Nonce) -> Option<Pooled> {
    let at = nonce.0.to_string();
    ["pending", "queued"].iter().find_map(|part| pooled(content.get(part)?.get(&at)?))
}

fn pooled(transaction: &Value) -> Option<Pooled> {
    let amount = |name| transaction.get(name).and_then(scalars::quantity).map(Wei);
    let tx_hash = transaction.get("hash")?.as_str()?.parse::<TxHash>().ok()?;
    let fee = match (amount("maxFeePerGas"), amount("maxPriorityFeePerGas")) {
        (Some(max_fee), Some(tip)) => Some(Fee::Eip1559 { max_fee, tip }),
        _ => amount("gasPrice").map(|gas_price| Fee::Legacy { gas_price }),
    };
    Some(Pooled { tx_hash, fee })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pooled_transaction_is_read_with_its_price() {
        let hash = TxHash([7; 32]);
        let of = |fields: Value| pooled(&fields).map(|found| (found.tx_hash, found.fee));
        let type_2 = json!({ "hash": hash, "gasPrice": "0x1", "maxFeePerGas": "0x9", "maxPriorityFeePerGas": "0x2" });
        assert_eq!(of(type_2), Some((hash, Some(Fee::Eip1559 { max_fee: Wei(9), tip: Wei(2) }))));
        let legacy = json!({ "hash": hash, "gasPrice": "0x5" });
        assert_eq!(of(legacy), Some((hash, Some(Fee::Legacy { gas_price: Wei(5) }))));
        assert_eq!(of(json!({ "hash": hash })), Some((hash, None)));
        assert_eq!(of(json!({ "gasPrice": "0x5" })), None);
        let content = json!({ "pending": { "3": { "hash": hash } }, "queued": { "7": { "hash": hash } } });
        let at = |nonce| at_nonce(&content, Nonce(nonce)).is_some();
        assert_eq!([3, 4, 7].map(at), [true, false, true]);
        assert_eq!(at_nonce(&Value::Null, Nonce(3)), None);
    }
}
