//! A private PostgreSQL server: own port, own data, gone with the test.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::guard::{Guard, find_on_path, send_signal};
use super::ports::free_port;

const READY_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Whom the server runs as where this process is root, which it refuses to be.
pub const NOBODY: (&str, u32, u32) = ("nobody", 65_534, 65_534);

#[derive(Clone, Debug, Default)]
pub struct PostgresConfig {
    /// Flush commits to the disk. Without it a server that is killed keeps them all the same; a host that is, would not.
    pub fsync: bool,
    /// More of `name=value`.
    pub extra: Vec<String>,
}

/// Gone, with its processes and files, when dropped.
pub struct Postgres {
    port: u16,
    config: PostgresConfig,
    child: Option<Child>,
    guard: Guard,
}

/// The server that all tests of one program share, each in a schema of its own. `None` where PostgreSQL is missing and
/// the test run does not insist.
pub async fn shared() -> Option<&'static Postgres> {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    if !super::postgres_is_here() {
        return None;
    }
    Some(SHARED.get_or_init(|| Postgres::start(PostgresConfig::default())).await)
}

impl Postgres {
    /// Starts a server and waits until it answers; panics, with the end of its log, when it does not.
    pub async fn start(config: PostgresConfig) -> Postgres {
        let guard = Guard::new("postgres");
        let mut postgres = Postgres { port: free_port(), config, child: None, guard };
        let data = postgres.data();
        std::fs::create_dir(&data).expect("the private folder takes a folder");
        give_away(&postgres.guard, &data);
        let mut initdb = postgres.command("initdb");
        initdb.args(["--username=tester", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        let made = initdb.arg("--pgdata").arg(&data).output().await.expect("initdb can be run");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        postgres.start_again().await;
        postgres
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The address of a new schema, which no other test knows.
    pub async fn new_schema(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let schema = format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.run(&format!("CREATE SCHEMA {schema}")).await;
        self.url_of(self.address(), &schema)
    }

    /// The address of a schema by way of a proxy.
    pub fn url_of(&self, address: SocketAddr, schema: &str) -> String {
        format!("postgres://tester@{address}/postgres?options=-csearch_path%3D{schema}")
    }

    /// A connection with all rights.
    pub async fn client(&self) -> Result<Client, tokio_postgres::Error> {
        let config = format!("host=127.0.0.1 port={} user=tester dbname=postgres connect_timeout=5", self.port);
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs statements, and gives the first column of what they return.
    pub async fn run(&self, sql: &str) -> Vec<String> {
        let client = self.client().await.expect("PostgreSQL can be reached");
        let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let column = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        messages.iter().filter_map(column).collect()
    }

    /// Ends every connection but the one that asks for it.
    pub async fn cut_all(&self) {
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.run(cut).await;
    }

    /// Starts a stopped or killed server on its old port with its old data.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "this PostgreSQL runs already");
        let started = std::time::Instant::now();
        loop {
            self.spawn();
            while self.client().await.is_err() {
                let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
                assert!(started.elapsed() < READY_LIMIT, "PostgreSQL did not come up; its log:\n{}", self.log());
                if ended.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // After a kill its shared memory may be in use for a moment.
            if self.child.as_mut().is_some_and(|child| child.try_wait().ok().flatten().is_none()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn spawn(&mut self) {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(self.guard.folder().join("postgres.log"));
        let log = log.expect("the private folder takes files");
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-h", "127.0.0.1"]);
        let fsync = if self.config.fsync { "on" } else { "off" };
        let own = [
            "unix_socket_directories=".to_owned(),
            format!("fsync={fsync}"),
            format!("full_page_writes={fsync}"),
            "shared_buffers=32MB".to_owned(),
            "max_connections=200".to_owned(),
            "logging_collector=off".to_owned(),
        ];
        for setting in own.iter().chain(&self.config.extra) {
            command.args(["-c", setting]);
        }
        command.stdout(Stdio::from(log.try_clone().expect("a file handle can be cloned"))).stderr(Stdio::from(log));
        self.child = Some(command.spawn().expect("PostgreSQL can be started"));
    }

    /// Ends the server in good order, without waiting for its clients.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        if let Some(pid) = child.id() {
            send_signal(pid, "INT");
        }
        let ended = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
        assert!(ended.is_ok(), "PostgreSQL did not stop within {STOP_LIMIT:?}; its log:\n{}", self.log());
    }

    /// Ends the server at once (SIGKILL); its helpers see that and end, too.
    pub async fn kill(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        child.kill().await.expect("a child can be killed");
    }

    /// Where the server keeps everything it has.
    pub fn folder(&self) -> &Path {
        self.guard.folder()
    }

    /// The server, if it lives. Its helpers write their titles over the mark of the guard; they end with it.
    pub fn pids(&self) -> Vec<u32> {
        self.guard.pids()
    }

    /// Everything that it holds, as statements.
    pub async fn dump(&self) -> Vec<u8> {
        let mut dump = self.command("pg_dump");
        dump.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "tester", "postgres"]);
        dump.output().await.map(|output| output.stdout).unwrap_or_default()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.guard.folder().join("postgres.log")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.guard.folder().join("data")
    }

    fn command(&self, name: &str) -> Command {
        let mut command =
            unprivileged(&self.guard, program(name).expect("PostgreSQL is here; run scripts/setup.sh postgres"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.current_dir("/");
        command
    }
}

/// Dumps and restores a schema of a server that others stop, start and use meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct SchemaDumps {
    port: u16,
    schema: &'static str,
}

impl SchemaDumps {
    pub fn new(server: &Postgres, schema: &'static str) -> Self {
        Self { port: server.port, schema }
    }

    /// Returns the schema as statements for [`Self::restore`].
    pub async fn dump(&self, file: &Path) -> Result<(), String> {
        let file = file.to_str().ok_or("the file's name is no text")?;
        self.run("pg_dump", &["--schema", self.schema, "--file", file]).await
    }

    /// Drops the schema and makes it anew, in one transaction.
    pub async fn restore(&self, file: &Path) -> Result<(), String> {
        let file = file.to_str().ok_or("the file's name is no text")?;
        let drop = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.schema);
        let arguments =
            ["--quiet", "--no-psqlrc", "--single-transaction", "-v", "ON_ERROR_STOP=1", "-c", &drop, "-f", file];
        self.run("psql", &arguments).await
    }

    async fn run(&self, name: &str, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new(program(name).ok_or_else(|| format!("{name} is missing"))?);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "tester", "-d", "postgres"]);
        command.args(arguments).kill_on_drop(true).stdin(Stdio::null());
        let output = command.output().await.map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }
}

/// PgBouncer in front of a server. Gone when dropped.
pub struct Pooler {
    port: u16,
    _child: Child,
    _guard: Guard,
}

impl Pooler {
    /// With this `pool_mode`. It ignores which schema is asked for.
    pub async fn start(server: &Postgres, mode: &str) -> Pooler {
        let (guard, port) = (Guard::new("pgbouncer"), free_port());
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=tester\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n\
             ignore_startup_parameters = options,extra_float_digits\n",
            server.port
        );
        let file = guard.folder().join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("the private folder takes files");
        give_away(&guard, &file);
        let program = pooler_program().expect("PgBouncer is here; run scripts/setup.sh postgres");
        let mut command = unprivileged(&guard, program);
        command.arg("-q").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("PgBouncer can be started");
        let started = std::time::Instant::now();
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            assert!(started.elapsed() < READY_LIMIT, "PgBouncer did not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Pooler { port, _child: child, _guard: guard }
    }

    pub fn url(&self) -> String {
        format!("postgres://tester@127.0.0.1:{}/postgres", self.port)
    }
}

pub fn pooler_program() -> Option<PathBuf> {
    let of_debian = Some(PathBuf::from("/usr/sbin/pgbouncer")).filter(|file| file.is_file());
    of_debian.or_else(|| find_on_path("pgbouncer"))
}

/// So that [`unprivileged`] reaches it.
fn give_away(guard: &Guard, path: &Path) {
    if is_root() {
        let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(guard.folder(), passable).expect("the folder can be opened");
        std::os::unix::fs::chown(path, Some(NOBODY.1), Some(NOBODY.2)).expect("root can give files away");
    }
}

/// A command under guard that is never root's.
fn unprivileged(guard: &Guard, program: PathBuf) -> Command {
    if !is_root() {
        return guard.command(program);
    }
    let mut command = guard.command("setpriv");
    command.args(["--reuid", NOBODY.0, "--regid", &NOBODY.2.to_string(), "--clear-groups", "--"]).arg(program);
    command
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("this process is there")) == 0
}

/// A program of the newest version in Debian's place, else the one on PATH.
pub fn program(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin").join(name))))
        .filter(|(_, file)| file.is_file())
        .collect();
    versions.sort();
    versions.pop().map(|(_, file)| file).or_else(|| find_on_path(name))
}
