//! The stage that reads which holds of operators stand, for all lanes of this instance and for intake. A hold is logged when it
//! begins, when it ends, and at the start of a worker that finds it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::journal::{Hold, Holds, JournalError, StandingHolds};

const CHECK: Duration = Duration::from_secs(1);

pub struct HoldsStage {
    pub journal: Arc<dyn Holds>,
    pub standing: watch::Sender<StandingHolds>,
}

impl HoldsStage {
    /// Reads until cancelled.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), JournalError> {
        let mut logged = Vec::new();
        while !cancel.is_cancelled() {
            let holds = self.journal.holds().await?;
            log_changes(&logged, &holds);
            logged.clone_from(&holds);
            publish(&self.standing, holds);
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(CHECK) => {}
            }
        }
        Ok(())
    }
}

/// Publishes the holds, to those for whom that is new.
pub fn publish(standing: &watch::Sender<StandingHolds>, holds: Vec<Hold>) {
    let holds = StandingHolds::new(holds);
    standing.send_if_modified(|now| {
        let changes = *now != holds;
        *now = holds;
        changes
    });
}

fn log_changes(before: &[Hold], now: &[Hold]) {
    for hold in now.iter().filter(|hold| !before.contains(hold)) {
        let (by, reason, since) = (&hold.by, &hold.reason, hold.since);
        warn!(hold = hold.scope_text(), hold.by = %by, hold.since = %since, reason, "an operator holds this: nothing new is signed for it");
    }
    for hold in before.iter().filter(|hold| !now.contains(hold)) {
        info!(hold = hold.scope_text(), "an operator has released this");
    }
}
