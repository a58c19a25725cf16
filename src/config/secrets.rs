//! Secrets that the configuration names: files that only their owner may read.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

/// Reads a file that only its owner may read.
pub(crate) fn private_file(path: &Path) -> Result<SecretString, String> {
    let shown = path.display();
    let unreadable = |error| format!("{shown} cannot be read: {error}");
    if std::fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o077 != 0 {
        return Err(format!("others may read {shown}; run: chmod 600 {shown}"));
    }
    std::fs::read_to_string(path).map(SecretString::from).map_err(unreadable)
}

/// Removes the end of the line, which editors add.
pub(crate) fn line_of(secret: &SecretString) -> SecretString {
    SecretString::from(secret.expose_secret().trim_end_matches(['\r', '\n']))
}

/// Takes a relative name for a systemd credential, if there is one of this name.
pub(super) fn credential(name: &str) -> PathBuf {
    let path = PathBuf::from(name);
    if path.is_absolute() {
        return path;
    }
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join(&path));
    credential.filter(|path| path.exists()).unwrap_or(path)
}
