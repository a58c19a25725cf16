//! The chain's prices: from a fee history, or from other calls where a node has none.

use jsonrpc_core::Value;
use serde_json::json;

use crate::chain::endpoint::{Endpoint, MethodCall, Order};
use crate::chain::{ChainError, Header, Result, scalars};
use crate::model::Wei;
use crate::policy::fee::Market;

/// Number of blocks from which the tip is taken.
const FEE_HISTORY_BLOCKS: u64 = 10;

const GAS_PRICE: &str = "eth_gasPrice";
const FEE_HISTORY: &str = "eth_feeHistory";
const SUGGESTED_TIP: &str = "eth_maxPriorityFeePerGas";

/// Says whether a price may do without what a tip is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tip {
    /// Another endpoint may have it.
    Needed,
    Guessed,
}

impl Endpoint {
    /// Returns the prices after this block; the tip is that which so many percent of the last blocks' gas paid at most.
    pub(super) async fn market(&self, head: &Header, tip: Tip, percentile: u8) -> Result<Market> {
        let calls: Vec<_> = calls(head, percentile).into_iter().filter(|call| !self.lacks(call.method)).collect();
        let answers = self.ask_many(&calls, Order::Any).await;
        let answers: Vec<_> = calls.iter().map(|call| call.method).zip(answers).collect();
        if let Some(failure) = missing(head, tip, &answers) {
            return Err(failure.clone());
        }
        for (method, answer) in &answers {
            match answer {
                Ok(_) => self.record_method(method),
                // Without a base fee nothing can replace the gas price.
                Err(error) if *method != GAS_PRICE => self.record_lack(method, error),
                Err(_) => {}
            }
        }
        read(head, &answers)
    }
}

/// Returns the endpoint's failure of a call without which there is no price. A node that merely lacks the call is none.
fn missing<'a>(head: &Header, tip: Tip, answers: &'a [(&str, Result<Value>)]) -> Option<&'a ChainError> {
    let of = |method| answers.iter().find(|(asked, _)| *asked == method).map(|(_, answer)| answer);
    let failure = |method| of(method)?.as_ref().err().filter(|error| error.is_of_endpoint());
    let is_there = |method| of(method).is_some_and(Result::is_ok);
    if head.base_fee.is_none() {
        return failure(GAS_PRICE);
    }
    // Either of them gives a tip.
    if is_there(FEE_HISTORY) || is_there(SUGGESTED_TIP) || (tip == Tip::Guessed && is_there(GAS_PRICE)) {
        return None;
    }
    failure(FEE_HISTORY).or_else(|| failure(SUGGESTED_TIP))
}

/// Returns the calls for the prices after this block.
fn calls(head: &Header, percentile: u8) -> Vec<MethodCall> {
    let mut calls = vec![MethodCall::new(GAS_PRICE, vec![])];
    if head.base_fee.is_some() {
        let history = vec![json!(format!("{FEE_HISTORY_BLOCKS:#x}")), json!("latest"), json!([percentile])];
        calls.extend([MethodCall::new(FEE_HISTORY, history), MethodCall::new(SUGGESTED_TIP, vec![])]);
    }
    calls
}

/// Reads the answers that there are. Without a base fee nothing can replace the gas price.
fn read(head: &Header, answers: &[(&str, Result<Value>)]) -> Result<Market> {
    let of = |method| answers.iter().find(|(asked, _)| *asked == method).map(|(_, answer)| answer);
    let value = |method| of(method).and_then(|answer| answer.as_ref().ok());
    let quantity = |method| value(method).and_then(scalars::quantity).map(Wei);
    match (head.base_fee, quantity(GAS_PRICE)) {
        (Some(base_fee), gas_price) => {
            let history = value(FEE_HISTORY).unwrap_or(&Value::Null);
            Ok(with_base_fee(base_fee, gas_price, history, quantity(SUGGESTED_TIP)))
        }
        (None, Some(gas_price)) => Ok(Market { base_fee: None, tip: Wei(0), gas_price }),
        (None, None) => Err(match of(GAS_PRICE) {
            Some(Err(error)) => error.clone(),
            Some(Ok(_)) | None => ChainError::Nonsense {
                endpoint: "the node".to_owned(),
                detail: "a gas price that is no number".to_owned(),
            },
        }),
    }
}

/// Returns the next base fee is what the node computes; without a fee history it is the most that it can be, an eighth
/// more. The tip is the median of what the last blocks' transactions paid, else what the node suggests, and never
/// nothing on a chain with fees: pools refuse that.
fn with_base_fee(base_fee: Wei, gas_price: Option<Wei>, history: &Value, suggested_tip: Option<Wei>) -> Market {
    let next_base_fee = history
        .get("baseFeePerGas")
        .and_then(|fees| scalars::quantity(fees.as_array()?.last()?))
        .map_or_else(|| base_fee.scaled_up(9, 8), Wei);
    let gas_price = gas_price.unwrap_or(next_base_fee);
    let mut tips: Vec<u128> = history
        .get("reward")
        .and_then(Value::as_array)
        .map(|blocks| {
            blocks.iter().filter_map(|block| scalars::quantity(block.get(0)?)).filter(|tip| *tip > 0).collect()
        })
        .unwrap_or_default();
    tips.sort_unstable();
    let median = tips.get(tips.len() / 2).copied().map(Wei);
    let is_free = next_base_fee == Wei(0) && gas_price == Wei(0);
    let tip = match median.or(suggested_tip) {
        Some(tip) if tip > Wei(0) || is_free => tip,
        _ if is_free => Wei(0),
        _ => Wei(1),
    };
    Market { base_fee: Some(next_base_fee), tip, gas_price }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rpc::any_json;

    #[test]
    fn of_the_calls_for_a_price_one_that_another_replaces_may_fail() {
        let away = || Err(ChainError::Unreachable { endpoint: "a".to_owned(), detail: String::new() });
        let lacking =
            || Err(ChainError::Node { endpoint: "a".to_owned(), code: -32601, message: String::new(), data: None });
        let fine = || Ok(json!("0x7"));
        let header = |base_fee| Header {
            number: Default::default(),
            hash: crate::model::BlockHash([0; 32]),
            parent: crate::model::BlockHash([0; 32]),
            timestamp: 0,
            base_fee,
            gas_limit: crate::model::Gas(1),
            transactions: None,
        };
        type Given = fn() -> Result<Value>;
        let _: [Given; 3] = [away, lacking, fine];
        let table: [(Option<Wei>, Given, Given, Given, bool); 6] = [
            (Some(Wei(1)), away, fine, fine, true),
            (Some(Wei(1)), fine, away, fine, true),
            (Some(Wei(1)), fine, fine, away, true),
            (Some(Wei(1)), fine, away, lacking, false),
            (Some(Wei(1)), fine, lacking, lacking, true),
            (None, away, fine, fine, false),
        ];
        for (base_fee, price, history, tip, is_enough) in table {
            let answers = [(GAS_PRICE, price()), (FEE_HISTORY, history()), (SUGGESTED_TIP, tip())];
            let head = header(base_fee);
            let market =
                missing(&head, Tip::Needed, &answers).map_or_else(|| read(&head, &answers), |error| Err(error.clone()));
            assert_eq!(market.is_ok(), is_enough, "{base_fee:?} {answers:?}");
            let is_priced = answers[0].1.is_ok() || is_enough;
            assert_eq!(missing(&head, Tip::Guessed, &answers).is_none(), is_priced, "{base_fee:?} {answers:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_history_holds_there_is_a_price(history in any_json(), fees in any_json(), tips in any_json()) {
            for history in [history.clone(), json!({"baseFeePerGas": fees, "reward": tips, "oldestBlock": history})] {
                let market = with_base_fee(Wei(100), None, &history, None);
                prop_assert!(market.base_fee.is_some() && market.tip > Wei(0), "{:?}", market);
            }
        }
    }

    #[test]
    fn the_market_is_read_from_the_history_and_guessed_without_one() {
        let history = json!({"baseFeePerGas": ["0x64", "0x70"], "reward": [["0x0"], ["0x5"], ["0x9"], ["0x7"]]});
        let of = |history: &Value, tip| with_base_fee(Wei(100), Some(Wei(120)), history, tip);
        assert_eq!(of(&history, None), Market { base_fee: Some(Wei(112)), tip: Wei(7), gas_price: Wei(120) });
        assert_eq!(
            of(&Value::Null, Some(Wei(3))),
            Market { base_fee: Some(Wei(113)), tip: Wei(3), gas_price: Wei(120) }
        );
        assert_eq!(of(&Value::Null, None).tip, Wei(1));
        assert_eq!(with_base_fee(Wei(0), Some(Wei(0)), &Value::Null, Some(Wei(0))).tip, Wei(0));
        assert_eq!(with_base_fee(Wei(100), None, &Value::Null, None).gas_price, Wei(113));
    }
}
