//! How dead letters go back to the work queue.

pub mod replay_guard;
pub mod replayer;
