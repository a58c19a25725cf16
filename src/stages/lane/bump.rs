//! Bumps: an operator wants a transaction to offer more at once, whatever its age. It is raised once, by the rules of a
//! replacement, up to `fees.max_fee` or the limit that the operator named; or the order is refused, with the reason.

use std::collections::BTreeMap;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::journal::{AnsweredBump, Bump, JournalError};
use crate::model::{Fee, Nonce, Purpose, Wei};
use crate::policy::fee::{FeeMode, FeeRules, Market, is_underpriced};
use crate::stages::lane::care::Replacement;
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::learnt::SIGNED_PER_NONCE;
use crate::stages::lane::pool_status::PoolStatus;
use crate::stages::lane::term::Term;

/// Says what becomes of an order.
enum Bumped {
    /// The next poll decides: its bytes are just being sent, or the market is unknown.
    Later,
    Refused(String),
    Raised(Nonce, Replacement),
}

impl Term<'_> {
    /// Answers the operators' orders. Invariant 5: a replacement is journalled before it is broadcast, here together with the
    /// answer. Crash before the commit: the order stands. Crash after it: the next term sends the bytes, and raises nothing.
    pub(super) async fn apply_bumps(&mut self) -> Result<(), JournalError> {
        let bumps = self.context.journal.bumps(self.lease.account).await?;
        if bumps.is_empty() {
            return Ok(());
        }
        self.view.read_balance_since(Instant::now(), self.context.chain.as_ref(), self.account()).await;
        let (mut answers, mut raised) = (Vec::new(), Vec::new());
        for bump in bumps {
            match self.bumped(&bump) {
                Bumped::Later => {}
                Bumped::Refused(text) => answers.push(AnsweredBump { request: bump.request, signed: None, text }),
                // Two requests may share it.
                Bumped::Raised(nonce, _) if raised.iter().any(|(_, other, _)| *other == nonce) => {}
                Bumped::Raised(nonce, replacement) => raised.push((bump, nonce, replacement)),
            }
        }
        self.raise(raised, answers).await
    }

    async fn raise(
        &mut self,
        raised: Vec<(Bump, Nonce, Replacement)>,
        mut answers: Vec<AnsweredBump>,
    ) -> Result<(), JournalError> {
        let requests: BTreeMap<_, _> = raised.iter().map(|(bump, nonce, _)| (*nonce, bump.request)).collect();
        let replacements = raised.into_iter().map(|(_, nonce, replacement)| (nonce, replacement)).collect();
        // Without its key nothing is raised now; the orders stand.
        let begun = self.sign_replacements(replacements).await;
        answers.extend(begun.iter().filter_map(|(nonce, signed, _)| {
            let text = format!("it offers up to {} for a unit of gas now, at nonce {nonce}", signed.fee.ceiling());
            Some(AnsweredBump { request: *requests.get(nonce)?, signed: Some((*nonce, signed.clone())), text })
        }));
        if answers.is_empty() {
            return Ok(());
        }
        self.context.journal.answer_bumps(&self.lease, answers.clone()).await?;
        for AnsweredBump { text, .. } in answers.iter().filter(|answer| answer.signed.is_none()) {
            info!(account = %self.account(), answer = text, "an operator's bump is refused");
        }
        for (nonce, signed, gas) in begun {
            warn!(tx.nonce = %nonce, fee.max = %signed.fee.ceiling(), "an operator wants a higher price");
            self.begin_replacement(nonce, signed, gas);
        }
        Ok(())
    }

    fn bumped(&mut self, bump: &Bump) -> Bumped {
        let Some(nonce) = self.flight.of_request(bump.request).map(|transaction| transaction.nonce) else {
            return Bumped::Refused("it has ended, or is to be tried again".to_owned());
        };
        let Some(transaction) = self.flight.get(nonce) else { return Bumped::Later };
        if let Some(inclusion) = transaction.included {
            let block = inclusion.block_number;
            return Bumped::Refused(format!(
                "it is in block {block} already, and final soon; another price changes nothing"
            ));
        }
        if transaction.pool == PoolStatus::NonceUsed {
            return Bumped::Refused("nodes say that its nonce is taken; another price changes nothing".to_owned());
        }
        let Some(market) = self.view.market().filter(|_| !transaction.is_being_sent() && !self.foreign.is_behind())
        else {
            return Bumped::Later;
        };
        match self.bumped_price(transaction, bump.max_fee, &market) {
            Ok(fee) => Bumped::Raised(nonce, self.repriced(transaction, fee)),
            Err(why) => Bumped::Refused(why),
        }
    }

    /// Returns the price after a bump, or why there is none, for a person.
    fn bumped_price(&self, transaction: &InFlight, named: Option<Wei>, market: &Market) -> Result<Fee, String> {
        let (newest, rules) = (transaction.newest(), self.tuning().fees);
        if rules.mode == FeeMode::Zero {
            return Err("the chain takes no fees (fees.mode is \"zero\")".to_owned());
        }
        if transaction.count_of(newest.purpose) >= SIGNED_PER_NONCE {
            return Err("no more are signed for one nonce".to_owned());
        }
        let most = named.unwrap_or(rules.max_fee);
        let next = FeeRules { max_fee: most, ..rules }.replacement(newest.fee, market);
        let Some(fee) = next.filter(|fee| !is_underpriced(*fee, market)) else {
            let needed = least(rules, newest.fee, market);
            let limit = if named.is_some() { "--max-fee" } else { "fees.max_fee" };
            return Err(format!(
                "a replacement has to offer {needed} for a unit of gas, and {limit} is {most}; name more with --max-fee"
            ));
        };
        let gas = self.gas_of(transaction);
        let permits = &self.routes.permits;
        if named.is_none() && newest.purpose == Purpose::Write && !permits.may_offer(gas, fee) {
            return Err("policy.max_fee allows no higher price; --max-fee names a limit of your own".to_owned());
        }
        let value = if newest.purpose == Purpose::Write { transaction.payload.value } else { Wei(0) };
        let cost = fee.total(gas).plus(value);
        match self.view.balance() {
            Some(balance) if balance < cost => Err(format!("the account has {balance}, and it may cost {cost}")),
            _ => Ok(fee),
        }
    }
}

/// Returns the least that a replacement has to offer to get into the next block, whatever the limits.
fn least(rules: FeeRules, previous: Fee, market: &Market) -> Wei {
    let free = FeeRules { max_fee: Wei(u128::MAX), ..rules };
    // Without room for growth.
    let bare = Market { base_fee: market.base_fee.map(|_| Wei(0)), ..*market };
    let fee = free.replacement(previous, &bare).unwrap_or(previous);
    fee.ceiling().max(market.base_fee.map_or(Wei(0), |base_fee| base_fee.plus(fee.tip())))
}
