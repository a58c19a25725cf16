//! `chainwriter topology print|apply`

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::broker::{self, TopologyMode};
use crate::cli::say;
use crate::config::Settings;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the queues, exchanges and bindings as definitions that `rabbitmqctl import_definitions` takes.
    Print {
        /// The virtual host to name in them.
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// Make what is missing; report what is other than it must be.
    Apply,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<ExitCode> {
    let broker = &settings.broker;
    match arguments.action {
        Action::Print { vhost } => say(serde_json::to_string_pretty(&broker.topology.definitions(&vhost))?),
        Action::Apply => {
            let vhost = broker::check(broker, TopologyMode::Declare).await?;
            say(format_args!("the topology of {} is in place on virtual host {vhost}", broker.topology.names.work));
        }
    }
    Ok(ExitCode::SUCCESS)
}
