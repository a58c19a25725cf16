//! The stage where every delivery ends. An outcome is stored, then published, then its confirm is stored, then the delivery is
//! acked: in this order, so that after a crash anywhere the broker still has the delivery or the journal has its end.
//!
//! | file | role |
//! |---|---|
//! | `stage` | what the stage holds, its loop and its step |
//! | `inbox` | what intake and the lanes send here |
//! | `held` | the unacked deliveries, by request |
//! | `decisions` | what a lane's ruling leads to; pure |
//! | `copies` | publishes retries, parks and dead letters; `published` is one of them on its way, `targets` says which may go now |
//! | `reorged_finals` | records final writes that the chain has lost |
//! | `spans` | records traces |

mod copies;
mod decisions;
mod held;
pub mod inbox;
mod published;
mod reorged_finals;
mod spans;
mod stage;
mod targets;

pub use decisions::{Retries, SettleSettings};
pub use stage::Settle;
