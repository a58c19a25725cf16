//! Parts that follow the chain: what is in it, what is final, who wrote it. They report; the stages decide.

pub mod broadcaster;
pub mod estimator;
pub mod history;
pub mod nonce_taker;
pub mod receipt_reader;
pub mod record_search;
pub mod tracker;
