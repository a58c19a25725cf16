//! `recover --cancel-pooled`: what waits in pools and gets into no block.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::chain::{BlockTag, Call, Chain};
use crate::cli::say;
use crate::model::text::counted;
use crate::model::{Address, Fee, Gas, Nonce, UnsignedTransaction, Wei};
use crate::policy::fee::{FeeRules, Market};
use crate::policy::gas;
use crate::signer::Signer;

/// Nonces replaced in one step, lowest first.
const STEP: u64 = 256;

/// Replaces the transactions of one account with transfers of nothing to itself, at a price of today. Either of the two lands,
/// and so the nonce is used up. Nothing is kept: another try reads from the pools what is there.
pub(super) struct PooledReplacer<'a> {
    chain: &'a dyn Chain,
    signer: Arc<dyn Signer>,
    fees: FeeRules,
    chain_id: u64,
    /// Without a transaction in a block for this long the next step is made.
    patience: Duration,
    seen: Option<(Nonce, Instant)>,
    /// Steps without a transaction in a block since. Where no node shows what a pooled transaction offers, each one doubles.
    vain: u32,
}

impl<'a> PooledReplacer<'a> {
    pub(super) fn new(
        chain: &'a dyn Chain,
        signer: Arc<dyn Signer>,
        fees: FeeRules,
        chain_id: u64,
        patience: Duration,
    ) -> Self {
        Self { chain, signer, fees, chain_id, patience, seen: None, vain: 0 }
    }

    pub(super) fn account(&self) -> Address {
        self.signer.address()
    }

    /// Replaces what waits below `pending` when none of it has got into a block for a while.
    ///
    /// # Errors
    /// When a node or the signer does not answer, or `fees.max_fee` is below the price that it takes.
    pub(super) async fn step(&mut self, pending: Nonce) -> anyhow::Result<()> {
        let count = self.chain.transaction_count(self.account(), BlockTag::Latest).await?;
        let since = match self.seen {
            Some((seen, since)) if seen == count => since,
            _ => {
                self.vain = 0;
                self.seen.insert((count, Instant::now())).1
            }
        };
        if count >= pending || since.elapsed() < self.patience {
            return Ok(());
        }
        let replaced = self.replace(count, pending).await?;
        say(format_args!("{}: {} in the pools replaced", self.account(), counted(replaced as u64, "transaction")));
        self.seen = Some((count, Instant::now()));
        self.vain += 1;
        Ok(())
    }

    async fn replace(&self, count: Nonce, pending: Nonce) -> anyhow::Result<usize> {
        let Some(head) = self.chain.header(BlockTag::Latest).await? else { return Ok(0) };
        let market = self.chain.market(&head).await?;
        let gas = self.transfer_gas().await;
        let mut unsigned = Vec::new();
        for nonce in (count.0..pending.0.min(count.0 + STEP)).map(Nonce) {
            let pooled = self.chain.pooled(self.account(), nonce).await?;
            let fee = self.price(pooled.and_then(|pooled| pooled.fee), &market)?;
            unsigned.push(self.transfer(nonce, fee, gas).into());
        }
        let raw = self.signer.sign(unsigned).await?;
        let sent: Vec<_> = raw.into_iter().map(Into::into).collect();
        let answers = self.chain.broadcast(&sent).await;
        if let Some(error) = answers.iter().find_map(|answer| answer.as_ref().err()) {
            say(format_args!("{}: {error}; trying again", self.account()));
        }
        Ok(answers.iter().filter(|answer| answer.is_ok()).count())
    }

    fn price(&self, pooled: Option<Fee>, market: &Market) -> anyhow::Result<Fee> {
        let quoted = self.fees.quote(market)?;
        let unseen = 2_u128.saturating_pow(self.vain);
        let previous = pooled.unwrap_or(match quoted {
            Fee::Legacy { gas_price } => Fee::Legacy { gas_price: gas_price.scaled_up(unseen, 1) },
            Fee::Eip1559 { max_fee, tip } => {
                Fee::Eip1559 { max_fee: max_fee.scaled_up(unseen, 1), tip: tip.scaled_up(unseen, 1) }
            }
        });
        self.fees.replacement(previous, market).ok_or_else(|| {
            anyhow::anyhow!(
                "what waits in the pools offers {} for a unit of gas; fees.max_fee is too low to replace it: raise it and \
                 run the command again",
                previous.ceiling()
            )
        })
    }

    /// More than usual where the account has code.
    async fn transfer_gas(&self) -> Gas {
        let call = Call { from: self.account(), to: self.account(), value: Wei(0), data: Bytes::new() };
        let estimated = self.chain.estimate(&[call.into()]).await.into_iter().next();
        estimated.and_then(Result::ok).unwrap_or(gas::TRANSFER).max(gas::TRANSFER)
    }

    fn transfer(&self, nonce: Nonce, fee: Fee, gas: Gas) -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: self.chain_id,
            nonce,
            to: Some(self.account()),
            value: Wei(0),
            gas,
            data: Bytes::new(),
            fee,
        }
    }
}
