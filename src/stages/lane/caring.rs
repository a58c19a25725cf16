//! Care for what is not in a block: heed what nodes answer, send again, replace, cancel.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::chain::ChainError;
use crate::chain::follow::broadcaster::{Answer, Answered};
use crate::journal::{JournalError, Lease};
use crate::model::{Nonce, PauseReason, Purpose, SignedTransaction, Timestamp};
use crate::observe::metrics::Signed;
use crate::policy::classify::SendMeaning;
use crate::policy::fee::{Market, is_underpriced};
use crate::stages::lane::Lane;
use crate::stages::lane::pausing::pause_reason;

/// How soon bytes that no node has confirmed to have are sent again.
const RESEND_UNKNOWN: Duration = Duration::from_secs(2);
/// An attempt must have been passed over by this many blocks before it is replaced for its age.
const BLOCKS_BEFORE_REPLACING: u64 = 2;

impl Lane {
    /// Invariant 2: whatever the answer, the nonce and its bytes stay. An answer only says when to send them again, that
    /// they should offer more, or that the lane should pause.
    pub(super) fn heed(&mut self, Answered { answers, was_alone }: Answered) {
        let now = Instant::now();
        // What waits for earlier nonces, or for a chain that stands still, may well be dropped.
        let next = self.window.not_included().next().filter(|_| !self.is_head_stale()).map(|next| next.nonce);
        for Answer { nonce, hash, result } in answers {
            self.signals.meter.answers.count(self.meaning_of(&result));
            self.mender.heed(nonce, hash, &result, &self.settings.errors);
            let Some(transaction) = self.window.get_mut(nonce) else { continue };
            if transaction.newest().raw.hash != hash {
                continue;
            }
            transaction.is_being_sent = false;
            transaction.sent_at = Some(now);
            let (meaning, text) = match result {
                Ok(()) => {
                    let fee = transaction.newest().fee;
                    let offers_enough = self.market.is_some_and(|market| !is_underpriced(fee, &market));
                    if next == Some(nonce) && offers_enough {
                        transaction.note_drop(now);
                    }
                    (SendMeaning::AlreadyKnown, String::new())
                }
                Err(ChainError::Node { message, .. }) => (self.settings.errors.meaning_of(&message), message),
                Err(error) => {
                    self.pause(error.pause_reason(), error.to_string());
                    continue;
                }
            };
            transaction.note_answer(meaning, &text, now);
            if meaning == SendMeaning::NonceTooHigh && !was_alone {
                // It may have overtaken those before it.
                if self.broadcaster.keep_order() {
                    info!(
                        answer = text,
                        "the node keeps no transaction that comes before its turn; they are sent one batch at a time"
                    );
                }
            } else if matches!(meaning, SendMeaning::NonceTooHigh | SendMeaning::PoolFull) {
                self.shrink(&text);
            }
            if let Some(reason) = pause_reason(meaning) {
                self.pause(reason, text);
            } else if meaning == SendMeaning::AlreadyKnown {
                self.resume_if(|reason| {
                    !matches!(
                        reason,
                        PauseReason::FeeAboveCap | PauseReason::SignerUnavailable | PauseReason::HeadStale
                    )
                });
            }
        }
    }

    fn meaning_of(&self, result: &Result<(), ChainError>) -> Option<SendMeaning> {
        match result {
            Ok(()) => Some(SendMeaning::AlreadyKnown),
            Err(ChainError::Node { message, .. }) => Some(self.settings.errors.meaning_of(message)),
            Err(ChainError::RateLimited { .. }) => Some(SendMeaning::RateLimited),
            Err(_) => None,
        }
    }

    /// Queue order is kept: what does not fit is sent again when those before it have got into blocks.
    fn shrink(&mut self, text: &str) {
        let Some(head) = self.head.as_ref().map(|head| head.number) else { return };
        let was_full = self.send_window.is_full();
        if self.send_window.refused(self.window.not_included().count(), head) && was_full {
            info!(
                window = self.send_window.size(),
                answer = text,
                "the node takes fewer transactions than chain.in_flight allows; fewer are sent for now"
            );
        }
    }

    /// Sends again, replaces or cancels what is not in a block, lowest nonce first.
    pub(super) async fn care(&mut self, lease: &Lease) -> Result<(), JournalError> {
        let (Some(market), Some(head)) = (self.market, self.head.as_ref().map(|head| head.number)) else {
            return Ok(());
        };
        let now = Instant::now();
        // Without blocks no other attempt would do better, and what nodes refuse they may refuse for being stuck.
        let may_sign = !self.is_head_stale();
        let mut signed = Vec::new();
        let mut resend = Vec::new();
        for (place, transaction) in self.window.not_included().enumerate() {
            let newest = transaction.newest();
            let is_refused = transaction
                .refused
                .as_ref()
                .is_some_and(|(since, _)| now.duration_since(*since) >= self.settings.tuning().refused_after);
            let is_given_up = may_sign && (is_refused || transaction.cancel_wish.is_some());
            if transaction.is_taken {
                continue;
            }
            // A chain that stands still would not take a higher fee either.
            let blocks = transaction.waits_since.map_or(0, |since| head.0.saturating_sub(since.0));
            let waited = (transaction.is_known_to_node || transaction.lacks_room)
                && transaction.signed_since.elapsed() >= self.settings.tuning().replace_after
                && blocks >= BLOCKS_BEFORE_REPLACING;
            let wants_more =
                may_sign && (transaction.wants_more || is_underpriced(newest.fee, &market) || (place == 0 && waited));
            if is_given_up && newest.purpose == Purpose::Write {
                signed.push((transaction.nonce, Purpose::Cancel));
            } else if wants_more
                && !transaction.is_being_sent
                && self.settings.tuning().fees.replacement(newest.fee, &market).is_some()
            {
                signed.push((transaction.nonce, newest.purpose));
            } else if place < self.send_window.size()
                && transaction.is_due(now, RESEND_UNKNOWN, self.settings.tuning().resend_after)
            {
                resend.push(transaction.nonce);
            }
        }
        for nonce in resend {
            self.send(nonce);
        }
        self.replace(lease, signed, &market).await
    }

    /// Invariant 5: a replacement is journalled before it is broadcast. Crash in between: recovery sends it.
    pub(super) async fn replace(
        &mut self,
        lease: &Lease,
        nonces: Vec<(Nonce, Purpose)>,
        market: &Market,
    ) -> Result<(), JournalError> {
        let replacements: Vec<_> =
            nonces.iter().filter_map(|(nonce, kind)| self.replacement(*nonce, *kind, market)).collect();
        if replacements.is_empty() {
            return Ok(());
        }
        let kinds: Vec<_> = replacements.iter().map(|(kind, unsigned)| (unsigned.nonce, *kind, unsigned.fee)).collect();
        let unsigned = replacements.into_iter().map(|(_, unsigned)| unsigned).collect();
        let live = kinds.iter().map(|(nonce, ..)| self.window.get(*nonce));
        let spans: Vec<_> = live.map(|live| self.span_of(live?)).collect();
        let Some(signed) = self.signed(unsigned, &spans).await else { return Ok(()) };
        let signed_at = Timestamp::now();
        let signed: Vec<_> = kinds
            .into_iter()
            .zip(signed)
            .map(|((nonce, kind, fee), signed)| {
                (nonce, SignedTransaction { purpose: kind, raw: signed, fee, signed_at })
            })
            .collect();
        self.journal.record_replacements(lease, signed.clone()).await?;
        for (_, attempt) in &signed {
            self.signals.meter.signed.count(match attempt.purpose {
                Purpose::Write => Signed::Replacement,
                Purpose::Cancel => Signed::Cancel,
            });
        }
        for (nonce, attempt) in signed {
            info!(tx.nonce = %nonce, tx.hash = %attempt.raw.hash, tx.kind = attempt.purpose.as_str(), fee.max = %attempt.fee.ceiling(), "another attempt at the nonce");
            self.window.add_attempt(nonce, attempt);
            self.send(nonce);
        }
        Ok(())
    }
}
