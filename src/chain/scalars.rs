//! Single values of a node's JSON: numbers, bytes, hashes. A number that something depends on has bounds.

use bytes::Bytes;
use jsonrpc_core::Value;

use crate::model::Wei;

/// Returns a number as JSON-RPC writes it: `0x` and digits, without leading zeros (which are let through); or as plain JSON.
pub(super) fn quantity(value: &Value) -> Option<u128> {
    match value {
        Value::String(text) => {
            let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
            // The parser would take a sign.
            let is_plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            u128::from_str_radix(digits, 16).ok().filter(|_| is_plain)
        }
        Value::Number(number) => number.as_u64().map(u128::from),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The largest amount that is believed: the journal's integers hold no more.
pub(super) const MOST: u64 = i64::MAX.unsigned_abs();
/// The largest height or count that is believed: what is added to one stays an amount.
pub(super) const FURTHEST: u64 = MOST / 2;

/// Returns an amount of gas, seconds and the like. Beyond [`MOST`] a number is nonsense.
pub(super) fn amount(value: &Value) -> Option<u64> {
    u64::try_from(quantity(value)?).ok().filter(|amount| *amount <= MOST)
}

/// Returns a height, a count or a nonce. Beyond [`FURTHEST`] it is nonsense.
pub(super) fn place(value: &Value) -> Option<u64> {
    amount(value).filter(|place| *place <= FURTHEST)
}

/// Returns a price that may be left out. One beyond 128 bits is nonsense, not none.
pub(super) fn optional_price(name: &str, value: &Value) -> Result<Option<Wei>, String> {
    if value.is_null() {
        return Ok(None);
    }
    quantity(value).map(|price| Some(Wei(price))).ok_or_else(|| format!("{name} is {value}"))
}

pub(super) fn bytes(value: &Value) -> Option<Bytes> {
    hex::decode(value.as_str()?.strip_prefix("0x")?).ok().map(Bytes::from)
}

/// Returns a hash, in capitals or not.
pub(super) fn hash<T: std::str::FromStr>(value: &Value) -> Option<T> {
    value.as_str()?.parse().ok()
}
