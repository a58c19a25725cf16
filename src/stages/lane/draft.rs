//! What becomes of requests on their way to a nonce: fetched, put together to what is to go into one transaction, prepared.

use bytes::Bytes;

use crate::journal::QueuedRequest;
use crate::model::{Address, Fee, Gas, Wei};
use crate::policy::batch::{Alike, Batching};
use crate::policy::limits::Share;

/// A request from the queue.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) request: QueuedRequest,
    /// What it may share a transaction with.
    pub(super) alike: Option<Alike>,
}

impl Fetched {
    pub(super) fn new(request: QueuedRequest, batching: &Batching) -> Self {
        let alike = batching.alike(&request.write, request.calldata()).filter(|_| !request.is_alone);
        Self { request, alike }
    }
}

/// What can be signed: a request, or several that share a transaction.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) request: QueuedRequest,
    /// In the order of the batch.
    pub(super) others: Vec<QueuedRequest>,
    pub(super) to: Address,
    pub(super) value: Wei,
    pub(super) data: Option<Bytes>,
    pub(super) gas: Gas,
}

impl Prepared {
    /// What it counts with against the limits.
    pub(super) fn share(&self, fee: Fee) -> Share {
        Share { gas: self.gas, value: self.value, fee: fee.total(self.gas) }
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = &QueuedRequest> {
        std::iter::once(&self.request).chain(&self.others)
    }

    pub(super) fn into_requests(self) -> impl Iterator<Item = QueuedRequest> {
        std::iter::once(self.request).chain(self.others)
    }

    pub(super) fn calldata(&self) -> &Bytes {
        self.data.as_ref().unwrap_or_else(|| self.request.calldata())
    }
}

/// What is to go into one transaction, if it runs.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) first: Fetched,
    pub(super) others: Vec<Fetched>,
    pub(super) data: Option<Bytes>,
    /// Once it is known to run.
    pub(super) gas: Option<Gas>,
}

impl Draft {
    /// One for all of these. Where that cannot be, one for each.
    pub(super) fn of(requests: Vec<Fetched>, batching: &Batching) -> Vec<Self> {
        let alike = requests.first().and_then(|first| first.alike).filter(|_| requests.len() > 1);
        let calls = requests.iter().map(|fetched| fetched.request.calldata().as_ref());
        let data = alike.and_then(|alike| batching.join(alike, calls));
        let mut requests = requests.into_iter();
        let draft = |first, others, data| Self { first, others, data, gas: None };
        match data {
            None => requests.map(|first| draft(first, Vec::new(), None)).collect(),
            Some(data) => {
                let first = requests.next();
                first.map(|first| draft(first, requests.collect(), Some(data))).into_iter().collect()
            }
        }
    }

    /// The requests that it is for.
    pub(super) fn requests(&self) -> impl Iterator<Item = &QueuedRequest> {
        std::iter::once(&self.first).chain(&self.others).map(|fetched| &fetched.request)
    }

    pub(super) fn into_fetched(self) -> Vec<Fetched> {
        std::iter::once(self.first).chain(self.others).collect()
    }

    /// The first half of its requests, and the second.
    pub(super) fn halves(self, batching: &Batching) -> Vec<Self> {
        let mut first = self.into_fetched();
        let second = first.split_off(first.len() / 2);
        [first, second].into_iter().flat_map(|half| Self::of(half, batching)).collect()
    }

    pub(super) fn calldata(&self) -> &Bytes {
        self.data.as_ref().unwrap_or_else(|| self.first.request.calldata())
    }
}
