//! Deliveries of a new session wait until the journal's marker was read in it.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::marker::SessionNumbers;

/// Deliveries of a new session wait this long for the marker.
const MARKER_WAIT: Duration = Duration::from_secs(10);

/// Keeps deliveries of a session back until its marker was read: another journal may have taken the queue over while there
/// was no session. A marker that cannot be read keeps them back for a while only.
pub(super) struct Gate {
    number: u64,
    admitted: watch::Receiver<u64>,
    opens_at: Instant,
}

impl Gate {
    pub(super) fn new(numbers: &SessionNumbers) -> Self {
        Self { number: numbers.begin(), admitted: numbers.admitted(), opens_at: Instant::now() + MARKER_WAIT }
    }

    pub(super) fn is_open(&self) -> bool {
        *self.admitted.borrow() >= self.number || Instant::now() >= self.opens_at
    }

    pub(super) async fn opens(&mut self) {
        let (number, opens_at) = (self.number, self.opens_at);
        let admitted = self.admitted.wait_for(|admitted| *admitted >= number);
        let _ = tokio::time::timeout_at(opens_at, admitted).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_has_deliveries_once_its_marker_was_read_or_after_a_while() {
        let numbers = SessionNumbers::default();
        let mut first = Gate::new(&numbers);
        assert!(!first.is_open());
        numbers.admit(1);
        first.opens().await;
        assert!(first.is_open());
        let mut second = Gate::new(&numbers);
        assert!(!second.is_open(), "the marker of the session before says nothing");
        let began = Instant::now();
        second.opens().await;
        assert!(second.is_open() && began.elapsed() >= MARKER_WAIT);
    }
}
