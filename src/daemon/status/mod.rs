//! The daemon's own status while it runs: a report of how everything stands, health, metrics, and HTTP to ask for
//! them. All of it only reads: nothing that it does or fails to do changes what the stages do.

mod ask;
mod gauges;
mod http;
mod line;
mod observer;
mod recent;
mod report;
mod requests;

pub use ask::ask;
pub use http::serve;
pub use line::status_line;
pub use observer::{LaneView, Observer, Sources};
pub use recent::{RecentLine, RecentLines};
#[cfg(test)]
pub use report::HeldReport;
pub use report::{LaneReport, PauseReport, Retiring, WorkerReport, wei};
pub use requests::RequestPages;
