//! Nonces whose block went away although it was final: which blocks have them now, and how they end for the second time.

use std::collections::BTreeMap;

use crate::chain::Inclusion;
use crate::journal::StoredNonce;
use crate::model::{BlockNumber, Nonce, SignedTransaction, TxHash};
use crate::stages::settle::inbox::SecondEnd;

/// Polls that compare the journal's last final blocks with the chain after something went away: a ruling may have been on
/// its way to the journal during the first.
const CHECKS: u8 = 2;

#[derive(Debug)]
struct Reorged {
    stored: StoredNonce,
    included: Option<Inclusion>,
}

/// The nonces that were final and are not.
#[derive(Debug, Default)]
pub(super) struct ReorgedFinals {
    by_nonce: BTreeMap<Nonce, Reorged>,
    checks: u8,
}

impl ReorgedFinals {
    /// The journal's last final blocks are to be compared with the chain.
    pub(super) fn must_check(&mut self) {
        self.checks = CHECKS;
    }

    pub(super) fn is_checked(&self) -> bool {
        self.checks == 0
    }

    /// A poll has compared the journal with the chain.
    pub(super) fn record_check(&mut self) {
        self.checks = self.checks.saturating_sub(1);
    }

    pub(super) fn len(&self) -> usize {
        self.by_nonce.len()
    }

    pub(super) fn contains(&self, nonce: Nonce) -> bool {
        self.by_nonce.contains_key(&nonce)
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = TxHash> {
        self.by_nonce.values().flat_map(|reorged| reorged.stored.signed.iter().map(|signed| signed.raw.hash))
    }

    pub(super) fn orphan(&mut self, is_gone: impl Fn(&Inclusion) -> bool) {
        for reorged in self.by_nonce.values_mut() {
            reorged.included.take_if(|inclusion| is_gone(inclusion));
        }
    }

    pub(super) fn include(&mut self, included: &[Inclusion]) {
        for inclusion in included {
            let is_it = |signed: &SignedTransaction| signed.raw.hash == inclusion.tx_hash;
            let mut all = self.by_nonce.values_mut();
            if let Some(reorged) = all.find(|reorged| reorged.stored.signed.iter().any(is_it)) {
                reorged.included = Some(*inclusion);
            }
        }
    }

    pub(super) fn watch(&mut self, stored: Vec<StoredNonce>) {
        let reorged = |stored: StoredNonce| (stored.nonce, Reorged { stored, included: None });
        self.by_nonce.extend(stored.into_iter().map(reorged));
    }

    pub(super) fn included_up_to(&self, height: BlockNumber) -> Vec<(Nonce, Inclusion)> {
        let included = self.by_nonce.iter().filter_map(|(nonce, reorged)| Some((*nonce, reorged.included?)));
        included.filter(|(_, inclusion)| inclusion.block_number <= height).collect()
    }

    /// Returns the lowest nonce below `count` that is in no block as far as is known, with its hashes.
    pub(super) fn lowest_open(&self, count: Nonce) -> Option<(Nonce, Vec<TxHash>)> {
        let is_open = |(nonce, reorged): &(&Nonce, &Reorged)| **nonce < count && reorged.included.is_none();
        let (nonce, reorged) = self.by_nonce.iter().find(is_open)?;
        Some((*nonce, reorged.stored.signed.iter().map(|signed| signed.raw.hash).collect()))
    }

    pub(super) fn end(&mut self, (nonce, end): (Nonce, SecondEnd)) -> Option<(StoredNonce, SecondEnd)> {
        Some((self.by_nonce.remove(&nonce)?.stored, end))
    }
}
