//! Reports of the program about itself: metrics and traces.

#[cfg(feature = "otlp")]
pub mod exporter;
pub mod metrics;
pub mod traces;
