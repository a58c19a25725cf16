//! A private node of each kind, with the same ways to make it do what a test needs.

use std::ops::Deref;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::rpc::hex;
use crate::support::{
    ACCOUNTS, Anvil, AnvilConfig, Geth, GethConfig, NpmConfig, NpmKind, NpmNode, RpcClient, anvil, geth, npm_nodes,
    wait_until,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Geth,
    Hardhat,
    Ganache,
    AnvilShanghai,
    AnvilPrague,
    AnvilOsaka,
}

/// The pace of a node's blocks, and its options.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whole seconds between blocks; zero: a block for each transaction, at once.
    pub period: u64,
    pub gas_limit: u64,
    pub options: Vec<String>,
}

impl Wanted {
    /// A block each time after this number of seconds.
    pub fn each(period: u64) -> Self {
        Self { period, gas_limit: 60_000_000, options: Vec::new() }
    }

    /// Blocks for transactions alone.
    pub fn on_demand() -> Self {
        Self::each(0)
    }

    pub fn option(mut self, words: &[&str]) -> Self {
        self.options.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Geth, Self::AnvilOsaka, Self::Hardhat, Self::Ganache, Self::AnvilPrague, Self::AnvilShanghai];

    pub fn name(&self) -> &'static str {
        match self {
            Self::Geth => "geth",
            Self::Hardhat => "hardhat",
            Self::Ganache => "ganache",
            Self::AnvilShanghai => "anvil-shanghai",
            Self::AnvilPrague => "anvil-prague",
            Self::AnvilOsaka => "anvil-osaka",
        }
    }

    /// The part of scripts/setup.sh that brings it.
    pub fn part(&self) -> &'static str {
        if self.is_anvil() { "anvil" } else { self.name() }
    }

    pub fn is_anvil(&self) -> bool {
        self.fork().is_some()
    }

    fn fork(&self) -> Option<&'static str> {
        match self {
            Self::AnvilShanghai => Some("shanghai"),
            Self::AnvilPrague => Some("prague"),
            Self::AnvilOsaka => Some("osaka"),
            Self::Geth | Self::Hardhat | Self::Ganache => None,
        }
    }

    pub fn is_here(&self) -> bool {
        match self {
            Self::Geth => geth::program().is_some(),
            Self::Hardhat => npm_nodes::program(NpmKind::Hardhat).is_some(),
            Self::Ganache => npm_nodes::program(NpmKind::Ganache).is_some(),
            Self::AnvilShanghai | Self::AnvilPrague | Self::AnvilOsaka => anvil::program().is_some(),
        }
    }

    pub fn chain_id(&self) -> u64 {
        if *self == Self::Geth { geth::CHAIN_ID } else { npm_nodes::CHAIN_ID }
    }

    /// Returns the program's name for itself, up to its version.
    pub async fn program(&self) -> String {
        let node = Node::start(*self, Wanted::on_demand()).await;
        let version = node.call("web3_clientVersion", json!([])).await.unwrap();
        let version: Vec<_> = version.as_str().unwrap().splitn(3, '/').take(2).map(str::to_owned).collect();
        version.join(" ").trim_end_matches("-stable").to_owned()
    }
}

enum Program {
    Geth(Geth),
    Npm(NpmNode),
    Anvil(Anvil),
}

/// Its calls are those of [`RpcClient`].
pub struct Node {
    pub kind: Kind,
    program: Program,
}

impl Deref for Node {
    type Target = RpcClient;

    fn deref(&self) -> &RpcClient {
        match &self.program {
            Program::Geth(node) => node,
            Program::Npm(node) => node,
            Program::Anvil(node) => node,
        }
    }
}

impl Node {
    pub async fn start(kind: Kind, Wanted { period, gas_limit, options }: Wanted) -> Self {
        let program = match kind {
            Kind::Geth => {
                let limit = gas_limit.to_string();
                let mut extra_args: Vec<_> =
                    ["--dev.gaslimit", &limit, "--miner.gaslimit", &limit].map(str::to_owned).to_vec();
                extra_args.extend(options);
                Program::Geth(Geth::start(GethConfig { period, extra_args }).await)
            }
            Kind::Hardhat | Kind::Ganache => {
                let kind = if kind == Kind::Hardhat { NpmKind::Hardhat } else { NpmKind::Ganache };
                Program::Npm(NpmNode::start(NpmConfig { kind, period, gas_limit, extra_args: options }).await)
            }
            Kind::AnvilShanghai | Kind::AnvilPrague | Kind::AnvilOsaka => {
                let mut extra_args = vec!["--hardfork".to_owned(), kind.fork().unwrap_or("osaka").to_owned()];
                extra_args.extend(options);
                let block_time = (period > 0).then(|| Duration::from_secs(period));
                Program::Anvil(
                    Anvil::start(AnvilConfig { block_time, gas_limit, extra_args, ..AnvilConfig::default() }).await,
                )
            }
        };
        Self { kind, program }
    }

    pub fn rpc(&self) -> RpcClient {
        **self
    }

    /// An account whose key the node has, and which no worker uses.
    pub async fn payer(&self) -> String {
        match self.kind {
            Kind::Geth => {
                self.call("eth_accounts", json!([])).await.unwrap()[0].as_str().expect("an account").to_owned()
            }
            Kind::Hardhat | Kind::Ganache | Kind::AnvilShanghai | Kind::AnvilPrague | Kind::AnvilOsaka => {
                ACCOUNTS[9].0.to_owned()
            }
        }
    }

    /// Sends a transaction of the payer's.
    pub async fn pay(&self, mut transaction: Value) -> String {
        transaction["from"] = json!(self.payer().await);
        let hash = self.call("eth_sendTransaction", json!([transaction])).await.unwrap();
        hash.as_str().expect("a hash").to_owned()
    }

    /// Sends the same transaction of the payer's this number of times, at once.
    pub async fn pay_often(&self, mut transaction: Value, times: usize) {
        transaction["from"] = json!(self.payer().await);
        let calls = (0..times).map(|_| ("eth_sendTransaction", json!([transaction]))).collect();
        for answer in self.batch(calls).await.unwrap() {
            answer.unwrap();
        }
    }

    /// Puts a contract with this runtime code into the chain; gives its address.
    pub async fn deploy(&self, runtime: &str) -> String {
        let runtime = runtime.trim_start_matches("0x");
        let length = runtime.len() / 2;
        // PUSH2 length, DUP1, PUSH1 12, PUSH1 0, CODECOPY, PUSH1 0, RETURN: the last twelve bytes are this.
        let code = format!("0x61{length:04x}80600c6000396000f3{runtime}");
        let hash = self.pay(json!({ "data": code, "gas": hex(3_000_000) })).await;
        let limit = Duration::from_secs(60);
        wait_until("the contract is there", limit, async || self.receipt(&hash).await.is_ok_and(|it| it.is_object()))
            .await;
        let receipt = self.receipt(&hash).await.unwrap();
        assert_eq!(receipt["status"], "0x1", "{receipt}");
        receipt["contractAddress"].as_str().expect("a contract's address").to_owned()
    }

    /// Makes a block, on a node that makes blocks for transactions alone.
    pub async fn make_block(&self) {
        let before = self.block_number().await.unwrap();
        self.pay(json!({ "to": ACCOUNTS[8].0, "value": "0x1", "gas": hex(100_000) })).await;
        let limit = Duration::from_secs(30);
        wait_until("there is a block", limit, async || self.block_number().await.is_ok_and(|at| at > before)).await;
    }

    /// Remembers the chain as it is, for [`Self::set_back`].
    pub async fn remember(&self) -> Value {
        match self.kind {
            Kind::Geth => json!(self.block_number().await.unwrap()),
            Kind::Hardhat | Kind::Ganache | Kind::AnvilShanghai | Kind::AnvilPrague | Kind::AnvilOsaka => {
                self.call("evm_snapshot", json!([])).await.unwrap()
            }
        }
    }

    pub async fn set_back(&self, remembered: &Value) {
        match &self.program {
            Program::Geth(geth) => geth.set_head(remembered.as_u64().expect("a block's number")).await,
            Program::Npm(_) | Program::Anvil(_) => {
                let done = self.call("evm_revert", json!([remembered])).await.unwrap();
                assert_eq!(done, json!(true));
            }
        }
    }

    /// Empties the pool: by a restart where the chain outlives one, else by taking each transaction out.
    pub async fn lose_pool(&mut self) {
        match &mut self.program {
            Program::Geth(geth) => {
                geth.stop().await;
                geth.start_again().await;
            }
            Program::Anvil(anvil) => {
                anvil.stop().await;
                anvil.start_again().await;
            }
            Program::Npm(node) if self.kind == Kind::Ganache => {
                node.kill().await;
                node.start_again().await;
            }
            Program::Npm(node) => {
                let pending = node.call("eth_pendingTransactions", json!([])).await.unwrap();
                for transaction in pending.as_array().into_iter().flatten() {
                    node.call("hardhat_dropTransaction", json!([transaction["hash"]])).await.unwrap();
                }
            }
        }
    }
}
