//! `chainwriter status [ID]`: one request, or everything.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;

use crate::cli::{exit, say, say_error};
use crate::config::Settings;

mod instances;
mod overview;
#[cfg(test)]
mod picture;
mod request;
mod sheet;
mod watch;

pub(super) use request::explain;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The request's id. Without one: how everything stands, from the journal, the broker and the running worker.
    id: Option<String>,
    /// The instances that share the journal, and which accounts each owns.
    #[arg(long, conflicts_with = "id")]
    instances: bool,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// Show it in the terminal, and keep it up to date, until q is pressed.
    #[arg(long, short, conflicts_with_all = ["id", "json", "instances"])]
    watch: bool,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<ExitCode> {
    let Arguments { id, instances, json, watch } = arguments;
    if let Some(id) = id {
        return request::run(&id, json, settings).await;
    }
    if instances {
        return instances::run(json, settings).await;
    }
    if watch {
        if !std::io::stdout().is_terminal() {
            say_error(&anyhow::anyhow!(
                "--watch needs a terminal; without it `chainwriter status` shows the same once"
            ));
            return Ok(ExitCode::from(exit::USAGE));
        }
        return watch::run(settings).await;
    }
    let mut looker = overview::Observer::new(settings);
    let overview = looker.look().await;
    looker.close().await;
    if json {
        say(serde_json::to_string_pretty(&overview)?);
    } else {
        say(sheet::text(&overview).trim_end());
    }
    Ok(overview.exit_code())
}
