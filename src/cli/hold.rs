//! `chainwriter hold` and `chainwriter release`: nothing new is signed for what is held. They work through the journal, on all
//! instances that share it.

use anyhow::bail;
use clap::Args;

use crate::cli::{address, check_reason, exit, operator, say, stop};
use crate::config::Settings;
use crate::journal::{Hold, HoldScope, OperatorsJournal};
use crate::model::Order;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only this account; without it and without --route everything.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "route")]
    account: Option<String>,
    /// Only the messages of this route.
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Why; stands in `log`, and wherever the hold is shown.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub(super) async fn hold(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    check_reason(&arguments.reason)?;
    let order = Order::new(operator(), arguments.reason.clone());
    if let Some(route) = &arguments.route {
        check_route(route, &settings)?;
    }
    let journal = settings.journal.address.open_existing().await?;
    let scope = scope(&arguments, &settings, journal.as_ref()).await?;
    let before = journal.hold(scope.clone(), order).await?;
    journal.close().await;
    let what = scope_text(&arguments);
    match before {
        None => say(format_args!(
            "{what}: held. Nothing new is signed for it; what is signed goes on to its end. `chainwriter release{}` ends that",
            options(&arguments)
        )),
        Some(before) => say(format_args!("{}; nothing was changed", before.text())),
    }
    Ok(exit::OK)
}

pub(super) async fn release(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    check_reason(&arguments.reason)?;
    let order = Order::new(operator(), arguments.reason.clone());
    let journal = settings.journal.address.open_existing().await?;
    let scope = scope(&arguments, &settings, journal.as_ref()).await?;
    let released = journal.release(scope, order).await?;
    let left = journal.holds().await?;
    journal.close().await;
    let what = scope_text(&arguments);
    let code = match released {
        Some(_) => {
            say(format_args!("{what}: released"));
            exit::OK
        }
        None => {
            say(format_args!("{what}: no operator holds it"));
            exit::NOT_FOUND
        }
    };
    left.iter().map(Hold::text).for_each(|text| say(format_args!("still held: {text}")));
    Ok(code)
}

/// Refuses a route that no message of this configuration takes: a slip would hold nothing.
fn check_route(route: &str, settings: &Settings) -> anyhow::Result<()> {
    let names: Vec<_> = settings.admission.routes.iter().map(|route| route.name.as_str()).collect();
    if names.contains(&route) {
        return Ok(());
    }
    Err(stop(exit::USAGE, format!("the configuration has no route {route}; it has {}", names.join(", "))))
}

async fn scope(
    arguments: &Arguments,
    settings: &Settings,
    journal: &dyn OperatorsJournal,
) -> anyhow::Result<HoldScope> {
    Ok(match (&arguments.account, &arguments.route) {
        (Some(text), _) => {
            let address = address(text)?;
            let chain_id = settings.chain.chain_id;
            let is_own = settings.signers.iter().any(|signer| signer.address() == address);
            let known = journal.overview().await?.accounts;
            if !is_own && !known.iter().any(|known| (known.chain_id, known.address) == (chain_id, address)) {
                bail!("{address} is no account of this configuration, and the journal does not know it");
            }
            HoldScope::Account(journal.account(chain_id, address).await?)
        }
        (None, Some(route)) => HoldScope::Route(route.clone()),
        (None, None) => HoldScope::Everything,
    })
}

fn scope_text(arguments: &Arguments) -> String {
    match (&arguments.account, &arguments.route) {
        (Some(account), _) => format!("account {account}"),
        (None, Some(route)) => format!("route {route}"),
        (None, None) => "everything".to_owned(),
    }
}

fn options(arguments: &Arguments) -> String {
    match (&arguments.account, &arguments.route) {
        (Some(account), _) => format!(" --account {account} --reason TEXT"),
        (None, Some(route)) => format!(" --route {route} --reason TEXT"),
        (None, None) => " --reason TEXT".to_owned(),
    }
}
