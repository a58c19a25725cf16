//! `chainwriter health`: the running worker's own answer as an exit code, for health checks of containers, which have no other
//! program to ask with.

use anyhow::Context;
use clap::Args;

use crate::cli::{exit, say, stop};
use crate::config::Settings;
use crate::daemon::status;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also whether it takes messages now, as /readyz says; without it only whether it works, as /livez.
    #[arg(long)]
    ready: bool,
}

pub(super) async fn run(arguments: &Arguments, settings: &Settings) -> anyhow::Result<u8> {
    let Some(listen) = settings.http_listen else {
        return Err(stop(exit::USAGE, "http.listen is \"\": the worker answers nowhere; set an address and a port"));
    };
    let asked = status::ask(listen).await.with_context(|| format!("no worker answers at {listen}"));
    let report = asked.map_err(|error| stop(exit::UNAVAILABLE, crate::cli::text_of(&error)))?;
    let stuck = report.stuck.iter().map(|stage| format!("{stage} stands still"));
    let not_ready = report.not_ready.iter().filter(|_| arguments.ready).cloned();
    let reasons: Vec<_> = stuck.chain(not_ready).collect();
    if reasons.is_empty() {
        say("ok");
        return Ok(exit::OK);
    }
    Err(stop(exit::UNAVAILABLE, reasons.join("; ")))
}
