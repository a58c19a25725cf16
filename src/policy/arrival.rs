//! Decides about a delivery, given what the journal says of its request: the table of the design, one arm for each row.

use crate::model::headers::header;
use crate::model::words::words;
use crate::model::{BodyHash, Generation, HeaderValue, Message, RequestState};

/// A delivery that the broker took back this often may have ended its consumers. Well below 20, the delivery limit of
/// RabbitMQ 4 unless configured; above what restarts of a broker do to a message within its time with us.
const RETURNS_OF_A_SUSPECT: i64 = 5;

/// Returns whether it may be this message that ends the processes which get it. The broker counts a crash for
/// everything that was unacked, so most suspects are neighbours.
pub fn is_suspect(message: &Message) -> bool {
    matches!(message.headers.get(header::DELIVERY_COUNT), Some(HeaderValue::Int(count)) if *count >= RETURNS_OF_A_SUSPECT)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub state: RequestState,
    /// The copy that it stands at: while a retry is pending or waiting, that retry; else the copy accepted last.
    pub generation: Generation,
    pub body_hash: BodyHash,
}

words!(
    /// Says what to do with the delivery; its metric has the same word.
    Verdict {
        /// A request to work on: admit it.
        Accept = "accepted",
        /// A second copy of an open request: ack it when that settles.
        Join = "joined",
        /// A copy whose successor has no publisher confirm yet: ack it when it has.
        AwaitConfirm = "awaits_confirm",
        /// The request is final: ack.
        Duplicate = "duplicate",
        /// A newer copy, or its dead letter, is safe at the broker: ack.
        Stale = "stale",
        /// Another body under a known id: dead-letter it.
        Conflict = "conflict",
        /// No request yet, and no route makes it one: dead-letter it.
        Unroutable = "refused",
    }
);

/// Decides about a delivery of copy `generation` with this body. What was taken in before needs no route any more: what it
/// asks for is stored.
pub fn decide(known: Option<&Known>, generation: Generation, body_hash: BodyHash, is_routed: bool) -> Verdict {
    let new = if is_routed { Verdict::Accept } else { Verdict::Unroutable };
    let Some(known) = known else { return new };
    let is_replay = generation.replay > known.generation.replay;
    let is_older = generation < known.generation;
    let same_body = known.body_hash == body_hash;
    match known.state {
        // An edited dead letter may come back under its id: nothing of it can land any more.
        RequestState::Dead | RequestState::DeadPending if is_replay => new,
        _ if !same_body => Verdict::Conflict,
        RequestState::Accepted | RequestState::Writing => Verdict::Join,
        RequestState::Final => Verdict::Duplicate,
        RequestState::RetryWaiting if is_older => Verdict::Stale,
        RequestState::RetryPending if is_older => Verdict::AwaitConfirm,
        RequestState::RetryWaiting | RequestState::RetryPending if is_replay => new,
        RequestState::RetryWaiting | RequestState::RetryPending => Verdict::Accept,
        RequestState::Dead => Verdict::Stale,
        RequestState::DeadPending => Verdict::AwaitConfirm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RequestState as S;

    fn at(replay: u32, retry: u32) -> Generation {
        Generation { replay, retry }
    }

    fn known(state: RequestState, generation: Generation) -> Known {
        Known { state, generation, body_hash: BodyHash::of(b"body") }
    }

    #[test]
    fn every_row_of_the_table_holds() {
        let rows = [
            ("open", known(S::Accepted, at(0, 0)), at(0, 0), Verdict::Join),
            ("open with a transaction", known(S::Writing, at(0, 1)), at(0, 0), Verdict::Join),
            ("final", known(S::Final, at(0, 0)), at(0, 0), Verdict::Duplicate),
            ("final, replayed", known(S::Final, at(0, 0)), at(1, 0), Verdict::Duplicate),
            ("retry n waits, this is n", known(S::RetryWaiting, at(0, 2)), at(0, 2), Verdict::Accept),
            ("retry n not confirmed, this is n", known(S::RetryPending, at(0, 2)), at(0, 2), Verdict::Accept),
            ("retry n waits, older", known(S::RetryWaiting, at(0, 2)), at(0, 1), Verdict::Stale),
            ("retry n not confirmed, older", known(S::RetryPending, at(0, 2)), at(0, 1), Verdict::AwaitConfirm),
            ("retry waits, replayed", known(S::RetryWaiting, at(0, 2)), at(1, 0), Verdict::Accept),
            ("dead, replayed", known(S::Dead, at(0, 5)), at(1, 0), Verdict::Accept),
            ("dead again, same replay", known(S::Dead, at(1, 5)), at(1, 0), Verdict::Stale),
            ("dead, not a replay", known(S::Dead, at(0, 5)), at(0, 0), Verdict::Stale),
            ("dead not confirmed, not a replay", known(S::DeadPending, at(0, 5)), at(0, 5), Verdict::AwaitConfirm),
            ("dead not confirmed, replayed", known(S::DeadPending, at(0, 5)), at(1, 0), Verdict::Accept),
        ];
        for (name, known, generation, verdict) in rows {
            assert_eq!(decide(Some(&known), generation, BodyHash::of(b"body"), true), verdict, "{name}");
            let is_new = generation.replay > known.generation.replay && verdict == Verdict::Accept;
            let unrouted = if is_new { Verdict::Unroutable } else { verdict };
            assert_eq!(decide(Some(&known), generation, BodyHash::of(b"body"), false), unrouted, "{name}, no route");
        }
        assert_eq!(decide(None, at(0, 3), BodyHash::of(b"body"), true), Verdict::Accept);
        assert_eq!(decide(None, at(0, 3), BodyHash::of(b"body"), false), Verdict::Unroutable);
    }

    #[test]
    fn another_body_is_a_conflict_unless_a_dead_letter_comes_back() {
        let other = BodyHash::of(b"other");
        for state in S::ALL {
            let dead = matches!(state, S::Dead | S::DeadPending);
            assert_eq!(decide(Some(&known(state, at(0, 1))), at(0, 1), other, true), Verdict::Conflict, "{state}");
            let replayed = decide(Some(&known(state, at(0, 1))), at(1, 0), other, true);
            assert_eq!(replayed, if dead { Verdict::Accept } else { Verdict::Conflict }, "{state}");
        }
    }
}
