//! Checks that a remote signer's answer is exactly the transaction that it was asked for. Encoding: EIP-1559 and EIP-2718 for type 2, EIP-155 for
//! type 0; an `s` in the upper half of the curve's order is malleable, and nodes refuse it (EIP-2).

use bytes::Bytes;
use rlp::{Rlp, RlpStream};
use web3::signing::{keccak256, recover};

use crate::model::{Address, Fee, RawTransaction, TxHash, UnsignedTransaction, Wei};

/// First byte of a type 2 transaction.
const TYPE_2: u8 = 2;
/// Number of fields of a transaction without its signature.
const TYPE_2_FIELDS: &[&str] =
    &["chain id", "nonce", "tip", "highest fee", "gas", "receiver", "value", "calldata", "access list"];
const LEGACY_FIELDS: &[&str] = &["nonce", "gas price", "gas", "receiver", "value", "calldata"];
/// Half of the order of secp256k1, big-endian (SEC 2, 2.4.1).
const HALF_ORDER: [u8; 32] = [
    0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x5d, 0x57, 0x6e,
    0x73, 0x57, 0xa4, 0x50, 0x1d, 0xdf, 0xe9, 0x2f, 0x46, 0x68, 0x1b, 0x20, 0xa0,
];

struct Signature {
    /// 1 if the curve point's y is odd.
    parity: u8,
    r: Vec<u8>,
    s: Vec<u8>,
}

/// Returns the answer as a signed transaction, if it is `asked`, signed by `address`, in the one encoding there is for
/// that.
pub(super) fn checked(asked: &UnsignedTransaction, address: Address, raw: Bytes) -> Result<RawTransaction, String> {
    let (is_type_2, fields) = match (asked.fee, raw.split_first()) {
        (Fee::Eip1559 { .. }, Some((&TYPE_2, fields))) => (true, fields),
        (Fee::Eip1559 { .. }, _) => return Err("it is no transaction of type 2".to_owned()),
        (Fee::Legacy { .. }, _) => (false, raw.as_ref()),
    };
    let signature = signature(asked, is_type_2, fields)?;
    if encode(asked, Some(&signature)) != raw {
        return Err("it is not in the encoding that nodes take".to_owned());
    }
    if let Some(signer) = recovered(asked, &signature) {
        if signer == address {
            return Ok(RawTransaction { hash: TxHash(keccak256(&raw)), bytes: raw });
        }
        return Err(format!("it is signed by {signer}"));
    }
    Err("its signature is none".to_owned())
}

/// Reads the signature, once all other fields are found to be what was asked for.
fn signature(asked: &UnsignedTransaction, is_type_2: bool, fields: &[u8]) -> Result<Signature, String> {
    let unreadable = |_| "it cannot be read as a transaction".to_owned();
    let expected = encode(asked, None);
    let expected = Rlp::new(if is_type_2 { expected.get(1..).unwrap_or_default() } else { &expected });
    let (answered, names) = (Rlp::new(fields), if is_type_2 { TYPE_2_FIELDS } else { LEGACY_FIELDS });
    if answered.item_count().map_err(unreadable)? != names.len() + 3 {
        return Err("it has not the fields of a signed transaction".to_owned());
    }
    for (index, name) in names.iter().enumerate() {
        let (answered, expected) = (answered.at(index).map_err(unreadable)?, expected.at(index).map_err(unreadable)?);
        if answered.as_raw() != expected.as_raw() {
            return Err(format!("its {name} is not the one that was asked for"));
        }
    }
    let number = |index: usize| answered.val_at::<Vec<u8>>(names.len() + index).map_err(unreadable);
    let v: u64 = answered.val_at(names.len()).map_err(unreadable)?;
    let parity = match is_type_2 {
        true => Some(v),
        false => v.checked_sub(35).and_then(|v| v.checked_sub(asked.chain_id.checked_mul(2)?)),
    };
    let Some(parity @ 0..=1) = parity else {
        return Err(format!("its v is {v}: it is not for chain {}", asked.chain_id));
    };
    let (r, s) = (number(1)?, number(2)?);
    if padded(&s).is_none_or(|s| s > HALF_ORDER) {
        return Err("its signature is malleable: s is in the upper half".to_owned());
    }
    Ok(Signature { parity: u8::from(parity == 1), r, s })
}

fn recovered(asked: &UnsignedTransaction, signature: &Signature) -> Option<Address> {
    let bytes = [padded(&signature.r)?, padded(&signature.s)?].concat();
    let signer = recover(&keccak256(&encode(asked, None)), &bytes, i32::from(signature.parity)).ok()?;
    Some(Address(signer.0))
}

fn padded(number: &[u8]) -> Option<[u8; 32]> {
    let mut word = [0; 32];
    word.get_mut(32_usize.checked_sub(number.len())?..)?.copy_from_slice(number);
    Some(word)
}

/// Returns the bytes that nodes take; without a signature, those that are signed.
fn encode(transaction: &UnsignedTransaction, signature: Option<&Signature>) -> Vec<u8> {
    let UnsignedTransaction { chain_id, nonce, to, value: Wei(value), gas, data, fee } = transaction;
    let mut stream = RlpStream::new();
    stream.begin_unbounded_list();
    if let Fee::Eip1559 { max_fee, tip } = fee {
        stream.append(chain_id).append(&nonce.0).append(&tip.0).append(&max_fee.0);
    } else {
        stream.append(&nonce.0).append(&fee.ceiling().0);
    }
    stream
        .append(&gas.0)
        .append(&to.as_ref().map(Address::as_bytes).unwrap_or_default())
        .append(value)
        .append(&data.as_ref());
    match (fee, signature) {
        (Fee::Eip1559 { .. }, None) => _ = stream.begin_list(0),
        (Fee::Eip1559 { .. }, Some(Signature { parity, r, s })) => {
            stream.begin_list(0).append(parity).append(r).append(s);
        }
        (Fee::Legacy { .. }, None) => _ = stream.append(chain_id).append(&0_u8).append(&0_u8),
        (Fee::Legacy { .. }, Some(Signature { parity, r, s })) => {
            stream.append(&(u128::from(*chain_id) * 2 + 35 + u128::from(*parity))).append(r).append(s);
        }
    }
    stream.finalize_unbounded_list();
    let list = stream.out();
    let kind: &[u8] = if matches!(fee, Fee::Eip1559 { .. }) { &[TYPE_2] } else { &[] };
    [kind, &list].concat()
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;
    use crate::model::{Gas, Nonce};
    use crate::signer::{LocalSigner, Signer};

    const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
    const OTHER_KEY: &str = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";
    const TYPE_2_FEE: Fee = Fee::Eip1559 { max_fee: Wei(20_000_000_000), tip: Wei(0) };
    const LEGACY_FEE: Fee = Fee::Legacy { gas_price: Wei(1 << 70) };

    fn asked(fee: Fee) -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: 31337,
            nonce: Nonce(0),
            to: Some(Address([0x11; 20])),
            value: Wei(u128::MAX),
            gas: Gas(21_000),
            data: Bytes::from_static(b"data"),
            fee,
        }
    }

    fn signer(key: &str) -> LocalSigner {
        LocalSigner::from_hex(&SecretString::from(key)).unwrap()
    }

    async fn signed(key: &str, transaction: &UnsignedTransaction) -> RawTransaction {
        signer(key).sign(vec![transaction.clone().into()]).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn what_was_asked_for_is_taken_whatever_its_fields() {
        for fee in [TYPE_2_FEE, LEGACY_FEE, Fee::Legacy { gas_price: Wei(0) }] {
            for nonce in [0, 1, 127, 128, 255, 256, u64::MAX - 1] {
                for data in [&b""[..], &[0], &[0x80], &[7; 60_000]] {
                    let asked = UnsignedTransaction { nonce: Nonce(nonce), data: data.to_vec().into(), ..asked(fee) };
                    let signed = signed(KEY, &asked).await;
                    assert_eq!(checked(&asked, signer(KEY).address(), signed.bytes.clone()), Ok(signed));
                }
            }
        }
    }

    #[tokio::test]
    async fn whatever_is_another_transaction_is_named_and_refused() {
        for fee in [TYPE_2_FEE, LEGACY_FEE] {
            let is_type_2 = fee == TYPE_2_FEE;
            let asked = asked(fee);
            let dearer = if is_type_2 {
                Fee::Eip1559 { max_fee: Wei(20_000_000_001), tip: Wei(0) }
            } else {
                Fee::Legacy { gas_price: Wei(1) }
            };
            let cases = [
                (UnsignedTransaction { chain_id: 1, ..asked.clone() }, if is_type_2 { "chain id" } else { "v is" }),
                (UnsignedTransaction { nonce: Nonce(1), ..asked.clone() }, "nonce"),
                (UnsignedTransaction { to: Some(Address([0x12; 20])), ..asked.clone() }, "receiver"),
                (UnsignedTransaction { to: None, ..asked.clone() }, "receiver"),
                (UnsignedTransaction { value: Wei(0), ..asked.clone() }, "value"),
                (UnsignedTransaction { gas: Gas(21_001), ..asked.clone() }, "gas"),
                (UnsignedTransaction { data: Bytes::from_static(b"dat"), ..asked.clone() }, "calldata"),
                (UnsignedTransaction { fee: dearer, ..asked.clone() }, if is_type_2 { "fee" } else { "gas price" }),
            ];
            for (other, problem) in cases {
                let answer = signed(KEY, &other).await.bytes;
                let refused = checked(&asked, signer(KEY).address(), answer).unwrap_err();
                assert!(refused.contains(problem), "{other:?}: {refused}");
            }
            let by_another = signed(OTHER_KEY, &asked).await.bytes;
            let refused = checked(&asked, signer(KEY).address(), by_another).unwrap_err();
            assert_eq!(refused, format!("it is signed by {}", signer(OTHER_KEY).address()));
        }
    }

    /// C54: a malleable signature.
    #[tokio::test]
    async fn the_same_signature_with_the_other_s_is_refused() {
        // The order of secp256k1, whose half is above.
        let order: [u8; 32] = hex::decode("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141")
            .unwrap()
            .try_into()
            .unwrap();
        for fee in [TYPE_2_FEE, LEGACY_FEE] {
            let (asked, address) = (asked(fee), signer(KEY).address());
            let raw = signed(KEY, &asked).await.bytes;
            let is_type_2 = fee == TYPE_2_FEE;
            let mut signature = signature(&asked, is_type_2, if is_type_2 { &raw[1..] } else { &raw }).unwrap();
            let mut borrow = 0_i16;
            let low = padded(&signature.s).unwrap();
            let mut high = [0_u8; 32];
            for index in (0..32).rev() {
                let digit = i16::from(order[index]) - i16::from(low[index]) - borrow;
                (high[index], borrow) = (digit.rem_euclid(256) as u8, i16::from(digit < 0));
            }
            signature.s = high.to_vec();
            signature.parity = 1 - signature.parity;
            assert_eq!(recovered(&asked, &signature), Some(address), "it is a signature by the same key");
            let refused = checked(&asked, address, encode(&asked, Some(&signature)).into()).unwrap_err();
            assert!(refused.contains("malleable"), "{refused}");
        }
    }

    #[tokio::test]
    async fn bytes_that_were_touched_are_refused() {
        for fee in [TYPE_2_FEE, LEGACY_FEE] {
            let (asked, address) = (asked(fee), signer(KEY).address());
            let raw = signed(KEY, &asked).await.bytes;
            for length in 0..raw.len() {
                assert!(checked(&asked, address, raw.slice(..length)).is_err(), "cut to {length}");
            }
            assert!(checked(&asked, address, [&raw, &b"\0"[..]].concat().into()).is_err(), "longer");
            for index in 0..raw.len() {
                for bit in 0..8 {
                    let mut touched = raw.to_vec();
                    touched[index] ^= 1 << bit;
                    assert!(checked(&asked, address, touched.into()).is_err(), "bit {bit} of byte {index}");
                }
            }
        }
    }
}
