//! `chainwriter check`

use clap::Args;

use crate::cli::{doctor, exit, say};
use crate::config::Settings;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also check the broker, the nodes, the journal and the accounts, as `doctor` does.
    #[arg(long)]
    connect: bool,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    if arguments.connect {
        return doctor::run(doctor::Arguments::default(), settings).await;
    }
    doctor::examine_settings(&settings).iter().for_each(say);
    Ok(exit::OK)
}
