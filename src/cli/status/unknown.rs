//! `chainwriter status ID` of a request that the journal does not know: where its message may be, and what keeps it there.

use std::fmt::Write;
use std::time::Duration;

use crate::broker::{QueueDepth, QueueDepths, QueueRole};
use crate::cli::{exit, say, spell};
use crate::config::Settings;
use crate::daemon::status::{self, LaneReport, PauseReport, WorkerReport};
use crate::journal::Hold;
use crate::model::RequestId;
use crate::model::text::{Escaped, counted};

/// Holds what can be seen of a message that no worker has taken in.
struct Whereabouts {
    /// The depth of each queue, or why the broker shows none.
    depths: Result<Vec<QueueDepth>, String>,
    /// Holds what the running worker says, or that there is none; `None`: http.listen is off.
    report: Option<Result<WorkerReport, String>>,
    /// All holds that stand.
    holds: Vec<Hold>,
    retention: Duration,
}

/// Prints where the message of an unknown request may be.
pub(super) async fn run(id: &RequestId, holds: Vec<Hold>, settings: &Settings) -> u8 {
    let report = match settings.http_listen {
        Some(listen) => Some(status::ask(listen).await.map_err(|error| error.to_string())),
        None => None,
    };
    let depths = depths(settings).await;
    say(Whereabouts { depths, report, holds, retention: settings.journal.retention }.text(id));
    exit::NOT_FOUND
}

async fn depths(settings: &Settings) -> Result<Vec<QueueDepth>, String> {
    let queues = QueueDepths::connect(&settings.broker).await.map_err(|error| error.to_string())?;
    let depths = queues.depths().await.map_err(|error| error.to_string());
    queues.close().await;
    depths
}

impl Whereabouts {
    fn text(&self, id: &RequestId) -> String {
        let mut text =
            format!("{}: the journal does not know it. Its message may be in a queue:", Escaped(id.as_str()));
        let mut line = |name: &str, what: &str| {
            // Writing to a text cannot fail.
            let _ = write!(text, "\n  {name:<10} {}", Escaped(what));
        };
        match &self.depths {
            Ok(depths) => in_queues(depths).iter().for_each(|what| line("queue", what)),
            Err(error) => line("queue", &format!("not known: {error}")),
        }
        self.holds.iter().for_each(|hold| line("held", &hold.text()));
        match &self.report {
            Some(Ok(report)) => of_report(report).iter().for_each(|what| line("waits for", what)),
            Some(Err(error)) => line("waits for", error),
            None => {}
        }
        let retention = spell(self.retention);
        line(
            "or",
            "it was never published to this queue, or the broker dropped it: publish it again with the same id and body",
        );
        line(
            "or",
            &format!("it ended more than {retention} ago (journal.retention), and the journal has forgotten it"),
        );
        text
    }
}

/// Says in which queues the message may be.
fn in_queues(depths: &[QueueDepth]) -> Vec<String> {
    let ready = |role: QueueRole| -> u64 {
        depths.iter().filter(|depth| depth.role == role).map(|depth| u64::from(depth.ready)).sum()
    };
    let work = depths.iter().find(|depth| depth.role == QueueRole::Work);
    let mut lines: Vec<_> = work
        .map(|work| match &work.problem {
            Some(problem) => format!("{}: {problem}", work.queue),
            None => format!("{} waiting in {} for a worker", counted(work.ready.into(), "message"), work.queue),
        })
        .into_iter()
        .collect();
    let waiting = ready(QueueRole::Wait);
    if waiting > 0 {
        lines.push(format!("{} waiting for a retry or for their time", counted(waiting, "message")));
    }
    let dead = ready(QueueRole::Dead);
    if dead > 0 {
        lines.push(format!("{} (`chainwriter dead list`)", counted(dead, "dead letter")));
    }
    lines
}

/// Says what keeps the running worker from taking messages.
fn of_report(report: &WorkerReport) -> Vec<String> {
    let mut lines = report.not_ready.clone();
    let is_named =
        |lane: &&LaneReport| report.not_ready.iter().any(|reason| reason.contains(&lane.account.to_string()));
    let paused = |lane: &LaneReport| {
        let PauseReport { reason, detail } = lane.paused.as_ref()?;
        Some(format!("lane {}: paused ({reason}): {detail}", lane.account))
    };
    lines.extend(report.lanes.iter().filter(|lane| !is_named(lane)).filter_map(paused));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(role: QueueRole, ready: u32) -> QueueDepth {
        QueueDepth { queue: "acme.writes".to_owned(), role, ready, consumers: 0, problem: None }
    }

    fn seen(depths: Result<Vec<QueueDepth>, String>, report: Option<Result<WorkerReport, String>>) -> String {
        let holds = Vec::new();
        let whereabouts = Whereabouts { depths, report, holds, retention: Duration::from_secs(86_400) };
        whereabouts.text(&RequestId::new("order-1").unwrap())
    }

    #[test]
    fn an_unknown_request_may_be_in_any_queue() {
        let depths = vec![depth(QueueRole::Work, 3), depth(QueueRole::Wait, 1), depth(QueueRole::Dead, 0)];
        let text = seen(Ok(depths), Some(Err("no running worker answers".to_owned())));
        for part in [
            "order-1: the journal does not know it",
            "3 messages waiting in acme.writes for a worker",
            "1 message waiting for a retry",
            "waits for  no running worker answers",
            "ended more than 1day ago",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains("dead letter"), "{text}");
        let text = seen(Err("cannot connect".to_owned()), None);
        assert!(text.contains("queue      not known: cannot connect") && !text.contains("waits for"), "{text}");
    }

    #[test]
    fn what_keeps_the_worker_from_taking_messages_is_named() {
        let taken: serde_json::Value = serde_json::from_str(include_str!("../../../docs/status.json")).unwrap();
        let mut report: WorkerReport = serde_json::from_value(taken["process"].clone()).unwrap();
        let lane = report.lanes.first_mut().unwrap();
        lane.paused = Some(PauseReport { reason: "node_unreachable".to_owned(), detail: "no answer".to_owned() });
        report.not_ready = vec!["broker away: refused".to_owned()];
        let text = seen(Ok(Vec::new()), Some(Ok(report)));
        let waits: Vec<_> = text.lines().filter(|line| line.contains("waits for")).collect();
        assert!(waits.len() == 2 && waits[0].ends_with("broker away: refused"), "{text}");
        assert!(waits[1].ends_with("paused (node_unreachable): no answer"), "{text}");
    }
}
