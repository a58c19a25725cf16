//! That the judge finds what is wrong, in histories made by hand.

use super::*;

fn message(id: &str, kind: Kind) -> Message {
    let text = format!(r#"{{"id":"{id}","kind":"{kind:?}"}}"#);
    Message { id: (kind != Kind::NoId).then(|| id.to_owned()), body: text.into_bytes(), kind }
}

fn written(message: &Message, nonce: u64) -> ChainTransaction {
    let (hash, calldata) = (format!("0x{nonce}"), message.body.clone());
    ChainTransaction { hash, nonce, calldata, target: Target::Contract, succeeded: true }
}

fn told(id: &str, nonce: u64) -> FinalEvent {
    FinalEvent { event_id: format!("event-{id}"), request_id: id.to_owned(), tx_hash: format!("0x{nonce}") }
}

fn letter(message: &Message, key: &str) -> DeadLetter {
    DeadLetter { id: message.id.clone(), body: message.body.clone(), key: key.to_owned() }
}

/// Two writes, one of them after a revert and a cancelled nonce; one of each kind of dead letter.
fn good() -> History {
    let write = message("a", Kind::Write);
    let later = message("b", Kind::Later);
    let never = message("c", Kind::Never);
    let other = message("a", Kind::OtherBody);
    let no_id = message("d", Kind::NoId);
    let too_large = message("e", Kind::TooLarge);
    let reverted = ChainTransaction { succeeded: false, ..written(&later, 1) };
    let cancelled = ChainTransaction { calldata: Vec::new(), target: Target::Itself, ..written(&later, 2) };
    History {
        chain: vec![written(&write, 0), reverted, cancelled, written(&later, 3)],
        next_nonce: 4,
        dead: vec![
            letter(&never, "rejected.reverted"),
            letter(&never, "rejected.reverted"),
            letter(&other, CONFLICT),
            letter(&no_id, "invalid.missing_id"),
            letter(&too_large, "invalid.too_large"),
        ],
        finals: vec![told("a", 0), told("b", 3), told("b", 3)],
        published: vec![write, later, never, other, no_id, too_large],
    }
}

/// What is found after this was done to the good history; everything that is not looked at must be clean.
fn after(change: impl FnOnce(&mut History)) -> Findings {
    let mut history = good();
    change(&mut history);
    check(&history)
}

fn is_clean(findings: &Findings) -> bool {
    let Findings { lost, twice, nonce_gaps, wrong, .. } = findings;
    lost.is_empty() && twice.is_empty() && nonce_gaps.is_empty() && wrong.is_empty()
}

#[test]
fn a_good_history_is_clean() {
    let findings = check(&good());
    assert!(is_clean(&findings), "{findings:?}");
    let Findings { written, dead, reverted, cancelled, .. } = findings;
    assert_eq!((written, dead, reverted, cancelled), (2, 4, 1, 1));
}

#[test]
fn a_message_that_is_nowhere_is_lost() {
    let findings = after(|history| history.dead.retain(|letter| !letter.key.starts_with("rejected")));
    assert_eq!(findings.lost, ["c"]);
    let findings = after(|history| history.published.push(message("f", Kind::Write)));
    assert_eq!(findings.lost, ["f"]);
    let findings = after(|history| history.dead.retain(|letter| letter.id.is_some()));
    assert_eq!(findings.lost.len(), 1);
    let findings = after(|history| history.dead.retain(|letter| letter.key != CONFLICT));
    assert_eq!(findings.lost, ["a"], "the message with the other body must be somewhere too");
}

#[test]
fn a_write_that_only_reverted_is_lost() {
    let findings = after(|history| {
        history.chain[0].succeeded = false;
        history.finals.remove(0);
    });
    assert_eq!(findings.lost, ["a"]);
}

#[test]
fn an_id_that_is_refused_with_every_body_is_lost() {
    let findings = after(|history| {
        let write = history.published[0].clone();
        history.dead.push(letter(&write, CONFLICT));
        history.chain[0].succeeded = false;
        history.finals.remove(0);
    });
    assert_eq!(findings.lost, ["a (refused with every body)"]);
}

#[test]
fn a_second_effect_is_found() {
    let findings = after(|history| {
        let again = written(&history.published[0], 4);
        history.chain.push(again);
        history.next_nonce = 5;
    });
    assert_eq!(findings.twice.len(), 1);
    assert!(findings.twice[0].starts_with("a (in the chain as [\"0x0\", \"0x4\"]"));
}

#[test]
fn an_effect_of_each_of_two_bodies_is_found() {
    let findings = after(|history| {
        history.dead.retain(|letter| letter.key != CONFLICT);
        let other = written(&history.published[3], 4);
        history.chain.push(other);
        history.next_nonce = 5;
    });
    assert_eq!(findings.twice, ["a (with 2 bodies)"]);
}

#[test]
fn a_dead_letter_that_was_written_is_found() {
    let findings = after(|history| {
        let dead = letter(&history.published[1], "rejected.reverted");
        history.dead.push(dead);
    });
    assert_eq!(findings.twice.len(), 1);
    assert!(findings.twice[0].starts_with("b "));
}

#[test]
fn a_gap_in_the_nonces_is_found() {
    let findings = after(|history| _ = history.chain.remove(1));
    assert_eq!(findings.nonce_gaps, [1]);
    let findings = after(|history| history.next_nonce = 6);
    assert_eq!(findings.nonce_gaps, [4, 5]);
}

#[test]
fn events_that_do_not_tell_what_the_chain_says_are_found() {
    let missing = after(|history| _ = history.finals.remove(0));
    let other_transaction = after(|history| history.finals[0].tx_hash = "0x3".to_owned());
    let two_events = after(|history| {
        history.finals.push(FinalEvent { event_id: "another".to_owned(), ..told("a", 0) });
    });
    let of_nothing = after(|history| history.finals.push(told("z", 9)));
    for findings in [missing, other_transaction, two_events, of_nothing] {
        assert_eq!(findings.wrong.len(), 1, "{findings:?}");
    }
}

#[test]
fn what_nobody_published_is_found() {
    let on_chain = after(|history| {
        let strange = written(&message("z", Kind::Write), 4);
        history.chain.push(strange);
        history.next_nonce = 5;
    });
    let dead = after(|history| history.dead.push(letter(&message("z", Kind::Never), "rejected.reverted")));
    let with_another_id = after(|history| {
        let dead = letter(&history.published[2], "rejected.reverted");
        history.dead.push(DeadLetter { id: Some("y".to_owned()), ..dead });
    });
    for findings in [on_chain, dead, with_another_id] {
        assert_eq!(findings.wrong.len(), 1, "{findings:?}");
    }
}

#[test]
fn a_message_with_which_nothing_was_wrong_must_not_die() {
    let findings = after(|history| {
        let dead = letter(&history.published[0], "rejected.simulation_failed");
        history.dead.push(dead);
        history.chain[0].succeeded = false;
        history.finals.remove(0);
    });
    assert!(findings.lost.is_empty());
    assert_eq!(findings.wrong.len(), 1, "{findings:?}");
}

/// By somebody else, at the next nonce.
fn foreign(history: &mut History) {
    let nonce = history.next_nonce;
    let calldata = Vec::new();
    let hash = format!("0x{nonce}");
    history.chain.push(ChainTransaction { hash, nonce, calldata, target: Target::Stranger, succeeded: true });
    history.next_nonce += 1;
}

#[test]
fn a_foreign_transaction_uses_a_nonce_and_no_more() {
    let findings = after(foreign);
    assert!(is_clean(&findings), "{findings:?}");
    assert_eq!((findings.foreign, findings.cancelled, findings.written), (1, 1, 2));
}

#[test]
fn what_is_wrong_is_found_beside_foreign_transactions() {
    let lost = after(|history| {
        foreign(history);
        history.published.push(message("f", Kind::Write));
    });
    assert_eq!(lost.lost, ["f"]);
    let twice = after(|history| {
        foreign(history);
        let again = written(&history.published[0], history.next_nonce);
        history.chain.push(again);
    });
    assert_eq!(twice.twice.len(), 1);
    let gap = after(|history| {
        history.next_nonce += 1;
        foreign(history);
    });
    assert_eq!(gap.nonce_gaps, [4]);
    let to_nobody_known = after(|history| {
        foreign(history);
        history.chain[4].target = Target::Unknown;
    });
    assert_eq!((to_nobody_known.wrong.len(), to_nobody_known.foreign), (1, 0));
}
