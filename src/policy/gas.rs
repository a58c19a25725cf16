//! The least gas that a transaction takes before it does anything, and the most that it may have.

use crate::model::Gas;

/// Yellow Paper, appendix G, with the price of calldata since Istanbul (EIP-2028).
const ZERO_BYTE: u64 = 4;
const OTHER_BYTE: u64 = 16;
/// The most gas of one transaction since Osaka (EIP-7825). A chain without that rule runs larger ones.
pub const MOST: Gas = Gas(1 << 24);

/// Bytes of calldata in the estimate that shows whether the chain has a floor for it.
pub const FLOOR_PROBE: usize = 1024;

/// The gas of a transfer until Amsterdam makes it cheaper.
pub const TRANSFER: Gas = Gas(21_000);

/// The least gas for each byte of calldata, whatever the call does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    pub zero_byte: u64,
    pub other_byte: u64,
}

impl Floor {
    /// EIP-7623, since Prague.
    pub const PRAGUE: Self = Self { zero_byte: 10, other_byte: 40 };
    /// EIP-7976, since Amsterdam.
    pub const AMSTERDAM: Self = Self { zero_byte: 64, other_byte: 64 };
}

/// Returns the least gas for a call with these data on a chain without rules of its own: every node refuses less, or drops it
/// without a word.
pub fn intrinsic(data: &[u8]) -> Gas {
    least(data, TRANSFER, None)
}

/// Returns the least gas of a call with these data, given what a transaction takes without any, and the floor of the chain.
pub fn least(data: &[u8], base: Gas, floor: Option<Floor>) -> Gas {
    let zeros = data.iter().filter(|byte| **byte == 0).count() as u64;
    let others = data.len() as u64 - zeros;
    let bytes = ZERO_BYTE * zeros + OTHER_BYTE * others;
    let floored = floor.map_or(0, |floor| floor.zero_byte * zeros + floor.other_byte * others);
    Gas(base.0.saturating_add(bytes.max(floored)))
}

/// Returns the floor of a chain that asks for `empty` gas for a transfer, and for `filled` with so many non-zero bytes of
/// calldata. Estimates are a little too high at most.
pub fn floor_seen(empty: Gas, filled: Gas, bytes: u64) -> Option<Floor> {
    const NEARLY: u64 = 4;
    let more = filled.0.saturating_sub(empty.0);
    let is_at_least = |floor: &Floor| more >= (floor.other_byte - NEARLY).saturating_mul(bytes);
    [Floor::AMSTERDAM, Floor::PRAGUE].into_iter().find(is_at_least)
}

/// The caps that a margin never goes past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Of the newest block.
    pub block: Gas,
    /// Of one transaction, by what the chain's nodes say or have shown; `None`: not known.
    pub transaction: Option<Gas>,
    /// By the operator's word.
    pub permitted: Option<Gas>,
}

impl Caps {
    pub fn of_block(block: Gas) -> Self {
        Self { block, transaction: None, permitted: None }
    }
}

/// Returns the gas limit of a call that takes `estimate`: so many percent more, as far as a block, the chain's rules for one
/// transaction and the operator leave room for it. The margin alone never takes it past any of these, nor past EIP-7825.
/// Never less than the estimate, even where the newest block that is known had less room: the node has run the call in
/// more, and a transaction with too little gas would hold up its account.
pub fn limit(estimate: Gas, margin_percent: u32, caps: Caps) -> Gas {
    let margin = estimate.0.saturating_mul(margin_percent.into()) / 100;
    let most = caps.block.min(caps.transaction.unwrap_or(MOST).min(MOST)).min(caps.permitted.unwrap_or(Gas(u64::MAX)));
    Gas(estimate.0.saturating_add(margin)).min(most).max(estimate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_margin_ends_at_the_block_and_an_estimate_does_not() {
        let limit = |estimate, margin, block| limit(Gas(estimate), margin, Caps::of_block(Gas(block)));
        assert_eq!(limit(100, 20, 1_000), Gas(120));
        assert_eq!(limit(100, 20, 110), Gas(110));
        assert_eq!(limit(100, 20, 90), Gas(100), "the estimate is newer than the block");
        assert_eq!(limit(u64::MAX, 1_000, u64::MAX), Gas(u64::MAX));
    }

    #[test]
    fn a_margin_never_takes_a_transaction_past_what_one_may_have() {
        let limit = |estimate, transaction: Option<u64>, permitted: Option<u64>| {
            let (transaction, permitted) = (transaction.map(Gas), permitted.map(Gas));
            limit(Gas(estimate), 20, Caps { block: Gas(60_000_000), transaction, permitted })
        };
        assert_eq!(limit(15_000_000, None, None), MOST);
        assert_eq!(limit(10_000_000, None, None), Gas(12_000_000));
        assert_eq!(limit(20_000_000, None, None), Gas(20_000_000), "the chain has no such rule: its node ran it");
        assert_eq!(limit(900_000, Some(1_000_000), None), Gas(1_000_000), "a node's own cap");
        assert_eq!(limit(15_000_000, Some(30_000_000), None), MOST, "another endpoint may have the rule");
        assert_eq!(limit(90_000, None, Some(100_000)), Gas(100_000), "policy.max_gas");
        assert_eq!(limit(110_000, None, Some(100_000)), Gas(110_000), "which is refused then");
    }

    #[test]
    fn the_floor_of_calldata_is_seen_in_two_estimates() {
        let data = [1; 1024];
        let seen = |empty: u64, filled: Gas| floor_seen(Gas(empty), filled, 1024);
        let with = |floor| least(&data, TRANSFER, Some(floor));
        assert_eq!(least(&[0, 1], TRANSFER, Some(Floor::PRAGUE)), Gas(21_000 + 10 + 40));
        assert_eq!(least(&[0, 1], Gas(12_000), Some(Floor::AMSTERDAM)), Gas(12_000 + 2 * 64));
        assert_eq!(seen(21_000, with(Floor::PRAGUE)), Some(Floor::PRAGUE));
        assert_eq!(seen(21_000, with(Floor::AMSTERDAM)), Some(Floor::AMSTERDAM));
        assert_eq!(seen(21_000, intrinsic(&data)), None);
        // Estimates by bisection stop a little above.
        assert_eq!(seen(21_300, Gas(with(Floor::PRAGUE).0 * 1015 / 1000)), Some(Floor::PRAGUE));
        assert_eq!(seen(21_300, Gas(with(Floor::AMSTERDAM).0 * 1015 / 1000)), Some(Floor::AMSTERDAM));
        assert_eq!(seen(21_000, Gas(intrinsic(&data).0 * 1015 / 1000)), None);
    }

    #[test]
    fn calldata_costs_by_the_byte() {
        assert_eq!(intrinsic(&[]), TRANSFER);
        assert_eq!(intrinsic(&[0, 1, 0, 255]), Gas(21_000 + 2 * 4 + 2 * 16));
    }
}
