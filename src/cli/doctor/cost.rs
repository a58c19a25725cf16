//! Reports the cost of a write now: its gas by the price, and a rollup's fees beside that.

use bytes::Bytes;

use crate::chain::{Call, Chain, Header, NodeClient};
use crate::cli::doctor::finding::Finding;
use crate::config::Settings;
use crate::model::{Address, Fee, Gas, RequestId, Wei};
use crate::observe::traces::Traced;
use crate::policy::fee::Market;
use crate::policy::l1_fee::{L1Fees, OPERATOR_PROBES, ORACLES, OperatorFees, Oracle, PROBES};
use crate::policy::records;
use crate::policy::routes::{Calldata, Route};

const AREA: &str = "cost";

/// A write that an operator can compare others with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sample {
    what: String,
    gas: Gas,
    calldata: usize,
}

/// Fees of the chain beside the gas.
#[derive(Debug, Clone, Copy, Default)]
struct Beside {
    l1: Option<L1Fees>,
    operator: OperatorFees,
}

/// Returns a line for a transfer, and one for the most expensive route whose gas is known.
pub(super) async fn examine(
    settings: &Settings,
    chain: &NodeClient,
    (head, market): (&Header, &Market),
    offered: Fee,
) -> Vec<Finding> {
    let Some(signer) = settings.signers.first() else { return Vec::new() };
    let account = signer.address();
    let samples = samples(settings, chain, account).await;
    let beside = beside(chain, account, head).await;
    samples.iter().map(|sample| finding(sample, paid(offered, market), offered.tip(), beside)).collect()
}

/// Returns what a unit of gas costs in the next block, which is less than what is offered.
fn paid(offered: Fee, market: &Market) -> Wei {
    match (offered, market.base_fee) {
        (Fee::Eip1559 { max_fee, tip }, Some(base_fee)) => base_fee.plus(tip).min(max_fee),
        (Fee::Eip1559 { .. } | Fee::Legacy { .. }, _) => offered.ceiling(),
    }
}

async fn samples(settings: &Settings, chain: &NodeClient, account: Address) -> Vec<Sample> {
    let mut samples = Vec::new();
    let transfer = Call { from: account, to: account, value: Wei(0), data: Bytes::new() };
    if let Some(gas) = estimated(chain, transfer).await {
        samples.push(Sample { what: "a transfer to the account itself".to_owned(), gas, calldata: 0 });
    }
    if let Some(fixed) = settings.lane.fixed_gas.iter().max_by_key(|fixed| fixed.gas) {
        let what = format!("a message of {} at most", fixed.route);
        samples.push(Sample { what, gas: fixed.gas, calldata: fixed.least_calldata.len() });
    }
    let record = settings.admission.routes.iter().find_map(|Route { name, to, calldata, .. }| {
        let Calldata::Record(kept) = calldata else { return None };
        Some((name, (*to)?, *kept))
    });
    if let Some((route, to, kept)) = record {
        // An id that no message has.
        let id = records::record_id(&RequestId::new("chainwriter doctor").expect("a short text is an id"));
        let data = records::calldata(id, &[], kept);
        let calldata = data.len();
        if let Some(gas) = estimated(chain, Call { from: account, to, value: Wei(0), data }).await {
            samples.push(Sample { what: format!("a record of {route} with an empty body"), gas, calldata });
        }
    }
    samples
}

async fn estimated(chain: &NodeClient, call: Call) -> Option<Gas> {
    chain.estimate(&[Traced::from(call)]).await.pop()?.ok()
}

/// Asks the first oracle that the chain has. A chain that is no rollup has none.
async fn beside(chain: &NodeClient, account: Address, head: &Header) -> Beside {
    let ask = async |oracle: Oracle, data: Vec<u8>| {
        let call = Call { from: account, to: oracle.contract, value: Wei(0), data: Bytes::from(data) };
        chain.call(&call, head.number).await.ok().and_then(|data| Oracle::answer(&data))
    };
    for oracle in ORACLES {
        let [short, long] = PROBES;
        let (Some(short), Some(long)) =
            (ask(oracle, oracle.question(short)).await, ask(oracle, oracle.question(long)).await)
        else {
            continue;
        };
        let mut operator = Vec::new();
        for question in OPERATOR_PROBES.into_iter().filter_map(|gas| oracle.operator_question(gas)) {
            operator.extend(ask(oracle, question).await);
        }
        let operator = <[Wei; 2]>::try_from(operator).map(OperatorFees::through).unwrap_or_default();
        return Beside { l1: Some(L1Fees::through([short, long])), operator };
    }
    Beside::default()
}

fn finding(sample: &Sample, price: Wei, tip: Wei, beside: Beside) -> Finding {
    let Sample { what, gas, calldata } = sample;
    let l1 = beside.l1.map(|fees| fees.of(*calldata));
    let operator = beside.operator.of(*gas);
    let cost = price.scaled_up(gas.0.into(), 1).plus(l1.unwrap_or_default()).plus(operator);
    let mut parts = format!("{gas} gas at {price}, {tip} of it the tip");
    if let Some(l1) = l1 {
        parts += &format!(", {l1} for L1");
    }
    if operator > Wei(0) {
        parts += &format!(", {operator} for the chain's operator");
    }
    let wei = if cost < Wei(1_000_000) { String::new() } else { format!(" ({} wei)", cost.0) };
    Finding::ok(AREA, format!("a write costs {cost}{wei} now as {what}: {parts}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_costs_what_each_part_of_it_takes() {
        let sample = Sample { what: "a transfer".to_owned(), gas: Gas(21_000), calldata: 0 };
        let alone = finding(&sample, Wei(2_000_000_000), Wei(1_000_000_000), Beside::default()).what;
        let expected = "a write costs 42000 gwei (42000000000000 wei) now as a transfer: 21000 gas at 2 gwei, 1 gwei of it the tip";
        assert_eq!(alone, expected);
        let l1 = Some(L1Fees::through([Wei(7_000_000), Wei(8_000_000)]));
        let beside = Beside { l1, operator: OperatorFees::through([Wei(5), Wei(1_000_005)]) };
        let on_rollup = finding(&sample, Wei(10), Wei(1), beside).what;
        let sum = 210_000 + 7_000_000 + 21_005;
        assert!(on_rollup.contains(&format!("({sum} wei)")), "{on_rollup}");
        assert!(on_rollup.ends_with("0.007 gwei for L1, 21005 wei for the chain's operator"), "{on_rollup}");
    }

    #[test]
    fn the_next_block_asks_for_its_base_fee_and_the_tip() {
        let market = Market { base_fee: Some(Wei(10)), tip: Wei(2), gas_price: Wei(13) };
        let offered = Fee::Eip1559 { max_fee: Wei(22), tip: Wei(2) };
        assert_eq!(paid(offered, &market), Wei(12));
        assert_eq!(paid(Fee::Eip1559 { max_fee: Wei(11), tip: Wei(2) }, &market), Wei(11));
        assert_eq!(paid(Fee::Legacy { gas_price: Wei(13) }, &market), Wei(13));
    }
}
