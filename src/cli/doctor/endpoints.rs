//! Each endpoint by itself, judged by what it is there for.

use std::time::Duration;

use crate::chain::{BlockTag, Chain, ChainError, ClientSettings, EndpointAccess, Header, NodeClient};
use crate::cli::doctor::finding::{Finding, Level};
use crate::cli::spell;
use crate::config::Settings;
use crate::model::Timestamp;
use crate::policy::node_texts::advice;
use crate::rpc::label;

pub(super) const AREA: &str = "node";
/// A newest block older than this is remarkable where `chain.max_head_age` is off.
const OLD_HEAD: Duration = Duration::from_secs(10 * 60);
/// Programs that say what they are and not how many transactions of one account their pools keep: that number, unless an option
/// sets another, which ones it counts, and that option.
const POOLS: [(&str, usize, &str, &str); 4] = [
    // https://besu.hyperledger.org/public-networks/reference/cli/options
    ("besu/", 200, "", "--tx-pool-max-future-by-sender"),
    // core/txpool/legacypool: the others fit as long as the pool has room for 5,120 of all accounts.
    ("geth/", 64, " that come before their turn", "--txpool.accountqueue"),
    // crates/transaction-pool/src/config.rs
    ("reth/", 16, "", "--txpool.max-account-slots"),
    // txnprovider/txpool/txpoolcfg
    ("erigon/", 16, "", "--txpool.accountslots"),
];
/// Programs that cannot do what a worker needs, and what an operator does about it. `make test-nodes` has seen it.
const LACKS: [(&str, &str, &str); 1] = [(
    "ganache/",
    "may run a replaced transaction beside its replacement, so a write may land twice",
    "use it for trials alone, with chain.replace_after = \"24h\"; Anvil, Hardhat and `geth --dev` have no such fault",
)];
/// A node that says that it is syncing is asked again so often, after so long.
const SYNC_CHECKS: u32 = 2;
const SYNC_CHECK: Duration = Duration::from_secs(2);

/// Returns the findings of each endpoint, and the heads of those that serve.
pub(super) async fn examine(settings: &Settings) -> (Vec<Finding>, Vec<Header>) {
    let all = &settings.chain;
    let receivers = EndpointAccess::receivers(&all.endpoints);
    let (mut judged, mut heads) = (Vec::new(), Vec::new());
    for (access, gets_transactions) in all.endpoints.iter().zip(receivers) {
        let alone = ClientSettings { endpoints: vec![access.clone()], ..all.clone() };
        let node = match NodeClient::new(&alone) {
            Ok(node) => node,
            Err(error) => return (vec![no_client(&error)], Vec::new()),
        };
        let use_of = UseOf { reads: access.role.reads(), gets_transactions };
        if use_of.reads {
            match newest(&node).await {
                Ok(head) => {
                    let label = node.endpoint_states().pop().map_or_else(String::new, |state| state.label);
                    judged.push((
                        use_of,
                        served(settings, &format!("{label}{}", words(access, gets_transactions)), &head),
                    ));
                    // Some do not say; that is no fault.
                    let program = node.program().await.ok();
                    judged.extend(program.map(|program| (use_of, pool(settings, &label, &program))));
                    heads.push(head);
                }
                Err(error) => judged.push((use_of, failed(&error))),
            }
        } else if gets_transactions {
            judged.push((use_of, takes_transactions(&node, access).await));
        }
    }
    let mut findings = without_those_made_up_for(judged);
    findings.extend(all.endpoints.iter().chain(&all.heads).filter_map(in_the_clear));
    findings.extend(announcing(all).await);
    let best = heads.iter().map(|head| head.number).max();
    let behind = |head: &&Header| best.is_some_and(|best| best.0.saturating_sub(head.number.0) > all.max_lag);
    if let (Some(head), Some(best)) = (heads.iter().find(behind), best) {
        let what = format!("an endpoint has block {} where another has {best}", head.number);
        findings.push(Finding::warn(AREA, what).remedy("it is not asked until it has caught up: see its own log"));
    }
    (findings, heads)
}

/// Returns a finding for each endpoint that is to announce new blocks. Without one polls find them.
async fn announcing(settings: &ClientSettings) -> Vec<Finding> {
    let node = match NodeClient::new(settings) {
        Ok(node) => node,
        Err(error) => return vec![no_client(&error)],
    };
    let finding = |(label, taken): (String, Result<(), String>)| match taken {
        Ok(()) => Finding::ok(AREA, format!("{label} announces new blocks")),
        Err(said) => Finding::warn(AREA, format!("{label} does not announce new blocks: {said}"))
            .remedy("polls find them a little later; does it serve WebSockets? correct its url, or remove it"),
    };
    node.check_heads().await.into_iter().map(finding).collect()
}

/// Says what an endpoint is there for.
#[derive(Debug, Clone, Copy)]
struct UseOf {
    reads: bool,
    gets_transactions: bool,
}

/// Lowers the level of a failure where work goes on: another endpoint does all that this one is there for.
fn without_those_made_up_for(judged: Vec<(UseOf, Finding)>) -> Vec<Finding> {
    let works = |suits: fn(&UseOf) -> bool| {
        let fails = |finding: &Finding| finding.level == Level::Fail;
        judged.iter().any(|(use_of, finding)| suits(use_of) && !fails(finding))
    };
    let (can_read, can_send) = (works(|use_of| use_of.reads), works(|use_of| use_of.gets_transactions));
    let lowered = |(use_of, mut finding): (UseOf, Finding)| {
        let is_made_up_for = (can_read || !use_of.reads) && (can_send || !use_of.gets_transactions);
        if finding.level == Level::Fail && is_made_up_for {
            finding.level = Level::Warn;
        }
        finding
    };
    judged.into_iter().map(lowered).collect()
}

fn words(access: &EndpointAccess, gets_transactions: bool) -> &'static str {
    match (access.is_private, gets_transactions) {
        (true, _) => ", which alone gets transactions (private)",
        (false, true) => "",
        (false, false) => ", which gets no transactions",
    }
}

/// Asks an endpoint that gets transactions only for what it is there for, with bytes that are no transaction.
async fn takes_transactions(node: &NodeClient, access: &EndpointAccess) -> Finding {
    let label = label(&access.url);
    let private = if access.is_private { ", and no other endpoint does (private)" } else { "" };
    match node.send_nothing().await {
        Ok(()) => Finding::ok(AREA, format!("{label} takes transactions{private}; it is asked for nothing else")),
        Err(ChainError::Node { message, .. }) => {
            Finding::fail(AREA, format!("{label} has role = \"send\" and does not take transactions: {message}"))
                .remedy("does it serve eth_sendRawTransaction? correct its url, or its role")
        }
        Err(error) => failed(&error),
    }
}

/// Warns of headers that anyone on the way can read.
fn in_the_clear(access: &EndpointAccess) -> Option<Finding> {
    let is_here = matches!(access.url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    if !access.headers.are_set() || matches!(access.url.scheme(), "https" | "wss") || is_here {
        return None;
    }
    let what = format!(
        "{} gets the headers of headers_file without encryption, where anyone on the way can read them",
        label(&access.url)
    );
    Some(Finding::warn(AREA, what).remedy("use https:// or wss://"))
}

/// Returns a finding for each endpoint that has to confirm what is final: without it nothing becomes final.
pub(super) async fn confirming(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    for access in &settings.chain.confirmation.endpoints {
        let alone = ClientSettings { endpoints: vec![access.clone()], ..settings.chain.clone() };
        let asked = match NodeClient::new(&alone) {
            Ok(node) => newest(&node).await,
            Err(error) => return vec![no_client(&error)],
        };
        findings.push(match asked {
            Ok(head) => {
                Finding::ok(AREA, format!("chain.confirm_with: newest block {} at {}", head.number, label(&access.url)))
            }
            Err(error) => Finding::fail(AREA, format!("chain.confirm_with: {error}"))
                .remedy("until it answers nothing is final; start it, or correct chain.confirm_with"),
        });
    }
    findings
}

async fn newest(node: &NodeClient) -> Result<Header, ChainError> {
    let nothing = || ChainError::Nonsense { endpoint: "the node".to_owned(), detail: "no newest block".to_owned() };
    let mut head = node.header(BlockTag::Latest).await;
    // Some say that they are syncing whatever they do: further blocks show that they are up to date.
    for _ in 0..SYNC_CHECKS {
        if !matches!(head, Err(ChainError::Syncing { .. })) {
            break;
        }
        tokio::time::sleep(SYNC_CHECK).await;
        head = node.header(BlockTag::Latest).await;
    }
    head?.ok_or_else(nothing)
}

pub(super) fn no_client(error: &impl std::fmt::Display) -> Finding {
    Finding::fail(AREA, format!("the HTTP client cannot be made: {error}"))
        .remedy("install the system's certificates (ca-certificates)")
}

pub(super) fn failed(error: &ChainError) -> Finding {
    let finding = Finding::fail(AREA, error.to_string());
    match error {
        ChainError::Unreachable { .. } => finding.remedy("start the node, or correct chain.endpoints"),
        ChainError::Denied { said, .. } => {
            finding.remedy(advice(said).unwrap_or("see what it says, and the node's log; or correct chain.endpoints"))
        }
        ChainError::NoState { .. } => finding
            .remedy("repair the node, which lost data in a crash or by pruning, or sync it anew; or add an endpoint"),
        ChainError::NoStatus { .. } => {
            finding.remedy("such a chain cannot be written to; or add an endpoint of another kind")
        }
        ChainError::RateLimited { .. } => {
            finding.remedy("ask for less often, or for a larger plan, or add an endpoint")
        }
        ChainError::Syncing { .. } | ChainError::Lagging { .. } => {
            finding.remedy("wait until it has caught up, or add an endpoint")
        }
        ChainError::Nonsense { .. } => finding.remedy("does chain.endpoints name a JSON-RPC interface?"),
        ChainError::Node { .. } => finding.remedy("does the node serve this method? see its log"),
        // They say so themselves.
        ChainError::WrongChain { .. } | ChainError::Unconfirmed { .. } => finding,
    }
}

fn served(settings: &Settings, label: &str, head: &Header) -> Finding {
    let age = block_time(head).age();
    let what =
        format!("chain {}, newest block {} of {} ago, at {label}", settings.chain.chain_id, head.number, spell(age));
    if age > settings.tuning.max_head_age.unwrap_or(OLD_HEAD) {
        return Finding::warn(AREA, what).remedy(
            "blocks do not come: see the node's log and its peers; or this host's clock is wrong: see `timedatectl`; unless the \
             chain makes blocks for transactions only",
        );
    }
    Finding::ok(AREA, what)
}

/// Returns how many transactions of an account the node may keep, as far as it says.
fn pool(settings: &Settings, label: &str, program: &str) -> Finding {
    let in_flight = settings.lane.in_flight;
    let what = format!("{label} runs {program}");
    let name = program.to_lowercase();
    if let Some((_, lack, remedy)) = LACKS.iter().find(|(known, ..)| name.starts_with(known)) {
        return Finding::warn(AREA, format!("{what}, which {lack}")).remedy(*remedy);
    }
    let Some((_, most, which, option)) = POOLS.iter().find(|(known, ..)| name.starts_with(known)) else {
        return Finding::ok(AREA, what);
    };
    let what = format!(
        "{what}, which keeps {most} transactions of an account{which} unless {option} says more; the worker sends no more than it \
         keeps, and chain.in_flight is {in_flight}"
    );
    // In-order sends meet no limit on those before their turn.
    if in_flight <= *most || !which.is_empty() {
        return Finding::ok(AREA, what);
    }
    Finding::notice(AREA, what).remedy("if that limits the rate, let the node keep more, or use several signers")
}

pub(super) fn block_time(head: &Header) -> Timestamp {
    Timestamp(i64::try_from(head.timestamp.saturating_mul(1000)).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load_with;

    #[test]
    fn a_pool_that_may_be_too_small_is_told() {
        let settings = |in_flight: u32| load_with(&format!("chain.in_flight = {in_flight}")).unwrap();
        let level = |in_flight, program| pool(&settings(in_flight), "node:8545", program).level;
        assert_eq!(level(200, "besu/v25.9.0/linux-x86_64/openjdk-java-21"), Level::Ok);
        assert_eq!(level(201, "besu/v25.9.0/linux-x86_64/openjdk-java-21"), Level::Note);
        assert_eq!(level(5000, "Geth/v1.16.7-stable/linux-amd64/go1.25.4"), Level::Ok, "it keeps those in order");
        assert_eq!(level(17, "reth/v1.9.0"), Level::Note);
        assert_eq!(level(100_000, "anvil/v1.5.0"), Level::Ok, "it is not known");
        let lacking = pool(&settings(64), "node:8545", "Ganache/v7.9.2/EthereumJS TestRPC/v7.9.2/ethereum-js");
        assert!(lacking.level == Level::Warn && lacking.to_string().contains("may land twice"), "{lacking}");
        let told = pool(&settings(300), "node:8545", "besu/v25.9.0").to_string();
        assert!(told.contains("keeps 200") && told.contains("--tx-pool-max-future-by-sender"), "{told}");
    }

    #[test]
    fn a_failure_is_made_up_for_by_what_does_all_that_the_endpoint_is_there_for() {
        let (all, read, send) = ((true, true), (true, false), (false, true));
        for (endpoints, levels) in [
            (vec![(all, false)], vec![Level::Fail]),
            (vec![(all, false), (all, true)], vec![Level::Warn, Level::Ok]),
            (vec![(all, false), (read, true)], vec![Level::Fail, Level::Ok]),
            (vec![(all, false), (read, true), (send, true)], vec![Level::Warn, Level::Ok, Level::Ok]),
            (vec![(all, true), (read, false), (send, false)], vec![Level::Ok, Level::Warn, Level::Warn]),
            (vec![(read, true), (send, false)], vec![Level::Ok, Level::Fail]),
        ] {
            let judged = endpoints.iter().map(|((reads, gets_transactions), works)| {
                let finding = if *works { Finding::ok(AREA, "") } else { Finding::fail(AREA, "") };
                (UseOf { reads: *reads, gets_transactions: *gets_transactions }, finding)
            });
            let found: Vec<_> =
                without_those_made_up_for(judged.collect()).iter().map(|finding| finding.level).collect();
            assert_eq!(found, levels, "{endpoints:?}");
        }
    }

    #[test]
    fn headers_in_the_clear_are_warned_of_where_others_can_see_them() {
        let of = |url: &str, headers: &str| {
            let url: url::Url = url.parse().unwrap();
            let headers = crate::rpc::Headers::read(headers).unwrap_or_default();
            in_the_clear(&EndpointAccess { headers, ..url.into() }).is_some()
        };
        let key = "X-Api-Key: a";
        assert_eq!(
            [
                of("http://a", key),
                of("http://a", ""),
                of("https://a", key),
                of("http://[::1]:1", key),
                of("http://localhost", key)
            ],
            [true, false, false, false, false]
        );
    }
}
