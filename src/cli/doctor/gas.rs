//! The chain's gas rules: which fork it is at, which one comes, and which routes' gas does not do.

use bytes::Bytes;

use crate::chain::{Call, Chain, NodeClient, NodeRules};
use crate::cli::doctor::finding::Finding;
use crate::config::Settings;
use crate::model::{Address, Timestamp, Wei};
use crate::observe::traces::Traced;
use crate::policy::forks::{Fork, Forks, GasRules, NextFork};
use crate::policy::gas::{self, FLOOR_PROBE};
use crate::policy::routes::FixedGas;

const AREA: &str = "gas";

pub(super) async fn examine(settings: &Settings, chain: &NodeClient) -> Vec<Finding> {
    let rules = chain.node_rules().await;
    let observed = match settings.signers.first() {
        Some(signer) => observed(chain, signer.address()).await,
        None => None,
    };
    findings(&settings.lane.fixed_gas, rules, observed, Timestamp::now())
}

/// Returns the base and the floor that estimates of a transfer to the account itself show.
async fn observed(chain: &NodeClient, account: Address) -> Option<GasRules> {
    let call = |data: Vec<u8>| Call { from: account, to: account, value: Wei(0), data: Bytes::from(data) };
    let calls = [Vec::new(), vec![1; FLOOR_PROBE]].map(|data| Traced::from(call(data)));
    let mut estimates = chain.estimate(&calls).await.into_iter();
    let (empty, filled) = (estimates.next()?.ok()?, estimates.next()?.ok()?);
    let floor = gas::floor_seen(empty, filled, FLOOR_PROBE as u64);
    Some(GasRules { base: empty.min(gas::TRANSFER), floor, most: None, dearer: None })
}

fn findings(fixed: &[FixedGas], nodes: NodeRules, observed: Option<GasRules>, now: Timestamp) -> Vec<Finding> {
    let fork = nodes.forks.map(|forks| forks.at(now));
    let most = fork.and_then(|fork| fork.rules().most);
    let current = observed.unwrap_or_else(|| fork.unwrap_or(Fork::Cancun).rules());
    let current = GasRules { most, ..current };
    let mut findings = vec![named(nodes, current)];
    for FixedGas { route, gas, least_calldata } in fixed {
        if let Err(cause) = current.check(*gas, least_calldata) {
            let what = format!("no message of {route} can be written: {}", cause.detail);
            findings.push(Finding::fail(AREA, what).remedy(format!("change {route}.gas")));
        }
    }
    let next = nodes.forks.and_then(|forks| forks.next).filter(|next| next.at > now);
    findings.extend(next.into_iter().flat_map(|next| of_next(fixed, fork, next)));
    findings
}

/// Returns what the chain is, in one line.
fn named(NodeRules { forks, most_bytes }: NodeRules, rules: GasRules) -> Finding {
    let fork = match forks {
        Some(Forks { current, .. }) => format!("fork {current} (eth_config)"),
        None => "the node does not say its fork (eth_config)".to_owned(),
    };
    let floor = match rules.floor {
        Some(floor) => format!("calldata takes {} to {} gas a byte at least", floor.zero_byte, floor.other_byte),
        None => "calldata has no floor".to_owned(),
    };
    let most = rules.most.map_or(String::new(), |most| format!(", a transaction has {most} gas at most"));
    let bytes = most_bytes.map_or(String::new(), |most| format!(" and {most} bytes at most"));
    Finding::ok(AREA, format!("{fork}: {floor}{most}{bytes}"))
}

/// Returns what the next fork changes for routes whose gas is set. Estimates follow it by themselves.
fn of_next(fixed: &[FixedGas], current: Option<Fork>, NextFork { at, fork }: NextFork) -> Vec<Finding> {
    if Some(fork) == current {
        let what = format!("a fork comes at {at}, which changes nothing that is known here, such as one for blobs");
        return vec![Finding::ok(AREA, what)];
    }
    let mut findings = Vec::new();
    for FixedGas { route, gas, least_calldata } in fixed {
        if let Err(cause) = fork.rules().check(*gas, least_calldata) {
            let what = format!("from {at} on ({fork}) no message of {route} can be written: {}", cause.detail);
            findings.push(Finding::warn(AREA, what).remedy(format!("change {route}.gas before that")));
        } else if let Some(part) = fork.rules().dearer {
            let what =
                format!("from {at} on ({fork}) {part} takes more gas: the {gas} of {route} may be too little then");
            findings.push(Finding::warn(AREA, what).remedy(format!("set {route}.gas = \"estimate\", or raise it")));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, format!("the fork {fork} comes at {at}; no route sets gas that it breaks")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Level;
    use crate::model::Gas;
    use crate::policy::gas::Floor;

    fn fixed(gas: u64, bytes: usize) -> FixedGas {
        FixedGas { route: "pay".to_owned(), gas: Gas(gas), least_calldata: vec![1; bytes] }
    }

    fn nodes(current: Fork, next: Option<Fork>) -> NodeRules {
        let next = next.map(|fork| NextFork { at: Timestamp(1_000_000), fork });
        NodeRules { forks: Some(Forks { current, next }), most_bytes: None }
    }

    #[test]
    fn gas_that_the_chain_or_its_next_fork_never_takes_is_named_with_its_route() {
        let prague = GasRules { base: Gas(21_000), floor: Some(Floor::PRAGUE), most: None, dearer: None };
        let table = [
            (fixed(25_000, 100), nodes(Fork::Osaka, None), vec![Level::Ok]),
            (fixed(24_999, 100), nodes(Fork::Osaka, None), vec![Level::Ok, Level::Fail]),
            (fixed(16_777_217, 0), nodes(Fork::Prague, None), vec![Level::Ok]),
            (fixed(16_777_217, 0), nodes(Fork::Osaka, None), vec![Level::Ok, Level::Fail]),
            (fixed(16_777_217, 0), nodes(Fork::Prague, Some(Fork::Osaka)), vec![Level::Ok, Level::Warn]),
            (fixed(50_000, 0), nodes(Fork::Prague, Some(Fork::Osaka)), vec![Level::Ok, Level::Ok]),
            (fixed(50_000, 0), nodes(Fork::Osaka, Some(Fork::Osaka)), vec![Level::Ok, Level::Ok]),
            (fixed(50_000, 0), nodes(Fork::Osaka, Some(Fork::Amsterdam)), vec![Level::Ok, Level::Warn]),
            (fixed(50_000, 0), NodeRules::default(), vec![Level::Ok]),
        ];
        for (fixed, nodes, expected) in table {
            let found = findings(std::slice::from_ref(&fixed), nodes, Some(prague), Timestamp(0));
            let levels: Vec<_> = found.iter().map(|finding| finding.level).collect();
            assert_eq!(levels, expected, "{fixed:?} {nodes:?}");
            assert!(found.iter().filter(|found| found.level > Level::Ok).all(|found| found.what.contains("pay")));
        }
    }

    #[test]
    fn what_estimates_show_counts_for_the_floor_and_the_fork_where_there_are_none() {
        let none = GasRules { base: Gas(21_000), floor: None, most: None, dearer: None };
        let level = |observed| findings(&[fixed(22_600, 100)], nodes(Fork::Osaka, None), observed, Timestamp(0)).len();
        assert_eq!((level(Some(none)), level(None)), (1, 2));
        let found = findings(&[], nodes(Fork::Osaka, None), None, Timestamp(0));
        assert!(found[0].what.contains("fork Osaka") && found[0].what.contains("16777216 gas at most"), "{}", found[0]);
    }
}
