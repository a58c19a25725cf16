//! `chainwriter init NAME`: writes the configuration and the credentials of a new unit, once they are known to be without fault.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{IsTerminal, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use crate::cli::{exit, key, new_private_file, open_input, say, stop, unit};
use crate::config::{self, Places, Source};
use crate::signer::keystore;

/// Where health and metrics are served if no other unit of this host does so there.
const FIRST_PORT: u16 = 19_746;
const PORTS: u16 = 100;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The unit: chainwriter@NAME. 1 to 28 letters, digits, "-" or "_".
    name: String,
    /// The organisation that the worker is of. NAME if it is not given.
    #[arg(long)]
    organisation: Option<String>,
    /// A file with the broker's address, amqps://user:password@host/vhost; - is standard input. Without it the terminal is asked.
    #[arg(long, value_name = "FILE")]
    broker_uri_file: Option<String>,
    /// The work queue. NAME.writes if it is not given.
    #[arg(long)]
    queue: Option<String>,
    /// The chain's id (EIP-155), such as 1 for Ethereum.
    #[arg(long, value_name = "N")]
    chain_id: Option<String>,
    /// A node's JSON-RPC address; several may be given, the preferred one first.
    #[arg(long, value_name = "URL")]
    endpoint: Vec<String>,
    /// The address that is called with each message's body.
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// A file with the account's private key as hexadecimal digits. Without it a new key is made.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The folder of configurations.
    #[arg(long, value_name = "FOLDER", default_value = "/etc/chainwriter")]
    folder: PathBuf,
}

/// The files of a unit, with their last places.
struct Plan {
    toml: String,
    broker_uri: SecretString,
    key: SecretString,
    config: PathBuf,
    credentials: PathBuf,
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<u8> {
    let name = arguments.name.clone();
    if !unit::is_name(&name) {
        return Err(stop(
            exit::USAGE,
            format!("{name:?} is no name of a unit: 1 to 28 letters, digits, \"-\" or \"_\""),
        ));
    }
    let folder = arguments.folder.clone();
    let (config, credentials) = (folder.join(format!("{name}.toml")), folder.join("credentials").join(&name));
    for path in [&config, &credentials] {
        if path.exists() {
            return Err(stop(exit::USAGE, format!("{} is there already, and is left as it is", path.display())));
        }
    }
    let is_new_key = arguments.key_file.is_none();
    let plan = Plan::of(arguments, config, credentials)?;
    let account = plan.install(&folder)?;
    say(format_args!("{}", plan.config.display()));
    say(format_args!("{}/: broker-uri, signer.key", plan.credentials.display()));
    let of_account = if is_new_key { "has a new key: send it what its writes will cost" } else { "writes" };
    say(format_args!("account {account} {of_account}"));
    say(format_args!("next: `chainwriter --unit {name} doctor`, then `systemctl enable --now chainwriter@{name}`"));
    Ok(exit::OK)
}

impl Plan {
    /// Gets what is not given from the terminal.
    fn of(arguments: Arguments, config: PathBuf, credentials: PathBuf) -> anyhow::Result<Self> {
        let Arguments { name, organisation, broker_uri_file, queue, chain_id, endpoint, to, key_file, folder } =
            arguments;
        let organisation = given(organisation, "Organisation", "--organisation", Some(&name))?;
        let broker_uri = match broker_uri_file {
            Some(file) => SecretString::from(std::io::read_to_string(open_input(&file)?)?.trim()),
            None if std::io::stdin().is_terminal() => {
                key::asked("Broker's address, amqps://user:password@host/vhost: ")?
            }
            None => return Err(missing("--broker-uri-file")),
        };
        let queue = given(queue, "Work queue", "--queue", Some(&format!("{name}.writes")))?;
        let chain_id = given(chain_id, "Chain id", "--chain-id", None)?;
        let endpoints = match endpoint.is_empty() {
            true => vec![given(None, "Node's address, http(s)://…", "--endpoint", None)?],
            false => endpoint,
        };
        let to = given(to, "Address that is called", "--to", None)?;
        let key = match key_file {
            Some(file) => config::secrets::private_file(&file).map_err(anyhow::Error::msg)?,
            None => keystore::new_key()?,
        };
        let port = free_port(&folder);
        let listen =
            if port == FIRST_PORT { String::new() } else { format!("\n[http]\nlisten = \"127.0.0.1:{port}\"\n") };
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let (organisation, queue, to) = (quoted(&organisation), quoted(&queue), quoted(&to));
        let endpoints = serde_json::Value::from(endpoints);
        let toml = format!(
            "# The unit chainwriter@{name}. `chainwriter config defaults` prints every key, `man chainwriter.toml` too.\n\n\
             [worker]\norganisation = {organisation}\n\n\
             [broker]\nuri_file = \"broker-uri\"\nqueue = {queue}\n\n\
             [chain]\nid = {chain_id}\nendpoints = {endpoints}\n\n\
             [[signer]]\nkey_file = \"signer.key\"\n\n\
             [write]\nto = {to}\n\n\
             [journal]\nurl = \"sqlite:chainwriter.db\"   # in /var/lib/chainwriter/{name}\n{listen}"
        );
        Ok(Self { toml, broker_uri, key, config, credentials })
    }

    /// Writes all files into a folder of their own, reads them as the worker will, and moves them to their places. Returns the
    /// account.
    fn install(&self, folder: &Path) -> anyhow::Result<String> {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        let draft = tempfile::tempdir_in(folder).with_context(|| format!("cannot write into {}", folder.display()))?;
        let (config, credentials) = (draft.path().join("config.toml"), draft.path().join("credentials"));
        DirBuilder::new().mode(0o700).create(&credentials)?;
        for (file, secret) in [("broker-uri", &self.broker_uri), ("signer.key", &self.key)] {
            let mut file = new_private_file(&credentials.join(file))?;
            file.write_all(secret.expose_secret().trim().as_bytes())?;
            file.sync_all()?;
        }
        fs::write(&config, &self.toml)?;
        fs::set_permissions(&config, Permissions::from_mode(0o644))?;
        let places = Places { credentials: vec![credentials.clone()], ..Places::default() };
        let settings = config::load(&Source { file: Some(config.clone()), places })?;
        crate::broker::check_uri(&self.broker_uri)?;
        let account = settings.signers.first().map(|signer| signer.address().to_string()).unwrap_or_default();
        let parent = self.credentials.parent().unwrap_or(folder);
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        fs::rename(&credentials, &self.credentials)?;
        fs::rename(&config, &self.config)?;
        Ok(account)
    }
}

/// Returns the answer: what was given, what the terminal says, or the default.
fn given(value: Option<String>, prompt: &str, option: &str, default: Option<&str>) -> anyhow::Result<String> {
    match (value, default) {
        (Some(value), _) => Ok(value),
        (None, default) if std::io::stdin().is_terminal() => {
            let shown = default.map_or(String::new(), |default| format!(" [{default}]"));
            write!(std::io::stderr(), "{prompt}{shown}: ")?;
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            let line = line.trim();
            Ok(if line.is_empty() { default.unwrap_or_default() } else { line }.to_owned())
        }
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(missing(option)),
    }
}

fn missing(option: &str) -> anyhow::Error {
    stop(exit::USAGE, format!("{option} is not given, and there is no terminal to ask on"))
}

/// Returns a port that no other unit's configuration names, and that is free now.
fn free_port(folder: &Path) -> u16 {
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let others: Vec<_> = entries
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "toml"))
        .map(|entry| text(entry.path()))
        .collect();
    let is_named = |port: u16| others.iter().any(|text| text.contains(&format!(":{port}\"")));
    let is_default_taken = others.iter().any(|text| !text.contains("listen"));
    let is_free = |port: &u16| {
        let is_taken = is_named(*port) || (*port == FIRST_PORT && is_default_taken);
        !is_taken && TcpListener::bind(("127.0.0.1", *port)).is_ok()
    };
    (FIRST_PORT..FIRST_PORT + PORTS).find(is_free).unwrap_or(FIRST_PORT)
}
