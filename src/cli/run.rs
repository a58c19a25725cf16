//! `chainwriter run`

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use crate::cli::{code_of, exit, logging, stop, text_of};
use crate::config::{self, Settings, Source};
use crate::daemon::app;
use crate::daemon::reload::Reloading;
use crate::daemon::supervisor::say_why;

/// The AMQP library reads header tables by recursion, on a thread of its own. A table nested as deeply as a frame allows
/// would overflow a thread's usual stack and end the process, again after each start. Only what is used of it takes memory.
const DEEP_STACK_BYTES: usize = 256 << 20;
/// The same for our own threads, which turn such tables into other values and drop them.
pub(super) const RUNTIME_STACK_BYTES: usize = 64 << 20;
const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// Starts the program anew in this process with room on its stacks, unless the environment says how much they have.
/// The size can only be set from outside, before the first thread.
pub(super) fn with_deep_stacks() {
    if std::env::var_os(STACK_VARIABLE).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut again = Command::new(program);
    again.args(std::env::args_os().skip(1)).env(STACK_VARIABLE, DEEP_STACK_BYTES.to_string());
    // It returns only where the program cannot be started again: it goes on as it is then.
    let _ = again.exec();
}

pub(super) async fn run(settings: Settings, source: Source) -> anyhow::Result<u8> {
    let (recent, set_log_level) = logging::start(settings.log);
    let load = Arc::new(move || config::load(&source));
    match Box::pin(app::run(settings, recent, Reloading { load, set_log_level })).await {
        Ok(()) => {
            tracing::info!("stopped");
            Ok(exit::OK)
        }
        Err(error) => {
            let why = text_of(&error);
            tracing::error!(error = why, "the daemon ends");
            say_why(&why);
            Err(stop(code_of(&error), ""))
        }
    }
}
