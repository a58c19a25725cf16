//! What nodes, chains and signers do.

mod answers;
mod endpoints;
mod fees;
mod lanes;
pub mod nodes;
mod nonces;
mod outages;
mod poison;
mod pools;
pub mod records;
mod refusals;
mod reorgs;
mod signers;
mod transactions;
