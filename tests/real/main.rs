//! The daemon on the real parts: a private RabbitMQ for all of these tests, a private Anvil for each of them.

#![allow(unreachable_pub, missing_docs, dead_code, reason = "a test binary has no users")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "the lint's own exception for tests misses their helpers"
)]

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod backlog;
mod batches;
mod binds;
mod broker_life;
mod cancelling;
mod chain_life;
mod commands;
mod crashes;
mod databases;
mod dead_letters;
mod doctor;
mod duplicates;
mod endpoints;
#[cfg(feature = "otlp")]
mod exported;
mod happy;
mod host;
mod instances;
mod journal_files;
mod journal_life;
mod lanes;
mod later;
mod limits;
mod node_texts;
mod nodes;
mod nonces;
mod observing;
mod poison;
mod policy;
mod process;
mod records;
mod recovery;
mod refusals;
mod reload;
mod reorgs;
mod replay_rules;
mod republish;
mod retries;
mod routes;
mod secrets;
mod sessions;
mod signer_tls;
mod signers;
mod stage;
mod stops;
mod tls;
mod topology;
mod traces;
mod writes;
