//! What operators see, set and run.

mod cancelling;
mod commands;
mod dead_letters;
mod doctor;
#[cfg(feature = "otlp")]
mod exported;
mod flow;
pub mod host;
mod limits;
mod observing;
mod pages;
mod policy;
pub mod process;
mod replay_rules;
mod requests;
mod traces;
