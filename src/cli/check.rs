//! `chainwriter check`

use std::process::ExitCode;

use clap::Args;

use crate::cli::{doctor, say};
use crate::config::Settings;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also look at the broker, the nodes, the journal and the accounts, as `doctor` does.
    #[arg(long)]
    connect: bool,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<ExitCode> {
    if arguments.connect {
        return doctor::run(doctor::Arguments::default(), settings).await;
    }
    doctor::examine_settings(&settings).iter().for_each(say);
    Ok(ExitCode::SUCCESS)
}
