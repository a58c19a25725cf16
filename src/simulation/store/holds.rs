//! Operators' holds in the store.

use crate::journal::{AccountId, Hold, HoldScope, NewTransaction, RequestSeq};
use crate::model::{Order, Timestamp};
use crate::simulation::store::{Store, refused};

type Result<T> = crate::journal::Result<T>;

impl Store {
    pub(crate) fn holds(&self) -> &[Hold] {
        &self.holds
    }

    pub(crate) fn hold(&mut self, now: Timestamp, scope: &HoldScope, order: Order) -> Result<Option<Hold>> {
        if let Some(there) = self.holds.iter().find(|hold| is_of(hold, scope)) {
            return Ok(Some(there.clone()));
        }
        let account_id = if let HoldScope::Account(account) = scope { Some(*account) } else { None };
        let row = |account: AccountId| self.accounts.get(&account).ok_or_else(|| refused("hold", "no such account"));
        let account = account_id.map(|account| row(account).map(|row| row.address)).transpose()?;
        let route = if let HoldScope::Route(route) = scope { Some(route.clone()) } else { None };
        let Order { by, reason } = order;
        self.log.push(now);
        self.holds.push(Hold { account, account_id, route, since: now, by, reason });
        Ok(None)
    }

    pub(crate) fn release(&mut self, now: Timestamp, scope: &HoldScope) -> Option<Hold> {
        let place = self.holds.iter().position(|hold| is_of(hold, scope))?;
        self.log.push(now);
        Some(self.holds.remove(place))
    }

    pub(crate) fn release_all(&mut self) {
        self.holds.clear();
    }

    pub(super) fn is_on_hold(&self, request: RequestSeq) -> bool {
        let Some(row) = self.requests.get(&request) else { return false };
        self.holds.iter().any(|hold| hold.covers(row.account, &row.route))
    }

    /// Counts how many of these come before the first that is held.
    pub(super) fn before_held(&self, new: &[NewTransaction]) -> usize {
        let is_held = |new: &NewTransaction| new.requests.iter().any(|request| self.is_on_hold(*request));
        new.iter().position(is_held).unwrap_or(new.len())
    }
}

fn is_of(hold: &Hold, scope: &HoldScope) -> bool {
    match scope {
        HoldScope::Everything => hold.account_id.is_none() && hold.route.is_none(),
        HoldScope::Account(account) => hold.account_id == Some(*account),
        HoldScope::Route(route) => hold.route.as_ref() == Some(route),
    }
}
