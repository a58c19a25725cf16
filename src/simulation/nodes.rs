//! The simulated nodes: what they say about the ledger, with everything that can happen to a question or an answer.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::chain::{
    BlockTag, Call, Chain, ChainError, CountAt, Header, Inclusion, Log, LogQuery, OnTop, Pooled, Receipt, Result, Sent,
    SentInBlock, transaction_hash,
};
use crate::model::event::FinalTransaction;
use crate::model::{Address, BlockHash, BlockNumber, Gas, Nonce, RawTransaction, Topic, TxHash, Wei};
use crate::observe::traces::Traced;
use crate::policy::fee::Market;
use crate::policy::l1_fee::ORACLES;
use crate::policy::records;
use crate::simulation::ledger::{Block, Kept, Ledger, View, decode};
use crate::simulation::workload::{Behaviour, Body, records_in};
use crate::simulation::world::{CallKind, Shared, World};

/// After this the caller gives up on an answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// What is late comes up to so many milliseconds later.
const LATEST_MS: u64 = 40_000;
const GAS_PER_CALL: u64 = 50_000;
/// At the lowest price it costs more than an account has where its funds are short.
const COSTLY_GAS: Gas = Gas(25_000_000);

pub(super) struct SimNodes {
    pub(super) world: Shared,
}

/// What becomes of one broadcast.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    Lost,
    AnswerLost,
    Late,
    Doubled,
    Garbled,
    Forgotten,
    Unknown,
}

impl SimNodes {
    /// A read: the answer is about the view of whichever node was asked.
    async fn read<T>(&self, answer: impl FnOnce(&mut World, &View) -> Result<T> + Send) -> Result<T> {
        let (there, back, fails) = {
            let mut world = self.world.lock();
            let odds = world.weather.reads_fail;
            (world.latency(), world.latency(), world.happens(odds))
        };
        tokio::time::sleep(there).await;
        if fails {
            let kind = self.world.lock().rng.u8(0..3);
            return Err(match kind {
                0 => {
                    tokio::time::sleep(TIMEOUT).await;
                    unreachable("no answer in time")
                }
                1 => ChainError::RateLimited { endpoint: "sim".to_owned(), retry_after: None },
                _ => ChainError::Nonsense { endpoint: "sim".to_owned(), detail: "<html>".to_owned() },
            });
        }
        let answered = {
            let mut world = self.world.lock();
            let odds = world.weather.stale_reads;
            let is_stale = world.happens(odds);
            let view = world.stale_view.clone().filter(|_| is_stale).unwrap_or_else(|| world.ledger.chain.clone());
            answer(&mut world, &view)
        };
        tokio::time::sleep(back).await;
        answered
    }

    /// A read of this kind, which may fail while others do not.
    async fn read_kind<T>(
        &self,
        kind: CallKind,
        answer: impl FnOnce(&mut World, &View) -> Result<T> + Send,
    ) -> Result<T> {
        let failure = self.world.lock().call_failure(kind);
        match failure {
            Some(failure) => self.read(|_, _| Err(failure)).await,
            None => self.read(answer).await,
        }
    }

    fn fate(&self) -> Fate {
        let mut world = self.world.lock();
        let weather = world.weather.clone();
        let odds = [
            (weather.sends_lost, Fate::Lost),
            (weather.answers_lost, Fate::AnswerLost),
            (weather.sends_late, Fate::Late),
            (weather.sends_doubled, Fate::Doubled),
            (weather.answers_garbled, Fate::Garbled),
            (weather.sends_forgotten, Fate::Forgotten),
            (weather.answers_unknown, Fate::Unknown),
        ];
        odds.into_iter().find(|(odds, _)| world.happens(*odds)).map_or(Fate::Arrives, |(_, fate)| fate)
    }
}

/// The answer to [`Behaviour::Denied`].
const DENIED: &str = "403 Forbidden";

/// Gives bytes to a node, also where no process waits for its answer any more.
fn accept(world: &mut World, transactions: &[RawTransaction]) -> Vec<Result<()>> {
    let accept_one = |world: &mut World, signed: &RawTransaction| {
        let is_denied = decode(&signed.bytes).is_some_and(|sent| Body::any(&sent.data, Behaviour::Denied));
        let accepted = match world.weather.refuses_all {
            Some(words) => Err(words.text().to_owned()),
            None if is_denied => Err(DENIED.to_owned()),
            None => world.ledger.accept(&signed.bytes),
        };
        // What it drops at once no block has passed over.
        if accepted.is_err() || world.ledger.has(signed.hash) {
            world.checker.record_answer(signed.hash, accepted.as_ref().err());
        }
        for body in decode(&signed.bytes).map(|transaction| Body::all(&transaction.data)).unwrap_or_default() {
            world.check_time(&body);
        }
        let text = accepted.as_ref().map_or_else(Clone::clone, |_| "ok".to_owned());
        world.note(format!("a node gets {}: {text}", signed.hash));
        accepted.map(|_| ()).map_err(|text| if is_denied { unreachable(&text) } else { refusal(text) })
    };
    // A firewall before the node fails all that comes in one piece.
    let stops_all = |body: Body| body.behaviour == Behaviour::Denied && body.number().is_multiple_of(2);
    let mut bodies =
        transactions.iter().filter_map(|signed| decode(&signed.bytes)).flat_map(|sent| Body::all(&sent.data));
    if bodies.any(stops_all) {
        return transactions.iter().map(|_| Err(unreachable(DENIED))).collect();
    }
    let mut answers: Vec<_> = transactions.iter().map(|_| Ok(())).collect();
    let mut order: Vec<_> = transactions.iter().zip(&mut answers).collect();
    if world.ledger.pool_rules.is_some_and(|rules| rules.shuffles) {
        world.rng.shuffle(&mut order);
    }
    order.into_iter().for_each(|(signed, slot)| *slot = accept_one(world, signed));
    answers
}

fn refusal(message: String) -> ChainError {
    ChainError::Node { endpoint: "sim".to_owned(), code: -32000, message, data: None }
}

fn taken(kept: &Kept) -> ChainError {
    let data = Some(records::tests::already_recorded(kept.id, kept.content));
    let message = "execution reverted".to_owned();
    ChainError::Node { endpoint: "sim".to_owned(), code: 3, message, data }
}

fn unreachable(detail: &str) -> ChainError {
    ChainError::Unreachable { endpoint: "sim".to_owned(), detail: detail.to_owned() }
}

/// The transactions that a node names in a block. A wrong list lacks what the block has, and has what it lacks.
fn listed(world: &mut World, block: &Block) -> Option<Vec<TxHash>> {
    let odds = world.weather.lists_lie;
    if !world.happens(odds) {
        return Some(block.transactions.iter().map(|(hash, _)| *hash).collect());
    }
    if world.rng.bool() {
        return None;
    }
    let pooled: Vec<_> = world.ledger.pool.values().copied().collect();
    world.checker.seen_in_blocks.extend(&pooled);
    Some(pooled)
}

fn header(world: &mut World, block: &Block) -> Header {
    let odds = world.weather.odd_numbers;
    let is_odd = world.happens(odds);
    Header {
        number: BlockNumber(block.number),
        hash: block.hash,
        parent: block.parent,
        timestamp: if is_odd { i64::MAX.unsigned_abs() } else { block.timestamp },
        base_fee: Some(Wei(block.base_fee)),
        gas_limit: if is_odd { Gas(i64::MAX.unsigned_abs()) } else { Ledger::gas_limit() },
        transactions: listed(world, block),
    }
}

fn height_of(world: &World, view: &View, tag: BlockTag) -> u64 {
    let head = view.last().map_or(0, |block| block.number);
    match tag {
        BlockTag::Latest => head,
        BlockTag::Safe | BlockTag::Finalized => head.saturating_sub(world.ledger.depth),
        BlockTag::Number(number) => number.0,
    }
}

fn receipt(view: &View, hash: TxHash) -> Option<Receipt> {
    view.iter().rev().find_map(|block| {
        let (_, succeeded) = block.transactions.iter().find(|(found, _)| *found == hash)?;
        let transaction = FinalTransaction {
            tx_hash: hash,
            nonce: Nonce::default(),
            block_number: BlockNumber(block.number),
            block_hash: block.hash,
            gas_used: Gas(GAS_PER_CALL),
            effective_gas_price: Some(Wei(block.base_fee)),
            l1: Default::default(),
        };
        Some(Receipt { transaction, succeeded: *succeeded })
    })
}

#[async_trait]
impl Chain for SimNodes {
    async fn check_chain(&self) -> Result<()> {
        self.read(|_, _| Ok(())).await
    }

    async fn header(&self, block: BlockTag) -> Result<Option<Header>> {
        let found = |world: &mut World, view: &View| {
            let height = usize::try_from(height_of(world, view, block)).unwrap_or(usize::MAX);
            Ok(view.get(height).map(|block| header(world, block)))
        };
        match block {
            BlockTag::Latest => self.read(found).await,
            BlockTag::Safe | BlockTag::Finalized => self.read_kind(CallKind::Tagged, found).await,
            BlockTag::Number(_) => self.read_kind(CallKind::Block, found).await,
        }
    }

    async fn headers(&self, numbers: RangeInclusive<u64>) -> Result<Vec<Option<Header>>> {
        let found = |world: &mut World, view: &View| {
            let of = |number: u64| usize::try_from(number).ok().and_then(|height| view.get(height));
            Ok(numbers.map(|number| of(number).map(|block| header(world, block))).collect())
        };
        self.read_kind(CallKind::Block, found).await
    }

    async fn receipts_in(&self, block: BlockHash, ours: &[TxHash]) -> Result<Vec<Receipt>> {
        let found = |_: &mut World, view: &View| {
            let receipts = ours.iter().filter_map(|hash| receipt(view, *hash));
            Ok(receipts.filter(|receipt| receipt.transaction.block_hash == block).collect())
        };
        self.read_kind(CallKind::BlockReceipts, found).await
    }

    async fn confirm(&self, _: BlockNumber, _: BlockHash, _: &[Receipt]) -> Result<()> {
        Ok(())
    }

    async fn receipts(&self, hashes: &[TxHash]) -> Vec<Result<Option<Receipt>>> {
        let found = |world: &mut World, view: &View| {
            let mut find = |hash: &TxHash| world.call_failure(CallKind::Receipt).map_or(Ok(receipt(view, *hash)), Err);
            Ok(hashes.iter().map(&mut find).collect::<Vec<_>>())
        };
        let each = |error: ChainError| hashes.iter().map(|_| Err(error.clone())).collect();
        self.read(found).await.unwrap_or_else(each)
    }

    async fn transaction_count(&self, account: Address, tag: BlockTag) -> Result<Nonce> {
        let count = |world: &mut World, view: &View| {
            let height = height_of(world, view, tag);
            let block = usize::try_from(height).ok().and_then(|height| view.get(height));
            let count = block.ok_or_else(|| refusal("header not found".to_owned()))?.nonce_of(account);
            let odds = world.weather.count_lies;
            let lies = tag == BlockTag::Latest && world.happens(odds);
            let off_by = if lies { world.rng.u64(0..=4) } else { 2 };
            let jumps = world.weather.count_jumps;
            let jump = if world.happens(jumps) { world.rng.u64(1000..3000) } else { 0 };
            Ok(Nonce((count.0 + off_by).saturating_sub(2) + jump))
        };
        let kind = if tag == BlockTag::Latest { CallKind::Count } else { CallKind::CountAtBlock };
        self.read_kind(kind, count).await
    }

    async fn counts(&self, account: Address, at: CountAt) -> Vec<(String, Result<Nonce>)> {
        let count = match at {
            CountAt::Block(number) => self.transaction_count(account, BlockTag::Number(number)).await,
            CountAt::Pending | CountAt::Pools => self.read(|world, _| Ok(world.ledger.pending(account))).await,
        };
        vec![("sim".to_owned(), count)]
    }

    async fn sent_in(&self, account: Address, block: BlockNumber) -> Result<Option<SentInBlock>> {
        let sent = |world: &mut World, view: &View| {
            let found = usize::try_from(block.0).ok().and_then(|height| view.get(height));
            Ok(found.map(|found| {
                let hashes = found.transactions.iter().map(|(hash, _)| *hash);
                let sent = hashes.map(|hash| (&world.ledger.known[&hash], hash));
                let own = sent.filter(|(transaction, _)| transaction.sender == account);
                let sent = own.map(|(transaction, tx_hash)| Sent {
                    nonce: transaction.nonce,
                    tx_hash,
                    to: Some(Address([0xaa; 20])),
                    value: Wei(0),
                    data: transaction.data.clone(),
                    is_signed: true,
                });
                SentInBlock { number: block, hash: found.hash, sent: sent.collect(), authorised: Vec::new() }
            }))
        };
        self.read_kind(CallKind::SentIn, sent).await
    }

    async fn market(&self, _: &Header) -> Result<Market> {
        let ask = |world: &mut World, _: &View| {
            let base_fee = Wei(world.ledger.base_fee);
            Ok(Market { base_fee: Some(base_fee), tip: Wei(2), gas_price: base_fee.plus(Wei(2)) })
        };
        self.read_kind(CallKind::Market, ask).await
    }

    async fn estimate(&self, calls: &[Traced<Call>]) -> Vec<Result<Gas>> {
        let hangs =
            |call: &Traced<Call>| Body::all(&call.item.data).iter().any(|body| body.behaviour == Behaviour::Hangs);
        if calls.iter().any(hangs) {
            tokio::time::sleep(TIMEOUT).await;
            return calls.iter().map(|_| Err(unreachable("no answer in time"))).collect();
        }
        let estimate = |world: &mut World, view: &View| {
            let now = world.now_ms();
            let mut estimate = |Traced { item: call, .. }: &Traced<Call>| {
                if let Some(failure) = world.call_failure(CallKind::Estimate) {
                    return Err(failure);
                }
                if world.ledger.broke.contains(&call.from) {
                    return Err(refusal("insufficient funds for gas * price + value".to_owned()));
                }
                if call.to == call.from {
                    let least = world.ledger.rules.least_gas;
                    return if world.ledger.rules.estimates_transfers {
                        Ok(Gas(least))
                    } else {
                        Err(refusal("execution reverted".to_owned()))
                    };
                }
                let bodies = Body::all(&call.data);
                if let Some(text) = bodies.iter().find_map(Body::not_simulated) {
                    return Err(refusal(text.to_owned()));
                }
                if let Some(kept) = world.ledger.taken(view, &records_in(&call.data)) {
                    return Err(taken(&kept));
                }
                if let Some(costly) = bodies.iter().find(|body| body.behaviour == Behaviour::Costly) {
                    // Some nodes find out by themselves, and the others leave it to the sender.
                    let is_found = costly.number() % 2 == 0 || world.checker.limits.gas_per_hour.is_some();
                    let text = "insufficient funds for transfer".to_owned();
                    return if is_found { Err(refusal(text)) } else { Ok(COSTLY_GAS) };
                }
                if bodies.iter().all(|body| body.behaviour.runs_in_simulation(now)) {
                    Ok(Gas(GAS_PER_CALL * bodies.len().max(1) as u64))
                } else {
                    Err(refusal("execution reverted".to_owned()))
                }
            };
            Ok(calls.iter().map(&mut estimate).collect::<Vec<_>>())
        };
        let each = |error: ChainError| calls.iter().map(|_| Err(error.clone())).collect();
        self.read(estimate).await.unwrap_or_else(each)
    }

    /// Of half of the ledgers, nodes run calls on top of others. What a call does does not depend on those.
    async fn estimate_on_top(&self, on_top: &OnTop) -> Result<Gas> {
        let can = self.read(|world: &mut World, _: &View| Ok(world.ledger.rules.estimates_transfers)).await?;
        if !can {
            return Err(refusal("the method eth_simulateV1 does not exist".to_owned()));
        }
        let estimated = self.estimate(&[on_top.call.clone().into()]).await.pop();
        estimated.unwrap_or_else(|| Err(unreachable("no answer in time")))
    }

    /// What is run here again has reverted.
    async fn call(&self, call: &Call, block: BlockNumber) -> Result<Bytes> {
        // The chain is no rollup, and no weather changes that.
        if ORACLES.iter().any(|oracle| oracle.contract == call.to) {
            return Err(refusal("execution reverted".to_owned()));
        }
        let run = |world: &mut World, view: &View| {
            let below = view.iter().take_while(|known| known.number <= block.0).cloned().collect();
            let kept = world.ledger.taken(&Arc::new(below), &records_in(&call.data));
            Err(kept.map_or_else(|| refusal("execution reverted".to_owned()), |kept| taken(&kept)))
        };
        self.read(run).await
    }

    async fn logs(&self, query: &LogQuery) -> Result<Vec<Log>> {
        let look = |world: &mut World, view: &View| {
            let entry = |kept: Kept| {
                let Kept { id, content, writer, tx_hash, block_number, block_hash } = kept;
                let (topics, data) = records::tests::entry(id, writer, content);
                Log { topics, data, inclusion: Inclusion { tx_hash, block_number, block_hash } }
            };
            let is_wanted = |log: &Log| {
                let fits = |(wanted, topic): (&Vec<Topic>, &Topic)| wanted.is_empty() || wanted.contains(topic);
                query.topics.iter().zip(&log.topics).all(fits)
                    && (query.from..=query.to).contains(&log.inclusion.block_number)
            };
            Ok(world.ledger.kept(view).map(entry).filter(is_wanted).collect())
        };
        self.read_kind(CallKind::Log, look).await
    }

    async fn broadcast(&self, transactions: &[Traced<RawTransaction>]) -> Vec<Result<()>> {
        let transactions: Vec<_> = transactions.iter().map(|traced| traced.item.clone()).collect();
        self.world.lock().check_broadcast(&transactions);
        let fate = self.fate();
        let (there, back, late, restores) = {
            let mut world = self.world.lock();
            let late = Duration::from_millis(world.rng.u64(0..LATEST_MS));
            (world.latency(), world.latency(), late, world.restores)
        };
        let (world, bytes) = (self.world.clone(), transactions.clone());
        let all = |error: ChainError| transactions.iter().map(|_| Err(error.clone())).collect();
        // Bytes on their way arrive even if the sender dies.
        let arrival = tokio::spawn(async move {
            match fate {
                Fate::Lost => return Vec::new(),
                Fate::Late => tokio::time::sleep(there + late).await,
                _ => tokio::time::sleep(there).await,
            }
            let mut world = world.lock();
            if world.restores > restores {
                return Vec::new();
            }
            match fate {
                Fate::Forgotten => {
                    world.note_drops(bytes.iter().map(|signed| signed.hash));
                    bytes.iter().map(|_| Ok(())).collect()
                }
                Fate::Unknown => {
                    let text = "the moon is full".to_owned();
                    bytes.iter().for_each(|signed| world.checker.record_answer(signed.hash, Some(&text)));
                    bytes.iter().map(|_| Err(refusal(text.clone()))).collect()
                }
                Fate::Doubled => {
                    accept(&mut world, &bytes);
                    accept(&mut world, &bytes)
                }
                _ => accept(&mut world, &bytes),
            }
        });
        match fate {
            Fate::Lost | Fate::AnswerLost | Fate::Late => {
                tokio::time::sleep(TIMEOUT).await;
                return all(unreachable("no answer in time"));
            }
            Fate::Arrives | Fate::Doubled | Fate::Garbled | Fate::Forgotten | Fate::Unknown => {}
        }
        let answers = arrival.await.unwrap_or_default();
        tokio::time::sleep(back).await;
        if fate == Fate::Garbled {
            let detail = "half a document".to_owned();
            return all(ChainError::Nonsense { endpoint: "sim".to_owned(), detail });
        }
        answers
    }

    async fn has_transaction(&self, hash: TxHash) -> Result<bool> {
        let look = |world: &mut World, view: &View| Ok(world.ledger.has(hash) || receipt(view, hash).is_some());
        self.read(look).await
    }

    async fn all_pools_have(&self, hash: TxHash) -> bool {
        self.read(|world, _| Ok(world.ledger.pool.values().any(|pooled| *pooled == hash))).await.unwrap_or(false)
    }

    async fn pooled(&self, account: Address, nonce: Nonce) -> Result<Option<Pooled>> {
        let look = |world: &mut World, _: &View| {
            let ledger = &world.ledger;
            let found = ledger.pool.get(&(account, nonce)).filter(|_| ledger.rules.shows_pool);
            Ok(found.map(|hash| Pooled { tx_hash: *hash, fee: Some(ledger.known[hash].fee) }))
        };
        self.read(look).await
    }

    async fn balance(&self, account: Address) -> Result<Wei> {
        let ask = |world: &mut World, _: &View| Ok(Wei(world.ledger.funds_of(account)));
        self.read(ask).await
    }
}

/// Bytes hash to what a node would call them.
pub(super) fn has_its_hash(signed: &RawTransaction) -> bool {
    transaction_hash(&signed.bytes) == signed.hash
}
