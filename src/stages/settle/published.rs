//! One message on its way to the broker, and the lists that such messages wait in.

use std::collections::{BTreeSet, VecDeque};

use tokio::sync::oneshot;

use crate::broker::PublishError;
use crate::journal::{RequestSeq, UnconfirmedCopy};
use crate::model::{Generation, RequestId};
use crate::stages::settle::inbox::{Postponed, Refused};
use crate::stages::settle::targets::Target;

/// A message on its way.
pub(super) enum Published {
    Copy(Box<UnconfirmedCopy>),
    Refused(Box<Refused>),
    Postponed(Box<Postponed>),
    Park(RequestId, Generation),
}

impl Published {
    pub(super) fn id(&self) -> &RequestId {
        match self {
            Self::Copy(copy) => &copy.id,
            Self::Refused(refused) => refused.shown_id(),
            Self::Postponed(postponed) => &postponed.id,
            Self::Park(id, _) => id,
        }
    }
}

/// Reports the end of a publish.
pub(super) struct Ended {
    pub(super) target: Target,
    pub(super) published: Published,
    pub(super) result: Result<(), PublishError>,
}

/// A queue that holds each item once.
pub(super) struct UniqueQueue<T> {
    order: VecDeque<T>,
    items: BTreeSet<T>,
}

impl<T> Default for UniqueQueue<T> {
    fn default() -> Self {
        Self { order: VecDeque::new(), items: BTreeSet::new() }
    }
}

impl<T: Ord + Clone> UniqueQueue<T> {
    /// Returns false if the queue holds the item already.
    pub(super) fn push(&mut self, item: T) -> bool {
        let is_new = self.items.insert(item.clone());
        if is_new {
            self.order.push_back(item);
        }
        is_new
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let item = self.order.pop_front()?;
        self.items.remove(&item);
        Some(item)
    }
}

/// A lane that gives its account up, and the copies that it waits for.
pub(super) struct Leaving {
    pub(super) copies: BTreeSet<RequestSeq>,
    pub(super) done: oneshot::Sender<()>,
}
