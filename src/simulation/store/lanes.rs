//! What changes the store on the way in: leases, arrivals, nonces and attempts. Each either does all or changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::journal::{
    AccountId, AccountStanding, Acquired, Arrival, Attendance, ForeignUse, Instance, JournalError, LaneHolder, Lease,
    LeaseMark, NewTransaction, RecoveredAccount, Recovery, Remembered, ReplyAddress, RequestSeq, failed_text,
};
use crate::model::request::Observation;
use crate::model::{
    Address, Adoption, BodyHash, Fee, Generation, MarkedStart, Nonce, Properties, RecoveredWrite, RequestId,
    RequestState, SignedTransaction, Timestamp, TraceContext, TransactionState,
};
use crate::policy::arrival::{self, Known, Verdict};
use crate::policy::letters::replay::LastRecovery;
use crate::policy::limits::{Granted, Limits};
use crate::simulation::store::{
    AccountRow, InstanceRow, RequestRow, SignedRecord, Store, StoredAttempt, TransactionRow, fits, refused,
};

type Result<T, E = JournalError> = std::result::Result<T, E>;

impl Store {
    pub(crate) fn account(&mut self, chain_id: u64, address: Address) -> Result<AccountId> {
        fits("a chain id", chain_id)?;
        let is_it = |row: &AccountRow| row.chain_id == chain_id && row.address == address;
        if let Some((account, _)) = self.accounts.iter().find(|(_, row)| is_it(row)) {
            return Ok(*account);
        }
        if chain_id == 0 {
            return Err(refused("add an account", "no chain has the id 0"));
        }
        let account = AccountId(self.accounts.last_key_value().map_or(0, |(last, _)| last.0) + 1);
        let row = AccountRow {
            chain_id,
            address,
            next_nonce: None,
            foreign_below: Nonce(0),
            owner: None,
            leased_until: Timestamp(0),
            epoch: 0,
        };
        self.accounts.insert(account, row);
        Ok(account)
    }

    pub(crate) fn acquire_lease(
        &mut self,
        now: Timestamp,
        account: AccountId,
        owner: Arc<str>,
        ttl: Duration,
        stale: Option<LeaseMark>,
    ) -> Result<Acquired> {
        let row = self.accounts.get_mut(&account).ok_or_else(|| refused("take a lease", "no such account"))?;
        let is_anothers = row.owner.as_ref().is_some_and(|holder| *holder != owner);
        let mark = LeaseMark { epoch: row.epoch, until: row.leased_until };
        if is_anothers && row.leased_until >= now && stale != Some(mark) {
            return Ok(Acquired::Anothers(mark));
        }
        row.owner = Some(owner.clone());
        row.leased_until = now.after(ttl);
        row.epoch += 1;
        Ok(Acquired::Ours(Lease { account, owner, epoch: row.epoch }))
    }

    pub(crate) fn renew_lease(&mut self, now: Timestamp, lease: &Lease, ttl: Duration) -> Result<()> {
        self.held(lease)?.leased_until = now.after(ttl);
        Ok(())
    }

    pub(crate) fn release_lease(&mut self, lease: &Lease) -> Result<()> {
        let row = self.held(lease)?;
        row.owner = None;
        row.leased_until = Timestamp(0);
        Ok(())
    }

    pub(crate) fn attend(&mut self, now: Timestamp, instance: &Instance, ttl: Duration) -> Attendance {
        self.instances.retain(|_, row| row.is_there(now));
        let row = InstanceRow { instance: instance.clone(), attended_at: now, ttl };
        self.instances.insert(instance.owner.clone(), row);
        self.attendance(now)
    }

    pub(crate) fn leave(&mut self, owner: &str) {
        self.instances.remove(owner);
    }

    pub(crate) fn end_life(&mut self, owner: &str) {
        self.ended.insert(owner.into());
    }

    /// Returns the owners whose processes are known to have ended.
    pub(crate) fn known_ended(&self) -> Vec<Arc<str>> {
        self.ended.iter().cloned().collect()
    }

    pub(crate) fn remove_ended(&mut self) -> Vec<Arc<str>> {
        let ended = self.known_ended();
        self.ended.clear();
        for row in self.accounts.values_mut() {
            if row.owner.as_ref().is_some_and(|owner| ended.contains(owner)) {
                (row.owner, row.leased_until) = (None, Timestamp(0));
            }
        }
        self.instances.retain(|owner, _| !ended.contains(owner));
        ended
    }

    pub(crate) fn attendance(&self, now: Timestamp) -> Attendance {
        let is_there = |row: &&InstanceRow| row.is_there(now) && !self.ended.contains(&row.instance.owner);
        let there = self.instances.values().filter(is_there);
        let lanes = self.accounts.iter().map(|(account, row)| LaneHolder {
            account: *account,
            chain_id: row.chain_id,
            address: row.address,
            owner: row.owner.clone(),
            mark: LeaseMark { epoch: row.epoch, until: row.leased_until },
        });
        Attendance { instances: there.map(|row| row.instance.clone()).collect(), lanes: lanes.collect() }
    }

    pub(crate) fn begin_recovery(
        &mut self,
        recovery: Recovery,
        accounts: Vec<RecoveredAccount>,
        marked: Option<MarkedStart>,
    ) -> Result<()> {
        for account in &accounts {
            let row = self.accounts.get(&account.account);
            let row = row.ok_or_else(|| refused("begin a recovery", "no such account"))?;
            if row.next_nonce.is_some_and(|next| account.first_nonce > next) {
                return Err(refused("begin a recovery", "the block is too late"));
            }
        }
        if let Some(from) = marked {
            self.adopt(Adoption { by: recovery.operator.clone(), at: recovery.begun_at, from });
        }
        for RecoveredAccount { account, next_nonce, writes, .. } in accounts {
            let row = self.accounts.get_mut(&account).ok_or_else(|| refused("begin a recovery", "no such account"))?;
            row.next_nonce = row.next_nonce.max(Some(next_nonce));
            self.foreign.retain(|(of, ..), write| *of != account || write.block_number < recovery.from_block);
            self.remember(account, writes);
        }
        self.decisions.clear();
        self.behind = None;
        self.last_recovery = Some(LastRecovery { begun_at: recovery.begun_at, ended_at: None });
        self.recovery = Some(recovery);
        Ok(())
    }

    /// Remembers what the journal has not signed itself.
    fn remember(&mut self, account: AccountId, writes: Vec<RecoveredWrite>) {
        for write in writes {
            if !self.is_own(account, &write) {
                self.foreign.entry((account, write.nonce, write.place)).or_insert(write);
            }
        }
    }

    pub(crate) fn end_recovery(&mut self, now: Timestamp) -> bool {
        self.decisions.clear();
        let was_on = self.recovery.take().is_some();
        if was_on {
            self.foreign.clear();
            self.behind = None;
            self.last_recovery = self.last_recovery.map(|last| LastRecovery { ended_at: Some(now), ..last });
        }
        was_on
    }

    pub(crate) fn last_recovery(&self) -> Option<LastRecovery> {
        self.last_recovery
    }

    pub(crate) fn decide(&mut self, request: &RequestId) {
        if self.recovery.is_some() {
            self.decisions.insert(request.clone());
        }
    }

    pub(crate) fn accept_foreign(&mut self, account: AccountId, below: Nonce) -> Result<usize> {
        let row =
            self.accounts.get_mut(&account).ok_or_else(|| refused("accept foreign transactions", "no account"))?;
        row.next_nonce = row.next_nonce.max(Some(below));
        row.foreign_below = row.foreign_below.max(below);
        self.behind = None;
        let before = self.foreign.len();
        self.foreign.retain(|(of, nonce, _), _| *of != account || *nonce >= below);
        Ok(before - self.foreign.len())
    }

    pub(crate) fn foreign_use(&self) -> ForeignUse {
        ForeignUse {
            recovery: self.recovery.clone(),
            has_writes: !self.foreign.is_empty(),
            behind: self.behind.clone(),
        }
    }

    pub(crate) fn recovered_writes(&self, data: &[BodyHash]) -> Vec<RecoveredWrite> {
        self.foreign.values().filter(|write| data.contains(&write.data_hash)).cloned().collect()
    }

    pub(crate) fn decided(&self, requests: &[RequestId]) -> Vec<RequestId> {
        requests.iter().filter(|request| self.decisions.contains(request)).cloned().collect()
    }

    pub(crate) fn record_foreign(
        &mut self,
        lease: &Lease,
        nonces: &[Nonce],
        writes: Vec<RecoveredWrite>,
        at_least: Nonce,
    ) -> Result<Remembered> {
        let next = self.raise_next_nonce(lease, at_least)?;
        self.foreign.retain(|(of, nonce, _), _| *of != lease.account || !nonces.contains(nonce));
        let behind = self.failed_and_written(lease.account, &writes);
        self.remember(lease.account, writes);
        if let Some(detail) = &behind {
            self.behind.get_or_insert(detail.clone());
        }
        Ok(Remembered { next, behind })
    }

    fn failed_and_written(&self, account: AccountId, writes: &[RecoveredWrite]) -> Option<String> {
        let is_failed = |row: &&RequestRow| match row.state {
            RequestState::RetryPending | RequestState::RetryWaiting => true,
            RequestState::DeadPending | RequestState::Dead => true,
            RequestState::Accepted | RequestState::Writing | RequestState::Final => false,
        };
        let asks = |row: &RequestRow, call: &RecoveredWrite| {
            let same = row.write.as_ref().is_some_and(|write| (write.to, write.value) == (call.to, call.value));
            same && row.data_hash == Some(call.data_hash)
        };
        let foreign = writes.iter().filter(|call| self.recovery.is_none() && !self.is_own(account, call));
        let failed = |call: &RecoveredWrite| self.requests.values().filter(is_failed).find(|row| asks(row, call));
        let (call, row) = foreign.filter_map(|call| Some((call, failed(call)?))).next()?;
        let place = (call.tx_hash, call.nonce, call.block_number);
        Some(failed_text(row.id.as_str(), row.state.as_str(), place))
    }

    /// The journal has signed it itself.
    fn is_own(&self, account: AccountId, call: &RecoveredWrite) -> bool {
        let known = self.transactions.get(&(account, call.nonce));
        known.is_some_and(|row| row.signed.iter().any(|stored| stored.attempt.raw.hash == call.tx_hash))
    }

    pub(crate) fn record_behind(&mut self, lease: &Lease, detail: String) -> Result<()> {
        self.held(lease)?;
        self.behind.get_or_insert(detail);
        Ok(())
    }

    pub(crate) fn standing(&self, account: AccountId) -> Result<AccountStanding> {
        let row = self.accounts.get(&account).ok_or_else(|| refused("read an account", "no such account"))?;
        Ok(AccountStanding { next_nonce: row.next_nonce, foreign_below: row.foreign_below })
    }

    pub(crate) fn other_nonces(&self, now: Timestamp, account: AccountId) -> Vec<(Address, Nonce)> {
        let there = self.instances.values().filter(|row| row.is_there(now));
        let worked: BTreeSet<_> = there.flat_map(|row| row.instance.accounts.iter()).collect();
        let chain = self.accounts.get(&account).map(|row| row.chain_id);
        let others = self
            .accounts
            .iter()
            .filter(|(id, row)| **id != account && Some(row.chain_id) == chain && worked.contains(id));
        others.filter_map(|(_, row)| Some((row.address, row.next_nonce?))).collect()
    }

    /// After something was written under this lease.
    pub(crate) fn note_epoch(&mut self, lease: &Lease) {
        if self.accounts.get(&lease.account).is_none_or(|row| row.epoch != lease.epoch) {
            self.record.late_writes.push(lease.clone());
        }
    }

    pub(crate) fn raise_next_nonce(&mut self, lease: &Lease, at_least: Nonce) -> Result<Nonce> {
        fits("a nonce", at_least.0)?;
        let row = self.held(lease)?;
        let next = row.next_nonce.map_or(at_least, |next| next.max(at_least));
        row.next_nonce = Some(next);
        Ok(next)
    }

    pub(crate) fn admit(&mut self, now: Timestamp, arrivals: Vec<Arrival>) -> Result<Vec<Verdict>> {
        let mut met: BTreeMap<RequestId, Known> = BTreeMap::new();
        let mut verdicts = Vec::with_capacity(arrivals.len());
        for arrival in &arrivals {
            let known = met.get(&arrival.id).copied().or_else(|| self.known(&arrival.id));
            let verdict =
                arrival::decide(known.as_ref(), arrival.generation, arrival.body_hash, arrival.write.is_some());
            if known.is_none() && !self.accounts.contains_key(&arrival.account) {
                return Err(refused("admit a request", format!("there is no account {}", arrival.account)));
            }
            if verdict == Verdict::Accept {
                let (generation, body_hash) = (arrival.generation, arrival.body_hash);
                met.insert(arrival.id.clone(), Known { state: RequestState::Accepted, generation, body_hash });
            }
            verdicts.push(verdict);
        }
        for (arrival, _) in arrivals.into_iter().zip(&verdicts).filter(|(_, verdict)| **verdict == Verdict::Accept) {
            self.accept(now, arrival);
        }
        Ok(verdicts)
    }

    fn accept(&mut self, now: Timestamp, arrival: Arrival) {
        let Arrival { id, generation, body_hash, message, account, order_key, not_after, route, write } = arrival;
        let Properties { reply_to, correlation_id, .. } = message.properties.clone();
        let reply = ReplyAddress { reply_to, correlation_id };
        let trace = TraceContext::read_from(&message.headers);
        let turn = self.take_turn();
        let order = order_key.map(|key| (key, turn));
        self.record.admitted.insert(id.clone());
        let Some(row) = self.seqs.get(&id).and_then(|seq| self.requests.get_mut(seq)) else {
            let row = RequestRow::new(id, account, generation, body_hash, now);
            let message = Some(message);
            let data_hash = write.as_ref().map(|write| write.data_hash(body_hash));
            self.add_request(RequestRow {
                data_hash,
                turn,
                order,
                message,
                write,
                not_after,
                route,
                reply,
                trace,
                ..row
            });
            return;
        };
        let is_replay = generation.replay > row.generation.replay;
        if is_replay {
            row.first_failed_at = None;
            row.order = order;
        }
        row.state = row.state.next(Observation::Accepted).expect("only what may be accepted is");
        (row.generation, row.turn, row.body_hash, row.message) = (generation, turn, body_hash, Some(message));
        if is_replay {
            (row.not_after, row.route, row.account) = (not_after, route, account);
        }
        if is_replay || row.write.is_none() {
            row.data_hash = write.as_ref().map(|write| write.data_hash(body_hash));
            row.write = write;
        }
        (row.reply, row.trace) = (reply, trace);
        (row.settled_at, row.is_lost, row.is_given_up) = (None, false, false);
        (row.changed_at, row.accepted_at) = (now, now);
        row.note(now, if is_replay { "replayed" } else { "returned" }, format!("accepted as attempt {generation}"));
    }

    pub(super) fn take_turn(&mut self) -> i64 {
        self.last_turn += 1;
        self.last_turn
    }

    /// Like a database's row numbers: one above the highest there is, so that a forgotten request's number comes again.
    pub(super) fn add_request(&mut self, row: RequestRow) {
        let seq = RequestSeq(self.requests.last_key_value().map_or(0, |(last, _)| last.0) + 1);
        self.seqs.insert(row.id.clone(), seq);
        self.requests.insert(seq, row);
    }

    pub(crate) fn record_transactions(
        &mut self,
        (now, true_now_us): (Timestamp, i64),
        lease: &Lease,
        transactions: Vec<NewTransaction>,
        limits: Limits,
    ) -> Result<Granted> {
        let next = self.held(lease)?.next_nonce;
        let transactions: Vec<_> = transactions.iter().take(self.before_held(&transactions)).cloned().collect();
        let Some(first) = transactions.first() else { return Ok(Granted { count: 0, throttled: None }) };
        let is_in_order = transactions.iter().zip(first.nonce.0..).all(|(new, nonce)| new.nonce.0 == nonce);
        if !is_in_order || next != Some(first.nonce) {
            return Err(refused("take nonces", format!("{} and on are not the next nonces", first.nonce)));
        }
        let mut seen = BTreeSet::new();
        for new in &transactions {
            self.check_new(lease, new)?;
            if !new.requests.iter().all(|request| seen.insert(*request)) {
                return Err(refused("sign for a request", "it would have two nonces"));
            }
        }
        if self.behind.is_some() {
            return Ok(Granted { count: 0, throttled: None });
        }
        let granted = self.take(true_now_us, lease.account, &transactions, limits);
        for new in transactions.into_iter().take(granted.count) {
            self.add_transaction(now, lease.account, new);
        }
        Ok(granted)
    }

    fn check_new(&self, lease: &Lease, new: &NewTransaction) -> Result<()> {
        for request in new.requests.iter() {
            let row = self.requests.get(request).filter(|row| row.account == lease.account);
            let row = row.ok_or_else(|| refused("sign for a request", "the lane has no such request"))?;
            if row.state.next(Observation::Signed).is_none() || self.has_effect(row) || self.is_held(row) {
                return Err(refused("sign for a request that is not queued", row.state.as_str()));
            }
        }
        if new.requests.is_batch() != new.data.is_some() {
            return Err(refused("store a batch", "it has no calldata, or what is none has"));
        }
        fits("the next nonce", new.nonce.0.saturating_add(1))?;
        fits("gas", new.gas.0)?;
        if new.gas.0 == 0 {
            return Err(refused("sign for a request", "without gas"));
        }
        check_attempt(&new.signed)
    }

    fn add_transaction(&mut self, now: Timestamp, account: AccountId, new: NewTransaction) {
        let held: Vec<_> = new.requests.iter().filter(|request| self.is_on_hold(**request)).collect();
        let held =
            held.into_iter().filter_map(|request| Some(self.requests.get(request)?.id.clone())).collect::<Vec<_>>();
        self.record.signed_on_hold.extend(held);
        for request in new.requests.iter() {
            let row = self.requests.get_mut(request).expect("it was checked");
            row.state = row.state.next(Observation::Signed).expect("it was checked");
            row.changed_at = now;
            row.nonces.push((account, new.nonce));
        }
        let NewTransaction { requests, nonce, to, value, data, gas, signed, l1_fee: _ } = new;
        let state = TransactionState::Live;
        let created_at = signed.signed_at;
        let row = TransactionRow {
            requests,
            state,
            to,
            value,
            data,
            gas,
            created_at,
            included: None,
            reorged_at: None,
            signed: Vec::new(),
        };
        self.transactions.insert((account, nonce), row);
        self.add_attempt(account, nonce, signed);
        self.accounts.get_mut(&account).expect("it was checked").next_nonce = Some(nonce.plus(1));
    }

    pub(crate) fn record_replacements(&mut self, lease: &Lease, signed: Vec<(Nonce, SignedTransaction)>) -> Result<()> {
        self.held(lease)?;
        for (nonce, attempt) in &signed {
            let row = self.transactions.get(&(lease.account, *nonce));
            if row.is_none_or(|row| row.state != TransactionState::Live) {
                return Err(refused("sign again at a nonce that is not live", nonce.to_string()));
            }
            check_attempt(attempt)?;
        }
        for (nonce, attempt) in signed {
            self.add_attempt(lease.account, nonce, attempt);
        }
        Ok(())
    }

    fn add_attempt(&mut self, account: AccountId, nonce: Nonce, attempt: SignedTransaction) {
        let row = self.transactions.get_mut(&(account, nonce)).expect("it was checked");
        let id_of = |request| self.requests.get(request).expect("a transaction has its requests").id.clone();
        let (requests, signed) = (row.requests.iter().map(id_of).collect(), attempt.raw.clone());
        self.record.signed.push(SignedRecord {
            account,
            requests,
            nonce,
            kind: attempt.purpose,
            signed,
            fee: attempt.fee,
        });
        self.last_attempt += 1;
        row.signed.push(StoredAttempt { place: self.last_attempt, attempt });
    }

    /// The account, if the lease on it still holds. A lease that has run out holds until somebody else takes it.
    pub(super) fn held(&mut self, lease: &Lease) -> Result<&mut AccountRow> {
        let holds = |row: &&mut AccountRow| row.owner.as_ref() == Some(&lease.owner) && row.epoch == lease.epoch;
        let lost = JournalError::LeaseLost { account: lease.account };
        self.accounts.get_mut(&lease.account).filter(holds).ok_or(lost)
    }
}

impl InstanceRow {
    fn is_there(&self, now: Timestamp) -> bool {
        self.attended_at > now.before(self.ttl) && self.attended_at < now.after(self.ttl)
    }
}

impl RequestRow {
    pub(super) fn new(
        id: RequestId,
        account: AccountId,
        generation: Generation,
        body_hash: BodyHash,
        now: Timestamp,
    ) -> Self {
        Self {
            id,
            refused_id: None,
            is_refused: false,
            account,
            state: RequestState::Accepted,
            generation,
            turn: 0,
            order: None,
            body_hash,
            message: None,
            write: None,
            data_hash: None,
            not_after: None,
            route: String::new(),
            is_alone: false,
            reply: ReplyAddress::default(),
            trace: None,
            received_at: now,
            accepted_at: now,
            changed_at: now,
            settled_at: None,
            is_lost: false,
            is_given_up: false,
            first_failed_at: None,
            failure: None,
            nonces: Vec::new(),
            incidents: Vec::new(),
        }
    }
}

fn check_attempt(attempt: &SignedTransaction) -> Result<()> {
    if attempt.raw.bytes.is_empty() {
        return Err(refused("store an attempt", "it has no bytes"));
    }
    match attempt.fee {
        Fee::Eip1559 { max_fee, tip } => fits("a fee", max_fee.0).and_then(|()| fits("a tip", tip.0)),
        Fee::Legacy { gas_price } => fits("a gas price", gas_price.0),
    }
}
