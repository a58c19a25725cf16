//! What nodes, chains and signers do.

mod answers;
mod endpoints;
mod lanes;
pub mod nodes;
mod nonces;
mod outages;
mod poison;
pub mod records;
mod reorgs;
mod signers;
mod transactions;
