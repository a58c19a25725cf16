//! The least gas that a transaction takes before it does anything.

use crate::model::Gas;

/// Yellow Paper, appendix G, with the price of calldata since Istanbul (EIP-2028). Later rules only ask for more.
const TRANSACTION: u64 = 21_000;
const ZERO_BYTE: u64 = 4;
const OTHER_BYTE: u64 = 16;

pub const TRANSFER: Gas = Gas(TRANSACTION);

/// Returns the least gas for a call with these data: every node refuses less, or drops it without a word.
pub fn intrinsic(data: &[u8]) -> Gas {
    let zeros = data.iter().filter(|byte| **byte == 0).count() as u64;
    let others = data.len() as u64 - zeros;
    Gas(TRANSACTION + ZERO_BYTE * zeros + OTHER_BYTE * others)
}

/// Returns the gas limit of a call that takes `estimate`: this many percent more, as far as a block has room for it.
/// Never less than the estimate, even where the newest block that is known had less room: the node has run the call in
/// more, and a transaction with too little gas would hold up its account.
pub fn limit(estimate: Gas, margin_percent: u32, block_limit: Gas) -> Gas {
    let margin = estimate.0.saturating_mul(margin_percent.into()) / 100;
    Gas(estimate.0.saturating_add(margin)).min(block_limit).max(estimate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_margin_ends_at_the_block_and_an_estimate_does_not() {
        assert_eq!(limit(Gas(100), 20, Gas(1_000)), Gas(120));
        assert_eq!(limit(Gas(100), 20, Gas(110)), Gas(110));
        assert_eq!(limit(Gas(100), 20, Gas(90)), Gas(100), "the estimate is newer than the block");
        assert_eq!(limit(Gas(u64::MAX), 1_000, Gas(u64::MAX)), Gas(u64::MAX));
    }

    #[test]
    fn calldata_costs_by_the_byte() {
        assert_eq!(intrinsic(&[]), TRANSFER);
        assert_eq!(intrinsic(&[0, 1, 0, 255]), Gas(21_000 + 2 * 4 + 2 * 16));
    }
}
