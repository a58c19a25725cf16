//! Passes over what costs more than its route offers, before it is simulated and before it is signed.

use crate::model::{Fee, Wei};
use crate::policy::fee::AboveCap;
use crate::stages::lane::payload::Payload;
use crate::stages::lane::term::Term;

impl Term<'_> {
    /// Returns why the chain asks for more than this cap of a route, while it asks for no more than the account's.
    fn above_route_cap(&self, cap: Option<Wei>) -> Option<AboveCap> {
        let cap = cap?;
        let (fees, market) = (self.tuning().fees, self.view.market()?);
        fees.quote(&market).ok()?;
        fees.capped(Some(cap)).quote(&market).err()
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
