//! chainwriter takes messages from a RabbitMQ work queue, writes each one to an EVM chain exactly once, and acknowledges
//! it when the write is final. `ARCHITECTURE.md` shows how the modules fit together.

pub(crate) mod broker;
pub(crate) mod chain;
pub(crate) mod cli;
pub(crate) mod config;
pub(crate) mod daemon;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub(crate) mod journal;
pub(crate) mod model;
pub(crate) mod observe;
pub(crate) mod policy;
pub(crate) mod rpc;
pub(crate) mod signer;
#[cfg(test)]
mod simulation;
pub(crate) mod stages;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

pub use cli::main;

/// Parts that the integration tests and the benchmarks use. Nothing else is public, and no version promises them.
pub mod testing {
    pub use crate::chain::transaction_hash;
    pub use crate::journal::{Acquired, Admissions, Arrival, Leases, SqliteJournal};
    pub use crate::model::{
        Address, BodyHash, Fee, Gas, GasRule, Generation, HeaderValue, Message, Nonce, Properties, RequestId,
        UnsignedTransaction, Wei, Write,
    };
    pub use crate::policy::abi::{self, Many};
    pub use crate::policy::admission::{AdmissionRules, Scope, TextSource, admit};
    pub use crate::policy::classify::{ErrorTable, SendMeaning};
    pub use crate::policy::routes::Route;
    pub use crate::signer::{LocalSigner, Signer};
}
