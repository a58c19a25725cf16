//! The running daemon: its composition root, its tasks, its status.

pub mod app;
pub mod control;
pub mod reload;
pub mod status;
pub mod supervisor;
