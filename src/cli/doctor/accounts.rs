//! Each account: whether its signer has the key, its money, its nonces in the chain, in the pools and in the journal.

use std::time::Duration;

use bytes::Bytes;

use crate::chain::{BlockTag, Chain, NodeClient};
use crate::cli::doctor::finding::Finding;
use crate::cli::{spell, text_of};
use crate::config::{Settings, SignerSection};
use crate::daemon::status::Retiring;
use crate::journal::{AccountOverview, JournalOverview};
use crate::model::text::counted;
use crate::model::{Address, Gas, GasRule, Nonce, RequestState, Wei};
use crate::observe::traces::Tracer;
use crate::policy::fee::FeeMode;
use crate::policy::routes::{Amount, Route};
use crate::signer::{RemoteSettings, RemoteSigner};

const AREA: &str = "account";
/// A server may have keys of thousands.
const SHOWN_ACCOUNTS: usize = 5;
/// Gas of every transaction, whatever it calls.
const LEAST_GAS: Gas = Gas(21_000);
/// A request that is written for longer than this many replacements may take is stuck.
const REPLACEMENTS: u32 = 10;

/// An account as the node has it.
pub(super) struct InChain {
    balance: Wei,
    /// Empty where it is no contract.
    code: Bytes,
    /// Transactions in blocks, and with those in the pools.
    count: Nonce,
    pending: Nonce,
}

/// Reads each signer's account. Returns nothing where the node does not answer, which the node's findings report.
pub(super) async fn in_chain(settings: &Settings) -> Vec<Option<InChain>> {
    let Ok(chain) = NodeClient::new(&settings.chain) else { return Vec::new() };
    let mut found = Vec::new();
    for signer in &settings.signers {
        found.push(next_nonces(&chain, signer.address()).await);
    }
    found
}

async fn next_nonces(chain: &NodeClient, account: Address) -> Option<InChain> {
    let balance = chain.balance(account).await.ok()?;
    let code = chain.code(account).await.unwrap_or_default();
    let count = chain.transaction_count(account, BlockTag::Latest).await.ok()?;
    let pending = chain.pending_counts(account).await.into_iter();
    let pending = pending.filter_map(|(_, count)| count.ok()).max().unwrap_or(count);
    Some(InChain { balance, code, count, pending })
}

/// `in_chain` was asked for before the journal, which is nothing where it could not be read, or is not there yet.
pub(super) async fn examine(
    settings: &Settings,
    in_chain: &[Option<InChain>],
    journal: Option<&JournalOverview>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (place, signer) in settings.signers.iter().enumerate() {
        if let SignerSection::Remote(remote) = signer {
            findings.push(key_at_server(remote).await);
        }
        let account = signer.address();
        let known = journal.and_then(|journal| {
            journal.accounts.iter().find(|known| (known.chain_id, known.address) == (settings.chain.chain_id, account))
        });
        if let Some(Some(InChain { balance, code, count, pending })) = in_chain.get(place) {
            findings.extend(with_code(account, code));
            findings.push(money(settings, account, *balance));
            findings.push(nonces(account, *count, *pending, known));
        }
        if settings.retiring.contains(&account) {
            let left = journal.map(|_| known.map_or(0, AccountOverview::left));
            findings.push(Finding::notice(AREA, format!("{account}: {}", Retiring { left }.text())));
        }
        findings.extend(known.and_then(|known| stuck(known, settings.tuning.replace_after)));
    }
    findings
}

async fn key_at_server(settings: &RemoteSettings) -> Finding {
    const AREA: &str = "signer";
    let signer = match RemoteSigner::new(settings, Tracer::default()) {
        Ok(signer) => signer,
        Err(error) => return Finding::fail(AREA, text_of(&error.into())),
    };
    let (label, wanted) = (signer.label(), settings.address);
    let accounts = match signer.accounts().await {
        Ok(accounts) => accounts,
        Err(error) => {
            return Finding::fail(AREA, text_of(&error.into()))
                .remedy("start it, or correct the signer's url or kind; Clef's rules have to approve listings");
        }
    };
    if accounts.contains(&wanted) {
        return Finding::ok(AREA, format!("{label} has the key of {wanted}"));
    }
    let listed: Vec<_> = accounts.iter().take(SHOWN_ACCOUNTS).map(ToString::to_string).collect();
    let listed = if listed.is_empty() { "none".to_owned() } else { listed.join(", ") };
    Finding::fail(
        AREA,
        format!("{label} has no key of {wanted}; it has {}: {listed}", counted(accounts.len() as u64, "key")),
    )
    .remedy("correct the signer's address, or load the key")
}

/// Returns what nodes make of an account with code.
fn with_code(account: Address, code: &[u8]) -> Option<Finding> {
    /// EIP-7702: the address of the code follows.
    const DELEGATION: &[u8] = &[0xef, 0x01, 0x00];
    if code.is_empty() {
        return None;
    }
    Some(match code.strip_prefix(DELEGATION) {
        Some(target) => Finding::notice(
            AREA,
            format!(
                "{account} is delegated to 0x{} (EIP-7702): nodes keep one of its transactions at a time",
                hex::encode(target)
            ),
        )
        .remedy("writes go about one a block; undelegate the account, or use another key"),
        None => Finding::fail(AREA, format!("{account} is a contract: nodes refuse what its key signs (EIP-3607)"))
            .remedy("use a key whose account has no code; is this the right chain?"),
    })
}

fn money(settings: &Settings, account: Address, balance: Wei) -> Finding {
    let what = format!("{account} has {balance}");
    let price = if settings.tuning.fees.mode == FeeMode::Zero { Wei(0) } else { settings.tuning.fees.max_fee };
    let cost = |route: &Route| {
        let gas = match route.gas {
            GasRule::Fixed(gas) => gas,
            GasRule::Estimate { .. } => LEAST_GAS,
        };
        let value = if let Amount::Fixed(value) = route.value { value } else { Wei(0) };
        price.scaled_up(u128::from(gas.0), 1).plus(value)
    };
    let dearest = settings.admission.routes.iter().map(cost).max().unwrap_or(Wei(0));
    let remedy = format!("send it some: one write may cost {dearest} at fees.max_fee, or more with more gas");
    if balance == Wei(0) && dearest > Wei(0) {
        return Finding::fail(AREA, what).remedy(remedy);
    }
    if balance < dearest {
        return Finding::warn(AREA, what).remedy(remedy);
    }
    Finding::ok(AREA, what)
}

/// Compares the nonces that the chain, the pools and the journal show.
fn nonces(account: Address, in_chain: Nonce, pending: Nonce, known: Option<&AccountOverview>) -> Finding {
    let waiting = pending.0.saturating_sub(in_chain.0);
    let what = format!("{account} has {} in the chain and {waiting} in a pool", counted(in_chain.0, "transaction"));
    let Some(known) = known else {
        if waiting > 0 {
            return Finding::warn(AREA, what).remedy("no journal knows them: does another program use this key?");
        }
        return Finding::ok(AREA, what);
    };
    let next = known.next_nonce.unwrap_or(in_chain);
    let what = format!("{what}; the journal's next nonce is {next}, {} of its transactions may still land", known.live);
    if next < pending {
        return Finding::warn(AREA, what).remedy(
            "the chain is ahead of the journal: another program uses this key, or the journal is an old copy; give the worker a key of its own",
        );
    }
    Finding::ok(AREA, what)
}

fn stuck(known: &AccountOverview, replace_after: Duration) -> Option<Finding> {
    let writing = known.open.iter().find(|open| open.state == RequestState::Writing.as_str())?;
    let since = writing.since.age();
    (since > replace_after.saturating_mul(REPLACEMENTS)).then(|| {
        Finding::warn(AREA, format!("{} has been writing its first request for {}", known.address, spell(since)))
            .remedy(
                "`chainwriter status` says whether its account pauses and why; `chainwriter cancel ID` ends a request",
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Level;
    use crate::journal::{AccountId, OpenRequests};
    use crate::model::Timestamp;

    fn known(next: u64, since: Duration) -> AccountOverview {
        AccountOverview {
            id: AccountId(1),
            chain_id: 1,
            address: Address([1; 20]),
            next_nonce: Some(Nonce(next)),
            owner: None,
            leased_until: Timestamp(0),
            live: 1,
            outbox: 0,
            retry_waiting: 0,
            open: vec![OpenRequests {
                state: RequestState::Writing.as_str().to_owned(),
                count: 1,
                since: Timestamp::now().before(since),
            }],
        }
    }

    #[test]
    fn nonces_that_do_not_go_together_lead_to_the_other_program() {
        let at = |in_chain, pending, known: Option<&AccountOverview>| {
            nonces(Address([1; 20]), Nonce(in_chain), Nonce(pending), known).level
        };
        let journal = known(5, Duration::ZERO);
        assert_eq!(at(5, 5, Some(&journal)), Level::Ok);
        assert_eq!(at(3, 5, Some(&journal)), Level::Ok, "its own, on their way");
        assert_eq!(at(5, 6, Some(&journal)), Level::Warn);
        assert_eq!(at(6, 6, Some(&journal)), Level::Warn);
        assert_eq!(at(6, 6, None), Level::Ok, "the first start");
        assert_eq!(at(6, 7, None), Level::Warn);
    }

    #[test]
    fn an_account_with_code_is_a_contract_or_delegated() {
        let level = |code: &[u8]| with_code(Address([1; 20]), code).map(|finding| finding.level);
        assert_eq!((level(&[]), level(&[0x60, 0x80])), (None, Some(Level::Fail)));
        let delegated = [&[0xef, 0x01, 0x00][..], &[7; 20]].concat();
        assert_eq!(level(&delegated), Some(Level::Note));
    }

    #[test]
    fn what_is_written_for_too_long_is_stuck() {
        let replace_after = Duration::from_secs(45);
        assert_eq!(stuck(&known(1, Duration::from_secs(300)), replace_after), None);
        assert!(stuck(&known(1, Duration::from_secs(600)), replace_after).is_some());
    }
}
