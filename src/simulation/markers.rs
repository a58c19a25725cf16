//! The simulated queue of the journal's marker. What goes wrong with publishes and their confirms goes wrong with it too.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::broker::{BrokerError, HeldMarkers, MarkerQueue};
use crate::model::Marker;
use crate::simulation::world::{Shared, World};

/// After this a call is given up.
const TIMEOUT: Duration = Duration::from_secs(4);

pub(super) struct SimMarkers {
    pub(super) world: Shared,
    /// Sessions of the process so far, and the newest of them that may have deliveries.
    pub(super) sessions: watch::Receiver<u64>,
    pub(super) admitted: watch::Sender<u64>,
}

struct SimHold {
    world: Shared,
    session: u64,
    hold: u64,
    found: Vec<Marker>,
}

/// A call fails at the broker: nothing has happened, or all of it has and the answer is lost.
fn fails(world: &mut World) -> bool {
    let odds = world.weather.publishes_lost.max(world.weather.publishes_refused);
    world.queues.is_down || world.queues.is_blocked || world.happens(odds)
}

async fn given_up() -> BrokerError {
    tokio::time::sleep(TIMEOUT).await;
    BrokerError::NotConnected
}

#[async_trait]
impl MarkerQueue for SimMarkers {
    async fn hold(&self) -> Result<Box<dyn HeldMarkers>, BrokerError> {
        let latency = self.world.lock().latency();
        tokio::time::sleep(latency).await;
        let held = {
            let mut world = self.world.lock();
            if fails(&mut world) { None } else { world.queues.hold_markers() }
        };
        let Some((hold, found)) = held else { return Err(given_up().await) };
        // What is read before the first session is what that one shows.
        let session = (*self.sessions.borrow()).max(1);
        Ok(Box::new(SimHold { world: self.world.clone(), session, hold, found }))
    }

    fn sessions(&self) -> watch::Receiver<u64> {
        self.sessions.clone()
    }

    fn admit(&self, session: u64) {
        self.admitted.send_replace(session);
    }
}

#[async_trait]
impl HeldMarkers for SimHold {
    fn session(&self) -> u64 {
        self.session
    }

    fn found(&self) -> &[Marker] {
        &self.found
    }

    async fn replace(self: Box<Self>, by: &Marker) -> Result<(), BrokerError> {
        let (there, back) = {
            let mut world = self.world.lock();
            (world.latency(), world.latency())
        };
        tokio::time::sleep(there).await;
        let is_left = {
            let mut world = self.world.lock();
            !fails(&mut world) && world.queues.leave_marker(self.hold, by)
        };
        if !is_left {
            return Err(given_up().await);
        }
        tokio::time::sleep(back).await;
        let mut world = self.world.lock();
        let odds = world.weather.acks_lost;
        if world.happens(odds) {
            // The old one stays beside it.
            world.note("an old marker is not acked");
            return Err(BrokerError::NotConnected);
        }
        world.queues.end_markers(self.hold, self.found.len());
        world.note(format!("the marker is that of start {} of journal {}", by.start, by.journal.0));
        Ok(())
    }
}

impl Drop for SimHold {
    fn drop(&mut self) {
        self.world.lock().queues.release_markers(self.hold);
    }
}
