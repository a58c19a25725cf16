//! The daemon on the real parts: a private RabbitMQ for all of these tests, a private Anvil for each of them.

#![allow(unreachable_pub, missing_docs, reason = "a test binary has no users")]

#[path = "../support/mod.rs"]
mod support;

mod happy;
mod stage;
mod writes;
