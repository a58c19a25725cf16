//! The whole program against fakes at its seams: one thread, virtual time, nothing left to chance.

mod journal;
mod store;
mod twins;
