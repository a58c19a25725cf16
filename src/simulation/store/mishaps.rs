//! What changes the store after the straight way: requests to cancel, gaps, blocks that went away after they were final.

use std::collections::btree_map::Entry;

use crate::journal::{
    AccountId, CANCELLED, CancelAnswer, Cancellation, EndedAgain, JournalError, Lease, Reorged, RequestSeq,
    StoredNonce, StoredRequest, Which,
};
use crate::model::{Members, Nonce, Order, RequestId, SignedTransaction, Timestamp, TransactionState};
use crate::simulation::store::{Cancel, RequestRow, SignedRecord, Store, StoredFiller, TransactionRow, refused};

type Result<T, E = JournalError> = std::result::Result<T, E>;

impl Store {
    pub(crate) fn cancel(&mut self, now: Timestamp, id: &RequestId, order: Order) -> CancelAnswer {
        let Some((seq, row)) = self.seqs.get(id).and_then(|seq| Some((*seq, self.requests.get_mut(seq)?))) else {
            return CancelAnswer::NotKnown;
        };
        if row.state.is_over() {
            return CancelAnswer::TooLate(row.state);
        }
        // The first request to cancel counts.
        if let Entry::Vacant(place) = self.cancellations.entry(seq) {
            let detail = order.text(CANCELLED);
            row.note(now, "cancel", detail.clone());
            place.insert(Cancel { detail });
            self.log.push(now);
        }
        CancelAnswer::Noted(row.state)
    }

    pub(crate) fn is_cancelled(&self, id: &RequestId) -> bool {
        self.seqs.get(id).is_some_and(|seq| self.cancellations.contains_key(seq))
    }

    pub(crate) fn cancellations(&self, account: AccountId) -> Vec<Cancellation> {
        let cancelled =
            self.cancellations.iter().filter_map(|(seq, cancel)| Some((*seq, cancel, self.requests.get(seq)?)));
        let mut open: Vec<_> = cancelled.filter(|(_, _, row)| row.account == account && row.state.is_open()).collect();
        open.sort_by_key(|(_, _, row)| row.turn);
        let cancellation = |(seq, cancel, row): (RequestSeq, &Cancel, _)| Cancellation {
            request: super::reading::queued_request(seq, row),
            state: row.state,
            detail: cancel.detail.clone(),
        };
        open.into_iter().map(cancellation).collect()
    }

    /// A request to cancel is over with the request that it names.
    pub(super) fn forget_cancellation(&mut self, request: RequestSeq) {
        if self.requests.get(&request).is_some_and(|row| row.state.is_over()) {
            self.cancellations.remove(&request);
        }
    }

    pub(crate) fn nonces(&self, account: AccountId, which: Which) -> Vec<StoredNonce> {
        let of_account = self.transactions.range((account, Nonce(0))..=(account, Nonce(u64::MAX)));
        let stored = of_account.filter_map(|((_, nonce), row)| self.stored_nonce(*nonce, row));
        match which {
            Which::Range(first, below) => {
                stored.filter(|stored| stored.nonce >= first && stored.nonce < below).collect()
            }
            Which::IncludedBelow(below, limit) => {
                let counts = |stored: &StoredNonce| {
                    let row = &self.transactions[&(account, stored.nonce)];
                    stored.nonce < below
                        && row.included.is_some()
                        && row.reorged_at.is_none()
                        && row.state != TransactionState::Live
                };
                let mut found: Vec<_> = stored.filter(counts).collect();
                found.reverse();
                found.truncate(limit as usize);
                found
            }
            Which::Reorged => {
                stored.filter(|stored| self.transactions[&(account, stored.nonce)].reorged_at.is_some()).collect()
            }
        }
    }

    fn stored_nonce(&self, nonce: Nonce, row: &TransactionRow) -> Option<StoredNonce> {
        let stored = |seq: RequestSeq| {
            let RequestRow { id, generation, reply, trace, state, .. } = self.requests.get(&seq)?.clone();
            Some(StoredRequest { seq, id, generation, reply, trace, state })
        };
        Some(StoredNonce {
            requests: Members::from_vec(row.requests.iter().filter_map(|request| stored(*request)).collect())?,
            nonce,
            state: row.state,
            included: row.included.clone(),
            signed: row.signed.iter().map(|stored| stored.attempt.clone()).collect(),
        })
    }

    pub(crate) fn fillers(&self, account: AccountId, first: Nonce, below: Nonce) -> Vec<(Nonce, SignedTransaction)> {
        let is_asked =
            |filler: &&StoredFiller| filler.account == account && filler.nonce >= first && filler.nonce < below;
        let mut found: Vec<_> =
            self.fillers.iter().filter(is_asked).map(|filler| (filler.nonce, filler.attempt.clone())).collect();
        found.sort_by_key(|(nonce, _)| *nonce);
        found
    }

    pub(crate) fn record_fillers(&mut self, lease: &Lease, fillers: Vec<(Nonce, SignedTransaction)>) -> Result<()> {
        let next = self.held(lease)?.next_nonce;
        for (nonce, _) in &fillers {
            let row = self.transactions.get(&(lease.account, *nonce));
            let is_ours =
                row.is_some_and(|row| !matches!(row.state, TransactionState::Reverted | TransactionState::Displaced));
            if is_ours || next.is_none_or(|next| next <= *nonce) {
                return Err(refused("fill a nonce", format!("{nonce} is not one that may be filled")));
            }
        }
        for (nonce, attempt) in fillers {
            self.record.fillers.push(SignedRecord {
                account: lease.account,
                requests: Vec::new(),
                nonce,
                kind: attempt.purpose,
                signed: attempt.raw.clone(),
                fee: attempt.fee,
            });
            self.fillers.push(StoredFiller { account: lease.account, nonce, attempt });
        }
        Ok(())
    }

    pub(crate) fn record_reorged(&mut self, now: Timestamp, lease: &Lease, reorged: Vec<Reorged>) -> Result<()> {
        self.held(lease)?;
        for reorged in reorged {
            let row = self.transactions.get_mut(&(lease.account, reorged.nonce));
            let fits = |row: &&mut TransactionRow| {
                row.requests.first == reorged.events.first.0 && row.included.is_some() && row.reorged_at.is_none()
            };
            if let Some(row) = row.filter(fits) {
                row.reorged_at = Some(now);
                for (request, event) in reorged.events {
                    self.record_change(now, request, ("reorged", reorged.detail.clone()), event);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn record_ended_again(&mut self, now: Timestamp, lease: &Lease, ended: Vec<EndedAgain>) -> Result<()> {
        self.held(lease)?;
        for ended in ended {
            let row = self.transactions.get_mut(&(lease.account, ended.transaction.nonce));
            let is_it = |row: &&mut TransactionRow| {
                row.requests.first == ended.events.first.0
                    && row.requests.count() == ended.events.count()
                    && row.reorged_at.is_some()
            };
            if let Some(row) = row.filter(is_it) {
                row.reorged_at = None;
                (row.state, row.included) = (ended.transaction.state, ended.transaction.included.clone());
                for (request, event) in ended.events {
                    self.record_change(now, request, ("ended", ended.detail.clone()), event);
                }
            }
        }
        Ok(())
    }

    fn record_change(
        &mut self,
        now: Timestamp,
        request: RequestSeq,
        (what, detail): (&'static str, String),
        event: Option<crate::model::Event>,
    ) {
        let Some(row) = self.requests.get_mut(&request) else { return };
        row.note(now, what, detail);
        let (account, id) = (row.account, row.id.clone());
        if let Some(event) = event {
            self.add_event(account, id, event);
        }
    }
}
