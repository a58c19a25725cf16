//! Whose signature stands on a transaction or an authorisation that a node shows: rebuilt from its fields, so that a node
//! cannot make one up. Encodings: EIP-155, EIP-2930, EIP-1559, EIP-4844 and EIP-7702.

use jsonrpc_core::Value;
use rlp::RlpStream;
use web3::signing::{keccak256, recover};

use crate::chain::scalars;
use crate::model::{Address, Nonce, TxHash};

/// First byte of what an authorisation's authority signs (EIP-7702).
const AUTHORISATION: u8 = 5;
/// Type of a transaction that carries authorisations (EIP-7702).
const SET_CODE: u64 = 4;

/// Returns whether this transaction, in these very fields and with this hash, is signed by the account for this chain.
/// False for a type that is unknown here.
pub(super) fn is_signed_by(transaction: &Value, account: Address, chain_id: u64) -> bool {
    signer(transaction, chain_id) == Some(account)
}

fn signer(transaction: &Value, chain_id: u64) -> Option<Address> {
    let kind = match transaction.get("type") {
        None | Some(Value::Null) => 0,
        Some(kind) => number(kind)?,
    };
    let (r, s) = (bytes_of(transaction, "r")?, bytes_of(transaction, "s")?);
    let v = number(transaction.get("v").or_else(|| transaction.get("yParity"))?)?;
    let (parity, v_field, is_replayable) = match (kind, v) {
        // Before EIP-155: valid on every chain.
        (0, 27 | 28) => (v - 27, v, true),
        (0, _) => (v.checked_sub(35)?.checked_sub(chain_id.checked_mul(2)?)?, v, false),
        _ => (v, v, false),
    };
    if kind != 0 && number(transaction.get("chainId")?)? != chain_id {
        return None;
    }
    let mut fields = fields(transaction, kind)?;
    let prefix: &[u8] = if kind == 0 { &[] } else { &[u8::try_from(kind).ok()?] };
    let mut signed = fields.clone();
    if kind == 0 && !is_replayable {
        signed.extend([Field::Bytes(minimal(&chain_id.to_be_bytes())), Field::Bytes(vec![]), Field::Bytes(vec![])]);
    }
    fields.extend([Field::Bytes(minimal(&v_field.to_be_bytes())), Field::Bytes(r.clone()), Field::Bytes(s.clone())]);
    let hash: TxHash = transaction.get("hash")?.as_str()?.to_lowercase().parse().ok()?;
    if keccak256(&encoded(prefix, &fields)) != hash.0 {
        return None;
    }
    recovered(&encoded(prefix, &signed), parity, &r, &s)
}

/// Returns the nonces that this account authorises code for in a transaction of whichever sender. Where the account's count
/// goes past one of them in its block, the authorisation took it.
pub(super) fn authorised_by(transaction: &Value, account: Address, chain_id: u64) -> Vec<Nonce> {
    if transaction.get("type").and_then(number) != Some(SET_CODE) {
        return Vec::new();
    }
    let list = transaction.get("authorizationList").and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|one| authorised(one, account, chain_id)).collect()
}

/// Returns a number of a transaction's fields; the parity of a signature may hold a chain id.
fn number(value: &Value) -> Option<u64> {
    u64::try_from(scalars::quantity(value)?).ok()
}

fn authorised(authorisation: &Value, account: Address, chain_id: u64) -> Option<Nonce> {
    let number = |name: &str| number(authorisation.get(name)?);
    let of_chain = number("chainId")?;
    if of_chain != 0 && of_chain != chain_id {
        return None;
    }
    let nonce = number("nonce")?;
    let (r, s) = (bytes_of(authorisation, "r")?, bytes_of(authorisation, "s")?);
    let parity = number("yParity").or_else(|| number("v"))?;
    let fields =
        [bytes_of(authorisation, "chainId")?, address(authorisation, "address")?, bytes_of(authorisation, "nonce")?];
    let fields: Vec<_> = fields.into_iter().map(Field::Bytes).collect();
    let authority = recovered(&encoded(&[AUTHORISATION], &fields), parity, &r, &s)?;
    (authority == account).then_some(Nonce(nonce))
}

fn recovered(signed: &[u8], parity: u64, r: &[u8], s: &[u8]) -> Option<Address> {
    let mut signature = [0_u8; 64];
    signature.get_mut(32_usize.checked_sub(r.len())?..32)?.copy_from_slice(r);
    signature.get_mut(64_usize.checked_sub(s.len()).filter(|at| *at >= 32)?..)?.copy_from_slice(s);
    let parity = i32::try_from(parity).ok().filter(|parity| *parity <= 1)?;
    recover(&keccak256(signed), &signature, parity).ok().map(|signer| Address(signer.0))
}

/// A field of a transaction, as RLP has it.
#[derive(Clone)]
enum Field {
    Bytes(Vec<u8>),
    List(Vec<Field>),
}

/// Returns the fields of a transaction of this type in the order in which they are signed, without the signature.
fn fields(transaction: &Value, kind: u64) -> Option<Vec<Field>> {
    let number = |name: &str| bytes_of(transaction, name).map(Field::Bytes);
    let to = match transaction.get("to") {
        None | Some(Value::Null) => Vec::new(),
        Some(_) => address(transaction, "to")?,
    };
    let data = transaction.get("input").or_else(|| transaction.get("data")).and_then(scalars::bytes)?;
    let call = [number("gas")?, Field::Bytes(to), number("value")?, Field::Bytes(data.to_vec())];
    let price: &[&str] = match kind {
        0 => &["nonce", "gasPrice"],
        1 => &["chainId", "nonce", "gasPrice"],
        2..=4 => &["chainId", "nonce", "maxPriorityFeePerGas", "maxFeePerGas"],
        _ => return None,
    };
    let mut fields: Vec<_> = price.iter().map(|name| number(name)).collect::<Option<_>>()?;
    fields.extend(call);
    if kind > 0 {
        fields.push(access_list(transaction)?);
    }
    if kind == 3 {
        fields.push(number("maxFeePerBlobGas")?);
        fields.push(words(transaction.get("blobVersionedHashes")?)?);
    }
    if kind == SET_CODE {
        let list = transaction.get("authorizationList")?.as_array()?.iter();
        fields.push(Field::List(list.map(authorisation).collect::<Option<_>>()?));
    }
    Some(fields)
}

fn access_list(transaction: &Value) -> Option<Field> {
    let entries = match transaction.get("accessList") {
        None | Some(Value::Null) => return Some(Field::List(Vec::new())),
        Some(list) => list.as_array()?,
    };
    let entry = |entry: &Value| {
        let address = Field::Bytes(address(entry, "address")?);
        Some(Field::List(vec![address, words(entry.get("storageKeys")?)?]))
    };
    entries.iter().map(entry).collect::<Option<_>>().map(Field::List)
}

fn authorisation(one: &Value) -> Option<Field> {
    let number = |name: &str| bytes_of(one, name).map(Field::Bytes);
    let parity = number("yParity").or_else(|| number("v"))?;
    let address = Field::Bytes(address(one, "address")?);
    Some(Field::List(vec![number("chainId")?, address, number("nonce")?, parity, number("r")?, number("s")?]))
}

fn words(list: &Value) -> Option<Field> {
    let words = list.as_array()?.iter().map(|word| scalars::bytes(word).map(|word| Field::Bytes(word.to_vec())));
    words.collect::<Option<_>>().map(Field::List)
}

fn address(of: &Value, name: &str) -> Option<Vec<u8>> {
    scalars::bytes(of.get(name)?).map(|address| address.to_vec()).filter(|address| address.len() == 20)
}

/// Returns a number of JSON-RPC as RLP has it: without leading zeros.
fn bytes_of(of: &Value, name: &str) -> Option<Vec<u8>> {
    let digits = of.get(name)?.as_str()?.strip_prefix("0x")?;
    let even = if digits.len() % 2 == 0 { digits.to_owned() } else { format!("0{digits}") };
    hex::decode(even).ok().map(|bytes| minimal(&bytes)).filter(|bytes| bytes.len() <= 32)
}

fn minimal(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
}

fn encoded(prefix: &[u8], fields: &[Field]) -> Vec<u8> {
    let mut stream = RlpStream::new();
    append(&mut stream, fields);
    [prefix, &stream.out()].concat()
}

fn append(stream: &mut RlpStream, fields: &[Field]) {
    stream.begin_list(fields.len());
    for field in fields {
        match field {
            Field::Bytes(bytes) => {
                stream.append(bytes);
            }
            Field::List(fields) => append(stream, fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use web3::signing::{Key, SecretKey, SecretKeyRef};

    use super::*;

    const CHAIN: u64 = 31337;

    fn key() -> SecretKey {
        SecretKey::from_slice(&[0x11; 32]).unwrap()
    }

    fn account() -> Address {
        Address(SecretKeyRef::new(&key()).address().0)
    }

    fn quantity(bytes: &[u8]) -> String {
        format!("0x{}", hex::encode(bytes).trim_start_matches('0'))
    }

    fn base(kind: u64) -> Value {
        let address = Address([9; 20]);
        json!({
            "type": format!("{kind:#x}"), "chainId": format!("{CHAIN:#x}"), "nonce": "0x0", "gasPrice": "0x7",
            "maxFeePerGas": "0x9", "maxPriorityFeePerGas": "0x0", "gas": "0x5208", "to": address, "value": "0x100",
            "input": "0x0102", "accessList": [{"address": address, "storageKeys": [TxHash([3; 32])]}],
            "maxFeePerBlobGas": "0x1", "blobVersionedHashes": [TxHash([1; 32])], "authorizationList": [authorisation(5)]
        })
    }

    fn authorisation(nonce: u64) -> Value {
        let address = Address([8; 20]);
        let fields = [vec![], address.0.to_vec(), minimal(&nonce.to_be_bytes())].map(Field::Bytes);
        let signed = keccak256(&encoded(&[AUTHORISATION], &fields));
        let signature = SecretKeyRef::new(&key()).sign_message(&signed).unwrap();
        json!({
            "chainId": "0x0", "address": address, "nonce": format!("{nonce:#x}"),
            "yParity": format!("{:#x}", signature.v), "r": quantity(&signature.r.0), "s": quantity(&signature.s.0)
        })
    }

    /// A transaction of this type as a node shows it.
    fn signed(kind: u64) -> Value {
        let mut transaction = base(kind);
        let prefix: &[u8] = if kind == 0 { &[] } else { &[kind as u8] };
        let mut fields = fields(&transaction, kind).unwrap();
        let mut payload = fields.clone();
        if kind == 0 {
            payload.extend([minimal(&CHAIN.to_be_bytes()), vec![], vec![]].map(Field::Bytes));
        }
        let signature = SecretKeyRef::new(&key()).sign_message(&keccak256(&encoded(prefix, &payload))).unwrap();
        let v = if kind == 0 { 35 + 2 * CHAIN + signature.v } else { signature.v };
        let (r, s) = (minimal(&signature.r.0), minimal(&signature.s.0));
        fields.extend([minimal(&v.to_be_bytes()), r.clone(), s.clone()].map(Field::Bytes));
        transaction["v"] = json!(format!("{v:#x}"));
        transaction["r"] = json!(quantity(&r));
        transaction["s"] = json!(quantity(&s));
        transaction["hash"] = json!(TxHash(keccak256(&encoded(prefix, &fields))));
        transaction
    }

    #[test]
    fn the_signature_of_every_type_is_checked_over_every_field() {
        for kind in 0..=4 {
            let transaction = signed(kind);
            assert!(is_signed_by(&transaction, account(), CHAIN), "type {kind}");
            assert!(!is_signed_by(&transaction, Address([1; 20]), CHAIN), "another account");
            assert!(!is_signed_by(&transaction, account(), CHAIN + 1), "another chain");
            for (field, value) in
                [("nonce", "0x1"), ("input", "0x0103"), ("value", "0x0"), ("gas", "0x5209"), ("r", "0x1")]
            {
                let mut changed = transaction.clone();
                changed[field] = json!(value);
                assert!(!is_signed_by(&changed, account(), CHAIN), "type {kind}, another {field}");
            }
            let mut changed = transaction.clone();
            changed["hash"] = json!(TxHash([1; 32]));
            assert!(!is_signed_by(&changed, account(), CHAIN), "type {kind}, another hash");
        }
        let unknown =
            json!({ "type": "0x7e", "hash": TxHash([1; 32]), "nonce": "0x0", "r": "0x1", "s": "0x1", "v": "0x0" });
        assert!(!is_signed_by(&unknown, account(), CHAIN));
    }

    #[test]
    fn an_authorisation_is_its_authoritys_whoever_sends_it() {
        let transaction = signed(4);
        assert_eq!(authorised_by(&transaction, account(), CHAIN), [Nonce(5)]);
        assert_eq!(authorised_by(&transaction, Address([1; 20]), CHAIN), []);
        let mut changed = transaction.clone();
        changed["authorizationList"][0]["nonce"] = json!("0x6");
        assert_eq!(authorised_by(&changed, account(), CHAIN), [], "the signature is not over this nonce");
        changed = transaction;
        changed["authorizationList"][0]["chainId"] = json!("0x1");
        assert_eq!(authorised_by(&changed, account(), CHAIN), [], "for another chain");
        assert_eq!(authorised_by(&signed(2), account(), CHAIN), []);
    }
}
