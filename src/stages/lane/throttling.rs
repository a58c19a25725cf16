//! The operator's limits: what holds the lane back, and until when. It is no outage: requests wait, and use nothing up.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::journal::{JournalError, Lease};
use crate::model::{Fee, Timestamp};
use crate::policy::gas;
use crate::policy::limits::{Granted, Limit, Share, Throttled, Usage};
use crate::stages::lane::settings::Throttling;
use crate::stages::lane::{Lane, filling};

/// What is in flight may end by another instance's doing, and a clock may be set: it is looked again after so long at the
/// latest.
const LOOK: Duration = Duration::from_secs(1);
const LONG_LOOK: Duration = Duration::from_secs(30);
/// The lane counts as throttled until nothing was held back for so long: a line in the log for a spell, not for a batch.
const OVER: Duration = Duration::from_secs(10);

/// A limit holds the lane back, or has lately.
pub(super) struct Throttle {
    limit: Limit,
    /// When it is looked again.
    until: Instant,
    /// When there is room, as far as anybody can tell.
    room_at: Option<Timestamp>,
}

impl Lane {
    /// What counts against the limits now; `None` where there are none.
    pub(super) async fn usage(&self, lease: &Lease) -> Result<Option<Usage>, JournalError> {
        let limits = self.settings.tuning().limits;
        if limits.is_none() {
            return Ok(None);
        }
        self.journal.usage(lease.account, limits).await.map(Some)
    }

    /// How many may be begun, if each takes as little gas as can be: no more are fetched, simulated or signed.
    pub(super) fn may_begin(&self, usage: Option<&Usage>, wanted: usize) -> Granted {
        let least = Share { gas: gas::TRANSFER, ..Share::default() };
        self.granted(usage, std::iter::repeat_n(least, wanted))
    }

    /// How many of those that are ready may be begun.
    pub(super) fn may_sign_now(&self, usage: Option<&Usage>, fee: Fee) -> Granted {
        let ready = self.prepared.iter().take(self.room().min(filling::BATCH));
        self.granted(usage, ready.map(|prepared| prepared.share(fee)))
    }

    /// A guess: other lanes may be faster. What counts is what the journal grants when it stores.
    fn granted(&self, usage: Option<&Usage>, wanted: impl Iterator<Item = Share>) -> Granted {
        match usage {
            Some(usage) => self.settings.tuning().limits.grant(usage, &wanted.collect::<Vec<_>>()),
            None => Granted { count: wanted.count(), throttled: None },
        }
    }

    pub(super) fn throttle(&mut self, Throttled { limit, again_in }: Throttled) {
        let look_in = again_in.map_or(LOOK, |wait| wait.min(LONG_LOOK));
        let room_at = again_in.map(|wait| Timestamp::now().after(wait));
        if self.throttle.is_none() {
            let again_in_ms = again_in.map(|wait| wait.as_millis());
            info!(account = %self.signer.address(), %limit, again_in_ms, "throttled: requests wait in the journal");
        }
        self.throttle = Some(Throttle { limit, until: Instant::now() + look_in, room_at });
    }

    /// Until when nothing new is begun, if a limit is reached.
    pub(super) fn throttled_until(&self) -> Option<Instant> {
        self.throttle.as_ref().map(|throttle| throttle.until).filter(|until| Instant::now() < *until)
    }

    /// Requests have ended: there may be room.
    pub(super) fn look_for_room(&mut self) {
        if let Some(throttle) = self.throttle.as_mut().filter(|throttle| throttle.limit == Limit::InFlight) {
            throttle.until = Instant::now();
        }
    }

    pub(super) fn end_throttle(&mut self) {
        if let Some(throttle) = self.throttle.take_if(|throttle| throttle.until.elapsed() >= OVER) {
            info!(account = %self.signer.address(), limit = %throttle.limit, "throttled no more");
        }
    }

    pub(super) fn throttling(&self) -> Option<Throttling> {
        self.throttle.as_ref().map(|throttle| Throttling { limit: throttle.limit, until: throttle.room_at })
    }
}
