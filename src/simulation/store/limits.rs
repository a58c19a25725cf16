//! What counts against the limits in the store, by a clock that is nobody's host's, as that of a database server.

use crate::journal::{AccountId, NewTransaction};
use crate::model::TransactionState;
use crate::policy::limits::{Granted, Limits, Usage};
use crate::simulation::store::{Begun, Store, SumsByChain};

impl Store {
    pub(crate) fn usage(&self, now_us: i64, account: AccountId, limits: Limits) -> Usage {
        let Some(chain) = self.accounts.get(&account).map(|row| row.chain_id) else { return Usage::default() };
        let is_live = |(account, state): (&AccountId, TransactionState)| {
            state == TransactionState::Live && self.accounts.get(account).is_some_and(|row| row.chain_id == chain)
        };
        let live = self.transactions.iter().filter(|((account, _), row)| is_live((account, row.state))).count() as u64;
        let of_chain = |sums: &SumsByChain| {
            sums.range((chain, i64::MIN)..=(chain, i64::MAX)).map(|((_, slot), sum)| (*slot, *sum)).collect()
        };
        Usage {
            now_us,
            live: limits.in_flight.map_or(0, |most| live.min(most)),
            whole_at_us: self.throttles.get(&chain).copied().unwrap_or(0),
            gas: of_chain(&self.spent),
            value: of_chain(&self.paid),
            fee: of_chain(&self.fees),
        }
    }

    pub(super) fn take(&mut self, now_us: i64, account: AccountId, new: &[NewTransaction], limits: Limits) -> Granted {
        let mut usage = self.usage(now_us, account, limits);
        let wanted: Vec<_> = new.iter().map(NewTransaction::share).collect();
        let granted = limits.take(&mut usage, &wanted);
        let Some(chain) = self.accounts.get(&account).map(|row| row.chain_id) else { return granted };
        let begun = wanted.iter().take(granted.count).map(|share| Begun { at_us: now_us, gas: share.gas });
        self.record.begun.extend(begun);
        if granted.count > 0 && !limits.is_none() {
            self.throttles.insert(chain, usage.whole_at_us);
            for (sums, now) in
                [(&mut self.spent, usage.gas), (&mut self.paid, usage.value), (&mut self.fees, usage.fee)]
            {
                sums.retain(|(other, _), _| *other != chain);
                sums.extend(now.into_iter().map(|(slot, sum)| ((chain, slot), sum)));
            }
        }
        granted
    }
}
