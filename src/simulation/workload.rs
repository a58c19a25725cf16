//! The requests of a run, and what is true about each: bodies say what the contract will make of them.

use std::sync::LazyLock;

use fastrand::Rng;

use crate::policy::abi::{self, Many};

/// The contract's function for one body.
pub(super) const FUNCTION: &str = "keep(string)";
/// The same for many. They run together or not at all.
pub(super) static MANY: LazyLock<Many> = LazyLock::new(|| {
    let function = |signature| abi::function(signature).expect("it is a signature");
    Many::new(&function(FUNCTION), &function("keepMany(string[])")).expect("it does the same for many")
});

/// What the contract, and the nodes before it, make of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// It is written.
    Runs,
    /// Every simulation and every run reverts.
    Reverts,
    /// Reverts until so many milliseconds after the begin.
    RevertsUntil(u64),
    /// Simulations are fine, and the chain reverts.
    RevertsOnChain,
    /// The same, until so many milliseconds after the begin.
    RevertsOnChainUntil(u64),
    /// Simulations are fine, and no node takes it.
    Refused,
    /// Nodes take it, and drop it when they make a block.
    Dropped,
    /// It is written, but not before so many milliseconds after the begin.
    Later(u64),
}

impl Behaviour {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        match rng.u8(0..100) {
            0..58 => Self::Runs,
            58..64 => Self::Later(rng.u64(1..80_000)),
            64..70 => Self::Reverts,
            70..78 => Self::RevertsUntil(rng.u64(1..30_000)),
            78..86 => Self::RevertsOnChain,
            86..92 => Self::RevertsOnChainUntil(rng.u64(1..30_000)),
            92..96 => Self::Dropped,
            _ => Self::Refused,
        }
    }

    /// May it become a dead letter for a reason of its own?
    pub(super) fn may_fail(self) -> bool {
        !matches!(self, Self::Runs | Self::Later(_))
    }

    pub(super) fn is_refused(self) -> bool {
        self == Self::Refused
    }

    pub(super) fn runs_in_simulation(self, now_ms: u64) -> bool {
        match self {
            Self::Runs | Self::Later(_) | Self::RevertsOnChain | Self::RevertsOnChainUntil(_) => true,
            Self::Refused | Self::Dropped => true,
            Self::Reverts => false,
            Self::RevertsUntil(end) => now_ms >= end,
        }
    }

    pub(super) fn runs_on_chain(self, now_ms: u64) -> bool {
        match self {
            Self::Runs | Self::Later(_) | Self::Refused | Self::Dropped => true,
            Self::Reverts | Self::RevertsOnChain => false,
            Self::RevertsUntil(end) | Self::RevertsOnChainUntil(end) => now_ms >= end,
        }
    }
}

/// A message's body, readable from calldata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) id: String,
    pub(super) behaviour: Behaviour,
    /// Bodies that an operator edited count on.
    pub(super) version: u32,
}

impl Body {
    /// The one in its id.
    pub(super) fn number(&self) -> u64 {
        self.id.trim_start_matches('r').parse().unwrap_or(0)
    }

    pub(super) fn text(&self) -> String {
        let (word, until) = match self.behaviour {
            Behaviour::Runs => ("runs", 0),
            Behaviour::Reverts => ("reverts", 0),
            Behaviour::RevertsUntil(end) => ("reverts-until", end),
            Behaviour::RevertsOnChain => ("on-chain", 0),
            Behaviour::RevertsOnChainUntil(end) => ("on-chain-until", end),
            Behaviour::Refused => ("refused", 0),
            Behaviour::Dropped => ("dropped", 0),
            Behaviour::Later(begin) => ("later", begin),
        };
        // A JSON document, since routes may read it.
        format!("\"{}/{word}/{until}/{}\"", self.id, self.version)
    }

    /// Those that calldata is of: it is one itself, or a call with one, or a call with many.
    pub(super) fn all(data: &[u8]) -> Vec<Self> {
        if let Some(calls) = MANY.split(data) {
            return calls.iter().filter_map(|call| Self::called(call)).collect();
        }
        Self::read(data).or_else(|| Self::called(data)).into_iter().collect()
    }

    /// Solidity, "Contract ABI Specification": selector, offset, length, text.
    fn called(call: &[u8]) -> Option<Self> {
        let length = call.get(4 + 32..).and_then(|rest| rest.get(..32))?;
        let length = usize::from(*length.last()?);
        Self::read(call.get(4 + 64..)?.get(..length)?).filter(|_| MANY.is_for(call))
    }

    pub(super) fn read(data: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(data).ok()?.trim_matches('"').split('/');
        let (id, word) = (parts.next()?.to_owned(), parts.next()?);
        let until = parts.next()?.parse().ok()?;
        let version = parts.next()?.parse().ok()?;
        let behaviour = match word {
            "runs" => Behaviour::Runs,
            "reverts" => Behaviour::Reverts,
            "reverts-until" => Behaviour::RevertsUntil(until),
            "on-chain" => Behaviour::RevertsOnChain,
            "on-chain-until" => Behaviour::RevertsOnChainUntil(until),
            "refused" => Behaviour::Refused,
            "dropped" => Behaviour::Dropped,
            "later" => Behaviour::Later(until),
            _ => return None,
        };
        Some(Self { id, behaviour, version })
    }
}
