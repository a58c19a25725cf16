//! Messages that are refused: for the first time, or again as the journal has it.

use crate::broker::{AckToken, Delivery};
use crate::journal::{JournalError, RecordedRefusal, RefusalKey};
use crate::model::headers::header;
use crate::model::{BodyHash, Generation, Message, RequestId, Timestamp};
use crate::policy::admission::{Candidate, Refusal};
use crate::policy::arrival::Verdict;
use crate::stages::intake::Intake;
use crate::stages::settle::inbox::{Admitted, Refused, refused_id};

/// A delivery, and what reading its message as a request comes to.
type Judged = (Delivery, Result<Candidate, Refusal>);

impl Intake {
    pub(super) async fn refuse(&self, message: Message, refusal: Refusal, token: AckToken) {
        self.meter.deliveries.count(Some(Verdict::Unroutable));
        let recorded = RecordedRefusal { id: refused_id(), cause: refusal.cause };
        self.pass_on_refused(message, refusal.id, recorded, token, false).await;
    }

    async fn pass_on_refused(
        &self,
        message: Message,
        named: Option<RequestId>,
        RecordedRefusal { id, cause }: RecordedRefusal,
        token: AckToken,
        is_recorded: bool,
    ) {
        let generation = Generation::read_from(&message.headers).unwrap_or_default();
        let shown = named.as_ref().unwrap_or(&id);
        let account = self.account_of(BodyHash::of(shown.as_str().as_bytes()).as_bytes());
        let taken_at = Timestamp::now();
        let refused = Refused { id, named, generation, message, cause, account, taken_at, token, is_recorded };
        self.pass_on(Admitted::Refused(Box::new(refused))).await;
    }

    /// Refuses those again that the journal has as refused from an earlier delivery, and returns the others. A letter that came
    /// back by hand is no such delivery.
    pub(super) async fn refuse_again(&self, batch: Vec<Judged>) -> Result<Vec<Judged>, JournalError> {
        let keys: Vec<_> = batch.iter().map(refusal_key).collect();
        let known = keys.iter().flatten().cloned().collect::<Vec<_>>();
        if known.is_empty() {
            return Ok(batch);
        }
        let recorded = self.journal.refused_before(known).await?;
        let mut others = Vec::with_capacity(batch.len());
        for ((delivery, candidate), key) in batch.into_iter().zip(keys) {
            let newest = key.and_then(|key| recorded.iter().rev().find(|(known, _)| *known == key).cloned());
            match newest {
                Some((key, recorded)) => {
                    self.meter.deliveries.count(Some(Verdict::Unroutable));
                    let Delivery { message, token, .. } = delivery;
                    self.pass_on_refused(message, Some(key.named), recorded, token, true).await;
                }
                None => others.push((delivery, candidate)),
            }
        }
        Ok(others)
    }
}

fn refusal_key((Delivery { message, is_redelivered, .. }, candidate): &Judged) -> Option<RefusalKey> {
    if !is_redelivered || message.headers.contains_key(header::DEAD_AT) {
        return None;
    }
    let named = match candidate {
        Ok(candidate) => &candidate.id,
        Err(refusal) => refusal.id.as_ref()?,
    };
    let generation = Generation::read_from(&message.headers).unwrap_or_default();
    Some(RefusalKey { named: named.clone(), body_hash: BodyHash::of(&message.body), generation })
}
