//! `chainwriter journal backup`

use std::path::PathBuf;

use clap::Subcommand;

use crate::cli::{exit, say, stop};
use crate::config::Settings;
use crate::journal::{JournalAddress, back_up};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Copy the journal, as it stands now, into a new file; workers go on meanwhile. For a SQLite journal.
    Backup {
        /// A file that is not there yet.
        file: PathBuf,
    },
}

pub(super) async fn run(command: Command, settings: &Settings) -> anyhow::Result<u8> {
    let Command::Backup { file } = command;
    let JournalAddress::Sqlite(journal) = settings.journal.address.clone() else {
        let what = "a journal in PostgreSQL is backed up with PostgreSQL's own tools; see docs/operations/backup.md";
        return Err(stop(exit::USAGE, what));
    };
    let to = file.clone();
    tokio::task::spawn_blocking(move || back_up(&journal, &to)).await??;
    say(format_args!("{}: put it back only as docs/operations/backup.md says", file.display()));
    Ok(exit::OK)
}
