//! Spans of what a lane does for requests whose traces are recorded.

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

    /// Returns the span of the first of these requests whose trace is recorded. Mostly there is none, of many requests.
    pub(super) fn processing_one<'r>(
        &self,
        mut requests: impl Iterator<Item = &'r QueuedRequest>,
    ) -> Option<SpanContext> {
        if self.context.settings.tracer.is_on() { requests.find_map(|request| self.processing(request)) } else { None }
    }

    /// Returns the span that a transaction's broadcasts belong to. Of a batch it is that of one request; its others have spans of
    /// their own that name the same transaction.
    pub(super) fn span_of(&self, transaction: &InFlight) -> Option<SpanContext> {
        Some(self.processing_one(transaction.payload.requests.iter())?.of_nonce(transaction.nonce))
    }

    /// Records the spans of a nonce that has ended.
    pub(super) fn trace_end(
        &self,
        transaction: &InFlight,
        state: TransactionState,
        included: Option<&FinalTransaction>,
    ) {
        for request in transaction.payload.requests.iter() {
            let Some(context) = self.processing(request) else { continue };
            let signed = transaction.signed.iter();
            let began = transaction.signed.first().map_or(request.accepted_at, |signed| signed.signed_at);
            let work = Work::Transaction {
                request: request.id.clone(),
                chain_id: self.context.settings.rules.chain_id,
                nonce: transaction.nonce,
                attempts: signed.map(|signed| (signed.signed_at, signed.raw.hash, signed.purpose)).collect(),
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
