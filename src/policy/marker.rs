//! Which journal may serve a queue: what a starting instance does with the marker that it finds at the broker.

use std::fmt::Display;
use std::time::Duration;

use crate::model::Timestamp;
use crate::model::marker::{Adoption, JournalId, Marker};

/// An adoption counts for so long. It is made just before a start, and a copy of the journal may keep it.
const ADOPTION: Duration = Duration::from_secs(24 * 3600);

/// Holds what the journal knows when a marker was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub journal: JournalId,
    /// Whether the marker's start is one that this journal has counted. False without a marker.
    pub knows_start: bool,
    /// It is no new journal.
    pub has_requests: bool,
    pub adoption: Option<Adoption>,
}

/// Says what to do about the marker.
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
///
/// An adoption is for one marker: the journal and the start that the operator saw. If another start has left its marker since,
/// the operator does not know of that.
pub fn rule<'m>(standing: &Standing, found: Option<&'m Marker>, now: Timestamp) -> Ruling<'m> {
    let Some(found) = found else {
        return if standing.has_requests { Ruling::MakeAnew } else { Ruling::Make };
    };
    let is_same = found.journal == standing.journal;
    if is_same && standing.knows_start {
        return Ruling::GoOn(found);
    }
    if let Some(adoption) = standing.adoption.as_ref().filter(|adoption| adoption.is_for(found, now)) {
        return Ruling::TakeOver { operator: adoption.by.clone(), from: found };
    }
    Ruling::Refuse(if is_same { Refusal::OlderCopy } else { Refusal::AnotherJournal }, found)
}

impl Adoption {
    /// Returns whether it is for this marker, and counts still. A clock that was set back makes it no younger than a day.
    fn is_for(&self, found: &Marker, now: Timestamp) -> bool {
        let age = now.0.abs_diff(self.at.0);
        self.from == found.marked_start() && u128::from(age) <= ADOPTION.as_millis()
    }

    fn explain(&self) -> String {
        let Self { by, at, from } = self;
        format!(
            ". {by} let it take the queue over at {at}: from start {} of journal {}, and for {} hours",
            from.number,
            from.journal.0,
            ADOPTION.as_secs() / 3600
        )
    }
}

/// Returns the marker that counts. A crash between a marker and the end of the one before it leaves both, the older first;
/// of one journal the newest start counts, however they lie.
pub fn newest(found: &[Marker]) -> Option<&Marker> {
    let last = found.last()?;
    found.iter().filter(|marker| marker.journal == last.journal).max_by_key(|marker| marker.start)
}

/// Says why this journal is refused, with both journals, and what to do. An adoption that does not count is named.
pub fn explain(refusal: Refusal, own: &impl Display, found: &Marker, adoption: Option<&Adoption>) -> String {
    let why = match refusal {
        Refusal::OlderCopy => format!(
            "this journal ({own}) is an older copy: the queue was served last by {found}, a start that this copy does not \
             know. Use the newest copy; if it is lost, `chainwriter recover` brings this one up to date"
        ),
        Refusal::AnotherJournal => format!(
            "this journal ({own}) is not the one that serves this queue: that is {found}. Correct journal.url or \
             broker.queue; if the other journal is lost, see `chainwriter recover`; if the queue was moved to this one on \
             purpose, `chainwriter recover --adopt`"
        ),
    };
    why + &adoption.map(Adoption::explain).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::marker::tests::marker;
    use crate::model::{Start, StartToken};

    const NOON: Timestamp = Timestamp(1_700_000_000_000);

    /// An adoption of this marker, so long ago.
    fn adoption(of: &Marker, age: Duration) -> Adoption {
        Adoption { by: "eve@host".to_owned(), at: NOON.before(age), from: of.marked_start() }
    }

    fn standing(knows_start: bool, has_requests: bool, adoption: Option<Adoption>) -> Standing {
        Standing { journal: JournalId("ours".to_owned()), knows_start, has_requests, adoption }
    }

    #[test]
    fn every_row_of_the_table_holds() {
        let (ours, others) = (marker("ours", 3, "t"), marker("others", 3, "t"));
        let (later, third) = (marker("others", 4, "u"), marker("third", 3, "t"));
        let take_over = |from| Ruling::TakeOver { operator: "eve@host".to_owned(), from };
        let older = Ruling::Refuse(Refusal::OlderCopy, &ours);
        let another = Ruling::Refuse(Refusal::AnotherJournal, &others);
        let of = |marker: &Marker| Some(adoption(marker, Duration::from_secs(60)));
        let aged = |marker: &Marker, age| Some(adoption(marker, age));
        let (day, instant) = (Duration::from_secs(86_400), Duration::from_millis(1));
        let mut from_the_future = adoption(&others, Duration::ZERO);
        from_the_future.at = NOON.after(2 * day);
        for has_requests in [false, true] {
            let anew = if has_requests { Ruling::MakeAnew } else { Ruling::Make };
            for (found, knows_start, adopted, expected) in [
                (None, false, None, anew.clone()),
                (None, false, of(&others), anew),
                (Some(&ours), true, None, Ruling::GoOn(&ours)),
                (Some(&ours), true, of(&ours), Ruling::GoOn(&ours)),
                (Some(&ours), false, None, older.clone()),
                (Some(&ours), false, of(&ours), take_over(&ours)),
                (Some(&ours), false, of(&others), older.clone()),
                (Some(&others), false, None, another.clone()),
                (Some(&others), false, of(&others), take_over(&others)),
                // A number and a token that happen to be the same are of another journal all the same.
                (Some(&others), true, None, another.clone()),
                (Some(&others), true, of(&others), take_over(&others)),
                // The adoption is for another marker: its worker has started again, or a third one has come.
                (Some(&later), false, of(&others), Ruling::Refuse(Refusal::AnotherJournal, &later)),
                (Some(&others), false, of(&later), another.clone()),
                (Some(&third), false, of(&others), Ruling::Refuse(Refusal::AnotherJournal, &third)),
                // It counts for a day.
                (Some(&others), false, aged(&others, day), take_over(&others)),
                (Some(&others), false, aged(&others, day + instant), another.clone()),
                (Some(&ours), false, aged(&ours, day + instant), older.clone()),
                (Some(&others), false, Some(from_the_future.clone()), another.clone()),
            ] {
                let row = format!("{found:?} {knows_start} {has_requests} {adopted:?}");
                let ruled = rule(&standing(knows_start, has_requests, adopted), found, NOON);
                assert_eq!(ruled, expected, "{row}");
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
            let text = explain(refusal, &own, &found, None);
            for part in ["ours, start 4", "start 9", "acme/a on one", "chainwriter recover"] {
                assert!(text.contains(part), "{text}");
            }
        }
        let found = marker("others", 9, "x");
        let adopted = adoption(&marker("others", 8, "w"), Duration::ZERO);
        let text = explain(Refusal::AnotherJournal, &own, &found, Some(&adopted));
        assert!(text.ends_with("from start 8 of journal others, and for 24 hours"), "{text}");
    }
}
