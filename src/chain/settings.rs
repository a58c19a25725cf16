//! The settings of a client of a chain.

use std::sync::Arc;
use std::time::Duration;

use crate::chain::EndpointAccess;
use crate::observe::traces::Tracer;
use crate::policy::classify::ErrorTable;
use crate::policy::finality::FinalityRule;

#[derive(Clone)]
pub struct ClientSettings {
    /// The chain id that every endpoint must have.
    pub chain_id: u64,
    /// In the order in which calls try them.
    pub endpoints: Vec<EndpointAccess>,
    /// WebSockets that announce new blocks.
    pub heads: Vec<EndpointAccess>,
    /// Of one HTTP call.
    pub timeout: Duration,
    /// Calls in one JSON-RPC batch at most.
    pub batch_size: usize,
    /// Blocks that a usable endpoint may be behind another.
    pub max_lag: u64,
    pub errors: Arc<ErrorTable>,
    pub tracer: Tracer,
    pub confirmation: Confirmation,
    /// Which of the tips that were paid is taken for the market's.
    pub tip_percentile: u8,
}

/// The endpoints that have to show what is final, too.
#[derive(Clone)]
pub struct Confirmation {
    /// Empty where none has to.
    pub endpoints: Vec<EndpointAccess>,
    pub finality: FinalityRule,
}

impl std::fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a key.
        f.debug_struct("ClientSettings").field("chain_id", &self.chain_id).finish_non_exhaustive()
    }
}
