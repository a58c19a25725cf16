//! chainwriter processes under guard, with a configuration of their own.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use super::guard::send_signal;
use super::{ACCOUNTS, Guard};

/// Returns the folder into which cargo has put this program, a tool, and the daemon.
pub fn build_folder() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    Ok(own.parent().ok_or("this program has no folder")?.to_owned())
}

/// Returns the daemon that was built along with this program, a tool.
pub fn chainwriter() -> Result<String, String> {
    let binary = build_folder()?.join("chainwriter");
    let missing = || format!("{} is missing: run this through `make`, or `cargo build` first", binary.display());
    if binary.is_file() { Ok(binary.display().to_string()) } else { Err(missing()) }
}

/// A worker's configuration, except for a test's own lines.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    pub broker_uri: String,
    pub queue: String,
    pub endpoint: String,
    /// One of Anvil's accounts.
    pub account: usize,
    pub to: String,
    /// Lines of TOML by section: `("retry", "max_attempts = 2")`. Each `"signer"` is a signer, in place of the account's key,
    /// each `"route"` a route, each `"policy.allow"` somebody who may be called, each `"bind"`
    /// an exchange.
    pub extra: Vec<(&'static str, String)>,
}

impl WorkerConfig {
    /// With a line more.
    pub fn with(mut self, section: &'static str, line: impl Into<String>) -> Self {
        self.extra.push((section, line.into()));
        self
    }

    fn toml(&self, folder: &Path) -> String {
        let Self { broker_uri, queue, endpoint, to, .. } = self;
        let has_endpoints = self.extra.iter().any(|(section, _)| *section == "chain.endpoint");
        let endpoints = if has_endpoints { String::new() } else { format!("endpoints = [{endpoint:?}]") };
        let mut sections = vec![
            ("worker", "organisation = \"acme\"".to_owned()),
            ("broker", format!("uri = {broker_uri:?}\nqueue = {queue:?}")),
            ("broker", "reconnect_initial = \"100ms\"\nreconnect_max = \"1s\"\ncall_timeout = \"10s\"".to_owned()),
            ("chain", format!("id = 31337\n{endpoints}\npoll_interval = \"50ms\"\ntimeout = \"5s\"")),
            ("write", format!("to = {to:?}")),
            ("journal", format!("url = \"sqlite:{}\"", folder.join("journal.db").display())),
            ("lease", "ttl = \"3s\"".to_owned()),
            ("log", "level = \"debug\"".to_owned()),
            // Workers of many tests run at once on one host.
            ("http", "listen = \"\"".to_owned()),
        ];
        let (mut tables, extra): (Vec<_>, Vec<_>) = self.extra.iter().cloned().partition(|(section, _)| {
            ["signer", "route", "policy.allow", "bind", "dead.replay", "chain.endpoint"].contains(section)
        });
        if tables.iter().all(|(section, _)| *section != "signer") {
            tables.push(("signer", format!("key_file = {:?}", folder.join("signer.key"))));
        }
        sections.extend(extra);
        let mut text = String::new();
        let mut names: Vec<_> = sections.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            // A later line for a key takes the place of an earlier one.
            let mut lines: Vec<(String, String)> = Vec::new();
            for line in sections.iter().filter(|(section, _)| *section == name).flat_map(|(_, lines)| lines.lines()) {
                let key = line.split('=').next().unwrap_or_default().trim().to_owned();
                lines.retain(|(known, _)| *known != key);
                lines.push((key, line.to_owned()));
            }
            let lines: Vec<_> = lines.into_iter().map(|(_, line)| line).collect();
            text.push_str(&format!("[{name}]\n{}\n", lines.join("\n")));
        }
        for (name, lines) in tables {
            text.push_str(&format!("[[{name}]]\n{lines}\n"));
        }
        text
    }
}

/// The folder of one or more worker processes: configuration, key, journal, logs.
pub struct WorkerHome {
    guard: Guard,
    runs: std::cell::Cell<u32>,
}

impl WorkerHome {
    pub fn new(config: &WorkerConfig) -> Self {
        let guard = Guard::new("worker");
        let home = Self { guard, runs: std::cell::Cell::new(0) };
        home.configure(config);
        home
    }

    /// Writes the configuration anew.
    pub fn configure(&self, config: &WorkerConfig) {
        use std::os::unix::fs::PermissionsExt;
        let key = self.folder().join("signer.key");
        std::fs::write(&key, ACCOUNTS[config.account].1).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(self.config_file(), config.toml(self.folder())).unwrap();
    }

    pub fn folder(&self) -> &Path {
        self.guard.folder()
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder().join("worker.toml")
    }

    pub fn journal_file(&self) -> PathBuf {
        self.folder().join("journal.db")
    }

    /// Starts a worker.
    pub fn start(&self, binary: &str) -> Worker {
        self.start_with(binary, &[])
    }

    /// Starts a worker with these variables in its environment.
    pub fn start_with(&self, binary: &str, environment: &[(&str, &str)]) -> Worker {
        let run = self.runs.get();
        self.runs.set(run + 1);
        let log = self.folder().join(format!("worker-{run}.log"));
        let child = self
            .guard
            .command(binary)
            .args(["run", "--config"])
            .arg(self.config_file())
            .env_remove("RUST_MIN_STACK")
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .expect("the worker's binary is there");
        Worker { child, log }
    }

    /// Runs another command with the same configuration; gives its exit code and what it printed.
    pub async fn command(&self, binary: &str, arguments: &[&str]) -> (i32, String) {
        self.command_with_input(binary, arguments, b"").await
    }

    /// Begins another command with the same configuration, to do with the process as one likes.
    pub fn begin(&self, binary: &str, arguments: &[&str]) -> Child {
        let mut command = self.guard.command(binary);
        command.args(arguments).arg("--config").arg(self.config_file());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.spawn().expect("the binary is there")
    }

    /// Runs the command with something on its standard input.
    pub async fn command_with_input(&self, binary: &str, arguments: &[&str], input: &[u8]) -> (i32, String) {
        let mut child = self.begin(binary, arguments);
        let mut stdin = child.stdin.take().expect("its input is piped");
        // One that does not want all of it has ended; its output says why.
        let _ = stdin.write_all(input).await;
        drop(stdin);
        let output = child.wait_with_output().await.expect("its output can be read");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }
}

/// A running worker. Dropped, it is killed; its log is shown when the test fails.
pub struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    pub fn signal(&self, name: &str) {
        send_signal(self.pid(), name);
    }

    /// `kill -9`
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Asks it to stop and waits for it.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.exit().await
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> ExitStatus {
        tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await.expect("the worker ends").unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("--- the worker's log, its end ---");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}
