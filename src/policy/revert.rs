//! Decodes revert data: `Error(string)`, `Panic(uint256)` or a custom error's selector.
//! Encoding: Solidity, "Contract ABI Specification" and "Panic via assert and Error via require".

use crate::model::{Cause, Reason};
use crate::policy::abi::{Errors, number_at};

const ERROR_STRING: [u8; 4] = [0x08, 0xc3, 0x79, 0xa0];
const PANIC: [u8; 4] = [0x4e, 0x48, 0x7b, 0x71];

/// Returns the failure in these revert data, with the names of `errors` where it is one of them.
pub fn explain(data: &[u8], errors: &Errors) -> Cause {
    let Some((selector, arguments)) = data.split_first_chunk::<4>() else {
        let detail =
            if data.is_empty() { "no reason given".to_owned() } else { format!("data 0x{}", hex::encode(data)) };
        return Cause::new(Reason::Reverted, detail);
    };
    match *selector {
        ERROR_STRING => match abi_string(arguments) {
            Some(text) => Cause::new(Reason::Reverted, text),
            None => Cause::new(Reason::Reverted, format!("Error(string) that cannot be read: 0x{}", hex::encode(data))),
        },
        PANIC => Cause::new(Reason::Panicked, panic_text(arguments)),
        _ => Cause::new(
            Reason::RevertedCustom,
            errors.decode(data).unwrap_or_else(|| {
                format!("custom error 0x{} with data 0x{}", hex::encode(selector), hex::encode(arguments))
            }),
        ),
    }
}

fn abi_string(arguments: &[u8]) -> Option<String> {
    let start = number_at(arguments, 0)?;
    let length = number_at(arguments, start)?;
    let from = start.checked_add(32)?;
    let bytes = arguments.get(from..from.checked_add(length)?)?;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

fn panic_text(arguments: &[u8]) -> String {
    let Some(code) = number_at(arguments, 0) else { return "Panic with an unreadable code".to_owned() };
    let meaning = match code {
        0x01 => "an assertion failed",
        0x11 => "arithmetic overflow",
        0x12 => "division by zero",
        0x21 => "a value is no member of the enum",
        0x22 => "a storage byte array is encoded wrongly",
        0x31 => "pop on an empty array",
        0x32 => "an index is out of bounds",
        0x41 => "too much memory was allocated",
        0x51 => "a zero-initialised function was called",
        _ => "unknown code",
    };
    format!("Panic(0x{code:02x}): {meaning}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(text: &str) -> Vec<u8> {
        hex::decode(text.replace(' ', "")).unwrap()
    }

    fn word(value: u64) -> String {
        format!("{value:064x}")
    }

    #[test]
    fn each_kind_of_revert_is_told_in_words() {
        let not_today = format!(
            "08c379a0{}{}{}",
            word(32),
            word(9),
            "6e6f7420746f6461790000000000000000000000000000000000000000000000"
        );
        let cases = [
            (not_today, "reverted", "not today"),
            (format!("4e487b71{}", word(0x11)), "panicked", "Panic(0x11): arithmetic overflow"),
            (format!("4e487b71{}", word(0x99)), "panicked", "Panic(0x99): unknown code"),
            (format!("deadbeef{}", word(1)), "reverted_custom", "custom error 0xdeadbeef with data 0x"),
            (String::new(), "reverted", "no reason given"),
            ("08c379".to_owned(), "reverted", "data 0x08c379"),
        ];
        for (bytes, reason, detail) in cases {
            let cause = explain(&data(&bytes), &Errors::default());
            assert_eq!(cause.reason.as_str(), reason);
            assert!(cause.detail.starts_with(detail), "{}", cause.detail);
        }
    }

    #[test]
    fn lengths_that_lie_are_no_reason_to_panic() {
        for bytes in [
            format!("08c379a0{}", "f".repeat(64)),
            format!("08c379a0{}{}", word(32), "f".repeat(64)),
            format!("08c379a0{}{}", word(u64::MAX), word(u64::MAX)),
            "4e487b71".to_owned(),
        ] {
            assert!(explain(&data(&bytes), &Errors::default()).detail.contains("read"), "{bytes}");
        }
    }
}
