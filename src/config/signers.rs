//! `[[signer]]`: keys in files, and keys that a server has.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use crate::config::reader::{Findings, Section};
use crate::model::Address;
use crate::signer::{LocalSigner, RemoteSettings, Signer};

/// For an answer of a server, where `timeout` is not set.
const TIMEOUT: Duration = Duration::from_secs(10);
const KEYS: &[&str] = &["key_file", "key", "url", "url_file", "address", "timeout"];

/// One `[[signer]]`.
#[derive(Debug, Clone)]
pub enum SignerSection {
    /// With a key of its own.
    Local(LocalSigner),
    /// Somewhere else.
    Remote(RemoteSettings),
}

impl SignerSection {
    /// The account that it signs for.
    pub fn address(&self) -> Address {
        match self {
            Self::Local(signer) => signer.address(),
            Self::Remote(settings) => settings.address,
        }
    }
}

/// A key of the configuration, and what is wrong with it.
type Fault = (&'static str, String);

pub(super) fn read(value: Option<Value>, findings: &mut Findings) -> Vec<SignerSection> {
    let tables = match value {
        Some(Value::Array(tables)) if !tables.is_empty() => tables,
        _ => {
            findings.add("signer", "there is none; add [[signer]] with key_file = \"signer.key\"");
            return Vec::new();
        }
    };
    let mut signers: Vec<SignerSection> = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let mut section = Section::new(&format!("signer[{}]", index + 1), Some(table), findings);
        match signer(&mut section) {
            Ok(signer) => match signers.iter().position(|known| known.address() == signer.address()) {
                Some(earlier) => {
                    let (key, earlier) = (if is_remote(&signer) { "address" } else { "key_file" }, earlier + 1);
                    section.fault(key, format!("is of the same account as signer[{earlier}]; an account has one lane"));
                }
                None => signers.push(signer),
            },
            Err((key, problem)) => section.fault(key, problem),
        }
        section.finish(KEYS);
    }
    signers
}

fn is_remote(signer: &SignerSection) -> bool {
    matches!(signer, SignerSection::Remote(_))
}

fn signer(section: &mut Section<'_>) -> Result<SignerSection, Fault> {
    let ways = KEYS.iter().take(4).filter_map(|key| Some((*key, section.text(key)?)));
    let ways: Vec<_> = ways.collect();
    match ways.as_slice() {
        [(key @ "key_file", file)] => local(key, &private_file(&credential(file)).map_err(|problem| (*key, problem))?),
        [(key @ "key", text)] => local(key, &SecretString::from(text.as_str())),
        [(key @ "url_file", file)] => {
            let text = private_file(&credential(file)).map_err(|problem| (*key, problem))?;
            remote(section, key, text.expose_secret())
        }
        [(key, text)] => remote(section, key, text),
        [] => Err(("key_file", "is not set; name a file with the private key, or set url and address".to_owned())),
        [(first, _), (second, _), ..] => Err((second, format!("is set beside {first}; remove one of them"))),
    }
}

fn local(key: &'static str, text: &SecretString) -> Result<SignerSection, Fault> {
    LocalSigner::from_hex(text).map(SignerSection::Local).map_err(|error| (key, error.to_string()))
}

fn remote(section: &mut Section<'_>, key: &'static str, url: &str) -> Result<SignerSection, Fault> {
    let is_http = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    let url = Url::parse(url.trim()).ok().filter(is_http).ok_or((key, "is no http:// or https:// URL".to_owned()))?;
    let address = section.text("address").ok_or_else(|| {
        (
            "address",
            "is not set; expected the account whose key the signer has, 0x and 40 hexadecimal digits".to_owned(),
        )
    })?;
    let address = address.trim().parse().map_err(|error| ("address", format!("is {address:?}: {error}")))?;
    let timeout = section.duration_or("timeout", TIMEOUT, Duration::from_millis(100)..=Duration::from_secs(60));
    Ok(SignerSection::Remote(RemoteSettings { url, address, timeout }))
}

/// The content of a file that only its owner may read.
fn private_file(path: &Path) -> Result<SecretString, String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(format!("others may read {shown}; run: chmod 600 {shown}"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
    Ok(SecretString::from(text))
}

/// A relative name is a systemd credential, if there is one of this name.
pub(super) fn credential(name: &str) -> PathBuf {
    let path = PathBuf::from(name);
    if path.is_absolute() {
        return path;
    }
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join(&path));
    credential.filter(|path| path.exists()).unwrap_or(path)
}
