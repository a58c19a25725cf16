//! Reading a node's JSON: only the fields that matter, so that clients may differ in the rest. What nothing depends on may be
//! missing or of another type; a number that something depends on has bounds.

use bytes::Bytes;
use jsonrpc_core::Value;
use serde::Deserialize;

use crate::chain::scalars::{MOST, amount, bytes, hash, optional_price, place, quantity};
use crate::chain::{Header, Inclusion, Log, LogQuery, Receipt, Sent, SentInBlock, signature};
use crate::model::event::{FinalTransaction, L1Cost};
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, Topic, TxHash, Wei};

/// Members of an error's data in which clients put what a reverted call returned.
const REVERT_DATA: [&str; 5] = ["data", "result", "return", "output", "originalError"];

/// Returns what a reverted call returned. Clients put it into the error's data as such, behind a word, or in an object; old
/// Ganache in an object under the transaction's hash.
pub(super) fn revert_data(data: &Value) -> Option<Bytes> {
    revert_data_in(data, 0)
}

fn revert_data_in(data: &Value, depth: u8) -> Option<Bytes> {
    const DEEPEST: u8 = 3;
    match data {
        Value::String(text) => {
            let start = text.find("0x")?;
            hex::decode(text.get(start + 2..)?.trim_end()).ok().map(Bytes::from)
        }
        Value::Object(fields) if depth < DEEPEST => {
            let named = REVERT_DATA.iter().find_map(|name| revert_data_in(fields.get(*name)?, depth + 1));
            let nested = || fields.values().filter(|value| value.is_object());
            named.or_else(|| nested().find_map(|value| revert_data_in(value, depth + 1)))
        }
        Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

/// Holds the members of a block that are read. A missing one shows when it is needed.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HeaderFields {
    number: Value,
    hash: Value,
    parent_hash: Value,
    timestamp: Value,
    base_fee_per_gas: Value,
    gas_limit: Value,
    transactions: Value,
}

/// Returns a block's header; `None` is a node's `null`. A time or a limit that cannot be read decides nothing.
pub(super) fn header(fields: Option<HeaderFields>) -> Result<Option<Header>, String> {
    let Some(fields) = fields else { return Ok(None) };
    let wrong = |name: &str, value: &Value| format!("a block whose {name} is {value}");
    let height = place(&fields.number).ok_or_else(|| wrong("number", &fields.number))?;
    // Some chains have no limit, and write zero.
    let gas_limit = amount(&fields.gas_limit).filter(|limit| *limit > 0);
    Ok(Some(Header {
        number: BlockNumber(height),
        hash: hash(&fields.hash).ok_or_else(|| wrong("hash", &fields.hash))?,
        parent: hash(&fields.parent_hash).ok_or_else(|| wrong("parentHash", &fields.parent_hash))?,
        timestamp: amount(&fields.timestamp).map_or(0, seconds),
        base_fee: optional_price("a block whose baseFeePerGas", &fields.base_fee_per_gas)?,
        gas_limit: Gas(gas_limit.unwrap_or(MOST)),
        transactions: listed(&fields.transactions),
    }))
}

/// Returns a block's time in seconds. Some private chains count milliseconds, or nanoseconds (GoQuorum with Raft).
fn seconds(timestamp: u64) -> u64 {
    /// In seconds it is in the year 5138; in milliseconds it is in 1973.
    const LATEST: u64 = 100_000_000_000;
    let mut seconds = timestamp;
    while seconds > LATEST {
        seconds /= 1000;
    }
    seconds
}

/// Returns the hashes of a block's transactions, which some nodes give in full unasked. A list with anything else is none: what
/// it hides may be ours.
fn listed(transactions: &Value) -> Option<Vec<TxHash>> {
    let of = |transaction: &Value| hash(transaction).or_else(|| hash(transaction.get("hash")?));
    transactions.as_array()?.iter().map(of).collect()
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
    removed: Value,
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
        if fields.removed == Value::Bool(true) {
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

/// Holds the members of a receipt that are read. A missing one shows when the receipt is one of ours.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ReceiptFields {
    transaction_hash: Value,
    block_hash: Value,
    block_number: Value,
    status: Value,
    gas_used: Value,
    effective_gas_price: Value,
    l1_fee: Value,
    operator_fee_scalar: Value,
    operator_fee_constant: Value,
    da_footprint_gas_scalar: Value,
    gas_used_for_l1: Value,
}

impl ReceiptFields {
    /// Returns the block that it is of.
    pub(super) fn block(&self) -> Option<BlockHash> {
        hash(&self.block_hash)
    }

    pub(super) fn transaction(&self) -> Option<TxHash> {
        hash(&self.transaction_hash)
    }
}

/// Why a receipt says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoReceipt {
    /// Of a transaction that is in no block.
    Pending,
    /// From before Byzantium: it has a state root in place of a status.
    NoStatus,
    Unreadable(String),
}

/// Reads what a rollup took for L1. Fields that cannot be read are none: they are reported, and decide nothing.
fn l1_cost(fields: &ReceiptFields) -> L1Cost {
    let fee = quantity(&fields.l1_fee).map(|fee| Wei(fee).plus(operator_fee(fields)));
    L1Cost { fee, gas: amount(&fields.gas_used_for_l1).map(Gas) }
}

/// Computes what the chain's operator took, which receipts name by its two parameters: the specification of the OP stack, Isthmus,
/// "Operator Fee". Receipts since Jovian have the scalar of the data footprint, and that fork's formula holds for them.
fn operator_fee(fields: &ReceiptFields) -> Wei {
    const OF_JOVIAN: u128 = 100;
    const OF_ISTHMUS: u128 = 1_000_000;
    let gas = quantity(&fields.gas_used).unwrap_or_default();
    let scaled = gas.saturating_mul(quantity(&fields.operator_fee_scalar).unwrap_or_default());
    let by_gas = match quantity(&fields.da_footprint_gas_scalar) {
        Some(_) => scaled.saturating_mul(OF_JOVIAN),
        None => scaled / OF_ISTHMUS,
    };
    Wei(by_gas.saturating_add(quantity(&fields.operator_fee_constant).unwrap_or_default()))
}

/// Returns a receipt. The nonce is not in it and stays zero for the caller to set. Gas and price that cannot be read are zero and
/// none: they are reported, and decide nothing.
pub(super) fn receipt(fields: &ReceiptFields) -> Result<Receipt, NoReceipt> {
    let wrong = |name: &str, value: &Value| NoReceipt::Unreadable(format!("a receipt whose {name} is {value}"));
    if fields.block_number.is_null() && fields.transaction().is_some() {
        return Err(NoReceipt::Pending);
    }
    let height = place(&fields.block_number).ok_or_else(|| wrong("blockNumber", &fields.block_number))?;
    let transaction = FinalTransaction {
        tx_hash: fields.transaction().ok_or_else(|| wrong("transactionHash", &fields.transaction_hash))?,
        nonce: Default::default(),
        block_number: BlockNumber(height),
        block_hash: fields.block().ok_or_else(|| wrong("blockHash", &fields.block_hash))?,
        gas_used: Gas(amount(&fields.gas_used).unwrap_or_default()),
        effective_gas_price: quantity(&fields.effective_gas_price).map(Wei),
        l1: l1_cost(fields),
    };
    if fields.status.is_null() {
        return Err(NoReceipt::NoStatus);
    }
    let succeeded = fields.status.as_bool().or_else(|| Some(amount(&fields.status)? == 1));
    let succeeded = succeeded.ok_or_else(|| wrong("status", &fields.status))?;
    Ok(Receipt { transaction, succeeded })
}

/// Reads a node's answer as each of the shapes that are asked for, and returns whether it is any: for fuzzing.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_any(answer: &Value) -> bool {
    let (from, to) = (BlockNumber(0), BlockNumber(u64::MAX));
    let query = LogQuery { contract: Address([0; 20]), topics: Vec::new(), from, to };
    let entries = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let header = serde_json::from_value(answer.clone()).ok().and_then(|fields| header(Some(fields)).ok()).flatten();
    let receipt = serde_json::from_value(answer.clone()).ok().map(|fields: ReceiptFields| {
        let _ = (fields.block(), fields.transaction());
        receipt(&fields).is_ok()
    });
    let _ = (amount(answer), place(answer), revert_data(answer), created(answer.clone()).is_ok());
    let is_number = quantity(answer).is_some() || bytes(answer).is_some();
    let is_block = header.is_some() || matches!(sent_in(answer, Address([0; 20]), 1), Ok(Some(_)));
    is_number || is_block || receipt == Some(true) || (!entries.is_empty() && logs(entries, &query).is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::chain::scalars::FURTHEST;
    use crate::rpc::any_json;

    #[test]
    fn revert_data_are_found_wherever_clients_put_them() {
        let expected = Some(Bytes::from_static(&[8, 195]));
        for data in
            [json!("0x08c3"), json!("Reverted 0x08c3"), json!({"data": "0x08c3"}), json!({"data": {"data": "0x08c3"}})]
        {
            assert_eq!(revert_data(&data), expected, "{data}");
        }
        let hash = format!("0x{}", "ab".repeat(32));
        let ganache = json!({hash: {"error": "revert", "program_counter": 4, "return": "0x08c3"}, "stack": "at 0x", "name": "Oops"});
        assert_eq!(revert_data(&ganache), expected);
        assert_eq!(
            revert_data(&json!({"hash": "0x01", "programCounter": 4, "result": "0x08c3", "message": "revert"})),
            expected
        );
        for none in
            [json!(null), json!("0xzz"), json!({"message": "revert"}), json!([1]), json!({"a": {"b": {"c": {"d": 1}}}})]
        {
            assert_eq!(revert_data(&none), None, "{none}");
        }
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
        let fields: [(&Value, &str, Read<'_>, u64); 6] = [
            (&block, "number", &of_block, height),
            (&block, "number", &of_full, height),
            (&receipt_of, "blockNumber", &of_receipt, height),
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
        assert!(of_block(&with(&block, "baseFeePerGas", format!("{:#x}", u128::MAX))));
        for odd in ["0x100000000000000000000000000000000", "-0x1", "0x+1", "0x", ""] {
            assert!(!of_block(&with(&block, "baseFeePerGas", odd.to_owned())), "{odd}: not the same as none");
        }
        // Where nothing depends on a number, an odd one counts as unknown.
        let odd =
            [format!("{:#x}", MOST + 1), format!("{:#x}", u64::MAX), "-0x1".to_owned(), String::new(), "16".to_owned()];
        for odd in odd {
            let read = |field| {
                header(Some(HeaderFields::deserialize(with(&block, field, odd.clone())).unwrap())).unwrap().unwrap()
            };
            assert_eq!((read("timestamp").timestamp, read("gasLimit").gas_limit), (0, Gas(MOST)), "{odd}");
            let read =
                |field| receipt(&ReceiptFields::deserialize(with(&receipt_of, field, odd.clone())).unwrap()).unwrap();
            assert_eq!(read("gasUsed").transaction.gas_used, Gas(0), "{odd}");
            let price = read("effectiveGasPrice").transaction.effective_gas_price;
            assert!(price.is_none_or(|price| price.0 <= u128::from(u64::MAX)), "{odd}");
        }
    }

    /// OP stack: op-geth's receipts. Arbitrum: Nitro's. Both as their documentation gives them.
    #[test]
    fn what_a_rollup_took_for_l1_is_read_and_decides_nothing() {
        let receipt_of = json!({
            "transactionHash": TxHash([1; 32]), "blockHash": BlockHash([2; 32]), "blockNumber": "0x10", "status": "0x1",
            "gasUsed": "0x5208", "effectiveGasPrice": "0xf4265",
        });
        let with = |extra: Value| {
            let mut fields = receipt_of.clone();
            extra.as_object().unwrap().iter().for_each(|(name, value)| fields[name] = value.clone());
            receipt(&ReceiptFields::deserialize(fields).unwrap()).unwrap().transaction.l1
        };
        let optimism =
            json!({ "l1Fee": "0x2d2f52b4", "l1GasPrice": "0x4c9a5e6d", "l1GasUsed": "0x640", "l1FeeScalar": null });
        assert_eq!(with(optimism), L1Cost { fee: Some(Wei(0x2d2f_52b4)), gas: None });
        let operator = json!({ "l1Fee": "0x9", "operatorFeeScalar": "0xf4240", "operatorFeeConstant": "0x2" });
        assert_eq!(with(operator.clone()).fee, Some(Wei(9 + 21_000 + 2)));
        let mut of_jovian = operator;
        of_jovian["daFootprintGasScalar"] = json!("0x190");
        assert_eq!(with(of_jovian).fee, Some(Wei(9 + 21_000 * 1_000_000 * 100 + 2)));
        assert_eq!(
            with(json!({ "gasUsedForL1": "0x1a4", "l1BlockNumber": "0x1" })),
            L1Cost { fee: None, gas: Some(Gas(420)) }
        );
        for odd in [json!({}), json!({ "l1Fee": null }), json!({ "l1Fee": "much", "gasUsedForL1": [] })] {
            assert_eq!(with(odd), L1Cost::default());
        }
    }

    /// Hardhat, Hedera's relay, zk chains and private chains: blocks and receipts in the shapes that they give.
    #[test]
    fn what_nothing_depends_on_may_be_missing_or_of_another_type() {
        let (hash, tx) = (BlockHash([2; 32]), TxHash([1; 32]));
        let block = json!({"number": "0x10", "hash": hash, "parentHash": hash});
        let of = |extra: Value| {
            let mut block = block.clone();
            extra.as_object().unwrap().iter().for_each(|(name, value)| block[name] = value.clone());
            header(Some(HeaderFields::deserialize(block).unwrap())).unwrap().unwrap()
        };
        let least = of(json!({}));
        assert_eq!(
            (least.number, least.timestamp, least.gas_limit, least.base_fee),
            (BlockNumber(16), 0, Gas(MOST), None)
        );
        assert_eq!(of(json!({"number": 16, "timestamp": 1_700_000_000, "gasLimit": 5})).gas_limit, Gas(5));
        assert_eq!(of(json!({"gasLimit": "0x0"})).gas_limit, Gas(MOST), "no limit");
        for time in ["0x6553f100", "0x18bcfe56800", "0x60a24181e4000", "0x17979cfe362a0000"] {
            assert_eq!(of(json!({"timestamp": time})).timestamp, 1_700_000_000, "{time}");
        }
        let odd = json!({"size": null, "uncles": {}, "l1BatchNumber": null, "sealFields": ["0x"], "extraData": 7, "timestamp": [], "gasLimit": {}});
        assert_eq!(of(odd).transactions, None);
        assert_eq!(of(json!({"transactions": [tx, {"hash": tx, "type": "0x7e"}]})).transactions, Some(vec![tx, tx]));
        assert_eq!(of(json!({"transactions": [tx, 7]})).transactions, None, "it may hide one of ours");
        let receipt_of = |fields: Value| {
            let mut receipt = json!({"transactionHash": tx, "blockHash": hash, "blockNumber": "0x10", "status": "0x1"});
            fields.as_object().unwrap().iter().for_each(|(name, value)| receipt[name] = value.clone());
            super::receipt(&ReceiptFields::deserialize(receipt).unwrap())
        };
        let least =
            receipt_of(json!({"logs": null, "l1Fee": "0x1", "depositNonce": "0x1", "to": 7, "gasUsed": null})).unwrap();
        assert_eq!((least.succeeded, least.transaction.gas_used), (true, Gas(0)));
        for (status, succeeded) in
            [(json!(1), true), (json!(0), false), (json!(true), true), (json!("0x01"), true), (json!("0x0"), false)]
        {
            assert_eq!(
                receipt_of(json!({"status": status})).map(|receipt| receipt.succeeded),
                Ok(succeeded),
                "{status}"
            );
        }
        assert_eq!(receipt_of(json!({"blockNumber": null, "blockHash": null})), Err(NoReceipt::Pending));
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
        for missing in [json!(null), json!("0xzz"), json!([]), json!("success")] {
            fields["status"] = missing.clone();
            assert!(read(&fields).is_err(), "{missing}");
        }
        fields["status"] = json!(null);
        fields["root"] = json!(BlockHash([4; 32]));
        assert_eq!(read(&fields), Err(NoReceipt::NoStatus), "the chain is too old to say it");
    }

    /// Members that nothing depends on, as nodes may write them.
    fn with_odd(mut value: Value, names: &[&str], odd: &Value, others: &[(String, Value)]) -> Value {
        names.iter().for_each(|name| value[*name] = odd.clone());
        others.iter().for_each(|(name, other)| value[format!("x{name}")] = other.clone());
        value
    }

    proptest! {
        #[test]
        fn what_counts_is_read_whatever_stands_in_the_rest(
            odd in any_json(), others in proptest::collection::vec(("[a-z]{1,6}", any_json()), 0..4),
        ) {
            let (hash, tx, ours) = (BlockHash([2; 32]), TxHash([1; 32]), Address([7; 20]));
            let block = json!({"number": "0x10", "hash": hash, "parentHash": hash, "baseFeePerGas": "0x7"});
            let rest = ["timestamp", "gasLimit", "transactions", "uncles", "size", "difficulty", "miner"];
            let block = with_odd(block, &rest, &odd, &others);
            let read = header(Some(HeaderFields::deserialize(block).unwrap())).unwrap().unwrap();
            prop_assert_eq!((read.number, read.hash, read.parent, read.base_fee), (BlockNumber(16), hash, hash, Some(Wei(7))));
            prop_assert!(read.gas_limit > Gas(0) && read.gas_limit <= Gas(MOST) && read.timestamp <= MOST);

            let of = json!({"transactionHash": tx, "blockHash": hash, "blockNumber": "0x10", "status": "0x0"});
            let rest = ["gasUsed", "effectiveGasPrice", "logs", "logsBloom", "contractAddress", "type", "root", "to"];
            let read = receipt(&ReceiptFields::deserialize(with_odd(of, &rest, &odd, &others)).unwrap()).unwrap();
            prop_assert_eq!((read.succeeded, read.transaction.tx_hash, read.transaction.block_hash), (false, tx, hash));
            prop_assert!(read.transaction.gas_used <= Gas(MOST));

            let sent = json!({"from": ours, "nonce": "0x5", "hash": tx, "input": "0x01"});
            let sent = with_odd(sent, &["to", "value", "gas", "v", "r", "s", "type", "authorizationList"], &odd, &others);
            let full = json!({"number": "0x10", "hash": hash, "transactions": [sent]});
            let read = sent_in(&with_odd(full, &["size", "uncles"], &odd, &others), ours, 1).unwrap().unwrap();
            prop_assert_eq!((read.sent[0].nonce, read.sent[0].tx_hash, read.sent[0].is_signed), (Nonce(5), tx, false));

            let query = LogQuery { contract: ours, topics: vec![], from: BlockNumber(0), to: BlockNumber(99) };
            let entry = json!({
                "address": ours, "topics": [], "data": "0x01", "blockNumber": "0x10", "blockHash": hash, "transactionHash": tx
            });
            let removed = odd == json!(true);
            let read = logs(&[with_odd(entry, &["removed", "logIndex", "transactionIndex"], &odd, &others)], &query).unwrap();
            prop_assert_eq!(read.len(), usize::from(!removed));
        }

        #[test]
        fn whatever_comes_is_read_to_an_end(answer in any_json()) {
            let _ = HeaderFields::deserialize(answer.clone()).map(|fields| header(Some(fields)));
            let _ = ReceiptFields::deserialize(answer.clone()).map(|fields| receipt(&fields));
            let _ = sent_in(&answer, Address([7; 20]), 1);
            let _ = (created(answer.clone()), quantity(&answer), bytes(&answer));
            prop_assert!(revert_data(&answer).is_none_or(|data| answer.to_string().contains(&hex::encode(data))));
        }
    }
}
