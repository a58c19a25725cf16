//! How calls are written, and how answers that are a single value are read.

use jsonrpc_core::Value;
use serde_json::json;

use crate::chain::endpoint::{Endpoint, MethodCall};
use crate::chain::{BlockTag, Call, Header, Result, answers, scalars};
use crate::model::{Nonce, Wei};

pub(super) fn header_call(block: BlockTag) -> MethodCall {
    MethodCall::new("eth_getBlockByNumber", vec![tag(block), json!(false)])
}

pub(super) fn read_header(endpoint: &Endpoint, block: Value) -> Result<Option<Header>> {
    let fields = serde_json::from_value(block).map_err(|error| endpoint.nonsense(format!("a block: {error}")))?;
    answers::header(fields).map_err(|detail| endpoint.nonsense(detail))
}

pub(super) fn count(answer: Value) -> std::result::Result<Nonce, String> {
    scalars::place(&answer).map(Nonce).ok_or_else(|| format!("transaction count {answer}"))
}

fn is_hex(digits: &str) -> bool {
    !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

pub(super) fn tag(block: BlockTag) -> Value {
    match block {
        BlockTag::Latest => json!("latest"),
        BlockTag::Safe => json!("safe"),
        BlockTag::Finalized => json!("finalized"),
        BlockTag::Number(number) => json!(format!("{:#x}", number.0)),
    }
}

pub(super) fn call_object(call: &Call) -> Value {
    json!({
        "from": call.from,
        "to": call.to,
        "value": format!("{:#x}", call.value.0),
        "data": format!("0x{}", hex::encode(&call.data)),
    })
}

/// Reads a balance. One beyond 128 bits (test chains have them) counts as the largest amount.
pub(super) fn balance(answer: Value) -> std::result::Result<Wei, String> {
    let digits = answer.as_str().and_then(|text| text.strip_prefix("0x")).filter(|digits| is_hex(digits));
    let wei = digits.map(|digits| Wei(u128::from_str_radix(digits, 16).unwrap_or(u128::MAX)));
    wei.or_else(|| scalars::quantity(&answer).map(Wei)).ok_or_else(|| format!("balance {answer}"))
}
