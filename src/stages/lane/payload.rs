//! What becomes of requests on their way to a nonce: fetched, drafted into transactions, ready to be signed.

use bytes::Bytes;

use crate::journal::{LiveTransaction, QueuedRequest};
use crate::model::{Address, Fee, Gas, GasRule, Members, Nonce, SignedTransaction, Wei, Write};
use crate::policy::batch::{Alike, Batching};
use crate::policy::limits::Share;

/// A request from the queue.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) request: QueuedRequest,
    /// The kind of batch that it may share.
    pub(super) alike: Option<Alike>,
    /// Rounds of estimates in which an endpoint would not answer for it, and answered for others.
    pub(super) unanswered: u32,
}

impl Fetched {
    pub(super) fn new(request: QueuedRequest, batching: &Batching) -> Self {
        let alike = batching.alike(&request.write, request.calldata()).filter(|_| !request.is_alone);
        Self { request, alike, unanswered: 0 }
    }
}

/// All of a transaction but its nonce and its price.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) requests: Members<QueuedRequest>,
    pub(super) to: Address,
    pub(super) value: Wei,
    /// The calldata of a batch; that of a single request stands in the request.
    pub(super) batch_data: Option<Bytes>,
    pub(super) gas: Gas,
    /// The most that a rollup asks for posting it to L1.
    pub(super) l1_fee: Wei,
}

impl Payload {
    /// Separates what the journal holds of a transaction from what was signed for it.
    pub(super) fn of_live(live: LiveTransaction) -> (Self, Nonce, Vec<SignedTransaction>) {
        let LiveTransaction { requests, nonce, to, value, data, gas, signed } = live;
        (Self { requests, to, value, batch_data: data, gas, l1_fee: Wei(0) }, nonce, signed)
    }

    /// Returns what it counts with against the limits.
    pub(super) fn share(&self, fee: Fee) -> Share {
        Share { gas: self.gas, value: self.value, fee: fee.total(self.gas).plus(self.l1_fee) }
    }

    /// Returns whether the request, or its route, names its gas.
    pub(super) fn has_fixed_gas(&self) -> bool {
        matches!(self.requests.first.write.gas, GasRule::Fixed(_))
    }

    /// Returns the most that it can cost: its gas, its value, and on a rollup what is posted to L1.
    pub(super) fn cost(&self, fee: Fee) -> Wei {
        fee.total(self.gas).plus(self.value).plus(self.l1_fee)
    }

    /// Returns the most that its route offers for one unit of gas.
    pub(super) fn max_fee(&self) -> Option<Wei> {
        self.requests.first.write.max_fee
    }

    /// Returns what the contract is called with. Shares its bytes.
    pub(super) fn calldata(&self) -> &Bytes {
        self.batch_data.as_ref().unwrap_or_else(|| self.requests.first.calldata())
    }
}

/// Requests that are to share a transaction, if it runs.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) members: Members<Fetched>,
    pub(super) batch_data: Option<Bytes>,
    /// Set once the transaction is known to run.
    pub(super) gas: Option<Gas>,
}

impl Draft {
    /// Drafts one transaction for all of these requests, or one for each where no batch can hold them.
    pub(super) fn of(requests: Vec<Fetched>, batching: &Batching) -> Vec<Self> {
        let alike = requests.first().and_then(|first| first.alike).filter(|_| requests.len() > 1);
        let calls = requests.iter().map(|fetched| fetched.request.calldata().as_ref());
        match alike.and_then(|alike| batching.join(alike, calls)) {
            None => {
                let alone = |first| Self { members: Members::one(first), batch_data: None, gas: None };
                requests.into_iter().map(alone).collect()
            }
            batch_data => {
                let members = Members::from_vec(requests);
                members.map(|members| Self { members, batch_data, gas: None }).into_iter().collect()
            }
        }
    }

    pub(super) fn requests(&self) -> impl Iterator<Item = &QueuedRequest> {
        self.members.iter().map(|fetched| &fetched.request)
    }

    /// Splits a batch into two drafts, or more where a half cannot be a batch.
    pub(super) fn halves(self, batching: &Batching) -> Vec<Self> {
        let mut first: Vec<_> = self.members.into_iter().collect();
        let second = first.split_off(first.len() / 2);
        [first, second].into_iter().flat_map(|half| Self::of(half, batching)).collect()
    }

    pub(super) fn calldata(&self) -> &Bytes {
        self.batch_data.as_ref().unwrap_or_else(|| self.members.first.request.calldata())
    }

    pub(super) fn into_payload(self, gas: Gas, l1_fee: Wei) -> Payload {
        let Write { to, value, .. } = self.members.first.request.write;
        let requests = self.members.map(|fetched| fetched.request);
        Payload { requests, to, value, batch_data: self.batch_data, gas, l1_fee }
    }
}
