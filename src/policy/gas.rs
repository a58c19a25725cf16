//! The least gas that a transaction takes before it does anything, and the most that it may have.

use crate::model::Gas;

/// Yellow Paper, appendix G, with the price of calldata since Istanbul (EIP-2028). Later rules only ask for more.
const TRANSACTION: u64 = 21_000;
const ZERO_BYTE: u64 = 4;
const OTHER_BYTE: u64 = 16;
/// EIP-7623, since Prague: calldata costs at least so much more, whatever the call does with it.
const FLOOR_ZERO_BYTE: u64 = 10;
const FLOOR_OTHER_BYTE: u64 = 40;
/// EIP-7825, since Osaka: the most gas of one transaction. A chain without that rule runs larger ones.
const MOST: Gas = Gas(1 << 24);

pub const TRANSFER: Gas = Gas(TRANSACTION);

/// Returns the least gas for a call with these data: every node refuses less, or drops it without a word.
pub fn intrinsic(data: &[u8]) -> Gas {
    by_the_byte(data, ZERO_BYTE, OTHER_BYTE)
}

/// Returns the least gas of a call with these data on a chain with the floor of EIP-7623.
pub fn floor(data: &[u8]) -> Gas {
    by_the_byte(data, FLOOR_ZERO_BYTE, FLOOR_OTHER_BYTE)
}

fn by_the_byte(data: &[u8], zero_byte: u64, other_byte: u64) -> Gas {
    let zeros = data.iter().filter(|byte| **byte == 0).count() as u64;
    let others = data.len() as u64 - zeros;
    Gas(TRANSACTION + zero_byte * zeros + other_byte * others)
}

/// Returns whether a chain that asks for `empty` gas for a transfer, and for `filled` with so many non-zero bytes of
/// calldata, has the floor of EIP-7623. Estimates are a little too high at most.
pub fn has_floor(empty: Gas, filled: Gas, bytes: u64) -> bool {
    const NEARLY: u64 = 36;
    filled.0.saturating_sub(empty.0) >= NEARLY.saturating_mul(bytes)
}

/// Returns the gas limit of a call that takes `estimate`: so many percent more, as far as a block has room for it, and a
/// transaction by EIP-7825: the margin alone never takes it past that.
/// Never less than the estimate, even where the newest block that is known had less room: the node has run the call in
/// more, and a transaction with too little gas would hold up its account.
pub fn limit(estimate: Gas, margin_percent: u32, block_limit: Gas) -> Gas {
    let margin = estimate.0.saturating_mul(margin_percent.into()) / 100;
    Gas(estimate.0.saturating_add(margin)).min(block_limit).min(MOST).max(estimate)
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
    fn a_margin_never_takes_a_transaction_past_what_one_may_have() {
        let block = Gas(60_000_000);
        assert_eq!(limit(Gas(15_000_000), 20, block), MOST);
        assert_eq!(limit(Gas(10_000_000), 20, block), Gas(12_000_000));
        assert_eq!(limit(Gas(20_000_000), 20, block), Gas(20_000_000), "the chain has no such rule: its node ran it");
    }

    #[test]
    fn the_floor_of_calldata_is_seen_in_two_estimates() {
        let data = [1; 1024];
        assert_eq!(floor(&[0, 1]), Gas(21_000 + 10 + 40));
        assert!(has_floor(TRANSFER, floor(&data), 1024));
        assert!(!has_floor(TRANSFER, intrinsic(&data), 1024));
        // Estimates by bisection stop a little above.
        assert!(has_floor(Gas(21_300), Gas(floor(&data).0 * 1015 / 1000), 1024));
        assert!(!has_floor(TRANSFER, Gas(intrinsic(&data).0 * 1015 / 1000), 1024));
    }

    #[test]
    fn calldata_costs_by_the_byte() {
        assert_eq!(intrinsic(&[]), TRANSFER);
        assert_eq!(intrinsic(&[0, 1, 0, 255]), Gas(21_000 + 2 * 4 + 2 * 16));
    }
}
