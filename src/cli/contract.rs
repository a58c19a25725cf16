//! `chainwriter contract`: the contract `Records`, put into the chain, and compared with what it should be.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Subcommand;
use tokio::time::{Instant, sleep};

use crate::chain::{BlockTag, Call, Chain, ChainError, NodeClient};
use crate::cli::{exit, node_client, operator, say};
use crate::config::Settings;
use crate::daemon::app::signer;
use crate::journal::{Acquired, Lease, OperatorsJournal};
use crate::model::{Address, BlockNumber, RawTransaction, UnsignedTransaction, Wei, ids};
use crate::observe::traces::Tracer;
use crate::policy::gas;
use crate::policy::records::{self, Artefact};
use crate::signer::Signer;
use crate::stages::lane::keep_lease;

/// Added to the estimate, in percent.
const GAS_MARGIN: u32 = 10;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Deploy the contract; prints its address, and what to write into the configuration.
    Deploy {
        /// The account that pays and becomes the owner, one of the [[signer]]; the first one if not given. No worker may
        /// work for it meanwhile.
        #[arg(long, value_name = "ADDRESS")]
        signer: Option<Address>,
        /// Further accounts that may record, besides all [[signer]].
        #[arg(long, value_name = "ADDRESS")]
        writer: Vec<Address>,
        /// Wait at most this long until the transaction is in a block.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10m")]
        timeout: Duration,
    },
    /// Compare a contract's code with this program's, and say who owns it and which signers may record.
    Verify {
        /// Its address.
        address: Address,
    },
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    let chain = node_client(settings)?;
    match command {
        Command::Deploy { signer, writer, timeout } => deploy(settings, &chain, signer, writer, timeout).await,
        Command::Verify { address } => verify(settings, &chain, address).await,
    }
}

async fn deploy(
    settings: &Settings,
    chain: &NodeClient,
    payer: Option<Address>,
    more_writers: Vec<Address>,
    timeout: Duration,
) -> anyhow::Result<u8> {
    let mut sections = settings.signers.iter();
    let section = sections.find(|section| payer.is_none_or(|payer| section.address() == payer));
    let signer = signer(section.context("no [[signer]] is this account")?, &Tracer::default())?;
    let mut writers: Vec<_> = settings.signers.iter().map(|signer| signer.address()).chain(more_writers).collect();
    writers.sort_unstable();
    writers.dedup();
    let code = Artefact::built().map_err(anyhow::Error::msg)?.creation(&writers);
    let journal = settings.journal.address.open().await?;
    let deployment = Deployment { settings, chain, signer: signer.as_ref(), journal: journal.as_ref(), code, timeout };
    let done = deployment.run().await;
    journal.close().await;
    let Some((address, block)) = done? else { return Ok(exit::STILL_OPEN) };
    say(format_args!("the contract is at {address}, in block {block}; its owner is {}", signer.address()));
    say(format_args!("writers: {}", writers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")));
    say(format_args!("\n[write]\nmode = \"record\"\nto = \"{address}\""));
    Ok(exit::OK)
}

struct Deployment<'d> {
    settings: &'d Settings,
    chain: &'d NodeClient,
    signer: &'d dyn Signer,
    journal: &'d dyn OperatorsJournal,
    code: Bytes,
    timeout: Duration,
}

/// The new contract and its block; none while it is in no block.
type Made = Option<(Address, BlockNumber)>;

impl Deployment<'_> {
    /// Deploys under the account's lease, since a worker would give the same nonce to a request.
    async fn run(&self) -> anyhow::Result<Made> {
        let (journal, address) = (self.journal, self.signer.address());
        let account = journal.account(self.settings.chain.chain_id, address).await?;
        let owner = format!("{}/contract deploy/{}", operator(), ids::unique()).into();
        let ttl = self.settings.lane.lease_ttl;
        let Acquired::Ours(lease) = journal.acquire_lease(account, owner, ttl, None).await? else {
            bail!("a worker works for {address}; stop it first, or deploy with another account (--signer)");
        };
        let done = tokio::select! {
            done = self.create(&lease) => done,
            error = keep_lease(journal, &lease, ttl) => Err(error.into()),
        };
        journal.release_lease(&lease).await?;
        done
    }

    /// Creates the contract. No journal holds this transaction: a crash after it was sent leaves it in the pools, where a
    /// worker meets it as one of another program, and gives its request another nonce.
    async fn create(&self, lease: &Lease) -> anyhow::Result<Made> {
        let Self { settings, chain, signer, journal, code, .. } = self;
        let address = signer.address();
        let head = chain.header(BlockTag::Latest).await?.context("the node has no block")?;
        let nonce = chain.transaction_count(address, BlockTag::Latest).await?;
        for (endpoint, pending) in chain.pending_counts(address).await {
            if pending.is_ok_and(|pending| pending > nonce) {
                bail!("{endpoint} has transactions of {address} in its pool; wait until they are in a block");
            }
        }
        let next = journal.raise_next_nonce(lease, nonce).await?;
        if next != nonce {
            bail!("{address} has transactions in the journal that are not in the chain; let a worker end them first");
        }
        let fee =
            settings.tuning.fees.quote(&chain.market(&head).await?).map_err(|above| anyhow::anyhow!("{above}"))?;
        let estimate = chain.estimate_creation(address, code).await.context("the contract cannot be made")?;
        let unsigned = UnsignedTransaction {
            chain_id: settings.chain.chain_id,
            nonce,
            to: None,
            value: Wei(0),
            gas: gas::limit(estimate, GAS_MARGIN, gas::Caps::of_block(head.gas_limit)),
            data: code.clone(),
            fee,
        };
        let signed = signer.sign(vec![unsigned.into()]).await?.pop().context("the signer signed nothing")?;
        say(format_args!("sent {} with nonce {nonce} of {address}; waiting for its block", signed.hash));
        let made = self.wait(&signed).await?;
        match made {
            Some(_) => _ = journal.raise_next_nonce(lease, nonce.plus(1)).await?,
            None => say(format_args!("{} is in no block yet; it may still come", signed.hash)),
        }
        Ok(made)
    }

    /// Sends until the contract is in a block or the time is over. The nodes' answers decide nothing.
    async fn wait(&self, signed: &RawTransaction) -> anyhow::Result<Made> {
        let deadline = Instant::now() + self.timeout;
        let mut again = Instant::now();
        let mut reported = String::new();
        loop {
            if Instant::now() >= again {
                let refusals = self.chain.broadcast(&[signed.clone().into()]).await.into_iter().filter_map(Result::err);
                let refusals = refusals.map(|refusal| refusal.to_string()).collect::<Vec<_>>().join("; ");
                if !refusals.is_empty() && refusals != reported {
                    say(&refusals);
                    reported = refusals;
                }
                again = Instant::now() + self.settings.tuning.resend_after;
            }
            let made = self.chain.created(signed.hash).await?;
            if made.is_some() || Instant::now() >= deadline {
                return Ok(made);
            }
            sleep(self.settings.lane.poll.usual()).await;
        }
    }
}

/// The contract at an address.
pub(super) struct Standing {
    /// Set where the code is that of `Records`.
    pub(super) is_records: bool,
    /// The account that decides who may record.
    pub(super) owner: Option<Address>,
    /// Signers that may not record.
    pub(super) strangers: Vec<Address>,
}

pub(super) async fn standing(settings: &Settings, chain: &NodeClient, contract: Address) -> anyhow::Result<Standing> {
    let artefact = Artefact::built().map_err(anyhow::Error::msg)?;
    if chain.code(contract).await? != artefact.runtime {
        return Ok(Standing { is_records: false, owner: None, strangers: Vec::new() });
    }
    let head = chain.header(BlockTag::Latest).await?.context("the node has no block")?.number;
    let ask = async |data: Bytes| -> Result<Bytes, ChainError> {
        let call = Call { from: Address([0; 20]), to: contract, value: Wei(0), data };
        chain.call(&call, head).await
    };
    let owner = records::read_address(&ask(records::ask_owner()).await?);
    let mut strangers = Vec::new();
    for signer in settings.signers.iter().map(|signer| signer.address()) {
        if records::read_bool(&ask(records::ask_writer(signer)).await?) != Some(true) {
            strangers.push(signer);
        }
    }
    Ok(Standing { is_records: true, owner, strangers })
}

async fn verify(settings: &Settings, chain: &NodeClient, address: Address) -> anyhow::Result<u8> {
    let Standing { is_records, owner, strangers } = standing(settings, chain, address).await?;
    if !is_records {
        say(format_args!("{address}: not the contract Records as this program has it"));
        return Ok(exit::NOT_FOUND);
    }
    say(format_args!("{address}: the contract Records, byte for byte as this program has it"));
    if let Some(owner) = owner {
        say(format_args!("  owner      {owner}"));
    }
    for signer in settings.signers.iter().map(|signer| signer.address()) {
        let may = if strangers.contains(&signer) { "may not record: its owner calls setWriter" } else { "may record" };
        say(format_args!("  signer     {signer} {may}"));
    }
    Ok(if strangers.is_empty() { exit::OK } else { exit::ANOTHER })
}
