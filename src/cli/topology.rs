//! `chainwriter topology print|apply`

use clap::Subcommand;

use crate::broker::{self, BrokerSettings, TopologyMode};
use crate::cli::{exit, say};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the queues, exchanges and bindings as definitions that `rabbitmqctl import_definitions` takes.
    Print {
        /// The virtual host to name in them.
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    /// Make what is missing; report what is other than it must be.
    Apply,
}

pub(super) async fn run(command: Command, broker: &BrokerSettings) -> anyhow::Result<u8> {
    match command {
        Command::Print { vhost } => say(serde_json::to_string_pretty(&broker.topology.definitions(&vhost))?),
        Command::Apply => {
            let vhost = broker::check(broker, TopologyMode::Declare).await?;
            say(format_args!("the topology of {} is in place on virtual host {vhost}", broker.topology.names.work));
        }
    }
    Ok(exit::OK)
}
