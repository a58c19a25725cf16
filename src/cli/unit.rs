//! `--unit NAME`: the configuration, the credentials and the state of a systemd unit `chainwriter@NAME`, for a command that an
//! operator gives by hand.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::cli::{exit, stop};
use crate::config::{Places, Source};

/// Longer names make a user's name that is too long: the unit runs as `cw-NAME`.
const LONGEST_NAME: usize = 28;

/// A unit, as an operator finds it on the disk.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) source: Source,
    /// Says what was found, in one line.
    pub(super) took: String,
    /// Files without names, which hold decrypted credentials until the command ends.
    _decrypted: Vec<File>,
}

/// Returns whether systemd can make a user and an instance of this name.
pub(super) fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

impl Unit {
    /// Finds the unit of this name below `root`, which is `/` but for tests. The credentials are those of the running unit;
    /// while it is stopped, those that it would get.
    ///
    /// # Errors
    /// When there is no such unit, or when this user may not read its keys.
    pub(super) fn find(root: &Path, name: &str) -> anyhow::Result<Self> {
        if !is_name(name) {
            let what = format!("{name:?} is no name of a unit: 1 to {LONGEST_NAME} letters, digits, \"-\" or \"_\"");
            return Err(stop(exit::USAGE, what));
        }
        let folder = root.join("etc/chainwriter");
        let file = folder.join(format!("{name}.toml"));
        if !file.exists() {
            let units = names(&folder).join(", ");
            let others = if units.is_empty() { "none has".to_owned() } else { format!("those that have: {units}") };
            let what = format!("unit {name} has no configuration {}; {others}", file.display());
            return Err(stop(exit::CONFIG, what));
        }
        let state = root.join("var/lib/chainwriter").join(name);
        let running = root.join("run/credentials").join(format!("chainwriter@{name}.service"));
        let (mut places, mut decrypted) = (Places { state, ..Places::default() }, Vec::new());
        let from = match holds_any(&running).map_err(|error| unreadable(&running, error))? {
            true => {
                places.credentials.push(running);
                "credentials of the running unit".to_owned()
            }
            false => {
                let plain = folder.join("credentials").join(name);
                if holds_any(&plain).map_err(|error| unreadable(&plain, error))? {
                    places.credentials.push(plain);
                }
                let encrypted = folder.join("encrypted").join(name);
                if holds_any(&encrypted).map_err(|error| unreadable(&encrypted, error))? {
                    decrypted = decrypt(&encrypted, &mut places.decrypted)?;
                }
                format!("credentials below {}, since it does not run", folder.display())
            }
        };
        let took = format!("unit {name}: {}, {from}, {}", file.display(), places.state.display());
        Ok(Self { source: Source { file: Some(file), places }, took, _decrypted: decrypted })
    }
}

/// Returns the names of all units that have a configuration.
fn names(folder: &Path) -> Vec<String> {
    let name = |path: PathBuf| {
        let is_toml = path.extension().is_some_and(|extension| extension == "toml");
        is_toml.then(|| Some(path.file_stem()?.to_string_lossy().into_owned()))?
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| name(entry.path())).collect();
    names.sort();
    names
}

fn unreadable(folder: &Path, error: io::Error) -> anyhow::Error {
    let what = format!("{} cannot be read: {error}; it holds the unit's keys: run this as root", folder.display());
    stop(exit::CONFIG, what)
}

/// Returns whether there is such a folder with anything in it: between a kill and the next start systemd may have left an
/// empty one. One that this user may not read is an error.
fn holds_any(path: &Path) -> io::Result<bool> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Decrypts each file of a folder into one that has no name, and is gone with this process.
fn decrypt(folder: &Path, into: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<Vec<File>> {
    let mut opened = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let mut decrypt = Command::new("systemd-creds");
        decrypt.arg("decrypt").arg(format!("--name=encrypted_{name}")).arg(entry.path()).arg("-");
        let made =
            decrypt.stdin(Stdio::null()).output().context("cannot run systemd-creds, which decrypts credentials")?;
        if !made.status.success() {
            let says = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            return Err(stop(exit::CONFIG, format!("cannot decrypt {}: {says}", entry.path().display())));
        }
        let file = unnamed(&made.stdout).context("cannot make a file for a decrypted credential")?;
        into.insert(name, PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
        opened.push(file);
    }
    Ok(opened)
}

/// Returns a file in memory that has no name, and that this user alone may read.
fn unnamed(content: &[u8]) -> io::Result<File> {
    let mut file = tempfile::tempfile_in("/dev/shm")?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(content)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Stop;

    const KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A host with one unit, `acme`, which does not run.
    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let toml = "[worker]\norganisation = \"acme\"\n[broker]\nqueue = \"q\"\nuri_file = \"broker-uri\"\n[chain]\nid = 1\n\
                    [write]\nto = \"0x00000000000000000000000000000000000000aa\"\n[[signer]]\nkey_file = \"signer.key\"\n";
        write(root.path(), "etc/chainwriter/acme.toml", toml);
        write(root.path(), "etc/chainwriter/credentials/acme/signer.key", KEY);
        root
    }

    #[test]
    fn a_stopped_unit_has_the_credentials_that_it_would_get_and_its_own_journal() {
        let root = host();
        for was_killed in [false, true] {
            if was_killed {
                let left = root.path().join("run/credentials/chainwriter@acme.service");
                std::fs::create_dir_all(left).unwrap();
            }
            let Unit { source, took, .. } = Unit::find(root.path(), "acme").unwrap();
            let settings = crate::config::load(&source).unwrap();
            let journal = root.path().join("var/lib/chainwriter/acme/chainwriter.db");
            assert_eq!(settings.journal.address.to_string(), journal.display().to_string());
            assert!(took.contains("acme.toml") && took.contains("does not run"), "{took}");
        }
    }

    #[test]
    fn a_running_unit_has_the_credentials_that_it_got() {
        let root = host();
        write(root.path(), "run/credentials/chainwriter@acme.service/plain", "none");
        let stopped = Unit::find(root.path(), "acme").unwrap();
        let Err(crate::config::Faults(faults)) = crate::config::load(&stopped.source) else { panic!("it has no key") };
        assert!(faults[0].contains("var/lib/chainwriter/acme/signer.key cannot be read"), "{faults:?}");
        write(root.path(), "run/credentials/chainwriter@acme.service/plain_signer.key", KEY);
        let Unit { source, took, .. } = Unit::find(root.path(), "acme").unwrap();
        assert!(crate::config::load(&source).is_ok());
        assert!(took.contains("running unit"), "{took}");
    }

    #[test]
    fn a_decrypted_credential_is_a_file_that_the_configuration_takes() {
        let file = unnamed(KEY.as_bytes()).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        for _ in 0..2 {
            use secrecy::ExposeSecret;
            assert_eq!(crate::config::secrets::private_file(&path).unwrap().expose_secret(), KEY);
        }
    }

    #[test]
    fn a_unit_that_is_not_there_is_an_error_that_names_those_there_are() {
        let root = host();
        for (name, code, says) in [("acne", exit::CONFIG, "those that have: acme"), ("../acme", exit::USAGE, "no name")]
        {
            let error = Unit::find(root.path(), name).unwrap_err();
            let Stop { code: found, text } = error.downcast_ref().unwrap();
            assert!(*found == code && text.contains(says), "{found}: {text}");
        }
    }
}
