//! Chains: Anvil behind the JSON-RPC client, and the simulated nodes.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use secrecy::SecretString;

use crate::chain::{
    BlockTag, Call, Chain, ChainError, ClientSettings, Confirmation, CountAt, Header, NodeClient, Receipt,
};
use crate::model::{Address, BlockNumber, Fee, Gas, Nonce, RawTransaction, TxHash, UnsignedTransaction, Wei};
use crate::policy::classify::{ErrorTable, SendMeaning, SimulationMeaning};
use crate::policy::finality::FinalityRule;
use crate::signer::{LocalSigner, Signer};
use crate::simulation::ledger::CHAIN_ID;
use crate::simulation::nodes::SimNodes;
use crate::simulation::pools::PoolRules;
use crate::simulation::signer::SimSigner;
use crate::simulation::workload::{Behaviour, Body};
use crate::simulation::world::{Shared, World};
use crate::support::{ACCOUNTS, Anvil, AnvilConfig, contracts};

const CONTRACT: Address = Address([0xc0; 20]);
/// What a transaction pays for one unit of gas where nothing is said: enough for both chains.
const PRICE: u128 = 10_000_000_000;

/// A chain whose blocks a test makes.
#[async_trait]
trait Stage: Send + Sync {
    fn chain(&self) -> &dyn Chain;
    fn signer(&self) -> &dyn Signer;
    /// Calldata that the contract takes, or reverts at.
    fn calldata(&self, runs: bool) -> Bytes;
    async fn mine(&self);
    /// The newest blocks go away; as many new ones, without transactions, come in their place.
    async fn reorganise(&self, blocks: u64);
    async fn drain(&self);
}

struct Simulated {
    world: Shared,
    nodes: SimNodes,
    signer: SimSigner,
}

async fn simulated() -> Simulated {
    let world = Shared::new(World::new(fastrand::Rng::with_seed(1), tokio::time::Instant::now()));
    let nodes = SimNodes { world: world.clone() };
    let signer = SimSigner { world: world.clone(), address: Address([1; 20]) };
    // The journal knows all that the contract's tests send: invariant 1 is not their business.
    world.lock().checker.trusts_everybody = true;
    // A pool like Anvil's.
    world.lock().ledger.pool_rules = Some(PoolRules::default());
    Simulated { world, nodes, signer }
}

#[async_trait]
impl Stage for Simulated {
    fn chain(&self) -> &dyn Chain {
        &self.nodes
    }

    fn signer(&self) -> &dyn Signer {
        &self.signer
    }

    fn calldata(&self, runs: bool) -> Bytes {
        let behaviour = if runs { Behaviour::Runs } else { Behaviour::Reverts };
        Body { id: "a".to_owned(), behaviour, version: 0 }.text().into_bytes().into()
    }

    async fn mine(&self) {
        self.world.lock().ledger.mine(0, usize::MAX);
    }

    async fn reorganise(&self, blocks: u64) {
        let mut world = self.world.lock();
        world.ledger.unwind(blocks, || false);
        for _ in 0..blocks {
            world.ledger.mine(0, 0);
        }
    }

    async fn drain(&self) {
        let address = self.signer.address();
        self.world.lock().ledger.broke.insert(address);
    }
}

struct Real {
    anvil: Anvil,
    client: NodeClient,
    signer: LocalSigner,
}

async fn real() -> Real {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let anvil = Anvil::start(AnvilConfig { chain_id: CHAIN_ID, ..AnvilConfig::default() }).await;
    anvil.set_auto_mine(false).await.unwrap();
    anvil.set_code(&CONTRACT.to_string(), contracts::REVERTS_ON_FF).await.unwrap();
    let client = NodeClient::new(&ClientSettings {
        chain_id: CHAIN_ID,
        endpoints: vec![anvil.url().parse::<url::Url>().unwrap().into()],
        timeout: Duration::from_secs(30),
        batch_size: 10,
        max_lag: 10,
        heads: Vec::new(),
        confirmation: Confirmation { endpoints: Vec::new(), finality: FinalityRule::Depth(0) },
        tip_percentile: 50,
        errors: std::sync::Arc::default(),
        tracer: crate::observe::traces::Tracer::default(),
    });
    let signer = LocalSigner::from_hex(&SecretString::from(ACCOUNTS[0].1)).unwrap();
    Real { anvil, client: client.unwrap(), signer }
}

#[async_trait]
impl Stage for Real {
    fn chain(&self) -> &dyn Chain {
        &self.client
    }

    fn signer(&self) -> &dyn Signer {
        &self.signer
    }

    fn calldata(&self, runs: bool) -> Bytes {
        Bytes::from_static(if runs { b"\x01" } else { b"\xff" })
    }

    async fn mine(&self) {
        self.anvil.mine(1).await.unwrap();
    }

    async fn reorganise(&self, blocks: u64) {
        self.anvil.reorg(blocks).await.unwrap();
        self.anvil.drop_all().await.unwrap();
    }

    async fn drain(&self) {
        self.anvil.set_balance(ACCOUNTS[0].0, 0).await.unwrap();
    }
}

async fn signed(stage: &impl Stage, nonce: u64, price: u128) -> RawTransaction {
    let unsigned = UnsignedTransaction {
        chain_id: CHAIN_ID,
        nonce: Nonce(nonce),
        to: Some(CONTRACT),
        value: Wei(0),
        gas: Gas(100_000),
        data: stage.calldata(true),
        fee: Fee::Eip1559 { max_fee: Wei(price), tip: Wei(price / 2) },
    };
    stage.signer().sign(vec![unsigned.into()]).await.unwrap().remove(0)
}

async fn send(stage: &impl Stage, signed: &RawTransaction) -> SendMeaning {
    match stage.chain().broadcast(&[signed.clone().into()]).await.remove(0) {
        Ok(()) => SendMeaning::AlreadyKnown,
        Err(ChainError::Node { message, .. }) => ErrorTable::default().meaning_of(&message),
        Err(error) => panic!("{error}"),
    }
}

async fn head(stage: &impl Stage) -> Header {
    stage.chain().header(BlockTag::Latest).await.unwrap().unwrap()
}

async fn read(stage: &impl Stage, hashes: &[TxHash]) -> Vec<Option<Receipt>> {
    stage.chain().receipts(hashes).await.into_iter().collect::<Result<_, _>>().unwrap()
}

async fn a_transaction_is_found_by_its_hash_wherever_it_is(stage: &mut impl Stage) {
    let first = signed(stage, 0, PRICE).await;
    assert_eq!(read(stage, &[first.hash]).await, [None]);
    assert_eq!(send(stage, &first).await, SendMeaning::AlreadyKnown);
    assert_eq!(send(stage, &first).await, SendMeaning::AlreadyKnown, "the pool has it");
    assert_eq!(read(stage, &[first.hash]).await, [None], "no block has it");
    stage.mine().await;
    let block = head(stage).await;
    assert_eq!(block.transactions, Some(vec![first.hash]));
    let receipts = read(stage, &[first.hash, TxHash([9; 32])]).await;
    let receipt = receipts[0].clone().unwrap();
    assert!(receipt.succeeded && receipts[1].is_none());
    assert_eq!((receipt.transaction.block_number, receipt.transaction.block_hash), (block.number, block.hash));
    assert_eq!(stage.chain().receipts_in(block.hash, &[first.hash]).await.unwrap(), [receipt]);
    let sent = stage.chain().sent_in(stage.signer().address(), block.number).await.unwrap().unwrap();
    let own: Vec<_> = sent.sent.iter().map(|sent| (sent.nonce, sent.tx_hash, sent.is_signed)).collect();
    assert_eq!((sent.hash, own), (block.hash, vec![(Nonce(0), first.hash, true)]));
    let late = send(stage, &first).await;
    assert!(matches!(late, SendMeaning::AlreadyKnown | SendMeaning::NonceTooLow), "{late:?}");
}

async fn counts_are_those_of_the_asked_block(stage: &mut impl Stage) {
    let (account, before) = (stage.signer().address(), head(stage).await.number);
    let first = signed(stage, 0, PRICE).await;
    send(stage, &first).await;
    let count = async |tag| stage.chain().transaction_count(account, tag).await;
    assert_eq!(count(BlockTag::Latest).await.unwrap(), Nonce(0), "what is pending does not count");
    stage.mine().await;
    assert_eq!(count(BlockTag::Latest).await.unwrap(), Nonce(1));
    assert_eq!(count(BlockTag::Number(before)).await.unwrap(), Nonce(0));
    assert!(count(BlockTag::Number(BlockNumber(before.0 + 100))).await.is_err(), "there is no such block");
}

async fn a_pool_shows_what_it_has_in_order_and_by_hash(stage: &mut impl Stage) {
    let account = stage.signer().address();
    let mut sent = Vec::new();
    for nonce in 0..4 {
        sent.push(signed(stage, nonce, PRICE).await);
    }
    let [first, second, third, fourth] = sent.as_slice() else { panic!("there are four") };
    let pending = async || stage.chain().counts(account, CountAt::Pools).await.remove(0).1.unwrap();
    let has = async |signed: &RawTransaction| stage.chain().has_transaction(signed.hash).await.unwrap();
    for early in [first, second, fourth] {
        send(stage, early).await;
    }
    assert_eq!((pending().await, has(first).await, has(third).await), (Nonce(2), true, false));
    assert!(has(fourth).await, "it waits for the one before");
    let pools_have = async |signed: &RawTransaction| stage.chain().all_pools_have(signed.hash).await;
    assert!(pools_have(first).await && pools_have(fourth).await && !pools_have(third).await);
    send(stage, third).await;
    assert_eq!((pending().await, has(third).await), (Nonce(4), true));
    stage.mine().await;
    assert_eq!((pending().await, has(third).await), (Nonce(4), true), "in a block");
    assert!(!stage.chain().all_pools_have(third.hash).await, "in no pool any more");
}

async fn blocks_stand_on_each_other_and_end_at_the_newest(stage: &mut impl Stage) {
    let below = head(stage).await;
    stage.mine().await;
    let block = head(stage).await;
    assert_eq!((block.number.0, block.parent), (below.number.0 + 1, below.hash));
    let again = stage.chain().header(BlockTag::Number(block.number)).await.unwrap();
    assert_eq!(again, Some(block.clone()));
    assert_eq!(stage.chain().header(BlockTag::Number(BlockNumber(block.number.0 + 1))).await.unwrap(), None);
    assert_eq!(stage.chain().sent_in(Address([1; 20]), BlockNumber(block.number.0 + 1)).await.unwrap(), None);
}

async fn a_reorganisation_takes_blocks_and_receipts_away(stage: &mut impl Stage) {
    let first = signed(stage, 0, PRICE).await;
    send(stage, &first).await;
    stage.mine().await;
    let gone = head(stage).await;
    stage.reorganise(1).await;
    let stands = stage.chain().header(BlockTag::Number(gone.number)).await.unwrap().unwrap();
    assert_ne!(stands.hash, gone.hash);
    assert_eq!(read(stage, &[first.hash]).await, [None]);
    assert_eq!(stage.chain().receipts_in(gone.hash, &[first.hash]).await.unwrap(), []);
    let count = stage.chain().transaction_count(stage.signer().address(), BlockTag::Latest).await.unwrap();
    assert_eq!(count, Nonce(0));
}

async fn a_nonce_in_the_pool_goes_to_who_pays_an_eighth_more(stage: &mut impl Stage) {
    assert_eq!(send(stage, &signed(stage, 0, PRICE).await).await, SendMeaning::AlreadyKnown);
    let less = signed(stage, 0, PRICE * 9 / 10).await;
    assert_eq!(send(stage, &less).await, SendMeaning::ReplacementUnderpriced);
    let more = signed(stage, 0, PRICE * 9 / 8 + 1).await;
    assert_eq!(send(stage, &more).await, SendMeaning::AlreadyKnown);
    stage.mine().await;
    assert!(read(stage, &[more.hash]).await[0].is_some());
}

async fn used_nonces_and_empty_accounts_are_told_as_such(stage: &mut impl Stage) {
    send(stage, &signed(stage, 0, PRICE).await).await;
    stage.mine().await;
    assert_eq!(send(stage, &signed(stage, 0, PRICE * 2).await).await, SendMeaning::NonceTooLow);
    assert!(stage.chain().balance(stage.signer().address()).await.unwrap() > Wei(0));
    stage.drain().await;
    assert_eq!(send(stage, &signed(stage, 1, PRICE).await).await, SendMeaning::InsufficientFunds);
    assert_eq!(stage.chain().balance(stage.signer().address()).await.unwrap(), Wei(0));
}

async fn an_estimate_tells_what_runs_from_what_reverts(stage: &mut impl Stage) {
    let call = |runs| Call { from: stage.signer().address(), to: CONTRACT, value: Wei(0), data: stage.calldata(runs) };
    let estimates = stage.chain().estimate(&[call(true).into(), call(false).into()]).await;
    assert!(estimates[0].as_ref().unwrap().0 > 21_000);
    let Err(ChainError::Node { message, .. }) = &estimates[1] else { panic!("{:?}", estimates[1]) };
    assert_eq!(ErrorTable::default().meaning_of_simulation(message), SimulationMeaning::Failed, "{message}");
    let block = head(stage).await;
    assert!(stage.chain().call(&call(false), block.number).await.is_err());
    let market = stage.chain().market(&block).await.unwrap();
    assert!(market.base_fee.is_some());
}

super::both!(
    simulated(),
    real(),
    a_transaction_is_found_by_its_hash_wherever_it_is,
    counts_are_those_of_the_asked_block,
    a_pool_shows_what_it_has_in_order_and_by_hash,
    blocks_stand_on_each_other_and_end_at_the_newest,
    a_reorganisation_takes_blocks_and_receipts_away,
    a_nonce_in_the_pool_goes_to_who_pays_an_eighth_more,
    used_nonces_and_empty_accounts_are_told_as_such,
    an_estimate_tells_what_runs_from_what_reverts
);
