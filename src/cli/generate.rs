//! `chainwriter generate`: what the command line's own description can be turned into.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command, Subcommand};
use clap_complete::Shell;

use crate::cli::say;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print what makes this shell complete chainwriter's commands and options.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Write a manual page for each command into a folder, which is made if it is not there.
    Man {
        /// The folder.
        folder: PathBuf,
    },
}

pub(super) fn run(arguments: &Arguments, mut program: Command) -> anyhow::Result<ExitCode> {
    match &arguments.what {
        What::Completions { shell } => {
            let name = program.get_name().to_owned();
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut program, name, &mut script);
            say(String::from_utf8_lossy(&script).trim_end());
        }
        What::Man { folder } => {
            let failed = || format!("cannot write manual pages into {}", folder.display());
            std::fs::create_dir_all(folder).with_context(failed)?;
            clap_mangen::generate_to(program, folder).with_context(failed)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
