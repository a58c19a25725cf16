//! SIGHUP, or a command's request: the configuration is read once more, and what is safe to change at run time is taken over.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::broker;
use crate::config::{Faults, Reloaded, Settings};
use crate::model::Address;
use crate::policy::admission::AdmissionRules;
use crate::stages::lane::{RouteRules, Tuning};
use crate::stages::settle::Retries;

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
    /// `[request]`, `[write]`, `[[route]]` and `[policy]`, for intake and for dead letters.
    pub admission: watch::Sender<AdmissionRules>,
    /// Passes lanes their part of them; nothing before the first reload.
    pub routes: watch::Sender<Option<RouteRules>>,
    /// Headers that copies keep.
    pub read_headers: watch::Sender<BTreeSet<String>>,
    pub retiring: watch::Sender<BTreeSet<Address>>,
    /// Nothing before the first reload.
    pub retries: watch::Sender<Option<Retries>>,
}

impl Adjustable {
    pub fn new(settings: &Settings) -> Self {
        Self {
            tuning: watch::Sender::new(settings.tuning),
            max_open: watch::Sender::new(settings.worker.max_open),
            admission: watch::Sender::new(settings.admission.clone()),
            routes: watch::Sender::new(None),
            read_headers: watch::Sender::new(settings.admission.headers()),
            retiring: watch::Sender::new(settings.retiring.clone()),
            retries: watch::Sender::new(None),
        }
    }

    /// Sets all of it before anything else runs: the tasks share one thread, and nothing here waits. Copies keep what they kept,
    /// too: messages of before are at the broker.
    fn set(&self, settings: &Settings) {
        self.read_headers.send_modify(|headers| headers.extend(settings.admission.headers()));
        self.tuning.send_replace(settings.tuning);
        self.max_open.send_replace(settings.worker.max_open);
        self.routes.send_replace(Some((&settings.lane).into()));
        self.admission.send_replace(settings.admission.clone());
        self.retiring.send_replace(settings.retiring.clone());
        let (schedule, waits) = (settings.settle.schedule.clone(), settings.settle.waits.clone());
        self.retries.send_replace(Some(Retries { schedule, waits }));
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
        let reloaded = match read.and_then(|new| running.reloaded(new)) {
            Ok(reloaded) => make_waits(&running, &reloaded.settings).await.map(|()| reloaded),
            Err(faults) => Err(faults),
        };
        let outcome = match reloaded {
            Err(Faults(faults)) => {
                log_faults(&faults);
                Outcome { faults, ..Outcome::default() }
            }
            Ok(Reloaded { settings, taken_over, need_restart }) => {
                if !taken_over.is_empty() {
                    adjustable.set(&settings);
                }
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

/// Makes the wait queues of new delays, or checks that they are there, before a copy can be for one of them.
async fn make_waits(running: &Settings, new: &Settings) -> Result<(), Faults> {
    if running.settle.waits == new.settle.waits {
        return Ok(());
    }
    let made = broker::check(&new.broker, new.broker.topology_mode).await;
    let fault = |error| Faults(vec![format!("- retry: the wait queues of its delays are not there: {error}")]);
    made.map(drop).map_err(fault)
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
    for key in taken_over {
        info!(key, "the configuration was read, and this change is taken over");
    }
    if !need_restart.is_empty() {
        let keys = need_restart.join(", ");
        warn!(keys, "the configuration was read; these changes need a restart, and stay as they were until then");
    }
}
