//! Requests whose route offers less for a unit of gas than the chain asks for. They stay in the journal's queue, others pass them,
//! and each pass through the queue sees them again, until the price has come down. Nothing of them is kept here but what is shown.

use std::time::Duration;

use tokio::time::Instant;

use crate::journal::QueuedRequest;
use crate::model::{Fee, Wei};
use crate::policy::fee::AboveCap;
use crate::stages::lane::payload::Payload;
use crate::stages::lane::settings::{Held, LaneState};
use crate::stages::lane::term::Term;

/// With so many in the queue, passes through it are rarer.
const MANY: usize = 1000;
const PASS_OF_MANY: Duration = Duration::from_secs(10);

/// Those of this pass and of the one before.
#[derive(Debug)]
pub(super) struct PricedOut {
    count: usize,
    began_at: Instant,
    now: Vec<Held>,
    before: Vec<Held>,
}

impl Default for PricedOut {
    fn default() -> Self {
        Self { count: 0, began_at: Instant::now(), now: Vec::new(), before: Vec::new() }
    }
}

impl PricedOut {
    fn add(&mut self, request: &QueuedRequest, AboveCap { needed, cap }: AboveCap) {
        self.count += 1;
        if self.now.len() < LaneState::MOST_HELD {
            let why = format!("the chain asks for {needed} for one unit of gas, the max_fee of its route is {cap}");
            self.now.push(Held { request: request.id.clone(), why });
        }
    }

    /// Begins a new pass, unless this one found many and is young. Returns whether it did.
    pub(super) fn begin_pass(&mut self) -> bool {
        if self.count >= MANY && self.began_at.elapsed() < PASS_OF_MANY {
            return false;
        }
        self.before = std::mem::take(&mut self.now);
        (self.count, self.began_at) = (0, Instant::now());
        true
    }

    /// Returns the first of them, as the last whole pass found them.
    pub(super) fn held(&self) -> impl Iterator<Item = Held> {
        let shown = if self.before.is_empty() { &self.now } else { &self.before };
        shown.iter().cloned()
    }
}

impl Term<'_> {
    /// Returns why the chain asks for more than this cap of a route, while it asks for no more than the account's.
    fn above_route_cap(&self, cap: Option<Wei>) -> Option<AboveCap> {
        let (fees, market) = (self.tuning().fees, self.view.market()?);
        fees.quote(&market).ok()?;
        fees.capped(Some(cap?)).quote(&market).err()
    }

    /// Passes over what was fetched and costs more than its route offers.
    pub(super) fn pass_over_priced_out(&mut self) {
        for fetched in self.queue.take_fetched() {
            match self.above_route_cap(fetched.request.write.max_fee) {
                Some(above) => self.queue.priced_out_mut().add(&fetched.request, above),
                None => self.queue.add_fetched([fetched]),
            }
        }
    }

    /// The same with what is ready: the price may have risen since it was fetched. The next pass fetches it again.
    pub(super) fn pass_over_ready(&mut self) {
        if self.queue.ready().iter().all(|payload| self.above_route_cap(payload.max_fee()).is_none()) {
            return;
        }
        for payload in self.queue.take_ready(usize::MAX) {
            match self.above_route_cap(payload.max_fee()) {
                Some(above) => {
                    payload.requests.iter().for_each(|request| self.queue.priced_out_mut().add(request, above));
                }
                None => self.queue.add_ready(payload),
            }
        }
    }

    /// Returns the price that this one offers, where others offer `fee`.
    pub(super) fn fee_of(&self, payload: &Payload, fee: Fee) -> Fee {
        let Some(market) = self.view.market().filter(|_| payload.max_fee().is_some()) else { return fee };
        // What is above its cap was passed over.
        self.tuning().fees.capped(payload.max_fee()).quote(&market).unwrap_or(fee)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::lane::fixtures::request;

    #[tokio::test(start_paused = true)]
    async fn few_are_seen_in_each_pass_and_many_now_and_then() {
        let mut priced_out = PricedOut::default();
        let above = AboveCap { needed: Wei(2), cap: Wei(1) };
        priced_out.add(&request(1), above);
        assert_eq!(priced_out.held().count(), 1);
        assert!(priced_out.begin_pass());
        assert_eq!(priced_out.held().count(), 1, "of the last whole pass");
        (0..MANY).for_each(|_| priced_out.add(&request(2), above));
        assert!(!priced_out.begin_pass(), "a pass through so many takes a while");
        tokio::time::advance(PASS_OF_MANY).await;
        assert!(priced_out.begin_pass() && priced_out.begin_pass());
        assert_eq!(priced_out.held().count(), 0, "the price has come down");
    }
}
