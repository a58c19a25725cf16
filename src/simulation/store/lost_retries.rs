//! Requests whose retry the broker has lost.

use crate::journal::{CancelledRetry, GivenUp, LostRetry, RequestSeq};
use crate::model::request::Observation;
use crate::model::{RequestState, Timestamp, TxHash};
use crate::simulation::store::{RequestRow, Store};

impl Store {
    pub(crate) fn lost_retries(&self) -> Vec<LostRetry> {
        let mut lost: Vec<_> = self.requests.iter().filter(|(_, row)| row.is_lost).collect();
        lost.sort_by_key(|(seq, row)| (row.settled_at, **seq));
        lost.into_iter().map(|(_, row)| self.lost_retry(row)).collect()
    }

    fn lost_retry(&self, row: &RequestRow) -> LostRetry {
        LostRetry {
            request: row.id.to_string(),
            account: self.accounts[&row.account].address,
            attempt: row.generation.retry,
            waits_since: row.settled_at.unwrap_or(row.changed_at),
        }
    }

    /// Those that may be marked.
    pub(crate) fn unnamed(&self, confirmed_by: Timestamp) -> Vec<RequestSeq> {
        if self.serves_since().is_none_or(|since| since > confirmed_by) {
            return Vec::new();
        }
        let waits = |row: &RequestRow| {
            let is_old = row.settled_at.is_some_and(|settled_at| settled_at <= confirmed_by);
            row.state == RequestState::RetryWaiting && !row.is_lost && is_old
        };
        self.requests.iter().filter(|(_, row)| waits(row)).map(|(seq, _)| *seq).collect()
    }

    pub(crate) fn name_lost_retries(&mut self, now: Timestamp, by: Timestamp, limit: u32) -> Vec<LostRetry> {
        let mut unnamed = self.unnamed(by);
        unnamed.sort_by_key(|seq| (self.requests[seq].settled_at, *seq));
        unnamed.truncate(limit as usize);
        let mut named = Vec::new();
        for seq in unnamed {
            let lost = self.lost_retry(&self.requests[&seq]);
            let row = self.requests.get_mut(&seq).expect("it was found");
            row.is_lost = true;
            let (attempt, since) = (lost.attempt, lost.waits_since);
            let detail = format!(
                "the broker has had retry {attempt} since {since}, and what was in the queue after it has come out"
            );
            row.note(now, "retry_lost", detail);
            named.push(lost);
        }
        named
    }

    pub(crate) fn cancelled_retries(&self, limit: u32) -> Vec<CancelledRetry> {
        let cancelled = self.cancellations.iter().filter_map(|(seq, cancel)| {
            let row = self.requests.get(seq).filter(|row| row.is_lost)?;
            let signed = row.nonces.iter().filter_map(|place| self.transactions.get(place));
            let mut signed: Vec<_> = signed.flat_map(|transaction| &transaction.signed).collect();
            signed.sort_by_key(|stored| stored.place);
            let tx_hashes: Vec<TxHash> = signed.into_iter().map(|stored| stored.attempt.raw.hash).collect();
            Some(CancelledRetry {
                request: *seq,
                id: row.id.clone(),
                generation: row.generation,
                reply: row.reply.clone(),
                trace: row.trace.clone(),
                detail: cancel.detail.clone(),
                tx_hashes,
            })
        });
        cancelled.take(limit as usize).collect()
    }

    pub(crate) fn give_up(&mut self, now: Timestamp, given_up: Vec<GivenUp>) -> Vec<RequestSeq> {
        let settled_at = self.not_before_a_passage(now);
        let mut ended = Vec::new();
        for GivenUp { request, generation, cause, event } in given_up {
            let row = self.requests.get_mut(&request).filter(|row| row.is_lost && row.generation == generation);
            let Some((row, state)) = row.and_then(|row| row.state.next(Observation::GivenUp).map(|state| (row, state)))
            else {
                continue;
            };
            row.end(now, settled_at, state);
            row.is_given_up = true;
            row.note(now, "failed", cause.to_string());
            row.failure = Some(cause);
            let (account, id) = (row.account, row.id.clone());
            self.forget_cancellation(request);
            self.add_event(account, id, event);
            ended.push(request);
        }
        ended.sort_unstable();
        ended
    }
}
