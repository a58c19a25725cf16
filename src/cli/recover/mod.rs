//! `chainwriter recover`

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::time::Instant;

use crate::chain::follow::history::{AccountHistory, HistoryError, Patience, account_history};
use crate::chain::{BlockTag, Chain, NodeClient};
use crate::cli::{address, check_reason, exit, operator, progress_bar, say};
use crate::config::Settings;
use crate::daemon::app;
use crate::journal::{OperatorsJournal, RecoveredAccount, Recovery};
use crate::model::text::counted;
use crate::model::{Address, BlockNumber, Nonce, Order, Timestamp};
use crate::observe::traces::Tracer;
use crate::policy::finality::{FinalityRule, highest_final};

use pooled::PooledReplacer;

pub(super) mod adopt;
mod pooled;

/// Interval between checks whether all transactions of an account are final.
const CHECK: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(false))]
pub(super) struct Arguments {
    /// Read what the accounts have written from this block on, into a new journal, a restored one, or the one that is left.
    #[arg(long, value_name = "BLOCK", group = "what")]
    from_block: Option<u64>,
    /// Do not wait for what is in the pools and gets into no block: when `chain.replace_after` is over, replace it with transfers
    /// of nothing at a price of today.
    #[arg(long, requires = "from_block")]
    cancel_pooled: bool,
    /// End the recovery: what is in the queue from now on is written, whatever the chain has.
    #[arg(long, group = "what")]
    end: bool,
    /// Declare all transactions below this nonce that the journal does not know another program's. If one of them is a
    /// write of the queue's, that message is written again.
    #[arg(long, value_name = "NONCE", group = "what")]
    foreign_below: Option<u64>,
    /// The account that --foreign-below is about, where the configuration has several.
    #[arg(long, value_name = "ADDRESS", requires = "foreign_below")]
    account: Option<String>,
    /// How long to go on while a node does not answer, or answers nonsense.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Let this journal take the queue over from the one that serves it: it was moved here on purpose.
    #[arg(long, group = "what")]
    adopt: bool,
    /// Why; stands in the log of what operators did.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    check_reason(&arguments.reason)?;
    let order = Order::new(operator(), arguments.reason);
    if arguments.adopt {
        return adopt::run(&settings, order).await;
    }
    let address = &settings.journal.address;
    if arguments.end {
        let journal = address.open_existing().await?;
        let ended = journal.end_recovery(order).await?;
        journal.close().await;
        say(if ended { "the recovery has ended" } else { "no recovery is on" });
        return Ok(if ended { exit::OK } else { exit::NOT_FOUND });
    }
    let done = if let Some(from_block) = arguments.from_block {
        let journal = address.open().await?;
        let limits = (arguments.patience, arguments.cancel_pooled);
        let done = recover(journal.as_ref(), &settings, BlockNumber(from_block), limits, order).await;
        journal.close().await;
        done
    } else if let Some(below) = arguments.foreign_below {
        let account = chosen_account(arguments.account.as_deref(), &settings)?;
        let journal = address.open_existing().await?;
        let done = accept_foreign(journal.as_ref(), &settings, (account, Nonce(below)), order).await;
        journal.close().await;
        done
    } else {
        bail!("name what to recover");
    };
    done.map(|()| exit::OK)
}

fn chosen_account(named: Option<&str>, settings: &Settings) -> anyhow::Result<Address> {
    let addresses: Vec<_> = settings.signers.iter().map(|signer| signer.address()).collect();
    match (named, addresses.as_slice()) {
        (None, [only]) => Ok(*only),
        (None, _) => bail!("the configuration has {} accounts; name one with --account", addresses.len()),
        (Some(named), _) => {
            let named = address(named)?;
            match addresses.contains(&named) {
                true => Ok(named),
                false => bail!("{named} is no account of this configuration"),
            }
        }
    }
}

async fn expect_nobody_works(journal: &dyn OperatorsJournal) -> anyhow::Result<()> {
    match journal.attendance().await?.instances.first() {
        Some(instance) => bail!("{} on {} works with this journal; stop it first", instance.worker, instance.host),
        None => Ok(()),
    }
}

async fn accept_foreign(
    journal: &dyn OperatorsJournal,
    settings: &Settings,
    (address, below): (Address, Nonce),
    order: Order,
) -> anyhow::Result<()> {
    expect_nobody_works(journal).await?;
    let chain = NodeClient::new(&settings.chain).context("cannot make the HTTP client")?;
    let height = final_height(&chain, settings.lane.finality).await?;
    let count = chain.transaction_count(address, BlockTag::Number(height)).await?;
    // What waits in a pool counts too: it is what holds a lane up.
    let pending = chain.pending_counts(address).await.into_iter().filter_map(|(_, pending)| pending.ok());
    let most = pending.fold(count, Nonce::max);
    if below > most {
        bail!(
            "no endpoint shows transactions of {address} up to nonce {below}: its count is {most}, with what waits in pools"
        );
    }
    let account = journal.account(settings.chain.chain_id, address).await?;
    let forgotten = journal.accept_foreign(account, below, order).await?;
    say(format_args!(
        "{address}: unknown transactions below nonce {below} count as another program's; {} compared with no more",
        counted(forgotten as u64, "call")
    ));
    Ok(())
}

async fn recover(
    journal: &dyn OperatorsJournal,
    settings: &Settings,
    from: BlockNumber,
    (limit, cancel_pooled): (Duration, bool),
    order: Order,
) -> anyhow::Result<()> {
    expect_nobody_works(journal).await?;
    let chain = NodeClient::new(&settings.chain).context("cannot make the HTTP client")?;
    let addresses: Vec<_> = settings.signers.iter().map(|signer| signer.address()).collect();
    let said = Said::default();
    let on_failure = |error: &HistoryError| said.again(&error.to_string());
    let patience = Patience { limit, on_failure: &on_failure };
    let replacers = if cancel_pooled { replacers(&chain, settings)? } else { Vec::new() };
    let to = all_final(&chain, &addresses, settings.lane.finality, replacers, &patience).await?;
    if from > to {
        bail!("block {from} is not final yet; the highest final block is {to}");
    }
    let mut accounts = Vec::with_capacity(addresses.len());
    for address in addresses {
        let progress = progress_bar(to.0 - from.0 + 1, format!("{address}: blocks"));
        let done = |block: BlockNumber| progress.set_position(block.0 - from.0 + 1);
        let batching = &settings.lane.batching;
        let began = Instant::now();
        let salvaged = loop {
            match account_history(&chain, address, (from, to), batching, &patience, &done).await {
                Err(error @ HistoryError::Holes { .. }) if began.elapsed() < limit => said.again(&error.to_string()),
                salvaged => break salvaged,
            }
            tokio::time::sleep(CHECK).await;
        };
        progress.finish_and_clear();
        let salvaged = salvaged.with_context(|| format!("{address} cannot be recovered"))?;
        say(format_args!(
            "{address}: {} in blocks {from} to {to}, with {}; its next nonce is {}",
            counted(salvaged.transactions as u64, "transaction"),
            counted(salvaged.writes.len() as u64, "write"),
            salvaged.next_nonce
        ));
        let account = journal.account(settings.chain.chain_id, address).await?;
        let AccountHistory { first_nonce, next_nonce, writes, .. } = salvaged;
        accounts.push(RecoveredAccount { account, first_nonce, next_nonce, writes });
    }
    let operator = order.by.to_string();
    let recovery = Recovery { begun_at: Timestamp::now(), operator, from_block: from, to_block: to };
    let marked = match adopt::marker(settings).await {
        Ok(found) => found.map(|marker| marker.marked_start()),
        Err(error) => {
            say(format_args!("{NO_MARKER}: {error}"));
            None
        }
    };
    journal.begin_recovery(recovery, accounts, marked, order).await?;
    say(NEXT);
    Ok(())
}

const NO_MARKER: &str = "the queue's marker cannot be read, so this journal does not take the queue over yet. If the worker is \
                         refused, run `chainwriter recover --adopt`";

const NEXT: &str = "the journal is ready. Start the workers: a message or an open request whose calldata is among these writes \
                    becomes a dead letter with the reason invalid.maybe_written, unless the journal has the transaction \
                    itself. All others are written. List those with `chainwriter dead list --items --cause .maybe_written`; \
                    discard what is written, replay with --even-forgotten what is not. When all messages from before have \
                    come through: chainwriter recover --end";

/// Waits until nothing of these accounts is on its way: all that they sent is final, and no endpoint's pool has more.
/// Returns the highest final block. What a pool keeps behind a gap no node counts.
async fn all_final(
    chain: &NodeClient,
    accounts: &[Address],
    rule: FinalityRule,
    mut replacers: Vec<PooledReplacer<'_>>,
    patience: &Patience<'_>,
) -> anyhow::Result<BlockNumber> {
    let said = Said::default();
    let mut failing_since = None;
    loop {
        match what_waits(chain, accounts, rule, &mut replacers).await {
            Ok((height, None)) => return Ok(height),
            Ok((_, Some(waits))) => {
                failing_since = None;
                said.once(&waits);
            }
            Err(error) if failing_since.get_or_insert_with(Instant::now).elapsed() < patience.limit => {
                said.again(&format!("{error:#}"));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(CHECK).await;
    }
}

/// Returns the highest final block, and what is not final at it. Lets the replacers do what is due.
async fn what_waits(
    chain: &NodeClient,
    accounts: &[Address],
    rule: FinalityRule,
    replacers: &mut [PooledReplacer<'_>],
) -> anyhow::Result<(BlockNumber, Option<String>)> {
    let height = final_height(chain, rule).await?;
    let mut waits = None;
    for account in accounts {
        let counted_final = chain.transaction_count(*account, BlockTag::Number(height)).await?;
        let Some(pending) = on_its_way(chain, *account, counted_final).await? else { continue };
        let count = counted(pending.0 - counted_final.0, "transaction");
        waits.get_or_insert_with(|| format!("{account}: waiting for {count} to become final"));
        if let Some(replacer) = replacers.iter_mut().find(|replacer| replacer.account() == *account) {
            replacer.step(pending).await?;
        }
    }
    Ok((height, waits))
}

fn replacers<'a>(chain: &'a NodeClient, settings: &Settings) -> anyhow::Result<Vec<PooledReplacer<'a>>> {
    let (fees, patience) = (settings.tuning.fees, settings.tuning.replace_after);
    let replacer = |section| {
        let signer = app::signer(section, &Tracer::default())?;
        Ok(PooledReplacer::new(chain, signer, fees, settings.chain.chain_id, patience))
    };
    settings.signers.iter().map(replacer).collect()
}

/// Says something once, until it is something else.
#[derive(Default)]
struct Said(Mutex<String>);

impl Said {
    fn once(&self, text: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != text {
            say(text);
            text.clone_into(&mut last);
        }
    }

    fn again(&self, failure: &str) {
        self.once(&format!("{failure}; asking again"));
    }
}

/// Returns the highest count with what waits in a pool, where that is more than what is final.
async fn on_its_way(chain: &NodeClient, account: Address, final_count: Nonce) -> anyhow::Result<Option<Nonce>> {
    let mut most = final_count;
    for (endpoint, pending) in chain.pending_counts(account).await {
        let pending = pending.with_context(|| {
            format!(
                "{endpoint} cannot be asked what waits in its pool; what does may still be written. Try again when it \
                 answers, or take it out of chain.endpoints if it is gone for good"
            )
        })?;
        most = most.max(pending);
    }
    Ok((most > final_count).then_some(most))
}

pub(super) async fn final_height(chain: &NodeClient, rule: FinalityRule) -> anyhow::Result<BlockNumber> {
    let head = chain.header(BlockTag::Latest).await?.context("the node has no block")?;
    let tagged = match BlockTag::of(rule) {
        Some(tag) => chain.header(tag).await?,
        None => None,
    };
    highest_final(rule, head.number, tagged.map(|block| block.number)).context("the chain has no final block yet")
}
