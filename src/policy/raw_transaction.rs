//! A transaction that a message carries in its body: `{"to": …, "data": …, "value": …, "gas": …}`, read strictly.

use bytes::Bytes;
use serde_json::Value;

use crate::model::cause::cut;
use crate::model::{Address, Gas, Wei};
use crate::policy::abi::{AMOUNT, Misfit, SHOWN_BYTES, address, amount, shown};

const FIELDS: [&str; 4] = ["to", "data", "value", "gas"];
/// No transaction takes less, and no block has more.
const GAS: std::ops::RangeInclusive<u64> = 21_000..=1_000_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    pub to: Address,
    pub data: Bytes,
    pub value: Wei,
    pub gas: Option<Gas>,
}

/// Reads a transaction from a body that says what to call, with which value and gas.
///
/// # Errors
/// The first field that is missing, unknown or not what it must be, with what was found.
pub fn read(body: &Value) -> Result<Carried, Misfit> {
    let Some(fields) = body.as_object() else {
        return Err(Misfit::new("the transaction", "", "an object with to, data, value and maybe gas", shown(body)));
    };
    if let Some(stray) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let found = format!("{:?}", cut(stray.clone(), SHOWN_BYTES));
        return Err(Misfit::new("a field", "", "only to, data, value and gas", found));
    }
    let field = |name: &'static str, expected: &str| -> Result<(&Value, Misfit), Misfit> {
        let misfit = |found| Misfit::new(name, &format!("/{name}"), expected, found);
        let value = fields.get(name).ok_or_else(|| misfit("nothing".to_owned()))?;
        Ok((value, misfit(shown(value))))
    };
    let (to, misfit) =
        field("to", "an address as 0x and 40 hexadecimal digits, with the right checksum if in mixed case")?;
    let to = to.as_str().and_then(address).ok_or(misfit)?;
    let (data, misfit) = field("data", "bytes as 0x and hexadecimal digits")?;
    let data = data.as_str().and_then(|text| hex::decode(text.strip_prefix("0x")?).ok()).ok_or(misfit)?;
    let (value, misfit) = field("value", AMOUNT)?;
    let value = amount(value).ok_or(misfit)?;
    let gas = match fields.contains_key("gas") {
        false => None,
        true => {
            let (gas, misfit) = field("gas", "a number from 21000 to 1000000000")?;
            let gas = amount(gas).and_then(|gas| u64::try_from(gas).ok()).filter(|gas| GAS.contains(gas));
            Some(Gas(gas.ok_or(misfit)?))
        }
    };
    Ok(Carried { to: Address(to.into_array()), data: data.into(), value: Wei(value), gas })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TO: &str = "0x00000000000000000000000000000000000000aa";

    #[test]
    fn a_transaction_is_read_whole() {
        let read = |body: Value| read(&body).unwrap();
        let full = read(json!({"to": TO, "data": "0x0102", "value": "0x10", "gas": 50_000}));
        let expected = Carried {
            to: TO.parse().unwrap(),
            data: Bytes::from_static(&[1, 2]),
            value: Wei(16),
            gas: Some(Gas(50_000)),
        };
        assert_eq!(full, expected);
        let checksummed = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        assert_eq!(read(json!({"to": checksummed, "data": "0x", "value": 0})).gas, None);
    }

    #[test]
    fn what_is_wrong_names_the_field_and_what_was_found() {
        let body = |field: &str, value: Value| {
            let mut body = json!({"to": TO, "data": "0x", "value": "1"});
            body[field] = value;
            body
        };
        let cases = [
            (
                json!([1]),
                "the transaction at the start: expected an object with to, data, value and maybe gas, found [1]",
            ),
            (
                json!({"to": TO, "value": 1}),
                "data at /data: expected bytes as 0x and hexadecimal digits, found nothing",
            ),
            (
                body("gasPrice", json!(1)),
                "a field at the start: expected only to, data, value and gas, found \"gasPrice\"",
            ),
            (body("to", json!("0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed")), "to at /to: expected an address"),
            (body("to", json!(null)), "found null"),
            (body("to", json!("0xaa")), "found \"0xaa\""),
            (body("data", json!("0x1")), "data at /data: expected bytes"),
            (body("data", json!("00")), "found \"00\""),
            (body("value", json!(-1)), "value at /value: expected an amount in wei of at most 128 bits"),
            (body("value", json!(1.5)), "found 1.5"),
            (body("value", json!("1 ether")), "found \"1 ether\""),
            (body("gas", json!(20_999)), "gas at /gas: expected a number from 21000 to 1000000000, found 20999"),
            (body("gas", json!(null)), "found null"),
        ];
        for (body, text) in cases {
            let misfit = read(&body).unwrap_err().to_string();
            assert!(misfit.contains(text), "{misfit}");
        }
    }

    proptest! {
        #[test]
        fn no_json_makes_the_reader_panic(text in "[-0-9a-fx._\\[\\]{},:\"tovalug]{0,60}") {
            let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            let _ = read(&value);
            let _ = read(&json!({"to": TO, "data": "0x", "value": value}));
        }
    }
}
