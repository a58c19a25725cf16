//! chainwriter takes messages from a RabbitMQ work queue, writes each one to an EVM chain exactly once, and acknowledges
//! it when the write is final. `ARCHITECTURE.md` says how the modules hang together.

pub mod chain;
pub mod journal;
pub mod model;
pub mod policy;
pub mod signer;
