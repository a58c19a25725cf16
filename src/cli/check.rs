//! `chainwriter check`

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use crate::app::{broker_settings, client_settings};
use crate::broker::{self, TopologyMode};
use crate::chain::{BlockTag, Chain, NodeClient};
use crate::cli::{exit, say};
use crate::config::{Settings, SignerSection};
use crate::journal::JournalError;
use crate::signer::{RemoteSettings, RemoteSigner};

/// A server may have keys of thousands.
const SHOWN_ACCOUNTS: usize = 5;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also connect to the broker and the node, compare the topology, and open the journal if there is one.
    #[arg(long)]
    connect: bool,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<ExitCode> {
    say("ok    configuration");
    for signer in &settings.signers {
        say(format_args!("ok    signer for account {}", signer.address()));
    }
    for route in &settings.admission.routes {
        say(format_args!("ok    {route}"));
    }
    if !arguments.connect {
        return Ok(ExitCode::SUCCESS);
    }
    let mut checks = vec![check_broker(&settings).await, check_node(&settings).await];
    for signer in &settings.signers {
        if let SignerSection::Remote(remote) = signer {
            checks.push(check_signer(remote).await);
        }
    }
    checks.push(check_journal(&settings).await);
    let mut code = ExitCode::SUCCESS;
    for check in checks {
        match check {
            Ok(line) => say(format_args!("ok    {line}")),
            Err(error) => {
                say(format_args!("fail  {error:#}"));
                code = ExitCode::from(exit::UNAVAILABLE);
            }
        }
    }
    Ok(code)
}

async fn check_broker(settings: &Settings) -> anyhow::Result<String> {
    let vhost = broker::check(&broker_settings(settings), TopologyMode::Verify).await?;
    Ok(format!("broker: connected to virtual host {vhost}, its topology is as it must be"))
}

async fn check_node(settings: &Settings) -> anyhow::Result<String> {
    let chain = NodeClient::new(&client_settings(settings))?;
    let head = chain.header(BlockTag::Latest).await?;
    let height = head.map_or("none".to_owned(), |head| head.number.to_string());
    let mut line = format!("node: chain {}, newest block {height}", settings.chain.id);
    for signer in &settings.signers {
        let balance = chain.balance(signer.address()).await?;
        line = format!("{line}; {} has {balance}", signer.address());
    }
    Ok(line)
}

async fn check_signer(settings: &RemoteSettings) -> anyhow::Result<String> {
    let signer = RemoteSigner::new(settings)?;
    let (label, wanted, accounts) = (signer.label(), settings.address, signer.accounts().await?);
    if accounts.contains(&wanted) {
        return Ok(format!("signer: {label} has the key of {wanted}"));
    }
    let listed: Vec<_> = accounts.iter().take(SHOWN_ACCOUNTS).map(ToString::to_string).collect();
    let listed = if listed.is_empty() { "none".to_owned() } else { listed.join(", ") };
    bail!("signer: {label} has no key of {wanted}; it has {} keys: {listed}", accounts.len());
}

async fn check_journal(settings: &Settings) -> anyhow::Result<String> {
    let address = &settings.journal.address;
    match address.open_existing().await {
        Ok(journal) => {
            journal.close().await;
            Ok(format!("journal: {address}"))
        }
        Err(JournalError::Missing { .. }) => Ok(format!("journal: {address} will be made at the first start")),
        Err(error) => Err(error.into()),
    }
}
