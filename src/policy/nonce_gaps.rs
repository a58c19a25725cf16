//! Nonces that hold up all later ones since nothing has them: when such a gap is certain, and what may close it.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::{BlockHash, Nonce, TransactionState};

/// A gap is certain when it shows at this many different heads. A node that lags shows lower counts for a while.
const HEADS: u32 = 2;
/// Or when it has shown for this long: a chain may make no block while nothing can get into one.
const SETTLED: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: something of ours may still land there.
    Wait,
    /// The bytes that were final there. The same nonce and the same bytes cannot take effect twice.
    SameBytes,
    /// A transfer to the account itself, which does nothing but take the nonce.
    Filler,
}

/// Returns what may be sent at a nonce, given where the journal's transaction with it stands. The bytes of one that
/// reverted or was displaced must never be sent again: its request may have been written under another nonce since, or
/// be a dead letter.
pub fn remedy(state: Option<TransactionState>) -> Remedy {
    match state {
        Some(TransactionState::Live) => Remedy::Wait,
        Some(TransactionState::Succeeded | TransactionState::Cancelled) => Remedy::SameBytes,
        Some(TransactionState::Reverted | TransactionState::Displaced) | None => Remedy::Filler,
    }
}

/// Watches whether a gap lasts.
#[derive(Debug, Default)]
pub struct GapWatch {
    seen: Option<Seen>,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    head: BlockHash,
    heads: u32,
}

impl GapWatch {
    /// Records the lowest nonce of a gap at this head, or that there is none.
    pub fn record(&mut self, gap: Option<Nonce>, head: BlockHash, now: Instant) {
        self.seen = match (gap, self.seen.take()) {
            (None, _) => None,
            (Some(_), None) => Some(Seen { since: now, head, heads: 1 }),
            (Some(_), Some(seen)) if seen.head == head => Some(seen),
            (Some(_), Some(seen)) => Some(Seen { head, heads: seen.heads.saturating_add(1), ..seen }),
        };
    }

    /// Returns whether something may be done about it.
    pub fn is_certain(&self, now: Instant) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.heads >= HEADS || now.duration_since(seen.since) >= SETTLED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(seed: u8) -> BlockHash {
        BlockHash([seed; 32])
    }

    #[test]
    fn only_what_cannot_take_effect_twice_is_sent_again() {
        let remedies: Vec<_> = TransactionState::ALL.iter().map(|state| remedy(Some(*state))).collect();
        // live, succeeded, reverted, cancelled, displaced
        use Remedy as R;
        assert_eq!(remedies, [R::Wait, R::SameBytes, R::Filler, R::SameBytes, R::Filler]);
        assert_eq!(remedy(None), R::Filler);
    }

    /// C37
    #[test]
    fn one_look_is_never_enough() {
        let mut watch = GapWatch::default();
        let now = Instant::now();
        assert!(!watch.is_certain(now));
        for _ in 0..3 {
            watch.record(Some(Nonce(5)), head(1), now);
            assert!(!watch.is_certain(now), "the same head again is the same look");
        }
        watch.record(Some(Nonce(5)), head(2), now);
        assert!(watch.is_certain(now));
        watch.record(None, head(3), now);
        assert!(!watch.is_certain(now), "the node that lagged has caught up");
        watch.record(Some(Nonce(5)), head(4), now);
        assert!(!watch.is_certain(now));
        assert!(watch.is_certain(now + SETTLED), "no block comes, and it is still there");
    }
}
