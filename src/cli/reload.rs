//! `chainwriter reload`: makes a running worker read its configuration again, and reports what came of it. It is the unit's
//! ExecReload, so that `systemctl reload` of a broken file fails.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::cli::{exit, say, stop};
use crate::config::Faults;
use crate::daemon::control;
use crate::daemon::reload::Outcome;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The worker's runtime folder, which systemd makes.
    #[arg(long, env = "RUNTIME_DIRECTORY", value_name = "FOLDER")]
    runtime: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, unit: Option<&str>) -> anyhow::Result<u8> {
    let folder = match (unit, &arguments.runtime) {
        (Some(unit), _) => Path::new("/run/chainwriter").join(unit),
        (None, Some(folder)) => folder.clone(),
        (None, None) => {
            let what = "which worker? name its unit with --unit, or its folder with --runtime; to one that runs without \
                        systemd send SIGHUP";
            return Err(stop(exit::USAGE, what));
        }
    };
    let outcome = control::ask_for_reload(&folder)
        .with_context(|| format!("no worker answers in {}; is it started?", folder.display()))?;
    report(outcome)
}

fn report(Outcome { faults, taken_over, need_restart }: Outcome) -> anyhow::Result<u8> {
    if !faults.is_empty() {
        return Err(Faults(faults).into());
    }
    if taken_over.is_empty() && need_restart.is_empty() {
        say("nothing has changed");
    }
    if !taken_over.is_empty() {
        say(format_args!("taken over: {}", taken_over.join(", ")));
    }
    if !need_restart.is_empty() {
        say(format_args!("waits for a restart: {}", need_restart.join(", ")));
    }
    Ok(exit::OK)
}
