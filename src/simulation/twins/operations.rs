//! Random operations: most of them such as the program does, some that no program should.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::journal::{
    AccountId, Acquired, Arrival, ClosedTransaction, ConfirmedCopy, CopyKind, Decision, Hold, HoldScope, Journal,
    Lease, NewTransaction, QueuedRequest, RefusedMessage, RequestSeq, Requeue, Settlement,
};
use crate::model::event::{FinalTransaction, L1Cost, Outcome, Subject};
use crate::model::{
    Address, BlockHash, BlockNumber, BodyHash, Cause, Event, Fee, Gas, GasRule, Generation, Headers, Members, Message,
    Nonce, Order, OrderKey, Properties, Purpose, RawTransaction, Reason, RequestId, SignedTransaction, Timestamp,
    TransactionState, TxHash, Wei, Write,
};
use crate::policy::limits::Limits;
use crate::simulation::store::Store;
use crate::simulation::twins::answer;

/// Few, so that operations meet.
pub(super) const IDS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// Longer than any run.
pub(super) const TTL: Duration = Duration::from_secs(600);

/// Three random bytes that, with what the journal holds, become an operation.
#[derive(Clone, Copy)]
pub(super) struct Pick {
    pub(super) kind: u8,
    pub(super) x: u8,
    pub(super) y: u8,
}

#[derive(Debug, Clone)]
pub(super) enum Operation {
    Acquire(AccountId, Arc<str>, Duration),
    Renew(Lease, Duration),
    Release(Lease),
    RaiseNonce(Lease, Nonce),
    Admit(Vec<Arrival>),
    Sign(Lease, Vec<NewTransaction>),
    SignAgain(Lease, Vec<(Nonce, SignedTransaction)>),
    Settle(Lease, Vec<Settlement>),
    Confirm(Vec<ConfirmedCopy>),
    Refuse(Vec<RefusedMessage>),
    Park(Vec<RequestId>),
    Hold(HoldScope),
    LetGo(HoldScope),
    Sent(Vec<i64>),
    Prune(Timestamp, u32),
}

impl Operation {
    /// A lease that it takes is added to these.
    pub(super) async fn apply(&self, journal: &dyn Journal, leases: &mut Vec<Lease>) -> String {
        let order = Order::new("ann", "because");
        match self.clone() {
            Self::Acquire(account, owner, ttl) => {
                // When it runs out is the clock's business, and each journal is asked a little later.
                let taken = journal.acquire_lease(account, owner, ttl, None).await.map(Acquired::ours);
                leases.extend(taken.iter().flatten().cloned());
                answer(taken)
            }
            Self::Renew(lease, ttl) => answer(journal.renew_lease(&lease, ttl).await),
            Self::Release(lease) => answer(journal.release_lease(&lease).await),
            Self::RaiseNonce(lease, at_least) => answer(journal.raise_next_nonce(&lease, at_least).await),
            Self::Admit(arrivals) => answer(journal.admit(arrivals).await),
            Self::Sign(lease, transactions) => {
                answer(journal.record_transactions(&lease, transactions, Limits::default()).await)
            }
            Self::SignAgain(lease, signed) => answer(journal.record_replacements(&lease, signed).await),
            Self::Settle(lease, settlements) => answer(journal.settle(&lease, settlements).await),
            Self::Confirm(copies) => answer(journal.confirm(copies).await),
            Self::Refuse(messages) => answer(journal.record_refused(messages).await),
            Self::Park(ids) => answer(journal.record_parked(ids).await),
            Self::Hold(scope) => answer(journal.hold(scope, order).await.map(undated)),
            Self::LetGo(scope) => answer(journal.release(scope, order).await.map(undated)),
            Self::Sent(ids) => answer(journal.events_sent(ids).await),
            Self::Prune(before, limit) => answer(journal.prune(before, limit).await),
        }
    }

    /// Whether it has run out shows only some time later, in both alike.
    pub(super) fn lets_a_lease_run_out(&self) -> bool {
        matches!(self, Self::Acquire(_, _, Duration::ZERO) | Self::Renew(_, Duration::ZERO))
    }
}

impl Pick {
    pub(super) fn operation(self, store: &Store, leases: &[Lease]) -> Operation {
        let (x, y) = (usize::from(self.x), usize::from(self.y));
        let any_lease = leases[x % leases.len()].clone();
        let account = AccountId(1 + i64::from(self.x % 2));
        let newest = leases.iter().rfind(|lease| lease.account == account).unwrap_or(&any_lease).clone();
        let ttl = if y.is_multiple_of(8) { Duration::ZERO } else { TTL };
        match self.kind {
            0 => Operation::Acquire(account, ["one", "two"][y % 2].into(), ttl),
            1 if y.is_multiple_of(4) => Operation::Release(any_lease),
            1 if y % 4 == 1 => Operation::Renew(any_lease, ttl),
            1 => Operation::RaiseNonce(any_lease, Nonce(u64::from(self.y) / 24)),
            2 | 3 => Operation::Admit((0..=x % 4).map(|index| self.arrival(store, account, index)).collect()),
            4 | 5 => Operation::Sign(newest, self.due(store, account)),
            6 => Operation::Sign(any_lease, vec![transaction(RequestSeq(i64::from(self.y % 9)), Nonce(x as u64 % 8))]),
            7 => Operation::SignAgain(newest, self.again(store, account)),
            8 | 9 => Operation::Settle(newest, self.ends(store, account)),
            10 => Operation::Settle(any_lease, vec![self.any_settlement()]),
            11 => Operation::Confirm(self.confirms(store, account)),
            12 => Operation::Refuse((0..=x % 2).map(|index| self.refused(account, index)).collect()),
            13 if y.is_multiple_of(3) => self.hold(account),
            13 => Operation::Park(vec![id(x), id(y)]),
            14 => Operation::Sent(vec![i64::from(self.x % 8), i64::from(self.y % 16)]),
            _ if y.is_multiple_of(8) => Operation::Prune(Timestamp(0), 10),
            // Which of the old ones go first is each journal's choice: none or all.
            _ => Operation::Prune(Timestamp(i64::MAX), if self.x.is_multiple_of(4) { 100 } else { 0 }),
        }
    }

    fn hold(self, account: AccountId) -> Operation {
        let scope = match self.x % 8 {
            0 => HoldScope::Everything,
            1..4 => HoldScope::Account(account),
            _ => HoldScope::Route(["x", "y"][usize::from(self.x % 2)].to_owned()),
        };
        if self.y.is_multiple_of(2) { Operation::Hold(scope) } else { Operation::LetGo(scope) }
    }

    /// The first copy, the one that the journal waits for, a later one, or a replay; now and then with another body.
    fn arrival(self, store: &Store, account: AccountId, index: usize) -> Arrival {
        let pick = self.y.wrapping_mul(31).wrapping_add(self.x).rotate_left(index as u32);
        let id = id(usize::from(self.y) + index);
        let known = store.request(&id).map(|row| row.generation).unwrap_or_default();
        let generation = match pick % 8 {
            0 | 1 => Generation::default(),
            2..6 => known,
            6 => known.next_retry(),
            _ => Generation { replay: known.replay + 1, retry: u32::from(pick / 8 % 2) },
        };
        let body = Bytes::from_static(if pick.is_multiple_of(7) { b"other" } else { b"body" });
        let properties = Properties {
            message_id: Some(id.as_str().to_owned()),
            reply_to: pick.is_multiple_of(3).then(|| format!("answers-{pick}")),
            ..Properties::default()
        };
        let body_hash = BodyHash::of(&body);
        let order_key = (pick % 8 > 3).then(|| OrderKey::of(["k", "l"][usize::from(pick % 2)]));
        let trace = format!("00-{:032x}-{:016x}-00", 1, pick);
        let headers =
            Headers::from([("traceparent".to_owned(), trace.into()), ("tracestate".to_owned(), "a=b".into())]);
        let message = Message { body, properties, headers, ..Message::default() };
        let write = (pick % 11 > 1).then(|| Write {
            to: Address([2; 20]),
            value: Wei(u128::from(pick)),
            gas: if pick.is_multiple_of(3) { GasRule::Fixed(Gas(30_000)) } else { GasRule::Estimate { margin: 20 } },
            data: pick.is_multiple_of(2).then(|| Bytes::from_static(b"data")),
            max_fee: pick.is_multiple_of(4).then_some(Wei(u128::from(pick))),
        });
        let not_after = pick.is_multiple_of(5).then(|| Timestamp(pick.into()));
        let route = ["x", "y"][usize::from(pick % 2)].to_owned();
        Arrival { id, generation, body_hash, message, account, order_key, not_after, route, write }
    }

    /// The head of the queue with the nonces that follow.
    fn due(self, store: &Store, account: AccountId) -> Vec<NewTransaction> {
        let next = store.accounts()[&account].next_nonce.unwrap_or_default();
        let queued = store.queued(account, i64::MIN, 1 + u32::from(self.y % 3), &[]);
        let mut new: Vec<_> =
            queued.iter().zip(next.0..).map(|(request, nonce)| transaction(request.seq, Nonce(nonce))).collect();
        if self.x.is_multiple_of(2) && new.len() > 1 {
            let others: Vec<_> = new.drain(1..).map(|other| other.requests.first).collect();
            new[0].data = Some(Bytes::from_static(b"all"));
            new[0].requests.others = others;
        }
        new
    }

    /// At what is live, and now and then at what may not be.
    fn again(self, store: &Store, account: AccountId) -> Vec<(Nonce, SignedTransaction)> {
        let live = store.live_transactions(account).into_iter().map(|live| live.nonce).take(2);
        let other = self.x.is_multiple_of(4).then_some(Nonce(u64::from(self.x / 4 % 16)));
        live.chain(other).map(|nonce| (nonce, attempt(self.y))).collect()
    }

    /// What a lane would rule: on live transactions, and on requests that it could not sign for.
    fn ends(self, store: &Store, account: AccountId) -> Vec<Settlement> {
        let live = store.live_transactions(account).into_iter().take(1 + usize::from(self.x / 2 % 2));
        let live = live.map(|live| {
            let state = match self.y % 6 {
                0 | 1 => TransactionState::Succeeded,
                2 | 5 => TransactionState::Reverted,
                3 => TransactionState::Cancelled,
                _ => TransactionState::Displaced,
            };
            let decision = |request: &QueuedRequest| match self.y % 6 {
                0 | 1 => Decision::Final(event(&request.id, self.y)),
                2 => retry(request.generation),
                3 => dead(),
                4 => Decision::Requeue(Requeue::Displaced(TxHash([77; 32]))),
                _ => Decision::Requeue(Requeue::Isolated(Cause::new(Reason::Reverted, "one of them"))),
            };
            // Now and then one of the batch is forgotten.
            let Members { first, others } = &live.requests;
            let decided = others.len() - usize::from(self.x.is_multiple_of(16) && !others.is_empty());
            let others = others.iter().take(decided).map(|other| (other.seq, decision(other))).collect();
            let decisions = Members { first: (first.seq, decision(first)), others };
            Settlement { transaction: Some(closed(live.nonce, state)), decisions }
        });
        let unsigned = store.queued(account, i64::MIN, u32::from(self.y / 5 % 2), &[]).into_iter().map(|queued| {
            let decision = match self.y % 3 {
                0 => retry(queued.generation),
                1 => dead(),
                _ => found(&queued.id, self.y),
            };
            Settlement { transaction: None, decisions: Members::one((queued.seq, decision)) }
        });
        live.chain(unsigned).collect()
    }

    fn any_settlement(self) -> Settlement {
        let state = TransactionState::ALL[usize::from(self.x) % 5];
        let decision = match self.y % 5 {
            0 => Decision::Final(event(&id(0), self.y)),
            1 => retry(Generation::default()),
            2 => dead(),
            3 => found(&id(0), self.y),
            _ => Decision::Requeue(Requeue::Displaced(TxHash([77; 32]))),
        };
        let transaction = (!self.x.is_multiple_of(3)).then(|| closed(Nonce(u64::from(self.x / 5 % 8)), state));
        let request = |number: u8| RequestSeq(i64::from(number % 9));
        let stray = (self.x.is_multiple_of(4)).then(|| (request(self.x / 7), decision.clone()));
        let others = stray.into_iter().collect();
        Settlement { transaction, decisions: Members { first: (request(self.y / 4), decision), others } }
    }

    /// Those that are due, or one that is not.
    fn confirms(self, store: &Store, account: AccountId) -> Vec<ConfirmedCopy> {
        if self.y.is_multiple_of(4) {
            let request = RequestSeq(i64::from(self.x % 9));
            let kind = if self.x.is_multiple_of(2) { CopyKind::Retry } else { CopyKind::DeadLetter };
            let generation = Generation { replay: 0, retry: u32::from(self.y / 4 % 3) };
            return vec![ConfirmedCopy { request, generation, kind, event: event(&id(0), self.y) }];
        }
        let due = store.unconfirmed(account, RequestSeq(0), u32::from(self.y % 4));
        let confirmed = due.into_iter().map(|copy| ConfirmedCopy {
            request: copy.request,
            generation: copy.generation,
            kind: copy.kind,
            event: event(&copy.id, self.y),
        });
        confirmed.collect()
    }

    fn refused(self, account: AccountId, index: usize) -> RefusedMessage {
        let named = id(usize::from(self.y) + index);
        let event = event(&named, self.y);
        let id = RequestId::new(&format!("refused-{}", crate::model::ids::unique())).unwrap();
        let named = Some(named).filter(|_| !self.x.is_multiple_of(3));
        let (body_hash, generation) = (BodyHash::of(b"refused"), Generation::default());
        RefusedMessage {
            id,
            named,
            account,
            body_hash,
            generation,
            cause: Cause::new(Reason::Undecodable, "no"),
            event,
        }
    }
}

fn undated(hold: Option<Hold>) -> Option<Hold> {
    hold.map(|hold| Hold { since: Timestamp(0), ..hold })
}

fn id(index: usize) -> RequestId {
    RequestId::new(IDS[index % IDS.len()]).unwrap()
}

fn retry(generation: Generation) -> Decision {
    Decision::Retry { cause: Cause::new(Reason::Reverted, "not today"), next: generation.next_retry() }
}

fn found(id: &RequestId, seed: u8) -> Decision {
    Decision::Found { event: event(id, seed), written_by: TxHash([78; 32]) }
}

fn dead() -> Decision {
    Decision::Dead { cause: Cause::new(Reason::Reverted, "never") }
}

fn event(id: &RequestId, seed: u8) -> Event {
    let subject = Subject {
        source: "/chainwriter/acme/31337/q",
        request: id,
        generation: Generation::default(),
        batch: None,
        refused: None,
        reply_to: (seed > 128).then_some("answers"),
        correlation_id: None,
        trace: None,
    };
    let cause = Cause::new(Reason::Reverted, "no");
    Event::new(&subject, &Outcome::Dead { cause: &cause, tx_hashes: &[] }, Timestamp(1))
}

fn attempt(seed: u8) -> SignedTransaction {
    let fee = match seed % 3 {
        0 => Fee::Legacy { gas_price: Wei(seed.into()) },
        _ => Fee::Eip1559 { max_fee: Wei(seed.into()), tip: Wei(1) },
    };
    SignedTransaction {
        purpose: if seed.is_multiple_of(5) { Purpose::Cancel } else { Purpose::Write },
        // None at all is refused.
        raw: RawTransaction { hash: TxHash([seed; 32]), bytes: vec![seed; usize::from(seed % 16)].into() },
        fee,
        signed_at: Timestamp(seed.into()),
        cause: seed.is_multiple_of(10).then(|| Cause::new(Reason::RefusedByNode, "no")),
    }
}

fn transaction(request: RequestSeq, nonce: Nonce) -> NewTransaction {
    let seed = u8::try_from(nonce.0 % 15).unwrap_or_default() + 1;
    NewTransaction {
        requests: Members::one(request),
        nonce,
        to: Address([seed; 20]),
        value: Wei(u128::MAX),
        data: None,
        gas: Gas(21_000),
        l1_fee: Wei(0),
        signed: attempt(seed),
    }
}

fn closed(nonce: Nonce, state: TransactionState) -> ClosedTransaction {
    let included = FinalTransaction {
        tx_hash: TxHash([1; 32]),
        nonce,
        block_number: BlockNumber(7),
        block_hash: BlockHash([9; 32]),
        gas_used: Gas(21_000),
        effective_gas_price: None,
        l1: L1Cost { fee: nonce.0.is_multiple_of(2).then_some(Wei(u128::from(nonce.0) << 70)), gas: None },
    };
    ClosedTransaction { nonce, state, included: (state != TransactionState::Displaced).then_some(included) }
}
