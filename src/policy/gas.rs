//! The least gas that a transaction takes before it does anything.

use crate::model::Gas;

/// Yellow Paper, appendix G, with the price of calldata since Istanbul (EIP-2028). Later rules only ask for more.
const TRANSACTION: u64 = 21_000;
const ZERO_BYTE: u64 = 4;
const OTHER_BYTE: u64 = 16;

/// What a plain transfer takes.
pub const TRANSFER: Gas = Gas(TRANSACTION);

/// Less gas than this for a call with these data is refused by every node, or dropped without a word.
pub fn intrinsic(data: &[u8]) -> Gas {
    let zeros = data.iter().filter(|byte| **byte == 0).count() as u64;
    let others = data.len() as u64 - zeros;
    Gas(TRANSACTION + ZERO_BYTE * zeros + OTHER_BYTE * others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calldata_costs_by_the_byte() {
        assert_eq!(intrinsic(&[]), TRANSFER);
        assert_eq!(intrinsic(&[0, 1, 0, 255]), Gas(21_000 + 2 * 4 + 2 * 16));
    }
}
