//! The stages between the seams, in the order of the data.

pub mod assignment;
pub mod dead_letters;
pub mod intake;
pub mod lane;
pub mod outbox;
pub mod pipeline;
pub mod settle;
