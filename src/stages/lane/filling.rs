//! Taking requests on: fetch, simulate, price, sign, journal, broadcast.

use std::collections::BTreeSet;

use tokio::time::Instant;
use tracing::debug;

use crate::journal::{JournalError, Lease};
use crate::model::{Fee, Nonce, PauseReason};
use crate::observe::metrics::Signed;
use crate::policy::limits::{Granted, Usage};
use crate::stages::lane::draft::{Fetched, Prepared};
use crate::stages::lane::settings::OutagePolicy;
use crate::stages::lane::{Lane, ending, prepare};
use crate::stages::settle::inbox::{FromLane, Ruling};

/// Transactions signed and journalled together at most.
pub(super) const BATCH: usize = 256;
/// Requests fetched and prepared together at most, where several may share a transaction; a whole batch in any case.
const MOST_FETCHED: usize = 1000;

impl Lane {
    pub(super) fn room(&self) -> usize {
        self.send_window.size().saturating_sub(self.window.not_included().count())
    }

    pub(super) fn can_fill(&self) -> bool {
        let is_gathered = !self.fetched.is_empty() && self.gathers_until().is_none();
        let has_work = self.may_have_more || is_gathered || !self.prepared.is_empty();
        has_work && self.room() > 0 && self.may_try() && self.throttled_until().is_none()
    }

    /// Not paused, or time to probe whether the reason is gone with something new.
    pub(super) fn may_try(&self) -> bool {
        if self.is_known_outage() {
            return true;
        }
        // What is signed already is the better probe: it has to be sent anyway. It tells nothing about the signer.
        let is_told_by_sending =
            self.pause.as_ref().is_some_and(|pause| pause.reason != PauseReason::SignerUnavailable);
        let has_probe = self.window.not_included().any(|transaction| !transaction.is_known_to_node);
        self.may_sign() && !(is_told_by_sending && has_probe)
    }

    /// Not paused, or time to look whether the reason is gone.
    pub(super) fn may_sign(&self) -> bool {
        let is_time = self.pause.as_ref().is_none_or(|pause| Instant::now() >= pause.until);
        self.head.is_some() && is_time && !self.is_head_stale()
    }

    /// Takes on what fits: fetch, simulate, price, sign, journal, broadcast.
    pub(super) async fn fill(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let usage = self.usage(lease).await?;
        let may_begin = self.may_begin(usage.as_ref(), self.room().min(BATCH));
        if (self.fetched.is_empty() || self.gathers_until().is_some()) && self.prepared.is_empty() {
            // One in any case: whether a limit holds anything back shows only where there is something.
            self.fetch(lease, self.most_requests(may_begin.count.max(1))).await?;
            self.set_written_aside(lease).await?;
        }
        if self.fetched.is_empty() && self.prepared.is_empty() {
            return Ok(());
        }
        if self.is_known_outage() {
            self.fail_waiting(lease).await;
            return Ok(());
        }
        if let Granted { count: 0, throttled: Some(throttled) } = may_begin {
            self.throttle(throttled);
            return Ok(());
        }
        if self.gathers_until().is_some() {
            return Ok(());
        }
        match self.prepare(lease).await {
            Ok(()) => self.sign(lease, usage.as_ref()).await?,
            Err((reason, detail)) => self.pause(reason, detail),
        }
        if self.is_known_outage() {
            self.fail_waiting(lease).await;
        }
        Ok(())
    }

    /// Until when what is fetched waits for others to share a transaction with; `None`: it does not wait.
    pub(super) fn gathers_until(&self) -> Option<Instant> {
        let batching = &self.settings.batching;
        let until = self.fetched_at.filter(|_| batching.is_on() && !self.fetched.is_empty())? + batching.max_wait;
        let has_room = self.fetched.len() < batching.max_requests && Instant::now() < until;
        let bytes = |fetched: &Fetched| fetched.request.calldata().len();
        let may_share = |fetched: &Fetched| fetched.alike.is_some();
        let waits = has_room
            && self.fetched.iter().all(may_share)
            && self.fetched.iter().map(bytes).sum::<usize>() < batching.max_bytes;
        waits.then_some(until)
    }

    /// For so many transactions.
    fn most_requests(&self, transactions: usize) -> usize {
        let batching = &self.settings.batching;
        if !batching.is_on() {
            return transactions;
        }
        let most = MOST_FETCHED.max(batching.max_requests);
        transactions.saturating_mul(batching.max_requests).min(most).saturating_sub(self.fetched.len()).max(1)
    }

    /// Looks at the queue from its start.
    pub(super) fn look_again(&mut self) {
        self.turn = i64::MIN;
        self.may_have_more = true;
    }

    /// Only while nothing is prepared: what was shows in the queue until it is signed, or settle has stored its end.
    async fn fetch(&mut self, lease: &Lease, most: usize) -> Result<(), JournalError> {
        let known: BTreeSet<i64> = self.fetched.iter().map(|fetched| fetched.request.turn).collect();
        let limit = most.saturating_add(self.judged.len()).saturating_add(known.len());
        let from = self.turn;
        let queued = self.journal.queued(lease.account, from, u32::try_from(limit).unwrap_or(u32::MAX)).await?;
        let is_full = queued.len() == limit;
        let seen_up_to = queued.last().filter(|_| is_full).map_or(i64::MAX, |last| last.turn);
        // What does not show any more is stored, and comes back, if it does, with another place.
        self.judged.retain(|turn| {
            let was_looked_at = *turn > from && *turn <= seen_up_to;
            !was_looked_at || queued.binary_search_by_key(turn, |request| request.turn).is_ok()
        });
        let is_fresh = |turn: &i64| !self.judged.contains(turn) && !known.contains(turn);
        let mut fresh = queued.into_iter().filter(|request| is_fresh(&request.turn));
        let taken: Vec<_> = fresh.by_ref().take(most).collect();
        self.may_have_more = is_full || fresh.next().is_some();
        self.turn = taken.last().map_or(from, |last| last.turn);
        if self.fetched.is_empty() {
            self.fetched_at = Some(Instant::now());
        }
        let mut rulings = Vec::new();
        for request in taken {
            match self.settings.permits.check(request.write.to, request.write.value, request.calldata()) {
                Ok(()) => self.fetched.push(Fetched::new(request, &self.settings.batching)),
                Err(cause) => rulings.push(ending::failed(lease, request, cause)),
            }
        }
        self.rule(rulings).await;
        Ok(())
    }

    /// Something is away, it is not yet time to look again, and the operator wants requests to fail for it.
    pub(super) fn is_known_outage(&self) -> bool {
        self.settings.tuning().outage == OutagePolicy::Retry
            && self.pause.as_ref().is_some_and(|pause| pause.reason.is_outage() && Instant::now() < pause.until)
    }

    /// Invariants 1 and 4: nonces are taken in the commit that stores the signed bytes, and only then does the
    /// broadcaster get them. Crash before the commit: nothing has happened. Crash after it: recovery sends the same bytes.
    ///
    /// The commit stores what the limits grant, which is all unless another lane was faster. The rest stays ready: its bytes
    /// are dropped here, so no node ever gets them, and their nonces were not taken.
    pub(super) async fn sign(&mut self, lease: &Lease, usage: Option<&Usage>) -> Result<(), JournalError> {
        let Some(first) = self.next_nonce else { return Ok(()) };
        let Some(fee) = self.quote() else { return Ok(()) };
        self.refuse_dear(lease, fee).await;
        let Granted { count, throttled } = self.may_sign_now(usage, fee);
        if let Some(throttled) = throttled {
            self.throttle(throttled);
        }
        if count == 0 {
            return Ok(());
        }
        let unsigned = self.prepared.iter().take(count).zip(first.0..);
        let unsigned = unsigned.map(|(prepared, nonce)| self.unsigned(prepared, Nonce(nonce), fee)).collect();
        let spans = self.spans(self.prepared.iter().take(count).map(Prepared::requests));
        let Some(signed) = self.signed(unsigned, &spans).await else { return Ok(()) };
        self.resume_if(|_| true);
        let batch: Vec<_> = self.prepared.drain(..count).collect();
        let mut transactions = self.new_transactions(batch, signed, first, fee);
        let stored = transactions.iter().map(prepare::to_store).collect();
        let granted = self.journal.record_transactions(lease, stored, self.settings.tuning().limits).await?;
        for held_back in transactions.drain(granted.count.min(transactions.len())..).rev() {
            self.prepared.push_front(held_back.unsigned());
        }
        if let Some(throttled) = granted.throttled {
            self.throttle(throttled);
        }
        self.next_nonce = Some(first.plus(transactions.len() as u64));
        self.signals.meter.signed.add(Signed::First, transactions.len());
        for transaction in transactions {
            debug!(request.id = %transaction.request.id, request.others = transaction.others.len(), tx.nonce = %transaction.nonce, tx.hash = %transaction.newest().raw.hash, "signed");
            let nonce = transaction.nonce;
            for request in transaction.requests() {
                self.signals.meter.until_broadcast.note(request.received_at.age());
            }
            self.window.insert(transaction);
            self.send(nonce);
        }
        Ok(())
    }

    /// What may not cost as much as it would now fails, and comes back later.
    async fn refuse_dear(&mut self, lease: &Lease, fee: Fee) {
        if !self.settings.permits.limits_fees() {
            return;
        }
        let mut rulings = Vec::new();
        for prepared in std::mem::take(&mut self.prepared) {
            match self.settings.permits.check_fee(prepared.gas, fee) {
                Ok(()) => self.prepared.push_back(prepared),
                Err(cause) => {
                    let requests = prepared.into_requests();
                    rulings.extend(requests.map(|request| ending::failed(lease, request, cause.clone())));
                }
            }
        }
        self.rule(rulings).await;
    }

    /// With `[outage] policy = "retry"`: what has no transaction yet fails now and comes back later.
    pub(super) async fn fail_waiting(&mut self, lease: &Lease) {
        let Some((reason, detail)) = self.pause.as_ref().map(|pause| (pause.reason, pause.detail.clone())) else {
            return;
        };
        let waiting = std::mem::take(&mut self.fetched).into_iter().map(|fetched| fetched.request);
        let waiting = waiting.chain(std::mem::take(&mut self.prepared).into_iter().flat_map(Prepared::into_requests));
        let rulings = waiting.map(|request| ending::unavailable(lease, request, reason, &detail)).collect();
        self.rule(rulings).await;
    }

    pub(super) async fn rule(&mut self, rulings: Vec<Ruling>) {
        let without_nonce = rulings.iter().filter(|ruling| ruling.transaction.is_none());
        self.judged.extend(without_nonce.map(|ruling| ruling.request.turn));
        if !rulings.is_empty() {
            // Settle has gone only when the process ends.
            let _ = self.settle.send(FromLane::Rulings(rulings)).await;
        }
    }

    pub(super) fn send(&mut self, nonce: Nonce) {
        let span = self.window.get(nonce).and_then(|transaction| self.span_of(transaction));
        if let Some(transaction) = self.window.get_mut(nonce) {
            transaction.is_being_sent = true;
            self.broadcaster.send(nonce, transaction.newest().raw.clone(), span);
        }
    }
}
