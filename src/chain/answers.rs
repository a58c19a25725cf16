//! Reading a node's JSON: only the fields that matter, so that clients may differ in the rest.

use bytes::Bytes;
use jsonrpc_core::Value;
use serde::Deserialize;

use crate::chain::{Header, Inclusion, Log, LogQuery, Receipt, Sent, SentInBlock, signature};
use crate::model::event::FinalTransaction;
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, Topic, TxHash, Wei};

/// Returns a number as JSON-RPC writes it: `0x` and digits, without leading zeros (which are let through).
pub(super) fn quantity(value: &Value) -> Option<u128> {
    u128::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// The largest amount that is believed: the journal's integers hold no more.
const MOST: u64 = i64::MAX.unsigned_abs();
/// The largest height or count that is believed: what is added to one stays an amount.
const FURTHEST: u64 = MOST / 2;

/// Returns an amount of gas, seconds and the like. Beyond [`MOST`] a number is nonsense.
pub(super) fn amount(value: &Value) -> Option<u64> {
    u64::try_from(quantity(value)?).ok().filter(|amount| *amount <= MOST)
}

/// Returns a height, a count or a nonce. Beyond [`FURTHEST`] it is nonsense.
pub(super) fn place(value: &Value) -> Option<u64> {
    amount(value).filter(|place| *place <= FURTHEST)
}

/// Returns a price that may be left out. One beyond 128 bits is nonsense, not none.
fn optional_price(name: &str, value: &Value) -> Result<Option<Wei>, String> {
    if value.is_null() {
        return Ok(None);
    }
    quantity(value).map(|price| Some(Wei(price))).ok_or_else(|| format!("{name} is {value}"))
}

pub(super) fn bytes(value: &Value) -> Option<Bytes> {
    hex::decode(value.as_str()?.strip_prefix("0x")?).ok().map(Bytes::from)
}

/// Returns what a reverted call returned. Clients put it into the error's data as such, behind a word, or in an object.
pub(super) fn revert_data(data: &Value) -> Option<Bytes> {
    match data {
        Value::String(text) => {
            let start = text.find("0x")?;
            hex::decode(text.get(start + 2..)?).ok().map(Bytes::from)
        }
        Value::Object(fields) => fields.get("data").and_then(revert_data),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// What is read of a block's header.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeaderFields {
    number: Value,
    hash: BlockHash,
    parent_hash: BlockHash,
    timestamp: Value,
    #[serde(default)]
    base_fee_per_gas: Value,
    gas_limit: Value,
    #[serde(default)]
    transactions: Option<Vec<TxHash>>,
}

/// Returns a block's header; `None` is a node's `null`.
pub(super) fn header(fields: Option<HeaderFields>) -> Result<Option<Header>, String> {
    let Some(fields) = fields else { return Ok(None) };
    let wrong = |name: &str, value: &Value| format!("a block whose {name} is {value}");
    let number = |name, value| amount(value).ok_or_else(|| wrong(name, value));
    let height = place(&fields.number).ok_or_else(|| wrong("number", &fields.number))?;
    Ok(Some(Header {
        number: BlockNumber(height),
        hash: fields.hash,
        parent: fields.parent_hash,
        timestamp: number("timestamp", &fields.timestamp)?,
        base_fee: optional_price("a block whose baseFeePerGas", &fields.base_fee_per_gas)?,
        gas_limit: Gas(number("gasLimit", &fields.gas_limit)?),
        transactions: fields.transactions,
    }))
}

#[derive(Deserialize)]
struct FullBlockFields {
    number: Value,
    hash: BlockHash,
    transactions: Vec<Value>,
}

/// Returns an account's transactions in a block that was asked for with its transactions in full; the inner `None` is a
/// node's `null`. Of other transactions only the sender is read, since chains have types that are unknown here.
pub(super) fn sent_in(value: &Value, account: Address, chain_id: u64) -> Result<Option<SentInBlock>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let fields = FullBlockFields::deserialize(value).map_err(|error| format!("a block: {error}"))?;
    let number = place(&fields.number).ok_or_else(|| format!("a block whose number is {}", fields.number))?;
    let (mut sent, mut authorised) = (Vec::new(), Vec::new());
    for transaction in &fields.transactions {
        let text = |name: &str| transaction.get(name).and_then(Value::as_str);
        // Without a sender the account is unknown, so the block proves nothing.
        let from = text("from").and_then(|text| text.to_lowercase().parse::<Address>().ok());
        let from = from.ok_or("a block with a transaction that has no sender")?;
        let nonces = signature::authorised_by(transaction, account, chain_id);
        let hash = text("hash").and_then(|text| text.to_lowercase().parse().ok());
        authorised.extend(nonces.into_iter().filter_map(|nonce| Some((nonce, hash?))));
        if from == account {
            let nonce = transaction.get("nonce").and_then(place).ok_or("a transaction without a nonce")?;
            let data = transaction.get("input").or_else(|| transaction.get("data")).and_then(bytes);
            sent.push(Sent {
                nonce: Nonce(nonce),
                tx_hash: hash.ok_or("a transaction without a hash")?,
                to: text("to").and_then(|text| text.to_lowercase().parse().ok()),
                value: Wei(transaction.get("value").and_then(quantity).unwrap_or(u128::MAX)),
                data: data.ok_or("a transaction without calldata")?,
                is_signed: signature::is_signed_by(transaction, account, chain_id),
            });
        }
    }
    Ok(Some(SentInBlock { number: BlockNumber(number), hash: fields.hash, sent, authorised }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogFields {
    address: String,
    topics: Vec<Topic>,
    data: Value,
    block_number: Value,
    block_hash: BlockHash,
    transaction_hash: TxHash,
    #[serde(default)]
    removed: bool,
}

/// Returns the contract that a transaction has made, and its block, from its receipt; the inner `None` is a node's
/// `null`.
pub(super) fn created(receipt: Value) -> Result<Option<(Address, BlockNumber)>, String> {
    if receipt.is_null() {
        return Ok(None);
    }
    let field = |name: &str| receipt.get(name).unwrap_or(&Value::Null);
    if amount(field("status")) != Some(1) {
        return Err("the transaction that was to make the contract reverted".to_owned());
    }
    let address = field("contractAddress").as_str().and_then(|text| text.to_lowercase().parse().ok());
    let block = place(field("blockNumber")).map(BlockNumber);
    address.zip(block).map(Some).ok_or_else(|| "a receipt that names no contract".to_owned())
}

/// Returns the entries of an answer, each of which must be one that was asked for.
pub(super) fn logs(entries: &[Value], query: &LogQuery) -> Result<Vec<Log>, String> {
    let mut logs = Vec::with_capacity(entries.len());
    for entry in entries {
        let fields = LogFields::deserialize(entry).map_err(|error| format!("a log entry: {error}"))?;
        let number = place(&fields.block_number).ok_or("a log entry without a block")?;
        let fits = |place: usize, wanted: &Vec<Topic>| {
            wanted.is_empty() || fields.topics.get(place).is_some_and(|topic| wanted.contains(topic))
        };
        let is_asked = fields.address.to_lowercase().parse() == Ok(query.contract)
            && (query.from.0..=query.to.0).contains(&number)
            && query.topics.iter().enumerate().all(|(place, wanted)| fits(place, wanted));
        if !is_asked {
            return Err("a log entry that was not asked for".to_owned());
        }
        if fields.removed {
            continue;
        }
        logs.push(Log {
            topics: fields.topics,
            data: bytes(&fields.data).ok_or("a log entry without data")?,
            inclusion: Inclusion {
                tx_hash: fields.transaction_hash,
                block_number: BlockNumber(number),
                block_hash: fields.block_hash,
            },
        });
    }
    Ok(logs)
}

/// What is read of a receipt. What is missing shows when the receipt is one of ours.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ReceiptFields {
    transaction_hash: Value,
    block_hash: Value,
    block_number: Value,
    status: Value,
    gas_used: Value,
    effective_gas_price: Value,
}

impl ReceiptFields {
    /// Returns the block that it is of.
    pub(super) fn block(&self) -> Option<BlockHash> {
        self.block_hash.as_str()?.parse().ok()
    }

    pub(super) fn transaction(&self) -> Option<TxHash> {
        self.transaction_hash.as_str()?.parse().ok()
    }
}

/// Returns a receipt. The nonce is not in it and stays zero for the caller to set.
pub(super) fn receipt(fields: &ReceiptFields) -> Result<Receipt, String> {
    let wrong = |name: &str, value: &Value| format!("a receipt whose {name} is {value}");
    let number = |name, value| amount(value).ok_or_else(|| wrong(name, value));
    let height = place(&fields.block_number).ok_or_else(|| wrong("blockNumber", &fields.block_number))?;
    Ok(Receipt {
        transaction: FinalTransaction {
            tx_hash: fields.transaction().ok_or_else(|| wrong("transactionHash", &fields.transaction_hash))?,
            nonce: Default::default(),
            block_number: BlockNumber(height),
            block_hash: fields.block().ok_or_else(|| wrong("blockHash", &fields.block_hash))?,
            gas_used: Gas(number("gasUsed", &fields.gas_used)?),
            effective_gas_price: optional_price("a receipt whose effectiveGasPrice", &fields.effective_gas_price)?,
        },
        // A receipt from before Byzantium has a state root in its place; no chain that we write to is that old.
        succeeded: number("status", &fields.status)? == 1,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn revert_data_are_found_wherever_clients_put_them() {
        let expected = Some(Bytes::from_static(&[8, 195]));
        for data in
            [json!("0x08c3"), json!("Reverted 0x08c3"), json!({"data": "0x08c3"}), json!({"data": {"data": "0x08c3"}})]
        {
            assert_eq!(revert_data(&data), expected, "{data}");
        }
        assert_eq!(revert_data(&json!(null)), None);
        assert_eq!(revert_data(&json!("0xzz")), None);
    }

    #[test]
    fn of_a_full_block_only_what_the_account_sent_is_read() {
        let ours = Address([7; 20]);
        let transaction = |from: Address, nonce: &str| json!({"from": from, "nonce": nonce, "hash": TxHash([9; 32]), "to": Address([8; 20]), "input": "0x0102"});
        let mut block = json!({
            "number": "0x10", "hash": BlockHash([2; 32]),
            "transactions": [transaction(Address([1; 20]), "none"), transaction(ours, "0x5")]
        });
        let read = sent_in(&block, ours, 1).unwrap().unwrap();
        assert_eq!((read.number, read.hash), (BlockNumber(16), BlockHash([2; 32])));
        let sent = Sent {
            nonce: Nonce(5),
            tx_hash: TxHash([9; 32]),
            to: Some(Address([8; 20])),
            value: Wei(u128::MAX),
            data: Bytes::from_static(&[1, 2]),
            is_signed: false,
        };
        assert_eq!(read.sent, [sent]);
        assert_eq!(sent_in(&Value::Null, ours, 1), Ok(None));
        block["transactions"] = json!([TxHash([9; 32])]);
        assert!(sent_in(&block, ours, 1).is_err(), "hashes alone do not tell the sender");
    }

    /// Every field that reaches the journal, whose integers have 63 bits, or arithmetic.
    #[test]
    fn no_number_out_of_range_gets_past_the_seam() {
        let (hash, ours) = (BlockHash([2; 32]), Address([7; 20]));
        let block = json!({
            "number": "0x10", "hash": hash, "parentHash": hash, "timestamp": "0x1", "gasLimit": "0x1", "baseFeePerGas": "0x1"
        });
        let receipt_of = json!({
            "transactionHash": TxHash([1; 32]), "blockHash": hash, "blockNumber": "0x10", "gasUsed": "0x1",
            "status": "0x1", "effectiveGasPrice": "0x1"
        });
        let sent = json!({"from": ours, "nonce": "0x5", "hash": TxHash([9; 32]), "to": ours, "input": "0x"});
        let log = json!({
            "address": ours, "topics": [], "data": "0x", "blockNumber": "0x10", "blockHash": hash,
            "transactionHash": TxHash([1; 32])
        });
        let query = LogQuery { contract: ours, topics: vec![], from: BlockNumber(0), to: BlockNumber(u64::MAX) };
        let of_block = |value: &Value| header(Some(HeaderFields::deserialize(value).unwrap())).is_ok();
        let of_receipt = |value: &Value| receipt(&ReceiptFields::deserialize(value).unwrap()).is_ok();
        let of_sent = |value: &Value| {
            let block = json!({"number": "0x10", "hash": hash, "transactions": [value]});
            sent_in(&block, ours, 1).is_ok()
        };
        let of_full = |value: &Value| {
            sent_in(&json!({"number": value["number"], "hash": hash, "transactions": []}), ours, 1).is_ok()
        };
        let of_log = |value: &Value| logs(std::slice::from_ref(value), &query).is_ok();
        type Read<'r> = &'r dyn Fn(&Value) -> bool;
        let (height, amount) = (FURTHEST, MOST);
        let fields: [(&Value, &str, Read<'_>, u64); 9] = [
            (&block, "number", &of_block, height),
            (&block, "timestamp", &of_block, amount),
            (&block, "gasLimit", &of_block, amount),
            (&block, "number", &of_full, height),
            (&receipt_of, "blockNumber", &of_receipt, height),
            (&receipt_of, "gasUsed", &of_receipt, amount),
            (&sent, "nonce", &of_sent, height),
            (&log, "blockNumber", &of_log, height),
            (&receipt_of, "status", &of_receipt, amount),
        ];
        let with = |value: &Value, field: &str, number: String| {
            let mut changed = value.clone();
            changed[field] = json!(number);
            changed
        };
        for (value, field, read, most) in fields {
            assert!(read(value) && read(&with(value, field, format!("{most:#x}"))), "{field}");
            for number in [most + 1, 1 << 63, u64::MAX] {
                assert!(!read(&with(value, field, format!("{number:#x}"))), "{field} {number:#x}");
            }
            for odd in ["0x10000000000000000", "-0x1", "", "0x", "16"] {
                assert!(!read(&with(value, field, odd.to_owned())), "{field} {odd}");
            }
        }
        for (value, field, read) in
            [(&block, "baseFeePerGas", &of_block as Read<'_>), (&receipt_of, "effectiveGasPrice", &of_receipt)]
        {
            assert!(read(&with(value, field, format!("{:#x}", u128::MAX))), "{field}");
            for odd in ["0x100000000000000000000000000000000", "-0x1", "0x", ""] {
                assert!(!read(&with(value, field, odd.to_owned())), "{field} {odd}: not the same as none");
            }
        }
    }

    #[test]
    fn a_receipt_without_a_status_is_no_success() {
        let mut fields = json!({
            "transactionHash": TxHash([1; 32]), "blockHash": BlockHash([2; 32]), "blockNumber": "0x10",
            "gasUsed": "0x5208", "status": "0x1"
        });
        let read = |fields: &Value| receipt(&ReceiptFields::deserialize(fields).unwrap());
        assert!(read(&fields).unwrap().succeeded);
        fields["status"] = json!("0x0");
        assert!(!read(&fields).unwrap().succeeded);
        fields["status"] = json!(null);
        assert!(read(&fields).is_err());
    }
}
