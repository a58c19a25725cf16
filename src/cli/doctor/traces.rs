//! Traces: whether the collector takes spans.

use crate::cli::doctor::finding::Finding;
use crate::config::Settings;
use crate::observe::exporter::Exporter;

const AREA: &str = "traces";

/// Returns nothing where spans are not exported.
pub(super) async fn examine(settings: &Settings) -> Option<Finding> {
    let exporter = match Exporter::new(&settings.traces.as_ref()?.exporter) {
        Ok(exporter) => exporter,
        Err(error) => return Some(Finding::fail(AREA, error.to_string())),
    };
    Some(match exporter.probe().await {
        Ok(()) => Finding::ok(AREA, format!("{} takes spans", exporter.collector())),
        Err(error) => Finding::warn(AREA, error.to_string()).remedy(
            "see traces.endpoint, and OTEL_EXPORTER_OTLP_HEADERS if it wants a key; everything else works without it",
        ),
    })
}
