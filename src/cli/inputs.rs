//! Inputs of commands: addresses, files, the chain's client.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

use crate::chain::NodeClient;
use crate::config::Settings;
use crate::model::Address;

/// Reads an account's address, in capitals or not.
pub(crate) fn address(text: &str) -> anyhow::Result<Address> {
    text.to_lowercase().parse().with_context(|| format!("{text} is no address"))
}

/// Creates a file that only this user may read. An existing file is an error.
pub(crate) fn new_private_file(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.with_context(|| format!("cannot make {}", path.display()))
}

/// Opens a file, or standard input for "-".
pub(crate) fn open_input(file: &str) -> anyhow::Result<Box<dyn BufRead>> {
    Ok(match file {
        "-" => Box::new(BufReader::new(std::io::stdin())),
        path => Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {path}"))?)),
    })
}

/// Connects to nothing yet.
pub(crate) fn node_client(settings: &Settings) -> anyhow::Result<NodeClient> {
    NodeClient::new(&settings.chain).context("cannot make the HTTP client")
}
