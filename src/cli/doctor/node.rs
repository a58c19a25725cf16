//! The chain: each endpoint by itself, clocks, how long finality takes, prices, and what is called.

use std::time::Duration;

use crate::chain::{BlockTag, Chain, ChainError, ClientSettings, Header, NodeClient};
use crate::cli::contract::{Standing, standing};
use crate::cli::doctor::finding::{Finding, Level};
use crate::cli::doctor::gas;
use crate::cli::{spell, text_of};
use crate::config::Settings;
use crate::model::{Address, BlockNumber, Timestamp};
use crate::policy::finality::FinalityRule;
use crate::policy::node_texts::advice;
use crate::policy::routes::{Calldata, Route};
use crate::rpc::label;

const AREA: &str = "node";
/// A node takes no block that is further ahead of its own clock.
const AHEAD: Duration = Duration::from_secs(15);
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
/// A node that says that it is syncing is asked again so often, after so long.
const SYNC_CHECKS: u32 = 2;
const SYNC_CHECK: Duration = Duration::from_secs(2);
/// The time between two blocks is the average over this many.
const SPACING_BLOCKS: u64 = 64;

pub(super) async fn examine(settings: &Settings) -> Vec<Finding> {
    let (mut findings, heads) = endpoints(settings).await;
    let Some(head) = heads.into_iter().max_by_key(|head| head.number) else { return findings };
    findings.extend(confirming(settings).await);
    findings.push(clock(&head, Timestamp::now()));
    let chain = match NodeClient::new(&settings.chain) {
        Ok(chain) => chain,
        Err(error) => return vec![no_client(&error)],
    };
    findings.push(finality(settings, &chain, &head).await.unwrap_or_else(|error| failed(&error)));
    findings.extend(gas::examine(settings, &chain).await);
    findings.push(price(settings, &chain, &head).await.unwrap_or_else(|error| failed(&error)));
    findings.extend(targets(settings, &chain).await.unwrap_or_else(|error| vec![failed(&error)]));
    findings
}

/// Returns a finding for each endpoint, and the heads of those that serve.
async fn endpoints(settings: &Settings) -> (Vec<Finding>, Vec<Header>) {
    let all = &settings.chain;
    let (mut findings, mut heads) = (Vec::new(), Vec::new());
    for url in &all.endpoints {
        let alone = ClientSettings { endpoints: vec![url.clone()], ..all.clone() };
        let node = match NodeClient::new(&alone) {
            Ok(node) => node,
            Err(error) => return (vec![no_client(&error)], Vec::new()),
        };
        match newest(&node).await {
            Ok(head) => {
                let label = node.endpoint_states().pop().map_or_else(String::new, |state| state.label);
                findings.push(served(settings, &label, &head));
                // Some do not say; that is no fault.
                findings.extend(node.program().await.ok().map(|program| pool(settings, &label, &program)));
                heads.push(head);
            }
            Err(error) => findings.push(failed(&error)),
        }
    }
    let best = heads.iter().map(|head| head.number).max();
    let behind = |head: &&Header| best.is_some_and(|best| best.0.saturating_sub(head.number.0) > all.max_lag);
    if let (Some(head), Some(best)) = (heads.iter().find(behind), best) {
        let what = format!("an endpoint has block {} where another has {best}", head.number);
        findings.push(Finding::warn(AREA, what).remedy("it is not asked until it has caught up: see its own log"));
    }
    // With one that serves, work goes on.
    if !heads.is_empty() {
        for finding in findings.iter_mut().filter(|finding| finding.level == Level::Fail) {
            finding.level = Level::Warn;
        }
    }
    (findings, heads)
}

/// Returns a finding for each endpoint that has to confirm what is final: without it nothing becomes final.
async fn confirming(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    for url in &settings.chain.confirmation.endpoints {
        let alone = ClientSettings { endpoints: vec![url.clone()], ..settings.chain.clone() };
        let asked = match NodeClient::new(&alone) {
            Ok(node) => newest(&node).await,
            Err(error) => return vec![no_client(&error)],
        };
        findings.push(match asked {
            Ok(head) => {
                Finding::ok(AREA, format!("chain.confirm_with: newest block {} at {}", head.number, label(url)))
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

fn no_client(error: &impl std::fmt::Display) -> Finding {
    Finding::fail(AREA, format!("the HTTP client cannot be made: {error}"))
        .remedy("install the system's certificates (ca-certificates)")
}

fn failed(error: &ChainError) -> Finding {
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

fn block_time(head: &Header) -> Timestamp {
    Timestamp(i64::try_from(head.timestamp.saturating_mul(1000)).unwrap_or(i64::MAX))
}

fn clock(head: &Header, now: Timestamp) -> Finding {
    let ahead = Duration::from_millis(u64::try_from(block_time(head).0.saturating_sub(now.0)).unwrap_or(0));
    if ahead > AHEAD {
        return Finding::warn(
            "clock",
            format!("the chain's newest block is {} ahead of this host's clock", spell(ahead)),
        )
        .remedy("set this host's clock: see `timedatectl`; or the node's is wrong");
    }
    Finding::ok("clock", "this host's is not behind the chain's")
}

/// Returns how long a delivery is held for its write to become final, by the time between the last blocks.
async fn finality(settings: &Settings, chain: &NodeClient, head: &Header) -> Result<Finding, ChainError> {
    let max_hold = settings.settle.max_hold;
    let takes = match settings.lane.finality {
        FinalityRule::Depth(depth) => spacing(chain, head).await?.saturating_mul(saturated(depth.saturating_add(1))),
        FinalityRule::Safe | FinalityRule::Finalized => {
            let is_safe = settings.lane.finality == FinalityRule::Safe;
            let (tag, word) = if is_safe { (BlockTag::Safe, "safe") } else { (BlockTag::Finalized, "finalized") };
            let Some(tagged) = chain.header(tag).await? else {
                return Ok(Finding::fail(AREA, format!("it has no block that it calls {word}: nothing becomes final"))
                    .remedy("set chain.finality to a number of blocks, or wait if the chain is new"));
            };
            Duration::from_secs(head.timestamp.saturating_sub(tagged.timestamp))
        }
    };
    if let (FinalityRule::Depth(depth @ 1..), Some(silence)) = (settings.lane.finality, silence(head, takes)) {
        let what = format!(
            "no block for {}: if the chain makes blocks for transactions only, a write is final only when {depth} further blocks have come",
            spell(silence)
        );
        return Ok(Finding::notice(AREA, what)
            .remedy("set chain.finality = 0 where no reorganisation can happen, or let the chain make empty blocks"));
    }
    let what = format!(
        "a write is final about {} after its block; a delivery is held for {} at most",
        spell(takes),
        spell(max_hold)
    );
    if takes > max_hold {
        return Ok(Finding::warn(AREA, what).remedy(
            "deliveries go around through the wait queue: raise broker.max_hold, and the broker's consumer_timeout to twice that",
        ));
    }
    Ok(Finding::ok(AREA, what))
}

/// Returns the age of the newest block where blocks have come much faster before.
fn silence(head: &Header, usual: Duration) -> Option<Duration> {
    const SHORTEST: Duration = Duration::from_secs(60);
    const TIMES: u32 = 10;
    let age = block_time(head).age();
    (age > SHORTEST && age > usual.saturating_mul(TIMES)).then_some(age)
}

/// Returns the average time between two of the last blocks.
async fn spacing(chain: &NodeClient, head: &Header) -> Result<Duration, ChainError> {
    // The first block of a chain may have any time, zero too.
    let blocks = SPACING_BLOCKS.min(head.number.0.saturating_sub(1));
    let earlier = chain.header(BlockTag::Number(BlockNumber(head.number.0.saturating_sub(blocks)))).await?;
    let seconds = earlier.map_or(0, |earlier| head.timestamp.saturating_sub(earlier.timestamp));
    Ok(Duration::from_secs(seconds).checked_div(saturated(blocks)).unwrap_or_default())
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

async fn price(settings: &Settings, chain: &NodeClient, head: &Header) -> Result<Finding, ChainError> {
    let market = chain.market(head).await?;
    Ok(match settings.tuning.fees.quote(&market) {
        Ok(fee) => Finding::ok(
            "fees",
            format!("a unit of gas is offered {} now, fees.max_fee is {}", fee.ceiling(), settings.tuning.fees.max_fee),
        ),
        Err(above) => Finding::warn("fees", above.to_string())
            .remedy("the account pauses until it has come down; or raise fees.max_fee"),
    })
}

async fn targets(settings: &Settings, chain: &NodeClient) -> Result<Vec<Finding>, ChainError> {
    let mut findings = Vec::new();
    for Route { name, to, calldata, .. } in &settings.admission.routes {
        let Some(to) = to else { continue };
        if matches!(calldata, Calldata::Record(_)) {
            findings.extend(records(settings, chain, name, *to).await);
            continue;
        }
        if chain.code(*to).await?.is_empty() {
            let what =
                format!("there is no contract at {to}, where {name} writes: it takes every call and does nothing");
            findings.push(Finding::notice(AREA, what).remedy("is it the right address, on the right chain?"));
        }
    }
    Ok(findings)
}

async fn records(settings: &Settings, chain: &NodeClient, route: &str, contract: Address) -> Vec<Finding> {
    match standing(settings, chain, contract).await {
        Ok(Standing { is_records: false, .. }) => vec![
            Finding::fail(AREA, format!("{contract}, where {route} records, is not the contract Records"))
                .remedy("correct its address, or put the contract there: `chainwriter contract deploy`"),
        ],
        Ok(Standing { strangers, .. }) if strangers.is_empty() => {
            vec![Finding::ok(AREA, format!("{route} records at {contract}, and every signer may"))]
        }
        Ok(Standing { strangers, owner, .. }) => {
            let owner = owner.map_or("its owner".to_owned(), |owner| format!("its owner {owner}"));
            let fail = |signer| {
                Finding::fail(AREA, format!("{signer} may not record at {contract}, where {route} does"))
                    .remedy(format!("{owner} calls setWriter({signer}, true)"))
            };
            strangers.into_iter().map(fail).collect()
        }
        Err(error) => vec![Finding::warn(AREA, format!("{contract} cannot be read: {}", text_of(&error)))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load_with;
    use crate::model::{BlockHash, Gas};

    fn head(timestamp: u64) -> Header {
        Header {
            number: BlockNumber(7),
            hash: BlockHash([1; 32]),
            parent: BlockHash([0; 32]),
            timestamp,
            base_fee: None,
            gas_limit: Gas(30_000_000),
            transactions: None,
        }
    }

    #[test]
    fn a_pool_that_may_be_too_small_is_told() {
        let settings = |in_flight: u32| load_with(&format!("chain.in_flight = {in_flight}")).unwrap();
        let level = |in_flight, program| pool(&settings(in_flight), "node:8545", program).level;
        assert_eq!(level(200, "besu/v25.9.0/linux-x86_64/openjdk-java-21"), Level::Ok);
        assert_eq!(level(201, "besu/v25.9.0/linux-x86_64/openjdk-java-21"), Level::Note);
        assert_eq!(level(5000, "Geth/v1.16.7-stable/linux-amd64/go1.25.4"), Level::Ok, "it keeps those in order");
        assert_eq!(level(17, "reth/v1.9.0"), Level::Note);
        assert_eq!(level(100_000, "anvil/v1.5.0"), Level::Ok, "nobody knows");
        let told = pool(&settings(300), "node:8545", "besu/v25.9.0").to_string();
        assert!(told.contains("keeps 200") && told.contains("--tx-pool-max-future-by-sender"), "{told}");
    }

    #[test]
    fn a_chain_that_falls_silent_may_make_blocks_for_transactions_only() {
        let at = |age| head(u64::try_from(Timestamp::now().0 / 1000).unwrap() - age);
        let second = Duration::from_secs(1);
        assert!(silence(&at(3600), second).is_some() && silence(&at(5), second).is_none());
        assert!(silence(&at(3600), Duration::from_secs(3000)).is_none(), "its blocks are rare");
    }

    #[test]
    fn a_clock_that_is_behind_the_chain_is_told() {
        let now = Timestamp(1_000_000_000);
        assert_eq!(clock(&head(1_000_010), now).level, Level::Ok);
        let behind = clock(&head(1_000_090), now);
        assert_eq!((behind.level, behind.to_string().contains("1m 30s ahead")), (Level::Warn, true), "{behind}");
    }
}
