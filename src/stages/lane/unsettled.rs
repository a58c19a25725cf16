//! Foreign nonces that are not final: the blocks that showed what took them may leave the chain.

use std::collections::BTreeMap;

use crate::chain::Inclusion;
use crate::model::{BlockNumber, Nonce};

/// Foreign nonces that are not final: where each was found, or that it must be searched for again.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    pub(super) found: BTreeMap<Nonce, Option<Inclusion>>,
    /// Those of an earlier term were recalled.
    pub(super) is_recalled: bool,
    /// The account's count is past one that must be searched for.
    pub(super) is_searching: bool,
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

    pub(super) fn to_search(&self) -> Vec<Nonce> {
        self.found.iter().filter(|(_, found)| found.is_none()).map(|(nonce, _)| *nonce).collect()
    }
}
