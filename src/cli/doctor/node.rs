//! The chain: clocks, how long finality takes, prices, and what is called.

use std::time::Duration;

use crate::chain::{BlockTag, Chain, ChainError, Header, NodeClient};
use crate::cli::contract::{Standing, standing};
use crate::cli::doctor::endpoints::{self, AREA, block_time, failed, no_client};
use crate::cli::doctor::finding::Finding;
use crate::cli::doctor::{cost, gas};
use crate::cli::{spell, text_of};
use crate::config::Settings;
use crate::model::text::counted;
use crate::model::{Address, BlockNumber, Timestamp};
use crate::policy::finality::FinalityRule;
use crate::policy::routes::{Calldata, Route};

/// A node takes no block that is further ahead of its own clock.
const AHEAD: Duration = Duration::from_secs(15);
/// The time between two blocks is the average over this many.
const SPACING_BLOCKS: u64 = 64;

pub(super) async fn examine(settings: &Settings) -> Vec<Finding> {
    let (mut findings, heads) = endpoints::examine(settings).await;
    let Some(head) = heads.into_iter().max_by_key(|head| head.number) else { return findings };
    findings.extend(endpoints::confirming(settings).await);
    findings.push(clock(&head, Timestamp::now()));
    let chain = match NodeClient::new(&settings.chain) {
        Ok(chain) => chain,
        Err(error) => return vec![no_client(&error)],
    };
    findings.push(finality(settings, &chain, &head).await.unwrap_or_else(|error| failed(&error)));
    findings.extend(gas::examine(settings, &chain).await);
    findings.extend(price(settings, &chain, &head).await.unwrap_or_else(|error| vec![failed(&error)]));
    findings.extend(targets(settings, &chain).await.unwrap_or_else(|error| vec![failed(&error)]));
    findings
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
            "no block for {}: if the chain makes blocks for transactions only, a write is final only when the chain has made {} more",
            spell(silence),
            counted(depth, "block")
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

async fn price(settings: &Settings, chain: &NodeClient, head: &Header) -> Result<Vec<Finding>, ChainError> {
    let market = chain.market(head).await?;
    let fee = match settings.tuning.fees.quote(&market) {
        Ok(fee) => fee,
        Err(above) => {
            let remedy = "the account pauses until it has come down; or raise fees.max_fee";
            return Ok(vec![Finding::warn("fees", above.to_string()).remedy(remedy)]);
        }
    };
    let most = settings.tuning.fees.max_fee;
    let what = format!("a unit of gas is offered {} now, fees.max_fee is {most}", fee.ceiling());
    let mut findings = vec![Finding::ok("fees", what)];
    findings.extend(cost::examine(settings, chain, (head, &market), fee).await);
    Ok(findings)
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
    use crate::cli::doctor::finding::Level;
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
