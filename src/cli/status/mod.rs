//! `chainwriter status [ID]`: one request, or everything.

use std::io::IsTerminal;

use clap::Args;

use crate::cli::{exit, print, stop};
use crate::config::Settings;

mod instances;
mod overview;
mod request;
mod sheet;
#[cfg(test)]
mod tests;
mod unknown;
mod waits;
mod watch;

pub(super) use request::{explain, report_unknown};

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

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    let Arguments { id, instances, json, watch } = arguments;
    if let Some(id) = id {
        return request::run(&id, json, settings).await;
    }
    if instances {
        return instances::run(json, settings).await;
    }
    if watch {
        if !std::io::stdout().is_terminal() {
            let advice = "chainwriter: --watch needs a terminal; without it `chainwriter status` shows the same once";
            return Err(stop(exit::USAGE, advice));
        }
        return watch::run(settings).await;
    }
    let mut observer = overview::Observer::new(settings);
    let overview = observer.observe().await;
    observer.close().await;
    print(json, &overview, || sheet::text(&overview))?;
    Ok(overview.exit_code())
}
