//! The stage where every delivery ends. An outcome is stored, then told to the broker, then noted, then acked: in this
//! order, so that whatever dies in between, the broker still has the delivery or the journal already has its end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::broker::{Outgoing, Publisher, Receipt};
use crate::handover::{Admitted, FromLane, Postponed, Refused, Ruling, made_up_id};
use crate::journal::{
    AccountId, CopyKind, Decision, JournalError, QueuedRequest, RefusedMessage, RequestSeq, Settlement, Settlements,
    UnconfirmedCopy,
};
use crate::metrics::{self, Ack, FailureEnd, SettleMeter};
use crate::model::event::{Outcome, Subject};
use crate::model::{BodyHash, Cause, Event, Generation, Heartbeat, RequestId, Timestamp};
use crate::policy::pause::Pause;

mod aftermath;
mod decisions;
mod held;

pub use decisions::SettleSettings;
use held::HeldDeliveries;

/// What one round takes from each of its inputs.
const BATCH: usize = 1024;
/// Outcomes in one write of the journal.
const STORED_AT_ONCE: usize = 256;
/// How often held deliveries are looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// Pauses between tries to publish a copy.
const PUBLISH_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Rows read at once when a lane's unfinished copies are looked for.
const RESUME_PAGE: u32 = 500;

/// The stage.
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

/// A lane that gives its account up, and the copies that it waits for.
struct Leaving {
    copies: BTreeSet<RequestSeq>,
    done: oneshot::Sender<()>,
}

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// Something has its publisher confirm.
enum Published {
    Copy(Box<UnconfirmedCopy>),
    Refused(Box<Refused>),
    Postponed(Box<Postponed>),
    /// Which copy of the request it is.
    Park(RequestId, Generation),
    /// Nothing any more: the session of a message that no journal knows has ended, and the broker delivers it again.
    Again,
}

impl Published {
    fn is_over(&self) -> bool {
        match self {
            Self::Refused(refused) => refused.receipt.is_over(),
            Self::Postponed(postponed) => postponed.receipt.is_over(),
            Self::Copy(_) | Self::Park(..) | Self::Again => false,
        }
    }
}

impl Settle {
    /// The stage, idle.
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

    /// What it counts.
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
            let mut now = now.into_iter();
            loop {
                // A block may end thousands: others write in between.
                let decided: Vec<_> =
                    now.by_ref().take(STORED_AT_ONCE).map(|ruling| self.settings.decide(ruling)).collect();
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

    async fn act_on(&mut self, decided: Vec<(QueuedRequest, Settlement)>) {
        let mut receipts = Vec::new();
        for (request, settlement) in decided {
            match settlement.decision {
                Decision::Final(_) => {
                    self.meter.requests.count(metrics::Outcome::Final);
                    self.meter.until_final.note(request.received_at.age());
                    let included = settlement.transaction.and_then(|transaction| transaction.included);
                    if let Some(tx) = included {
                        debug!(request.id = %request.id, tx.hash = %tx.tx_hash, tx.nonce = %tx.nonce, block.number = %tx.block_number, "request is final");
                    }
                    receipts.extend(self.held.release_all(&request.id));
                }
                Decision::Retry { cause, next } => {
                    self.note_failure(&cause, FailureEnd::Retry);
                    info!(request.id = %request.id, request.attempt = next.retry, %cause, "request failed, it will be tried again");
                    self.await_copy(request.seq);
                }
                Decision::Dead { cause } | Decision::Cancel { cause } => {
                    self.note_failure(&cause, FailureEnd::Dead);
                    warn!(request.id = %request.id, %cause, "request failed for good, it becomes a dead letter");
                    self.await_copy(request.seq);
                }
                Decision::Requeue { taken_by } => {
                    self.meter.requests.count(metrics::Outcome::Requeued);
                    warn!(request.id = %request.id, foreign.tx.hash = %taken_by, "another program uses this account: its transaction took the request's nonce");
                }
            }
        }
        self.tell_of_ends();
        ack(&self.meter, receipts).await;
    }

    fn note_failure(&self, cause: &Cause, end: FailureEnd) {
        let outcome = match end {
            FailureEnd::Retry => metrics::Outcome::Retry,
            FailureEnd::Dead => metrics::Outcome::Dead,
        };
        self.meter.requests.count(outcome);
        self.meter.failures.count((cause.class.into(), end));
    }

    fn await_copy(&mut self, request: RequestSeq) {
        self.copies.push_back(request);
        self.unconfirmed.insert(request);
    }

    fn let_lanes_leave(&mut self) {
        let unconfirmed = &self.unconfirmed;
        for leaving in &mut self.leaving {
            leaving.copies.retain(|copy| unconfirmed.contains(copy));
        }
        for leaving in self.leaving.extract_if(.., |leaving| leaving.copies.is_empty()) {
            // It may have waited long enough.
            let _ = leaving.done.send(());
        }
    }

    /// Events wait in the outbox, and lanes may have waited for an end.
    fn tell_of_ends(&self) {
        self.outbox.notify_one();
        self.ended.iter().for_each(|lane| lane.notify_one());
    }

    async fn resume(&mut self, account: AccountId) -> Result<(), JournalError> {
        let mut after = RequestSeq(i64::MIN);
        loop {
            let page = self.journal.unconfirmed(account, after, RESUME_PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.request;
            page.iter().for_each(|copy| self.await_copy(copy.request));
        }
    }

    /// Starts publishes up to the limit.
    async fn start_publishing(&mut self) -> Result<(), JournalError> {
        let mut room = self.settings.publishes_in_flight.saturating_sub(self.publishing.len());
        while room > 0
            && let Some(refused) = self.refused.pop_front()
        {
            if refused.receipt.is_over() {
                continue;
            }
            room -= 1;
            let dead_letter = self.settings.dead_letter_of_refused(&refused);
            self.publish(dead_letter, Published::Refused(refused));
        }
        while room > 0
            && let Some(postponed) = self.postponed.pop_front()
        {
            if postponed.receipt.is_over() {
                continue;
            }
            room -= 1;
            let copy = self.settings.postponed_copy(&postponed, Timestamp::now());
            self.publish(copy, Published::Postponed(postponed));
        }
        while room > 0
            && let Some(id) = self.parks.pop_front()
        {
            let Some(message) = self.journal.message_of(&id).await? else { continue };
            room -= 1;
            let generation = Generation::read_from(&message.headers).unwrap_or_default();
            let parked = self.settings.to_wait_queue(message.copied(), self.settings.park_delay);
            self.publish(parked, Published::Park(id, generation));
        }
        if room > 0 && !self.copies.is_empty() {
            let next: Vec<_> = self.copies.drain(..room.min(self.copies.len())).collect();
            let copies = self.journal.unconfirmed_of(next.clone()).await?;
            for done in next.iter().filter(|seq| copies.iter().all(|copy| copy.request != **seq)) {
                self.unconfirmed.remove(done);
            }
            for copy in copies {
                let outgoing = self.settings.outgoing_copy(&copy);
                self.publish(outgoing, Published::Copy(Box::new(copy)));
            }
        }
        Ok(())
    }

    fn publish(&self, outgoing: Outgoing, published: Published) {
        self.publishing.push(Box::pin(publish_until_confirmed(Arc::clone(&self.publisher), outgoing, published)));
    }

    /// Notes confirms, all that are there, and acks. Crash before the note: the copy is published once more and the
    /// second one found known. Crash after it: the delivery comes again and is stale.
    async fn note_published(&mut self, first: Published) -> Result<(), JournalError> {
        let mut copies = Vec::new();
        let mut refused = Vec::new();
        let mut postponed = 0;
        let mut parked = Vec::new();
        let mut receipts = Vec::new();
        let mut sort = |published| match published {
            Published::Copy(copy) => copies.push(*copy),
            Published::Refused(message) => refused.push(*message),
            Published::Postponed(message) => {
                let Postponed { id, until, receipt, .. } = *message;
                postponed += 1;
                debug!(request.id = %id, %until, "a message waits at the broker for its time");
                receipts.push(receipt);
            }
            Published::Park(id, generation) => parked.push((id, generation)),
            Published::Again => {}
        };
        sort(first);
        while let Some(Some(published)) = futures_util::FutureExt::now_or_never(self.publishing.next()) {
            sort(published);
        }
        self.meter.requests.add(metrics::Outcome::Postponed, postponed);
        self.meter.requests.add(metrics::Outcome::Parked, parked.len());
        if !copies.is_empty() {
            self.journal.confirm(copies.iter().map(|copy| self.settings.confirmed(copy)).collect()).await?;
            for copy in &copies {
                self.unconfirmed.remove(&copy.request);
                receipts.extend(match copy.kind {
                    // The retry itself may have come back already and be held: it is not what it replaces.
                    CopyKind::Retry => self.held.release_before(&copy.id, copy.generation),
                    CopyKind::DeadLetter => self.held.release_up_to(&copy.id, copy.generation),
                });
            }
            self.tell_of_ends();
        }
        if !refused.is_empty() {
            receipts.extend(self.record_refused(refused).await?);
        }
        if !parked.is_empty() {
            self.journal.record_parked(parked.iter().map(|(id, _)| id.clone()).collect()).await?;
            for (id, generation) in &parked {
                debug!(request.id = %id, "held for long, given back to the broker for a while");
                // A replay may have come while the copy was on its way, and be held: it is not what the copy replaces.
                receipts.extend(self.held.release_up_to(id, *generation));
            }
        }
        ack(&self.meter, receipts).await;
        Ok(())
    }

    async fn record_refused(&mut self, refused: Vec<Refused>) -> Result<Vec<Receipt>, JournalError> {
        let ids = refused.iter().map(|refused| refused.id.clone()).collect();
        let known: Vec<_> = self.journal.standings(ids).await?.into_iter().map(|(id, _)| id).collect();
        let mut records = Vec::with_capacity(refused.len());
        let mut receipts = Vec::with_capacity(refused.len());
        for Refused { id, generation, message, cause, account, receipt } in refused {
            warn!(request.id = %id, %cause, "message refused, it is in the dead-letter queue");
            self.meter.requests.count(metrics::Outcome::Refused);
            self.meter.failures.count((cause.class.into(), FailureEnd::Dead));
            let properties = &message.properties;
            let subject = self.settings.subject(&id, generation, &properties.reply_to, &properties.correlation_id);
            let body_hash = BodyHash::of(&message.body);
            let subject = Subject { refused: Some(body_hash), ..subject };
            let event = Event::new(&subject, &Outcome::Dead { cause: &cause, tx_hashes: &[] }, Timestamp::now());
            // The id may stand for another message: that one keeps it.
            let id = if known.contains(&id) { made_up_id() } else { id };
            records.push(RefusedMessage { id, account, body_hash, generation, cause, event });
            receipts.push(receipt);
        }
        self.journal.record_refused(records).await?;
        self.outbox.notify_one();
        Ok(receipts)
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
async fn ack(meter: &SettleMeter, receipts: Vec<Receipt>) {
    let acked = join_all(receipts.into_iter().map(Receipt::ack)).await;
    let lost = acked.iter().filter(|acked| !**acked).count();
    meter.acks.add(Ack::Acked, acked.len().saturating_sub(lost));
    meter.acks.add(Ack::Lost, lost);
    if lost > 0 {
        info!(deliveries.lost = lost, "their session has ended before they were acked; they come again and are known");
    }
}

/// For as long as it takes. No outcome is given up for want of a broker.
async fn publish_until_confirmed(publisher: Arc<dyn Publisher>, outgoing: Outgoing, published: Published) -> Published {
    let mut pause = Pause::between(PUBLISH_PAUSE.0, PUBLISH_PAUSE.1);
    while let Err(error) = publisher.publish(&outgoing).await {
        let wait = pause.next_wait();
        let id = outgoing.message.properties.message_id.as_deref().unwrap_or_default();
        warn!(message.id = id, %error, retry_in_ms = wait.as_millis(), "a copy has no publisher confirm; its delivery stays unacked");
        tokio::time::sleep(wait).await;
        if published.is_over() {
            return Published::Again;
        }
    }
    published
}
