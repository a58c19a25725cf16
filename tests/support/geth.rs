//! A private Geth in developer mode: a chain for one test, with Anvil's accounts funded.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Child;

use super::anvil::ACCOUNTS;
use super::guard::{Guard, find_program, send_signal};
use super::ports::free_port;
use super::rpc::{RpcClient, hex};

const READY_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// What each account gets: ten thousand ether.
const FUNDS: u128 = 10_000_000_000_000_000_000_000;

/// The chain id of developer mode.
pub const CHAIN_ID: u64 = 1337;

#[derive(Clone, Debug, Default)]
pub struct GethConfig {
    /// Whole seconds between blocks; zero: a block for each transaction, at once.
    pub period: u64,
    pub extra_args: Vec<String>,
}

/// Gone, with its processes and files, when dropped. Its calls are those of [`RpcClient`].
pub struct Geth {
    rpc: RpcClient,
    config: GethConfig,
    child: Option<Child>,
    guard: Guard,
}

impl Deref for Geth {
    type Target = RpcClient;

    fn deref(&self) -> &RpcClient {
        &self.rpc
    }
}

impl Geth {
    /// Starts a node, and waits until it answers and the accounts are funded; panics, with what it printed, when that fails.
    pub async fn start(config: GethConfig) -> Geth {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let mut geth = Geth { rpc: RpcClient::new(address), config, child: None, guard: Guard::new("geth") };
        geth.start_again().await;
        geth.fund().await;
        geth
    }

    /// The client for this node, to be kept apart from it.
    pub fn rpc(&self) -> RpcClient {
        self.rpc
    }

    /// Starts a stopped or killed node on its old port with its old data, and with an empty pool.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "this Geth runs already");
        let program = program().expect("Geth is here; run scripts/setup.sh geth");
        let log = std::fs::File::create(self.log_file()).expect("the private folder takes files");
        let mut command = self.guard.command(program);
        command.args(["--dev", "--dev.period", &self.config.period.to_string(), "--nodiscover", "--maxpeers", "0"]);
        command.args(["--port", "0", "--authrpc.port", "0", "--ipcdisable"]);
        command.args(["--http", "--http.addr", "127.0.0.1", "--http.port", &self.rpc.address().port().to_string()]);
        command.args(["--http.api", "eth,net,web3,txpool,debug"]);
        command.arg("--datadir").arg(self.guard.folder().join("data")).args(&self.config.extra_args);
        command.env("HOME", self.guard.folder());
        command.stdout(Stdio::from(log.try_clone().expect("a file handle can be cloned"))).stderr(Stdio::from(log));
        self.child = Some(command.spawn().expect("Geth can be started"));
        self.wait_until_ready().await;
    }

    /// Ends the node in good order; the chain is kept.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if let Some(pid) = child.id() {
            send_signal(pid, "CONT");
            send_signal(pid, "TERM");
        }
        let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
        assert!(ended.is_ok(), "Geth did not stop within {STOP_LIMIT:?}; it printed:\n{}", self.log());
    }

    /// Ends the node at once (SIGKILL).
    pub async fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        child.kill().await.expect("a child can be killed");
    }

    /// Processes of this node that live now.
    pub fn pids(&self) -> Vec<u32> {
        self.guard.pids()
    }

    /// Returns the node's output since its last start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Sets the chain back to this block, as an operator would.
    pub async fn set_head(&self, block: u64) {
        self.rpc.call("debug_setHead", json!([hex(block)])).await.expect("Geth can be set back");
    }

    /// Gives each of the accounts money from the developer's account, which the node itself signs for.
    async fn fund(&self) {
        let developer = self.rpc.call("eth_accounts", json!([])).await.expect("it lists its accounts");
        let developer = developer[0].as_str().expect("developer mode has an account").to_owned();
        let value = format!("{FUNDS:#x}");
        for (address, _) in ACCOUNTS {
            // Above what any test asks for at least.
            let transfer = json!([{ "from": developer, "to": address, "value": value, "gasPrice": "0x7d2b7500" }]);
            self.rpc.call("eth_sendTransaction", transfer).await.expect("the developer's account can pay");
        }
        let began = std::time::Instant::now();
        for (address, _) in ACCOUNTS {
            while self.rpc.balance(address).await.is_ok_and(|balance| balance == 0) {
                assert!(began.elapsed() < READY_LIMIT, "no funds arrived; Geth printed:\n{}", self.log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn wait_until_ready(&mut self) {
        let started = std::time::Instant::now();
        while self.rpc.call("eth_chainId", json!([])).await != Ok(Value::from(hex(CHAIN_ID))) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || started.elapsed() > READY_LIMIT {
                panic!("Geth did not come up (exit status {ended:?}); it printed:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log_file(&self) -> PathBuf {
        self.guard.folder().join("geth.log")
    }
}

/// The Geth to run: `$GETH`, else `.tools/bin/geth` in this folder or one above it, else the one on PATH.
pub fn program() -> Option<PathBuf> {
    find_program("GETH", "geth")
}

/// Returns whether Geth is here; if not, says so. It takes minutes to build, so that tests do without it.
pub fn is_here() -> bool {
    let is_here = program().is_some();
    if !is_here {
        eprintln!("skipped: Geth is missing; run scripts/setup.sh geth");
    }
    is_here
}
