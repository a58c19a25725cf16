//! What a simulated journal holds: all that survives a crash, and a record of all that it ever held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::journal::{
    AccountId, Hold, Instance, JournalError, Lease, OutboxRow, Passage, Recovery, ReplyAddress, RequestSeq,
};
use crate::model::event::FinalTransaction;
use crate::model::{
    Address, BodyHash, Cause, EventKind, Fee, Gas, Generation, Members, Message, Nonce, OrderKey, Purpose,
    RawTransaction, RecoveredWrite, RequestId, RequestState, SignedTransaction, Timestamp, TraceContext,
    TransactionState, TxHash, Wei, Write,
};
use crate::policy::letters::replay::LastRecovery;
use crate::policy::passage::Band;
use crate::simulation::store::bumps::BumpRow;
use crate::simulation::store::identity::Identity;

mod bumps;
mod ending;
mod holds;
mod identity;
mod lanes;
mod limits;
mod lost_retries;
mod mishaps;
mod reading;

/// Sums by chain and slot of time.
pub(super) type SumsByChain = BTreeMap<(u64, i64), u128>;

/// The durable state. A clone is what a backup taken now would hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    accounts: BTreeMap<AccountId, AccountRow>,
    instances: BTreeMap<Arc<str>, InstanceRow>,
    /// Owners whose processes are known to have ended.
    ended: BTreeSet<Arc<str>>,
    recovery: Option<Recovery>,
    last_recovery: Option<LastRecovery>,
    /// Calls of foreign transactions, by account, nonce and place.
    foreign: BTreeMap<(AccountId, Nonce, u32), RecoveredWrite>,
    /// What an operator has decided to send back since the recovery began.
    decisions: BTreeSet<RequestId>,
    /// Why the journal is behind the chain.
    behind: Option<String>,
    requests: BTreeMap<RequestSeq, RequestRow>,
    seqs: BTreeMap<RequestId, RequestSeq>,
    transactions: BTreeMap<(AccountId, Nonce), TransactionRow>,
    outbox: BTreeMap<i64, OutboxEntry>,
    fillers: Vec<StoredFiller>,
    cancellations: BTreeMap<RequestSeq, Cancel>,
    holds: Vec<Hold>,
    /// Times of what operators did.
    log: Vec<Timestamp>,
    bumps: BTreeMap<RequestSeq, BumpRow>,
    throttles: BTreeMap<u64, i64>,
    /// Gas by chain and minute.
    spent: SumsByChain,
    /// Wei paid, and wei for gas, by chain and quarter of an hour.
    paid: SumsByChain,
    fees: SumsByChain,
    last_turn: i64,
    last_event: i64,
    last_attempt: u64,
    identity: Identity,
    /// Its database has a clock of its own.
    pub(crate) has_clock: bool,
    passages: Vec<Passage>,
    /// Those that have come out in one band of priority alone.
    half_passed: BTreeMap<String, (Band, Timestamp)>,
    record: Record,
}

/// An account on a chain.
#[derive(Debug, Clone)]
pub(crate) struct AccountRow {
    pub(crate) chain_id: u64,
    pub(crate) address: Address,
    /// Unknown until the lane has asked the chain for the first time.
    pub(crate) next_nonce: Option<Nonce>,
    pub(crate) foreign_below: Nonce,
    pub(crate) owner: Option<Arc<str>>,
    pub(crate) leased_until: Timestamp,
    pub(crate) epoch: i64,
}

/// A run of the program, with its last word, and for how long it counts.
#[derive(Debug, Clone)]
struct InstanceRow {
    instance: Instance,
    attended_at: Timestamp,
    ttl: Duration,
}

/// A request, with its incidents.
#[derive(Debug, Clone)]
pub(crate) struct RequestRow {
    pub(crate) id: RequestId,
    /// Of a message that was refused: the id that it had.
    pub(crate) refused_id: Option<RequestId>,
    /// The message never became a request.
    pub(crate) is_refused: bool,
    pub(crate) account: AccountId,
    pub(crate) state: RequestState,
    pub(crate) generation: Generation,
    pub(crate) turn: i64,
    /// Its ordering key, and its place among those of it.
    pub(crate) order: Option<(OrderKey, i64)>,
    pub(crate) body_hash: BodyHash,
    /// Gone once no copy can be needed any more.
    pub(crate) message: Option<Message>,
    /// Without its calldata once it is final or dead.
    pub(crate) write: Option<Write>,
    /// Of the calldata, which stays.
    pub(crate) data_hash: Option<BodyHash>,
    pub(crate) not_after: Option<Timestamp>,
    pub(crate) route: String,
    /// A transaction that it shared has failed.
    pub(crate) is_alone: bool,
    pub(crate) reply: ReplyAddress,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) received_at: Timestamp,
    pub(crate) accepted_at: Timestamp,
    pub(crate) changed_at: Timestamp,
    pub(crate) settled_at: Option<Timestamp>,
    /// Its retry counts as lost.
    pub(crate) is_lost: bool,
    /// An operator gave it up then: there is no dead letter.
    pub(crate) is_given_up: bool,
    pub(crate) first_failed_at: Option<Timestamp>,
    pub(crate) failure: Option<Cause>,
    /// Every nonce it ever had, oldest first.
    pub(crate) nonces: Vec<(AccountId, Nonce)>,
    pub(crate) incidents: Vec<IncidentRow>,
}

/// Something off the straight way.
#[derive(Debug, Clone)]
pub(crate) struct IncidentRow {
    pub(crate) at: Timestamp,
    pub(crate) what: &'static str,
    pub(crate) detail: String,
}

#[derive(Debug, Clone)]
pub(crate) struct TransactionRow {
    pub(crate) requests: Members<RequestSeq>,
    pub(crate) state: TransactionState,
    pub(crate) to: Address,
    pub(crate) value: Wei,
    /// Of a batch, while it is live.
    pub(crate) data: Option<Bytes>,
    pub(crate) gas: Gas,
    pub(crate) created_at: Timestamp,
    /// Set where an attempt of ours is final.
    pub(crate) included: Option<FinalTransaction>,
    /// Since when that block is no part of the chain any more.
    pub(crate) reorged_at: Option<Timestamp>,
    pub(crate) signed: Vec<StoredAttempt>,
}

/// A self-transfer at a nonce that held up later ones.
#[derive(Debug, Clone)]
struct StoredFiller {
    account: AccountId,
    nonce: Nonce,
    attempt: SignedTransaction,
}

/// An operator's request that another request ends without being written.
#[derive(Debug, Clone)]
struct Cancel {
    detail: String,
}

/// An attempt and its place among all attempts.
#[derive(Debug, Clone)]
pub(crate) struct StoredAttempt {
    pub(crate) place: u64,
    pub(crate) attempt: SignedTransaction,
}

/// An event without a publisher confirm.
#[derive(Debug, Clone)]
pub(crate) struct OutboxEntry {
    pub(crate) account: AccountId,
    pub(crate) row: OutboxRow,
}

/// What the journal ever held, for whoever checks a run. Nothing is ever taken out of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    /// Everything ever signed, in the order of its storing.
    pub(crate) signed: Vec<SignedRecord>,
    /// Every self-transfer that fills a gap.
    pub(crate) fillers: Vec<SignedRecord>,
    /// Every event ever put into the outbox, by its place there.
    pub(crate) events: BTreeMap<i64, EventRecord>,
    /// Every id that was ever admitted.
    pub(crate) admitted: BTreeSet<RequestId>,
    /// Every transaction, when it was stored.
    pub(crate) begun: Vec<Begun>,
    /// What was written by an owner after another had taken the account over.
    pub(crate) late_writes: Vec<Lease>,
    /// Replacements that an operator wanted.
    pub(crate) bumped: BTreeSet<TxHash>,
    /// Requests for which something new was stored while an operator held them.
    pub(crate) signed_on_hold: Vec<RequestId>,
    /// Requests that were pruned, as they were then.
    pub(crate) forgotten: BTreeMap<RequestId, RequestRow>,
}

/// A new transaction, and the true time.
#[derive(Debug, Clone)]
pub(crate) struct Begun {
    pub(crate) at_us: i64,
    pub(crate) gas: Gas,
}

/// Bytes that a node may have been given.
#[derive(Debug, Clone)]
pub(crate) struct SignedRecord {
    pub(crate) account: AccountId,
    /// What it is for; nothing where it fills a gap.
    pub(crate) requests: Vec<RequestId>,
    pub(crate) nonce: Nonce,
    pub(crate) kind: Purpose,
    pub(crate) signed: RawTransaction,
    pub(crate) fee: Fee,
}

/// An event that was true from then on.
#[derive(Debug, Clone)]
pub(crate) struct EventRecord {
    pub(crate) event_id: String,
    pub(crate) kind: EventKind,
    /// The request, or the refused message.
    pub(crate) subject: RequestId,
    /// It has its publisher confirm, and has left the outbox.
    pub(crate) is_published: bool,
}

impl Store {
    pub(crate) fn accounts(&self) -> &BTreeMap<AccountId, AccountRow> {
        &self.accounts
    }

    pub(crate) fn requests(&self) -> &BTreeMap<RequestSeq, RequestRow> {
        &self.requests
    }

    /// Another journal, with the same accounts.
    pub(crate) fn emptied(&self) -> Self {
        let accounts = self.accounts.iter().map(|(id, row)| {
            let row = AccountRow { next_nonce: None, owner: None, leased_until: Timestamp(0), ..row.clone() };
            (*id, row)
        });
        Self { accounts: accounts.collect(), ..Self::default() }
    }

    pub(crate) fn request(&self, id: &RequestId) -> Option<&RequestRow> {
        self.requests.get(self.seqs.get(id)?)
    }

    pub(crate) fn transactions(&self) -> &BTreeMap<(AccountId, Nonce), TransactionRow> {
        &self.transactions
    }

    /// The request, also one that was forgotten.
    pub(crate) fn ever(&self, id: &RequestId) -> Option<&RequestRow> {
        self.request(id).or_else(|| self.record.forgotten.get(id))
    }

    /// A message of it that is published now comes to a journal that knows it: no passage was sent since its end.
    pub(crate) fn protects(&self, id: &RequestId) -> bool {
        let Some(row) = self.request(id) else { return !self.record.forgotten.contains_key(id) };
        let newest = self.passages.last().map(|passage| passage.state.published_at);
        row.settled_at.is_none_or(|settled_at| newest.is_none_or(|newest| settled_at >= newest))
    }

    /// Every attempt that the journal still holds, with the request it is for, by nonce.
    pub(crate) fn attempts_raw(&self) -> impl Iterator<Item = (RequestSeq, Nonce, &SignedTransaction)> {
        self.transactions
            .iter()
            .flat_map(|((_, nonce), row)| row.signed.iter().map(|stored| (row.requests.first, *nonce, &stored.attempt)))
    }

    pub(crate) fn outbox(&self) -> impl Iterator<Item = (AccountId, &OutboxRow)> {
        self.outbox.values().map(|entry| (entry.account, &entry.row))
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// One before it, of its ordering key, has not ended.
    pub(crate) fn is_held(&self, request: &RequestRow) -> bool {
        let Some((key, place)) = request.order else { return false };
        let is_before = |row: &RequestRow| {
            let is_before = row.order.is_some_and(|(other, before)| other == key && before < place);
            is_before && !(row.state.is_settled() && row.state.is_over())
        };
        self.requests.values().any(is_before)
    }

    /// One of its transactions may land or has landed.
    fn has_effect(&self, request: &RequestRow) -> bool {
        let rows = request.nonces.iter().filter_map(|place| self.transactions.get(place));
        rows.into_iter().any(|row| row.state.has_effect())
    }
}

impl SignedRecord {
    pub(crate) fn is_for(&self, id: &str) -> bool {
        self.requests.iter().any(|request| request.as_str() == id)
    }
}

impl RequestRow {
    fn note(&mut self, now: Timestamp, what: &'static str, detail: impl Into<String>) {
        self.incidents.push(IncidentRow { at: now, what, detail: detail.into() });
    }

    /// Into a state whose deliveries may be acked: no copy is made of it any more.
    fn end(&mut self, now: Timestamp, settled_at: Timestamp, state: RequestState) {
        self.state = state;
        self.changed_at = now;
        self.is_lost = false;
        self.settled_at = Some(settled_at);
        self.message = None;
        if let Some(write) = &mut self.write
            && state.is_over()
        {
            write.data = None;
        }
    }
}

fn refused(doing: &'static str, detail: impl Into<String>) -> JournalError {
    JournalError::Inconsistent { doing, detail: detail.into() }
}

/// The journal keeps numbers in 64 bits with a sign.
fn fits(what: &'static str, number: impl TryInto<i64>) -> Result<(), JournalError> {
    number.try_into().map(|_| ()).map_err(|_| refused("store a number", format!("{what} is beyond 64 bits")))
}
