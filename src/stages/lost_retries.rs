//! Retries that the broker has lost: an operator purged a wait queue, say, or the broker lost it with its disk. Such a request
//! would wait for ever, and hold those behind it of its ordering key. Passages through the work queue show that the retry comes
//! no more. The journal marks the request then, which `status`, `doctor` and the metrics show. One that an operator cancels
//! ends here, without a dead letter: the journal keeps no message whose copy has its publisher confirm.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tracing::warn;

use crate::journal::{CancelledRetry, GivenUp, JournalError, LostRetries};
use crate::model::event::{Outcome, Subject};
use crate::model::{Cause, Event, Reason, Timestamp};
use crate::observe::metrics::{self, FailureEnd, SettleMeter};
use crate::observe::traces::{Followed, Tracer};
use crate::policy::passage::lost_if_confirmed_by;
use crate::stages::settle::Retries;

/// Requests that are marked or given up in one commit at most.
const AT_ONCE: u32 = 100;
/// Ends the reason of a request that is given up.
pub const NO_LETTER: &str = "the broker lost its message, so there is no dead letter";

pub struct LostRetriesWatch {
    pub journal: Arc<dyn LostRetries>,
    /// The `source` of its events.
    pub event_source: String,
    pub tracer: Tracer,
    /// Brings delays that are newer than the pace's.
    pub newer_retries: watch::Receiver<Option<Retries>>,
    /// Notified for new events.
    pub outbox: Arc<Notify>,
    /// Notified when requests have ended, one for each lane.
    pub ended: Vec<Arc<Notify>>,
    pub meter: SettleMeter,
}

impl LostRetriesWatch {
    /// Names what is lost, where all that was in the work queue up to `taken_in` has come out, and gives up what is cancelled.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn step(&self, taken_in: Timestamp, longest_wait: Duration, hold: Duration) -> Result<(), JournalError> {
        let newer = self.newer_retries.borrow().as_ref().and_then(|retries| retries.waits.iter().max().copied());
        let longest_wait = longest_wait.max(newer.unwrap_or_default());
        let confirmed_by = lost_if_confirmed_by(taken_in, longest_wait, hold);
        for lost in self.journal.name_lost_retries(confirmed_by, AT_ONCE).await? {
            warn!(
                request.id = lost.request,
                request.attempt = lost.attempt,
                waits.since = %lost.waits_since,
                "the request waits for a retry that the broker has lost; publish it again as that attempt, or cancel it"
            );
        }
        let cancelled = self.journal.cancelled_retries(AT_ONCE).await?;
        if !cancelled.is_empty() {
            self.give_up(cancelled).await?;
        }
        Ok(())
    }

    async fn give_up(&self, cancelled: Vec<CancelledRetry>) -> Result<(), JournalError> {
        let given_up: Vec<_> = cancelled.iter().map(|retry| self.end_of(retry)).collect();
        let ended = self.journal.give_up(given_up).await?;
        for retry in cancelled.iter().filter(|retry| ended.contains(&retry.request)) {
            self.meter.requests.count(metrics::Outcome::Dead);
            self.meter.failures.count((Reason::Cancelled.class(), FailureEnd::Dead));
            warn!(request.id = %retry.id, "the request is cancelled; {NO_LETTER}");
        }
        self.outbox.notify_one();
        self.ended.iter().for_each(|lane| lane.notify_one());
        Ok(())
    }

    fn end_of(&self, retry: &CancelledRetry) -> GivenUp {
        let CancelledRetry { request, id, generation, reply, trace, detail, tx_hashes } = retry;
        let cause = Cause::new(Reason::Cancelled, format!("{detail}; {NO_LETTER}"));
        let subject = Subject {
            source: &self.event_source,
            request: id,
            generation: *generation,
            batch: None,
            refused: None,
            reply_to: reply.reply_to.as_deref(),
            correlation_id: reply.correlation_id.as_deref(),
            trace: self.tracer.outgoing(Followed { request: id, generation: *generation, trace: trace.as_ref() }),
        };
        let event = Event::new(&subject, &Outcome::Dead { cause: &cause, tx_hashes }, Timestamp::now());
        GivenUp { request: *request, generation: *generation, cause, event }
    }
}
