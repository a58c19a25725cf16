//! A private Anvil: a chain for one test, with its ten funded accounts.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::process::Child;

use super::guard::{Guard, find_program, send_signal};
use super::ports::free_port;
use super::rpc::RpcClient;

/// Addresses and private keys of the accounts that Anvil funds, known to everyone: of the mnemonic "test test test
/// test test test test test test test test junk".
pub const ACCOUNTS: [(&str, &str); 10] = [
    (
        "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    ),
    (
        "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
        "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    ),
    (
        "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
        "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    ),
    (
        "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
        "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    ),
    (
        "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65",
        "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
    ),
    (
        "0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc",
        "0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba",
    ),
    (
        "0x976EA74026E726554dB657fA54763abd0C3a0aa9",
        "0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e",
    ),
    (
        "0x14dC79964da2C08b23698B3D3cc7Ca32193d9955",
        "0x4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356",
    ),
    (
        "0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f",
        "0xdbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97",
    ),
    (
        "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720",
        "0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6",
    ),
];

const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct AnvilConfig {
    /// None: a block for each transaction, at once.
    pub block_time: Option<Duration>,
    pub chain_id: u64,
    /// Gas limit of a block.
    pub gas_limit: u64,
    /// Base fee of the first block, in wei; None: Anvil's own, one gwei.
    pub base_fee: Option<u64>,
    /// Where the chain is kept between `stop` and `start_again`; None: in the node's private folder.
    pub state_file: Option<PathBuf>,
    pub extra_args: Vec<String>,
}

impl Default for AnvilConfig {
    fn default() -> AnvilConfig {
        AnvilConfig {
            block_time: None,
            chain_id: 31_337,
            gas_limit: 30_000_000,
            base_fee: None,
            state_file: None,
            extra_args: Vec::new(),
        }
    }
}

/// Gone, with its processes and files, when dropped. Its calls are those of [`RpcClient`].
pub struct Anvil {
    rpc: RpcClient,
    config: AnvilConfig,
    child: Option<Child>,
    guard: Guard,
}

impl Deref for Anvil {
    type Target = RpcClient;

    fn deref(&self) -> &RpcClient {
        &self.rpc
    }
}

impl Anvil {
    /// Starts a node and waits until it answers; panics, with what it printed, when it does not.
    pub async fn start(config: AnvilConfig) -> Anvil {
        Self::start_at(config, SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))).await
    }

    /// Starts at a given address.
    pub async fn start_at(config: AnvilConfig, address: SocketAddr) -> Anvil {
        let mut anvil = Anvil { rpc: RpcClient::new(address), config, child: None, guard: Guard::new("anvil") };
        anvil.start_again().await;
        anvil
    }

    /// The client for this node, to be kept apart from it.
    pub fn rpc(&self) -> RpcClient {
        self.rpc
    }

    /// Starts a stopped or killed node on its old port, with an empty pool and the chain as the last [`Self::stop`]
    /// kept it (after a kill alone: as it was when it last started).
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "this Anvil runs already");
        let program = program().expect("Anvil is here; run scripts/setup.sh");
        let log = std::fs::File::create(self.log_file()).expect("the private folder takes files");
        let mut command = self.guard.command(program);
        command.args(["--host", "127.0.0.1", "--port", &self.rpc.address().port().to_string()]);
        command.args(["--chain-id", &self.config.chain_id.to_string()]);
        command.args(["--gas-limit", &self.config.gas_limit.to_string()]);
        // Telemetry, update checks and key stores would go to the home folder.
        command.env("HOME", self.guard.folder());
        if let Some(block_time) = self.config.block_time {
            command.args(["--block-time", &block_time.as_secs_f64().to_string()]);
        }
        if let Some(base_fee) = self.config.base_fee {
            command.args(["--block-base-fee-per-gas", &base_fee.to_string()]);
        }
        command.arg("--state").arg(self.state_file()).args(&self.config.extra_args);
        command.stdout(Stdio::from(log.try_clone().expect("a file handle can be cloned"))).stderr(Stdio::from(log));
        self.child = Some(command.spawn().expect("Anvil can be started"));
        self.wait_until_ready().await;
    }

    /// Ends the node in good order; the chain is kept, the pool is not.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if let Some(pid) = child.id() {
            send_signal(pid, "CONT");
            send_signal(pid, "TERM");
        }
        let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
        assert!(ended.is_ok(), "Anvil did not stop within {STOP_LIMIT:?}; it printed:\n{}", self.log());
    }

    /// Ends the node at once (SIGKILL): what happened since it started is lost.
    pub async fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        child.kill().await.expect("a child can be killed");
    }

    /// Freezes the node (SIGSTOP): connections are accepted and nothing is answered, until [`Self::resume`].
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Processes of this node that live now.
    pub fn pids(&self) -> Vec<u32> {
        self.guard.pids()
    }

    /// Returns the node's output since its last start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().and_then(Child::id).expect("this Anvil runs");
        send_signal(pid, name);
    }

    async fn wait_until_ready(&mut self) {
        let started = std::time::Instant::now();
        while self.rpc.call("eth_chainId", json!([])).await.is_err() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || started.elapsed() > READY_LIMIT {
                panic!("Anvil did not come up (exit status {ended:?}); it printed:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn log_file(&self) -> PathBuf {
        self.guard.folder().join("anvil.log")
    }

    fn state_file(&self) -> PathBuf {
        self.config.state_file.clone().unwrap_or_else(|| self.guard.folder().join("state.json"))
    }
}

/// The Anvil to run: `$ANVIL`, else `.tools/bin/anvil` in this folder or one above it, else the one on PATH.
pub fn program() -> Option<PathBuf> {
    find_program("ANVIL", "anvil")
}
