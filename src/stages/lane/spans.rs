//! What a lane does for requests that somebody follows, as spans of their traces.

use crate::journal::QueuedRequest;
use crate::model::TransactionState;
use crate::model::event::FinalTransaction;
use crate::observe::traces::{Failure, SpanContext, Work};
use crate::stages::lane::in_flight::InFlight;
use crate::stages::lane::term::Term;

impl Term<'_> {
    fn processing(&self, request: &QueuedRequest) -> Option<SpanContext> {
        self.context.settings.tracer.processing(request.followed())
    }

    /// Of the first of these that is followed. There may be very many of them, and mostly nobody follows any.
    fn processing_one<'r>(&self, mut requests: impl Iterator<Item = &'r QueuedRequest>) -> Option<SpanContext> {
        if self.context.settings.tracer.is_on() { requests.find_map(|request| self.processing(request)) } else { None }
    }

    /// For each of some calls the span of one of the requests that it is for; none at all where nobody follows any.
    pub(super) fn spans<'r, R>(&self, calls: impl Iterator<Item = R>) -> Vec<Option<SpanContext>>
    where
        R: Iterator<Item = &'r QueuedRequest>,
    {
        if !self.context.settings.tracer.is_on() {
            return Vec::new();
        }
        calls.map(|requests| self.processing_one(requests)).collect()
    }

    /// The span that a transaction's broadcasts belong to. Of a batch it is that of one request; its others have spans of
    /// their own that name the same transaction.
    pub(super) fn span_of(&self, transaction: &InFlight) -> Option<SpanContext> {
        Some(self.processing_one(transaction.payload.requests.iter())?.of_nonce(transaction.nonce))
    }

    /// A nonce has ended.
    pub(super) fn trace_end(
        &self,
        transaction: &InFlight,
        state: TransactionState,
        included: Option<&FinalTransaction>,
    ) {
        for request in transaction.payload.requests.iter() {
            let Some(context) = self.processing(request) else { continue };
            let signed = transaction.signed.iter();
            let began = transaction.signed.first().map_or(request.accepted_at, |attempt| attempt.signed_at);
            let work = Work::Transaction {
                request: request.id.clone(),
                chain_id: self.context.settings.chain_id,
                nonce: transaction.nonce,
                attempts: signed.map(|attempt| (attempt.signed_at, attempt.raw.hash, attempt.purpose)).collect(),
                included: included.map(|included| (included.tx_hash, included.block_number)),
                state,
                others: transaction.payload.requests.others.len(),
            };
            let failure = (state != TransactionState::Succeeded).then(|| Failure {
                kind: state.as_str().to_owned(),
                detail: format!("nonce {} ended {}", transaction.nonce, state.as_str()),
            });
            self.context.settings.tracer.record(context.of_nonce(transaction.nonce).since(began, work, failure));
        }
    }
}
