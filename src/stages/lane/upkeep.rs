//! Upkeep of what is not in a block: the nodes' answers, sending again, replacing, cancelling.

use tokio::time::Instant;
use tracing::info;

use crate::chain::ChainError;
use crate::chain::follow::broadcaster::Answered;
use crate::journal::JournalError;
use crate::model::{Fee, Nonce, PauseReason, Purpose, SignedTransaction, Timestamp, UnsignedTransaction, Wei};
use crate::observe::metrics::Signed;
use crate::observe::traces::Traced;
use crate::policy::classify::SendMeaning;
use crate::policy::fee::{Market, is_underpriced};
use crate::policy::gas;
use crate::stages::lane::RESEND_UNKNOWN;
use crate::stages::lane::flight::Heard;
use crate::stages::lane::gate::pause_reason;
use crate::stages::lane::in_flight::{InFlight, PoolStatus};
use crate::stages::lane::lapses::Part;
use crate::stages::lane::term::Term;

/// A signed transaction must have been passed over by this many blocks before it is replaced for its age.
const BLOCKS_BEFORE_REPLACING: u64 = 2;

/// What is to be done about a transaction that is in no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    Wait,
    Send,
    Replace(Purpose),
}

impl Term<'_> {
    /// Invariant 2: whatever the answer, the nonce and its bytes stay. An answer only says when to send them again, that
    /// they should offer more, or that the lane should pause.
    pub(super) fn handle_answers(&mut self, Answered { answers, was_alone }: Answered) {
        let errors = &self.context.settings.errors;
        // What waits for earlier nonces, or for a chain that stands still, may well be dropped.
        let stands_still = self.gate.is_head_stale();
        let next = self.flight.not_included().next().filter(|_| !stands_still).map(|next| next.nonce);
        for answer in answers {
            self.context.signals.meter.answers.count(self.label_of(&answer.result));
            self.gaps.record_answer(&answer, errors);
            let nonce = answer.nonce;
            match self.flight.record_answer(answer, next, self.view.market(), errors) {
                // Whether that is about the account or about this one shows the balance, at the next poll.
                Some(Heard::Meaning(SendMeaning::InsufficientFunds, text)) => {
                    self.lapses.end(Part::Sends);
                    self.unpaid.insert(nonce, text);
                }
                Some(Heard::Failure(error)) => {
                    self.lapses.begin(Part::Sends, &error);
                    self.gate.pause(error.pause_reason(), error.to_string());
                }
                Some(Heard::Meaning(meaning, text)) => {
                    self.lapses.end(Part::Sends);
                    self.apply_meaning(meaning, text, was_alone);
                }
                None => {}
            }
        }
    }

    fn apply_meaning(&mut self, meaning: SendMeaning, text: String, was_alone: bool) {
        if meaning == SendMeaning::NonceTooHigh && !was_alone {
            // It may have overtaken those before it.
            if self.flight.broadcaster().keep_order() {
                info!(
                    answer = text,
                    "the node keeps no transaction that comes before its turn; they are sent one batch at a time"
                );
            }
        } else if matches!(meaning, SendMeaning::NonceTooHigh | SendMeaning::PoolFull) {
            self.shrink_window(&text);
        }
        if let Some(reason) = pause_reason(meaning) {
            self.gate.pause(reason, text);
        } else if meaning == SendMeaning::AlreadyKnown && !self.lapses.hold_pause() {
            self.gate.resume_after_taken();
        }
    }

    fn label_of(&self, result: &Result<(), ChainError>) -> Option<SendMeaning> {
        match result {
            Ok(()) => Some(SendMeaning::AlreadyKnown),
            Err(ChainError::Node { message, .. }) => Some(self.context.settings.errors.meaning_of(message)),
            Err(ChainError::RateLimited { .. }) => Some(SendMeaning::RateLimited),
            Err(_) => None,
        }
    }

    /// Sends fewer at once. Queue order is kept: what does not fit is sent again when those before it have got into blocks.
    fn shrink_window(&mut self, text: &str) {
        let Some(head) = self.view.height() else { return };
        if self.flight.shrink_window(head) {
            let window = self.flight.window().size();
            info!(
                window,
                answer = text,
                "the node takes fewer transactions than chain.in_flight allows; fewer are sent for now"
            );
        }
    }

    /// Sends again, replaces or cancels what is not in a block, lowest nonce first.
    pub(super) async fn resend_and_replace(&mut self) -> Result<(), JournalError> {
        let Some(market) = self.view.market() else { return Ok(()) };
        let (mut replaced, mut resent) = (Vec::new(), Vec::new());
        for (place, transaction) in self.flight.not_included().enumerate() {
            match self.care_for(place, transaction, &market) {
                Care::Wait => {}
                Care::Send => resent.push(transaction.nonce),
                Care::Replace(purpose) => replaced.push((transaction.nonce, purpose)),
            }
        }
        for nonce in resent {
            self.send(nonce);
        }
        self.replace(replaced, &market).await
    }

    fn care_for(&self, place: usize, transaction: &InFlight, market: &Market) -> Care {
        let Some(head) = self.view.height() else { return Care::Wait };
        if transaction.pool == PoolStatus::NonceUsed {
            return Care::Wait;
        }
        let (now, tuning, newest) = (Instant::now(), self.tuning(), transaction.newest());
        // Without blocks no other transaction would do better, and what nodes refuse they may refuse for being stuck.
        let may_sign = !self.gate.is_head_stale();
        let is_refused =
            transaction.refused_since().is_some_and(|since| now.duration_since(since) >= tuning.refused_after);
        if may_sign && newest.purpose == Purpose::Write && (is_refused || transaction.cancel_reason.is_some()) {
            return Care::Replace(Purpose::Cancel);
        }
        let blocks = transaction.waits_since.map_or(0, |since| head.0.saturating_sub(since.0));
        let was_passed_over = transaction.waits_for_a_block()
            && transaction.signed_since.elapsed() >= tuning.replace_after
            && blocks >= BLOCKS_BEFORE_REPLACING;
        let wants_more = transaction.pool == PoolStatus::Underpriced
            || is_underpriced(newest.fee, market)
            || (place == 0 && was_passed_over);
        if may_sign
            && wants_more
            && !transaction.is_being_sent()
            && tuning.fees.replacement(newest.fee, market).is_some()
        {
            return Care::Replace(newest.purpose);
        }
        let is_in_window = place < self.flight.window().size();
        let is_due = is_in_window && transaction.is_due(now, RESEND_UNKNOWN, tuning.resend_after);
        if is_due { Care::Send } else { Care::Wait }
    }

    /// Invariant 5: a replacement is journalled before it is broadcast. Crash in between: the next term sends it.
    async fn replace(&mut self, nonces: Vec<(Nonce, Purpose)>, market: &Market) -> Result<(), JournalError> {
        let replacements: Vec<_> =
            nonces.iter().filter_map(|(nonce, purpose)| self.replacement(*nonce, *purpose, market)).collect();
        if replacements.is_empty() {
            return Ok(());
        }
        let offered: Vec<_> =
            replacements.iter().map(|(purpose, unsigned)| (unsigned.nonce, *purpose, unsigned.fee)).collect();
        let unsigned = replacements.into_iter().map(|(_, unsigned)| Traced {
            span: self.flight.get(unsigned.nonce).and_then(|live| self.span_of(live)),
            item: unsigned,
        });
        let Some(raw) = self.sign_all(unsigned.collect()).await else { return Ok(()) };
        let signed_at = Timestamp::now();
        let signed = |((nonce, purpose, fee), raw)| (nonce, SignedTransaction { purpose, raw, fee, signed_at });
        let signed: Vec<_> = offered.into_iter().zip(raw).map(signed).collect();
        self.context.journal.record_replacements(&self.lease, signed.clone()).await?;
        for (nonce, signed) in signed {
            self.context.signals.meter.signed.count(match signed.purpose {
                Purpose::Write => Signed::Replacement,
                Purpose::Cancel => Signed::Cancel,
            });
            info!(tx.nonce = %nonce, tx.hash = %signed.raw.hash, tx.kind = signed.purpose.as_str(), fee.max = %signed.fee.ceiling(), "another attempt at the nonce");
            self.flight.replace(nonce, signed);
            self.send(nonce);
        }
        Ok(())
    }

    /// Returns the replacement of a live nonce, where the cap leaves room for one.
    fn replacement(&self, nonce: Nonce, purpose: Purpose, market: &Market) -> Option<(Purpose, UnsignedTransaction)> {
        let transaction = self.flight.get(nonce)?;
        let previous = transaction.newest().fee;
        let raised = self.tuning().fees.replacement(previous, market);
        let unsigned = match purpose {
            Purpose::Write => {
                // A day's fees were counted when it was begun.
                let permits = &self.context.settings.permits;
                let fee = raised.filter(|fee| permits.may_offer(transaction.payload.gas, *fee))?;
                self.unsigned(&transaction.payload, nonce, fee)
            }
            // No pool has the refused write, so a cancellation may go out at its price where none higher is allowed.
            Purpose::Cancel => self.self_transfer(nonce, raised.unwrap_or(previous)),
        };
        Some((purpose, unsigned))
    }

    /// Returns a transaction that takes the nonce and does nothing else.
    pub(super) fn self_transfer(&self, nonce: Nonce, fee: Fee) -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: self.context.settings.chain_id,
            nonce,
            to: Some(self.account()),
            value: Wei(0),
            gas: gas::TRANSFER,
            data: bytes::Bytes::new(),
            fee,
        }
    }

    /// Pauses the lane while transactions wait for a block and none comes: nothing that is signed can help then, and what
    /// nodes say about the account may be old. It resumes with the next block.
    pub(super) fn watch_head(&mut self) {
        let (Some(limit), Some(lowest)) = (self.tuning().max_head_age, self.flight.not_included().next()) else {
            return;
        };
        let Some(age) = self.view.stale_for(lowest.signed_since, limit) else { return };
        if self.gate.paused().is_none() || self.gate.is_head_stale() {
            let head = self.view.height().map_or(0, |head| head.0);
            let detail = format!(
                "no block for {} s: {head} is still the newest, and transactions wait for the next; look whether the node is stuck",
                age.as_secs()
            );
            self.gate.pause(PauseReason::HeadStale, detail);
        }
    }
}
