//! What changes the store on the way out: outcomes, confirms, refusals, events. Each either does all or changes nothing.

use std::collections::BTreeSet;

use crate::journal::{
    AccountId, ClosedTransaction, ConfirmedCopy, Decision, JournalError, Lease, OutboxRow, RefusedMessage,
    ReplyAddress, RequestSeq, Settlement, recorded_by,
};
use crate::model::request::Observation;
use crate::model::{Event, RequestId, RequestState, Timestamp, TransactionState};
use crate::simulation::store::{EventRecord, OutboxEntry, RequestRow, Store, fits, refused};

type Result<T, E = JournalError> = std::result::Result<T, E>;

impl Store {
    pub(crate) fn settle(&mut self, now: Timestamp, lease: &Lease, settlements: Vec<Settlement>) -> Result<()> {
        self.held(lease)?;
        let mut decided = BTreeSet::new();
        for settlement in &settlements {
            self.check_settlement(lease, settlement)?;
            if !settlement.decisions.iter().all(|(request, _)| decided.insert(*request)) {
                return Err(refused("settle a request", "it is decided on twice"));
            }
        }
        for Settlement { transaction, decisions } in settlements {
            let (request, decision) = &decisions.first;
            let is_queued = self.requests.get(request).is_some_and(|row| row.state == RequestState::Accepted);
            if matches!(decision, Decision::Cancel { .. }) && !is_queued {
                // It has failed by itself since the request to cancel it was seen: its ruling came before this one, and counts.
                continue;
            }
            if let Some(closed) = transaction {
                let row = self.transactions.get_mut(&(lease.account, closed.nonce)).expect("it was checked");
                (row.state, row.included, row.data) = (closed.state, closed.included, None);
            }
            for (request, decision) in decisions {
                self.apply(now, request, decision);
                self.forget_cancellation(request);
            }
        }
        Ok(())
    }

    fn check_settlement(&self, lease: &Lease, settlement: &Settlement) -> Result<()> {
        let Settlement { transaction, decisions } = settlement;
        let (request, decision) = &decisions.first;
        let row = self.requests.get(request).filter(|row| row.account == lease.account);
        let row = row.ok_or_else(|| refused("settle a request", "the lane has no such request"))?;
        if matches!(decision, Decision::Cancel { .. }) && row.state != RequestState::Accepted && !decisions.is_batch() {
            return Ok(());
        }
        match transaction {
            Some(closed) => {
                let requests: Vec<_> = decisions.iter().map(|(request, _)| *request).collect();
                self.check_closed(lease, &requests, closed)?;
            }
            None if !decisions.is_batch() => {}
            None => return Err(refused("settle requests", "they share no transaction")),
        }
        let closed = transaction.as_ref().map(|closed| closed.state);
        decisions.iter().try_for_each(|(request, decision)| self.check_decision(*request, decision, closed))
    }

    fn check_decision(&self, request: RequestSeq, decision: &Decision, closed: Option<TransactionState>) -> Result<()> {
        let row = self.requests.get(&request).ok_or_else(|| refused("settle a request", "there is no such request"))?;
        if row.state.next(observation(decision)).is_none() {
            return Err(refused("settle a request", format!("it is {}", row.state)));
        }
        if matches!(decision, Decision::Retry { .. } | Decision::Found { .. }) && self.is_held(row) {
            return Err(refused("try a request again", "it waits for others of its key"));
        }
        let is_final = matches!(decision, Decision::Final(_));
        let may_land = closed.is_none() && self.has_effect(row);
        if may_land || is_final != (closed == Some(TransactionState::Succeeded)) {
            return Err(refused("settle a request", "its transaction does not end as it does"));
        }
        Ok(())
    }

    fn check_closed(&self, lease: &Lease, requests: &[RequestSeq], closed: &ClosedTransaction) -> Result<()> {
        let row = self.transactions.get(&(lease.account, closed.nonce));
        let is_its =
            row.is_some_and(|row| row.requests.iter().eq(requests.iter()) && row.state == TransactionState::Live);
        if !is_its || closed.state == TransactionState::Live {
            let detail = format!("{} is not one of these requests that is live", closed.nonce);
            return Err(refused("close a nonce", detail));
        }
        closed.included.as_ref().map_or(Ok(()), |included| {
            fits("a height", included.block_number.0).and_then(|()| fits("gas", included.gas_used.0))
        })
    }

    fn apply(&mut self, now: Timestamp, request: RequestSeq, decision: Decision) {
        let turn = if matches!(decision, Decision::Requeue(_)) { self.take_turn() } else { 0 };
        let settled_at = self.not_before_a_passage(now);
        let row = self.requests.get_mut(&request).expect("it was checked");
        let state = row.state.next(observation(&decision)).expect("it was checked");
        let (cause, next) = match decision {
            Decision::Final(event) => {
                row.end(now, settled_at, state);
                let (account, id) = (row.account, row.id.clone());
                return self.add_event(account, id, event);
            }
            Decision::Found { event, written_by } => {
                row.end(now, settled_at, state);
                row.note(now, "recorded", recorded_by(written_by));
                let (account, id) = (row.account, row.id.clone());
                return self.add_event(account, id, event);
            }
            Decision::Requeue(why) => {
                (row.state, row.turn, row.changed_at) = (state, turn, now);
                row.is_alone |= why.isolates();
                return row.note(now, why.incident().as_str(), why.detail());
            }
            Decision::Retry { cause, next } => (cause, next),
            Decision::Dead { cause } | Decision::Cancel { cause } => (cause, row.generation),
        };
        (row.state, row.generation, row.changed_at) = (state, next, now);
        row.first_failed_at.get_or_insert(now);
        row.note(now, "failed", cause.to_string());
        row.failure = Some(cause);
    }

    /// Whatever the request's state is, its copy was at the broker, so the event about that is true.
    pub(crate) fn confirm(&mut self, now: Timestamp, copies: Vec<ConfirmedCopy>) -> Result<()> {
        if copies.iter().any(|copy| !self.requests.contains_key(&copy.request)) {
            return Err(refused("confirm a copy", "there is no such request"));
        }
        let settled_at = self.not_before_a_passage(now);
        for ConfirmedCopy { request, generation, kind, event } in copies {
            let row = self.requests.get_mut(&request).expect("it was checked");
            if row.state == kind.pending() && row.generation == generation {
                let state = row.state.next(Observation::Confirmed).expect("what is pending can be confirmed");
                row.end(now, settled_at, state);
            }
            let (account, id) = (row.account, row.id.clone());
            self.add_event(account, id, event);
        }
        Ok(())
    }

    pub(crate) fn record_refused(&mut self, now: Timestamp, messages: Vec<RefusedMessage>) -> Result<()> {
        if let Some(stray) = messages.iter().find(|message| !self.accounts.contains_key(&message.account)) {
            return Err(refused("note a refused message", format!("there is no account {}", stray.account)));
        }
        let settled_at = self.not_before_a_passage(now);
        for RefusedMessage { id, named, account, body_hash, generation, cause, event } in messages {
            if self.seqs.contains_key(&id) {
                return Err(refused("note a refused message", format!("{id} is another's")));
            }
            let mut row = RequestRow::new(id.clone(), account, generation, body_hash, now);
            row.end(now, settled_at, RequestState::Dead);
            row.first_failed_at = Some(now);
            row.failure = Some(cause);
            (row.is_refused, row.refused_id) = (true, named);
            self.add_request(row);
            self.add_event(account, id, event);
        }
        Ok(())
    }

    pub(crate) fn record_parked(&mut self, now: Timestamp, ids: &[RequestId]) {
        for id in ids {
            if let Some(row) = self.seqs.get(id).and_then(|seq| self.requests.get_mut(seq)) {
                row.note(now, "parked", "given back to the broker for a while");
            }
        }
    }

    pub(crate) fn events_sent(&mut self, ids: &[i64]) {
        for id in ids {
            if self.outbox.remove(id).is_some()
                && let Some(event) = self.record.events.get_mut(id)
            {
                event.is_published = true;
            }
        }
    }

    pub(crate) fn prune(&mut self, before: Timestamp, limit: u32) -> u64 {
        let is_over = |row: &RequestRow| {
            row.state.is_over()
                && row.state.is_settled()
                && row.settled_at.is_some_and(|settled_at| settled_at < before)
        };
        let has_others = |seq: &RequestSeq, row: &RequestRow| {
            let first = row.nonces.iter().filter_map(|place| self.transactions.get(place));
            let mut of_batch = first.filter(|row| row.requests.first == *seq).flat_map(|row| &row.requests.others);
            of_batch.any(|other| self.requests.contains_key(other))
        };
        let old = self.requests.iter().filter(|(seq, row)| is_over(row) && !has_others(seq, row));
        let old: Vec<RequestSeq> = old.map(|(seq, _)| *seq).take(limit as usize).collect();
        for (seq, row) in old.iter().filter_map(|seq| Some((*seq, self.requests.remove(seq)?))) {
            self.seqs.remove(&row.id);
            self.bumps.remove(&seq);
            self.record.forgotten.insert(row.id.clone(), row);
            self.transactions.retain(|_, transaction| transaction.requests.first != seq);
        }
        let entries = self.log.len();
        let mut left = limit;
        self.log.retain(|at| {
            let goes = *at < before && left > 0;
            left -= u32::from(goes);
            !goes
        });
        (old.len() + entries - self.log.len()) as u64
    }

    pub(super) fn add_event(&mut self, account: AccountId, subject: RequestId, event: Event) {
        let Event { id: event_id, kind, body, reply_to, correlation_id, .. } = event;
        let recorded = EventRecord { event_id: event_id.clone(), kind, subject, is_published: false };
        self.record.events.insert(self.last_event + 1, recorded);
        for reply_to in std::iter::once(None).chain(reply_to.map(Some)) {
            self.last_event += 1;
            let reply = ReplyAddress { reply_to, correlation_id: correlation_id.clone() };
            let (event_id, body) = (event_id.clone(), body.clone());
            let row = OutboxRow { id: self.last_event, event_id, kind: kind.as_str().to_owned(), body, reply };
            self.outbox.insert(self.last_event, OutboxEntry { account, row });
        }
    }
}

/// Returns the observation of the request that a decision follows from.
fn observation(decision: &Decision) -> Observation {
    match decision {
        Decision::Final(_) => Observation::Succeeded,
        Decision::Found { .. } => Observation::Found,
        Decision::Retry { .. } => Observation::FailedForNow,
        Decision::Dead { .. } | Decision::Cancel { .. } => Observation::FailedForGood,
        Decision::Requeue(_) => Observation::Displaced,
    }
}
