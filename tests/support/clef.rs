//! A private Clef: a signer that has one account's key and approves what its rules approve, without a person.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use super::guard::{Guard, find_program};
use super::ports::free_port;
use super::rpc::RpcClient;

const READY_LIMIT: Duration = Duration::from_secs(60);
/// Of the master seed and of the account: both are this test's own.
const PASSWORD: &str = "ten letters at least";
/// Approves every transaction and every list of accounts.
const RULES: &str = "function OnSignerStartup(info) {}
function OnApprovedTx(response) {}
function ApproveListing() { return \"Approve\"; }
function ApproveTx(request) { return \"Approve\"; }
";

/// Gone, with its process and files, when dropped.
pub struct Clef {
    rpc: RpcClient,
    /// Clef ends with its standard input.
    _child: Child,
    _guard: Guard,
}

impl Clef {
    /// Starts a signer for this account and chain; panics, with what Clef printed, when it does not come up.
    pub async fn start(chain_id: u64, (address, key): (&str, &str)) -> Self {
        let guard = Guard::new("clef");
        let folder = guard.folder().to_owned();
        let (rules, keys) = (folder.join("rules.js"), folder.join("keys"));
        let key_file = folder.join("raw.key");
        std::fs::write(&rules, RULES).expect("the private folder takes files");
        std::fs::write(&key_file, key.trim_start_matches("0x")).expect("the private folder takes files");
        let sum = guard.command("sha256sum").arg(&rules).output().await.expect("coreutils are here");
        let hash = String::from_utf8_lossy(&sum.stdout).split(' ').next().unwrap_or_default().to_owned();
        let key_name = key_file.display().to_string();
        // Each asks for passwords in turn: a new one twice, then the master seed's.
        for arguments in [vec!["init"], vec!["importraw", &key_name], vec!["setpw", address], vec!["attest", &hash]] {
            let mut command = command(&guard);
            command.args(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("Clef can be started");
            answer(&mut child).await;
            drop(child.stdin.take());
            let output = child.wait_with_output().await.expect("its output can be read");
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "clef {arguments:?}: {text}");
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let log = folder.join("clef.log");
        let mut command = command(&guard);
        command.args(["--chainid", &chain_id.to_string(), "--ipcdisable", "--rules"]).arg(rules);
        command.args(["--http", "--http.addr", "127.0.0.1", "--http.port", &address.port().to_string()]);
        let output = std::fs::File::create(&log).expect("the private folder takes files");
        command.stdin(Stdio::piped()).stdout(output.try_clone().expect("a handle can be cloned")).stderr(output);
        let mut child = command.spawn().expect("Clef can be started");
        answer(&mut child).await;
        let rpc = RpcClient::new(address);
        let started = std::time::Instant::now();
        while rpc.call("account_version", json!([])).await.is_err() {
            let ended = child.try_wait().ok().flatten();
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none() && started.elapsed() < READY_LIMIT, "Clef did not come up ({ended:?}): {text}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(keys.is_dir(), "the account is there");
        Self { rpc, _child: child, _guard: guard }
    }

    pub fn url(&self) -> String {
        self.rpc.url()
    }
}

fn command(guard: &Guard) -> Command {
    let mut command = guard.command(program().expect("Clef is here; run scripts/setup.sh clef"));
    let folder = guard.folder();
    command
        .args(["--suppress-bootwarn", "--advanced", "--lightkdf", "--nousb", "--configdir"])
        .arg(folder.join("config"));
    command.arg("--keystore").arg(folder.join("keys")).arg("--auditlog").arg(folder.join("audit.log"));
    command.env("HOME", folder);
    command
}

/// Says the password so often as any of its commands asks for it.
async fn answer(child: &mut Child) {
    let stdin = child.stdin.as_mut().expect("its input is piped");
    // One that asks less often has ended.
    let _ = stdin.write_all(format!("{PASSWORD}\n").repeat(3).as_bytes()).await;
}

/// The Clef to run: `$CLEF`, else the one in `.tools/bin`, else the one on PATH.
pub fn program() -> Option<PathBuf> {
    find_program("CLEF", "clef")
}
