//! What must hold, checked against the truth at each step: when bytes go out, when the journal changes, when a copy
//! leaves, when a delivery is acked, and when all is quiet. It trusts neither the program nor what it says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use crate::journal::{AccountId, RequestSeq};
use crate::model::headers::header;
use crate::model::{
    BodyHash, EventKind, Generation, Nonce, Purpose, RawTransaction, Reason, RequestId, RequestState, TransactionState,
    TxHash,
};
use crate::policy::limits::Limits;
use crate::simulation::ledger::{Decoded, Effect};
use crate::simulation::nodes::has_its_hash;
use crate::simulation::queues::{Queued, Taken, text};
use crate::simulation::scopes::Scopes;
use crate::simulation::settings::HIGHEST_FEE;
use crate::simulation::store::{EventRecord, RequestRow, SignedRecord, Store, TransactionRow};
use crate::simulation::workload::{Behaviour, Body};
use crate::simulation::world::World;

/// For so long the lowest nonce may be unknown to every node, once nothing goes wrong any more.
const UNKNOWN_MS: u64 = 30_000;
/// Words about room and order in a pool: they are no reason for a nonce to stay unknown.
const OF_POOLS: [&str; 4] = ["nonce too", "known", "txpool is full", "too distant"];
/// As often a node has to drop a transaction before it may count as refused.
const DROPS: u32 = 3;
/// Answers that are kept of one transaction.
const SAID: usize = 16;
/// A host may be frozen, and its journal or signer slow, between its read of the clock and its commit.
const SIGNED_LATE_MS: u64 = 30_000;
/// Signed transactions of one nonce at most, writes and cancellations each.
const SIGNED_PER_NONCE: usize = 33;
/// The same of fillers, by all terms together.
const FILLERS_PER_GAP: usize = 99;
/// What nodes say in these words is not for a price, nor for a place in the pool.
const REFUSALS: [&str; 5] =
    ["exceeds block gas limit", "type not supported", "stars are wrong", "moon is full", "intrinsic gas too low"];

#[derive(Debug, Default)]
pub(super) struct Checker {
    pub(super) violations: Vec<String>,
    /// Nonces whose end was checked.
    closed: BTreeSet<(AccountId, Nonce)>,
    /// Since when no node has anything at an account's lowest nonce.
    unknown_since: BTreeMap<AccountId, u64>,
    /// Hashes that were in a block at some time, or that a node named in one.
    pub(super) seen_in_blocks: BTreeSet<TxHash>,
    /// Every id that was published, with the bodies that went out under it; a second one is a conflict.
    pub(super) published: BTreeMap<String, Vec<String>>,
    /// How often nodes took a transaction and did not keep it.
    pub(super) dropped: BTreeMap<TxHash, u32>,
    /// What nodes said of a transaction that they did not take.
    said: BTreeMap<TxHash, Vec<String>>,
    /// Of these a node said, or showed, that a higher price would help.
    cheap: BTreeSet<TxHash>,
    /// The highest base fee so far.
    highest_base_fee: u128,
    /// What an operator asked not to be written.
    pub(super) cancelled: BTreeSet<String>,
    /// What goes to a node need not stand in the journal: there is none.
    pub(super) trusts_everybody: bool,
    /// How often an operator sent each back.
    pub(super) replays: BTreeMap<String, u32>,
    /// Some host's clock was set.
    pub(super) clocks_were_set: bool,
    /// Deliveries of messages for a later time that were acked for a copy of the same count, by id and copy.
    postponed: BTreeMap<(String, Generation), usize>,
    /// How many signed transactions were looked at for what they cost.
    paid_for: usize,
    /// Transactions of one lane not in a block at most.
    pub(super) in_flight: usize,
    pub(super) limits: Limits,
    /// Another worker records the same.
    pub(super) has_rival: bool,
    /// An operator holds and releases.
    pub(super) has_operator: bool,
    /// An older copy of the journal came back.
    pub(super) was_restored: bool,
    /// The dead letters that there were then.
    pub(super) dead_before_restore: BTreeSet<(String, Generation)>,
    /// The scope that tells ids apart, in some of the runs.
    pub(super) scopes: Option<Scopes>,
}

impl Checker {
    /// Notes what a node says, or that it takes the transaction.
    pub(super) fn record_answer(&mut self, hash: TxHash, text: Option<&String>) {
        // What is in a pool may be passed over.
        if text.is_none_or(|text| ["underpriced", "known"].iter().any(|word| text.contains(word))) {
            self.cheap.insert(hash);
        }
        if let Some(text) = text {
            let said = self.said.entry(hash).or_default();
            if said.len() < SAID && !said.contains(text) {
                said.push(text.clone());
            }
        }
    }
}

impl World {
    /// Money: nothing is offered above the cap, no nonce is signed for without end, and no more is offered for a write where
    /// nothing says that it would help.
    fn check_money(&mut self, store: &Store) {
        self.checker.highest_base_fee = self.checker.highest_base_fee.max(self.ledger.base_fee);
        let record = store.record();
        let newest = record.signed.get(self.checker.paid_for..).unwrap_or_default().to_vec();
        self.checker.paid_for = record.signed.len();
        for SignedRecord { account, nonce, kind, signed, fee, .. } in newest {
            if fee.ceiling().0 > HIGHEST_FEE {
                self.violated(format!("money: {} offers {}", signed.hash, fee.ceiling()));
            }
            if kind == Purpose::Write {
                self.check_lifetimes(store, signed.hash);
            }
            let of_nonce = record.signed.iter().filter(|other| (other.account, other.nonce) == (account, nonce));
            let of_kind: Vec<_> = of_nonce.filter(|other| other.kind == kind).collect();
            if of_kind.len() > SIGNED_PER_NONCE {
                self.violated(format!("money: {} transactions are signed for nonce {nonce}", of_kind.len()));
            }
            let before = of_kind.len().checked_sub(2).and_then(|index| of_kind.get(index));
            let Some(before) = before.filter(|before| kind == Purpose::Write && before.fee.ceiling() < fee.ceiling())
            else {
                continue;
            };
            let is_passed_over = |hash| {
                let known = self.ledger.known.get(&hash);
                known.is_some_and(|known| Body::any(&known.data, Behaviour::Unmined))
            };
            let helps = record.bumped.contains(&signed.hash)
                || is_passed_over(before.signed.hash)
                || self.checker.cheap.contains(&before.signed.hash)
                || self.checker.dropped.contains_key(&before.signed.hash)
                || before.fee.ceiling().0 < self.checker.highest_base_fee * 9 / 8;
            if !helps {
                self.violated(format!(
                    "money: {} offers more than {}, and nothing said that it helps",
                    signed.hash, before.signed.hash
                ));
            }
        }
        let mut fillers: BTreeMap<_, usize> = BTreeMap::new();
        for filler in &record.fillers {
            *fillers.entry((filler.account, filler.nonce)).or_default() += 1;
        }
        if let Some(((_, nonce), count)) = fillers.into_iter().find(|(_, count)| *count > FILLERS_PER_GAP) {
            self.violated(format!("money: {count} fillers are signed for nonce {nonce}"));
        }
    }

    /// Nothing is signed for a request whose time is over, unless something was signed for it before.
    fn check_lifetimes(&mut self, store: &Store, hash: TxHash) {
        let (now, signed) = (self.now_ms(), &store.record().signed);
        let Some(newest) = signed.iter().find(|signed| signed.signed.hash == hash) else { return };
        let is_late = |id: &String| {
            let is_over = |text: &String| match Body::read(text.as_bytes()).map(|body| body.behaviour) {
                Some(Behaviour::Until(end)) => end + SIGNED_LATE_MS < now,
                _ => false,
            };
            self.checker.published.get(id).is_some_and(|bodies| bodies.iter().all(is_over))
        };
        let late = self.checker.published.keys().filter(|id| newest.is_for(id) && is_late(id));
        let new = late.filter(|id| signed.iter().filter(|signed| signed.is_for(id)).count() == 1);
        let found: Vec<_> = new.filter(|_| !self.checker.clocks_were_set).cloned().collect();
        for id in found {
            self.violated(format!("8: {id} is signed at {now} ms, and its time was over before"));
        }
    }

    /// How often nodes refused the request for a reason that is not its own.
    fn times_refused(&mut self, id: &str) -> usize {
        self.with_store(|world, store| {
            let own = store.record().signed.iter().filter(|signed| signed.is_for(id));
            let said = own.filter_map(|signed| world.checker.said.get(&signed.signed.hash)).flatten();
            said.filter(|text| REFUSALS.iter().any(|word| text.contains(word))).count()
        })
    }

    /// A letter says what nodes said, or that they dropped it.
    fn check_words(&mut self, id: &str, detail: &str) {
        let is_said = self.with_store(|world, store| {
            let mut own = store.record().signed.iter().filter(|signed| signed.is_for(id));
            own.any(|signed| {
                let said = world.checker.said.get(&signed.signed.hash);
                said.is_some_and(|said| said.iter().any(|text| detail.contains(text.as_str())))
            })
        });
        let is_of_no_words = ["dropped it each time", "blocks passed it over", "failed at this transaction each time"];
        if !is_said && !is_of_no_words.iter().any(|words| detail.contains(words)) {
            self.violated(format!("{id} is refused, and its letter says: {detail}"));
        }
    }

    fn with_store<T>(&mut self, look: impl FnOnce(&mut Self, &Store) -> T) -> T {
        let store = self.store();
        let store = store.lock().unwrap_or_else(PoisonError::into_inner);
        look(self, &store)
    }

    /// Invariants 1 and 5: what goes to a node stands in the journal.
    pub(super) fn check_broadcast(&mut self, transactions: &[RawTransaction]) {
        self.with_store(|world, store| {
            for signed in transactions {
                let record = store.record();
                let is_stored = record.signed.iter().chain(&record.fillers).any(|stored| stored.signed == *signed);
                if !(is_stored || world.checker.trusts_everybody) || !has_its_hash(signed) {
                    world.violated(format!("1, 5: {} goes out and is not in the journal", signed.hash));
                }
                world.check_order(store, signed);
            }
        });
    }

    /// What goes out under strict ordering has none of its key before it that has not ended. Bytes of a nonce that is over
    /// may go out late: they do nothing.
    fn check_order(&mut self, store: &Store, signed: &RawTransaction) {
        let mut live = store.transactions().values().filter(|row| row.state == TransactionState::Live);
        let is_it = |row: &&TransactionRow| row.signed.iter().any(|stored| stored.attempt.raw == *signed);
        let requests: Vec<_> = live.find(is_it).into_iter().flat_map(|row| row.requests.iter().copied()).collect();
        for row in requests.iter().filter_map(|request| store.requests().get(request)) {
            self.check_order_of(store, row);
        }
    }

    fn check_order_of(&mut self, store: &Store, row: &RequestRow) {
        let Some((key, place)) = row.order else { return };
        let has_ended = |row: &RequestRow| matches!(row.state, RequestState::Final | RequestState::Dead);
        let of_key = store.requests().values().filter(|other| other.order.is_some_and(|(other, _)| other == key));
        let before = of_key.filter(|other| other.order.is_some_and(|(_, before)| before < place));
        if let Some(open) = before.into_iter().find(|other| !has_ended(other)) {
            self.violated(format!("order: {} goes out before {}, which is {}", row.id, open.id, open.state));
        }
    }

    /// Invariants 2, 3, 4, 6, 11 and 12, as far as the journal tells; after every write.
    pub(super) fn check_journal(&mut self) {
        self.with_store(|world, store| {
            if let Some(lease) = store.record().late_writes.first() {
                world.violated(format!("2, 4: {} writes under epoch {}, which is over", lease.owner, lease.epoch));
            }
            for (account, row) in store.accounts() {
                let nonces: Vec<u64> = nonces_of(store, *account).map(|nonce| nonce.0).collect();
                let next = row.next_nonce.map_or(0, |nonce| nonce.0);
                let took_last = |decoded: &Decoded| decoded.sender == row.address && decoded.nonce.0 + 1 == next;
                let is_taken = next == 0 || nonces.last().is_some_and(|last| last + 1 == next);
                if !is_taken && !world.ledger.known.values().any(took_last) {
                    world.violated(format!("15: the next nonce is {next}, and no transaction has the one before"));
                }
                if nonces.last().is_some_and(|last| *last >= next) {
                    world.violated(format!("4: nonce {:?} is taken and the next is {next}", nonces.last()));
                }
            }
            let is_strange =
                |row: &&RequestRow| !row.is_refused && !world.checker.published.contains_key(row.id.as_str());
            if let Some(strange) = store.requests().values().find(is_strange) {
                world.violated(format!("11: {} is taken in, and no producer has published it", strange.id));
            }
            if let Some(held) = store.record().signed_on_hold.first() {
                world.violated(format!("hold: {held} is signed while an operator holds it"));
            }
            world.check_money(store);
            let mut effects: BTreeMap<RequestSeq, usize> = BTreeMap::new();
            for ((account, nonce), row) in store.transactions() {
                for request in row.requests.iter().copied().filter(|_| row.state.has_effect()) {
                    *effects.entry(request).or_default() += 1;
                }
                if row.state != TransactionState::Live && !world.checker.closed.contains(&(*account, *nonce)) {
                    world.checker.closed.insert((*account, *nonce));
                    world.check_closed(store, *account, *nonce, row.state);
                }
            }
            if let Some((request, count)) = effects.into_iter().find(|(_, count)| *count > 1) {
                world.violated(format!("3, 11: request {request:?} has {count} transactions that may land"));
            }
            // What the chain has decided on is the lane's no more, even if settle has yet to say so.
            if let Err(passed) = within_limits(store, world.checker.limits) {
                world.violated(format!("12: {passed}"));
            }
            let is_open = |((account, nonce), row): &(&(AccountId, Nonce), &TransactionRow)| {
                let was_seen = |hash| world.checker.seen_in_blocks.contains(&hash);
                row.state == TransactionState::Live
                    && !row.signed.iter().any(|stored| was_seen(stored.attempt.raw.hash))
                    && world.ledger.final_at(store.accounts()[account].address, *nonce).is_none()
            };
            let open = store.transactions().iter().filter(is_open).count();
            if open > world.checker.in_flight {
                world.violated(format!(
                    "12: {open} transactions are in no block, {} are allowed",
                    world.checker.in_flight
                ));
            }
        });
    }

    /// Invariants 2, 3 and 6: a nonce ends as the chain says, at finality.
    fn check_closed(&mut self, store: &Store, account: AccountId, nonce: Nonce, state: TransactionState) {
        let address = store.accounts()[&account].address;
        let ours: Vec<_> =
            store.record().signed.iter().filter(|stored| stored.account == account && stored.nonce == nonce).collect();
        let Some((hash, succeeded)) = self.ledger.final_at(address, nonce) else {
            self.violated(format!("2, 6: nonce {nonce} is closed as {} and is not final", state.as_str()));
            return;
        };
        let kind = ours.iter().find(|stored| stored.signed.hash == hash).map(|stored| stored.kind);
        let truth = match (kind, succeeded) {
            (Some(Purpose::Write), true) => TransactionState::Succeeded,
            (Some(Purpose::Write), false) => TransactionState::Reverted,
            (Some(Purpose::Cancel), _) => TransactionState::Cancelled,
            (None, _) => TransactionState::Displaced,
        };
        if truth != state {
            self.violated(format!("2, 3, 6: nonce {nonce} is closed as {} and is {}", state.as_str(), truth.as_str()));
        }
    }

    /// Invariant 11, on the chain itself; after every block.
    pub(super) fn check_chain(&mut self) {
        // A reorganisation makes at most some blocks at once.
        let newest = self.ledger.chain.iter().rev().take(8).flat_map(|block| &block.transactions);
        self.checker.seen_in_blocks.extend(newest.map(|(hash, _)| *hash));
        for (id, effects) in self.ledger.effects() {
            // Another body under the id of a request that a restored journal lacks is a new request: the chain has no ids.
            let bodies: BTreeSet<_> = effects.iter().map(|effect| &effect.text).collect();
            let most = if self.checker.was_restored { bodies.len() } else { 1 };
            if effects.len() > most {
                self.violated(format!("11: {id} is in the chain {} times", effects.len()));
            }
        }
    }

    /// Invariants 8 and 10: a copy that leaves says the truth.
    pub(super) fn check_copy(&mut self, taken: Taken, copy: &Queued) {
        let id = copy.id().to_owned();
        let class = text(&copy.message, header::ERROR_CLASS).to_owned();
        let reason = text(&copy.message, header::ERROR_REASON).to_owned();
        let replays = self.checker.replays.get(&id).copied().unwrap_or(0);
        if copy.generation().replay > replays && !self.checker.was_restored {
            self.violated(format!("16: {id} says that it was sent back, and its producer made that up"));
        }
        self.note(format!("the broker takes {id} {} {taken:?} {class}.{reason}", copy.generation()));
        if let Some(found) = self.checker.scopes.as_ref().and_then(|scopes| scopes.other_id(&copy.message)) {
            self.violated(format!("11: a copy of {id} says that it is {found}"));
        }
        let behaviour = Body::read(&copy.message.body).map_or(Behaviour::Runs, |body| body.behaviour);
        let is_conflict = is_conflict(copy);
        // A parked copy still says what an earlier one failed for.
        let is_parked = taken == Taken::ToWait && copy.generation().retry == 0;
        let is_cancelled = reason == "cancelled" && self.checker.cancelled.contains(&id);
        // What nodes take and drop again and again looks like something that they will never keep.
        let is_dropped = reason == "refused_by_node" && self.times_dropped(&id) >= DROPS;
        let is_refused = reason == "refused_by_node" && self.times_refused(&id) > 0;
        // One that is published again, or given back for a while, says what it said when it was published first.
        let is_other = |(before, known): &(Taken, Queued)| {
            *before != taken || known.id() != id || known.generation() != copy.generation()
        };
        let has_failed = taken == Taken::Dead || copy.generation().retry > 0;
        let is_new = has_failed && self.queues.taken.iter().all(is_other);
        let is_early = match behaviour {
            Behaviour::Until(end) => self.now_ms() < end && !self.checker.clocks_were_set,
            _ => true,
        };
        if reason == Reason::Expired.as_str() && is_early && is_new {
            self.violated(format!("8: {id} is a dead letter as too old, and it is not"));
        }
        if reason == "refused_by_node" && is_new {
            let detail = text(&copy.message, header::ERROR_DETAIL).to_owned();
            self.check_words(&id, &detail);
        }
        // Another may keep a record under the id, or have kept one for a while. Nodes may not name that as the reason.
        let is_taken = matches!(reason.as_str(), "already_recorded" | "reverted") && self.checker.has_rival;
        let may_fail = behaviour.may_fail() || is_cancelled || is_dropped || is_refused || is_taken;
        let is_false = class == "unavailable" || (class == "rejected" && !may_fail);
        if is_false && !is_parked && is_new {
            self.violated(format!("10: {id} becomes {taken:?} for {class}.{reason}"));
        }
        if taken == Taken::Dead && !is_conflict {
            self.with_store(|world, store| world.check_dead(store, copy));
        }
    }

    /// One of our accounts has done it.
    fn is_ours(&self, effects: Option<&Vec<Effect>>, store: &Store) -> bool {
        let is_ours = |effect: &Effect| store.accounts().values().any(|row| row.address == effect.sender);
        effects.is_some_and(|effects| effects.iter().any(is_ours))
    }

    fn times_dropped(&mut self, id: &str) -> u32 {
        self.with_store(|world, store| {
            let own = store.record().signed.iter().filter(|signed| signed.is_for(id));
            own.filter_map(|signed| world.checker.dropped.get(&signed.signed.hash)).sum()
        })
    }

    fn check_dead(&mut self, store: &Store, copy: &Queued) {
        let id = copy.id();
        let row = RequestId::new(id).ok().and_then(|id| store.ever(&id));
        // A dead letter that arrives late, after its replay was taken in: the replay's transactions are not its own.
        if row.is_none_or(|row| row.generation.replay > copy.generation().replay || is_other_and_old(row, copy)) {
            return;
        }
        // One that an older copy of the journal has yet to publish. What became of it since then, the copy does not know.
        let is_it = |(taken, known): &&(Taken, Queued)| {
            *taken == Taken::Dead && known.id() == id && known.generation() == copy.generation()
        };
        if self.checker.was_restored && self.queues.taken.iter().any(|taken| is_it(&taken)) {
            return;
        }
        let signed = store.record().signed.iter().filter(|stored| stored.is_for(id));
        let nonces: BTreeSet<_> = signed.map(|stored| (stored.account, stored.nonce)).collect();
        for (account, nonce) in nonces {
            let address = store.accounts()[&account].address;
            if self.ledger.final_at(address, nonce).is_none() {
                self.violated(format!("8: {id} is a dead letter and its nonce {nonce} is open"));
            }
        }
        let mut effects = self.ledger.effects().remove(id).unwrap_or_default();
        // An older copy of the journal does not know that it was a dead letter before, and was edited.
        if self.checker.was_restored {
            effects.retain(|effect| effect.text.as_bytes() == copy.message.body);
        }
        if self.is_ours(Some(&effects), store) {
            self.violated(format!("8: {id} is a dead letter and is in the chain"));
        }
    }

    /// Invariant 7: what the broker may forget is safe elsewhere, and the journal knows it.
    pub(super) fn check_ack(&mut self, acked: &Queued) {
        if acked.is_passage() {
            return;
        }
        self.note(format!("acked {} {}", acked.id(), acked.generation()));
        let is_safe = self.with_store(|world, store| world.is_safe(store, acked));
        if let Err(why) = is_safe
            && !self.is_postponed(acked)
        {
            self.violated(format!("7: {} {} is acked: {why}", acked.id(), acked.generation()));
        }
    }

    /// Each such ack needs a copy of its own, which comes again. What an operator holds may wait at the broker, too.
    fn is_postponed(&mut self, acked: &Queued) -> bool {
        let has_operator = self.checker.has_operator;
        let is_copy = |(taken, copy): &&(Taken, Queued)| {
            *taken == Taken::ToWait
                && (has_operator || copy.message.headers.contains_key(header::NOT_BEFORE))
                && (copy.id(), copy.generation()) == (acked.id(), acked.generation())
        };
        let copies = self.queues.taken.iter().filter(is_copy).count();
        let acks = self.checker.postponed.entry((acked.id().to_owned(), acked.generation())).or_default();
        *acks += 1;
        *acks <= copies
    }

    /// Nobody's clock says that it is time for what is for later.
    pub(super) fn check_time(&mut self, body: &Body) {
        if let Behaviour::Later(begin) = body.behaviour
            && !self.checker.clocks_were_set
            && self.now_ms() < begin
        {
            self.violated(format!("{} is for {begin} ms or later and goes out", body.id));
        }
    }

    fn is_safe(&self, store: &Store, acked: &Queued) -> Result<(), &'static str> {
        let (generation, body) = (acked.generation(), &acked.message.body);
        let copies = || {
            let same = |(_, copy): &&(Taken, Queued)| copy.id() == acked.id() && copy.message.body == *body;
            self.queues.taken.iter().filter(same)
        };
        let is_refused = copies().any(|(taken, copy)| *taken == Taken::Dead && copy.generation() == generation);
        let row = RequestId::new(acked.id()).ok().and_then(|id| store.ever(&id));
        let Some(row) = row else { return if is_refused { Ok(()) } else { Err("nobody knows it") } };
        let is_replayed = row.generation.replay > generation.replay;
        if row.body_hash != BodyHash::of(body) && !is_replayed {
            return if is_refused { Ok(()) } else { Err("its other body is in no queue") };
        }
        if row.state == RequestState::Final {
            let is_told = |event: &EventRecord| event.subject == row.id && event.kind == EventKind::Final;
            let is_told = store.record().events.values().any(is_told);
            return if is_told { Ok(()) } else { Err("its event is not in the outbox") };
        }
        // An older copy of the journal has not counted the last tries: its dead letter may be that of an earlier one.
        let ended = if self.checker.was_restored { generation.min(row.generation) } else { generation };
        let is_later = |(taken, copy): &(Taken, Queued)| match taken {
            Taken::ToWait => copy.generation() > generation,
            Taken::Dead => copy.generation() >= ended,
        };
        let is_parked = copies().any(|(taken, copy)| *taken == Taken::ToWait && copy.generation() == generation)
            && row.incidents.iter().any(|incident| incident.what == "parked");
        if !copies().any(is_later) && !is_parked && !is_replayed {
            return Err("no later copy of it is at the broker");
        }
        // The retry that follows this copy may be at the broker, and the journal not know it yet.
        let is_awaited = row.state == RequestState::RetryPending && row.generation == generation.next_retry();
        let is_noted = row.state.is_settled() || is_parked || (row.generation > generation && !is_awaited);
        if is_noted { Ok(()) } else { Err("the journal does not know of its copy") }
    }

    /// Invariant 17: what pools have dropped, or had no room for, goes out again soon, lowest nonce first. At each tick, once
    /// nothing goes wrong any more.
    pub(super) fn check_known(&mut self) {
        // An operator is slow, where a lane waits for one.
        if self.checker.was_restored {
            return;
        }
        let now = self.now_ms();
        self.with_store(|world, store| {
            for (account, row) in store.accounts() {
                let lowest = world.ledger.nonce(row.address);
                let live = store.transactions().get(&(*account, lowest));
                let live = live.filter(|live| live.state == TransactionState::Live);
                let is_refused = |live: &TransactionRow| {
                    let mut said = live.signed.iter().filter_map(|own| world.checker.said.get(&own.attempt.raw.hash));
                    said.any(|said| said.iter().any(|text| !OF_POOLS.iter().any(|word| text.contains(word))))
                };
                let is_known = world.ledger.pool.contains_key(&(row.address, lowest));
                if is_known || live.is_none_or(is_refused) {
                    world.checker.unknown_since.remove(account);
                    continue;
                }
                let since = *world.checker.unknown_since.entry(*account).or_insert(now);
                if now - since > UNKNOWN_MS {
                    world.violated(format!("17: no node has anything at nonce {lowest}, the lowest, since {since}"));
                }
            }
        });
    }

    /// Invariant 13: nothing is away any more, so no request waits longer for what other requests ask. An operator's limits
    /// may make one wait.
    pub(super) fn check_patience(&mut self) {
        // An operator is slow, too, where a lane waits for one.
        if !self.checker.limits.is_none() || self.checker.was_restored {
            return;
        }
        self.with_store(|world, store| {
            for row in store.requests().values().filter(|row| !row.state.is_settled()) {
                let first = world.checker.published.get(row.id.as_str()).and_then(|texts| texts.first());
                let body = first.and_then(|text| Body::read(text.as_bytes()));
                if body.is_some_and(|body| body.behaviour == Behaviour::Runs) {
                    world.violated(format!("13: {} is {} long after the storm", row.id, row.state));
                }
            }
        });
    }

    /// Everything, once nothing moves any more.
    pub(super) fn check_end(&mut self) {
        self.with_store(|world, store| {
            world.check_accounts(store);
            let effects = world.ledger.effects();
            for (id, bodies) in world.checker.published.clone() {
                let written = effects.get(&id);
                if world.checker.was_restored {
                    world.check_after_restore(&id, written);
                    continue;
                }
                let Some(row) = RequestId::new(&id).ok().and_then(|id| store.ever(&id)) else {
                    let is_too_old = |dead: &Queued| dead.id() == id && is_expired(dead);
                    if !world.queues.dead.iter().any(is_too_old)
                        && !world.queues.given_up.has(|letter| letter.id() == id)
                    {
                        world.violated(format!("lost: {id} is unknown"));
                    }
                    continue;
                };
                let own = |dead: &&Queued| {
                    let is_conflict = is_conflict(dead) || is_other_and_old(row, dead);
                    dead.id() == id && !is_conflict && dead.generation().replay >= row.generation.replay
                };
                let dead = world.queues.dead.iter().any(|copy| own(&copy));
                let clocks_were_set = world.checker.clocks_were_set;
                let fits = match row.state {
                    // By whomever: a record may be another's.
                    RequestState::Final => written.is_some_and(|written| is_of(row, written)) && !dead,
                    // With clocks that were wrong, a retry may come after all, and is acked.
                    RequestState::Dead if row.is_given_up => {
                        !world.is_ours(written, store) && world.checker.cancelled.contains(&id) && clocks_were_set
                    }
                    RequestState::Dead => !world.is_ours(written, store) && dead,
                    _ => false,
                };
                if !fits {
                    let state = row.state;
                    world.violated(format!("lost or twice: {id} is {state}, {written:?} in the chain, dead: {dead}"));
                }
                for body in bodies.iter().filter(|body| BodyHash::of(body.as_bytes()) != row.body_hash) {
                    let mut copies = world.queues.taken.iter().filter(|(taken, _)| *taken == Taken::Dead);
                    let is_given_up = world.queues.given_up.has(|letter| letter.message.body == body.as_bytes());
                    if !is_given_up && !copies.any(|(_, copy)| copy.message.body == body.as_bytes()) {
                        world.violated(format!("lost: {body} is no dead letter"));
                    }
                }
            }
            if !world.checker.was_restored {
                world.check_events(store);
            }
        });
    }

    /// What an older copy of the journal knows of states and events may be old. What is in the chain and at the broker is not.
    fn check_after_restore(&mut self, id: &str, written: Option<&Vec<Effect>>) {
        let is_dead =
            self.queues.dead.iter().any(|dead| dead.id() == id) || self.queues.given_up.has(|letter| letter.id() == id);
        if written.is_none() && !is_dead {
            self.violated(format!("lost: {id} is not in the chain and no dead letter"));
        }
    }

    fn check_accounts(&mut self, store: &Store) {
        for (account, row) in store.accounts() {
            let (count, next) = (self.ledger.nonce(row.address), row.next_nonce.unwrap_or_default());
            if count < next {
                self.violated(format!("4: {account} has nonce {count} on the chain, {next} in the journal"));
            }
        }
    }

    fn check_events(&mut self, store: &Store) {
        let bodies = self.queues.events.iter().map(|event| serde_json::from_slice::<serde_json::Value>(&event.body));
        let events: Vec<_> = bodies.filter_map(Result::ok).collect();
        for event in events.iter().filter(|event| event["data"]["refused"] != true) {
            let subject = event["subject"].as_str().unwrap_or_default();
            if !self.checker.published.contains_key(subject) {
                self.violated(format!("events: one is about {subject}, which no producer has published"));
            }
        }
        for row in store.requests().values() {
            let final_ids: BTreeSet<_> = events
                .iter()
                .filter(|event| event["subject"] == row.id.as_str())
                .filter(|event| event["type"] == "io.chainwriter.request.final.v1")
                .map(|event| event["id"].to_string())
                .collect();
            let expected = usize::from(row.state == RequestState::Final);
            if final_ids.len() != expected {
                self.violated(format!("{}: {} events say that it is final", row.id, final_ids.len()));
            }
        }
    }
}

/// By the true time at which each was stored. All accounts of a run are on one chain.
fn within_limits(store: &Store, limits: Limits) -> Result<(), String> {
    let begun = &store.record().begun;
    let Some(last) = begun.last() else { return Ok(()) };
    if let Some(rate) = limits.writes_per_second {
        for (count, first) in (1u32..).zip(begun.iter().rev()) {
            let seconds = (last.at_us - first.at_us) as f64 / 1e6;
            if f64::from(count) > f64::from(rate) * (1.0 + seconds) {
                return Err(format!("{count} are begun within {seconds} s, {rate} are allowed for each"));
            }
        }
    }
    if let Some(most) = limits.gas_per_hour {
        let within_hour = begun.iter().rev().take_while(|begun| begun.at_us > last.at_us - 3_600_000_000);
        let gas: u64 = within_hour.map(|begun| begun.gas.0).sum();
        if gas > most.0 {
            return Err(format!("{gas} gas is spent within an hour, {most} is allowed"));
        }
    }
    let live = store.transactions().values().filter(|row| row.state == TransactionState::Live).count() as u64;
    match limits.in_flight.filter(|most| live > *most) {
        Some(most) => Err(format!("{live} are in flight, {most} are allowed")),
        None => Ok(()),
    }
}

/// This once, and nothing else under its id.
fn is_of(row: &RequestRow, effects: &[Effect]) -> bool {
    matches!(effects, [effect] if BodyHash::of(effect.text.as_bytes()) == row.body_hash)
}

/// The message never was its request's: intake refused it. What a lane finds invalid has been taken in.
pub(super) fn is_conflict(dead: &Queued) -> bool {
    let reason = text(&dead.message, header::ERROR_REASON);
    let of_lanes = [Reason::TooLarge, Reason::GasAboveLimit, Reason::Expired];
    let is_of_lanes = of_lanes.iter().any(|of_lanes| of_lanes.as_str() == reason);
    text(&dead.message, header::ERROR_CLASS) == "invalid" && !is_of_lanes
}

fn is_expired(dead: &Queued) -> bool {
    text(&dead.message, header::ERROR_REASON) == Reason::Expired.as_str()
}

/// Returns whether intake found another body than the request's too old.
fn is_other_and_old(row: &RequestRow, dead: &Queued) -> bool {
    is_expired(dead) && BodyHash::of(&dead.message.body) != row.body_hash
}

fn nonces_of(store: &Store, account: AccountId) -> impl Iterator<Item = Nonce> {
    store.transactions().keys().filter(move |(owner, _)| *owner == account).map(|(_, nonce)| *nonce)
}
