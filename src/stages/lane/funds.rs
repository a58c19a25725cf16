//! What the account can pay. A request that may cost more than the account has fails alone; one that may cost more than is
//! left waits until what is in flight has got into blocks; the lane pauses only where not even a transfer to itself can be
//! paid. Where the balance is not known, nothing is decided by it.

use tokio::time::Instant;
use tracing::debug;

use crate::journal::QueuedRequest;
use crate::model::{Cause, Fee, PauseReason, Reason, Wei};
use crate::stages::lane::conclude;
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::payload::{Fetched, Payload};
use crate::stages::lane::settings::Held;
use crate::stages::lane::term::Term;

/// The account's means at the price of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Funds {
    pub(super) balance: Wei,
    /// The highest costs of what is signed and in no block.
    pub(super) committed: Wei,
    /// The cost of a transfer to itself, the cheapest transaction there is.
    pub(super) least: Wei,
}

/// Says what the account can do about a cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    Pays,
    /// Pays once what is in flight has got into blocks.
    PaysLater,
    Lacks,
}

impl Funds {
    /// Returns whether not even a transfer to itself can be paid: the account as a whole cannot work.
    pub(super) fn are_exhausted(&self) -> bool {
        self.balance < self.least
    }

    pub(super) fn means_for(&self, cost: Wei) -> Means {
        if cost > self.balance {
            Means::Lacks
        } else if cost > Wei(self.balance.0.saturating_sub(self.committed.0)) {
            Means::PaysLater
        } else {
            Means::Pays
        }
    }

    /// Says why the lane pauses.
    pub(super) fn shortage(&self) -> String {
        let Self { balance, least, .. } = self;
        format!("the account has {} wei, the cheapest transaction may cost {} wei", balance.0, least.0)
    }

    fn failure(&self, payload: &Payload, fee: Fee) -> Cause {
        let (cost, balance) = (payload.cost(fee).0, self.balance.0);
        let (gas, price, value) = (payload.gas, fee.ceiling().0, payload.value.0);
        let l1 = if payload.l1_fee > Wei(0) { format!(", {} wei for L1", payload.l1_fee.0) } else { String::new() };
        let detail = format!(
            "it may cost {cost} wei ({gas} gas at {price} wei{l1} and a value of {value} wei), the account has {balance} wei"
        );
        Cause::new(Reason::InsufficientFunds, detail)
    }
}

/// Returns what the signed transactions of a nonce may cost at most: one of them lands.
fn highest_cost(transaction: &InFlight) -> Wei {
    let costs = transaction.signed.iter().map(|signed| transaction.payload.cost(signed.fee));
    costs.max().unwrap_or_default()
}

impl Term<'_> {
    /// Returns the account's funds; `None` where its balance or the price is not known.
    pub(super) fn funds(&self) -> Option<Funds> {
        let fee = self.tuning().fees.quote(&self.view.market()?).ok()?;
        let committed = self.flight.not_included().map(highest_cost).fold(Wei(0), Wei::plus);
        Some(Funds { balance: self.view.balance()?, committed, least: fee.total(self.learnt.transfer_gas()) })
    }

    /// Returns the funds as they are at this time or later.
    pub(super) async fn funds_since(&mut self, time: Instant) -> Option<Funds> {
        let (chain, account) = (self.context.chain.as_ref(), self.account());
        self.view.read_balance_since(time, chain, account).await;
        self.funds()
    }

    /// Ends a pause for lack of funds, and a wait for them, once the account can pay. Judges what nodes said meanwhile of
    /// signed transactions that it cannot pay.
    pub(super) async fn recheck_funds(&mut self) {
        let unpaid = std::mem::take(&mut self.unpaid);
        let is_paused = self.gate.paused().is_some_and(|pause| pause.reason == PauseReason::InsufficientFunds);
        let is_doubtful = self.flight.not_included().any(|own| own.is_cancelling() && own.was_unpaid);
        if !is_paused && self.gate.awaits_funds().is_none() && unpaid.is_empty() && !is_doubtful {
            return;
        }
        // Some chains make no block while nothing is sent, and the balance grows all the same.
        let funds = self.funds_since(Instant::now()).await.filter(|funds| !funds.are_exhausted());
        self.gate.recheck_funds();
        if funds.is_some() {
            self.gate.resume_from(PauseReason::InsufficientFunds);
        } else if let Some(text) = unpaid.values().next() {
            self.gate.pause(PauseReason::InsufficientFunds, text.clone());
        }
        for (nonce, text) in unpaid {
            let Some(transaction) = self.flight.get_mut(nonce) else { continue };
            let cost = highest_cost(transaction);
            match funds {
                None => transaction.forgive_unpaid(),
                // What is in blocks soon may leave enough. Those after the next nonce never are before it.
                Some(funds)
                    if cost <= funds.balance && funds.committed > funds.balance && !transaction.wait.is_next() =>
                {
                    transaction.forgive_unpaid();
                }
                // It costs more than the account has, or more than its gas and value by rules of the chain's own.
                Some(_) => transaction.record_unpaid(&text, Instant::now()),
            }
        }
    }

    /// Returns how many of what is ready the account can pay now, in order. Fails what it could not pay even with nothing in
    /// flight. Pauses the lane where it can pay nothing.
    pub(super) async fn affordable(&mut self, fee: Fee, most: usize) -> usize {
        let Some(mut funds) = self.funds() else { return most };
        let lacks = |funds: &Funds, payload: &Payload| funds.means_for(payload.cost(fee)) == Means::Lacks;
        if funds.are_exhausted() || self.queue.ready().iter().any(|payload| lacks(&funds, payload)) {
            // It may be old: somebody may have paid in.
            let Some(now) = self.funds_since(Instant::now()).await else { return most };
            funds = now;
        }
        if funds.are_exhausted() {
            self.gate.pause(PauseReason::InsufficientFunds, funds.shortage());
            return 0;
        }
        self.refuse_unaffordable(&funds, fee).await;
        let mut count = 0;
        for payload in self.queue.ready().iter().take(most) {
            let cost = payload.cost(fee);
            if funds.means_for(cost) != Means::Pays {
                let Funds { balance, committed, .. } = funds;
                let why = format!(
                    "it may cost {} wei; of the {} wei that the account has, {} wei are for transactions in no block yet",
                    cost.0, balance.0, committed.0
                );
                debug!(request.id = %payload.requests.first.id, why, "waits until others have got into blocks");
                self.gate.await_funds(Held { request: payload.requests.first.id.clone(), why });
                break;
            }
            funds.committed = funds.committed.plus(cost);
            count += 1;
        }
        count
    }

    /// Fails what may cost more than the account has. It comes back later. What shares a transaction is tried alone.
    async fn refuse_unaffordable(&mut self, funds: &Funds, fee: Fee) {
        let mut rulings = Vec::new();
        for payload in self.queue.take_ready(usize::MAX) {
            if funds.means_for(payload.cost(fee)) != Means::Lacks {
                self.queue.add_ready(payload);
            } else if payload.requests.is_batch() {
                let alone = |request: QueuedRequest| Fetched { request, alike: None, unanswered: 0 };
                self.queue.add_fetched(payload.requests.into_iter().map(alone));
            } else {
                let cause = funds.failure(&payload, fee);
                rulings.push(conclude::failed(&self.lease, payload.requests.first, cause));
            }
        }
        self.rule(rulings).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_paid_now_or_later_or_never() {
        let funds = Funds { balance: Wei(100), committed: Wei(70), least: Wei(21) };
        let table = [(0, Means::Pays), (30, Means::Pays), (31, Means::PaysLater), (100, Means::PaysLater)];
        for (cost, means) in table {
            assert_eq!(funds.means_for(Wei(cost)), means, "{cost}");
        }
        assert_eq!(funds.means_for(Wei(101)), Means::Lacks);
        let over = Funds { committed: Wei(130), ..funds };
        assert_eq!((over.means_for(Wei(0)), over.means_for(Wei(1))), (Means::Pays, Means::PaysLater));
    }

    #[test]
    fn the_account_is_exhausted_when_it_cannot_pay_a_transfer_to_itself() {
        let funds = |balance, least| Funds { balance: Wei(balance), committed: Wei(0), least: Wei(least) };
        assert!(funds(20, 21).are_exhausted() && !funds(21, 21).are_exhausted());
        assert!(!funds(0, 0).are_exhausted(), "a chain without fees");
    }
}
