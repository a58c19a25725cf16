//! Prices the gas of an attempt: first price, cap, replacement. All arithmetic saturates.

use crate::model::words::words;
use crate::model::{Fee, Gas, Wei};
use crate::policy::refusals::Lack;

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
    /// Never less than this for the block's producer.
    pub min_tip: Wei,
    /// Never more than that; `None`: as much as `max_fee` allows.
    pub max_tip: Option<Wei>,
}

words!(
    /// A cap on the price, by its key.
    PriceCap {
        MaxFee = "fees.max_fee",
        MaxTip = "fees.max_tip",
    }
);

/// The least tips of chains that refuse less, in gwei hundredths, by chain id. Others show what they take in their blocks.
const LEAST_TIPS: [(u64, u128); 4] = [
    // Bor: txpool.pricelimit, the same at all validators
    (137, 2_500),
    (80_002, 2_500),
    // BSC: eth.miner.gasprice of the validators
    (56, 5),
    (97, 5),
];

/// Returns the least tip that the chain is known to take; zero where none is.
pub fn least_tip_of(chain_id: u64) -> Wei {
    const HUNDREDTH_OF_A_GWEI: u128 = 10_000_000;
    let known = LEAST_TIPS.iter().find(|(id, _)| *id == chain_id);
    known.map_or(Wei(0), |(_, hundredths)| Wei(hundredths * HUNDREDTH_OF_A_GWEI))
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

impl Market {
    /// Returns the market of nodes that take no tip below this one.
    pub fn with_least_tip(self, tip: Wei) -> Self {
        Self { tip: self.tip.max(tip), gas_price: self.gas_price.max(tip), ..self }
    }
}

/// Nodes replace a pooled transaction for 10% (most) to 12.5% more; ours is the larger, in both fees.
const BUMP: (u128, u128) = (1125, 1000);

impl FeeRules {
    /// Returns the rules under a lower cap, that of a route.
    pub fn capped(self, most: Option<Wei>) -> Self {
        Self { max_fee: most.map_or(self.max_fee, |most| most.min(self.max_fee)), ..self }
    }

    /// Returns the highest price that a cancellation can still replace under the cap, or `needed` if that is more. Headroom
    /// above it helps nothing where blocks pass the transaction over at any price.
    fn replaceable(&self, needed: Wei) -> Wei {
        let below = Wei(self.max_fee.0 / BUMP.0 * BUMP.1 + self.max_fee.0 % BUMP.0 * BUMP.1 / BUMP.0);
        below.max(needed)
    }

    /// Returns whether no price below the cap gets into the next block.
    pub fn is_beyond_reach(&self, market: &Market) -> bool {
        market.base_fee.is_some_and(|base_fee| base_fee > self.max_fee)
    }

    /// Returns the tip of a new transaction.
    fn tip(&self, market: &Market) -> Wei {
        market.tip.max(self.min_tip).min(self.max_tip.unwrap_or(Wei(u128::MAX)))
    }

    fn allows_tip(&self, tip: Wei) -> bool {
        self.max_tip.is_none_or(|most| tip <= most)
    }

    /// Returns the gas price of a new legacy transaction. Where blocks have a base fee, what is above it is a tip.
    fn gas_price(&self, market: &Market) -> Wei {
        let base_fee = market.base_fee.unwrap_or_default();
        let least = base_fee.plus(self.min_tip);
        let wanted = market.gas_price.max(least);
        match self.max_tip.filter(|_| market.base_fee.is_some()) {
            // With room for one full block.
            Some(most) => wanted.min(base_fee.scaled_up(9, 8).plus(most)),
            None => wanted,
        }
    }

    /// Returns the cap that keeps a price from rising, in words.
    pub fn cap_on_rise(&self, previous: Fee) -> String {
        let is_of_tip = matches!(previous, Fee::Eip1559 { tip, .. } if !self.allows_tip(bumped(tip)));
        match self.max_tip.filter(|_| is_of_tip) {
            Some(most) => format!("{} is {most}", PriceCap::MaxTip),
            None => format!("{} is {}", PriceCap::MaxFee, self.max_fee),
        }
    }

    /// Returns the first price of a transaction.
    ///
    /// # Errors
    /// When it could not get into the next block without going over the cap.
    pub fn quote(&self, market: &Market) -> Result<Fee, AboveCap> {
        let capped =
            |needed: Wei| if needed > self.max_fee { Err(AboveCap { needed, cap: self.max_fee }) } else { Ok(needed) };
        let eip1559 = |base_fee: Wei| {
            let tip = self.tip(market);
            capped(base_fee.plus(tip))?;
            let room_for_growth = base_fee.scaled_up(2, 1).plus(tip);
            Ok(Fee::Eip1559 { max_fee: room_for_growth.min(self.replaceable(base_fee.plus(tip))), tip })
        };
        let legacy = || Ok(Fee::Legacy { gas_price: capped(self.gas_price(market))? });
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
        let is_allowed = replacement.ceiling() <= self.max_fee
            && (matches!(replacement, Fee::Legacy { .. }) || self.allows_tip(replacement.tip()));
        is_allowed.then_some(replacement)
    }
}

/// Returns an eighth more, and a wei at least: a zero tip that stays zero is no replacement.
fn bumped(fee: Wei) -> Wei {
    fee.scaled_up(BUMP.0, BUMP.1).max(fee.plus(Wei(1)))
}

impl FeeRules {
    /// Returns the price of a replacement for one that no node took at `previous`, since it offers too little: what the node
    /// named, else twice the tip where that is too low. Nothing of it is in a pool, so a tip rises alone, without the steps of
    /// a replacement. Where the price as a whole is too low, the tip is no cause, and rises as with any replacement.
    /// `None` where that would go over the cap, or where the chain has no fees to raise.
    pub fn raised(&self, previous: Fee, market: &Market, lack: Lack) -> Option<Fee> {
        let bumped = self.replacement(previous, market);
        let (named, is_tip) = match lack {
            Lack::Tip(named) => (named, true),
            Lack::Price(named) => (named, false),
        };
        match previous {
            _ if self.mode == FeeMode::Zero => None,
            Fee::Legacy { gas_price } => {
                let least = named.unwrap_or_else(|| if is_tip { gas_price.scaled_up(2, 1) } else { Wei(0) });
                let raised = bumped?.ceiling().max(least);
                (raised <= self.max_fee).then_some(Fee::Legacy { gas_price: raised })
            }
            Fee::Eip1559 { max_fee, tip } => {
                let quoted = self.quote(market).ok();
                let doubled = tip.scaled_up(2, 1).max(tip.plus(Wei(1)));
                let risen = if is_tip { named.unwrap_or(doubled) } else { bumped?.tip() };
                let wanted = risen.max(quoted.map_or(Wei(0), Fee::tip));
                let needed = market.base_fee.unwrap_or_default().plus(wanted);
                let least = if is_tip { max_fee } else { bumped?.ceiling().max(named.unwrap_or_default()) };
                let raised = least.max(quoted.map_or(Wei(0), Fee::ceiling)).max(needed);
                let has_room = needed.max(least) <= self.max_fee && self.allows_tip(wanted);
                let most = self.replaceable(needed.max(least));
                has_room.then(|| Fee::Eip1559 { max_fee: raised.min(most), tip: wanted })
            }
        }
    }

    /// Returns the least price that gets into the next block, where that is below this one: for nodes that call a transaction
    /// too expensive and do not say from when on.
    pub fn without_headroom(fee: Fee, market: &Market) -> Option<Fee> {
        let base_fee = market.base_fee?;
        match fee {
            Fee::Eip1559 { max_fee, tip } => {
                let least = base_fee.plus(tip);
                (least < max_fee).then_some(Fee::Eip1559 { max_fee: least, tip })
            }
            Fee::Legacy { .. } => None,
        }
    }

    /// Returns this price with less headroom, so that so much gas costs `most` at most. `None` where it would not get into
    /// the next block then.
    pub fn within(fee: Fee, gas: Gas, most: Wei, market: &Market) -> Option<Fee> {
        let affordable = Wei(most.0.checked_div(gas.0.into())?);
        let least = |tip: Wei| market.base_fee.map_or(Wei(0), |base_fee| base_fee.plus(tip));
        match fee {
            Fee::Eip1559 { max_fee, tip } => {
                (affordable >= least(tip)).then(|| Fee::Eip1559 { max_fee: max_fee.min(affordable), tip })
            }
            Fee::Legacy { gas_price } => {
                let least = least(Wei(0)).max(market.gas_price);
                (affordable >= least).then(|| Fee::Legacy { gas_price: gas_price.min(affordable) })
            }
        }
    }
}

/// Returns what a unit of gas has cost beyond what the price of `first` would have been in the same block, given what the one
/// that is in it offered and paid.
pub fn cost_of_rise(first: Fee, landed: Fee, paid: Wei) -> Wei {
    // Where the cap of the one that landed does not bind, what is paid shows the base fee.
    let base_fee = Wei(paid.0.saturating_sub(landed.tip().0));
    let of_first = match first {
        Fee::Eip1559 { max_fee, tip } => base_fee.plus(tip).min(max_fee),
        Fee::Legacy { gas_price } => gas_price,
    };
    Wei(paid.0.saturating_sub(of_first.0))
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
        FeeRules { mode, max_fee: Wei(cap), min_tip: Wei(0), max_tip: None }
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
    fn the_room_for_growth_leaves_the_last_step_below_the_cap_to_a_cancellation() {
        // base fee, cap, what is offered
        let table = [(10, 22, 19), (10, 24, 21), (10, 25, 22), (10, 99, 22), (500, 1_000, 888), (900, 1_000, 902)];
        for (base_fee, cap, offered) in table {
            let market = Market { base_fee: Some(Wei(base_fee)), tip: Wei(2), gas_price: Wei(0) };
            let fee = rules(FeeMode::Auto, cap).quote(&market).unwrap();
            assert_eq!(fee.ceiling(), Wei(offered), "{base_fee} {cap}");
            let calm = Market { base_fee: Some(Wei(1)), ..market };
            let can_be_cancelled = rules(FeeMode::Auto, cap).replacement(fee, &calm).is_some();
            assert_eq!(can_be_cancelled, offered != 902, "at {base_fee} the chain asks for more than what leaves room");
        }
    }

    #[test]
    fn a_tip_stays_within_what_the_operator_says() {
        let market = |tip| Market { base_fee: Some(Wei(10)), tip: Wei(tip), gas_price: Wei(10 + tip) };
        let bound = FeeRules { min_tip: Wei(5), max_tip: Some(Wei(8)), ..rules(FeeMode::Auto, 100) };
        for (tip, offered) in [(0, 5), (5, 5), (7, 7), (8, 8), (90, 8)] {
            assert_eq!(bound.quote(&market(tip)), Ok(type_2(20 + offered, offered)), "{tip}");
        }
        let legacy = FeeRules { mode: FeeMode::Legacy, ..bound };
        for (tip, offered) in [(0, 15), (7, 17), (90, 20)] {
            assert_eq!(legacy.quote(&market(tip)), Ok(Fee::Legacy { gas_price: Wei(offered) }), "{tip}");
        }
        let old = Market { base_fee: None, tip: Wei(0), gas_price: Wei(3) };
        assert_eq!(bound.quote(&old), Ok(Fee::Legacy { gas_price: Wei(5) }));
        assert_eq!(bound.quote(&Market { gas_price: Wei(50), ..old }), Ok(Fee::Legacy { gas_price: Wei(50) }));
        let too_dear = FeeRules { max_fee: Wei(14), ..bound }.quote(&market(0));
        assert_eq!(too_dear, Err(AboveCap { needed: Wei(15), cap: Wei(14) }), "the least tip is part of the need");
    }

    #[test]
    fn no_replacement_goes_over_the_cap_on_tips_and_the_cap_is_named() {
        let market = Market { base_fee: Some(Wei(10)), tip: Wei(1), gas_price: Wei(11) };
        let bound = FeeRules { max_tip: Some(Wei(9)), ..rules(FeeMode::Auto, 100) };
        assert_eq!(bound.replacement(type_2(40, 8), &market), Some(type_2(45, 9)));
        assert_eq!(bound.replacement(type_2(40, 9), &market), None);
        assert_eq!(bound.raised(type_2(40, 9), &market, Lack::Tip(Some(Wei(10)))), None);
        assert_eq!(bound.cap_on_rise(type_2(40, 9)), "fees.max_tip is 9 wei");
        assert_eq!(bound.cap_on_rise(type_2(99, 1)), "fees.max_fee is 100 wei");
        assert_eq!(bound.capped(Some(Wei(40))).cap_on_rise(type_2(40, 1)), "fees.max_fee is 40 wei");
    }

    #[test]
    fn chains_with_a_least_tip_get_it_at_once() {
        assert_eq!(least_tip_of(137), Wei(25_000_000_000));
        assert_eq!(least_tip_of(56), Wei(50_000_000));
        assert_eq!(least_tip_of(1), Wei(0));
    }

    #[test]
    fn the_least_price_of_the_next_block_is_offered_where_a_node_calls_more_too_expensive() {
        let market = Market { base_fee: Some(Wei(10)), tip: Wei(2), gas_price: Wei(12) };
        assert_eq!(FeeRules::without_headroom(type_2(22, 2), &market), Some(type_2(12, 2)));
        assert_eq!(FeeRules::without_headroom(type_2(12, 2), &market), None, "that is it");
        assert_eq!(FeeRules::without_headroom(Fee::Legacy { gas_price: Wei(22) }, &market), None);
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

    fn type_2(max_fee: u128, tip: u128) -> Fee {
        Fee::Eip1559 { max_fee: Wei(max_fee), tip: Wei(tip) }
    }

    #[test]
    fn a_tip_that_is_too_low_rises_to_what_the_node_names_and_the_price_only_as_far_as_it_must() {
        let market = Market { base_fee: Some(Wei(10)), tip: Wei(1), gas_price: Wei(11) };
        let rules = rules(FeeMode::Auto, 10_000);
        let raised = |previous, lack| rules.raised(previous, &market, lack);
        // before, what it lacks, after
        let table = [
            (type_2(21, 1), Lack::Tip(Some(Wei(2_000))), Some(type_2(2_010, 2_000))),
            (type_2(5_000, 1), Lack::Tip(Some(Wei(2_000))), Some(type_2(5_000, 2_000))),
            (type_2(21, 1), Lack::Tip(None), Some(type_2(21, 2))),
            (type_2(21, 0), Lack::Tip(None), Some(type_2(21, 1))),
            (type_2(80, 8), Lack::Price(None), Some(type_2(90, 9))),
            (type_2(80, 8), Lack::Price(Some(Wei(200))), Some(type_2(200, 9))),
            (type_2(21, 1), Lack::Tip(Some(Wei(9_991))), None),
            (Fee::Legacy { gas_price: Wei(80) }, Lack::Price(None), Some(Fee::Legacy { gas_price: Wei(90) })),
            (Fee::Legacy { gas_price: Wei(80) }, Lack::Tip(Some(Wei(500))), Some(Fee::Legacy { gas_price: Wei(500) })),
        ];
        for (previous, lack, expected) in table {
            assert_eq!(raised(previous, lack), expected, "{previous:?} {lack:?}");
        }
        let zero = self::rules(FeeMode::Zero, 0);
        assert_eq!(zero.raised(Fee::Legacy { gas_price: Wei(0) }, &market, Lack::Price(None)), None);
    }

    #[test]
    fn from_one_wei_a_tip_reaches_any_that_a_chain_asks_for_within_the_replacements_of_one_nonce() {
        let market = Market { base_fee: Some(Wei(7)), tip: Wei(1), gas_price: Wei(8) };
        let rules = rules(FeeMode::Auto, 100_000_000_000);
        let mut fee = type_2(15, 1);
        let mut steps = 0;
        while fee.tip() < Wei(2_000_000_000) {
            fee = rules.raised(fee, &market, Lack::Tip(None)).unwrap();
            steps += 1;
        }
        assert_eq!(steps, 31);
    }

    #[test]
    fn headroom_goes_before_the_price_itself() {
        let market = Market { base_fee: Some(Wei(10)), tip: Wei(2), gas_price: Wei(12) };
        let within = |most| FeeRules::within(type_2(22, 2), Gas(100), Wei(most), &market);
        assert_eq!(within(2_200), Some(type_2(22, 2)));
        assert_eq!(within(1_500), Some(type_2(15, 2)));
        assert_eq!(within(1_199), None, "it would not get into the next block");
    }

    #[test]
    fn a_replacement_has_cost_what_it_paid_beyond_the_first() {
        // the first, the one in the block, what it paid, what the rise has cost
        let legacy = |price| Fee::Legacy { gas_price: Wei(price) };
        let table = [
            (type_2(22, 2), type_2(22, 2), 12, 0),
            (type_2(22, 2), type_2(30, 5), 15, 3),
            (type_2(12, 2), type_2(30, 5), 25, 13),
            (type_2(22, 2), type_2(30, 5), 30, 8),
            (legacy(10), legacy(12), 12, 2),
            (type_2(22, 2), type_2(22, 1), 11, 0),
        ];
        for (first, landed, paid, cost) in table {
            assert_eq!(cost_of_rise(first, landed, Wei(paid)), Wei(cost), "{first:?} {landed:?} {paid}");
        }
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
                let calm = Market { base_fee: Some(Wei(0)), tip: Wei(0), gas_price: Wei(0) };
                let needed = base_fee.saturating_add(tip);
                let leaves_room = rules(FeeMode::Auto, cap).replacement(fee, &calm).is_some();
                prop_assert!(leaves_room || fee.ceiling() == Wei(needed), "{fee:?}");
            }
        }
    }
}
