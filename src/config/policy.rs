//! `[policy]`: what an operator permits.

use serde_json::Value;

use crate::config::chain::GAS_LIMITS;
use crate::config::reader::{Findings, Section, or_off, tables, texts};
use crate::model::{Gas, Reason, Wei};
use crate::policy::admission::AdmissionRules;
use crate::policy::batch::{BatchKind, Batching};
use crate::policy::limits::Limits;
use crate::policy::permits::{Allowed, Named, Permits};

pub(super) fn read(mut section: Section<'_>) -> Permits {
    let allow = section.take("allow");
    let allow = tables("policy.allow", allow, "must be tables; write [[policy.allow]]", section.findings, allowed);
    Permits {
        allow,
        max_value: wei_or_off(&mut section, "max_value"),
        max_gas: section.number_or_off("max_gas", GAS_LIMITS.start().0..=GAS_LIMITS.end().0).map(Gas),
        max_fee: wei_or_off(&mut section, "max_fee"),
        value_per_day: wei_or_off(&mut section, "value_per_day"),
        fee_per_day: wei_or_off(&mut section, "fee_per_day"),
    }
}

/// Reports the routes of which no message could ever be written.
pub(super) fn compare(admission: &AdmissionRules, batching: &Batching, findings: &mut Findings) {
    let AdmissionRules { permits, routes, .. } = admission;
    for BatchKind { to, many } in batching.kinds.iter().filter(|_| batching.is_on()) {
        if let Err(cause) = permits.check(*to, Wei(0), &many.selector()) {
            findings.add("policy.allow", format!("refuses every batch: {}", cause.detail));
        }
    }
    for route in routes {
        if route.to.is_none() && permits.allow.is_none() {
            let problem =
                format!("there is none, and {} has mode = \"transaction\": list whom messages may call", route.name);
            findings.add("policy.allow", problem);
        }
        if let Err(cause) = permits.check_route(route) {
            let is_of_allow = matches!(cause.reason, Reason::Target | Reason::Function);
            let key = if is_of_allow { "policy.allow".to_owned() } else { cause.routing_key() };
            findings.add(&key, format!("refuses every message of {}: {}", route.name, cause.detail));
        }
    }
}

fn wei_or_off(section: &mut Section<'_>, key: &'static str) -> Option<Wei> {
    let expected = "an amount such as \"0.5 ether\", or \"off\"";
    section.read(key, expected, None, |text| or_off(text, |amount| amount.parse().ok()))
}

fn allowed(mut section: Section<'_>) -> Allowed {
    let to = section.address("to", "an address");
    let functions = section.list("functions").map(|functions| named(&mut section, &functions));
    Allowed { to, functions }
}

fn named(section: &mut Section<'_>, value: &Value) -> Vec<Named> {
    let Some(signatures) = texts(value).filter(|signatures| !signatures.is_empty()) else {
        section.fault(
            "functions",
            "must list signatures, such as [\"transfer(address,uint256)\"]; without it every call is allowed",
        );
        return Vec::new();
    };
    let mut named = Vec::new();
    for signature in signatures {
        match Named::new(signature) {
            Ok(function) => named.push(function),
            Err(problem) => section.fault("functions", format!("{signature:?} {problem}")),
        }
    }
    named
}

/// Reads `[limits]`; what counts by days is `[policy]`'s.
pub(super) fn limits(mut section: Section<'_>, permits: &Permits) -> Limits {
    Limits {
        writes_per_second: section.number_or_off("writes_per_second", 1..=10_000),
        in_flight: section.number_or_off("in_flight", 1..=1_000_000),
        gas_per_hour: section.number_or_off("gas_per_hour", 21_000..=1_000_000_000_000_000).map(Gas),
        value_per_day: permits.value_per_day,
        fee_per_day: permits.fee_per_day,
    }
}

#[cfg(test)]
mod tests {
    use crate::config::load_text;
    use crate::model::{Gas, Wei};

    const REST: &str = "[broker]\nqueue = \"q\"\n[worker]\norganisation = \"acme\"\n[chain]\nid = 1\n[[signer]]\n\
                        key = \"ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80\"\n";
    const TO: &str = "0x00000000000000000000000000000000000000aa";

    fn with(write: &str, policy: &str) -> String {
        format!("{REST}[write]\nto = \"{TO}\"\n{write}\n[policy]\n{policy}\n")
    }

    #[test]
    fn a_policy_is_read_and_its_days_are_limits() {
        let policy = format!(
            "max_value = \"1 ether\"\nmax_gas = 100000\nmax_fee = \"5 gwei\"\nvalue_per_day = \"2 ether\"\nfee_per_day = 7\n\
             [[policy.allow]]\nto = \"{TO}\"\nfunctions = [\"f(uint256 a)\"]\n"
        );
        let settings = load_text(&with("", &policy)).unwrap();
        let permits = &settings.admission.permits;
        assert_eq!((permits.max_gas, permits.max_fee), (Some(Gas(100_000)), Some(Wei(5_000_000_000))));
        assert_eq!(
            (settings.tuning.limits.value_per_day, settings.tuning.limits.fee_per_day),
            (Some(Wei(2 * 10_u128.pow(18))), Some(Wei(7)))
        );
        let functions = permits.allow.as_ref().unwrap()[0].functions.as_ref().unwrap();
        assert_eq!(functions[0].signature, "f(uint256)");
        assert_eq!(load_text(&with("", "")).unwrap().admission.permits, Default::default());
    }

    #[test]
    fn the_documented_example_is_a_policy() {
        let page = include_str!("../../docs/setup/policy.md");
        let begin = page.find("```toml\n[policy]").unwrap() + "```toml\n".len();
        let policy = page[begin..].split("```").next().unwrap();
        let routes = "to = \"0x00000000000000000000000000000000000000d1\"";
        let settings = load_text(&format!("{REST}[write]\n{routes}\n{policy}")).unwrap();
        assert_eq!(settings.admission.permits.allow.as_ref().unwrap().len(), 2);
    }

    #[test]
    fn a_route_that_is_always_refused_is_a_fault_that_names_both() {
        let faults = |write: &str, policy: &str| load_text(&with(write, policy)).unwrap_err().0.join("\n");
        let call = "mode = \"call\"\nfunction = \"f()\"";
        let cases = [
            (
                "",
                "[[policy.allow]]\nto = \"0x00000000000000000000000000000000000000bb\"",
                "- policy.allow: refuses every message of write: 0x",
            ),
            (
                call,
                &format!("[[policy.allow]]\nto = \"{TO}\"\nfunctions = [\"g()\"]"),
                "- policy.allow: refuses every message of write: the function 0x26121ff0",
            ),
            (
                "mode = \"record\"",
                &format!("[[policy.allow]]\nto = \"{TO}\"\nfunctions = [\"g()\"]"),
                "- policy.allow: refuses",
            ),
            (
                "value = \"2 gwei\"",
                "max_value = \"1 gwei\"",
                "- policy.max_value: refuses every message of write: it pays 2 gwei",
            ),
            (
                "mode = \"record\"",
                &format!(
                    "[[policy.allow]]\nto = \"{TO}\"\nfunctions = [\"record(bytes32,bytes32)\"]\n[batch]\nmax_requests = 2"
                ),
                "- policy.allow: refuses every batch: the function 0x",
            ),
            ("gas = 30000", "max_gas = 29999", "- policy.max_gas: refuses every message of write"),
            ("", "max_fee = \"much\"", "- policy.max_fee: is \"much\"; expected an amount"),
            ("", "allow = 1", "- policy.allow: must be tables"),
            ("", &format!("[[policy.allow]]\nto = \"{TO}\"\nfunctions = []"), "- policy.allow[1].functions: must list"),
            ("", &format!("[[policy.allow]]\nto = \"{TO}\"\nfunctions = [\"g(\"]"), "\"g(\" is no signature"),
            (
                "",
                &format!("[[policy.allow]]\nto = \"{TO}\"\nfunctions = [\"g(uint256,adress)\"]"),
                "\"g(uint256,adress)\" has an argument of type adress",
            ),
        ];
        for (write, policy, fault) in cases {
            let faults = faults(write, policy);
            assert!(faults.contains(fault), "{faults}");
        }
    }
}
