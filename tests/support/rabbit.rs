//! A private RabbitMQ node: own ports, own epmd, own data, gone with the test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::guard::{Guard, find_on_path, send_signal};
use super::ports::free_port;

const READY_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);
pub(super) const COOKIE: &str = "CHAINWRITERTESTCOOKIE";
pub(super) const MEMORY_LIMIT: &str = "1GB";

/// One scheduler: a second one speeds nothing up beside a test that keeps the other core busy. Quorum queues refresh
/// what they report each second instead of each fifth.
const VM_ARGUMENTS: &str = "+S 1:1 +sbwt none -rabbit quorum_tick_interval 1000";

#[derive(Clone, Debug, Default)]
pub struct RabbitConfig {
    /// More lines for rabbitmq.conf, such as `consumer_timeout = 60000`; they win over the node's own.
    pub extra_conf: Vec<String>,
    /// Plugins of the broker's own package, such as `rabbitmq_auth_mechanism_ssl`.
    pub plugins: Vec<&'static str>,
    /// Of a node that becomes part of a cluster.
    pub distribution: Option<Distribution>,
}

/// The way by which a node meets the others of its cluster.
#[derive(Clone, Copy, Debug)]
pub struct Distribution {
    pub port: u16,
    /// Where the node's port mapper listens already.
    pub epmd_port: u16,
    /// The kernel's `net_ticktime`.
    pub tick_seconds: u32,
}

/// Gone, with its processes and files, when dropped.
pub struct Rabbit {
    port: u16,
    distribution_port: u16,
    /// Set for the node and for every tool that talks to it.
    environment: Vec<(&'static str, String)>,
    child: Option<Child>,
    guard: Guard,
}

impl Rabbit {
    /// Starts a node and waits until it accepts AMQP connections; panics, with the end of its log, when it does not.
    pub async fn start(config: RabbitConfig) -> Rabbit {
        let guard = Guard::new("rabbit");
        let (port, tool_port) = (free_port(), free_port());
        let alone = || Distribution { port: free_port(), epmd_port: free_port(), tick_seconds: 60 };
        let distribution = config.distribution.unwrap_or_else(alone);
        let vm_arguments = format!("{VM_ARGUMENTS} -kernel net_ticktime {}", distribution.tick_seconds);
        let conf = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\nnum_acceptors.tcp = 2\n\
             vm_memory_high_watermark.absolute = {MEMORY_LIMIT}\ndisk_free_limit.absolute = 50MB\n\
             raft.wal_max_size_bytes = 67108864\n{}\n",
            config.extra_conf.join("\n")
        );
        let path = |name: &str| guard.folder().join(name).display().to_string();
        let write = |name: &str, text: &str| std::fs::write(path(name), text).expect("the private folder takes files");
        write("rabbitmq.conf", &conf);
        write("enabled_plugins", &format!("[{}].\n", config.plugins.join(",")));
        write(".erlang.cookie", COOKIE);
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        std::fs::set_permissions(path(".erlang.cookie"), owner_only).expect("the cookie can be made private");
        let environment = vec![
            ("HOME", guard.folder().display().to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("ERL_EPMD_PORT", distribution.epmd_port.to_string()),
            ("RABBITMQ_NODENAME", node_name(port)),
            ("RABBITMQ_DIST_PORT", distribution.port.to_string()),
            ("RABBITMQ_CTL_DIST_PORT_MIN", tool_port.to_string()),
            ("RABBITMQ_CTL_DIST_PORT_MAX", (tool_port + 20).to_string()),
            ("RABBITMQ_CTL_ERL_ARGS", "+S 1:1 +sbwt none".to_owned()),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", path("no-advanced.config")),
            ("RABBITMQ_CONF_ENV_FILE", path("no-rabbitmq-env.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_MNESIA_BASE", path("mnesia")),
            ("RABBITMQ_LOG_BASE", path("log")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", vm_arguments),
            // With input allowed the script becomes the VM, so that signals reach it; and still no Erlang shell.
            ("RABBITMQ_ALLOW_INPUT", "true".to_owned()),
            ("RABBITMQ_SERVER_START_ARGS", "-noinput".to_owned()),
        ];
        let mut rabbit = Rabbit { port, distribution_port: distribution.port, environment, child: None, guard };
        rabbit.start_again().await;
        rabbit
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The AMQP URI of a virtual host, as the user guest.
    pub fn uri(&self, vhost: &str) -> String {
        self.uri_through(self.address(), vhost)
    }

    /// Connects through a proxy.
    pub fn uri_through(&self, address: SocketAddr, vhost: &str) -> String {
        format!("amqp://guest:guest@{address}/{}", percent_encoded(vhost))
    }

    /// Starts a stopped or killed node on its old ports with its old data.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "this RabbitMQ runs already");
        let out = std::fs::File::create(self.guard.folder().join("console.log")).expect("the folder takes files");
        let mut command = self.command(server_program().expect("RabbitMQ is here; run scripts/setup.sh"));
        command.stdout(Stdio::from(out.try_clone().expect("a file handle can be cloned"))).stderr(Stdio::from(out));
        self.child = Some(command.spawn().expect("RabbitMQ can be started"));
        let started = std::time::Instant::now();
        while !self.accepts_amqp().await {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || started.elapsed() > READY_LIMIT {
                panic!("RabbitMQ did not come up (exit status {ended:?}); its log ends:\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the node in good order.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if let Some(pid) = child.id() {
            send_signal(pid, "TERM");
        }
        let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
        assert!(ended.is_ok(), "RabbitMQ did not stop within {STOP_LIMIT:?}; its log ends:\n{}", self.log_tail());
    }

    /// Ends the node at once (SIGKILL of its VM).
    pub async fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        child.kill().await.expect("a child can be killed");
    }

    /// Freezes the node (SIGSTOP of its VM): its connections stay, and nothing answers.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        if let Some(pid) = self.child.as_ref().and_then(Child::id) {
            send_signal(pid, name);
        }
    }

    /// Returns whether the node was started and neither stopped nor killed since.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Returns its name among Erlang nodes.
    pub fn node_name(&self) -> String {
        node_name(self.port)
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.start_again().await;
    }

    pub async fn kill_and_restart(&mut self) {
        self.kill().await;
        self.start_again().await;
    }

    /// Where the node keeps everything it has.
    pub fn folder(&self) -> &Path {
        self.guard.folder()
    }

    /// Processes of this node that live now, its epmd among them.
    pub fn pids(&self) -> Vec<u32> {
        self.guard.pids()
    }

    /// The end of what the node logged and printed.
    pub fn log_tail(&self) -> String {
        let log = format!("log/{}.log", self.node_name());
        let files = [self.guard.folder().join(log), self.guard.folder().join("console.log")];
        let text: String = files.iter().filter_map(|file| std::fs::read_to_string(file).ok()).collect();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// A command of RabbitMQ's, under guard and meant for this node alone.
    pub(super) fn command(&self, program: PathBuf) -> Command {
        let mut command = self.guard.command(program);
        let foreign = ["RABBITMQ_", "ERL_", "NOTIFY_SOCKET"];
        for (name, _) in std::env::vars_os() {
            if foreign.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().cloned());
        // Erlang programs write it where they are started.
        command.env("ERL_CRASH_DUMP", self.guard.folder().join("erl_crash.dump"));
        command
    }

    pub(super) fn distribution_port(&self) -> u16 {
        self.distribution_port
    }

    /// Returns whether the broker answers a protocol header with Connection.Start (a method frame on channel 0).
    async fn accepts_amqp(&self) -> bool {
        let greet = async {
            let mut stream = TcpStream::connect(self.address()).await?;
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            let mut frame = [0; 3];
            stream.read_exact(&mut frame).await?;
            Ok::<bool, std::io::Error>(frame == [1, 0, 0])
        };
        matches!(tokio::time::timeout(Duration::from_secs(5), greet).await, Ok(Ok(true)))
    }
}

fn node_name(port: u16) -> String {
    format!("chainwriter{port}@localhost")
}

/// Names a folder with the programs of another RabbitMQ than the system's.
const PROGRAMS: &str = "CHAINWRITER_RABBITMQ";

/// Returns the script that becomes the node. The one that Debian puts on PATH changes to the user rabbitmq; the one below
/// /usr/lib does not.
pub fn server_program() -> Option<PathBuf> {
    if let Some(folder) = programs() {
        return Some(folder.join("rabbitmq-server"));
    }
    let packaged = PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server");
    if packaged.is_file() { Some(packaged) } else { find_on_path("rabbitmq-server") }
}

/// Returns the program that evaluates expressions on the node.
pub(super) fn erl_call_program() -> Option<PathBuf> {
    programs().map_or_else(|| find_on_path("erl_call"), |folder| Some(folder.join("erl_call")))
}

fn programs() -> Option<PathBuf> {
    let folder = std::env::var_os(PROGRAMS).filter(|folder| !folder.is_empty())?;
    Some(std::path::absolute(folder).expect("a path that is not empty can be made absolute"))
}

fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
