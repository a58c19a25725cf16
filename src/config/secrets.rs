//! Secrets that the configuration names: files that only their owner may read, and where they are searched.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

/// systemd puts these before the names of files in a folder: the shipped unit has `LoadCredential=plain:FOLDER` and
/// `LoadCredentialEncrypted=encrypted:FOLDER`. A credential that a drop-in names has its own name, without one.
const PREFIXES: [&str; 3] = ["", "plain_", "encrypted_"];

/// Where systemd keeps credentials, each unit's in a folder that its user and root alone may enter.
const SYSTEMD_FOLDER: &str = "/run/credentials";

/// Where relative names of secrets and of the journal are searched.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    /// Folders with credentials, the first one searched first.
    pub(crate) credentials: Vec<PathBuf>,
    /// Credentials that are open already, by their names in the folder of encrypted ones.
    pub(crate) decrypted: BTreeMap<String, PathBuf>,
    /// The folder of all other relative names; empty for the working directory.
    pub(crate) state: PathBuf,
}

impl Places {
    /// Returns what systemd says in this process's environment.
    pub(crate) fn of_process() -> Self {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Self { credentials: credentials.into_iter().collect(), ..Self::default() }
    }

    /// Takes a relative name for a credential if there is one of this name, and else for a file.
    ///
    /// # Errors
    /// When there are several credentials of this name: one of them is out of date, and nothing says which.
    pub(super) fn secret(&self, name: &str) -> Result<PathBuf, String> {
        if Path::new(name).is_absolute() {
            return Ok(PathBuf::from(name));
        }
        let in_folder = |folder: &PathBuf| PREFIXES.map(|prefix| folder.join(format!("{prefix}{name}")));
        let files = self.credentials.iter().flat_map(in_folder).filter(|path| path.exists());
        let mut found = files.chain(self.decrypted.get(name).cloned());
        match (found.next(), found.next()) {
            (None, _) => Ok(self.state.join(name)),
            (Some(path), None) => Ok(path),
            (Some(_), Some(_)) => Err(format!(
                "{name} is there twice: as a plain and as an encrypted credential, or also from a drop-in; remove one, then restart"
            )),
        }
    }
}

/// Reads a file that only its owner may read.
pub(crate) fn private_file(path: &Path) -> Result<SecretString, String> {
    let shown = path.display();
    let unreadable = |error| format!("{shown} cannot be read: {error}");
    let file = std::fs::metadata(path).map_err(unreadable)?;
    let is_roots = (file.uid(), file.gid()) == (0, 0);
    if !is_private(file.mode(), is_roots && path.starts_with(SYSTEMD_FOLDER)) {
        return Err(format!("others may read {shown}; run: chmod 600 {shown}"));
    }
    std::fs::read_to_string(path).map(SecretString::from).map_err(unreadable)
}

/// Returns whether the file's mode lets its owner alone read it. From version 256 on, systemd gives a credential to the unit's
/// user by an access control list: the file is root's, and the bits of its group are the list's mask.
fn is_private(mode: u32, is_credential: bool) -> bool {
    let others = if is_credential { 0o037 } else { 0o077 };
    mode & others == 0
}

/// Removes the end of the line, which editors add.
pub(crate) fn line_of(secret: &SecretString) -> SecretString {
    SecretString::from(secret.expose_secret().trim_end_matches(['\r', '\n']))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the places with these files among the credentials.
    fn places(files: &[&str]) -> (tempfile::TempDir, Places) {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|file| std::fs::write(folder.path().join(file), "").unwrap());
        let credentials = vec![folder.path().to_owned()];
        (folder, Places { credentials, state: PathBuf::from("/state"), ..Places::default() })
    }

    #[test]
    fn a_name_is_found_under_each_of_the_names_that_systemd_gives_it() {
        for files in [["signer.key"], ["plain_signer.key"], ["encrypted_signer.key"]] {
            let (folder, places) = places(&files);
            assert_eq!(places.secret("signer.key"), Ok(folder.path().join(files[0])));
        }
        let (_folder, places) = places(&["plain", "plain_signer.keys"]);
        assert_eq!(places.secret("signer.key"), Ok(PathBuf::from("/state/signer.key")), "a file, not a credential");
        assert_eq!(places.secret("/etc/signer.key"), Ok(PathBuf::from("/etc/signer.key")));
        assert_eq!(Places::default().secret("signer.key"), Ok(PathBuf::from("signer.key")));
    }

    /// Debian 12 makes credentials 0400 for the unit's user, Debian 13 0440 for root, with a list.
    #[test]
    fn the_bits_of_the_group_count_but_for_a_credential_of_systemds() {
        for (mode, is_credential, expected) in [
            (0o100_400, false, true),
            (0o100_600, false, true),
            (0o100_440, false, false),
            (0o100_404, false, false),
            (0o100_400, true, true),
            (0o100_440, true, true),
            (0o100_460, true, false),
            (0o100_444, true, false),
        ] {
            assert_eq!(is_private(mode, is_credential), expected, "{mode:o} {is_credential}");
        }
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused() {
        for files in [
            ["signer.key", "plain_signer.key"],
            ["signer.key", "encrypted_signer.key"],
            ["plain_signer.key", "encrypted_signer.key"],
        ] {
            let (_folder, places) = places(&files);
            assert!(places.secret("signer.key").is_err_and(|problem| problem.contains("twice")), "{files:?}");
        }
        let (_folder, mut places) = places(&["signer.key"]);
        places.decrypted.insert("signer.key".to_owned(), PathBuf::from("/proc/self/fd/3"));
        assert!(places.secret("signer.key").is_err());
        places.credentials.clear();
        assert_eq!(places.secret("signer.key"), Ok(PathBuf::from("/proc/self/fd/3")));
    }
}
