//! Whether the journal is the one that serves the queue.

use crate::cli::doctor::finding::Finding;
use crate::cli::recover::adopt::marker;
use crate::config::Settings;
use crate::journal::JournalError;
use crate::model::{Marker, Timestamp};
use crate::policy::marker::{Ruling, Standing, explain, rule};

const AREA: &str = "marker";

/// Compares the marker at the broker with the journal. Returns nothing where one of them cannot be read, which other lines say.
pub(super) async fn examine(settings: &Settings) -> Option<Finding> {
    let found = marker(settings).await.ok()?;
    let standing = standing(settings, found.as_ref()).await.ok()?;
    Some(judge(&standing, found.as_ref()))
}

async fn standing(settings: &Settings, found: Option<&Marker>) -> Result<Standing, JournalError> {
    let journal = settings.journal.address.open_existing().await?;
    let standing = journal.claim_standing(found.map(|found| (found.start, found.token.clone()))).await;
    journal.close().await;
    standing
}

fn judge(standing: &Standing, found: Option<&Marker>) -> Finding {
    match rule(standing, found, Timestamp::now()) {
        Ruling::Make => Finding::ok(AREA, "no journal serves the queue yet; the first start leaves its marker"),
        Ruling::MakeAnew => Finding::warn(AREA, "the queue has no marker of the journal that serves it")
            .remedy("start the worker, which makes it anew; make sure that no other journal serves this queue"),
        Ruling::GoOn(found) => Finding::ok(AREA, format!("this journal serves the queue: {found}")),
        Ruling::TakeOver { operator, from } => {
            let what =
                format!("this journal takes the queue over from {from} at its next start, as {operator} asked for");
            Finding::notice(AREA, what)
        }
        Ruling::Refuse(refusal, found) => {
            Finding::fail(AREA, explain(refusal, &standing.journal, found, standing.adoption.as_ref()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Level;
    use crate::model::Adoption;
    use crate::model::marker::tests::marker;

    #[test]
    fn another_journal_is_a_failure_and_a_missing_marker_a_warning() {
        let standing = |knows_start, has_requests, adopted: Option<&Marker>| Standing {
            journal: crate::model::JournalId("ours".to_owned()),
            knows_start,
            has_requests,
            adoption: adopted.map(|marker| Adoption {
                by: "eve".to_owned(),
                at: Timestamp::now(),
                from: marker.marked_start(),
            }),
        };
        let (ours, others) = (marker("ours", 3, "t"), marker("others", 3, "t"));
        for (standing, found, expected) in [
            (standing(false, false, None), None, Level::Ok),
            (standing(false, true, None), None, Level::Warn),
            (standing(true, true, None), Some(&ours), Level::Ok),
            (standing(false, true, None), Some(&ours), Level::Fail),
            (standing(false, true, None), Some(&others), Level::Fail),
            (standing(false, true, Some(&others)), Some(&others), Level::Note),
            (standing(false, true, Some(&ours)), Some(&others), Level::Fail),
        ] {
            assert_eq!(judge(&standing, found).level, expected, "{standing:?} {found:?}");
        }
    }
}
