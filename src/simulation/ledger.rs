//! The truth about the simulated chain: blocks, pool, fees, funds. What nodes say of it may be something else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::chain::transaction_hash;
use crate::model::{
    Address, BlockHash, BlockNumber, ContentHash, Fee, Gas, Nonce, RecordId, TxHash, UnsignedTransaction, Wei,
};
use crate::simulation::pools::{Judged, PoolRules};
use crate::simulation::workload::{Behaviour, Body, records_in};

pub(super) const CHAIN_ID: u64 = 1337;
/// Noon of 1 January 2030, when every run begins, in seconds since 1970.
const BEGIN: u64 = 1_893_499_200;
/// Gas in a block.
const BLOCK_GAS: u64 = 30_000_000;
/// Nodes take nonces this far ahead of the account's.
const MOST_AHEAD: u64 = 12;
/// Transactions of one account in the pool.
const MOST_POOLED: usize = 10;
/// More than all transactions of a run can cost.
const PLENTY: u128 = 1_000_000_000_000_000_000;

/// A transaction as the chain reads it.
#[derive(Debug, Clone)]
pub(super) struct Decoded {
    pub(super) sender: Address,
    pub(super) nonce: Nonce,
    pub(super) data: Bytes,
    pub(super) fee: Fee,
    pub(super) gas: Gas,
    /// The most that it may cost; nothing for what other programs send.
    cost: u128,
    /// What it asks the contract to keep, each id once.
    records: Vec<(RecordId, ContentHash)>,
}

/// What the contract has kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) id: RecordId,
    pub(super) content: ContentHash,
    pub(super) writer: Address,
    pub(super) tx_hash: TxHash,
    pub(super) block_number: BlockNumber,
    pub(super) block_hash: BlockHash,
}

/// What has been done for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Effect {
    pub(super) text: String,
    pub(super) sender: Address,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) number: u64,
    pub(super) hash: BlockHash,
    pub(super) parent: BlockHash,
    pub(super) timestamp: u64,
    pub(super) base_fee: u128,
    /// Which, and whether they did what they should.
    pub(super) transactions: Vec<(TxHash, bool)>,
    /// The next nonce of each account after it.
    nonces: BTreeMap<Address, Nonce>,
}

/// A chain as one node sees it.
pub(super) type View = Arc<Vec<Arc<Block>>>;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) chain: View,
    /// Every transaction that a node ever saw.
    pub(super) known: BTreeMap<TxHash, Decoded>,
    pub(super) pool: BTreeMap<(Address, Nonce), TxHash>,
    pub(super) base_fee: u128,
    /// What each account has. Somebody sees to it that it stays so.
    pub(super) funds: u128,
    /// Accounts that cannot pay now.
    pub(super) broke: BTreeSet<Address>,
    /// Nodes refuse a nonce that does not follow on, instead of keeping it for later.
    pub(super) no_gaps: bool,
    /// A pool like a real program's; none where it keeps what the constants above say.
    pub(super) pool_rules: Option<PoolRules>,
    /// Blocks that stand on a final one.
    pub(super) depth: u64,
    /// The highest block that was ever final.
    pub(super) final_height: u64,
    forks: u64,
    pub(super) rules: Rules,
    /// A foreign transaction at these places gets into no block before that millisecond.
    pub(super) held: BTreeMap<(Address, Nonce), u64>,
    /// Holds what the pool has and no block ever takes, with the millisecond at which it was first passed over.
    passed_over: BTreeMap<TxHash, u64>,
}

/// Pools forget after this what blocks pass over: Geth after three hours. This is longer than the checker waits for a request
/// of which nothing foreign is in the way.
const FORGOTTEN_MS: u64 = 1_800_000;

/// What the nodes of a run ask of every transaction.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// Least gas of a transaction, and whether nodes say so when they estimate one, and when they refuse one.
    pub(super) least_gas: u64,
    pub(super) estimates_transfers: bool,
    pub(super) names_limits: bool,
    pub(super) least_tip: u128,
    pub(super) most_gas: Option<u64>,
    pub(super) most_bytes: Option<usize>,
    /// Nodes show what their pools hold.
    pub(super) shows_pool: bool,
}

impl Rules {
    /// Most runs have none of these.
    pub(super) fn draw(rng: &mut fastrand::Rng) -> Self {
        let mut one_in = |chances: u8| rng.u8(0..chances) == 0;
        let (gas, tip, most_gas, most_bytes) = (one_in(3), one_in(4), one_in(5), one_in(5));
        let (estimates_transfers, names_limits, shows_pool) = (one_in(2), one_in(2), one_in(2));
        Self {
            // Less than a call takes.
            least_gas: if gas { 45_000 } else { 21_000 },
            estimates_transfers,
            names_limits,
            least_tip: if tip { 40 } else { 0 },
            // A single one always fits.
            most_gas: most_gas.then_some(130_000),
            most_bytes: most_bytes.then_some(700),
            shows_pool,
        }
    }

    /// What a node says to a transaction that does not keep to them.
    fn refuses(&self, transaction: &Decoded, bytes: usize) -> Option<String> {
        let (gas, tip) = (transaction.gas.0, transaction.fee.tip().0);
        let named =
            |text: &str, numbers: String| if self.names_limits { text.to_owned() + &numbers } else { text.to_owned() };
        if gas < self.least_gas {
            return Some(named("intrinsic gas too low", format!(": gas {gas}, minimum needed {}", self.least_gas)));
        }
        if let Some(most) = self.most_gas.filter(|most| gas > *most) {
            return Some(named("transaction gas limit too high", format!(" (cap: {most}, tx: {gas})")));
        }
        if let Some(most) = self.most_bytes.filter(|most| bytes > *most) {
            return Some(named("oversized data", format!(": transaction size {bytes}, limit {most}")));
        }
        (tip < self.least_tip)
            .then(|| named("transaction underpriced: tip too low", format!(", minimum needed {}", self.least_tip)))
    }
}

/// Bytes as the simulated signer makes them.
pub(super) fn encode(sender: Address, unsigned: &UnsignedTransaction, salt: u64) -> Bytes {
    let UnsignedTransaction { chain_id, nonce, to, value, gas, data, fee } = unsigned;
    let (kind, max, tip) = match fee {
        Fee::Eip1559 { max_fee, tip } => (2, max_fee.0, tip.0),
        Fee::Legacy { gas_price } => (0, gas_price.0, gas_price.0),
    };
    let to = to.map(|to| to.to_string()).unwrap_or_default();
    let fields = format!("{sender}|{chain_id}|{nonce}|{to}|{}|{}|{kind}|{max}|{tip}|{salt}|", value.0, gas.0);
    Bytes::from([fields.as_bytes(), data].concat())
}

pub(super) fn decode(raw: &[u8]) -> Option<Decoded> {
    let mut fields = raw.splitn(11, |byte| *byte == b'|');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let sender = text()?.parse().ok()?;
    let chain: u64 = text()?.parse().ok()?;
    let nonce = Nonce(text()?.parse().ok()?);
    let _to = text()?;
    let (value, gas): (u128, u128) = (text()?.parse().ok()?, text()?.parse().ok()?);
    let gas = Gas(u64::try_from(gas).ok()?);
    let kind = text()?;
    let (max, tip): (u128, u128) = (text()?.parse().ok()?, text()?.parse().ok()?);
    let _salt = text()?;
    let data = Bytes::copy_from_slice(fields.next()?);
    let fee = match kind {
        "2" => Fee::Eip1559 { max_fee: Wei(max), tip: Wei(tip) },
        _ => Fee::Legacy { gas_price: Wei(max) },
    };
    let records = records_in(&data);
    let cost = u128::from(gas.0).saturating_mul(max).saturating_add(value);
    (chain == CHAIN_ID).then_some(Decoded { sender, nonce, data, fee, gas, cost, records })
}

impl Block {
    pub(super) fn nonce_of(&self, account: Address) -> Nonce {
        self.nonces.get(&account).copied().unwrap_or_default()
    }
}

impl Ledger {
    pub(super) fn new(depth: u64) -> Self {
        let mut ledger = Self { depth, base_fee: 100, funds: PLENTY, ..Self::default() };
        ledger.append(Vec::new(), 0);
        ledger
    }

    pub(super) fn head(&self) -> &Arc<Block> {
        self.chain.last().expect("there is a first block")
    }

    pub(super) fn nonce(&self, account: Address) -> Nonce {
        self.head().nonce_of(account)
    }

    /// The account's next nonce at the highest final block.
    pub(super) fn final_count(&self, account: Address) -> Nonce {
        let height = usize::try_from(self.final_height).unwrap_or(usize::MAX);
        self.chain.get(height).map_or(Nonce(0), |block| block.nonce_of(account))
    }

    /// The account's next nonce with what follows on in the pool.
    pub(super) fn pending(&self, account: Address) -> Nonce {
        let mut next = self.nonce(account);
        while self.pool.contains_key(&(account, next)) {
            next = next.plus(1);
        }
        next
    }

    /// Where the transaction is in the chain: its block's height, and whether it did what it should.
    pub(super) fn find(&self, hash: TxHash) -> Option<(u64, bool)> {
        self.chain.iter().rev().find_map(|block| {
            let (_, succeeded) = block.transactions.iter().find(|(found, _)| *found == hash)?;
            Some((block.number, *succeeded))
        })
    }

    /// The transaction that took the nonce for good.
    pub(super) fn final_at(&self, account: Address, nonce: Nonce) -> Option<(TxHash, bool)> {
        let blocks = self.chain.iter().take_while(|block| block.number <= self.final_height);
        let mut sent = blocks.flat_map(|block| &block.transactions).filter(|(hash, _)| {
            let transaction = &self.known[hash];
            transaction.sender == account && transaction.nonce == nonce
        });
        sent.next().copied()
    }

    pub(super) fn funds_of(&self, account: Address) -> u128 {
        if self.broke.contains(&account) { 0 } else { self.funds }
    }

    /// What the account's transactions in the pool may cost together, without that of a nonce. As in Geth, those behind a gap
    /// count for nothing.
    fn committed(&self, account: Address, without: Nonce) -> u128 {
        let end = self.pending(account);
        let own =
            self.pool.iter().filter(|((sender, nonce), _)| *sender == account && *nonce != without && *nonce < end);
        own.map(|(_, hash)| self.known[hash].cost).sum()
    }

    /// What a node answers to these bytes. `Ok` means that its pool has them.
    pub(super) fn accept(&mut self, raw: &[u8]) -> Result<TxHash, String> {
        let refuse = |text: &str| Err(text.to_owned());
        let Some(transaction) = decode(raw) else { return refuse("invalid sender") };
        let (sender, nonce, hash) = (transaction.sender, transaction.nonce, transaction_hash(raw));
        let price = transaction.fee.ceiling().0;
        let words = Body::all(&transaction.data).iter().find_map(|body| body.behaviour.refused());
        let replaced = self.pool.get(&(sender, nonce)).map(|pooled| self.known[pooled].fee);
        let count = self.nonce(sender);
        let mine = self.pool.keys().filter(|(account, _)| *account == sender).map(|(_, nonce)| *nonce);
        let (pooled, highest) = (mine.clone().count(), mine.max().unwrap_or_default());
        let follows = nonce == count || self.pool.contains_key(&(sender, Nonce(nonce.0.saturating_sub(1))));
        if self.pool.get(&(sender, nonce)) == Some(&hash) {
            return refuse("already known");
        } else if nonce < count {
            return refuse(if self.find(hash).is_some() { "known transaction" } else { "nonce too low" });
        } else if let Some(words) = words {
            return refuse(words.text());
        } else if let Some(text) = self.rules.refuses(&transaction, raw.len()) {
            return Err(text);
        } else if self.committed(sender, nonce).saturating_add(transaction.cost) > self.funds_of(sender) {
            return refuse("insufficient funds for gas * price + value");
        } else if self.pool_rules.is_none() && nonce.0 > count.0 + MOST_AHEAD {
            return refuse("Transaction nonce is too distant from current sender nonce");
        } else if self.pool_rules.is_none() && self.no_gaps && !follows {
            return refuse("nonce too high");
        } else if let Some(replaced) = replaced {
            let enough = |new: u128, old: u128| new >= old + old / 10;
            if !enough(price, replaced.ceiling().0) || !enough(transaction.fee.tip().0, replaced.tip().0) {
                return refuse("replacement transaction underpriced");
            }
        } else if self.pool_rules.is_none() && pooled >= MOST_POOLED && highest < nonce {
            return refuse("txpool is full");
        } else if price < self.base_fee / 2 {
            return refuse("transaction underpriced");
        }
        self.known.insert(hash, transaction);
        match self.pool_rules.filter(|_| replaced.is_none()).map(|rules| self.judge(&rules, sender, nonce)) {
            None | Some(Judged::Yes) => {}
            Some(Judged::Dropped) => return Ok(hash),
            Some(Judged::Refused(text)) => return refuse(text),
        }
        self.pool.insert((sender, nonce), hash);
        if self.pool_rules.is_none() && replaced.is_none() && pooled >= MOST_POOLED {
            // Pools make room for what can run by what cannot run yet.
            self.pool.remove(&(sender, highest));
        }
        Ok(hash)
    }

    /// Whether the pool has it.
    pub(super) fn has(&self, hash: TxHash) -> bool {
        self.known.get(&hash).is_some_and(|known| self.pool.get(&(known.sender, known.nonce)) == Some(&hash))
    }

    fn judge(&self, rules: &PoolRules, sender: Address, nonce: Nonce) -> Judged {
        let senders: BTreeSet<Address> = self.pool.keys().map(|(sender, _)| *sender).collect();
        let executable: u64 = senders.iter().map(|own| self.pending(*own).0 - self.nonce(*own).0).sum();
        let own = self.pool.keys().filter(|(account, _)| *account == sender).map(|(_, nonce)| nonce.0);
        rules.judge(nonce.0, self.nonce(sender).0, own, usize::try_from(executable).unwrap_or(usize::MAX))
    }

    /// Somebody else with the key takes the account's next nonce.
    pub(super) fn foreign(&mut self, account: Address, data: Bytes) -> TxHash {
        self.foreign_at(account, data, u128::from(u64::MAX))
    }

    /// The same at a price, which keeps it in the pool until then where it is not replaced.
    pub(super) fn foreign_until(&mut self, account: Address, price: u128, until_ms: u64) -> TxHash {
        self.held.insert((account, self.nonce(account)), until_ms);
        self.foreign_at(account, Bytes::from_static(b"held"), price)
    }

    fn foreign_at(&mut self, account: Address, data: Bytes, price: u128) -> TxHash {
        let nonce = self.nonce(account);
        let hash = transaction_hash(&[account.as_bytes(), &nonce.0.to_be_bytes(), &data].concat());
        let fee = Fee::Legacy { gas_price: Wei(price) };
        let (gas, records) = (Gas(100_000), records_in(&data));
        let transaction = Decoded { sender: account, nonce, fee, gas, cost: 0, records, data };
        self.known.insert(hash, transaction);
        self.pool.insert((account, nonce), hash);
        hash
    }

    /// The next block, of what the pool has and what pays enough.
    pub(super) fn mine(&mut self, now_ms: u64, most: usize) {
        let is_dropped = |body: &Body| body.behaviour == Behaviour::Dropped;
        self.pool.retain(|_, hash| !Body::all(&self.known[hash].data).iter().any(is_dropped));
        self.forget_passed_over(now_ms);
        let mut taken = BTreeSet::new();
        let mut transactions = Vec::new();
        let mut next: BTreeMap<Address, Nonce> = BTreeMap::new();
        for ((sender, nonce), hash) in &self.pool {
            let count = *next.entry(*sender).or_insert_with(|| self.nonce(*sender));
            let transaction = &self.known[hash];
            let pays = transaction.fee.ceiling().0 >= self.base_fee && !self.broke.contains(sender);
            let waits = transaction.data == b"held"[..]
                && self.held.get(&(*sender, *nonce)).is_some_and(|until_ms| now_ms < *until_ms)
                || Body::any(&transaction.data, Behaviour::Unmined);
            if *nonce == count && pays && !waits && transactions.len() < most {
                next.insert(*sender, Nonce(count.0 + 1));
                let runs = Body::all(&transaction.data).iter().all(|body| body.behaviour.runs_on_chain(now_ms))
                    && !transaction.records.iter().any(|(id, _)| taken.contains(id))
                    && self.taken(&self.chain, &transaction.records).is_none();
                taken.extend(transaction.records.iter().filter(|_| runs).map(|(id, _)| *id));
                transactions.push((*hash, runs));
            }
        }
        self.append(transactions, now_ms);
    }

    fn forget_passed_over(&mut self, now_ms: u64) {
        let passed_over = self.pool.values().filter(|hash| Body::any(&self.known[*hash].data, Behaviour::Unmined));
        let since = |hash: &TxHash| (*hash, self.passed_over.get(hash).copied().unwrap_or(now_ms));
        self.passed_over = passed_over.map(since).collect();
        let passed_over = &self.passed_over;
        let is_old = |hash: &TxHash| passed_over.get(hash).is_some_and(|since| now_ms - since >= FORGOTTEN_MS);
        self.pool.retain(|_, hash| !is_old(hash));
    }

    fn append(&mut self, transactions: Vec<(TxHash, bool)>, now_ms: u64) {
        let number = self.chain.len() as u64;
        let parent = self.chain.last().map_or(BlockHash([0; 32]), |block| block.hash);
        let hash = transaction_hash(&[&parent.0[..], &number.to_be_bytes(), &self.forks.to_be_bytes()].concat());
        let hash = BlockHash(hash.0);
        let mut nonces = self.chain.last().map(|block| block.nonces.clone()).unwrap_or_default();
        for (hash, _) in &transactions {
            let transaction = &self.known[hash];
            nonces.insert(transaction.sender, Nonce(transaction.nonce.0 + 1));
        }
        self.pool.retain(|(sender, nonce), _| *nonce >= nonces.get(sender).copied().unwrap_or_default());
        let (timestamp, base_fee) = (BEGIN + now_ms / 1000, self.base_fee);
        let block = Block { number, hash, parent, timestamp, base_fee, transactions, nonces };
        Arc::make_mut(&mut self.chain).push(Arc::new(block));
        self.final_height = self.final_height.max(number.saturating_sub(self.depth));
    }

    /// Takes the newest blocks away. Those of their transactions that `is_kept` names go back to the pool, the others are
    /// returned; the new blocks are for the caller to mine.
    pub(super) fn unwind(&mut self, blocks: u64, mut is_kept: impl FnMut() -> bool) -> Vec<TxHash> {
        self.forks += 1;
        let mut gone = Vec::new();
        for _ in 0..blocks.min(self.chain.len() as u64 - 1) {
            let block = Arc::make_mut(&mut self.chain).pop().expect("there are more than these");
            for (hash, _) in &block.transactions {
                let transaction = &self.known[hash];
                let place = (transaction.sender, transaction.nonce);
                if is_kept() && !self.pool.contains_key(&place) {
                    self.pool.insert(place, *hash);
                } else {
                    gone.push(*hash);
                }
            }
        }
        gone
    }

    /// What the contract has kept in this chain.
    pub(super) fn kept<'l>(&'l self, view: &'l View) -> impl Iterator<Item = Kept> {
        let included = view.iter().flat_map(|block| block.transactions.iter().map(move |included| (block, included)));
        let succeeded = included.filter(|(_, (_, succeeded))| *succeeded);
        succeeded.flat_map(|(block, (tx_hash, _))| {
            let Decoded { sender, records, .. } = &self.known[tx_hash];
            records.iter().map(move |(id, content)| Kept {
                id: *id,
                content: *content,
                writer: *sender,
                tx_hash: *tx_hash,
                block_number: BlockNumber(block.number),
                block_hash: block.hash,
            })
        })
    }

    /// What the contract reverts with, or would, for one of these records: its id is taken in this chain.
    pub(super) fn taken(&self, view: &View, records: &[(RecordId, ContentHash)]) -> Option<Kept> {
        if records.is_empty() {
            return None;
        }
        self.kept(view).find(|kept| records.iter().any(|(id, _)| kept.id == *id))
    }

    /// The effects that each request has in the chain, by its id.
    pub(super) fn effects(&self) -> BTreeMap<String, Vec<Effect>> {
        let mut effects: BTreeMap<String, Vec<Effect>> = BTreeMap::new();
        let succeeded = self.chain.iter().flat_map(|block| &block.transactions).filter(|(_, succeeded)| *succeeded);
        for (hash, _) in succeeded {
            let Decoded { sender, data, .. } = &self.known[hash];
            for body in Body::all(data) {
                let text = body.text();
                effects.entry(body.id).or_default().push(Effect { text, sender: *sender });
            }
        }
        effects
    }

    pub(super) fn gas_limit() -> Gas {
        Gas(BLOCK_GAS)
    }

    pub(super) fn height(&self) -> BlockNumber {
        BlockNumber(self.head().number)
    }
}
