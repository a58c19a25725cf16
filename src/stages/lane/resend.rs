//! Upkeep of what is not in a block: the nodes' answers, sending again, replacing, cancelling.

use tokio::time::Instant;
use tracing::{debug, error, info};

use crate::chain::follow::broadcaster::{Answer, Answered};
use crate::chain::{Call, ChainError};
use crate::journal::JournalError;
use crate::model::{
    BlockNumber, Fee, Gas, Nonce, PauseReason, Purpose, Reason, SignedTransaction, Timestamp, UnsignedTransaction, Wei,
};
use crate::observe::metrics::Signed;
use crate::observe::traces::Traced;
use crate::policy::classify::SendMeaning;
use crate::policy::gas::FLOOR_PROBE;
use crate::policy::refusals::Lack;
use crate::policy::routes::FixedGas;
use crate::stages::lane::canary::Canary;
use crate::stages::lane::care::{Care, Replacement, Stuck};
use crate::stages::lane::flight::Heard;
use crate::stages::lane::gate::pause_for;
use crate::stages::lane::lapses::Part;
use crate::stages::lane::pool_status::{Holder, PoolStatus};
use crate::stages::lane::refusal::RefusalKind;
use crate::stages::lane::term::Term;

/// The time for which it counts what a node showed of a foreign transaction at a nonce.
const HOLDER_LASTS: std::time::Duration = std::time::Duration::from_secs(15);

impl Term<'_> {
    /// Invariant 2: whatever the answer, the nonce and its bytes stay. An answer only says when to send them again, that
    /// they should offer more, or that the lane should pause.
    pub(super) fn handle_answers(&mut self, Answered { answers }: Answered) {
        let errors = &self.context.settings.rules.errors;
        // What waits for earlier nonces, or for a chain that stands still, may well be dropped.
        let stands_still = self.gate.is_head_stale();
        let (mut heard, mut taken, mut no_room) = (Vec::new(), Vec::new(), None);
        let is_batch = answers.len() > 1;
        let has_failed = |answer: &Answer| answer.result.as_ref().is_err_and(ChainError::is_of_endpoint);
        let failed_as_a_whole = is_batch && answers.iter().all(has_failed);
        if failed_as_a_whole {
            self.flight.order_mut().take_apart();
        }
        let next = self.flight.not_included().next().filter(|_| !stands_still).map(|next| next.nonce);
        for answer in answers {
            self.context.signals.meter.answers.count(self.label_of(&answer.result));
            if self.gaps.record_answer(&answer, errors) {
                self.learnt.doubt_transfer();
            }
            let nonce = answer.nonce;
            let is_new = answer.result.is_ok();
            match self.flight.record_answer(answer, next, self.view.market(), errors) {
                // Whether that is about the account or about this one shows the balance, at the next poll.
                Some(Heard::Meaning(SendMeaning::InsufficientFunds, text)) => {
                    self.lapses.end(Part::Sends);
                    self.unpaid.insert(nonce, text);
                }
                Some(Heard::Failure(error)) => {
                    self.lapses.begin(Part::Sends, &error);
                    self.gate.pause(error.pause_reason(), error.to_string());
                    let others_answered = error.may_be_of_call() && !self.lapses.is_open(Part::Head);
                    // Of a round that failed as a whole, each is to show alone whether it is its own fault.
                    if !(others_answered && failed_as_a_whole) {
                        self.flight.record_failure(nonce, &error.to_string(), others_answered);
                    }
                }
                Some(Heard::Meaning(meaning, text)) => {
                    match pause_for(meaning).filter(|reason| reason.is_outage()) {
                        // A node's word about itself holds until it answers a broadcast otherwise.
                        Some(reason) => self.lapses.begin_for(Part::Sends, reason, text.clone()),
                        None => _ = self.lapses.end(Part::Sends),
                    }
                    heard.push(nonce);
                    taken.extend(is_new.then_some(nonce));
                    if matches!(meaning, SendMeaning::NonceTooHigh | SendMeaning::PoolFull) {
                        no_room.get_or_insert_with(|| (nonce, meaning, text.clone()));
                    }
                    self.apply_meaning(meaning, text);
                }
                None => {}
            }
        }
        self.flight.end_round(&taken);
        match no_room {
            Some((nonce, meaning, text)) => self.apply_no_room(nonce, meaning, &text, is_batch),
            None if !taken.is_empty() => self.flight.order_mut().pass(),
            None => {}
        }
        heard.into_iter().for_each(|nonce| self.learn_from(nonce));
        self.send_due();
    }

    /// Sends what is due, in order.
    pub(super) fn send_due(&mut self) {
        for nonce in self.flight.to_send() {
            self.send(nonce);
        }
    }

    /// Learns from what nodes said of the newest signed transaction of a nonce.
    fn learn_from(&mut self, nonce: Nonce) {
        let Some(transaction) = self.flight.get(nonce) else { return };
        if let Some(RefusalKind::Lasting(lasting)) = transaction.refusal().map(|refusal| refusal.kind) {
            self.learnt.record_refusal(transaction, lasting);
        }
        if transaction.is_cancelling() && transaction.refusal().is_some() {
            self.learnt.doubt_transfer();
        }
        match &transaction.pool {
            PoolStatus::Pooled if transaction.has_raised_tip => self.learnt.record_tip(transaction.newest().fee.tip()),
            PoolStatus::Underpriced(Lack::Tip(Some(tip))) => self.learnt.record_tip(*tip),
            PoolStatus::Unknown
            | PoolStatus::Pooled
            | PoolStatus::HeldBack(_)
            | PoolStatus::Underpriced(_)
            | PoolStatus::Outbid(_)
            | PoolStatus::NonceUsed
            | PoolStatus::Refused(_) => return,
        }
        if let Some(market) = self.view.market() {
            self.view.set_market(self.learnt.raise(market));
        }
    }

    fn apply_meaning(&mut self, meaning: SendMeaning, text: String) {
        if let Some(reason) = pause_for(meaning) {
            self.gate.pause(reason, text);
        } else if meaning == SendMeaning::AlreadyKnown && !self.lapses.hold_pause() {
            self.gate.resume_after_taken();
        }
    }

    /// A node did not take this one, the first of a round, since it has no room or wants others first. If it has taken all
    /// before it, the batch may have been shuffled: it is sent alone at once, which shows that.
    fn apply_no_room(&mut self, nonce: Nonce, meaning: SendMeaning, text: &str, is_batch: bool) {
        let head = self.view.height();
        let has_those_before = self.flight.first_early() == Some(nonce.plus(1));
        let may_be_shuffled = meaning == SendMeaning::NonceTooHigh && is_batch && has_those_before;
        if may_be_shuffled && !self.flight.order_mut().is_on_trial() {
            self.flight.order_mut().suspect(head);
            if let Some(transaction) = self.flight.get_mut(nonce) {
                transaction.send_again();
            }
            return;
        }
        self.flight.order_mut().refute();
        if let Some(head) = head {
            self.narrow_window(self.flight.pooled(), head, text);
        }
    }

    fn label_of(&self, result: &Result<(), ChainError>) -> Option<SendMeaning> {
        match result {
            Ok(()) => Some(SendMeaning::AlreadyKnown),
            Err(ChainError::Node { message, .. }) => Some(self.context.settings.rules.errors.meaning_of(message)),
            Err(ChainError::RateLimited { .. }) => Some(SendMeaning::RateLimited),
            Err(_) => None,
        }
    }

    /// Sends no more than nodes keep. Queue order is kept: what does not fit is sent again when those before it have got into
    /// blocks.
    pub(super) fn narrow_window(&mut self, kept: usize, head: BlockNumber, why: &str) {
        if self.flight.narrow(kept, head) {
            let window = self.flight.window().size();
            info!(
                window,
                answer = why,
                "the node takes fewer transactions than chain.in_flight allows; fewer are sent for now"
            );
        }
    }

    /// Sends again, replaces or cancels what is not in a block, lowest nonce first. Where nothing more can be done for one of
    /// them the lane pauses: all behind it wait for it.
    pub(super) async fn resend_and_replace(&mut self) -> Result<(), JournalError> {
        self.estimate_transfer().await;
        self.read_l1_fees().await;
        self.find_holder().await;
        let Some(market) = self.view.market() else { return Ok(()) };
        let mut canary = Canary::of(self.flight.not_included());
        let mut is_early = false;
        let (mut replaced, mut resent, mut switched, mut stuck) = (Vec::new(), Vec::new(), Vec::new(), None);
        for (place, transaction) in self.flight.not_included().enumerate() {
            let (care, is_stuck) = self.care_for(place, is_early, transaction, &market, &mut canary);
            canary.pass(transaction);
            stuck = stuck.or(is_stuck);
            is_early |= care == Care::Wait && transaction.blocks_others();
            match care {
                Care::Wait => {}
                Care::Send => resent.push(transaction.nonce),
                Care::Replace(replacement) => replaced.push((transaction.nonce, replacement)),
                Care::Switch(purpose) => switched.push((transaction.nonce, purpose)),
            }
        }
        self.apply_stuck(stuck);
        for (nonce, purpose) in switched {
            info!(account = %self.account(), tx.nonce = %nonce, tx.kind = purpose.as_str(), "what was signed before goes out again");
            self.flight.switch(nonce, purpose);
            self.send(nonce);
        }
        for nonce in resent {
            self.send(nonce);
        }
        self.replace(replaced).await
    }

    fn apply_stuck(&mut self, stuck: Option<Stuck>) {
        match stuck {
            None => self.gate.resume_from_stuck(),
            Some(Stuck { reason, detail }) => {
                if self.gate.paused().is_none_or(|pause| pause.reason.is_stuck()) {
                    self.gate.pause(reason, detail);
                }
            }
        }
    }

    /// Asks the nodes for their rules, and what a transfer to the account itself costs, at the term's start and now and then.
    /// Where they do not say, what they said before counts, and at first what most chains ask for.
    async fn estimate_transfer(&mut self) {
        if self.view.height().is_none() || !self.learnt.begin_estimate() {
            return;
        }
        let rules = self.context.hear(self.context.chain.node_rules()).await;
        self.learnt.record_rules(rules);
        self.estimate_least_gas().await;
        self.check_routes();
    }

    async fn estimate_least_gas(&mut self) {
        let to_itself = |data: Vec<u8>| Call {
            from: self.account(),
            to: self.account(),
            value: Wei(0),
            data: bytes::Bytes::from(data),
        };
        let calls = [Vec::new(), vec![1; FLOOR_PROBE]].map(|data| Traced::from(to_itself(data)));
        let mut estimates = self.context.chain.estimate(&calls).await.into_iter();
        let Some(Ok(empty)) = estimates.next() else { return };
        let filled = estimates.next().and_then(Result::ok);
        let before = self.learnt.transfer_gas();
        self.learnt.record_estimates(empty, filled, FLOOR_PROBE as u64);
        let now = self.learnt.transfer_gas();
        if now != before {
            debug!(account = %self.account(), gas = now.0, "the gas of a transfer to the account itself");
        }
    }

    /// Reports the routes whose gas is set to what the chain never takes, once for each fork.
    pub(super) fn check_routes(&mut self) {
        if !self.learnt.begin_check_of_routes() {
            return;
        }
        for FixedGas { route, gas, least_calldata } in self.routes.fixed_gas.iter() {
            if let Err(cause) = self.learnt.check_fixed_gas(*gas, least_calldata) {
                error!(account = %self.account(), route, %cause, "no message of this route can be written: change the gas of the route");
            }
        }
    }

    /// Asks which foreign transaction holds the lowest nonce of which nodes say that, and never had one of ours. One for each
    /// poll is enough.
    async fn find_holder(&mut self) {
        let is_known = |holder: &Holder| holder.asked_at.elapsed() < HOLDER_LASTS;
        let outbid = self.flight.not_included().find(|transaction| {
            let is_foreign = !transaction.was_taken();
            matches!(&transaction.pool, PoolStatus::Outbid(holder) if is_foreign && !holder.as_ref().is_some_and(is_known))
        });
        let Some(nonce) = outbid.map(|transaction| transaction.nonce) else { return };
        let found = self.context.chain.pooled(self.account(), nonce).await.unwrap_or_default();
        if let Some(transaction) = self.flight.get_mut(nonce) {
            transaction.record_holder(Holder { found, asked_at: Instant::now() });
        }
    }

    /// Invariant 5: a replacement is journalled before it is broadcast. Crash in between: the next term sends it.
    async fn replace(&mut self, replacements: Vec<(Nonce, Replacement)>) -> Result<(), JournalError> {
        let may_sign = |replacement: &Replacement| {
            let is_doubted = replacement.cause.as_ref().is_some_and(|cause| cause.reason == Reason::MaybeWritten);
            !self.foreign.is_behind() || is_doubted
        };
        let replacements: Vec<_> = replacements.into_iter().filter(|(_, replacement)| may_sign(replacement)).collect();
        if replacements.is_empty() {
            return Ok(());
        }
        let signed = self.sign_replacements(replacements).await;
        if signed.is_empty() {
            return Ok(());
        }
        let stored = signed.iter().map(|(nonce, signed, _)| (*nonce, signed.clone())).collect();
        self.context.journal.record_replacements(&self.lease, stored).await?;
        for (nonce, signed, gas) in signed {
            self.begin_replacement(nonce, signed, gas);
        }
        Ok(())
    }

    /// Signs the replacements of those that are live, each with the gas of a cancellation. Returns none of them where the signer
    /// does not sign.
    pub(super) async fn sign_replacements(
        &mut self,
        replacements: Vec<(Nonce, Replacement)>,
    ) -> Vec<(Nonce, SignedTransaction, Gas)> {
        let live = replacements.into_iter().filter_map(|(nonce, replacement)| {
            let unsigned = self.replacement(nonce, &replacement)?;
            Some(((nonce, replacement), unsigned))
        });
        let (replacements, unsigned): (Vec<_>, Vec<_>) = live.unzip();
        if unsigned.is_empty() {
            return Vec::new();
        }
        let Some(raw) = self.sign_for_live(unsigned).await else { return Vec::new() };
        let signed_at = Timestamp::now();
        let signed = |((nonce, Replacement { purpose, fee, cause, gas }), raw)| {
            (nonce, SignedTransaction { purpose, raw, fee, signed_at, cause }, gas)
        };
        replacements.into_iter().zip(raw).map(signed).collect()
    }

    /// Sends a replacement. The journal has it.
    pub(super) fn begin_replacement(&mut self, nonce: Nonce, signed: SignedTransaction, gas: Gas) {
        self.context.signals.meter.signed.count(match signed.purpose {
            Purpose::Write => Signed::Replacement,
            Purpose::Cancel => Signed::Cancel,
        });
        info!(tx.nonce = %nonce, tx.hash = %signed.raw.hash, tx.kind = signed.purpose.as_str(), fee.max = %signed.fee.ceiling(), "another attempt at the nonce");
        self.flight.replace(nonce, signed, gas);
        self.send(nonce);
    }

    fn replacement(&self, nonce: Nonce, replacement: &Replacement) -> Option<Traced<UnsignedTransaction>> {
        let transaction = self.flight.get(nonce)?;
        let item = match replacement.purpose {
            Purpose::Write => self.unsigned(&transaction.payload, nonce, replacement.fee),
            Purpose::Cancel => self.self_transfer(nonce, replacement.fee, replacement.gas),
        };
        Some(Traced { item, span: self.span_of(transaction) })
    }

    /// Returns a transaction that takes the nonce and does nothing else.
    pub(super) fn self_transfer(&self, nonce: Nonce, fee: Fee, gas: Gas) -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: self.context.settings.rules.chain_id,
            nonce,
            to: Some(self.account()),
            value: Wei(0),
            gas,
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
        let Some(age) = self.view.stale_for(lowest.wait.signed(), limit) else { return };
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
