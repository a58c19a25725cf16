//! `--wait`: what becomes of requests that were sent back, as the journal has it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::dead::session::LetterSession;
use crate::cli::dead::{plain, print};
use crate::cli::{exit, progress_bar};
use crate::model::{RequestId, RequestState};

/// Interval between reads of the journal.
const CHECK: Duration = Duration::from_millis(500);

pub(super) struct Awaited {
    pub(super) id: RequestId,
    pub(super) replay: u32,
}

/// Reports how each ends. Returns an exit code where not all were written in time.
pub(super) async fn wait(
    session: &LetterSession,
    mut awaited: Vec<Awaited>,
    limit: Duration,
    json: bool,
) -> anyhow::Result<Option<u8>> {
    let began = Instant::now();
    let progress = progress_bar(awaited.len() as u64, "waiting");
    let mut died = false;
    while !awaited.is_empty() && began.elapsed() < limit {
        tokio::time::sleep(CHECK).await;
        let ids = awaited.iter().map(|awaited| awaited.id.clone()).collect();
        for (id, known) in session.journal.standings(ids).await? {
            let is_this_one = |awaited: &Awaited| awaited.id == id && known.generation.replay >= awaited.replay;
            let has_ended = matches!(known.state, RequestState::Final | RequestState::Dead);
            if has_ended && awaited.iter().any(is_this_one) {
                awaited.retain(|awaited| awaited.id != id);
                let text = if known.state == RequestState::Final {
                    "final: written once".to_owned()
                } else {
                    died = true;
                    let history = session.journal.history(&id).await?;
                    let cause = history.and_then(|history| history.failure).unwrap_or_default();
                    format!("a dead letter again: {}", plain(&cause))
                };
                progress.suspend(|| print_end(&id, known.state.as_str(), &text, json));
                progress.inc(1);
            }
        }
    }
    progress.finish_and_clear();
    for Awaited { id, .. } in &awaited {
        let state = session.state_of(id).await?;
        let word = state.map_or("not taken in", RequestState::as_str);
        let text = format!(
            "{word} after {}; the time is over, `chainwriter status` shows more",
            humantime::format_duration(limit)
        );
        print_end(id, word, &text, json);
    }
    Ok(match (awaited.is_empty(), died) {
        (false, _) => Some(exit::STILL_OPEN),
        (true, true) => Some(exit::NOT_ALL),
        (true, false) => None,
    })
}

fn print_end(id: &RequestId, state: &str, text: &str, json: bool) {
    print(
        json,
        || json!({ "id": id, "state": state, "explained": text }),
        || format!("{}: {text}", plain(id.as_str())),
    );
}
