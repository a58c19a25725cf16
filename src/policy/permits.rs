//! The operator's permits: the contracts that requests may call, the functions, and for how much. Everything else is refused
//! before anything is signed. Cancellations, deployments and gap fillers are exempt.

use std::fmt;

use crate::model::{Address, Cause, Fee, Gas, GasRule, Reason, Wei};
use crate::policy::routes::{Amount, Calldata, Route};
use crate::policy::{abi, records};

/// Everything that is not set is permitted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permits {
    /// Contracts that requests may call; `None` allows any.
    pub allow: Option<Vec<Allowed>>,
    pub max_value: Option<Wei>,
    pub max_gas: Option<Gas>,
    /// For the gas of one request, as it is offered.
    pub max_fee: Option<Wei>,
    pub value_per_day: Option<Wei>,
    pub fee_per_day: Option<Wei>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    pub to: Address,
    /// With which functions; `None`: with anything.
    pub functions: Option<Vec<Named>>,
}

/// A function, as it is known in calldata and to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub selector: [u8; 4],
    /// The function's name and the types of its arguments.
    pub signature: String,
}

impl Named {
    pub fn new(signature: &str) -> Result<Self, String> {
        let function = abi::function(signature)?;
        Ok(Self { selector: function.selector().0, signature: function.signature() })
    }
}

impl Permits {
    pub fn check(&self, to: Address, value: Wei, calldata: &[u8]) -> Result<(), Cause> {
        self.check_target(to)?;
        self.check_function(to, calldata.first_chunk().copied())?;
        self.check_value(value)
    }

    pub fn check_gas(&self, gas: Gas) -> Result<(), Cause> {
        let Some(most) = self.max_gas.filter(|most| gas > *most) else { return Ok(()) };
        Err(Cause::new(Reason::MaxGas, format!("it takes {gas} gas, policy.max_gas is {most}")))
    }

    /// Checks the price of gas. A refusal may end when the price has come down.
    pub fn check_fee(&self, gas: Gas, fee: Fee, l1_fee: Wei) -> Result<(), Cause> {
        let cost = fee.total(gas).plus(l1_fee);
        for (rule, most) in [(Reason::MaxFee, self.max_fee), (Reason::FeePerDay, self.fee_per_day)] {
            if let Some(most) = most.filter(|most| cost > *most) {
                let l1 = if l1_fee > Wei(0) { format!(" with {l1_fee} for L1") } else { String::new() };
                let detail = format!("its {gas} gas may cost {cost}{l1} at the current price, policy.{rule} is {most}");
                return Err(Cause::new(rule, detail));
            }
        }
        Ok(())
    }

    /// Returns whether a replacement may offer this fee.
    pub fn may_offer(&self, gas: Gas, fee: Fee) -> bool {
        self.max_fee.is_none_or(|most| fee.total(gas) <= most)
    }

    pub fn limits_fees(&self) -> bool {
        self.max_fee.is_some() || self.fee_per_day.is_some()
    }

    /// Fails where no message of this route could ever be written.
    pub fn check_route(&self, route: &Route) -> Result<(), Cause> {
        let selector = match &route.calldata {
            Calldata::Body | Calldata::HexBody | Calldata::Carried => None,
            Calldata::Call(call) => Some(call.selector()),
            Calldata::Record(kept) => Some(records::selector_of(*kept)),
        };
        if let Some(to) = route.to {
            self.check_target(to)?;
            if selector.is_some() {
                self.check_function(to, selector)?;
            }
        }
        if let Amount::Fixed(value) = route.value {
            self.check_value(value)?;
        }
        if let GasRule::Fixed(gas) = route.gas {
            self.check_gas(gas)?;
        }
        Ok(())
    }

    fn check_target(&self, to: Address) -> Result<(), Cause> {
        if self.allow.as_ref().is_none_or(|allow| allow.iter().any(|allowed| allowed.to == to)) {
            return Ok(());
        }
        Err(Cause::new(Reason::Target, format!("{to} is in no [[policy.allow]]")))
    }

    /// Checks every entry for an address.
    fn check_function(&self, to: Address, selector: Option<[u8; 4]>) -> Result<(), Cause> {
        let Some(allowed) = &self.allow else { return Ok(()) };
        let mut names = Vec::new();
        for entry in allowed.iter().filter(|entry| entry.to == to) {
            let Some(functions) = &entry.functions else { return Ok(()) };
            if functions.iter().any(|function| Some(function.selector) == selector) {
                return Ok(());
            }
            names.extend(functions.iter().map(|function| function.signature.as_str()));
        }
        let what = match selector {
            Some(selector) => format!("the function 0x{}", hex::encode(selector)),
            None => "calldata without a function".to_owned(),
        };
        let detail = format!("{what} of {to} is not allowed; [[policy.allow]] has {}", names.join(", "));
        Err(Cause::new(Reason::Function, detail))
    }

    fn check_value(&self, value: Wei) -> Result<(), Cause> {
        for (rule, most) in [(Reason::MaxValue, self.max_value), (Reason::ValuePerDay, self.value_per_day)] {
            if let Some(most) = most.filter(|most| value > *most) {
                let detail = format!("it pays {value}, policy.{rule} is {most}");
                return Err(Cause::new(rule, detail));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let off = |most: Option<String>| most.unwrap_or_else(|| "off".to_owned());
        let wei = |most: Option<Wei>| off(most.map(|most| most.to_string()));
        let targets = self.allow.as_ref().map_or("anybody".to_owned(), |allow| format!("{} addresses", allow.len()));
        write!(
            f,
            "{targets} may be called; of one at most value {}, gas {}, fee {}; within a day value {}, fees {}",
            wei(self.max_value),
            off(self.max_gas.map(|gas| gas.to_string())),
            wei(self.max_fee),
            wei(self.value_per_day),
            wei(self.fee_per_day)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Address = Address([1; 20]);
    const OTHER: Address = Address([2; 20]);

    fn permits() -> Permits {
        let transfer = Named::new("transfer(address to, uint256)").unwrap();
        Permits {
            allow: Some(vec![
                Allowed { to: TOKEN, functions: Some(vec![transfer]) },
                Allowed { to: OTHER, functions: None },
            ]),
            max_value: Some(Wei(100)),
            max_gas: Some(Gas(50_000)),
            max_fee: Some(Wei(1_000_000)),
            value_per_day: Some(Wei(150)),
            fee_per_day: Some(Wei(900_000)),
        }
    }

    #[test]
    fn each_rule_refuses_with_its_name_and_what_it_found() {
        let permits = permits();
        let transfer = hex::decode("a9059cbb00").unwrap();
        let of = |to, value, calldata: &[u8]| permits.check(to, Wei(value), calldata).err();
        assert_eq!(of(TOKEN, 100, &transfer), None);
        assert_eq!(of(OTHER, 0, b""), None, "any call");
        let cases = [
            (of(Address([3; 20]), 0, &transfer), "policy.target", "is in no [[policy.allow]]"),
            (of(TOKEN, 0, b"\x01\x02\x03\x04"), "policy.function", "0x01020304 of 0x0101"),
            (of(TOKEN, 0, b""), "policy.function", "without a function"),
            (of(TOKEN, 0, b""), "policy.function", "has transfer(address,uint256)"),
            (of(OTHER, 101, b""), "policy.max_value", "it pays 101 wei, policy.max_value is 100 wei"),
            (permits.check_gas(Gas(50_001)).err(), "policy.max_gas", "50001"),
        ];
        for (cause, key, detail) in cases {
            let cause = cause.unwrap();
            assert_eq!(cause.routing_key(), key);
            assert!(cause.detail.contains(detail) && !cause.reason.may_pass(), "{cause}");
        }
        let unbounded = Permits { max_value: None, ..permits.clone() };
        assert_eq!(unbounded.check(OTHER, Wei(151), b"").unwrap_err().reason, Reason::ValuePerDay);
        assert_eq!(Permits::default().check(TOKEN, Wei(u128::MAX), b""), Ok(()));
    }

    #[test]
    fn a_fee_that_is_too_high_may_pass() {
        let permits = permits();
        let fee = |wei| Fee::Legacy { gas_price: Wei(wei) };
        assert_eq!(permits.check_fee(Gas(30_000), fee(30), Wei(0)), Ok(()));
        let day = permits.check_fee(Gas(31_000), fee(30), Wei(0)).unwrap_err();
        assert_eq!((day.routing_key().as_str(), day.reason.may_pass()), ("policy.fee_per_day", true));
        let one = permits.check_fee(Gas(50_000), fee(u128::MAX), Wei(0)).unwrap_err();
        let l1 = permits.check_fee(Gas(30_000), fee(30), Wei(1)).unwrap_err();
        assert!(l1.routing_key() == "policy.fee_per_day" && l1.detail.contains("with 1 wei for L1"), "{l1}");
        assert_eq!((one.routing_key().as_str(), one.reason.may_pass()), ("policy.max_fee", true));
    }
}
