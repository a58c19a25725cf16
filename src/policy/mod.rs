//! Pure rules: they decide, others act. No I/O, no clock, and no randomness except the jitter of pauses.

pub mod abi;
pub mod admission;
pub mod arrival;
pub mod assignment;
pub mod batch;
pub mod classify;
pub mod fee;
pub mod finality;
pub mod gas;
pub mod letters;
pub mod limits;
pub mod marker;
pub mod node_texts;
pub mod nonce_gaps;
pub mod passage;
pub mod permits;
pub mod postpone;
pub mod raw_transaction;
pub mod records;
pub mod refusals;
pub mod retry_schedule;
pub mod revert;
pub mod routes;
pub mod schema;
pub mod send_order;
pub mod send_window;
