//! `chainwriter generate`: what the command line's own description can be turned into.

use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use clap_complete::Shell;

use crate::cli::{exit, manual, say};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print what makes this shell complete chainwriter's commands and options.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Write a manual page for each command, and one for the configuration, into a folder, which is made if it is not there.
    Man {
        /// The folder.
        folder: PathBuf,
    },
}

pub(super) fn run(command: Command, mut program: clap::Command) -> anyhow::Result<u8> {
    match command {
        Command::Completions { shell } => {
            let name = program.get_name().to_owned();
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut program, name, &mut script);
            say(String::from_utf8_lossy(&script).trim_end());
        }
        Command::Man { folder } => {
            let failed = || format!("cannot write manual pages into {}", folder.display());
            std::fs::create_dir_all(&folder).with_context(failed)?;
            for (name, page) in manual::pages(program)? {
                std::fs::write(folder.join(name), page).with_context(failed)?;
            }
        }
    }
    Ok(exit::OK)
}
