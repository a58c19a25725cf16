//! Taking on: fetch from the queue, simulate, price, sign, journal, broadcast.

use std::sync::Arc;

use tracing::{debug, info, warn};

use crate::journal::NewTransaction;
use crate::journal::{Cancellation, JournalError};
use crate::model::{
    Cause, Fee, Nonce, PauseReason, Purpose, RawTransaction, Reason, RequestState, SignedTransaction, Timestamp,
    UnsignedTransaction,
};
use crate::observe::metrics::Signed;
use crate::observe::traces::Traced;
use crate::policy::limits::{Granted, Share, Usage};
use crate::stages::lane::conclude;
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::lapses::Part;
use crate::stages::lane::payload::{Fetched, Payload};
use crate::stages::lane::settings::OutagePolicy;
use crate::stages::lane::term::Term;
use crate::stages::settle::inbox::{FromLane, LaneVerdict, Ruling};

/// Transactions signed and journalled together at most.
const ROUND: usize = 256;
/// The same where an endpoint asks for fewer calls: what it takes in so many seconds, and so many at least.
const ROUND_SECONDS: f64 = 2.0;
const LEAST_ROUND: usize = 4;
/// A lane could write more when more than this part of its window is free.
const HUNGRY: usize = 8;

impl Term<'_> {
    pub(super) fn can_fill(&self) -> bool {
        self.queue.has_work(&self.routes.batching)
            && self.flight.room() > 0
            && self.may_try()
            && self.gate.may_begin().is_ok()
            && !self.is_on_hold()
    }

    /// Returns whether a good part of the window is free and there is nothing to fill it with.
    pub(super) fn is_hungry(&self) -> bool {
        let is_free = self.flight.room() > self.flight.window().size() / HUNGRY;
        is_free
            && !self.queue.has_work(&self.routes.batching)
            && self.may_try()
            && self.gate.may_begin().is_ok()
            && !self.is_on_hold()
    }

    /// Returns whether something new may be taken on: not paused, or time to probe with it whether the reason is gone. What
    /// is signed already is the better probe, since it has to be sent anyway; it shows nothing about estimates.
    pub(super) fn may_try(&self) -> bool {
        if self.fails_for_outage() {
            return self.context.signals.serves();
        }
        let has_probe = || self.flight.not_included().any(|transaction| !transaction.is_pooled());
        // No broadcast shows that nodes estimate again.
        let is_probed = self.gate.is_probed_by_sending() && !self.lapses.is_open(Part::Estimates);
        self.may_sign() && !(is_probed && has_probe())
    }

    pub(super) fn may_sign(&self) -> bool {
        self.context.signals.serves()
            && self.foreign.allows_signing()
            && self.gate.may_sign(self.view.head().is_some()).is_ok()
    }

    /// Returns whether requests without a transaction fail because something is away: only where the operator asks for that.
    fn fails_for_outage(&self) -> bool {
        self.tuning().outage == OutagePolicy::Retry && self.gate.is_known_outage()
    }

    /// Takes on what fits.
    pub(super) async fn fill(&mut self) -> Result<(), JournalError> {
        self.drop_held();
        let usage = self.usage().await?;
        let may_begin = self.may_begin(usage.as_ref());
        // One in any case: whether a limit holds anything back shows only where there is something.
        self.fetch(may_begin.count.clamp(1, self.round())).await?;
        if self.queue.is_empty() {
            return Ok(());
        }
        if self.fails_for_outage() {
            self.fail_waiting().await;
            return Ok(());
        }
        if let Granted { count: 0, throttled: Some(throttled) } = may_begin {
            self.gate.throttle(throttled);
            return Ok(());
        }
        if self.queue.gathers_until(&self.routes.batching).is_some() {
            // What was tried on its own gathers nothing.
            return self.sign_ready(usage.as_ref(), self.lapses.is_open(Part::Estimates)).await;
        }
        let outage = self.simulate_fetched().await;
        match &outage {
            None => _ = self.lapses.end(Part::Estimates),
            Some((reason, detail)) if reason.is_outage() => {
                self.lapses.begin_for(Part::Estimates, *reason, detail.clone());
            }
            Some(_) => {}
        }
        // What was answered goes on.
        self.sign_ready(usage.as_ref(), outage.is_some()).await?;
        // What waits for those has all before it signed now.
        self.try_aside();
        if let Some((reason, detail)) = outage {
            self.gate.pause(reason, detail);
        }
        if self.fails_for_outage() {
            self.fail_waiting().await;
        }
        Ok(())
    }

    /// Returns how many are simulated and signed together: where an endpoint asks for fewer calls, those of a few seconds, so that
    /// the lane sees new blocks between them.
    fn round(&self) -> usize {
        let calls = self.context.chain.calls_per_second();
        // Saturates.
        calls.map_or(ROUND, |calls| ((calls * ROUND_SECONDS) as usize).clamp(LEAST_ROUND, ROUND))
    }

    /// Returns what counts against the limits now; `None` where there are none.
    async fn usage(&self) -> Result<Option<Usage>, JournalError> {
        let limits = self.tuning().limits;
        if limits.is_none() {
            return Ok(None);
        }
        self.context.journal.usage(self.lease.account, limits).await.map(Some)
    }

    /// Returns how many may be begun, if each takes as little gas as can be: no more are fetched or simulated.
    fn may_begin(&self, usage: Option<&Usage>) -> Granted {
        let least = Share { gas: self.learnt.base_gas(), ..Share::default() };
        self.granted(usage, std::iter::repeat_n(least, self.flight.room().min(ROUND)))
    }

    /// Estimates what the limits grant: other lanes may be faster. What counts is what the journal grants when it stores.
    fn granted(&self, usage: Option<&Usage>, wanted: impl Iterator<Item = Share>) -> Granted {
        match usage {
            Some(usage) => self.tuning().limits.grant(usage, &wanted.collect::<Vec<_>>()),
            None => Granted { count: wanted.count(), throttled: None },
        }
    }

    async fn fetch(&mut self, transactions: usize) -> Result<(), JournalError> {
        let batching = Arc::clone(&self.routes.batching);
        let Some(page) = self.queue.next_page(transactions, &batching) else { return Ok(()) };
        let limit = u32::try_from(page.limit).unwrap_or(u32::MAX);
        let held = self.context.signals.holds.borrow().routes();
        let queued = self.context.journal.queued_except(self.lease.account, page.after, limit, &held).await?;
        let mut rulings = Vec::new();
        for request in self.queue.take(page, queued, &held) {
            let permits = &self.routes.permits;
            match permits.check(request.write.to, request.write.value, request.calldata()) {
                Ok(()) => self.queue.add_fetched([Fetched::new(request, &batching)]),
                Err(cause) => rulings.push(conclude::failed(&self.lease, request, cause)),
            }
        }
        self.rule(rulings).await;
        self.compare_with_foreign().await?;
        self.end_expired().await;
        self.pass_over_priced_out();
        Ok(())
    }

    /// Ends what is too old. Nothing was signed for any of it that could land: it has no nonce, and what the account may have
    /// written with another journal was compared before, and stops the signing.
    async fn end_expired(&mut self) {
        if !self.may_sign() {
            return;
        }
        let old = self.queue.take_expired(Timestamp::now(), &self.routes.batching);
        let rulings = old.into_iter().map(|(request, cause)| conclude::failed(&self.lease, request, cause)).collect();
        self.rule(rulings).await;
    }

    /// Invariants 1 and 4: nonces are taken in the commit that stores the signed bytes, and only then does the broadcaster
    /// get them. Crash before the commit: nothing has happened. Crash after it: the next term sends the same bytes.
    ///
    /// The commit stores what the limits grant, which is all unless another lane was faster. The rest stays ready: its bytes
    /// are dropped here, so no node ever gets them, and their nonces were not taken.
    ///
    /// With an outage, what is signed here does not show that a pause is over.
    async fn sign_ready(&mut self, usage: Option<&Usage>, has_outage: bool) -> Result<(), JournalError> {
        let Some(first) = self.next_nonce.filter(|_| !self.queue.ready().is_empty()) else { return Ok(()) };
        if self.has_written_among_ready().await? {
            return self.compare_again().await;
        }
        self.end_expired().await;
        let Some(fee) = self.quote() else { return Ok(()) };
        self.pass_over_ready();
        self.refuse_too_dear(fee).await;
        let affordable = self.affordable(fee, self.flight.room().min(ROUND)).await;
        let ready = self.queue.ready().iter().take(affordable);
        let Granted { count, throttled } = self.granted(usage, ready.map(|payload| payload.share(fee)));
        if let Some(throttled) = throttled {
            self.gate.throttle(throttled);
        }
        if count == 0 {
            return Ok(());
        }
        let Some(market) = self.view.market() else { return Ok(()) };
        let offers = |payload: &Payload| self.learnt.within(self.fee_of(payload, fee), payload.gas, &market);
        let numbered = self.queue.ready().iter().take(count).zip(first.0..);
        let unsigned = numbered.map(|(payload, nonce)| Traced {
            item: self.unsigned(payload, Nonce(nonce), offers(payload)),
            span: self.processing_one(payload.requests.iter()),
        });
        let unsigned: Vec<_> = unsigned.collect();
        let fees: Vec<_> = unsigned.iter().map(|unsigned| unsigned.item.fee).collect();
        let Some(raw) = self.sign_all(unsigned).await else { return Ok(()) };
        if !has_outage {
            self.gate.resume_after_round(self.lapses.hold_pause());
        }
        let mut transactions = numbered_transactions(self.queue.take_ready(count), raw, first, &fees);
        let stored = transactions.iter().map(to_store).collect();
        let granted = self.context.journal.record_transactions(&self.lease, stored, self.tuning().limits).await?;
        let is_cut = granted.count < transactions.len();
        let held_back = transactions.split_off(granted.count.min(transactions.len()));
        self.queue.put_back(held_back.into_iter().map(|transaction| transaction.payload).collect());
        match granted.throttled {
            Some(throttled) => self.gate.throttle(throttled),
            // Another lane has found the journal behind, or an operator holds some of it.
            None if is_cut => self.read_what_stops().await?,
            None => {}
        }
        self.next_nonce = Some(first.plus(transactions.len() as u64));
        self.begin_transactions(transactions);
        Ok(())
    }

    /// Sends new transactions. The journal has them.
    fn begin_transactions(&mut self, transactions: Vec<InFlight>) {
        let meter = &self.context.signals.meter;
        meter.signed.add(Signed::First, transactions.len());
        for transaction in transactions {
            let requests = &transaction.payload.requests;
            debug!(request.id = %requests.first.id, request.others = requests.others.len(), tx.nonce = %transaction.nonce, tx.hash = %transaction.newest().raw.hash, "signed");
            for request in requests.iter() {
                meter.until_broadcast.record(request.received_at.age());
            }
            self.flight.insert(transaction);
        }
        self.send_due();
    }

    /// Fails what may not cost as much as it would now. It comes back later.
    async fn refuse_too_dear(&mut self, fee: Fee) {
        let permits = &self.routes.permits;
        if !permits.limits_fees() {
            return;
        }
        let mut rulings = Vec::new();
        for payload in self.queue.take_ready(usize::MAX) {
            match permits.check_fee(payload.gas, self.fee_of(&payload, fee), payload.l1_fee) {
                Ok(()) => self.queue.add_ready(payload),
                Err(cause) => {
                    let requests = payload.requests.into_iter();
                    rulings.extend(requests.map(|request| conclude::failed(&self.lease, request, cause.clone())));
                }
            }
        }
        self.rule(rulings).await;
    }

    /// Fails what has no transaction yet, with `[outage] policy = "retry"`. It comes back later.
    async fn fail_waiting(&mut self) {
        let Some(pause) = self.gate.paused() else { return };
        let (reason, detail) = (pause.reason, pause.detail.clone());
        let waiting = self.queue.take_all().into_iter();
        let rulings = waiting.map(|request| conclude::unavailable(&self.lease, request, reason, &detail)).collect();
        self.rule(rulings).await;
    }

    /// Sees to cancellations that stand in the journal, whichever instance wrote them. What waits for a nonce ends at once;
    /// the nonce of what is signed is cancelled by [`Self::resend_and_replace`]. Crash before settle has stored the end: the
    /// cancellation still stands there.
    pub(super) async fn apply_cancellations(&mut self) -> Result<(), JournalError> {
        // A journal behind the chain may hold as accepted what is written.
        let serves = self.context.signals.serves();
        let cancellations = self.context.journal.cancellations(self.lease.account).await?;
        self.queue.retain_cancelled(cancellations.iter().map(|cancellation| &cancellation.request));
        let Some(written) = self.cancelled_and_written(&cancellations).await? else { return Ok(()) };
        let mut rulings = Vec::new();
        for Cancellation { request, state, detail } in cancellations {
            if let Some(transaction) = self.flight.of_request(request.seq) {
                // A shared transaction is not cancelled for one of its requests. Where it fails, the request is.
                if transaction.wanted_cause().is_none() && !transaction.payload.requests.is_batch() {
                    warn!(request.id = %request.id, tx.nonce = %transaction.nonce, cause = detail, "an operator cancels this write; its nonce is cancelled unless the write lands first");
                    transaction.cancel_cause = Some(Cause::new(Reason::Cancelled, detail));
                }
            } else if serves
                && state == RequestState::Accepted
                // Settle may have yet to store how it ended.
                && !self.queue.is_ruled(&request)
                && self.queue.cancel(request.seq, &self.routes.batching)
            {
                info!(request.id = %request.id, cause = detail, "cancelled before it had a nonce");
                let verdict = match written.iter().find(|(id, _)| *id == request.id) {
                    Some((_, cause)) => LaneVerdict::Failed(cause.clone()),
                    None => LaneVerdict::Cancelled(Cause::new(Reason::Cancelled, detail)),
                };
                rulings.push(conclude::ended(&self.lease, request, verdict));
            }
            // A request that is being written and not in flight has ended; settle has the ruling already.
        }
        self.rule(rulings).await;
        Ok(())
    }

    /// Returns the price of new transactions. Above the cap the lane pauses until it has come down.
    fn quote(&mut self) -> Option<Fee> {
        match self.tuning().fees.quote(&self.view.market()?) {
            Ok(fee) => Some(fee),
            Err(above) => {
                self.gate.pause(PauseReason::FeeAboveCap, above.to_string());
                None
            }
        }
    }

    pub(super) fn unsigned(&self, payload: &Payload, nonce: Nonce, fee: Fee) -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: self.context.settings.rules.chain_id,
            nonce,
            to: Some(payload.to),
            value: payload.value,
            gas: payload.gas,
            data: payload.calldata().clone(),
            fee,
        }
    }

    /// Hands rulings to settle.
    pub(super) async fn rule(&mut self, rulings: Vec<Ruling>) {
        for ruling in rulings.iter().filter(|ruling| ruling.transaction.is_none()) {
            self.queue.record_ruled(&ruling.requests.first);
        }
        if !rulings.is_empty() {
            self.context.to_settle(FromLane::Rulings(rulings)).await;
        }
    }

    pub(super) fn send(&mut self, nonce: Nonce) {
        let span = self.flight.get(nonce).and_then(|transaction| self.span_of(transaction));
        self.flight.send(nonce, span);
    }
}

fn numbered_transactions(
    payloads: Vec<Payload>,
    raw: Vec<RawTransaction>,
    first: Nonce,
    fees: &[Fee],
) -> Vec<InFlight> {
    let signed_at = Timestamp::now();
    let with_nonces = payloads.into_iter().zip(raw).zip(fees).zip(first.0..);
    let transaction = |(((payload, raw), fee), nonce): (((Payload, RawTransaction), &Fee), u64)| {
        let signed = SignedTransaction { purpose: Purpose::Write, raw, fee: *fee, signed_at, cause: None };
        InFlight::new(payload, Nonce(nonce), vec![signed])
    };
    with_nonces.map(transaction).collect()
}

/// Returns a new transaction as the journal takes it.
fn to_store(transaction: &InFlight) -> NewTransaction {
    let Payload { requests, to, value, batch_data, gas, l1_fee } = &transaction.payload;
    NewTransaction {
        requests: requests.map_ref(|request| request.seq),
        nonce: transaction.nonce,
        to: *to,
        value: *value,
        data: batch_data.clone(),
        gas: *gas,
        l1_fee: *l1_fee,
        signed: transaction.newest().clone(),
    }
}
