//! Keeps back what operators hold: nothing new is signed for it. It stays in the journal's queue, and is fetched again when it is released.

use crate::journal::{JournalError, QueuedRequest};
use crate::stages::holds;
use crate::stages::lane::term::Term;

impl Term<'_> {
    /// Returns whether an operator holds the account, or everything.
    pub(super) fn is_on_hold(&self) -> bool {
        self.context.signals.holds.borrow().on(self.lease.account).is_some()
    }

    /// Takes in that other holds stand: drops what is held, and searches the queue for what was released.
    pub(super) fn apply_holds(&mut self) {
        self.drop_held();
        self.queue.restart();
    }

    /// Drops what is held of what was fetched. Nothing is signed for it, so nothing of it is lost.
    pub(super) fn drop_held(&mut self) {
        let holds = self.context.signals.holds.borrow().clone();
        if holds.iter().next().is_none() {
            return;
        }
        let account = self.lease.account;
        let is_held = |request: &QueuedRequest| holds.covers(account, &request.route);
        self.queue.drop_where(is_held, &self.routes.batching);
    }

    /// Reads why the journal has stored less than was signed: it is behind, or operators hold some of it.
    pub(super) async fn read_what_stops(&mut self) -> Result<(), JournalError> {
        self.read_foreign_use().await?;
        let standing = self.context.journal.holds().await?;
        holds::publish(&self.context.signals.holds, standing);
        self.drop_held();
        Ok(())
    }
}
