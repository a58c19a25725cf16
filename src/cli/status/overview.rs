//! How everything stands, from three sides: the journal, the broker and the running worker. Each may be out of reach.

use std::net::SocketAddr;

use anyhow::bail;
use serde::Serialize;

use crate::broker::{QueueDepth, QueueDepths};
use crate::cli::{exit, text_of};
use crate::config::Settings;
use crate::daemon::status::{self, WorkerReport};
use crate::journal::{JournalOverview, OperatorsJournal};
use crate::model::Timestamp;

/// Answers of the three sides, or why there are none.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(super) struct Overview {
    /// `organisation/instance`, as configured.
    pub(super) worker: String,
    pub(super) queue: String,
    /// EIP-155 chain id.
    pub(super) chain_id: u64,
    pub(super) at: Timestamp,
    pub(super) journal: Side<JournalOverview>,
    pub(super) queues: Side<Vec<QueueDepth>>,
    /// From the running worker; nothing where `http.listen` is off.
    pub(super) process: Option<Side<WorkerReport>>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
#[serde(untagged)]
pub(super) enum Side<T> {
    Seen(T),
    Unseen { error: String },
}

impl<T> Side<T> {
    pub(super) fn seen(&self) -> Option<&T> {
        match self {
            Self::Seen(seen) => Some(seen),
            Self::Unseen { .. } => None,
        }
    }

    fn of(answer: anyhow::Result<T>) -> Self {
        answer.map_or_else(|error| Self::Unseen { error: text_of(&error) }, Self::Seen)
    }
}

impl Overview {
    /// Returns whether all parts answered, which is no judgement of their states.
    pub(super) fn exit_code(&self) -> u8 {
        let process_is_away = self.process.as_ref().is_some_and(|process| process.seen().is_none());
        if self.journal.seen().is_none() {
            exit::JOURNAL
        } else if self.queues.seen().is_none() || process_is_away {
            exit::UNAVAILABLE
        } else {
            exit::OK
        }
    }
}

/// Takes overviews over the same connections.
pub(super) struct Observer {
    settings: Settings,
    journal: Option<Box<dyn OperatorsJournal>>,
    broker: Option<QueueDepths>,
}

impl Observer {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, journal: None, broker: None }
    }

    pub(super) async fn observe(&mut self) -> Overview {
        let journal = Side::of(self.read_journal().await);
        let queues = Side::of(self.read_queues().await);
        let process = match self.settings.http_listen {
            Some(listen) => Some(Side::of(self.ask_process(listen).await)),
            None => None,
        };
        Overview {
            worker: self.settings.worker.full_name(),
            queue: self.settings.queue().to_owned(),
            chain_id: self.settings.chain.chain_id,
            at: Timestamp::now(),
            journal,
            queues,
            process,
        }
    }

    pub(super) async fn close(self) {
        if let Some(journal) = self.journal {
            journal.close().await;
        }
        if let Some(broker) = self.broker {
            broker.close().await;
        }
    }

    async fn read_journal(&mut self) -> anyhow::Result<JournalOverview> {
        let journal = match self.journal.take() {
            Some(journal) => journal,
            None => self.settings.journal.address.open_existing().await?,
        };
        let overview = journal.overview().await?;
        self.journal = Some(journal);
        Ok(overview)
    }

    async fn read_queues(&mut self) -> anyhow::Result<Vec<QueueDepth>> {
        let broker = match self.broker.take() {
            Some(broker) => broker,
            None => QueueDepths::connect(&self.settings.broker).await?,
        };
        let depths = broker.depths().await?;
        self.broker = Some(broker);
        Ok(depths)
    }

    async fn ask_process(&self, listen: SocketAddr) -> anyhow::Result<WorkerReport> {
        let report = status::ask(listen).await?;
        let expected = self.settings.worker.full_name();
        if report.worker != expected {
            bail!(
                "http.listen {listen} is answered by {}, not by {expected}; give each instance its own http.listen",
                report.worker
            );
        }
        Ok(report)
    }
}
