//! `chainwriter recover`

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::chain::follow::history::account_history;
use crate::chain::{BlockTag, Chain, NodeClient};
use crate::cli::{exit, operator, progress_bar, say};
use crate::config::Settings;
use crate::journal::{OperatorsJournal, RecoveredAccount, Recovery};
use crate::model::{Address, BlockNumber, Nonce, Timestamp};
use crate::policy::finality::{FinalityRule, highest_final};

/// Interval between checks whether all transactions of an account are final.
const CHECK: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Arguments {
    /// Read what the accounts have written from this block on, into a new journal.
    #[arg(long, value_name = "BLOCK")]
    from_block: Option<u64>,
    /// End the recovery: what is in the queue from now on is written, whatever the chain has.
    #[arg(long)]
    end: bool,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    let address = &settings.journal.address;
    let Some(from_block) = arguments.from_block else {
        let journal = address.open_existing().await?;
        let ended = journal.end_recovery().await?;
        journal.close().await;
        say(if ended { "the recovery has ended" } else { "no recovery is on" });
        return Ok(if ended { exit::OK } else { exit::NOT_FOUND });
    };
    let journal = address.open().await?;
    let done = recover(journal.as_ref(), &settings, BlockNumber(from_block)).await;
    journal.close().await;
    done.map(|()| exit::OK)
}

async fn recover(journal: &dyn OperatorsJournal, settings: &Settings, from: BlockNumber) -> anyhow::Result<()> {
    if let Some(instance) = journal.attendance().await?.instances.first() {
        bail!("{} on {} works with this journal; stop it first", instance.worker, instance.host);
    }
    let chain = NodeClient::new(&settings.chain).context("cannot make the HTTP client")?;
    let addresses: Vec<_> = settings.signers.iter().map(|signer| signer.address()).collect();
    let to = all_final(&chain, &addresses, settings.lane.finality).await?;
    if from > to {
        bail!("block {from} is not final yet; the highest final block is {to}");
    }
    let mut accounts = Vec::with_capacity(addresses.len());
    for address in addresses {
        let progress = progress_bar(to.0 - from.0 + 1, format!("{address}: blocks"));
        let done = |block: BlockNumber| progress.set_position(block.0 - from.0 + 1);
        let salvaged = account_history(&chain, address, (from, to), &settings.lane.batching, done).await;
        progress.finish_and_clear();
        let salvaged = salvaged.with_context(|| format!("{address} cannot be recovered"))?;
        say(format_args!(
            "{address}: {} transactions in blocks {from} to {to}, with {} writes; its next nonce is {}",
            salvaged.transactions,
            salvaged.writes.len(),
            salvaged.next_nonce
        ));
        let account = journal.account(settings.chain.chain_id, address).await?;
        accounts.push(RecoveredAccount { account, next_nonce: salvaged.next_nonce, writes: salvaged.writes });
    }
    let recovery = Recovery { begun_at: Timestamp::now(), operator: operator(), from_block: from, to_block: to };
    journal.begin_recovery(recovery, accounts).await?;
    say(NEXT);
    Ok(())
}

const NEXT: &str = "the journal is ready. Start the workers: a message whose calldata is among these writes becomes a dead \
                    letter with the reason invalid.maybe_written, all others are written. Look at those with `chainwriter \
                    dead list --cause .maybe_written`; discard what is written, replay with --even-forgotten what is not. \
                    When all messages from before the loss have come through: chainwriter recover --end";

/// Waits until nothing of these accounts is on its way: all that they sent is final, and no endpoint's pool has more.
/// Returns the highest final block. What a pool keeps behind a gap no node counts.
async fn all_final(chain: &NodeClient, accounts: &[Address], rule: FinalityRule) -> anyhow::Result<BlockNumber> {
    let mut told = String::new();
    loop {
        let height = final_height(chain, rule).await?;
        let mut waits = None;
        for account in accounts {
            let counted = chain.transaction_count(*account, BlockTag::Number(height)).await?;
            waits = waits.or(on_its_way(chain, *account, counted).await?);
        }
        let Some(waits) = waits else { return Ok(height) };
        if waits != told {
            say(&waits);
            told = waits;
        }
        tokio::time::sleep(CHECK).await;
    }
}

async fn on_its_way(chain: &NodeClient, account: Address, final_count: Nonce) -> anyhow::Result<Option<String>> {
    for (endpoint, pending) in chain.pending_counts(account).await {
        let pending = pending.with_context(|| {
            format!(
                "{endpoint} cannot be asked what waits in its pool; what does may still be written. Try again when it \
                 answers, or take it out of chain.endpoints if it is gone for good"
            )
        })?;
        if pending > final_count {
            let count = pending.0 - final_count.0;
            return Ok(Some(format!("{account}: waiting for {count} transactions to become final")));
        }
    }
    Ok(None)
}

pub(super) async fn final_height(chain: &NodeClient, rule: FinalityRule) -> anyhow::Result<BlockNumber> {
    let head = chain.header(BlockTag::Latest).await?.context("the node has no block")?;
    let tagged = match BlockTag::of(rule) {
        Some(tag) => chain.header(tag).await?,
        None => None,
    };
    highest_final(rule, head.number, tagged.map(|block| block.number)).context("the chain has no final block yet")
}
