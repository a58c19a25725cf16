//! Calls that fail while others are answered, in the words of providers that have no node behind them.

use crate::chain::{ChainError, refused};
use crate::policy::classify::ErrorTable;
use crate::rpc::Refusal;
use crate::simulation::world::{CallKind, World};

/// What providers say when there is no node behind them, by HTTP status: in known words and in words that no table knows.
const OUTAGES: &[(u16, &str)] = &[
    (200, "no backend is currently healthy to serve traffic"),
    (200, "No available upstream"),
    (503, "Service Unavailable"),
    (503, "execution reverted"),
    (402, "Payment Required"),
    (403, "this key is not for you"),
    (500, "the moon is full"),
    (200, "the moon is full"),
    (200, "missing trie node 5f3a (path )"),
];

fn outage(world: &mut World) -> ChainError {
    let (status, text) = OUTAGES[world.rng.usize(..OUTAGES.len())];
    let refusal = Refusal { status, retry_after: None, code: Some(-32000), text: text.to_owned(), data: None };
    refused(&ErrorTable::default(), "sim".to_owned(), refusal)
}

impl World {
    /// Why a call of this kind gets no answer now, if it gets none.
    pub(super) fn call_failure(&mut self, kind: CallKind) -> Option<ChainError> {
        let (odds, outages) = (self.weather.calls_fail, self.weather.outages);
        let fails = odds.is_some_and(|(failing, odds)| failing == kind && self.happens(odds)) || self.happens(outages);
        fails.then(|| outage(self))
    }
}
