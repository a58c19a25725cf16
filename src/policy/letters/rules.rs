//! `[[dead.replay]]`: which dead letters the daemon sends back by itself, and when. Whether each is safe is another question.

use std::time::Duration;

use crate::model::{Reason, Timestamp};
use crate::policy::letters::Letter;

#[derive(Debug, Clone)]
pub struct ReplayRules {
    /// Checks of the queue are at least this far apart; the first comes as long after the start.
    pub read_every: Duration,
    pub rules: Vec<ReplayRule>,
}

/// A rule for causes. The first that matches a letter applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayRule {
    class: Option<String>,
    reason: Option<String>,
    /// Requires that a letter has been dead for this long.
    pub after: Duration,
    /// Highest number of replays of a message, manual ones included.
    pub up_to: u32,
}

impl ReplayRule {
    /// Reads a rule. `cause` is CLASS, CLASS.REASON or .REASON.
    pub fn new(cause: &str, after: Duration, up_to: u32) -> Result<Self, &'static str> {
        let part = |part: &str| (!part.is_empty()).then(|| part.to_owned());
        let (class, reason) = cause.split_once('.').unwrap_or((cause, ""));
        let rule = Self { class: part(class), reason: part(reason), after, up_to };
        if rule.class.is_none() && rule.reason.is_none() {
            return Err("expected CLASS, CLASS.REASON or .REASON, such as \"rejected.reverted\"");
        }
        if Reason::all().any(|known| known.needs_person() && rule.reason.as_deref() == Some(known.as_str())) {
            return Err("a person decides about these: nothing sends them back by itself");
        }
        Ok(rule)
    }

    fn fits(&self, letter: &Letter) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        is(&self.class, &letter.class) && is(&self.reason, &letter.reason)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Send it back now, if that is safe.
    Now,
    At(Timestamp),
    Never,
}

/// Decides when a letter goes back. One that does not say since when it is dead stays.
pub fn due(rules: &[ReplayRule], letter: &Letter, now: Timestamp) -> Due {
    if letter.known_reason().is_some_and(|reason| reason.needs_person()) {
        return Due::Never;
    }
    let rule = rules.iter().find(|rule| rule.fits(letter)).filter(|rule| letter.generation.replay < rule.up_to);
    match rule.and_then(|rule| letter.died_at.map(|died_at| died_at.after(rule.after))) {
        Some(at) if at <= now => Due::Now,
        Some(at) => Due::At(at),
        None => Due::Never,
    }
}

/// Decides when to browse the dead-letter queue, since each browse counts as a delivery of every letter: when a letter is known
/// to be due, when their number has changed, and every few hours because some may have replaced others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastLook {
    /// Letters that it left; `None` where it did not reach the end.
    pub letters: Option<u64>,
    /// The time at which the next of them is due.
    pub next: Option<Timestamp>,
    pub at: Timestamp,
}

/// The longest time without a browse.
const AT_THE_LATEST: Duration = Duration::from_secs(6 * 3600);

impl LastLook {
    /// Returns whether another browse is due, with this many letters in the queue.
    pub fn is_over(&self, letters: u64, now: Timestamp) -> bool {
        letters > 0
            && (self.letters != Some(letters)
                || self.next.is_some_and(|next| next <= now)
                || self.at.after(AT_THE_LATEST) <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cause, Generation, Reason};
    use crate::policy::letters::tests::letter;

    const HOUR: Duration = Duration::from_secs(3600);

    fn rule(cause: &str, up_to: u32) -> ReplayRule {
        ReplayRule::new(cause, HOUR, up_to).unwrap()
    }

    #[test]
    fn a_letter_is_due_by_its_first_rule_after_its_delay_and_up_to_its_count() {
        let reverted = Cause::new(Reason::Reverted, "no");
        let dead = |replay| letter(Some("a"), &reverted, Generation { replay, retry: 5 });
        let (early, late) = (Timestamp(3_599_999), Timestamp(3_600_000));
        for cause in ["rejected", "rejected.reverted", ".reverted"] {
            assert_eq!(due(&[rule(cause, 2)], &dead(0), early), Due::At(late), "{cause}");
            assert_eq!(due(&[rule(cause, 2)], &dead(1), late), Due::Now, "{cause}");
            assert_eq!(due(&[rule(cause, 2)], &dead(2), late), Due::Never, "{cause}");
        }
        for cause in ["invalid", "rejected.panicked", ".panicked"] {
            assert_eq!(due(&[rule(cause, 2)], &dead(0), late), Due::Never, "{cause}");
        }
        assert_eq!(due(&[rule("rejected.reverted", 1), rule("rejected", 9)], &dead(1), late), Due::Never);
        let undated = Letter { died_at: None, ..dead(0) };
        assert_eq!(due(&[rule("rejected", 1)], &undated, late), Due::Never);
    }

    #[test]
    fn what_a_person_decides_about_is_never_due() {
        let now = Timestamp(i64::MAX);
        for cause in [Cause::new(Reason::MaybeWritten, ""), Cause::new(Reason::Cancelled, "")] {
            let letter = letter(Some("a"), &cause, Generation::default());
            assert_eq!(due(&[rule("invalid", 9), rule("rejected", 9)], &letter, now), Due::Never, "{cause}");
            for named in [cause.routing_key(), format!(".{}", cause.reason)] {
                assert!(ReplayRule::new(&named, HOUR, 1).is_err(), "{named}");
            }
        }
        assert!(ReplayRule::new("", HOUR, 1).is_err());
    }

    #[test]
    fn a_look_is_worth_it_when_something_is_due_or_has_changed_or_long_ago() {
        let last = LastLook { letters: Some(3), next: Some(Timestamp(100)), at: Timestamp(0) };
        assert!(!last.is_over(3, Timestamp(99)));
        assert!(last.is_over(3, Timestamp(100)));
        assert!(last.is_over(4, Timestamp(1)) && last.is_over(2, Timestamp(1)));
        assert!(!last.is_over(0, Timestamp(i64::MAX)), "nothing is there");
        let quiet = LastLook { next: None, ..last };
        assert!(!quiet.is_over(3, Timestamp(6 * 3_600_000 - 1)) && quiet.is_over(3, Timestamp(6 * 3_600_000)));
        assert!(LastLook::default().is_over(1, Timestamp(0)));
    }
}
