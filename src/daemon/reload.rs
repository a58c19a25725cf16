//! SIGHUP, or a command's request: the configuration is read once more, and what is safe to change at run time is taken over.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::config::{Faults, Reloaded, Settings};
use crate::stages::lane::Tuning;

pub struct Reloading {
    /// Reads the configuration; may take as long as it takes to open a keystore.
    pub load: Arc<dyn Fn() -> Result<Settings, Faults> + Send + Sync>,
    /// Sets the least important level that the log has.
    pub set_log_level: Box<dyn Fn(tracing::Level) + Send>,
}

/// The settings that may change at run time, as the parts of the program see them.
pub struct Adjustable {
    pub tuning: watch::Sender<Tuning>,
    pub max_open: watch::Sender<u64>,
}

impl Adjustable {
    pub fn new(settings: &Settings) -> Self {
        Self { tuning: watch::Sender::new(settings.tuning), max_open: watch::Sender::new(settings.worker.max_open) }
    }

    fn set(&self, settings: &Settings) {
        self.tuning.send_replace(settings.tuning);
        self.max_open.send_replace(settings.worker.max_open);
    }
}

/// The outcome of a reload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why nothing was taken over.
    pub faults: Vec<String>,
    pub taken_over: Vec<String>,
    /// Keys that have changed, and stay as they were until a restart.
    pub need_restart: Vec<String>,
}

/// Asks for a reload: the signal, and commands that wait for the outcome.
pub struct Triggers {
    pub hangups: Signal,
    pub requests: mpsc::Receiver<oneshot::Sender<Outcome>>,
}

impl Triggers {
    /// Waits for the next one. Returns where its outcome goes, if anybody waits for that.
    async fn next(&mut self) -> Option<oneshot::Sender<Outcome>> {
        tokio::select! {
            _ = self.hangups.recv() => None,
            Some(request) = self.requests.recv() => Some(request),
        }
    }
}

/// Takes over what changes, trigger by trigger. A configuration with faults changes nothing.
pub async fn run(mut running: Settings, reloading: Reloading, adjustable: Adjustable, mut triggers: Triggers) {
    let Reloading { load, set_log_level } = reloading;
    loop {
        let waits = triggers.next().await;
        let load = Arc::clone(&load);
        let read = tokio::task::spawn_blocking(move || load()).await;
        let read = read.unwrap_or_else(|_| Err(Faults(vec!["- reading it panicked; see the log".to_owned()])));
        let outcome = match read.and_then(|new| running.reloaded(new)) {
            Err(Faults(faults)) => {
                log_faults(&faults);
                Outcome { faults, ..Outcome::default() }
            }
            Ok(Reloaded { settings, taken_over, need_restart }) => {
                adjustable.set(&settings);
                set_log_level(settings.log.level);
                running = settings;
                log_changes(&taken_over, &need_restart);
                Outcome { faults: Vec::new(), taken_over, need_restart }
            }
        };
        if let Some(waits) = waits {
            // The command may have ended meanwhile.
            let _ = waits.send(outcome);
        }
    }
}

fn log_faults(faults: &[String]) {
    for fault in faults {
        let fault = fault.trim_start_matches("- ");
        error!(fault, "the configuration has a fault: nothing of it is taken over, all stays as it is");
    }
}

fn log_changes(taken_over: &[String], need_restart: &[String]) {
    if taken_over.is_empty() && need_restart.is_empty() {
        info!("the configuration was read: nothing has changed");
    }
    if !taken_over.is_empty() {
        info!(keys = taken_over.join(", "), "the configuration was read, and changes are taken over");
    }
    if !need_restart.is_empty() {
        let keys = need_restart.join(", ");
        warn!(keys, "the configuration was read; these changes need a restart, and stay as they were until then");
    }
}
