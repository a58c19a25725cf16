//! Errors of contracts by their names, and calls and errors as text.

use alloy_dyn_abi::{DynSolType, DynSolValue, Specifier};
use alloy_json_abi::{Error as AbiError, JsonAbi, Param};
use serde_json::Value;

use crate::model::text::placed_json_fault;

pub(super) fn abi_of(file: &str) -> Result<JsonAbi, String> {
    let json: Value =
        serde_json::from_str(file).map_err(|error| format!("is not JSON: {}", placed_json_fault(&error)))?;
    let list = json.get("abi").cloned().unwrap_or(json);
    serde_json::from_value(list).map_err(|error| format!("is no ABI: {error}"))
}

/// Errors of contracts, as revert data hold them.
#[derive(Debug, Clone, Default)]
pub struct Errors(Vec<AbiError>);

impl Errors {
    /// Parses an error's signature, with or without names: `InsufficientBalance(uint256 available, uint256 required)`.
    pub fn add(&mut self, signature: &str) -> Result<(), String> {
        let error = AbiError::parse(signature).map_err(|error| format!("is no signature of an error: {error}"))?;
        self.0.push(error);
        Ok(())
    }

    /// Returns the errors of an ABI file, and none for a file that cannot be read.
    pub fn add_file(&mut self, file: &str) {
        if let Ok(abi) = abi_of(file) {
            self.0.extend(abi.errors().cloned());
        }
    }

    pub fn extend(&mut self, others: &Self) {
        self.0.extend(others.0.iter().cloned());
    }

    /// Returns the error in these revert data with its arguments, if it is a known one.
    pub fn decode(&self, data: &[u8]) -> Option<String> {
        let (selector, arguments) = data.split_first_chunk::<4>()?;
        let mut known = self.0.iter().filter(|error| error.selector().0 == *selector);
        known.find_map(|error| decoded(&error.name, &error.inputs, arguments))
    }
}

/// Returns a name with its arguments, decoded: `transfer(to: 0x…, amount: 5)`.
pub(super) fn decoded(name: &str, inputs: &[Param], arguments: &[u8]) -> Option<String> {
    let kinds = inputs.iter().map(Specifier::<DynSolType>::resolve).collect::<Result<Vec<_>, _>>().ok()?;
    let DynSolValue::Tuple(values) = DynSolType::Tuple(kinds).abi_decode_params(arguments).ok()? else { return None };
    let parts = inputs.iter().zip(&values).map(|(input, value)| match input.name.as_str() {
        "" => text_of(value),
        name => format!("{name}: {}", text_of(value)),
    });
    Some(format!("{name}({})", parts.collect::<Vec<_>>().join(", ")))
}

/// Returns a value as people write it.
fn text_of(value: &DynSolValue) -> String {
    let list = |values: &[DynSolValue]| values.iter().map(text_of).collect::<Vec<_>>().join(", ");
    match value {
        DynSolValue::Bool(value) => value.to_string(),
        DynSolValue::Int(value, _) => value.to_string(),
        DynSolValue::Uint(value, _) => value.to_string(),
        DynSolValue::Address(address) => format!("0x{}", hex::encode(address)),
        DynSolValue::FixedBytes(word, length) => format!("0x{}", hex::encode(word.get(..*length).unwrap_or_default())),
        DynSolValue::Function(function) => format!("0x{}", hex::encode(function.as_slice())),
        DynSolValue::Bytes(bytes) => format!("0x{}", hex::encode(bytes)),
        DynSolValue::String(text) => format!("{text:?}"),
        DynSolValue::Array(values) | DynSolValue::FixedArray(values) => format!("[{}]", list(values)),
        DynSolValue::Tuple(values) => format!("({})", list(values)),
    }
}
