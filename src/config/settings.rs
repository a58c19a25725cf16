//! The settings of each part of the program, and what must not stand in them together.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::broker::BrokerSettings;
use crate::chain::ClientSettings;
use crate::config::fingerprints::Prints;
use crate::config::signers::SignerSection;
use crate::journal::JournalAddress;
use crate::model::{Address, GasRule};
use crate::observe::traces::{ExporterSettings, Sampling};
use crate::policy::admission::AdmissionRules;
use crate::policy::letters::rules::ReplayRules;
use crate::policy::replies::ReplyRules;
use crate::policy::routes::Route;
use crate::stages::lane::{LaneRules, Tuning};
use crate::stages::settle::SettleSettings;

/// The settings of each part of the program. `[retry]` is part of `settle`; `[fees]`, `[limits]` and `[outage]` of `tuning`.
#[derive(Debug, Clone)]
pub struct Settings {
    pub worker: WorkerSection,
    /// `[broker]` and `[[bind]]`
    pub broker: BrokerSettings,
    /// `[request]`, `[write]`, `[[route]]`, `[policy]` and `broker.max_body`
    pub admission: AdmissionRules,
    /// `request.reply_to` and `request.reply_timeout`
    pub replies: Arc<ReplyRules>,
    pub settle: SettleSettings,
    /// The endpoints' keys of `[chain]`.
    pub chain: ClientSettings,
    /// The same for all lanes: the rest of `[chain]`, `[batch]` and `lease.ttl`.
    pub lane: LaneRules,
    /// May change at run time, except for the limits by days, which are `[policy]`'s.
    pub tuning: Tuning,
    pub signers: Vec<SignerSection>,
    /// Accounts of signers with `retire = true`.
    pub retiring: BTreeSet<Address>,
    pub dead: ReplayRules,
    pub journal: JournalSection,
    /// `[traces]`, where they are exported.
    #[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "a build without the exporter refuses the section"))]
    pub traces: Option<TracesSettings>,
    pub http_listen: Option<SocketAddr>,
    /// The file with the token that opens `/requests`.
    pub http_token: Option<PathBuf>,
    pub log: LogSection,
    /// The fingerprint of each key.
    pub(super) prints: Prints,
}

impl Settings {
    /// Returns the name of the work queue.
    pub fn queue(&self) -> &str {
        &self.broker.topology.names.work
    }

    /// Returns what does not fit together across sections: the key to change, and why.
    pub(super) fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let shared = self.admission.routes.iter().find(|route| route.max_open.is_some());
        if let Some(Route { name, .. }) = shared.filter(|_| self.admission.order_by.is_some()) {
            let problem = format!(
                "is set, and {name}.max_open too: what waits at the broker for room would lose its order; remove one of them"
            );
            found.push(("request.order_by", problem));
        }
        if !self.signers.is_empty() && self.retiring.len() == self.signers.len() {
            let problem =
                "every one that runs has retire = true, so none takes new messages; add one, or set it to false";
            found.push(("signer", problem.to_owned()));
        }
        for Route { name, gas, .. } in &self.admission.routes {
            if let (GasRule::Fixed(gas), Some(most)) = (gas, self.tuning.limits.gas_per_hour)
                && *gas > most
            {
                let problem = format!("is {most}, and {name}.gas is {gas}: no request could ever be written; raise it");
                found.push(("limits.gas_per_hour", problem));
            }
        }
        for Route { name, max_fee, .. } in &self.admission.routes {
            let min_tip = self.tuning.fees.min_tip;
            if let Some(cap) = max_fee.filter(|cap| *cap < min_tip) {
                let problem = format!("is {min_tip}, and {name}.max_fee is {cap}: nothing of it could ever be signed");
                found.push(("fees.min_tip", problem));
            }
        }
        found
    }
}

#[derive(Debug, Clone)]
pub struct WorkerSection {
    pub organisation: String,
    pub instance: String,
    pub max_open: u64,
    /// Limits the time of a stop.
    pub drain_deadline: Duration,
}

impl WorkerSection {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.organisation, self.instance)
    }
}

#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "otlp"), allow(dead_code, reason = "a build without the exporter refuses the section"))]
pub struct TracesSettings {
    pub exporter: ExporterSettings,
    pub sampling: Sampling,
}

#[derive(Debug, Clone)]
pub struct JournalSection {
    pub address: JournalAddress,
    /// Keeps settled requests for this long.
    pub retention: Duration,
    /// Published events are kept for so long.
    pub keep_events: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Clone, Copy)]
pub struct LogSection {
    /// The least important level that is written.
    pub level: tracing::Level,
    pub format: LogFormat,
}
