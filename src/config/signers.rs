//! `[[signer]]`: keys in files, and keys that a server has.

use std::collections::BTreeSet;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::config::certificates::{self, Fault};
use crate::config::reader::{Findings, MINUTE, MS, Section, http_url, tables};
use crate::config::secrets::{Places, line_of, private_file};
use crate::model::Address;
use crate::signer::{LocalSigner, RemoteKind, RemoteSettings, Signer, keystore};

/// Time for an answer of a server.
const DEFAULT_TIMEOUT: &str = "10s";
/// Keys that say where the private key is: one of them is set.
const WAYS: [&str; 5] = ["key_file", "keystore", "key", "url", "url_file"];
/// Keys that go with some of them.
const WITH_SOME: [&str; 4] = ["password_file", "address", "timeout", "kind"];

#[derive(Debug, Clone)]
pub enum SignerSection {
    Local(LocalSigner),
    Remote(RemoteSettings),
}

impl SignerSection {
    pub fn address(&self) -> Address {
        match self {
            Self::Local(signer) => signer.address(),
            Self::Remote(settings) => settings.address,
        }
    }
}

/// Returns the signers, and the accounts that take nothing new.
pub(super) fn read(
    value: Option<Value>,
    places: &Places,
    findings: &mut Findings,
) -> (Vec<SignerSection>, BTreeSet<Address>) {
    let missing = "there is none; add [[signer]] with key_file = \"signer.key\"";
    let mut signers: Vec<SignerSection> = Vec::new();
    let mut retiring = BTreeSet::new();
    let value = value.unwrap_or(Value::Array(Vec::new()));
    tables("signer", Some(value), missing, findings, |mut section| {
        section.set_default("retire", false);
        let retires = section.choice("retire", &[("false", false), ("true", true)]);
        let read = signer(&mut section, places).and_then(|signer| {
            let Some(earlier) = signers.iter().position(|known| known.address() == signer.address()) else {
                return Ok(signer);
            };
            let key = if matches!(signer, SignerSection::Local(_)) { "key_file" } else { "address" };
            Err((key, format!("is of the same account as signer[{}]; an account has one lane", earlier + 1)))
        });
        match read {
            Ok(signer) => {
                retiring.extend(retires.then(|| signer.address()));
                signers.push(signer);
            }
            Err((key, problem)) => section.fault(key, problem),
        }
    });
    (signers, retiring)
}

fn signer(section: &mut Section<'_>, places: &Places) -> Result<SignerSection, Fault> {
    section.allow(&WITH_SOME);
    section.allow(&certificates::KEYS);
    let ways: Vec<_> = WAYS.into_iter().filter_map(|key| Some((key, section.text(key)?))).collect();
    match ways.as_slice() {
        [(key @ "key_file", file)] => local(key, &secret(places, key, file)?),
        [(key @ "keystore", file)] => encrypted(section, places, key, file),
        [(key @ "key", text)] => local(key, &SecretString::from(text.as_str())),
        [(key @ "url_file", file)] => remote(section, places, key, secret(places, key, file)?.expose_secret()),
        [(key, text)] => remote(section, places, key, text),
        [] => {
            let ways = "name a file with the private key, or set keystore and password_file, or url and address";
            Err(("key_file", format!("is not set; {ways}")))
        }
        [(first, _), (second, _), ..] => Err((second, format!("is set beside {first}; remove one of them"))),
    }
}

/// Reads the file that a key names.
fn secret(places: &Places, key: &'static str, file: &str) -> Result<SecretString, Fault> {
    places.secret(file).and_then(|path| private_file(&path)).map_err(|problem| (key, problem))
}

fn local(key: &'static str, text: &SecretString) -> Result<SignerSection, Fault> {
    LocalSigner::from_hex(text).map(SignerSection::Local).map_err(|error| (key, error.to_string()))
}

fn encrypted(
    section: &mut Section<'_>,
    places: &Places,
    key: &'static str,
    file: &str,
) -> Result<SignerSection, Fault> {
    let password = section
        .text("password_file")
        .ok_or_else(|| ("password_file", "is not set; name a file with the password of the keystore".to_owned()))?;
    let password = secret(places, "password_file", &password)?;
    let content = secret(places, key, file)?;
    let opened = keystore::decrypt(content.expose_secret(), &line_of(&password));
    local(key, &opened.map_err(|error| (key, format!("{file} cannot be opened: {error}")))?)
}

fn remote(section: &mut Section<'_>, places: &Places, key: &'static str, url: &str) -> Result<SignerSection, Fault> {
    let url = http_url(url.trim()).ok_or((key, "is no http:// or https:// URL".to_owned()))?;
    let missing = "is not set; expected the account whose key the signer has, 0x and 40 hexadecimal digits";
    let address = section.text("address").ok_or_else(|| ("address", missing.to_owned()))?;
    let address = address.trim().parse().map_err(|error| ("address", format!("is {address:?}: {error}")))?;
    section.set_default("kind", "auto");
    let eth = Some(RemoteKind::Eth);
    let kinds = [("auto", None), ("web3signer", eth), ("node", eth), ("clef", Some(RemoteKind::Clef))];
    let kind = section.choice("kind", &kinds);
    section.set_default("timeout", DEFAULT_TIMEOUT);
    let timeout = section.duration("timeout", 100 * MS..=MINUTE);
    let tls = certificates::read(section, places, "the signer's URL", url.scheme() == "https")?;
    Ok(SignerSection::Remote(RemoteSettings { url, kind, address, timeout, tls }))
}
