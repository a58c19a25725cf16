//! The stage that takes deliveries in: reads them as requests, asks the journal what is known of each, and hands every
//! receipt on to settle. In batches, so that one commit admits whatever waits.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::broker::{AckToken, Delivery, Flow};
use crate::journal::{AccountId, Admissions, Arrival, JournalError};
use crate::model::{BodyHash, Cause, Generation, Heartbeat, Message, OrderKey, Reason, Timestamp};
use crate::observe::metrics::IntakeMeter;
use crate::policy::admission::{AdmissionRules, Candidate, Refusal, admit, sheltered};
use crate::policy::arrival::{Verdict, is_suspect};
use crate::stages::settle::inbox::{Admitted, Postponed, Refused, made_up_id};

/// Deliveries admitted in one commit at most.
const BATCH: usize = 256;
/// How often flow is looked at anew at least, how often it changes at most, and the least often that the stage shows that
/// it lives.
const LOOK: Duration = Duration::from_secs(1);

/// What intake needs to know of a lane.
#[derive(Debug, Clone)]
pub struct IntakeLane {
    pub account: AccountId,
    /// Says that there is something in its queue.
    pub wake: Arc<Notify>,
    /// Whether it takes requests now.
    pub is_open: watch::Receiver<bool>,
    /// Requests that are with it: of all instances when it was last looked, and what was sent there since.
    pub load: u64,
}

pub struct Intake {
    /// What makes a message a request.
    pub rules: AdmissionRules,
    /// The lanes; at least one.
    pub lanes: Vec<IntakeLane>,
    pub journal: Arc<dyn Admissions>,
    pub settle: mpsc::Sender<Admitted>,
    /// Stops and starts deliveries.
    pub flow: watch::Sender<Flow>,
    /// No new deliveries while this many requests are open.
    pub max_open: watch::Receiver<u64>,
    pub beat: Heartbeat,
    pub meter: IntakeMeter,
}

impl Intake {
    /// Takes deliveries in until cancelled. What is not admitted by then goes back to the queue with the session.
    ///
    /// # Errors
    /// When the journal fails: nothing more may be taken in.
    pub async fn run(
        mut self,
        mut deliveries: mpsc::Receiver<Delivery>,
        cancel: CancellationToken,
    ) -> Result<(), JournalError> {
        let mut look = tokio::time::interval(LOOK);
        let mut batch = Vec::with_capacity(BATCH);
        let mut changed: Option<Instant> = None;
        loop {
            self.beat.beat();
            // A lane that pauses and resumes all the time would have consumers come and go as often.
            let has_rested = changed.is_none_or(|at| at.elapsed() >= LOOK);
            let looks = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                _ = look.tick() => true,
                () = a_door_moves(&mut self.lanes), if has_rested => true,
                taken = deliveries.recv_many(&mut batch, BATCH) => {
                    if taken == 0 { return Ok(()); }
                    self.step(std::mem::take(&mut batch)).await?;
                    false
                }
            };
            if looks && self.regulate().await? {
                changed = Some(Instant::now());
            }
        }
    }

    /// Opens or closes the flow of deliveries. Says whether that changed it.
    async fn regulate(&mut self) -> Result<bool, JournalError> {
        let by_account = self.journal.open_requests().await?;
        for lane in &mut self.lanes {
            let own = by_account.iter().find(|(account, _)| *account == lane.account);
            lane.load = own.map_or(0, |(_, open)| *open);
        }
        let open: u64 = by_account.iter().map(|(_, open)| open).sum();
        let lanes_take = self.lanes.iter().any(|lane| *lane.is_open.borrow());
        let flow = if open < *self.max_open.borrow() && lanes_take { Flow::Open } else { Flow::Paused };
        let changed = self.flow.send_if_modified(|now| std::mem::replace(now, flow) != flow);
        if changed {
            match flow {
                // The session says so once they do.
                Flow::Open => debug!(requests.open = open, "deliveries are wanted"),
                Flow::Paused => info!(requests.open = open, lanes.take = lanes_take, "deliveries are paused"),
            }
        }
        Ok(changed)
    }

    async fn step(&mut self, batch: Vec<Delivery>) -> Result<(), JournalError> {
        let mut arrivals = Vec::with_capacity(batch.len());
        let mut receipts = Vec::with_capacity(batch.len());
        let mut unroutable = Vec::with_capacity(batch.len());
        let now = Timestamp::now();
        for Delivery { message, receipt } in batch {
            match sheltered(|| admit(&self.rules, &message)) {
                Ok(Candidate { id, not_before: Some(until), .. }) if until > now => {
                    self.meter.deliveries.count(None);
                    self.hand_on(Admitted::Postponed(Box::new(Postponed { id, message, until, receipt }))).await;
                }
                Ok(candidate) => {
                    let account = self.choose_lane(candidate.order_key);
                    arrivals.push(Arrival {
                        id: candidate.id,
                        generation: candidate.generation,
                        body_hash: candidate.body_hash,
                        message,
                        account,
                        order_key: candidate.order_key.filter(|_| self.rules.is_strict()),
                        write: candidate.write.as_ref().ok().cloned(),
                    });
                    unroutable.push(candidate.write.err());
                    receipts.push(receipt);
                }
                Err(refusal) => self.refuse(message, refusal, receipt).await,
            }
        }
        if arrivals.is_empty() {
            return Ok(());
        }
        // Only what a refusal needs is kept; a clone of a body shares its bytes.
        let copies: Vec<_> = arrivals
            .iter()
            .zip(unroutable)
            .map(|(a, why)| (a.id.clone(), a.generation, a.account, a.message.clone(), why))
            .collect();
        let verdicts = self.journal.admit(arrivals).await?;
        for ((verdict, receipt), copy) in verdicts.into_iter().zip(receipts).zip(copies) {
            let (id, generation, account, message, why) = copy;
            self.meter.deliveries.count(Some(verdict));
            debug!(request.id = %id, request.attempt = %generation, verdict = ?verdict, "delivery");
            if verdict == Verdict::Accept {
                // What was known before is with the lane that had it.
                self.wake(Some(account).filter(|_| generation == Generation::default()));
            }
            let cause = match verdict {
                Verdict::Accept | Verdict::Join | Verdict::AwaitConfirm => {
                    let is_suspect = is_suspect(&message);
                    self.hand_on(Admitted::Hold { id, generation, receipt, is_suspect }).await;
                    continue;
                }
                Verdict::Duplicate | Verdict::Stale => {
                    self.hand_on(Admitted::Known { id, receipt }).await;
                    continue;
                }
                Verdict::Conflict => {
                    let detail = "the journal knows this id with another body; use a new id for a new request";
                    Cause::new(Reason::IdConflict, detail)
                }
                Verdict::Unroutable => why.unwrap_or_else(|| Cause::new(Reason::NoRoute, "no route is for it")),
            };
            let refused = Refused { id, generation, message, cause, account, taken_at: now, receipt };
            self.hand_on(Admitted::Refused(Box::new(refused))).await;
        }
        Ok(())
    }

    async fn refuse(&self, message: Message, refusal: Refusal, receipt: AckToken) {
        self.meter.deliveries.count(Some(Verdict::Unroutable));
        let id = refusal.id.unwrap_or_else(made_up_id);
        let generation = Generation::read_from(&message.headers).unwrap_or_default();
        let account = self.account_of(BodyHash::of(id.as_str().as_bytes()).as_bytes());
        let taken_at = Timestamp::now();
        let refused = Refused { id, generation, message, cause: refusal.cause, account, taken_at, receipt };
        self.hand_on(Admitted::Refused(Box::new(refused))).await;
    }

    /// Settle outlives intake; if it has ended, the process ends too and the broker delivers again.
    async fn hand_on(&self, admitted: Admitted) {
        let _ = self.settle.send(admitted).await;
    }

    /// The lane of this account, or all.
    fn wake(&self, account: Option<AccountId>) {
        for lane in self.lanes.iter().filter(|lane| account.is_none_or(|account| lane.account == account)) {
            lane.wake.notify_one();
        }
    }

    /// The lane of an ordering key is always the same; without one it is the one with the least to do.
    fn choose_lane(&mut self, order_key: Option<OrderKey>) -> AccountId {
        let account = order_key.map_or_else(|| self.idlest(), |key| self.account_of(key.as_bytes()));
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.account == account) {
            lane.load = lane.load.saturating_add(1);
        }
        account
    }

    /// Of those that take requests, as far as there are any.
    fn idlest(&self) -> AccountId {
        let by_load = |lane: &&IntakeLane| (!*lane.is_open.borrow(), lane.load);
        self.lanes.iter().min_by_key(by_load).expect("there is at least one lane").account
    }

    fn account_of(&self, hash: &[u8]) -> AccountId {
        let number = hash.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let index = usize::try_from(number % self.lanes.len().max(1) as u64).unwrap_or(0);
        self.lanes.get(index).expect("there is at least one lane").account
    }
}

/// A lane begins or ends to take requests. Lanes that have ended do neither.
async fn a_door_moves(lanes: &mut [IntakeLane]) {
    let changes = lanes.iter_mut().map(|lane| {
        Box::pin(async {
            if lane.is_open.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    select_all(changes).await;
}
