//! The report of a running worker: the answer of `/status`, and what `chainwriter status` shows.

use serde::{Deserialize, Serialize};

use crate::broker::PrefetchLimit;
use crate::chain::EndpointState;
use crate::daemon::status::RecentLine;
use crate::journal::JournalOverview;
use crate::model::text::counted;
use crate::model::{Address, BlockNumber, Nonce, Timestamp, Wei};

/// Shows a worker. Times are RFC 3339, amounts decimal texts in wei.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    pub worker: String,
    pub version: String,
    pub queue: String,
    pub chain_id: u64,
    pub started_at: Timestamp,
    pub at: Timestamp,
    /// Why it is not ready, in words; empty when it is.
    pub not_ready: Vec<String>,
    /// Stages that stand still, as the watchdog sees it.
    pub stuck: Vec<String>,
    pub broker: BrokerReport,
    /// One for each `[[signer]]`, in their order.
    pub lanes: Vec<LaneReport>,
    /// In the order of `chain.endpoints`.
    pub endpoints: Vec<EndpointState>,
    /// The journal as it was read last, some seconds ago at most; none before the first time.
    pub journal: Option<JournalOverview>,
    /// Messages since the start whose body is hexadecimal text, where its characters become the calldata.
    #[serde(default)]
    pub hex_bodies: u64,
    /// The last warnings and errors of its log, newest first.
    pub recent: Vec<RecentLine>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerReport {
    /// `connecting`, `consuming`, `paused` or `blocked`.
    pub state: String,
    /// Why it is away or takes no messages.
    pub detail: Option<String>,
    /// There is room for deliveries, and a lane that takes requests.
    pub deliveries_wanted: bool,
    /// Requests whose deliveries this instance holds unacknowledged.
    pub deliveries_held: u64,
    /// The number that it may hold now.
    #[serde(default)]
    pub prefetch: u16,
    /// The limit that keeps it from being more.
    #[serde(default)]
    pub prefetch_limit: Option<PrefetchLimit>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneReport {
    pub account: Address,
    pub owner: bool,
    /// Set with `retire = true`: requests and events that the account has left; nothing before the journal was read.
    #[serde(default)]
    pub retiring: Option<Retiring>,
    /// Set while it takes requests, or another instance's lane does.
    pub open: bool,
    /// Why it takes on nothing new.
    pub paused: Option<PauseReport>,
    /// The operator's hold on the account, or on everything: what, since when, by whom and why.
    #[serde(default)]
    pub on_hold: Option<String>,
    /// The limit of `[limits]` that holds requests back, and until when.
    #[serde(default)]
    pub throttled: Option<String>,
    pub in_flight: u64,
    /// The number that may wait for a block now.
    pub window: u64,
    /// The limit that keeps it from being more: `start`, `blocks`, `pool` or `in_flight`.
    #[serde(default)]
    pub window_limit: String,
    pub next_nonce: Option<Nonce>,
    pub head: Option<BlockNumber>,
    /// The time that the block itself names.
    pub head_at: Option<Timestamp>,
    /// The most that a transaction would offer now for one unit of gas.
    pub fee_wei: Option<String>,
    pub balance_wei: Option<String>,
    /// Nonces in gaps that something was sent for since the start.
    pub nonces_filled: u64,
    /// The first requests that wait while others pass them, or that others wait for.
    #[serde(default)]
    pub held: Vec<HeldReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retiring {
    pub left: Option<u64>,
}

impl Retiring {
    /// Returns how far it is, for a person.
    pub fn text(&self) -> String {
        match self.left {
            None => "it retires".to_owned(),
            Some(0) => "it has retired: nothing is left, and its [[signer]] can be taken out".to_owned(),
            Some(left) => format!("it retires: {} left to finish", counted(left, "request or event")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldReport {
    pub request: String,
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseReport {
    pub reason: String,
    pub detail: String,
}

/// Reads an amount of the report.
pub fn wei(text: &str) -> Option<Wei> {
    text.parse().ok().map(Wei)
}
