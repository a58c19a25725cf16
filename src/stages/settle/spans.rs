//! Spans of what settle decides and publishes.

use crate::broker::Outgoing;
use crate::journal::QueuedRequest;
use crate::model::{Cause, Timestamp, TraceContext};
use crate::observe::metrics::Outcome;
use crate::observe::traces::{Failure, Followed, SpanContext, Work};
use crate::stages::settle::decisions::{SettleSettings, failed_generation};
use crate::stages::settle::published::Published;
use crate::stages::settle::stage::Settle;

impl Settle {
    pub(super) fn trace_end(&self, request: &QueuedRequest, outcome: Outcome, cause: Option<&Cause>) {
        self.trace_process(request.followed(), (request.accepted_at, request.body.len()), outcome, cause);
    }

    /// Records the end of a copy, request or not, which was here since `began` and has this many bytes.
    pub(super) fn trace_process(
        &self,
        followed: Followed<'_>,
        (began, bytes): (Timestamp, usize),
        outcome: Outcome,
        cause: Option<&Cause>,
    ) {
        let tracer = &self.settings.tracer;
        let Some(context) = tracer.processing(followed) else { return };
        let Followed { request, generation, .. } = followed;
        let work = Work::Process { request: request.clone(), generation, bytes, outcome };
        let failure = cause.map(|cause| Failure { kind: cause.routing_key(), detail: cause.detail.clone() });
        tracer.record(context.since(began, work, failure));
    }
}

impl SettleSettings {
    /// Returns the span of a publish, within the span of its request.
    pub(super) fn span_of(&self, published: &Published, outgoing: &Outgoing) -> Option<SpanContext> {
        if !self.tracer.is_on() {
            return None;
        }
        let trace = TraceContext::read_from(&outgoing.message.headers);
        let (request, generation) = match published {
            Published::Copy(copy) => (&copy.id, failed_generation(copy)),
            Published::Refused(refused) => (&refused.id, refused.generation),
            Published::Park(id, generation) => (id, *generation),
            // Not a request yet.
            Published::Postponed(_) => return None,
        };
        let context = self.tracer.processing(Followed { request, generation, trace: trace.as_ref() })?;
        Some(context.child())
    }
}
