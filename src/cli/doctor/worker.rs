//! The running worker, if it can be asked: what keeps its requests from moving.

use crate::chain::EndpointState;
use crate::cli::doctor::finding::Finding;
use crate::config::Settings;
use crate::daemon::status::{self, LaneReport, PauseReport, WorkerReport};
use crate::policy::routes::HEX_TEXT;

const AREA: &str = "worker";

/// Asks the worker behind `http.listen`. Returns nothing where that is off.
pub(super) async fn examine(settings: &Settings) -> Vec<Finding> {
    let Some(listen) = settings.http_listen else { return Vec::new() };
    match status::ask(listen).await {
        Ok(report) if report.worker == settings.worker.full_name() => of_report(&report),
        Ok(report) => vec![Finding::notice(AREA, format!("{listen} is answered by {}", report.worker))],
        Err(_) => vec![Finding::notice(AREA, format!("no worker answers on {listen}, so none says what it waits for"))],
    }
}

fn of_report(report: &WorkerReport) -> Vec<Finding> {
    let mut findings: Vec<_> = report.lanes.iter().flat_map(of_lane).collect();
    if findings.is_empty() {
        let what = format!("no lane pauses, and no request is held up; {}", sizes(report));
        findings.push(Finding::ok(AREA, what));
    }
    if report.hex_bodies > 0 {
        let messages = if report.hex_bodies == 1 {
            "a message has".to_owned()
        } else {
            format!("{} messages have", report.hex_bodies)
        };
        let what = format!("{messages} come whose body {HEX_TEXT}");
        findings.push(Finding::notice(AREA, what).remedy("`chainwriter route FILE` shows what becomes of a body"));
    }
    findings.extend(report.endpoints.iter().filter_map(of_endpoint));
    findings
}

/// Says what an endpoint gets that has asked for fewer calls, or may get no more.
fn of_endpoint(endpoint: &EndpointState) -> Option<Finding> {
    let calls = endpoint.calls_per_second.as_deref()?;
    let what = format!(
        "{} asks for fewer calls, or is configured to get fewer: it gets {calls} a second; a write needs {} of them, and each new block about 8",
        endpoint.label,
        EndpointState::CALLS_PER_WRITE
    );
    Some(Finding::notice(AREA, what).remedy(
        "if that limits the rate: a larger plan, a higher calls_per_second, another endpoint, a longer chain.poll_interval, or a number as write.gas, which saves the estimate",
    ))
}

/// Says how many transactions and deliveries may be on their way, and what keeps that from being more.
fn sizes(report: &WorkerReport) -> String {
    let windows = report.lanes.iter().filter(|lane| lane.owner);
    let windows =
        windows.map(|lane| format!("window of {} {} (limit: {})", lane.account, lane.window, lane.window_limit));
    let limit = report.broker.prefetch_limit.map_or(String::new(), |limit| format!(" (limit: {limit})"));
    windows.chain([format!("prefetch {}{limit}", report.broker.prefetch)]).collect::<Vec<_>>().join(", ")
}

fn of_lane(lane: &LaneReport) -> Vec<Finding> {
    let account = lane.account;
    let paused = lane.paused.iter().map(|PauseReport { reason, detail }| {
        Finding::warn(AREA, format!("the lane of {account} is paused ({reason}): {detail}"))
            .remedy("docs/reasons.md says what to do")
    });
    // That an operator holds it, the journal's findings say.
    let held = lane.held.iter().map(|held| {
        Finding::warn(AREA, format!("request {} of {account} waits: {}", held.request, held.why))
            .remedy("`chainwriter status ID` has its history; `chainwriter cancel ID` ends it")
    });
    paused.chain(held).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Level;
    use crate::daemon::status::HeldReport;

    #[test]
    fn what_keeps_requests_from_moving_is_named() {
        let mut report: WorkerReport = serde_json::from_value(
            serde_json::from_str::<serde_json::Value>(include_str!("../../../docs/status.json")).unwrap()["process"]
                .clone(),
        )
        .unwrap();
        report.lanes.iter_mut().for_each(|lane| (lane.paused, lane.held) = (None, Vec::new()));
        let quiet = of_report(&report);
        assert!(matches!(quiet.as_slice(), [Finding { level: Level::Ok, .. }]), "{quiet:?}");
        assert!(quiet[0].what.contains("64 (limit: blocks), prefetch 1000 (limit: no lane wants more)"), "{quiet:?}");
        report.hex_bodies = 3;
        let noted = of_report(&report);
        assert!(matches!(noted.as_slice(), [_, Finding { level: Level::Note, .. }]), "{noted:?}");
        assert!(noted[1].what.starts_with("3 messages") && noted[1].what.contains("body_encoding"), "{noted:?}");
        report.hex_bodies = 0;
        let held = HeldReport { request: "order-7".to_owned(), why: "it is not simulated".to_owned() };
        let pause = PauseReport { reason: "insufficient_funds".to_owned(), detail: "0 wei".to_owned() };
        let lane = report.lanes.first_mut().unwrap();
        (lane.paused, lane.held) = (Some(pause), vec![held]);
        let found = of_report(&report);
        assert!(found.iter().all(|finding| finding.level == Level::Warn) && found.len() == 2, "{found:?}");
        assert!(found[0].what.contains("insufficient_funds") && found[1].what.contains("order-7"), "{found:?}");
        report.endpoints.first_mut().unwrap().calls_per_second = Some("18.4".to_owned());
        let found = of_report(&report).pop().unwrap();
        assert!(found.level == Level::Note && found.what.contains("18.4 a second"), "{found:?}");
    }
}
