//! Operators' bumps in the store.

use crate::journal::{AccountId, AnsweredBump, Bump, BumpAnswer, BumpOutcome, Lease, RequestSeq};
use crate::model::{Order, RequestId, RequestState, Timestamp, Wei};
use crate::simulation::store::Store;

/// An order, and its answer.
#[derive(Debug, Clone)]
pub(super) struct BumpRow {
    requested_at: Timestamp,
    max_fee: Option<Wei>,
    outcome: Option<BumpOutcome>,
}

impl Store {
    pub(crate) fn has_bumps(&self) -> bool {
        !self.bumps.is_empty()
    }

    pub(crate) fn bump(&mut self, now: Timestamp, id: &RequestId, max_fee: Option<Wei>, order: &Order) -> BumpAnswer {
        let Some((seq, row)) = self.seqs.get(id).and_then(|seq| Some((*seq, self.requests.get_mut(seq)?))) else {
            return BumpAnswer::NotKnown;
        };
        if row.state != RequestState::Writing {
            return BumpAnswer::NothingToRaise(row.state);
        }
        row.note(now, "bump", order.text("a higher price is asked for"));
        self.log.push(now);
        self.bumps.insert(seq, BumpRow { requested_at: now, max_fee, outcome: None });
        BumpAnswer::Noted
    }

    pub(crate) fn bump_outcome(&self, id: &RequestId) -> Option<BumpOutcome> {
        self.bumps.get(self.seqs.get(id)?)?.outcome.clone()
    }

    pub(crate) fn bumps(&self, account: AccountId) -> Vec<Bump> {
        let is_of = |request: &RequestSeq| self.requests.get(request).is_some_and(|row| row.account == account);
        let open = self.bumps.iter().filter(|(request, row)| row.outcome.is_none() && is_of(request));
        let mut open: Vec<_> = open.map(|(request, row)| (row.requested_at, *request, row.max_fee)).collect();
        open.sort_unstable();
        open.into_iter().map(|(_, request, max_fee)| Bump { request, max_fee }).collect()
    }

    pub(crate) fn answer_bumps(
        &mut self,
        now: Timestamp,
        lease: &Lease,
        answers: Vec<AnsweredBump>,
    ) -> crate::journal::Result<()> {
        let signed: Vec<_> = answers.iter().filter_map(|answer| answer.signed.clone()).collect();
        let hashes: Vec<_> = signed.iter().map(|(_, signed)| signed.raw.hash).collect();
        self.record_replacements(lease, signed)?;
        self.record.bumped.extend(hashes);
        for AnsweredBump { request, signed, text } in answers {
            if let Some(row) = self.bumps.get_mut(&request).filter(|row| row.outcome.is_none()) {
                row.outcome = Some(BumpOutcome { is_raised: signed.is_some(), text: text.clone() });
            }
            if let Some(row) = self.requests.get_mut(&request) {
                row.note(now, "bump", text);
            }
        }
        Ok(())
    }
}
