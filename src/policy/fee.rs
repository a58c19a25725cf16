//! Prices the gas of an attempt: first price, cap, replacement. All arithmetic saturates.

use crate::model::{Fee, Wei};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeeMode {
    /// EIP-1559 where blocks have a base fee, else legacy.
    Auto,
    /// Always type 2.
    Eip1559,
    /// Always type 0.
    Legacy,
    /// Type 0 at price zero, for chains without fees.
    Zero,
}

#[derive(Debug, Clone, Copy)]
pub struct FeeRules {
    pub mode: FeeMode,
    /// Never more than this for one unit of gas.
    pub max_fee: Wei,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Market {
    /// The next block's base fee, where blocks have one.
    pub base_fee: Option<Wei>,
    pub tip: Wei,
    /// The node's suggestion for a legacy transaction.
    pub gas_price: Wei,
}

/// The chain asks for more than the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chain asks for {needed} for one unit of gas, fees.max_fee is {cap}")]
pub struct AboveCap {
    pub needed: Wei,
    pub cap: Wei,
}

/// Nodes replace a pooled transaction for 10% (most) to 12.5% more; ours is the larger, in both fees.
const BUMP: (u128, u128) = (1125, 1000);

impl FeeRules {
    /// Returns the first price of a transaction.
    ///
    /// # Errors
    /// When it could not get into the next block without going over the cap.
    pub fn quote(&self, market: &Market) -> Result<Fee, AboveCap> {
        let capped =
            |needed: Wei| if needed > self.max_fee { Err(AboveCap { needed, cap: self.max_fee }) } else { Ok(needed) };
        let eip1559 = |base_fee: Wei| {
            capped(base_fee.plus(market.tip))?;
            let room_for_growth = base_fee.scaled_up(2, 1).plus(market.tip);
            Ok(Fee::Eip1559 { max_fee: room_for_growth.min(self.max_fee), tip: market.tip })
        };
        let legacy =
            || Ok(Fee::Legacy { gas_price: capped(market.gas_price.max(market.base_fee.unwrap_or_default()))? });
        match self.mode {
            FeeMode::Zero => Ok(Fee::Legacy { gas_price: Wei(0) }),
            FeeMode::Legacy => legacy(),
            FeeMode::Eip1559 => eip1559(market.base_fee.unwrap_or_default()),
            FeeMode::Auto => market.base_fee.map_or_else(legacy, eip1559),
        }
    }

    /// Returns the price of a replacement for an attempt that offered `previous`: at least 12.5% more in both fees, and
    /// at least the price of a new one. `None` where that would go over the cap, or where the chain has no fees to
    /// raise.
    pub fn replacement(&self, previous: Fee, market: &Market) -> Option<Fee> {
        if self.mode == FeeMode::Zero {
            return None;
        }
        // Rounding up alone would leave a zero tip at zero, and a node would call that underpriced.
        let bumped = |fee: Wei| fee.scaled_up(BUMP.0, BUMP.1).max(fee.plus(Wei(1)));
        let quoted = self.quote(market).ok();
        let replacement = match previous {
            Fee::Eip1559 { max_fee, tip } => {
                let tip = bumped(tip).max(quoted.map_or(Wei(0), Fee::tip));
                let max_fee = bumped(max_fee).max(quoted.map_or(Wei(0), Fee::ceiling)).max(tip);
                Fee::Eip1559 { max_fee, tip }
            }
            Fee::Legacy { gas_price } => {
                Fee::Legacy { gas_price: bumped(gas_price).max(quoted.map_or(Wei(0), Fee::ceiling)) }
            }
        };
        (replacement.ceiling() <= self.max_fee).then_some(replacement)
    }
}

/// Returns whether an attempt at this price cannot get into the next block.
pub fn is_underpriced(fee: Fee, market: &Market) -> bool {
    market.base_fee.is_some_and(|base_fee| fee.ceiling() < base_fee)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(mode: FeeMode, cap: u128) -> FeeRules {
        FeeRules { mode, max_fee: Wei(cap) }
    }

    #[test]
    fn each_mode_prices_as_it_says() {
        let london = Market { base_fee: Some(Wei(10)), tip: Wei(2), gas_price: Wei(13) };
        let old = Market { base_fee: None, tip: Wei(0), gas_price: Wei(13) };
        let type_2 = Ok(Fee::Eip1559 { max_fee: Wei(22), tip: Wei(2) });
        let type_0 = Ok(Fee::Legacy { gas_price: Wei(13) });
        assert_eq!(rules(FeeMode::Auto, 100).quote(&london), type_2);
        assert_eq!(rules(FeeMode::Auto, 100).quote(&old), type_0);
        assert_eq!(rules(FeeMode::Eip1559, 100).quote(&london), type_2);
        assert_eq!(rules(FeeMode::Legacy, 100).quote(&london), type_0);
        assert_eq!(rules(FeeMode::Zero, 0).quote(&london), Ok(Fee::Legacy { gas_price: Wei(0) }));
    }

    #[test]
    fn the_room_for_growth_ends_at_the_cap_and_the_need_pauses_above_it() {
        let market = Market { base_fee: Some(Wei(10)), tip: Wei(2), gas_price: Wei(13) };
        assert_eq!(rules(FeeMode::Auto, 12).quote(&market), Ok(Fee::Eip1559 { max_fee: Wei(12), tip: Wei(2) }));
        assert_eq!(rules(FeeMode::Auto, 11).quote(&market), Err(AboveCap { needed: Wei(12), cap: Wei(11) }));
    }

    #[test]
    fn a_zero_tip_is_raised_too() {
        let market = Market { base_fee: Some(Wei(0)), tip: Wei(0), gas_price: Wei(0) };
        let previous = Fee::Eip1559 { max_fee: Wei(0), tip: Wei(0) };
        assert_eq!(
            rules(FeeMode::Auto, 9).replacement(previous, &market),
            Some(Fee::Eip1559 { max_fee: Wei(1), tip: Wei(1) })
        );
    }

    proptest! {
        #[test]
        fn a_replacement_offers_an_eighth_more_in_both_fees_and_never_goes_over_the_cap(
            max_fee in 0u128..1 << 70, tip in 0u128..1 << 70, base_fee in 0u128..1 << 70, cap in 0u128..1 << 70
        ) {
            let previous = Fee::Eip1559 { max_fee: Wei(max_fee.max(tip)), tip: Wei(tip) };
            let market = Market { base_fee: Some(Wei(base_fee)), tip: Wei(3), gas_price: Wei(0) };
            if let Some(next) = rules(FeeMode::Auto, cap).replacement(previous, &market) {
                prop_assert!(next.ceiling().0 <= cap);
                prop_assert!(next.ceiling().0 * 8 >= previous.ceiling().0 * 9 && next.ceiling() > previous.ceiling());
                prop_assert!(next.tip().0 * 8 >= tip * 9 && next.tip().0 > tip);
                prop_assert!(next.tip() <= next.ceiling());
            }
        }

        #[test]
        fn a_quote_gets_into_the_next_block_and_never_goes_over_the_cap(
            base_fee in 0u128..u128::MAX, tip in 0u128..u128::MAX, cap in 0u128..u128::MAX
        ) {
            let market = Market { base_fee: Some(Wei(base_fee)), tip: Wei(tip), gas_price: Wei(0) };
            if let Ok(fee) = rules(FeeMode::Auto, cap).quote(&market) {
                prop_assert!(fee.ceiling().0 <= cap);
                prop_assert!(fee.tip() <= fee.ceiling());
                prop_assert!(!is_underpriced(fee, &market));
            }
        }
    }
}
