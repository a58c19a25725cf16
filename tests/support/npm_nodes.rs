//! Private nodes that npm brings: Hardhat and Ganache, with the accounts that Anvil has too.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::process::{Child, Command};

use super::guard::{Guard, find_program};
use super::ports::free_port;
use super::rpc::RpcClient;

/// Node.js takes some seconds to load either of them on a busy machine.
const READY_LIMIT: Duration = Duration::from_secs(90);
const MNEMONIC: &str = "test test test test test test test test test test test junk";

/// The chain id of both.
pub const CHAIN_ID: u64 = 31_337;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NpmKind {
    Hardhat,
    Ganache,
}

#[derive(Clone, Debug)]
pub struct NpmConfig {
    pub kind: NpmKind,
    /// Whole seconds between blocks; zero: a block for each transaction, at once.
    pub period: u64,
    /// Gas limit of a block.
    pub gas_limit: u64,
    /// Further options of Ganache.
    pub extra_args: Vec<String>,
}

/// Gone, with its processes and files, when dropped. Its calls are those of [`RpcClient`].
pub struct NpmNode {
    rpc: RpcClient,
    config: NpmConfig,
    child: Option<Child>,
    guard: Guard,
}

impl Deref for NpmNode {
    type Target = RpcClient;

    fn deref(&self) -> &RpcClient {
        &self.rpc
    }
}

impl NpmNode {
    /// Starts a node and waits until it answers; panics, with what it printed, when it does not.
    pub async fn start(config: NpmConfig) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let mut node = Self { rpc: RpcClient::new(address), config, child: None, guard: Guard::new("npm-node") };
        node.start_again().await;
        node
    }

    /// Starts a killed node on its old port, with an empty pool. Ganache has its chain still, Hardhat keeps none.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "this node runs already");
        let log = std::fs::File::create(self.log_file()).expect("the private folder takes files");
        let mut command = match self.config.kind {
            NpmKind::Hardhat => self.hardhat(),
            NpmKind::Ganache => self.ganache(),
        };
        command.env("HOME", self.guard.folder()).current_dir(self.guard.folder());
        command.stdout(Stdio::from(log.try_clone().expect("a file handle can be cloned"))).stderr(Stdio::from(log));
        self.child = Some(command.spawn().expect("the node can be started"));
        self.wait_until_ready().await;
    }

    /// Ends the node at once (SIGKILL).
    pub async fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        child.kill().await.expect("a child can be killed");
    }

    /// Returns the node's output since its last start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Hardhat runs in a project alone, whose own copy it has to be.
    fn hardhat(&self) -> Command {
        let program = program(self.config.kind).expect("Hardhat is here; run scripts/setup.sh hardhat");
        let folder = self.guard.folder();
        let real = program.canonicalize().expect("it is a link to a file");
        let modules = real.ancestors().find(|part| part.ends_with("node_modules")).expect("npm has installed it");
        if !folder.join("node_modules").exists() {
            std::os::unix::fs::symlink(modules, folder.join("node_modules")).expect("the private folder takes links");
        }
        let NpmConfig { period, gas_limit, .. } = self.config;
        let mining =
            if period == 0 { "auto: true".to_owned() } else { format!("auto: false, interval: {}", period * 1000) };
        let network = format!(
            "module.exports = {{ networks: {{ hardhat: {{ chainId: {CHAIN_ID}, blockGasLimit: {gas_limit}, mining: {{ {mining} }} }} }} }};\n"
        );
        let file = folder.join("hardhat.config.js");
        std::fs::write(&file, network).expect("the private folder takes files");
        let mut command = self.guard.command(program);
        command.args(["--config"]).arg(file).args(["node", "--hostname", "127.0.0.1", "--port"]);
        command.arg(self.rpc.address().port().to_string());
        command.env("CI", "true").env("HARDHAT_DISABLE_TELEMETRY_PROMPT", "true");
        command
    }

    fn ganache(&self) -> Command {
        let program = program(self.config.kind).expect("Ganache is here; run scripts/setup.sh ganache");
        let NpmConfig { period, gas_limit, .. } = self.config;
        let mut command = self.guard.command(program);
        command.args(["--server.host", "127.0.0.1", "--server.port", &self.rpc.address().port().to_string()]);
        command.args(["--wallet.mnemonic", MNEMONIC, "--wallet.defaultBalance", "10000"]);
        command.args(["--chain.chainId", &CHAIN_ID.to_string(), "--miner.blockTime", &period.to_string()]);
        command.args(["--miner.blockGasLimit", &gas_limit.to_string()]);
        command.arg("--database.dbPath").arg(self.guard.folder().join("data")).args(&self.config.extra_args);
        command
    }

    async fn wait_until_ready(&mut self) {
        let started = std::time::Instant::now();
        while self.rpc.call("eth_chainId", json!([])).await.is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || started.elapsed() > READY_LIMIT {
                panic!("the node did not come up (exit status {ended:?}); it printed:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log_file(&self) -> PathBuf {
        self.guard.folder().join("node.log")
    }
}

/// The program to run: `$HARDHAT` or `$GANACHE`, else the one in `.tools/bin`, else the one on PATH.
pub fn program(kind: NpmKind) -> Option<PathBuf> {
    match kind {
        NpmKind::Hardhat => find_program("HARDHAT", "hardhat"),
        NpmKind::Ganache => find_program("GANACHE", "ganache"),
    }
}
