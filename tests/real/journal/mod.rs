//! What may happen to the journal, and to the instances that share one.

mod behind;
pub mod databases;
mod failures;
pub mod instances;
mod marker;
mod recovery;
mod takeover;
