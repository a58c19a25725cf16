//! Requests whose route offers less for a unit of gas than the chain asks for. They stay in the journal's queue, others pass them,
//! and each pass through the queue sees them again, until the price has come down. Nothing of them is kept here but what is shown.

use std::time::Duration;

use tokio::time::Instant;

use crate::journal::QueuedRequest;
use crate::policy::fee::AboveCap;
use crate::stages::lane::settings::{Held, LaneState};

/// With so many in the queue, passes through it are rarer.
const MANY: usize = 1000;
const PASS_OF_MANY: Duration = Duration::from_secs(10);

/// Those of this pass and of the one before.
#[derive(Debug)]
pub(super) struct PricedOut {
    count: usize,
    began_at: Instant,
    now: Vec<Held>,
    before: Vec<Held>,
}

impl Default for PricedOut {
    fn default() -> Self {
        Self { count: 0, began_at: Instant::now(), now: Vec::new(), before: Vec::new() }
    }
}

impl PricedOut {
    pub(super) fn add(&mut self, request: &QueuedRequest, AboveCap { needed, cap }: AboveCap) {
        self.count += 1;
        if self.now.len() < LaneState::MOST_HELD {
            let why = format!("the chain asks for {needed} for one unit of gas, the max_fee of its route is {cap}");
            self.now.push(Held { request: request.id.clone(), why });
        }
    }

    /// Begins a new pass, unless this one found many and is young. Returns whether it did.
    pub(super) fn begin_pass(&mut self) -> bool {
        if self.count >= MANY && self.began_at.elapsed() < PASS_OF_MANY {
            return false;
        }
        self.before = std::mem::take(&mut self.now);
        (self.count, self.began_at) = (0, Instant::now());
        true
    }

    /// Returns the first of them, as the last whole pass found them.
    pub(super) fn held(&self) -> impl Iterator<Item = Held> {
        let shown = if self.before.is_empty() { &self.now } else { &self.before };
        shown.iter().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Wei;
    use crate::stages::lane::fixtures::request;

    #[tokio::test(start_paused = true)]
    async fn few_are_seen_in_each_pass_and_many_now_and_then() {
        let mut priced_out = PricedOut::default();
        let above = AboveCap { needed: Wei(2), cap: Wei(1) };
        priced_out.add(&request(1), above);
        assert_eq!(priced_out.held().count(), 1);
        assert!(priced_out.begin_pass());
        assert_eq!(priced_out.held().count(), 1, "of the last whole pass");
        (0..MANY).for_each(|_| priced_out.add(&request(2), above));
        assert!(!priced_out.begin_pass(), "a pass through so many takes a while");
        tokio::time::advance(PASS_OF_MANY).await;
        assert!(priced_out.begin_pass() && priced_out.begin_pass());
        assert_eq!(priced_out.held().count(), 0, "the price has come down");
    }
}
