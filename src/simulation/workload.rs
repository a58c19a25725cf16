//! The requests of a run, and what is true about each: bodies say what the contract will make of them.

use std::sync::LazyLock;

use bytes::Bytes;
use fastrand::Rng;

use crate::model::{ContentHash, RecordId, RequestId};
use crate::policy::abi::{self, Many};
use crate::policy::records::{self, Kept};

/// The contract's function for one body.
pub(super) const FUNCTION: &str = "keep(string)";
/// The same for many. They run together or not at all.
pub(super) static MANY: LazyLock<Many> = LazyLock::new(|| {
    let function = |signature| abi::function(signature).expect("it is a signature");
    Many::new(&function(FUNCTION), &function("keepMany(string[])")).expect("it does the same for many")
});

/// In some of the runs the contract keeps each id once. This is its function for many, which runs for all or not at all.
pub(super) static RECORDS: LazyLock<Many> =
    LazyLock::new(|| records::many(Kept::Body).expect("it does the same for many"));

/// What the contract, and the nodes before it, make of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    Runs,
    /// Every simulation and every run reverts.
    Reverts,
    /// Reverts until so many milliseconds after the begin.
    RevertsUntil(u64),
    /// Simulations are fine, and the chain reverts.
    RevertsOnChain,
    /// The same, until so many milliseconds after the begin.
    RevertsOnChainUntil(u64),
    /// Simulations are fine, and no node takes it: in words that every table has, that say that no waiting helps, or in
    /// unknown ones.
    Refused(Words),
    /// Nodes take it, and drop it when they make a block.
    Dropped,
    /// It is written, but not before so many milliseconds after the begin.
    Later(u64),
    /// Nothing is signed for it from this time on, in milliseconds after the begin.
    Until(u64),
    /// It costs more than the account has.
    Costly,
    /// Nodes answer its simulation with nothing but a text that says nothing about it.
    Unsimulated,
    /// No node ever answers its simulation, nor any call beside it.
    Hangs,
    /// Nodes fail at its transaction as in an outage, and answer every other call.
    Denied,
    /// Pools keep it, and no block takes it at any price.
    Unmined,
}

/// How a node refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    Known,
    Lasting,
    Unknown,
}

impl Words {
    pub(super) const ALL: [Self; 3] = [Self::Known, Self::Lasting, Self::Unknown];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Known => "exceeds block gas limit",
            Self::Lasting => "transaction type not supported",
            Self::Unknown => "the stars are wrong",
        }
    }
}
/// What nodes say of [`Behaviour::Unsimulated`].
const NOT_SIMULATED: [&str; 3] = ["Internal error", "execution aborted (timeout = 5s)", "Timeout expired"];

impl Behaviour {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        match rng.u8(0..100) {
            0..52 => Self::Runs,
            52..58 => Self::Until(rng.u64(1..60_000)),
            58..64 => Self::Later(rng.u64(1..80_000)),
            64..70 => Self::Reverts,
            70..78 => Self::RevertsUntil(rng.u64(1..30_000)),
            78..86 => Self::RevertsOnChain,
            86..92 => Self::RevertsOnChainUntil(rng.u64(1..30_000)),
            92..96 => Self::Dropped,
            word => Self::Refused(Words::ALL[usize::from(word) % 3]),
        }
    }

    /// What no run has by itself: a request that may stop all others of its account.
    pub(super) fn draw_poison(rng: &mut Rng) -> Self {
        match rng.u8(0..5) {
            0 => Self::Costly,
            1 => Self::Unsimulated,
            2 => Self::Denied,
            3 => Self::Unmined,
            _ => Self::Hangs,
        }
    }

    /// May it become a dead letter for a reason of its own?
    pub(super) fn may_fail(self) -> bool {
        !matches!(self, Self::Runs | Self::Later(_) | Self::Until(_))
    }

    pub(super) fn refused(self) -> Option<Words> {
        if let Self::Refused(words) = self { Some(words) } else { None }
    }

    pub(super) fn runs_in_simulation(self, now_ms: u64) -> bool {
        match self {
            Self::Runs | Self::Later(_) | Self::Until(_) | Self::RevertsOnChain | Self::RevertsOnChainUntil(_) => true,
            Self::Refused(_) | Self::Dropped | Self::Costly | Self::Denied | Self::Unmined => true,
            Self::Reverts | Self::Unsimulated | Self::Hangs => false,
            Self::RevertsUntil(end) => now_ms >= end,
        }
    }

    pub(super) fn runs_on_chain(self, now_ms: u64) -> bool {
        match self {
            Self::Runs | Self::Later(_) | Self::Until(_) | Self::Refused(_) | Self::Dropped => true,
            Self::Costly | Self::Unsimulated | Self::Hangs | Self::Denied | Self::Unmined => true,
            Self::Reverts | Self::RevertsOnChain => false,
            Self::RevertsUntil(end) | Self::RevertsOnChainUntil(end) => now_ms >= end,
        }
    }
}

/// The records that this calldata asks for.
pub(super) fn records_in(data: &[u8]) -> Vec<(RecordId, ContentHash)> {
    let is_record = RECORDS.is_for(data) || data.starts_with(&RECORDS.selector());
    if is_record { Body::all(data).iter().map(Body::record).collect() } else { Vec::new() }
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
        self.id.rsplit('r').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// The id that the producer gave it, within its scope if it has one.
    pub(super) fn id_in_scope(&self) -> &str {
        self.scope().map_or(&self.id, |scope| self.id.get(scope.len() + 1..).unwrap_or_default())
    }

    pub(super) fn scope(&self) -> Option<&str> {
        self.id.split_once('/').map(|(scope, _)| scope)
    }

    /// Reads the id in the text of a body: no program may change that.
    pub(super) fn id_in(data: &[u8]) -> Option<&str> {
        std::str::from_utf8(data).ok()?.trim_matches('"').rsplitn(4, '/').nth(3)
    }

    /// What nodes say to its simulation, if that says nothing about it.
    pub(super) fn not_simulated(&self) -> Option<&'static str> {
        let is_it = self.behaviour == Behaviour::Unsimulated;
        NOT_SIMULATED.into_iter().cycle().nth(usize::try_from(self.number() % 3).unwrap_or(0)).filter(|_| is_it)
    }

    /// Returns whether calldata is of one that behaves so.
    pub(super) fn any(data: &[u8], behaviour: Behaviour) -> bool {
        Self::all(data).iter().any(|body| body.behaviour == behaviour)
    }

    pub(super) fn text(&self) -> String {
        let (word, until) = match self.behaviour {
            Behaviour::Runs => ("runs", 0),
            Behaviour::Reverts => ("reverts", 0),
            Behaviour::RevertsUntil(end) => ("reverts-until", end),
            Behaviour::RevertsOnChain => ("on-chain", 0),
            Behaviour::RevertsOnChainUntil(end) => ("on-chain-until", end),
            Behaviour::Refused(words) => ("refused", words as u64),
            Behaviour::Dropped => ("dropped", 0),
            Behaviour::Later(begin) => ("later", begin),
            Behaviour::Until(end) => ("until", end),
            Behaviour::Costly => ("costly", 0),
            Behaviour::Unsimulated => ("unsimulated", 0),
            Behaviour::Hangs => ("hangs", 0),
            Behaviour::Denied => ("denied", 0),
            Behaviour::Unmined => ("unmined", 0),
        };
        // A JSON document, since routes may read it.
        format!("\"{}/{word}/{until}/{}\"", self.id, self.version)
    }

    /// Those that calldata is of: it is one itself, or a call with one, or a call with many.
    pub(super) fn all(data: &[u8]) -> Vec<Self> {
        if let Some(calls) = MANY.split(data).or_else(|| RECORDS.split(data)) {
            return calls.iter().filter_map(|call| Self::called(call)).collect();
        }
        Self::read(data).or_else(|| Self::called(data)).into_iter().collect()
    }

    /// Solidity, "Contract ABI Specification": selector, of a record its id, offset, length, text.
    fn called(call: &[u8]) -> Option<Self> {
        let length_at = match (MANY.is_for(call), RECORDS.is_for(call)) {
            (true, _) => 4 + 32,
            (_, true) => 4 + 64,
            (false, false) => return None,
        };
        let length = usize::from(*call.get(length_at..length_at + 32)?.last()?);
        Self::read(call.get(length_at + 32..)?.get(..length)?)
    }

    /// What a call with it keeps, where the contract keeps records.
    pub(super) fn record(&self) -> (RecordId, ContentHash) {
        let id = RequestId::new(&self.id).expect("it was published as one");
        (records::record_id(&id), records::content_hash(self.text().as_bytes()))
    }

    /// The call that records it.
    pub(super) fn record_call(&self) -> Bytes {
        records::calldata(self.record().0, self.text().as_bytes(), Kept::Body)
    }

    pub(super) fn read(data: &[u8]) -> Option<Self> {
        // An id may have a slash.
        let mut parts = std::str::from_utf8(data).ok()?.trim_matches('"').rsplitn(4, '/');
        let version = parts.next()?.parse().ok()?;
        let until = parts.next()?.parse().ok()?;
        let (word, id) = (parts.next()?, parts.next()?.to_owned());
        let behaviour = match word {
            "runs" => Behaviour::Runs,
            "reverts" => Behaviour::Reverts,
            "reverts-until" => Behaviour::RevertsUntil(until),
            "on-chain" => Behaviour::RevertsOnChain,
            "on-chain-until" => Behaviour::RevertsOnChainUntil(until),
            "refused" => Behaviour::Refused(*Words::ALL.get(usize::try_from(until).ok()?)?),
            "dropped" => Behaviour::Dropped,
            "later" => Behaviour::Later(until),
            "until" => Behaviour::Until(until),
            "costly" => Behaviour::Costly,
            "unsimulated" => Behaviour::Unsimulated,
            "hangs" => Behaviour::Hangs,
            "denied" => Behaviour::Denied,
            "unmined" => Behaviour::Unmined,
            _ => return None,
        };
        Some(Self { id, behaviour, version })
    }
}
