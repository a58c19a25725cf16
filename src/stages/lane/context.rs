//! Shared by all terms of a lane: its settings, the seams that it works with, and its ways to settle and to the outside.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::chain::Chain;
use crate::signer::Signer;
use crate::stages::lane::settings::{LaneJournal, LaneSettings, LaneSignals};
use crate::stages::settle::inbox::FromLane;

/// Longest interval between heartbeats while nodes are waited for.
const BEAT: Duration = Duration::from_secs(1);

pub(super) struct Context {
    pub(super) settings: LaneSettings,
    pub(super) chain: Arc<dyn Chain>,
    pub(super) signer: Arc<dyn Signer>,
    pub(super) journal: Arc<dyn LaneJournal>,
    pub(super) settle: mpsc::Sender<FromLane>,
    pub(super) signals: LaneSignals,
}

impl Context {
    pub(super) async fn to_settle(&self, message: FromLane) {
        // Settle has gone only when the process ends.
        let _ = self.settle.send(message).await;
    }

    /// Waits for an answer of nodes, and beats meanwhile: each call ends by itself, and several of them may take long.
    pub(super) async fn hear<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        loop {
            self.signals.beat.beat();
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                () = tokio::time::sleep(BEAT) => {}
            }
        }
    }
}
