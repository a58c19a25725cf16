//! `chainwriter run`

use std::process::ExitCode;

use crate::app;
use crate::cli::{log, text_of};
use crate::config::Settings;

pub(super) async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    log::start(settings.log);
    match app::run(settings).await {
        Ok(()) => {
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            tracing::error!(error = text_of(&error), "the daemon ends");
            Err(error)
        }
    }
}
