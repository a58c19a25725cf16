//! The running daemon: its composition root, its tasks, and what it says of itself.

pub mod app;
pub mod reload;
pub mod status;
pub mod supervisor;
