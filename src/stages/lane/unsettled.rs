//! Foreign nonces that are not final: the blocks that showed what took them may leave the chain.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::chain::Inclusion;
use crate::model::{BlockNumber, Nonce};

/// Foreign nonces that are not final: where each was found, or that it must be searched for again.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    pub(super) found: BTreeMap<Nonce, Option<Inclusion>>,
    /// Those of an earlier term were recalled.
    pub(super) is_recalled: bool,
    /// Those that the account's count is past and no block shows, and since when there are some.
    searched: Option<(Vec<Nonce>, Instant)>,
}

impl Unsettled {
    pub(super) fn record(&mut self, nonce: Nonce, inclusion: Inclusion) {
        self.found.insert(nonce, Some(inclusion));
    }

    /// Marks those whose block left the chain.
    pub(super) fn orphan(&mut self, is_gone: impl Fn(&Inclusion) -> bool) {
        for found in self.found.values_mut() {
            *found = found.filter(|inclusion| !is_gone(inclusion));
        }
    }

    /// Drops those that are final.
    pub(super) fn settle(&mut self, final_up_to: BlockNumber) {
        self.found.retain(|_, found| found.is_none_or(|inclusion| inclusion.block_number > final_up_to));
    }

    /// Records which of those that are taken again no block has shown yet.
    pub(super) fn record_search(&mut self, missing: Vec<Nonce>) {
        let since = self.searched.take().map_or_else(Instant::now, |(_, since)| since);
        self.searched = (!missing.is_empty()).then_some((missing, since));
    }

    pub(super) fn is_searching(&self) -> bool {
        self.searched.is_some()
    }

    /// Returns the first nonce that has been searched for longer than this.
    pub(super) fn searched_for(&self, limit: Duration) -> Option<Nonce> {
        self.searched.as_ref().filter(|(_, since)| since.elapsed() >= limit)?.0.first().copied()
    }

    pub(super) fn to_search(&self) -> Vec<Nonce> {
        self.found.iter().filter(|(_, found)| found.is_none()).map(|(nonce, _)| *nonce).collect()
    }
}
