//! Which journal may serve a queue: what a starting instance does with the marker that it finds at the broker.

use std::fmt::Display;

use crate::model::marker::{JournalId, Marker};

/// What the journal knows when a marker was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub journal: JournalId,
    /// Whether the marker's start is one that this journal has counted. False without a marker.
    pub knows_start: bool,
    /// It is no new journal.
    pub has_requests: bool,
    /// The operator who lets it take the queue over from whichever journal serves it.
    pub adopted_by: Option<String>,
}

/// What to do about the marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling<'m> {
    /// Nothing has served the queue yet: leave the first marker.
    Make,
    /// The marker is lost, or the queue was served by a version without one: leave it anew, with a warning.
    MakeAnew,
    /// This journal serves the queue. The newer of the two starts is left.
    GoOn(&'m Marker),
    /// An operator moved the queue to this journal.
    TakeOver {
        operator: String,
        from: &'m Marker,
    },
    Refuse(Refusal, &'m Marker),
}

/// Why this journal may not serve the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The same journal has counted a start that this copy does not know.
    OlderCopy,
    AnotherJournal,
}

/// Rules on the marker that was found, or on its absence.
///
/// What counts is whether this journal has counted the marker's start, not how many it has counted: two copies that go on
/// from the same point count alike, and their starts differ.
pub fn rule<'m>(standing: &Standing, found: Option<&'m Marker>) -> Ruling<'m> {
    let Some(found) = found else {
        return if standing.has_requests { Ruling::MakeAnew } else { Ruling::Make };
    };
    let is_same = found.journal == standing.journal;
    if is_same && standing.knows_start {
        return Ruling::GoOn(found);
    }
    if let Some(operator) = standing.adopted_by.clone() {
        return Ruling::TakeOver { operator, from: found };
    }
    Ruling::Refuse(if is_same { Refusal::OlderCopy } else { Refusal::AnotherJournal }, found)
}

/// Returns the marker that counts. A crash between a marker and the end of the one before it leaves both, the older first;
/// of one journal the newest start counts, however they lie.
pub fn newest(found: &[Marker]) -> Option<&Marker> {
    let last = found.last()?;
    found.iter().filter(|marker| marker.journal == last.journal).max_by_key(|marker| marker.start)
}

/// Says why this journal is refused, with both journals, and what to do.
pub fn explain(refusal: Refusal, own: &impl Display, found: &Marker) -> String {
    match refusal {
        Refusal::OlderCopy => format!(
            "this journal ({own}) is an older copy: the queue was served last by {found}, a start that this copy does not \
             know. Use the newest copy; if it is lost, `chainwriter recover` brings this one up to date"
        ),
        Refusal::AnotherJournal => format!(
            "this journal ({own}) is not the one that serves this queue: that is {found}. Correct journal.url or \
             broker.queue; if the other journal is lost, see `chainwriter recover`; if the queue was moved to this one on \
             purpose, `chainwriter recover --adopt`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::marker::tests::marker;
    use crate::model::{Start, StartToken};

    fn standing(knows_start: bool, has_requests: bool, adopted: bool) -> Standing {
        let adopted_by = adopted.then(|| "eve@host".to_owned());
        Standing { journal: JournalId("ours".to_owned()), knows_start, has_requests, adopted_by }
    }

    #[test]
    fn every_row_of_the_table_holds() {
        let (ours, others) = (marker("ours", 3, "t"), marker("others", 3, "t"));
        let take_over = |from| Ruling::TakeOver { operator: "eve@host".to_owned(), from };
        let older = Ruling::Refuse(Refusal::OlderCopy, &ours);
        let another = Ruling::Refuse(Refusal::AnotherJournal, &others);
        for has_requests in [false, true] {
            let anew = if has_requests { Ruling::MakeAnew } else { Ruling::Make };
            for (found, knows_start, adopted, expected) in [
                (None, false, false, anew.clone()),
                (None, false, true, anew),
                (Some(&ours), true, false, Ruling::GoOn(&ours)),
                (Some(&ours), true, true, Ruling::GoOn(&ours)),
                (Some(&ours), false, false, older.clone()),
                (Some(&ours), false, true, take_over(&ours)),
                (Some(&others), false, false, another.clone()),
                (Some(&others), false, true, take_over(&others)),
                // A number and a token that happen to be the same are of another journal all the same.
                (Some(&others), true, false, another.clone()),
                (Some(&others), true, true, take_over(&others)),
            ] {
                let ruled = rule(&standing(knows_start, has_requests, adopted), found);
                assert_eq!(ruled, expected, "{found:?} {knows_start} {has_requests} {adopted}");
            }
        }
    }

    #[test]
    fn of_several_markers_the_last_journal_and_its_newest_start_count() {
        let [one, two, other] = [marker("ours", 1, "a"), marker("ours", 2, "b"), marker("others", 9, "c")];
        assert_eq!(newest(&[]), None);
        assert_eq!(newest(&[one.clone(), two.clone()]), Some(&two));
        assert_eq!(newest(&[two.clone(), one.clone()]), Some(&two), "they came back in another order");
        assert_eq!(newest(&[other.clone(), one.clone()]), Some(&one), "the journal was adopted");
        assert_eq!(newest(&[two, other.clone()]), Some(&other));
    }

    #[test]
    fn a_refusal_names_both_journals_and_what_to_do() {
        let own = Start { journal: JournalId("ours".to_owned()), number: 4, token: StartToken("t".to_owned()) };
        for (refusal, found) in
            [(Refusal::OlderCopy, marker("ours", 9, "x")), (Refusal::AnotherJournal, marker("others", 9, "x"))]
        {
            let text = explain(refusal, &own, &found);
            for part in ["ours, start 4", "start 9", "acme/a on one", "chainwriter recover"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}
