//! Small fakes for the tests of single stages and parts. They do what they are asked, unless a test says otherwise.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::broker::{
    AckToken, BrokerError, Delivery, EndDelivery, HeldMarkers, MarkerQueue, Outgoing, PublishError, Publisher,
    WorkQueue,
};
use crate::chain::{
    BlockTag, Call, Chain, ChainError, CountAt, Header, Inclusion, Log, LogQuery, NodeRules, OnTop, Pooled, Receipt,
    Result, Sent, SentInBlock, transaction_hash,
};
use crate::journal::JournalError;
use crate::model::event::FinalTransaction;
use crate::model::{
    Address, BlockHash, BlockNumber, BodyHash, Gas, Marker, Message, Nonce, Properties, RawTransaction, TxHash,
    UnsignedTransaction, Wei,
};
use crate::observe::traces::Traced;
use crate::policy::fee::Market;
use crate::policy::l1_fee::ORACLES;
use crate::signer::{Signer, SignerError};
use crate::simulation::journal::{Faults, MemoryJournal, NoFaults, not_written};
use crate::simulation::ledger::encode;
use crate::simulation::pools::{Judged, PoolRules};

/// Returns an empty journal in memory.
pub(crate) fn journal() -> Arc<MemoryJournal> {
    Arc::new(MemoryJournal::new(Arc::default(), Arc::new(NoFaults)))
}

/// Fails every write of this name before it is stored.
pub(crate) fn failing_journal(operation: &'static str) -> Arc<MemoryJournal> {
    Arc::new(MemoryJournal::new(Arc::default(), Arc::new(Failing(operation))))
}

struct Failing(&'static str);

#[async_trait]
impl Faults for Failing {
    async fn before(&self, operation: &'static str, _: bool) -> std::result::Result<(), JournalError> {
        if operation == self.0 { Err(not_written(operation)) } else { Ok(()) }
    }

    async fn after(&self, _: &'static str, _: bool) -> std::result::Result<(), JournalError> {
        Ok(())
    }
}

/// The deliveries of one broker session, and which of them were acked.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeSession(Arc<Mutex<SessionState>>);

#[derive(Debug, Default)]
struct SessionState {
    acked: Vec<String>,
    is_over: bool,
}

impl FakeSession {
    pub(crate) fn token(&self, name: &str) -> AckToken {
        AckToken::new(FakeToken { session: self.clone(), name: name.to_owned() })
    }

    /// Returns a delivery whose token has the name of its message id.
    pub(crate) fn delivery(&self, id: &str, body: &'static str) -> Delivery {
        let properties = Properties { message_id: Some(id.to_owned()), ..Properties::default() };
        let message = Message { body: Bytes::from_static(body.as_bytes()), properties, ..Message::default() };
        Delivery { message, token: self.token(id), is_redelivered: false }
    }

    /// Returns the names of the acked deliveries, in order.
    pub(crate) fn acked(&self) -> Vec<String> {
        self.0.lock().unwrap().acked.clone()
    }

    pub(crate) fn end(&self) {
        self.0.lock().unwrap().is_over = true;
    }
}

#[derive(Debug)]
struct FakeToken {
    session: FakeSession,
    name: String,
}

#[async_trait]
impl EndDelivery for FakeToken {
    async fn ack(self: Box<Self>) -> bool {
        let is_over = self.is_over();
        if !is_over {
            self.session.0.lock().unwrap().acked.push(self.name);
        }
        !is_over
    }

    async fn requeue(self: Box<Self>) -> bool {
        !self.is_over()
    }

    fn is_over(&self) -> bool {
        self.session.0.lock().unwrap().is_over
    }
}

/// Confirms every publish, except for the errors that a test puts into it.
#[derive(Debug, Default)]
pub(crate) struct FakePublisher {
    confirmed: Mutex<Vec<Outgoing>>,
    errors: Mutex<VecDeque<PublishError>>,
    /// Routing keys that are refused.
    refused: Mutex<BTreeSet<String>>,
    tried: Mutex<Vec<String>>,
}

impl FakePublisher {
    /// Refuses everything with this routing key from now on.
    pub(crate) fn refuse(&self, routing_key: &str) {
        self.refused.lock().unwrap().insert(routing_key.to_owned());
    }

    pub(crate) fn take_again(&self, routing_key: &str) {
        self.refused.lock().unwrap().remove(routing_key);
    }

    /// Returns how many messages with this routing key came, refused ones included.
    pub(crate) fn tries_of(&self, routing_key: &str) -> usize {
        self.tried.lock().unwrap().iter().filter(|tried| *tried == routing_key).count()
    }

    pub(crate) fn fail_next(&self, error: PublishError) {
        self.errors.lock().unwrap().push_back(error);
    }

    /// Returns the routing keys of the confirmed messages, in order.
    pub(crate) fn routing_keys(&self) -> Vec<String> {
        self.confirmed.lock().unwrap().iter().map(|outgoing| outgoing.routing_key.clone()).collect()
    }

    fn confirm(&self, outgoing: &Outgoing) -> std::result::Result<(), PublishError> {
        self.tried.lock().unwrap().push(outgoing.routing_key.clone());
        if let Some(error) = self.errors.lock().unwrap().pop_front() {
            return Err(error);
        }
        if self.refused.lock().unwrap().contains(&outgoing.routing_key) {
            let (exchange, routing_key) = (outgoing.exchange.clone(), outgoing.routing_key.clone());
            return Err(PublishError::Refused { exchange, routing_key });
        }
        self.confirmed.lock().unwrap().push(outgoing.clone());
        Ok(())
    }
}

#[async_trait]
impl Publisher for FakePublisher {
    async fn publish(&self, outgoing: &Outgoing) -> std::result::Result<(), PublishError> {
        self.confirm(outgoing)
    }

    async fn publish_unrouted(&self, outgoing: &[Outgoing]) -> Vec<std::result::Result<(), PublishError>> {
        outgoing.iter().map(|outgoing| self.confirm(outgoing)).collect()
    }
}

#[async_trait]
impl WorkQueue for FakePublisher {
    async fn send_back(&self, message: Message) -> std::result::Result<(), PublishError> {
        self.confirm(&Outgoing { exchange: String::new(), routing_key: "work".to_owned(), message })
    }
}

/// How long a hanging estimate takes.
const ESTIMATE_TIMEOUT: Duration = Duration::from_secs(10);

/// The account of [`FakeChain`].
pub(crate) const ACCOUNT: Address = Address([7; 20]);

/// Returns the hash of the account's transaction with this nonce.
pub(crate) fn own_hash(nonce: u64) -> TxHash {
    TxHash([u8::try_from(nonce).unwrap() + 1; 32])
}

/// What a transaction of [`FakeSigner`] offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) nonce: u64,
    /// It is a transfer to the account itself.
    pub(crate) is_transfer: bool,
    pub(crate) gas: u64,
    pub(crate) price: u128,
}

impl Offer {
    /// Reads what [`encode`] has written.
    fn read(raw: &[u8]) -> Option<Self> {
        let fields: Vec<_> = raw.splitn(11, |byte| *byte == b'|').map(String::from_utf8_lossy).collect();
        let [_, _, nonce, _, _, gas, _, price, _, _, data] = fields.as_slice() else { return None };
        let (nonce, is_transfer) = (nonce.parse().ok()?, data.is_empty());
        Some(Self { nonce, is_transfer, gas: gas.parse().ok()?, price: price.parse().ok()? })
    }
}

/// A chain on which one account sends transactions, and its node.
#[derive(Debug, Default)]
pub(crate) struct FakeChain(Mutex<FakeChainState>);

#[derive(Debug, Default)]
pub(crate) struct FakeChainState {
    pub(crate) head: u64,
    pub(crate) finalized: u64,
    /// The lowest block of the current fork, and its number.
    fork: (u64, u8),
    /// The account's transactions with their blocks, in the order of the nonces.
    pub(crate) sent: Vec<(u64, Sent)>,
    pub(crate) reverted: Vec<TxHash>,
    /// Nonces that an authorisation took, not a transaction of the account's.
    pub(crate) authorisations: Vec<u64>,
    /// What the next counts are, whatever is true.
    pub(crate) wrong_counts: VecDeque<u64>,
    /// There is a second endpoint, which answers no count.
    pub(crate) is_second_silent: bool,
    /// The account's transactions that wait in the pool.
    pub(crate) pending: u64,
    /// The node has no state of blocks below this one.
    pub(crate) state_from: u64,
    /// The node has no blocks below this one.
    pub(crate) blocks_from: u64,
    /// What is older than that is refused in the words of an outage.
    pub(crate) refuses_history: bool,
    /// The node behind the load balancer is behind: it has none of the blocks.
    pub(crate) lacks_blocks: bool,
    /// The node has the blocks and not yet their receipts.
    pub(crate) lacks_receipts: bool,
    /// The node does not list the transactions of blocks.
    pub(crate) lacks_lists: bool,
    pub(crate) logs: Vec<Log>,
    /// Longest range of blocks for one query of logs.
    pub(crate) longest_range: Option<u64>,
    /// What the node refuses, with its text.
    pub(crate) refused: BTreeMap<TxHash, String>,
    /// Chooses transactions that the node fails at as in an outage, with their whole round, while it answers other calls.
    pub(crate) denies: Option<fn(Offer) -> bool>,
    /// What the node refuses of all the rest, with its text.
    pub(crate) refuses: Option<fn(Offer) -> Option<&'static str>>,
    /// What the node's pool has, by nonce, and what it keeps.
    pub(crate) pool: BTreeMap<u64, TxHash>,
    pub(crate) pool_rules: PoolRules,
    /// The node counts no pending transactions.
    pub(crate) hides_pending: bool,
    /// What a node's pool holds at each nonce that it is asked for.
    pub(crate) pooled: Option<Pooled>,
    /// What the node answers to each estimate, if that fails.
    pub(crate) estimate_fails: Option<String>,
    /// What each call takes, if not the gas of a transfer.
    pub(crate) estimate: Option<u64>,
    /// By its calldata, what the node answers to a call's estimate; nothing where it does not answer, so that its whole round
    /// has no answer.
    pub(crate) estimates: BTreeMap<Bytes, Option<String>>,
    /// The node's answer to a call on top of others; nothing where it has no method for that.
    pub(crate) on_top: Option<fn(&OnTop) -> Result<Gas>>,
    /// The calls that it was asked to run on top of others.
    pub(crate) on_tops: Vec<OnTop>,
    /// Rounds of estimates, by their lengths.
    pub(crate) rounds: Vec<usize>,
    /// What the account has; nothing where the node does not say.
    pub(crate) balance: Option<Wei>,
    /// The prices, if not one wei for a unit of gas.
    pub(crate) market: Option<Market>,
    /// The node's own word of its rules.
    pub(crate) rules: NodeRules,
    /// The price of a byte for L1, by the oracle of a rollup.
    pub(crate) l1_fee_per_byte: Option<u128>,
    /// Wei that the operator of a rollup takes for a unit of gas, beside that.
    pub(crate) operator_fee_per_gas: Option<u128>,
    /// How long each broadcast takes.
    pub(crate) latency: Duration,
    /// The hashes of each broadcast, in order.
    pub(crate) broadcasts: Vec<Vec<TxHash>>,
    pub(crate) is_away: bool,
    /// Announces blocks; nothing where the node announces none.
    pub(crate) announced: Option<watch::Sender<u64>>,
    /// Another chain is behind the address.
    pub(crate) is_other_chain: bool,
    /// Why another endpoint does not confirm what is final, if it does not.
    pub(crate) unconfirmed: Option<String>,
    /// A block that the node does not have.
    pub(crate) missing: Option<u64>,
    /// What of a poll gets no answer.
    failing: BTreeSet<Part>,
    calls: usize,
}

/// The calls of a poll that can fail alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Finalized,
    Receipts,
    Count,
    Market,
    Estimates,
}

impl FakeChain {
    /// Returns a chain in which the account sent nonce 0, 1 and so on in these blocks. The last one is the head.
    pub(crate) fn sent_in(blocks: &[u64]) -> Arc<Self> {
        let transaction = |nonce| Sent {
            nonce: Nonce(nonce),
            tx_hash: own_hash(nonce),
            to: Some(Address([9; 20])),
            value: Wei(0),
            data: Bytes::from(format!("call {nonce}")),
            is_signed: true,
        };
        let sent = blocks.iter().zip(0..).map(|(block, nonce)| (*block, transaction(nonce))).collect();
        let head = blocks.last().copied().unwrap_or(0);
        Arc::new(Self(Mutex::new(FakeChainState { head, sent, ..FakeChainState::default() })))
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut FakeChainState) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    /// Lets the calls of this part fail, or be answered again.
    pub(crate) fn fail(&self, part: Part, fails: bool) {
        self.change(|state| if fails { state.failing.insert(part) } else { state.failing.remove(&part) });
    }

    fn count_part(&self, part: Part) -> Result<MutexGuard<'_, FakeChainState>> {
        let state = self.count()?;
        if state.failing.contains(&part) {
            return Err(ChainError::Unreachable { endpoint: "fake".to_owned(), detail: format!("no {part:?}") });
        }
        Ok(state)
    }

    /// Replaces this block and all above it by others with the same transactions.
    pub(crate) fn reorganise_from(&self, block: u64) {
        self.change(|state| state.fork = (block, state.fork.1 + 1));
    }

    pub(crate) fn hash_of(&self, block: u64) -> BlockHash {
        self.0.lock().unwrap().hash_of(block)
    }

    /// Returns the number of calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.0.lock().unwrap().calls
    }

    fn count(&self) -> Result<MutexGuard<'_, FakeChainState>> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        if state.is_away {
            return Err(ChainError::Unreachable { endpoint: "fake".to_owned(), detail: "away".to_owned() });
        }
        Ok(state)
    }
}

pub(crate) fn refusal(message: &str) -> ChainError {
    ChainError::Node { endpoint: "fake".to_owned(), code: -32000, message: message.to_owned(), data: None }
}

impl FakeChainState {
    fn hash_of(&self, block: u64) -> BlockHash {
        let fork = if block >= self.fork.0 { self.fork.1 } else { 0 };
        let mut hash = [fork; 32];
        hash[..8].iter_mut().zip(block.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        BlockHash(hash)
    }

    fn header(&self, number: u64) -> Option<Header> {
        let transactions = self.in_block(number).map(|sent| sent.tx_hash).collect();
        (number <= self.head && self.missing != Some(number)).then(|| Header {
            number: BlockNumber(number),
            hash: self.hash_of(number),
            parent: self.hash_of(number.saturating_sub(1)),
            timestamp: number,
            base_fee: None,
            gas_limit: Gas(30_000_000),
            transactions: (!self.lacks_lists).then_some(transactions),
        })
    }

    fn without_history(&self, text: &str) -> ChainError {
        if self.refuses_history {
            let detail = "HTTP status 403: archive requests need another plan".to_owned();
            return ChainError::Unreachable { endpoint: "fake".to_owned(), detail };
        }
        refusal(text)
    }

    fn receipt(&self, hash: TxHash) -> Option<Receipt> {
        let (block, sent) = self.sent.iter().find(|(block, sent)| sent.tx_hash == hash && *block <= self.head)?;
        let transaction = FinalTransaction {
            tx_hash: hash,
            nonce: sent.nonce,
            block_number: BlockNumber(*block),
            block_hash: self.hash_of(*block),
            gas_used: Gas(21_000),
            effective_gas_price: Some(Wei(1)),
            l1: Default::default(),
        };
        Some(Receipt { transaction, succeeded: !self.reverted.contains(&hash) })
    }

    /// Returns the account's next nonce with what the pool has in order.
    pub(crate) fn next_pending(&self) -> u64 {
        let count = self.next_nonce();
        let pending = (count..).find(|nonce| !self.pool.contains_key(nonce));
        pending.filter(|_| !self.hides_pending).unwrap_or(count)
    }

    fn next_nonce(&self) -> u64 {
        self.sent.iter().filter(|(sent, _)| *sent <= self.head).count() as u64
    }

    /// What the pool does with these bytes, and what the node says.
    fn accept(&mut self, signed: &RawTransaction) -> Result<()> {
        let offer = Offer::read(&signed.bytes);
        let by_rule = || self.refuses.and_then(|refuses| refuses(offer?));
        if let Some(text) = self.refused.get(&signed.hash).map(String::as_str).or_else(by_rule) {
            return Err(refusal(text));
        }
        let (count, executable) = (self.next_nonce(), (self.next_pending() - self.next_nonce()) as usize);
        let Some(Offer { nonce, .. }) = offer.filter(|offer| offer.nonce >= count) else { return Ok(()) };
        self.pool.retain(|pooled, _| *pooled >= count);
        match self.pool.get(&nonce) {
            Some(pooled) if *pooled == signed.hash => return Err(refusal("already known")),
            Some(_) => {}
            None => match self.pool_rules.judge(nonce, count, self.pool.keys().copied(), executable) {
                Judged::Yes => {}
                Judged::Dropped => return Ok(()),
                Judged::Refused(text) => return Err(refusal(text)),
            },
        }
        self.pool.insert(nonce, signed.hash);
        Ok(())
    }

    fn in_block(&self, block: u64) -> impl Iterator<Item = &Sent> {
        self.sent.iter().filter(move |(own, _)| *own == block).map(|(_, sent)| sent)
    }
}

#[async_trait]
impl Chain for FakeChain {
    async fn check_chain(&self) -> Result<()> {
        match self.count()?.is_other_chain {
            true => Err(ChainError::WrongChain { endpoint: "fake".to_owned(), found: 2, expected: 1 }),
            false => Ok(()),
        }
    }

    async fn header(&self, block: BlockTag) -> Result<Option<Header>> {
        let is_tagged = matches!(block, BlockTag::Safe | BlockTag::Finalized);
        let state = if is_tagged { self.count_part(Part::Finalized)? } else { self.count()? };
        let number = match block {
            BlockTag::Latest => state.head,
            BlockTag::Safe | BlockTag::Finalized => state.finalized,
            BlockTag::Number(number) => number.0,
        };
        Ok(state.header(number))
    }

    async fn headers(&self, numbers: RangeInclusive<u64>) -> Result<Vec<Option<Header>>> {
        let state = self.count()?;
        Ok(numbers.map(|number| state.header(number)).collect())
    }

    async fn receipts_in(&self, block: BlockHash, ours: &[TxHash]) -> Result<Vec<Receipt>> {
        let state = self.count_part(Part::Receipts)?;
        let receipts = ours.iter().filter_map(|hash| state.receipt(*hash));
        Ok(receipts.filter(|receipt| receipt.transaction.block_hash == block).collect())
    }

    async fn confirm(&self, _: BlockNumber, _: BlockHash, _: &[Receipt]) -> Result<()> {
        let unconfirmed = self.change(|state| state.unconfirmed.clone());
        unconfirmed.map_or(Ok(()), |detail| Err(ChainError::Unconfirmed { detail }))
    }

    async fn receipts(&self, hashes: &[TxHash]) -> Vec<Result<Option<Receipt>>> {
        match self.count_part(Part::Receipts) {
            Ok(state) if state.lacks_receipts => hashes.iter().map(|_| Ok(None)).collect(),
            Ok(state) => hashes.iter().map(|hash| Ok(state.receipt(*hash))).collect(),
            Err(error) => hashes.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    async fn transaction_count(&self, _: Address, block: BlockTag) -> Result<Nonce> {
        let mut state = self.count_part(Part::Count)?;
        let number = match block {
            BlockTag::Number(number) => number.0,
            BlockTag::Latest | BlockTag::Safe | BlockTag::Finalized => state.head,
        };
        if number < state.state_from {
            return Err(state.without_history("missing trie node"));
        }
        if let Some(wrong) = state.wrong_counts.pop_front() {
            return Ok(Nonce(wrong));
        }
        Ok(Nonce(state.sent.iter().filter(|(sent, _)| *sent <= number).count() as u64))
    }

    async fn counts(&self, account: Address, at: CountAt) -> Vec<(String, Result<Nonce>)> {
        let (block, pending) = match at {
            CountAt::Block(number) => (BlockTag::Number(number), 0),
            CountAt::Pending => (BlockTag::Latest, self.change(|state| state.pending)),
            CountAt::Pools => {
                let next = self.count().map(|state| Nonce(state.next_pending()));
                return vec![("fake".to_owned(), next)];
            }
        };
        let count = self.transaction_count(account, block).await;
        let mut counts = vec![("fake".to_owned(), count.map(|count| count.plus(pending)))];
        if self.change(|state| state.is_second_silent) {
            let (endpoint, detail) = ("second".to_owned(), "no answer in time".to_owned());
            counts.push((endpoint.clone(), Err(ChainError::Unreachable { endpoint, detail })));
        }
        counts
    }

    async fn sent_in(&self, _: Address, number: BlockNumber) -> Result<Option<SentInBlock>> {
        let state = self.count()?;
        if number.0 < state.blocks_from {
            return Err(state.without_history("pruned history unavailable"));
        }
        let of_block: Vec<_> = state.in_block(number.0).cloned().collect();
        let (sent, authorised): (Vec<_>, Vec<_>) =
            of_block.into_iter().partition(|sent| !state.authorisations.contains(&sent.nonce.0));
        let authorised = authorised.iter().map(|sent| (sent.nonce, sent.tx_hash)).collect();
        Ok((!state.lacks_blocks).then_some(SentInBlock { number, hash: state.hash_of(number.0), sent, authorised }))
    }

    async fn logs(&self, query: &LogQuery) -> Result<Vec<Log>> {
        let state = self.count()?;
        if state.longest_range.is_some_and(|longest| query.to.0 - query.from.0 >= longest) {
            return Err(refusal("range is too large"));
        }
        let is_in_range = |log: &&Log| (query.from..=query.to).contains(&log.inclusion.block_number);
        Ok(state.logs.iter().filter(is_in_range).cloned().collect())
    }

    async fn broadcast(&self, transactions: &[Traced<RawTransaction>]) -> Vec<Result<()>> {
        let latency = self.change(|state| {
            state.broadcasts.push(transactions.iter().map(|signed| signed.item.hash).collect());
            state.latency
        });
        tokio::time::sleep(latency).await;
        self.change(|state| {
            let mut offers = transactions.iter().filter_map(|signed| Offer::read(&signed.item.bytes));
            if state.denies.is_some_and(|denies| offers.any(denies)) {
                let denied =
                    || ChainError::Denied { endpoint: "fake".to_owned(), status: 403, said: "forbidden".to_owned() };
                return transactions.iter().map(|_| Err(denied())).collect();
            }
            let mut answers: Vec<_> = transactions.iter().map(|_| Ok(())).collect();
            let mut order: Vec<_> = answers.iter_mut().zip(transactions).collect();
            if state.pool_rules.shuffles {
                order.reverse();
            }
            order.into_iter().for_each(|(answer, signed)| *answer = state.accept(&signed.item));
            answers
        })
    }

    async fn market(&self, _: &Header) -> Result<Market> {
        let state = self.count_part(Part::Market)?;
        Ok(state.market.unwrap_or(Market { base_fee: None, tip: Wei(0), gas_price: Wei(1) }))
    }

    async fn node_rules(&self) -> NodeRules {
        self.change(|state| state.rules)
    }

    async fn estimate(&self, calls: &[Traced<Call>]) -> Vec<Result<Gas>> {
        let all = |error: ChainError| calls.iter().map(|_| Err(error.clone())).collect();
        let hangs = match self.count_part(Part::Estimates) {
            Ok(mut state) => {
                // The lane also asks what a transfer to the account itself takes.
                if calls.iter().any(|call| call.item.to != call.item.from) {
                    state.rounds.push(calls.len());
                }
                calls.iter().any(|call| state.estimates.get(&call.item.data) == Some(&None))
            }
            Err(error) => return all(error),
        };
        if hangs {
            tokio::time::sleep(ESTIMATE_TIMEOUT).await;
            return all(ChainError::Unreachable {
                endpoint: "fake".to_owned(),
                detail: "no answer in time".to_owned(),
            });
        }
        self.change(|state| {
            let gas = Gas(state.estimate.unwrap_or(21_000));
            let own = |call: &Call| state.estimates.get(&call.data).cloned().flatten();
            let fails = |call: &Call| own(call).or_else(|| state.estimate_fails.clone());
            calls.iter().map(|call| fails(&call.item).map_or(Ok(gas), |text| Err(refusal(&text)))).collect()
        })
    }

    async fn estimate_on_top(&self, on_top: &OnTop) -> Result<Gas> {
        let mut state = self.count()?;
        state.on_tops.push(on_top.clone());
        let lacks = || ChainError::Nonsense { endpoint: "fake".to_owned(), detail: "it has no such method".to_owned() };
        state.on_top.map_or_else(|| Err(lacks()), |answer| answer(on_top))
    }

    async fn call(&self, call: &Call, _: BlockNumber) -> Result<Bytes> {
        let state = self.count()?;
        let asks = |question: &[u8]| call.to == ORACLES[0].contract && call.data.starts_with(&question[..4]);
        let by_number = |factor: u128| {
            let number = u128::from_be_bytes(call.data[20..].try_into().unwrap());
            Ok([[0; 16], (number * factor).to_be_bytes()].concat().into())
        };
        if let Some(per_byte) = state.l1_fee_per_byte.filter(|_| asks(&ORACLES[0].question(0))) {
            return by_number(per_byte);
        }
        let of_operator = ORACLES[0].operator_question(Gas(0)).unwrap();
        if let Some(per_gas) = state.operator_fee_per_gas.filter(|_| asks(&of_operator)) {
            return by_number(per_gas);
        }
        Err(refusal("execution reverted"))
    }

    async fn has_transaction(&self, hash: TxHash) -> Result<bool> {
        let state = self.count()?;
        Ok(state.pool.values().any(|pooled| *pooled == hash) || state.receipt(hash).is_some())
    }

    async fn all_pools_have(&self, hash: TxHash) -> bool {
        self.count().is_ok_and(|state| state.pool.values().any(|pooled| *pooled == hash))
    }

    fn announcements(&self) -> Option<watch::Receiver<u64>> {
        self.change(|state| state.announced.as_ref().map(watch::Sender::subscribe))
    }

    async fn pooled(&self, _: Address, _: Nonce) -> Result<Option<Pooled>> {
        Ok(self.count()?.pooled)
    }

    async fn balance(&self, _: Address) -> Result<Wei> {
        self.count()?.balance.ok_or_else(|| refusal("the method eth_getBalance does not exist"))
    }
}

/// Signs for [`ACCOUNT`], and always with the same bytes.
pub(crate) struct FakeSigner;

#[async_trait]
impl Signer for FakeSigner {
    fn address(&self) -> Address {
        ACCOUNT
    }

    async fn sign(
        &self,
        transactions: Vec<Traced<UnsignedTransaction>>,
    ) -> std::result::Result<Vec<RawTransaction>, SignerError> {
        let sign = |unsigned: Traced<UnsignedTransaction>| {
            let bytes = encode(ACCOUNT, &unsigned.item, 0);
            RawTransaction { hash: transaction_hash(&bytes), bytes }
        };
        Ok(transactions.into_iter().map(sign).collect())
    }
}

/// Returns the raw transaction with the hash of the account's transaction with this nonce.
pub(crate) fn raw(nonce: u64) -> RawTransaction {
    RawTransaction { hash: own_hash(nonce), bytes: Bytes::from(nonce.to_string()) }
}

/// Returns where the account's transaction with this nonce is included.
pub(crate) fn inclusion(chain: &FakeChain, nonce: u64) -> Inclusion {
    chain.change(|state| state.receipt(own_hash(nonce)).unwrap().inclusion())
}

/// Returns the hash of the calldata of the account's transaction with this nonce.
pub(crate) fn data_hash(nonce: u64) -> BodyHash {
    BodyHash::of(format!("call {nonce}").as_bytes())
}

/// The marker's queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeMarkers(Arc<Mutex<MarkersState>>);

#[derive(Debug, Default)]
struct MarkersState {
    markers: Vec<Marker>,
    is_away: bool,
    keeps_old: bool,
    session: watch::Sender<u64>,
    /// The sessions that may have deliveries, in the order in which they were let in.
    admitted: Vec<u64>,
}

struct FakeHold {
    queue: FakeMarkers,
    found: Vec<Marker>,
}

impl FakeMarkers {
    /// Returns what is in the queue.
    pub(crate) fn left(&self) -> Vec<Marker> {
        self.0.lock().unwrap().markers.clone()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().markers.clear();
    }

    pub(crate) fn set_away(&self, is_away: bool) {
        self.0.lock().unwrap().is_away = is_away;
    }

    /// Begins a session with the broker.
    pub(crate) fn begin_session(&self) {
        self.0.lock().unwrap().session.send_modify(|number| *number += 1);
    }

    pub(crate) fn admitted(&self) -> Vec<u64> {
        self.0.lock().unwrap().admitted.clone()
    }

    /// Leaves the old marker beside the new one, as a crash does.
    pub(crate) fn keep_old(&self, keeps_old: bool) {
        self.0.lock().unwrap().keeps_old = keeps_old;
    }
}

#[async_trait]
impl MarkerQueue for FakeMarkers {
    async fn hold(&self) -> std::result::Result<Box<dyn HeldMarkers>, BrokerError> {
        if self.0.lock().unwrap().is_away {
            return Err(BrokerError::NotConnected);
        }
        Ok(Box::new(FakeHold { queue: self.clone(), found: self.left() }))
    }

    fn sessions(&self) -> watch::Receiver<u64> {
        self.0.lock().unwrap().session.subscribe()
    }

    fn admit(&self, session: u64) {
        self.0.lock().unwrap().admitted.push(session);
    }
}

#[async_trait]
impl HeldMarkers for FakeHold {
    fn session(&self) -> u64 {
        *self.queue.0.lock().unwrap().session.borrow()
    }

    fn found(&self) -> &[Marker] {
        &self.found
    }

    async fn replace(self: Box<Self>, by: &Marker) -> std::result::Result<(), BrokerError> {
        let mut state = self.queue.0.lock().unwrap();
        if !state.keeps_old {
            state.markers.clear();
        }
        state.markers.push(by.clone());
        Ok(())
    }
}
