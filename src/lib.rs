//! chainwriter takes messages from a RabbitMQ work queue, writes each one to an EVM chain exactly once, and acknowledges
//! it when the write is final. `ARCHITECTURE.md` says how the modules hang together.

pub mod app;
pub mod broadcaster;
pub mod broker;
pub mod chain;
pub mod cli;
pub mod config;
pub mod evidence;
#[cfg(feature = "otlp")]
pub mod exporter;
pub mod handover;
pub mod intake;
pub mod journal;
pub mod judge;
pub mod lane;
pub mod metrics;
pub mod model;
pub mod outbox;
pub mod pipeline;
pub mod policy;
pub mod proof;
pub mod receipt_reader;
pub mod recovery;
pub mod reload;
pub mod replayer;
mod rpc;
pub mod salvage;
pub mod settle;
pub mod signer;
#[cfg(test)]
mod simulation;
pub mod spreading;
pub mod status;
pub mod supervisor;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
pub mod traces;
pub mod tracker;
