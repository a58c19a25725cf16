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

mod chain;
mod delivery;
mod journal;
mod operators;
mod security;
mod stage;
