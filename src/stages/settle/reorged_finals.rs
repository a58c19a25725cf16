//! Final writes that the chain has lost: incidents and events about them. Nothing is acked here: that was done when they were
//! final for the first time.

use tracing::{error, info, warn};

use crate::journal::{
    ClosedTransaction, EndedAgain, JournalError, Lease, Reorged, RequestSeq, StoredNonce, StoredRequest,
};
use crate::model::event::{AfterReorg, BatchPlace, Outcome, Subject};
use crate::model::{Event, Members, Purpose, Timestamp, TransactionState};
use crate::observe::traces::Followed;
use crate::stages::settle::decisions::SettleSettings;
use crate::stages::settle::inbox::SecondEnd;
use crate::stages::settle::stage::Settle;

impl Settle {
    pub(super) async fn record_reorged(&mut self, lease: &Lease, lost: Vec<StoredNonce>) -> Result<(), JournalError> {
        let reorged = lost.iter().filter_map(|stored| self.settings.reorged(stored)).collect();
        let stored = self.journal.record_reorged(lease, reorged).await;
        self.handle_stored(lease, stored)
    }

    pub(super) async fn record_ended_again(
        &mut self,
        lease: &Lease,
        ended: Vec<(StoredNonce, SecondEnd)>,
    ) -> Result<(), JournalError> {
        let ended = ended.iter().map(|(stored, end)| self.settings.ended_again(stored, end)).collect();
        let stored = self.journal.record_ended_again(lease, ended).await;
        self.handle_stored(lease, stored)
    }

    fn handle_stored(&self, lease: &Lease, stored: Result<(), JournalError>) -> Result<(), JournalError> {
        match stored {
            Ok(()) => self.outbox.notify_one(),
            Err(error) if error.is_lease_lost() => {
                warn!(account = %lease.account, "another instance owns the account: it compares the final blocks itself");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl SettleSettings {
    fn reorged(&self, stored: &StoredNonce) -> Option<Reorged> {
        let transaction = stored.included.as_ref()?;
        error!(request.id = %stored.requests.first.id, request.state = %stored.requests.first.state, request.others = stored.requests.others.len(), tx.nonce = %stored.nonce, tx.state = stored.state.as_str(), block.hash = %transaction.block_hash, "the chain has lost the block in which this was final");
        let was_written = stored.state == TransactionState::Succeeded;
        let outcome = Outcome::Reorged { transaction, now: AfterReorg::SentAgain };
        let detail = format!(
            "block {} with hash {} is no part of the chain any more; its transaction had {}",
            transaction.block_number,
            transaction.block_hash,
            stored.state.as_str()
        );
        let events = self.events_of(stored, was_written.then_some(&outcome));
        Some(Reorged { nonce: stored.nonce, detail, events })
    }

    fn ended_again(&self, stored: &StoredNonce, end: &SecondEnd) -> EndedAgain {
        let was_written = stored.state == TransactionState::Succeeded;
        let (state, included, detail, outcome) = match end {
            SecondEnd::Included(receipt) => {
                let tx = &receipt.transaction;
                let took_effect = receipt.succeeded && self.is_write(stored, receipt.transaction.tx_hash);
                let place = format!("block {} with hash {}", tx.block_number, tx.block_hash);
                let (state, detail, outcome) = match (was_written, took_effect) {
                    (true, true) => {
                        info!(request.id = %stored.requests.first.id, tx.hash = %tx.tx_hash, block.number = %tx.block_number, "request is final again");
                        (stored.state, format!("final again in {place}"), Some(Outcome::FinalAgain(tx)))
                    }
                    (true, false) => {
                        error!(request.id = %stored.requests.first.id, tx.hash = %tx.tx_hash, "a final write has reverted after a reorganisation, and its message is gone; send it again under a new id");
                        let outcome = Outcome::Reorged { transaction: tx, now: AfterReorg::Reverted };
                        (TransactionState::Reverted, format!("it reverted in {place}"), Some(outcome))
                    }
                    (false, true) => {
                        error!(request.id = %stored.requests.first.id, tx.hash = %tx.tx_hash, "a transaction that had failed has taken effect after a reorganisation; see whether its request was written again since");
                        (stored.state, format!("it took effect in {place}"), None)
                    }
                    (false, false) => (stored.state, format!("it ended as before in {place}"), None),
                };
                (state, Some(tx.clone()), detail, outcome)
            }
            SecondEnd::Taken(taker) if was_written => {
                error!(request.id = %stored.requests.first.id, foreign.tx.hash = %taker, "a final write has lost its nonce after a reorganisation, and its message is gone; send it again under a new id");
                let outcome =
                    stored.included.as_ref().map(|transaction| Outcome::Reorged { transaction, now: AfterReorg::Lost });
                (TransactionState::Displaced, None, format!("{taker} has its nonce: it can never land"), outcome)
            }
            SecondEnd::Taken(taker) => (stored.state, None, format!("{taker} has its nonce now"), None),
        };
        let transaction = ClosedTransaction { nonce: stored.nonce, state, included };
        EndedAgain { transaction, detail, events: self.events_of(stored, outcome.as_ref()) }
    }

    fn is_write(&self, stored: &StoredNonce, hash: crate::model::TxHash) -> bool {
        let mut signed = stored.signed.iter();
        signed.any(|attempt| attempt.raw.hash == hash && attempt.purpose == Purpose::Write)
    }

    /// Returns the transaction's requests, each with its event about this.
    fn events_of(&self, stored: &StoredNonce, outcome: Option<&Outcome<'_>>) -> Members<(RequestSeq, Option<Event>)> {
        let event = |request: &StoredRequest, index| {
            let StoredRequest { seq, id, generation, reply, trace, .. } = request;
            let followed = Followed { request: id, generation: *generation, trace: trace.as_ref() };
            let subject = self.subject(followed, &reply.reply_to, &reply.correlation_id);
            let subject = Subject { batch: BatchPlace::of(index, stored.requests.others.len()), ..subject };
            (*seq, outcome.map(|outcome| Event::new(&subject, outcome, Timestamp::now())))
        };
        let Members { first, others } = &stored.requests;
        let others = others.iter().zip(1..).map(|(other, index)| event(other, index)).collect();
        Members { first: event(first, 0), others }
    }
}
