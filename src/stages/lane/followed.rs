//! What a lane does for requests that somebody follows, as spans of their traces.

use crate::journal::QueuedRequest;
use crate::model::TransactionState;
use crate::model::event::FinalTransaction;
use crate::observe::traces::{Failure, SpanContext, Work};
use crate::stages::lane::Lane;
use crate::stages::lane::window::InFlight;

impl Lane {
    fn processing(&self, request: &QueuedRequest) -> Option<SpanContext> {
        self.settings.tracer.processing(request.followed())
    }

    /// Returns the span of the first of these requests whose trace is recorded. Mostly there is none, of many requests.
    pub(super) fn processing_one<'r>(
        &self,
        mut requests: impl Iterator<Item = &'r QueuedRequest>,
    ) -> Option<SpanContext> {
        if self.settings.tracer.is_on() { requests.find_map(|request| self.processing(request)) } else { None }
    }

    /// The span that a transaction's broadcasts belong to. Of a batch it is that of one request; its others have spans of
    /// their own that name the same transaction.
    pub(super) fn span_of(&self, transaction: &InFlight) -> Option<SpanContext> {
        Some(self.processing_one(transaction.requests())?.of_nonce(transaction.nonce))
    }

    /// A nonce has ended.
    pub(super) fn trace_end(
        &self,
        transaction: &InFlight,
        state: TransactionState,
        included: Option<&FinalTransaction>,
    ) {
        for request in transaction.requests() {
            let Some(context) = self.processing(request) else { continue };
            let signed = transaction.signed.iter();
            let began = transaction.signed.first().map_or(request.accepted_at, |attempt| attempt.signed_at);
            let work = Work::Transaction {
                request: request.id.clone(),
                chain_id: self.settings.chain_id,
                nonce: transaction.nonce,
                attempts: signed.map(|attempt| (attempt.signed_at, attempt.raw.hash, attempt.purpose)).collect(),
                included: included.map(|included| (included.tx_hash, included.block_number)),
                state,
                others: transaction.others.len(),
            };
            let failure = (state != TransactionState::Succeeded).then(|| Failure {
                kind: state.as_str().to_owned(),
                detail: format!("nonce {} ended {}", transaction.nonce, state.as_str()),
            });
            self.settings.tracer.record(context.of_nonce(transaction.nonce).since(began, work, failure));
        }
    }
}
