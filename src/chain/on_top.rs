//! The gas of a call on top of transactions that are in no block yet: `eth_simulateV1`, which Geth has from version 1.14 on.
//! <https://github.com/ethereum/execution-apis/blob/main/src/eth/execute.yaml>

use jsonrpc_core::Value;
use serde_json::json;

use crate::chain::calls::call_object;
use crate::chain::client::NodeClient;
use crate::chain::endpoint::{Endpoint, MethodCall, Order};
use crate::chain::error::{SIMULATE, unsupported};
use crate::chain::faults::first_failure;
use crate::chain::route::Route;
use crate::chain::{Call, ChainError, OnTop, Result, answers, scalars};
use crate::model::Gas;

/// Holds what a call may need beyond the gas that it used, as a percentage of that: nothing; what calls of calls keep back (EIP-150) and
/// refunds hide (EIP-3529); and more.
const SHARES: [u64; 3] = [100, 135, 200];

/// The outcome of a simulated call.
#[derive(Debug, Clone, PartialEq)]
enum Ran {
    Used(Gas),
    /// Ran, and not with as much gas as it had used, nor with twice that.
    Unclear,
    Failed {
        code: i64,
        message: String,
        data: Option<bytes::Bytes>,
    },
}

impl NodeClient {
    /// Returns the gas of a call on top of others. The error of a reverted call is the node's; any other says that no endpoint
    /// simulates this.
    pub(super) async fn estimated_on_top(&self, on_top: &OnTop) -> Result<Gas> {
        let mut route = Route::new(&self.endpoints);
        while let Some(endpoint) = route.next().await {
            if endpoint.lacks(SIMULATE) {
                continue;
            }
            match endpoint.simulate(on_top).await {
                Ok(Ran::Used(gas)) => return Ok(gas),
                Ok(Ran::Unclear) => return Err(unsupported()),
                Ok(Ran::Failed { code, message, data }) => {
                    return Err(ChainError::Node { endpoint: endpoint.label().to_owned(), code, message, data });
                }
                Err(error @ ChainError::Node { .. }) => endpoint.record_lack(SIMULATE, &error),
                Err(error) => drop(route.accept_call::<()>(endpoint, Err(error)).await),
            }
        }
        Err(unsupported())
    }
}

impl Endpoint {
    /// Runs the call with all gas that there is, and then with less: what it used may not be enough to run.
    async fn simulate(&self, on_top: &OnTop) -> Result<Ran> {
        let answer = self.ask::<Value>(SIMULATE, vec![request(on_top, None), json!("latest")]).await?;
        self.record_method(SIMULATE);
        let used = match self.read_last(&answer)? {
            Ran::Used(used) => used,
            other @ (Ran::Unclear | Ran::Failed { .. }) => return Ok(other),
        };
        let tries = SHARES.map(|share| Gas(used.0.saturating_mul(share) / 100));
        let call = |gas: &Gas| MethodCall::new(SIMULATE, vec![request(on_top, Some(*gas)), json!("latest")]);
        let answers = self.ask_many(&tries.iter().map(call).collect::<Vec<_>>(), Order::Any).await;
        if let Some(failure) = first_failure(&answers) {
            return Err(failure.clone());
        }
        let runs =
            |answer: Result<Value>| matches!(answer.and_then(|answer| self.read_last(&answer)), Ok(Ran::Used(_)));
        let enough = tries.into_iter().zip(answers).find_map(|(gas, answer)| runs(answer).then_some(gas));
        Ok(enough.map_or(Ran::Unclear, Ran::Used))
    }

    /// Reads the outcome of the last call of the last block.
    fn read_last(&self, answer: &Value) -> Result<Ran> {
        let last = |list: &Value| list.as_array().and_then(|list| list.last()).cloned();
        let ran = last(answer).and_then(|block| last(block.get("calls")?)).and_then(|call| outcome(&call));
        ran.ok_or_else(|| self.nonsense(format!("{SIMULATE}: {answer}")))
    }
}

fn outcome(call: &Value) -> Option<Ran> {
    let error = call.get("error").filter(|error| !error.is_null());
    let status = call.get("status")?;
    let has_run = status.as_bool().or_else(|| Some(scalars::quantity(status)? == 1))?;
    if has_run && error.is_none() {
        return scalars::amount(call.get("gasUsed")?).map(|gas| Ran::Used(Gas(gas)));
    }
    let error = error?;
    let of_call = call.get("returnData").filter(|data| data.as_str().is_some_and(|text| text.len() > 2));
    let data = of_call.or_else(|| error.get("data")).and_then(answers::revert_data);
    let message = error.get("message").and_then(Value::as_str).unwrap_or("the call fails").to_owned();
    Some(Ran::Failed { code: error.get("code").and_then(Value::as_i64).unwrap_or_default(), message, data })
}

/// Writes the blocks to simulate: the transactions before it, as many in each as fit, and the call in one of its own.
fn request(on_top: &OnTop, gas: Option<Gas>) -> Value {
    let OnTop { before, call, block_gas, .. } = on_top;
    let mut blocks: Vec<(u64, Vec<Value>)> = Vec::new();
    for (earlier, gas) in before {
        let object = with_gas(earlier, Some(*gas));
        match blocks.last_mut() {
            Some((sum, calls)) if sum.saturating_add(gas.0) <= block_gas.0 => {
                *sum += gas.0;
                calls.push(object);
            }
            _ => blocks.push((gas.0, vec![object])),
        }
    }
    let calls = blocks.into_iter().map(|(_, calls)| calls).chain([vec![with_gas(call, gas)]]);
    let blocks: Vec<_> = calls.map(|calls| json!({ "calls": calls })).collect();
    json!({ "blockStateCalls": blocks, "validation": false, "traceTransfers": false })
}

fn with_gas(call: &Call, gas: Option<Gas>) -> Value {
    let mut object = call_object(call);
    if let (Some(fields), Some(gas)) = (object.as_object_mut(), gas) {
        fields.insert("gas".to_owned(), format!("{:#x}", gas.0).into());
    }
    // Some know the standard's name only.
    if let Some(fields) = object.as_object_mut()
        && let Some(data) = fields.remove("data")
    {
        fields.insert("input".to_owned(), data);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Address, Wei};

    fn call(number: u8) -> Call {
        Call { from: Address([1; 20]), to: Address([number; 20]), value: Wei(0), data: bytes::Bytes::from_static(b"x") }
    }

    #[test]
    fn the_call_comes_last_and_those_before_it_fill_blocks_in_their_order() {
        let before = (1..=5).map(|number| (call(number), Gas(40))).collect();
        let on_top = OnTop { before, call: call(9), block_gas: Gas(100), is_complete: true };
        let request = request(&on_top, Some(Gas(7)));
        let of_block = |block: &Value| -> Vec<String> {
            let calls = block["calls"].as_array().unwrap().iter();
            calls
                .map(|call| format!("{}:{}", &call["to"].as_str().unwrap()[40..], call["gas"].as_str().unwrap()))
                .collect()
        };
        let blocks: Vec<_> = request["blockStateCalls"].as_array().unwrap().iter().map(of_block).collect();
        let expected = [vec!["01:0x28", "02:0x28"], vec!["03:0x28", "04:0x28"], vec!["05:0x28"], vec!["09:0x7"]];
        assert_eq!(blocks, expected);
        assert_eq!(request["blockStateCalls"][0]["calls"][0]["input"], "0x78");
    }

    #[test]
    fn outcomes_are_read_as_clients_write_them() {
        let failed = |message: &str, data: Option<&'static [u8]>| {
            Some(Ran::Failed { code: 3, message: message.to_owned(), data: data.map(bytes::Bytes::from_static) })
        };
        for (call, expected) in [
            (
                json!({"status": "0x1", "gasUsed": "0x5208", "returnData": "0x", "logs": []}),
                Some(Ran::Used(Gas(21_000))),
            ),
            (json!({"status": true, "gasUsed": "0x5208", "error": null}), Some(Ran::Used(Gas(21_000)))),
            (
                json!({"status": "0x0", "gasUsed": "0x1", "returnData": "0x01", "error": {"code": 3, "message": "execution reverted"}}),
                failed("execution reverted", Some(&[1])),
            ),
            (
                json!({"status": "0x0", "returnData": "0x", "error": {"code": 3, "message": "execution reverted", "data": "0x02"}}),
                failed("execution reverted", Some(&[2])),
            ),
            (
                json!({"status": "0x0", "error": {"code": 3, "message": "execution reverted"}}),
                failed("execution reverted", None),
            ),
            (json!({"status": "0x1", "gasUsed": "0x8000000000000000"}), None),
            (json!({"status": "0x0"}), None),
            (json!({}), None),
        ] {
            assert_eq!(outcome(&call), expected, "{call}");
        }
    }
}
