//! How many transactions of an account may wait for a block. The window finds its size by itself: it grows with what nodes
//! take and blocks hold, and is no larger than what pools were seen to keep, or the operator allows.

use std::fmt;

use crate::model::BlockNumber;

/// Before anything is known.
const START: usize = 64;
/// As far as answers alone widen it. Some nodes answer with a hash and keep nothing.
const UNPROVEN: usize = 256;
/// The window is so many times what a block has held: one block's worth is being built in, one follows while the news of the
/// block travels, and one lets the next block hold more.
const BLOCKS: usize = 3;
/// A block that left some of ours and held fewer than others brings the number for all blocks down by this part.
const DECAY: usize = 8;
/// After pools had no room, more is tried as many blocks later; each time in vain doubles that, up to the other.
const PAUSE: (u32, u32) = (1, 16);

/// Names the limit of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WindowLimit {
    /// No block has shown yet what it holds.
    #[default]
    Start,
    /// More than blocks hold.
    Blocks,
    /// Pools keep no more.
    Pool,
    /// The configuration allows no more.
    InFlight,
}

impl WindowLimit {
    /// Returns the word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Blocks => "blocks",
            Self::Pool => "pool",
            Self::InFlight => "in_flight",
        }
    }
}

impl fmt::Display for WindowLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "no block has shown yet how many it holds",
            Self::Blocks => "as many as blocks hold, and some more",
            Self::Pool => "the nodes keep no more",
            Self::InFlight => "chain.in_flight",
        })
    }
}

#[derive(Debug)]
pub struct SendWindow {
    /// The operator's limit.
    limit: usize,
    size: usize,
    /// The most that a block has held of ours.
    in_block: usize,
    /// The number that pools kept when they last had no room for more; grows again.
    room: Option<usize>,
    /// The number as it was seen, which does not grow.
    kept: usize,
    /// Blocks until more is tried, and how many it was the last time.
    pause: (u32, u32),
    shrunk_at: Option<BlockNumber>,
}

impl SendWindow {
    /// Returns a window of at least one transaction, which never grows beyond this limit.
    pub fn new(limit: usize) -> Self {
        let limit = limit.max(1);
        Self { limit, size: limit.min(START), in_block: 0, room: None, kept: 0, pause: (0, PAUSE.0), shrunk_at: None }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns what keeps it from being larger, or would if it was used.
    pub fn limit(&self) -> WindowLimit {
        let wanted = self.wanted();
        if self.room.is_some_and(|room| room < wanted) {
            WindowLimit::Pool
        } else if wanted == self.limit {
            WindowLimit::InFlight
        } else if wanted > UNPROVEN {
            WindowLimit::Blocks
        } else {
            WindowLimit::Start
        }
    }

    /// Returns what it would be with room for all in the pools.
    fn wanted(&self) -> usize {
        self.in_block.saturating_mul(BLOCKS).max(UNPROVEN).min(self.limit)
    }

    fn most(&self) -> usize {
        self.room.unwrap_or(self.limit).min(self.wanted())
    }

    /// Nodes have taken so many that they did not have before.
    pub fn taken(&mut self, count: usize) {
        self.size = self.size.saturating_add(count).min(self.most()).max(1);
    }

    /// A block has held so many of ours, and left so many.
    pub fn included(&mut self, count: usize, left: usize) {
        if count >= self.in_block {
            self.in_block = count;
        } else if count > 0 && left > 0 {
            self.in_block -= (self.in_block - count).div_ceil(DECAY);
        }
        self.taken(count);
    }

    /// Pools keep `kept` transactions and had no room for another one. Counts once for each head, since a round of answers may
    /// say so for every transaction. Returns whether there was room for all until now.
    pub fn had_no_room(&mut self, kept: usize, head: BlockNumber) -> bool {
        if self.shrunk_at == Some(head) {
            return false;
        }
        self.shrunk_at = Some(head);
        let (kept, had_room) = (kept.clamp(1, self.limit), self.room.is_none());
        let is_as_before = !had_room && kept <= self.kept.saturating_mul(3) / 2;
        self.pause.1 = if is_as_before { (self.pause.1 * 2).min(PAUSE.1) } else { PAUSE.0 };
        self.pause.0 = self.pause.1;
        (self.kept, self.room) = (kept, Some(kept));
        self.size = self.size.min(kept);
        had_room
    }

    /// A block has come. After a while more is tried, by half more in each block. Returns whether pools had no room before and
    /// have room for all now, as far as is known.
    pub fn next_block(&mut self) -> bool {
        let Some(room) = self.room else { return false };
        if self.pause.0 > 0 {
            self.pause.0 -= 1;
            return false;
        }
        let more = room + (room / 2).max(1);
        self.room = (more < self.wanted()).then_some(more);
        self.taken(more - room);
        self.room.is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// C17
    #[test]
    fn it_is_what_pools_kept_once_for_each_block_and_never_nothing() {
        let mut window = SendWindow::new(64);
        // head, what was kept, whether that is new, size after it
        let refusals =
            [(10, 48, true, 48), (10, 5, false, 48), (11, 16, false, 16), (12, 200, false, 16), (13, 0, false, 1)];
        for (head, kept, is_new, size) in refusals {
            assert_eq!((window.had_no_room(kept, BlockNumber(head)), window.size()), (is_new, size), "at {head}");
        }
    }

    #[test]
    fn it_grows_with_what_nodes_take_and_then_with_what_blocks_hold() {
        let mut window = SendWindow::new(5000);
        assert_eq!((window.size(), window.limit()), (START, WindowLimit::Start));
        window.taken(64);
        window.taken(128);
        window.taken(256);
        assert_eq!((window.size(), window.limit()), (UNPROVEN, WindowLimit::Start), "answers alone prove little");
        for (count, size) in [(256, 512), (512, 1024), (1024, 2048), (1800, 3848), (1800, 5000), (1800, 5000)] {
            window.included(count, 100);
            assert_eq!(window.size(), size);
        }
        assert_eq!(window.limit(), WindowLimit::InFlight);
        let mut window = SendWindow::new(5000);
        (0..20).for_each(|_| window.included(300, 100));
        assert_eq!((window.size(), window.limit()), (900, WindowLimit::Blocks));
    }

    #[test]
    fn a_block_that_holds_all_there_was_says_nothing_about_the_next() {
        let mut window = SendWindow::new(5000);
        (0..20).for_each(|_| window.included(1000, 100));
        (0..100).for_each(|_| window.included(1, 0));
        assert_eq!(window.size(), 3000);
        (0..100).for_each(|_| window.included(100, 1));
        assert_eq!(window.size(), 300, "others fill the blocks now");
    }

    #[test]
    fn more_is_tried_after_a_while_later_each_time_in_vain() {
        let mut window = SendWindow::new(5000);
        (0..20).for_each(|_| window.included(1000, 100));
        let mut tries = Vec::new();
        for head in 0..100 {
            // A node that keeps 16.
            if window.size() > 16 {
                window.had_no_room(16, BlockNumber(head));
                tries.push(head);
            }
            window.next_block();
        }
        assert_eq!(tries, [0, 2, 5, 10, 19, 36, 53, 70, 87], "at most every 17th block");
        assert_eq!(window.limit(), WindowLimit::Pool);
        // It has been given more.
        let grown = (100..150).find(|_| window.next_block());
        assert!(grown.is_some(), "{window:?}");
        assert_eq!((window.size(), window.limit()), (3000, WindowLimit::Blocks));
    }

    #[test]
    fn something_always_fits() {
        assert_eq!(SendWindow::new(0).size(), 1);
        let mut window = SendWindow::new(1);
        assert!(window.had_no_room(0, BlockNumber(1)));
        assert_eq!(window.size(), 1);
    }

    proptest! {
        #[test]
        fn it_stays_between_one_and_what_the_operator_allows(
            limit in 1usize..6000,
            steps in prop::collection::vec((0u8..4, 0usize..6000, 0usize..6000), 0..200),
        ) {
            let mut window = SendWindow::new(limit);
            for (head, (step, count, other)) in (0u64..).zip(steps) {
                let before = window.size();
                match step {
                    0 => window.taken(count),
                    1 => window.included(count, other),
                    2 => _ = window.had_no_room(count, BlockNumber(head)),
                    _ => _ = window.next_block(),
                }
                prop_assert!((1..=limit).contains(&window.size()));
                if step == 2 {
                    prop_assert!(window.size() <= before.min(count.max(1)));
                }
            }
        }
    }
}
