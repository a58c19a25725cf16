//! How many transactions of an account may wait for a block: as many as the operator allows, fewer while nodes take fewer.

use crate::model::BlockNumber;

#[derive(Debug)]
pub struct SendWindow {
    full: usize,
    size: usize,
    shrunk_at: Option<BlockNumber>,
}

impl SendWindow {
    /// Returns a full window, of at least one transaction.
    pub fn new(full: usize) -> Self {
        let full = full.max(1);
        Self { full, size: full, shrunk_at: None }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn is_full(&self) -> bool {
        self.size == self.full
    }

    /// Halves the window: a node has no room for one of `waiting` transactions, or wants earlier nonces first. Halves it
    /// once for each head at most, since one round of answers may say so for every transaction. Returns whether it shrank.
    pub fn refused(&mut self, waiting: usize, head: BlockNumber) -> bool {
        if self.shrunk_at == Some(head) {
            return false;
        }
        self.shrunk_at = Some(head);
        let before = self.size;
        self.size = (self.size.min(waiting) / 2).max(1);
        self.size < before
    }

    /// Grows by one for each transaction in a block. Returns whether that made it full again.
    pub fn included(&mut self, count: usize) -> bool {
        let was_full = self.is_full();
        self.size = self.size.saturating_add(count).min(self.full);
        !was_full && self.is_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C17
    #[test]
    fn it_halves_once_for_each_block_down_to_one() {
        let mut window = SendWindow::new(64);
        // head, transactions that wait, whether it shrinks, size after it
        let refusals = [
            (10, 64, true, 32),
            (10, 64, false, 32),
            (11, 64, true, 16),
            // No more wait than these: more was not taken either.
            (12, 6, true, 3),
            (13, 3, true, 1),
            (14, 1, false, 1),
        ];
        for (head, waiting, shrinks, size) in refusals {
            assert_eq!((window.refused(waiting, BlockNumber(head)), window.size()), (shrinks, size), "at {head}");
        }
    }

    #[test]
    fn it_grows_by_one_for_each_included_transaction_up_to_its_full_size() {
        let mut window = SendWindow::new(8);
        assert!(window.refused(8, BlockNumber(1)));
        for (count, is_full_again, size) in [(1, false, 5), (0, false, 5), (2, false, 7), (9, true, 8), (1, false, 8)] {
            assert_eq!((window.included(count), window.size()), (is_full_again, size));
        }
    }

    #[test]
    fn something_always_fits() {
        assert_eq!(SendWindow::new(0).size(), 1);
        let mut window = SendWindow::new(1);
        assert!(!window.refused(0, BlockNumber(1)));
        assert_eq!(window.size(), 1);
    }
}
