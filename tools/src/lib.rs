//! What the tools have in common: the daemon's own test support, a private RabbitMQ, Anvil and PostgreSQL.

#[path = "../../tests/support/mod.rs"]
pub mod support;
