//! Pure rules: they decide, others act. No I/O, no clock, no randomness but the jitter of a pause.

pub mod abi;
pub mod admission;
pub mod arrival;
pub mod batch;
pub mod carried;
pub mod classify;
pub mod fee;
pub mod finality;
pub mod gap;
pub mod gas;
pub mod letters;
pub mod limits;
pub mod mending;
pub mod pause;
pub mod permits;
pub mod postpone;
pub mod records;
pub mod replay;
pub mod revert;
pub mod routes;
pub mod schema;
pub mod spread;
pub mod window;
