//! Operators' wishes: what waits for a nonce ends at once, what is signed has its nonce cancelled by `caring`.

use tracing::{info, warn};

use crate::journal::{Cancellation, JournalError, Lease};
use crate::model::{Cause, Reason, RequestState};
use crate::stages::lane::Lane;
use crate::stages::settle::inbox::{LaneVerdict, Ruling};

impl Lane {
    /// Sees to wishes that stand in the journal, whatever instance noted them. Crash before settle has stored the end: the
    /// wish still stands there.
    pub(super) async fn heed_operators(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let wishes = self.journal.cancellations(lease.account).await?;
        self.cancelled.retain(|request| wishes.iter().any(|wish| wish.request.seq == *request));
        let mut rulings = Vec::new();
        for Cancellation { request, state, detail } in wishes {
            if let Some(transaction) = self.window.of_request(request.seq) {
                // One that is shared is not cancelled for one of its requests. Where it fails, the wish is seen to.
                if transaction.cancel_wish.is_none() && transaction.others.is_empty() {
                    warn!(request.id = %request.id, tx.nonce = %transaction.nonce, cause = detail, "an operator wants this write no more; its nonce is cancelled unless it lands first");
                    transaction.cancel_wish = Some(detail);
                }
            } else if state == RequestState::Accepted && self.cancelled.insert(request.seq) {
                info!(request.id = %request.id, cause = detail, "cancelled before it had a nonce");
                // The journal gives out no request with a wish, so what is dropped here is not fetched again.
                self.fetched.retain(|fetched| fetched.request.seq != request.seq);
                self.unprepare(request.seq);
                let verdict = LaneVerdict::Cancelled(Cause::new(Reason::Cancelled, detail));
                let lease = lease.clone();
                rulings.push(Ruling { lease, request, others: Vec::new(), transaction: None, verdict });
            }
            // A request that is being written and not in the window has ended; settle has the ruling already.
        }
        self.rule(rulings).await;
        Ok(())
    }
}
