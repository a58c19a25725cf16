//! Changes that other instances made to the journal, where it is notified at once.

use tokio::sync::watch;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// A lease was given up, an instance has come or gone.
    pub owners: u64,
    /// Requests were admitted or settled.
    pub works: u64,
}

impl Seen {
    pub fn change(&mut self) {
        self.owners = self.owners.wrapping_add(1);
    }

    pub fn work(&mut self) {
        self.works = self.works.wrapping_add(1);
    }

    /// Counts a change of each kind: what happened is unknown.
    pub fn anything(&mut self) {
        self.change();
        self.work();
    }
}

/// Reports changes. It may miss some: its user polls as well from time to time.
#[derive(Debug)]
pub struct Changes {
    seen: watch::Receiver<Seen>,
    last: Seen,
}

impl Changes {
    /// Begins with what was seen so far.
    pub fn new(mut seen: watch::Receiver<Seen>) -> Self {
        let last = Seen::default();
        if *seen.borrow() != last {
            seen.mark_changed();
        }
        Self { seen, last }
    }

    /// Waits for the next ones: whether leases or instances have changed, and whether there is work. Never returns once the journal
    /// is closed. Cancel safe.
    pub async fn next(&mut self) -> (bool, bool) {
        if self.seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let now = *self.seen.borrow_and_update();
        let last = std::mem::replace(&mut self.last, now);
        (now.owners != last.owners, now.works != last.works)
    }
}
