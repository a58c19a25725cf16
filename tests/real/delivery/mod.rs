//! Messages on their way from the work queue into the chain and back.

mod batches;
mod binds;
mod broker;
mod crashes;
mod duplicates;
mod frames;
mod messages;
mod outside;
mod poison;
mod producers;
pub mod refusals;
mod republish;
mod retries;
mod routes;
mod scopes;
mod sessions;
mod stops;
mod topology;
mod unreadable;
mod writes;
