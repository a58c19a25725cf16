//! Whether a node takes the transactions of a batch in their order. Most do. Some run the calls of a batch beside each other, so
//! that one that comes before its turn is refused or dropped: they get one transaction at a time. So do all others, after a batch
//! that failed as a whole, to show which transaction it failed for.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::BlockNumber;

/// For how long a node that has shuffled a batch gets single transactions.
const SINGLE_FOR: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Batches,
    /// At this head a node wanted earlier nonces first that it had taken in the same round: is it the order, or how many it
    /// keeps?
    Trial {
        head: Option<BlockNumber>,
        has_passed: bool,
    },
    /// A round failed as a whole: one at a time until a node takes one.
    Apart,
    /// Lasts until then.
    Single(Instant),
}

#[derive(Debug)]
pub struct SendOrder(State);

impl Default for SendOrder {
    fn default() -> Self {
        Self(State::Batches)
    }
}

impl SendOrder {
    /// Returns whether transactions go out one at a time now.
    pub fn is_single(&self, now: Instant) -> bool {
        match self.0 {
            State::Batches => false,
            State::Trial { .. } | State::Apart => true,
            State::Single(until) => now < until,
        }
    }

    pub fn is_on_trial(&self) -> bool {
        matches!(self.0, State::Trial { .. })
    }

    /// A round may have been shuffled: what it refused is tried alone.
    pub fn suspect(&mut self, head: Option<BlockNumber>) {
        self.0 = State::Trial { head, has_passed: false };
    }

    /// A round has failed as a whole.
    pub fn take_apart(&mut self) {
        if self.0 == State::Batches {
            self.0 = State::Apart;
        }
    }

    /// A node takes alone what it refused or failed at in a round.
    pub fn pass(&mut self) {
        match &mut self.0 {
            State::Trial { has_passed, .. } => *has_passed = true,
            State::Apart => self.0 = State::Batches,
            State::Batches | State::Single(_) => {}
        }
    }

    /// The order was not the reason.
    pub fn refute(&mut self) {
        if self.is_on_trial() {
            self.0 = State::Batches;
        }
    }

    /// Ends a trial that was passed: without a block in between that made room, the order was the reason. Returns whether that
    /// is so.
    pub fn settle(&mut self, newest: Option<BlockNumber>, now: Instant) -> bool {
        match self.0 {
            State::Trial { head, has_passed: true } if head == newest => self.confirm(now),
            State::Trial { has_passed: true, .. } => {
                self.0 = State::Batches;
                false
            }
            State::Batches | State::Apart | State::Trial { .. } | State::Single(_) => false,
        }
    }

    /// A node has shown that it shuffles batches. Returns whether that is new.
    pub fn confirm(&mut self, now: Instant) -> bool {
        let is_new = !matches!(self.0, State::Single(until) if now < until);
        self.0 = State::Single(now + SINGLE_FOR);
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Option<BlockNumber> = Some(BlockNumber(7));

    fn is_single(order: &SendOrder) -> bool {
        order.is_single(Instant::now())
    }

    #[test]
    fn after_a_round_that_failed_as_a_whole_single_sends_last_until_one_is_taken() {
        let mut order = SendOrder::default();
        order.take_apart();
        assert!(is_single(&order) && !order.is_on_trial() && !order.settle(HEAD, Instant::now()));
        order.pass();
        assert!(!is_single(&order));
    }

    #[tokio::test(start_paused = true)]
    async fn single_sends_end_by_themselves() {
        let mut order = SendOrder::default();
        assert!(!is_single(&order));
        assert!(order.confirm(Instant::now()) && !order.confirm(Instant::now()), "new once");
        order.refute();
        assert!(is_single(&order), "what is certain stays");
        tokio::time::advance(SINGLE_FOR).await;
        assert!(!is_single(&order), "batches are tried again");
        assert!(order.confirm(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_shows_the_order_only_if_no_block_made_room() {
        // whether it is taken alone, the head then, what that shows
        for (passes, newest, is_shuffled) in
            [(true, HEAD, true), (true, Some(BlockNumber(8)), false), (false, HEAD, false)]
        {
            let mut order = SendOrder::default();
            order.suspect(HEAD);
            assert!(is_single(&order) && !order.settle(HEAD, Instant::now()), "nothing is known yet");
            if passes {
                order.pass()
            } else {
                order.refute()
            }
            assert_eq!((order.settle(newest, Instant::now()), is_single(&order)), (is_shuffled, is_shuffled));
        }
    }
}
