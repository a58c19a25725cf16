//! What a request asks for: who is called, with what and for how much.

use bytes::Bytes;

use crate::model::ids::{Address, Gas, Wei};

/// How much gas a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GasRule {
    /// What the node estimates, and this much more in percent.
    Estimate {
        /// Percent.
        margin: u32,
    },
    /// Always this much; nothing is simulated.
    Fixed(Gas),
}

/// All that a request decides of its transaction. It is fixed when the request is taken in and stored with it, so that
/// every attempt and every instance signs the same, whatever their configuration says by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Who is called.
    pub to: Address,
    /// What is paid.
    pub value: Wei,
    /// How much gas.
    pub gas: GasRule,
    /// The calldata; `None`: the body.
    pub data: Option<Bytes>,
}
