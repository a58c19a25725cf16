//! The stage where every delivery ends. An outcome is stored, then told to the broker, then noted, then acked: in this
//! order, so that whatever dies in between, the broker still has the delivery or the journal already has its end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};
use tracing::{debug, info, warn};

use crate::broker::{AckToken, Publisher};
use crate::journal::{AccountId, Decision, JournalError, QueuedRequest, RequestSeq, Requeue, Settlement, Settlements};
use crate::model::event::FinalTransaction;
use crate::model::{Cause, Heartbeat, RequestId};
use crate::observe::metrics::{self, Ack, FailureEnd, SettleMeter};
use crate::stages::settle::inbox::{Admitted, FromLane, Postponed, Refused, Ruling};

mod aftermath;
mod copies;
mod decisions;
mod followed;
mod held;
pub mod inbox;

pub use decisions::SettleSettings;

use copies::{Leaving, Published};
use held::HeldDeliveries;

/// What one round takes from each of its inputs.
const BATCH: usize = 1024;
/// Outcomes in one write of the journal.
const STORED_AT_ONCE: usize = 256;
/// How often held deliveries are looked at.
const SWEEP: Duration = Duration::from_secs(1);

pub struct Settle {
    settings: Arc<SettleSettings>,
    journal: Arc<dyn Settlements>,
    publisher: Arc<dyn Publisher>,
    outbox: Arc<Notify>,
    /// Of each lane: requests have ended.
    ended: Vec<Arc<Notify>>,
    /// Another instance may have settled what is held here.
    settled: Arc<Notify>,
    beat: Heartbeat,
    held: HeldDeliveries,
    /// Copies to publish; their messages are read when their turn comes.
    copies: VecDeque<RequestSeq>,
    /// Those, and the ones on their way.
    unconfirmed: BTreeSet<RequestSeq>,
    leaving: Vec<Leaving>,
    parks: VecDeque<RequestId>,
    refused: VecDeque<Box<Refused>>,
    postponed: VecDeque<Box<Postponed>>,
    publishing: FuturesUnordered<BoxFuture<Published>>,
    meter: SettleMeter,
}

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

impl Settle {
    pub fn new(
        settings: SettleSettings,
        journal: Arc<dyn Settlements>,
        publisher: Arc<dyn Publisher>,
        outbox: Arc<Notify>,
        ended: Vec<Arc<Notify>>,
        beat: Heartbeat,
    ) -> Self {
        Self {
            settings: Arc::new(settings),
            journal,
            publisher,
            outbox,
            ended,
            settled: Arc::default(),
            beat,
            held: HeldDeliveries::default(),
            copies: VecDeque::new(),
            unconfirmed: BTreeSet::new(),
            leaving: Vec::new(),
            parks: VecDeque::new(),
            refused: VecDeque::new(),
            postponed: VecDeque::new(),
            publishing: FuturesUnordered::new(),
            meter: SettleMeter::default(),
        }
    }

    pub fn meter(&self) -> SettleMeter {
        self.meter.clone()
    }

    /// To be told when another instance may have settled something.
    pub fn settled(&self) -> Arc<Notify> {
        Arc::clone(&self.settled)
    }

    /// Settles until intake and all lanes have gone and everything under way is done.
    ///
    /// # Errors
    /// When the journal fails: nothing more may be acked.
    pub async fn run(
        mut self,
        mut from_intake: mpsc::Receiver<Admitted>,
        mut from_lanes: mpsc::Receiver<FromLane>,
    ) -> Result<(), JournalError> {
        let mut sweep = tokio::time::interval(SWEEP);
        let settled = self.settled();
        let mut admitted = Vec::with_capacity(BATCH);
        let mut ruled = Vec::with_capacity(BATCH);
        let (mut intake_is_open, mut lanes_are_open) = (true, true);
        while intake_is_open || lanes_are_open || self.is_busy() {
            self.beat.beat();
            self.meter.held.set(i64::try_from(self.held.count()).unwrap_or(i64::MAX));
            self.start_publishing().await?;
            self.let_lanes_leave();
            tokio::select! {
                biased;
                taken = from_intake.recv_many(&mut admitted, BATCH), if intake_is_open && self.has_room() => {
                    intake_is_open = taken > 0;
                    self.take(std::mem::take(&mut admitted)).await;
                }
                taken = from_lanes.recv_many(&mut ruled, BATCH), if lanes_are_open => {
                    lanes_are_open = taken > 0;
                    self.rule(std::mem::take(&mut ruled)).await?;
                }
                Some(published) = self.publishing.next() => self.note_published(published).await?,
                _ = sweep.tick() => self.sweep().await?,
                () = settled.notified() => {
                    self.held.look_now();
                    self.sweep().await?;
                }
            }
        }
        Ok(())
    }

    fn is_busy(&self) -> bool {
        let waits = !(self.copies.is_empty() && self.refused.is_empty() && self.postponed.is_empty());
        waits || !self.publishing.is_empty()
    }

    /// What is no request stays in memory until its copy is confirmed; while too many do, no more come in.
    fn has_room(&self) -> bool {
        self.refused.len() + self.postponed.len() < BATCH
    }

    async fn take(&mut self, admitted: Vec<Admitted>) {
        let mut known = Vec::new();
        for admitted in admitted {
            match admitted {
                Admitted::Hold { id, generation, receipt, is_suspect } => {
                    if is_suspect && !self.parks.contains(&id) {
                        self.parks.push_back(id.clone());
                    }
                    self.held.hold(id, generation, receipt);
                }
                Admitted::Known { id, receipt } => {
                    info!(request.id = %id, "settled already: acked");
                    known.push(receipt);
                }
                Admitted::Refused(refused) => self.refused.push_back(refused),
                Admitted::Postponed(postponed) => self.postponed.push_back(postponed),
            }
        }
        ack(&self.meter, known).await;
    }

    async fn rule(&mut self, from_lanes: Vec<FromLane>) -> Result<(), JournalError> {
        let mut rulings: BTreeMap<AccountId, Vec<Ruling>> = BTreeMap::new();
        let mut leaving = Vec::new();
        for message in from_lanes {
            match message {
                FromLane::Resume(account) => self.resume(account).await?,
                FromLane::Leaves(done) => leaving.push(done),
                FromLane::Reorged(lease, lost) => self.tell_reorged(&lease, lost).await?,
                FromLane::EndedAgain(lease, ended) => self.tell_ended_again(&lease, ended).await?,
                FromLane::Rulings(ruled) => {
                    for ruling in ruled {
                        rulings.entry(ruling.lease.account).or_default().push(ruling);
                    }
                }
            }
        }
        for ruled in rulings.into_values() {
            self.store(ruled).await?;
        }
        for done in leaving {
            self.leaving.push(Leaving { copies: self.unconfirmed.clone(), done });
        }
        Ok(())
    }

    /// Stores rulings of one lane, then acts on them. Crash before the commit: the lane's next owner rules the same from
    /// the chain. Crash after it: deliveries come again and find their request settled, or its copy unconfirmed.
    async fn store(&mut self, mut rulings: Vec<Ruling>) -> Result<(), JournalError> {
        while !rulings.is_empty() {
            // A lane that lost its lease and won it again may have rulings of both times here.
            let Some(lease) = rulings.first().map(|ruling| ruling.lease.clone()) else { break };
            let (now, later): (Vec<_>, Vec<_>) = rulings.into_iter().partition(|ruling| ruling.lease == lease);
            rulings = later;
            let mut now = now.into_iter().peekable();
            loop {
                // A block may end thousands: others write in between.
                let (mut decided, mut requests) = (Vec::new(), 0);
                while let Some(ruling) = now.next_if(|_| requests < STORED_AT_ONCE) {
                    requests += 1 + ruling.others.len();
                    decided.push(self.settings.decide(ruling));
                }
                if decided.is_empty() {
                    break;
                }
                let settlements = decided.iter().map(|(_, settlement)| settlement.clone()).collect();
                match self.journal.settle(&lease, settlements).await {
                    Ok(()) => {}
                    Err(error) if error.is_lease_lost() => {
                        warn!(account = %lease.account, "outcomes dropped: another instance owns the account and finds them again");
                        break;
                    }
                    Err(error) => return Err(error),
                }
                self.act_on(decided).await;
            }
        }
        Ok(())
    }

    async fn act_on(&mut self, decided: Vec<(Vec<QueuedRequest>, Settlement)>) {
        let mut receipts = Vec::new();
        for (requests, settlement) in decided {
            let Settlement { transaction, decisions } = settlement;
            let included = transaction.and_then(|transaction| transaction.included);
            for (request, (_, decision)) in requests.into_iter().zip(decisions) {
                self.act_on_one(&request, decision, included.as_ref(), &mut receipts);
            }
        }
        self.tell_of_ends();
        ack(&self.meter, receipts).await;
    }

    fn act_on_one(
        &mut self,
        request: &QueuedRequest,
        decision: Decision,
        included: Option<&FinalTransaction>,
        receipts: &mut Vec<AckToken>,
    ) {
        match decision {
            Decision::Final(_) => {
                self.meter.requests.count(metrics::Outcome::Final);
                self.meter.until_final.note(request.received_at.age());
                if let Some(tx) = included {
                    debug!(request.id = %request.id, tx.hash = %tx.tx_hash, tx.nonce = %tx.nonce, block.number = %tx.block_number, "request is final");
                }
                self.trace_end(request, metrics::Outcome::Final, None);
                receipts.extend(self.held.release_all(&request.id));
            }
            Decision::Found { written_by, .. } => {
                self.meter.requests.count(metrics::Outcome::Final);
                self.meter.until_final.note(request.received_at.age());
                info!(request.id = %request.id, tx.hash = %written_by, "the record is in the chain already: request is final");
                self.trace_end(request, metrics::Outcome::Final, None);
                receipts.extend(self.held.release_all(&request.id));
            }
            Decision::Retry { cause, next } => {
                self.note_failure(request, &cause, FailureEnd::Retry);
                info!(request.id = %request.id, request.attempt = next.retry, %cause, "request failed, it will be tried again");
                self.await_copy(request.seq);
            }
            Decision::Dead { cause } | Decision::Cancel { cause } => {
                self.note_failure(request, &cause, FailureEnd::Dead);
                warn!(request.id = %request.id, %cause, "request failed for good, it becomes a dead letter");
                self.await_copy(request.seq);
            }
            Decision::Requeue(Requeue::Displaced(taken_by)) => {
                self.meter.requests.count(metrics::Outcome::Requeued);
                warn!(request.id = %request.id, foreign.tx.hash = %taken_by, "another program uses this account: its transaction took the request's nonce");
            }
            Decision::Requeue(Requeue::Isolated(cause)) => {
                self.meter.requests.count(metrics::Outcome::Requeued);
                info!(request.id = %request.id, %cause, "the transaction that it shared failed: it gets one of its own");
            }
        }
    }

    fn note_failure(&self, request: &QueuedRequest, cause: &Cause, end: FailureEnd) {
        let outcome = match end {
            FailureEnd::Retry => metrics::Outcome::Retry,
            FailureEnd::Dead => metrics::Outcome::Dead,
        };
        self.meter.requests.count(outcome);
        self.meter.failures.count((cause.class.into(), end));
        self.trace_end(request, outcome, Some(cause));
    }

    /// Events wait in the outbox, and lanes may have waited for an end.
    fn tell_of_ends(&self) {
        self.outbox.notify_one();
        self.ended.iter().for_each(|lane| lane.notify_one());
    }

    /// Acks what other instances settled, and parks what is held for too long.
    async fn sweep(&mut self) -> Result<(), JournalError> {
        self.held.drop_ended_sessions();
        let mut receipts = Vec::new();
        let due = self.held.due();
        if !due.is_empty() {
            for (id, known) in self.journal.standings(due).await? {
                receipts.extend(self.held.release_settled(&id, &known));
            }
        }
        for id in self.held.held_for(self.settings.max_hold) {
            if !self.parks.contains(&id) {
                self.held.restart(&id);
                self.parks.push_back(id);
            }
        }
        ack(&self.meter, receipts).await;
        Ok(())
    }
}

/// A receipt whose session has ended is not acked: the broker delivers again, and the journal knows the answer.
async fn ack(meter: &SettleMeter, receipts: Vec<AckToken>) {
    let acked = join_all(receipts.into_iter().map(AckToken::ack)).await;
    let lost = acked.iter().filter(|acked| !**acked).count();
    meter.acks.add(Ack::Acked, acked.len().saturating_sub(lost));
    meter.acks.add(Ack::Lost, lost);
    if lost > 0 {
        info!(deliveries.lost = lost, "their session has ended before they were acked; they come again and are known");
    }
}
