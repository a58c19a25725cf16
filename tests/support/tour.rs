//! The configuration of the tour, which `make tour` and the test of its page share.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::ACCOUNTS;

/// The folder of the tour, in the working directory.
pub const FOLDER: &str = ".tour";
pub const QUEUE: &str = "acme.writes";
/// Where the contract `BY_WORD` is.
pub const CONTRACT: &str = "0x000000000000000000000000000000000000c0de";

/// Writes key and configuration into the folder, which exists.
pub fn write_files(folder: &Path, broker: &str, node: &str) -> std::io::Result<()> {
    let key = folder.join("signer.key");
    std::fs::write(&key, ACCOUNTS[0].1)?;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    std::fs::write(folder.join("worker.toml"), configuration(broker, node))
}

fn configuration(broker: &str, node: &str) -> String {
    format!(
        r#"# Written by `make tour`, for the tour in docs/getting-started/tour.md.
[worker]
organisation = "acme"

[broker]
uri = "{broker}"
queue = "{QUEUE}"

[retry]
max_attempts = 3
initial_delay = "5s"
multiplier = 2.0

[chain]
id = 31337
endpoints = ["{node}"]
finality = 2

[[signer]]
key_file = "{FOLDER}/signer.key"

[write]
to = "{CONTRACT}"

[journal]
url = "sqlite:{FOLDER}/chainwriter.db"
"#
    )
}
