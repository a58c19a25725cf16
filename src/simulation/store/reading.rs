//! What the journal's users read from the store.

use std::collections::BTreeMap;

use crate::journal::{
    AccountId, AccountOverview, CopyKind, History, Hold, Incident, JournalOverview, LiveTransaction, OpenRequests,
    OutboxRow, QueuedRequest, RECENT_INCIDENTS, RecentIncident, RecordedRefusal, RefusalKey, ReplyAddress, RequestSeq,
    RequestSummary, SignedHistory, TransactionHistory, UnconfirmedCopy,
};
use crate::model::event::BatchPlace;
use crate::model::{Members, Message, Nonce, RequestId, RequestState, SignedTransaction, TransactionState};
use crate::policy::arrival::Known;
use crate::simulation::store::{AccountRow, IncidentRow, RequestRow, Store, StoredAttempt, TransactionRow};

impl Store {
    pub(crate) fn open_requests(&self) -> Vec<(AccountId, u64)> {
        let mut open: BTreeMap<AccountId, u64> = BTreeMap::new();
        for row in self.requests.values().filter(|row| row.state.is_open() && !self.is_held(row)) {
            *open.entry(row.account).or_default() += 1;
        }
        open.into_iter().collect()
    }

    pub(crate) fn open_of_routes(&self, routes: &[String]) -> Vec<(String, u64)> {
        let mut open: BTreeMap<String, u64> = BTreeMap::new();
        for row in self.requests.values().filter(|row| row.state.is_open() && routes.contains(&row.route)) {
            *open.entry(row.route.clone()).or_default() += 1;
        }
        open.into_iter().collect()
    }

    pub(crate) fn overview(&self) -> JournalOverview {
        let account = |(id, row): (&AccountId, &AccountRow)| AccountOverview {
            id: *id,
            chain_id: row.chain_id,
            address: row.address,
            next_nonce: row.next_nonce,
            owner: row.owner.as_deref().map(str::to_owned),
            leased_until: row.leased_until,
            live: self.live_transactions(*id).len() as u64,
            outbox: self.outbox.values().filter(|entry| entry.account == *id).count() as u64,
            retry_waiting: self.waiting_of(*id),
            open: Vec::new(),
        };
        let mut open: BTreeMap<(AccountId, &'static str), (u64, &RequestRow)> = BTreeMap::new();
        for row in self.requests.values().filter(|row| row.settled_at.is_none()) {
            let (count, first) = open.entry((row.account, row.state.as_str())).or_insert((0, row));
            *count += 1;
            if row.turn < first.turn {
                *first = row;
            }
        }
        let open = open.into_iter().map(|((account, state), (count, first))| {
            (account, OpenRequests { state: state.to_owned(), count, since: first.changed_at })
        });
        let accounts = self.accounts.iter().map(account).collect();
        JournalOverview::of(accounts, open.collect(), self.recent_incidents(), self.holds.clone(), self.lost_retries())
    }

    fn waiting_of(&self, account: AccountId) -> u64 {
        let waits = |row: &&RequestRow| row.account == account && row.state == RequestState::RetryWaiting;
        self.requests.values().filter(waits).count() as u64
    }

    /// Newest first; of the same time in no order.
    fn recent_incidents(&self) -> Vec<RecentIncident> {
        let of = |row: &RequestRow| {
            let id = row.id.to_string();
            row.incidents.clone().into_iter().map(move |IncidentRow { at, what, detail }| RecentIncident {
                request: id.clone(),
                at,
                what: what.to_owned(),
                detail,
            })
        };
        let mut incidents: Vec<_> = self.requests.values().flat_map(of).collect();
        incidents.sort_by_key(|incident| std::cmp::Reverse(incident.at));
        incidents.truncate(RECENT_INCIDENTS);
        incidents
    }

    pub(crate) fn queued(
        &self,
        account: AccountId,
        after_turn: i64,
        limit: u32,
        without: &[String],
    ) -> Vec<QueuedRequest> {
        let is_queued =
            |row: &RequestRow| row.account == account && row.state == RequestState::Accepted && row.turn > after_turn;
        let wanted = |seq: &RequestSeq, row: &RequestRow| {
            !self.cancellations.contains_key(seq) && !self.is_held(row) && !without.contains(&row.route)
        };
        let mut queued: Vec<_> = self.requests.iter().filter(|(seq, row)| is_queued(row) && wanted(seq, row)).collect();
        queued.sort_by_key(|(_, row)| row.turn);
        queued.into_iter().take(limit as usize).map(|(seq, row)| queued_request(*seq, row)).collect()
    }

    pub(crate) fn live_transactions(&self, account: AccountId) -> Vec<LiveTransaction> {
        let of_account = self.transactions.range((account, Nonce(0))..=(account, Nonce(u64::MAX)));
        of_account
            .filter(|(_, row)| row.state == TransactionState::Live)
            .filter_map(|((_, nonce), row)| self.live(*nonce, row))
            .collect()
    }

    fn live(&self, nonce: Nonce, row: &TransactionRow) -> Option<LiveTransaction> {
        let queued = |seq: RequestSeq| Some(queued_request(seq, self.requests.get(&seq)?));
        Some(LiveTransaction {
            requests: Members::from_vec(row.requests.iter().filter_map(|request| queued(*request)).collect())?,
            nonce,
            to: row.to,
            value: row.value,
            data: row.data.clone(),
            gas: row.gas,
            signed: row.signed.iter().map(|stored| stored.attempt.clone()).collect(),
        })
    }

    pub(crate) fn unconfirmed(&self, account: AccountId, after: RequestSeq, limit: u32) -> Vec<UnconfirmedCopy> {
        let mine = self.requests.iter().filter(|(seq, row)| row.account == account && **seq > after);
        mine.filter_map(|(seq, row)| self.copy_of(*seq, row)).take(limit as usize).collect()
    }

    pub(crate) fn unconfirmed_of(&self, requests: &[RequestSeq]) -> Vec<UnconfirmedCopy> {
        requests.iter().filter_map(|seq| self.copy_of(*seq, self.requests.get(seq)?)).collect()
    }

    pub(crate) fn refused_before(&self, keys: &[RefusalKey]) -> Vec<(RefusalKey, RecordedRefusal)> {
        let refused = self.requests.values().filter_map(|row| {
            let RequestRow { body_hash, generation, .. } = *row;
            let key = RefusalKey { named: row.refused_id.clone()?, body_hash, generation };
            Some((key, RecordedRefusal { id: row.id.clone(), cause: row.failure.clone()? }))
        });
        refused.filter(|(key, _)| keys.contains(key) && !self.seqs.contains_key(&key.named)).collect()
    }

    pub(crate) fn standings(&self, ids: &[RequestId]) -> Vec<(RequestId, Known)> {
        ids.iter().filter_map(|id| Some((id.clone(), self.known(id)?))).collect()
    }

    pub(super) fn known(&self, id: &RequestId) -> Option<Known> {
        let row = self.request(id)?;
        Some(Known { state: row.state, generation: row.generation, body_hash: row.body_hash })
    }

    pub(crate) fn message_of(&self, id: &RequestId) -> Option<Message> {
        self.request(id)?.message.clone()
    }

    pub(crate) fn events(&self, accounts: &[AccountId], after: i64, limit: u32) -> Vec<OutboxRow> {
        let mine = self.outbox().filter(|(account, row)| row.id > after && accounts.contains(account));
        mine.take(limit as usize).map(|(_, row)| row.clone()).collect()
    }

    pub(crate) fn history(&self, id: &RequestId) -> Option<History> {
        let was_refused = |row: &RequestRow| row.refused_id.as_ref() == Some(id);
        let refused = || self.requests.iter().rev().find(|(_, row)| was_refused(row)).map(|(_, row)| row);
        let row = self.request(id).or_else(refused)?;
        let request = self.summary(row)?;
        let seq = self.seqs.get(&row.id)?;
        let transactions = self.transactions_of(row).map(|(nonce, row)| transaction_history(*seq, nonce, row));
        let incidents = row.incidents.iter().map(|incident| Incident {
            at: incident.at,
            what: incident.what.to_owned(),
            detail: incident.detail.clone(),
        });
        let is_waiting = |_: &&Hold| row.state == RequestState::Accepted;
        let holds = self.holds.iter().filter(is_waiting).filter(|hold| hold.covers(row.account, &row.route));
        Some(History {
            request,
            transactions: transactions.collect(),
            incidents: incidents.collect(),
            holds: holds.cloned().collect(),
        })
    }

    fn summary(&self, row: &RequestRow) -> Option<RequestSummary> {
        let account = self.accounts.get(&row.account)?;
        Some(RequestSummary {
            id: row.id.as_str().to_owned(),
            state: row.state.to_string(),
            attempt: row.generation.retry,
            replay: row.generation.replay,
            received_at: row.received_at,
            changed_at: row.changed_at,
            chain_id: account.chain_id,
            account: account.address,
            route: row.route.clone(),
            refused: row.is_refused,
            refused_id: row.refused_id.as_ref().map(|id| id.as_str().to_owned()),
            failure: row.failure.as_ref().map(ToString::to_string),
        })
    }

    pub(crate) fn requests_of(&self, state: RequestState, most: u32) -> Vec<RequestSummary> {
        let mut found: Vec<_> = self.requests.iter().filter(|(_, row)| row.state == state).collect();
        match state.is_settled() {
            true => found.sort_by_key(|(seq, _)| std::cmp::Reverse(**seq)),
            false => found.sort_by_key(|(seq, row)| (row.account, row.turn, **seq)),
        }
        found.into_iter().filter_map(|(_, row)| self.summary(row)).take(most as usize).collect()
    }

    fn transactions_of(&self, row: &RequestRow) -> impl Iterator<Item = (Nonce, &TransactionRow)> {
        row.nonces.iter().filter_map(|place| Some((place.1, self.transactions.get(place)?)))
    }

    fn copy_of(&self, seq: RequestSeq, row: &RequestRow) -> Option<UnconfirmedCopy> {
        let kind = [CopyKind::Retry, CopyKind::DeadLetter].into_iter().find(|kind| kind.pending() == row.state)?;
        let mut signed: Vec<_> = self.transactions_of(row).flat_map(|(_, row)| &row.signed).collect();
        signed.sort_by_key(|stored| stored.place);
        Some(UnconfirmedCopy {
            request: seq,
            id: row.id.clone(),
            kind,
            generation: row.generation,
            cause: row.failure.clone().expect("what is pending has failed"),
            first_failed_at: row.first_failed_at.expect("what is pending has failed"),
            message: row.message.clone().expect("what is pending has its message"),
            tx_hashes: signed.into_iter().map(|stored| stored.attempt.raw.hash).collect(),
        })
    }
}

pub(super) fn queued_request(seq: RequestSeq, row: &RequestRow) -> QueuedRequest {
    let message = row.message.as_ref().expect("what is open has its message");
    QueuedRequest {
        seq,
        id: row.id.clone(),
        generation: row.generation,
        turn: row.turn,
        received_at: row.received_at,
        accepted_at: row.accepted_at,
        body: message.body.clone(),
        write: row.write.clone().expect("what is open has been routed"),
        not_after: row.not_after,
        route: row.route.clone(),
        is_alone: row.is_alone,
        reply: ReplyAddress {
            reply_to: message.properties.reply_to.clone(),
            correlation_id: message.properties.correlation_id.clone(),
        },
        trace: row.trace.clone(),
    }
}

fn transaction_history(request: RequestSeq, nonce: Nonce, row: &TransactionRow) -> TransactionHistory {
    let index = row.requests.iter().position(|own| *own == request).unwrap_or_default();
    let included = row.included.as_ref();
    TransactionHistory {
        nonce,
        state: row.state.as_str().to_owned(),
        created_at: row.created_at,
        signed: row.signed.iter().map(|StoredAttempt { attempt, .. }| attempt_history(attempt)).collect(),
        final_hash: included.map(|included| included.tx_hash),
        block_number: included.map(|included| included.block_number),
        block_hash: included.map(|included| included.block_hash),
        gas_used: included.map(|included| included.gas_used),
        l1_fee: included.and_then(|included| included.l1.fee).map(|fee| fee.0.to_string()),
        reorged_at: row.reorged_at,
        batch: BatchPlace::of(index, row.requests.others.len()),
    }
}

fn attempt_history(attempt: &SignedTransaction) -> SignedHistory {
    SignedHistory {
        hash: attempt.raw.hash,
        kind: attempt.purpose.as_str().to_owned(),
        max_fee: attempt.fee.ceiling().to_string(),
        signed_at: attempt.signed_at,
        cause: attempt.cause.as_ref().map(ToString::to_string),
    }
}
