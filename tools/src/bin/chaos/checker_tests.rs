//! That the judge finds what is wrong, in histories made by hand.

use super::*;

fn message(id: &str, kind: Kind) -> Message {
    let text = format!(r#"{{"id":"{id}","kind":"{kind:?}"}}"#);
    let number = text.bytes().fold(0_u64, |number, byte| number.wrapping_mul(31) + u64::from(byte));
    Message { id: (kind != Kind::NoId).then(|| id.to_owned()), body: text.into_bytes(), number, kind }
}

fn written(message: &Message, nonce: u64) -> ChainTransaction {
    let (hash, writes) = (format!("0x{nonce}"), vec![Written::Body(message.body.clone())]);
    ChainTransaction { hash, account: 0, nonce, writes, target: Target::Contract, succeeded: true }
}

fn told(id: &str, nonce: u64) -> FinalEvent {
    FinalEvent { event_id: format!("event-{id}"), request_id: id.to_owned(), tx_hash: format!("0x{nonce}") }
}

fn letter(message: &Message, key: &str) -> DeadLetter {
    DeadLetter { id: message.id.clone(), body: message.body.clone(), key: key.to_owned(), replay: 0 }
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
    let cancelled = ChainTransaction { writes: Vec::new(), target: Target::Itself, ..written(&later, 2) };
    History {
        chain: vec![written(&write, 0), reverted, cancelled, written(&later, 3)],
        next_nonces: vec![4, 0],
        dead: vec![
            letter(&never, "rejected.reverted"),
            letter(&never, "rejected.reverted"),
            letter(&other, CONFLICT),
            letter(&no_id, "invalid.missing_id"),
            letter(&too_large, "invalid.too_large"),
        ],
        finals: vec![told("a", 0), told("b", 3), told("b", 3)],
        sent_back: Vec::new(),
        cancellations: HashSet::new(),
        before_restore: 0,
        stay: Vec::new(),
        waits: vec![("a".to_owned(), LONGEST_WAIT)],
        published: vec![write, later, never, other, no_id, too_large],
    }
}

/// Returns the findings after this change of the good history; all unread ones must be empty.
fn after(change: impl FnOnce(&mut History)) -> Findings {
    let mut history = good();
    change(&mut history);
    check(&history)
}

fn is_clean(findings: &Findings) -> bool {
    let Findings { lost, twice, late, nonce_gaps, wrong, .. } = findings;
    [lost, twice, late, wrong].iter().all(|found| found.is_empty()) && nonce_gaps.is_empty()
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
fn in_a_batch_each_message_counts_for_itself() {
    let in_one = |succeeded| {
        after(|history| {
            let write = message("f", Kind::Write);
            let numbers = [history.published[0].number, write.number].map(Written::Number).to_vec();
            history.chain[0] = ChainTransaction { writes: numbers, succeeded, ..history.chain[0].clone() };
            history.finals.push(told("f", 0));
            history.published.push(write);
        })
    };
    let good = in_one(true);
    assert!(is_clean(&good), "{good:?}");
    let failed = in_one(false);
    assert_eq!((failed.lost, failed.reverted), (vec!["a".to_owned(), "f".to_owned()], 2));
    let twice = after(|history| {
        let number = Written::Number(history.published[0].number);
        history.chain[0].writes = vec![number.clone(), number];
    });
    assert_eq!(twice.twice.len(), 1, "twice in one transaction");
}

#[test]
fn a_second_effect_is_found() {
    let findings = after(|history| {
        let again = written(&history.published[0], 4);
        history.chain.push(again);
        history.next_nonces[0] = 5;
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
        history.next_nonces[0] = 5;
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
    assert_eq!(findings.nonce_gaps, [(0, 1)]);
    let findings = after(|history| history.next_nonces[0] = 6);
    assert_eq!(findings.nonce_gaps, [(0, 4), (0, 5)]);
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
        history.next_nonces[0] = 5;
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
    let nonce = history.next_nonces[0];
    let writes = Vec::new();
    let hash = format!("0x{nonce}");
    history.chain.push(ChainTransaction { hash, account: 0, nonce, writes, target: Target::Stranger, succeeded: true });
    history.next_nonces[0] += 1;
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
        let again = written(&history.published[0], history.next_nonces[0]);
        history.chain.push(again);
    });
    assert_eq!(twice.twice.len(), 1);
    let gap = after(|history| {
        history.next_nonces[0] += 1;
        foreign(history);
    });
    assert_eq!(gap.nonce_gaps, [(0, 4)]);
    let to_nobody_known = after(|history| {
        foreign(history);
        history.chain[4].target = Target::Unknown;
    });
    assert_eq!((to_nobody_known.wrong.len(), to_nobody_known.foreign), (1, 0));
}

fn sent_back(message: &Message, replay: i64, is_confirmed: bool) -> SentBack {
    SentBack { body: message.body.clone(), replay, is_confirmed }
}

/// The dead letter of "c" was sent back; what became of it is up to the test. One copy of the old letter was not taken.
fn replayed(history: &mut History, is_confirmed: bool) {
    let never = history.published[2].clone();
    history.dead.remove(0);
    history.sent_back.push(sent_back(&never, 1, false));
    if is_confirmed {
        history.sent_back.push(sent_back(&never, 1, true));
    }
}

/// The request could be written the second time.
fn written_then(history: &mut History) {
    history.published[2].kind = Kind::Later;
    let again = written(&history.published[2], 4);
    history.chain.push(again);
    history.finals.push(told("c", 4));
    history.next_nonces[0] = 5;
}

#[test]
fn a_dead_letter_that_was_sent_back_may_be_written_and_leave_an_older_copy() {
    for is_confirmed in [true, false] {
        let findings = after(|history| {
            replayed(history, is_confirmed);
            written_then(history);
        });
        assert!(is_clean(&findings), "{findings:?}");
        assert_eq!(findings.written, 3);
    }
}

#[test]
fn a_dead_letter_that_was_sent_back_may_die_again() {
    for is_confirmed in [true, false] {
        let findings = after(|history| {
            replayed(history, is_confirmed);
            let dead = letter(&history.published[2], "rejected.reverted");
            history.dead.push(DeadLetter { replay: 1, ..dead });
        });
        assert!(is_clean(&findings), "{findings:?}");
    }
}

#[test]
fn a_message_that_was_sent_back_and_is_nowhere_is_lost() {
    let findings = after(|history| replayed(history, true));
    assert_eq!(findings.lost, ["c"], "an older copy of the dead letter is no proof");
    let findings = after(|history| replayed(history, false));
    assert!(is_clean(&findings), "it may not have arrived: {findings:?}");
    let findings = after(|history| {
        replayed(history, false);
        history.dead.retain(|letter| !letter.key.starts_with("rejected"));
    });
    assert_eq!(findings.lost, ["c"]);
}

#[test]
fn a_second_effect_of_what_was_sent_back_is_found() {
    let findings = after(|history| {
        replayed(history, true);
        written_then(history);
        let again = written(&history.published[2], 5);
        history.chain.push(again);
    });
    assert_eq!(findings.twice.len(), 1, "{findings:?}");
    let dead_and_written = after(|history| {
        replayed(history, true);
        written_then(history);
        let dead = letter(&history.published[2], "rejected.reverted");
        history.dead.push(DeadLetter { replay: 1, ..dead });
    });
    assert_eq!(dead_and_written.twice.len(), 1, "{dead_and_written:?}");
}

#[test]
fn a_replay_count_that_nobody_gave_is_found() {
    let findings = after(|history| history.dead[0].replay = 1);
    assert_eq!(findings.wrong.len(), 1, "{findings:?}");
}

#[test]
fn only_in_a_restored_copy_a_cancelled_request_fails_in_another_way_too() {
    let failed_twice = |before| {
        after(|history| {
            let dead = letter(&history.published[2], CANCELLED);
            history.cancellations.insert("c".to_owned());
            history.dead.push(dead);
            history.before_restore = before;
        })
    };
    let (restored, not_restored) = (failed_twice(6), failed_twice(0));
    assert!(is_clean(&restored), "{restored:?}");
    assert_eq!(not_restored.wrong.len(), 1);
}

/// "a" was cancelled in place of written.
fn cancelled(history: &mut History) {
    let dead = letter(&history.published[0], CANCELLED);
    history.dead.push(dead);
    history.chain[0] = ChainTransaction { target: Target::Itself, ..history.chain[0].clone() };
    history.finals.remove(0);
}

fn cancel(history: &mut History, id: &str) {
    history.cancellations.insert(id.to_owned());
}

#[test]
fn what_was_to_be_cancelled_ends_as_written_or_as_cancelled() {
    let written = after(|history| cancel(history, "a"));
    let cancelled = after(|history| {
        cancel(history, "a");
        cancelled(history);
    });
    assert!(is_clean(&written) && is_clean(&cancelled), "{written:?} {cancelled:?}");
    assert_eq!((cancelled.written, cancelled.cancelled), (1, 2));
}

#[test]
fn a_cancellation_that_nobody_asked_for_is_found() {
    for id in ["b", "c"] {
        let findings = after(|history| {
            cancel(history, id);
            cancelled(history);
        });
        assert_eq!(findings.wrong.len(), 1, "{findings:?}");
    }
    let of_what_may_die_otherwise = after(|history| {
        for letter in history.dead.iter_mut().filter(|letter| letter.id.as_deref() == Some("c")) {
            letter.key = CANCELLED.to_owned();
        }
    });
    assert_eq!(of_what_may_die_otherwise.wrong.len(), 1);
}

#[test]
fn a_request_to_cancel_excuses_nothing_else() {
    let twice = after(|history| {
        cancel(history, "a");
        let dead = letter(&history.published[0], CANCELLED);
        history.dead.push(dead);
    });
    assert_eq!(twice.twice.len(), 1, "cancelled and written");
    let lost = after(|history| {
        cancel(history, "a");
        cancelled(history);
        history.dead.pop();
    });
    assert_eq!(lost.lost, ["a"]);
    let dead_otherwise = after(|history| {
        cancel(history, "a");
        cancelled(history);
        history.dead.last_mut().unwrap().key = "rejected.reverted".to_owned();
    });
    assert_eq!(dead_otherwise.wrong.len(), 1);
    let for_two_reasons = after(|history| {
        cancel(history, "c");
        history.dead[0].key = CANCELLED.to_owned();
    });
    assert_eq!(for_two_reasons.wrong.len(), 1);
    let cancelled_and_sent_back = after(|history| {
        cancel(history, "a");
        cancelled(history);
        let write = history.published[0].clone();
        history.sent_back.push(sent_back(&write, 1, true));
    });
    assert_eq!(cancelled_and_sent_back.lost, ["a"]);
}

/// A journal was restored from a copy after so many messages.
fn restored(history: &mut History, before: usize) {
    history.before_restore = before;
}

#[test]
fn what_a_restored_copy_does_not_know_becomes_a_dead_letter_that_says_so() {
    let maybe_written = |before: usize, written: bool| {
        after(|history| {
            restored(history, before);
            let dead = letter(&history.published[0], MAYBE_WRITTEN);
            history.dead.push(dead);
            if !written {
                history.chain[0].succeeded = false;
                history.finals.remove(0);
            }
        })
    };
    let as_promised = maybe_written(1, true);
    assert!(is_clean(&as_promised), "{as_promised:?}");
    assert_eq!((as_promised.maybe_written, as_promised.written), (1, 2));
    assert_eq!(maybe_written(0, true).twice.len(), 1, "no journal was restored since it was published");
    assert_eq!(maybe_written(1, false).wrong.len(), 1, "it is not written, and an operator has to decide that");
    assert_eq!(maybe_written(0, false).wrong.len(), 1);
}

#[test]
fn a_restored_copy_excuses_no_second_effect_and_no_loss() {
    let twice = after(|history| {
        restored(history, 6);
        let dead = letter(&history.published[0], MAYBE_WRITTEN);
        history.dead.push(dead);
        let again = written(&history.published[0], 4);
        history.chain.push(again);
    });
    assert_eq!(twice.twice.len(), 1, "{twice:?}");
    let lost = after(|history| {
        restored(history, 6);
        history.dead.clear();
    });
    assert_eq!(lost.lost.len(), 4);
    let gap = after(|history| {
        restored(history, 6);
        history.chain.remove(1);
    });
    assert_eq!(gap.nonce_gaps, [(0, 1)]);
    let poison_written = after(|history| {
        restored(history, 6);
        let again = written(&history.published[2], 4);
        history.chain.push(again);
    });
    assert_eq!(poison_written.wrong.len(), 1, "{poison_written:?}");
}

#[test]
fn what_failed_in_the_lost_time_may_be_written_after_it() {
    let failed = |before: usize, key: &str| {
        after(|history| {
            restored(history, before);
            let dead = letter(&history.published[1], key);
            history.dead.push(dead);
        })
    };
    let taken_up_again = failed(2, "rejected.reverted");
    assert!(is_clean(&taken_up_again), "{taken_up_again:?}");
    assert_eq!(taken_up_again.taken_up_again, 1);
    assert_eq!(failed(1, "rejected.reverted").twice.len(), 1, "it was published after the restore");
    assert_eq!(failed(2, "invalid.too_large").twice.len(), 1);
}

#[test]
fn a_restored_copy_may_lose_events_and_knows_of_an_id_what_it_knew_then() {
    let lost_event = |before: usize| {
        after(|history| {
            restored(history, before);
            history.finals.retain(|event| event.request_id != "b");
        })
    };
    assert!(is_clean(&lost_event(2)));
    assert_eq!(lost_event(1).wrong.len(), 1);
    let of_nothing = after(|history| {
        restored(history, 6);
        history.finals.push(told("c", 9));
    });
    assert_eq!(of_nothing.wrong.len(), 1, "an event of what is not in the chain");
    let two_bodies = |before: usize| {
        after(|history| {
            restored(history, before);
            history.dead.retain(|letter| letter.key != CONFLICT);
            let other = written(&history.published[3], 4);
            history.finals.push(told("a", 4));
            history.chain.push(other);
            history.next_nonces[0] = 5;
        })
    };
    assert!(is_clean(&two_bodies(1)), "{:?}", two_bodies(1));
    assert_eq!(two_bodies(0).twice.len(), 1);
}

#[test]
fn a_retry_that_never_comes_is_found_unless_a_copy_was_restored() {
    let stays = |before: usize| {
        after(|history| {
            restored(history, before);
            history.stay.push("b".to_owned());
        })
    };
    assert!(is_clean(&stays(2)));
    assert_eq!(stays(1).wrong.len(), 1);
}

#[test]
fn a_good_message_that_waits_too_long_is_found() {
    let findings = after(|history| history.waits[0].1 += Duration::from_secs(1));
    assert_eq!(findings.late, ["a (91 s)"]);
}

#[test]
fn poison_must_die_for_its_own_reason() {
    let kinds = [
        (Kind::TooRich, "rejected.insufficient_funds"),
        (Kind::LittleGas, "invalid.gas_too_low"),
        (Kind::MuchGas, "invalid.gas_above_limit"),
        (Kind::LongCalldata, "invalid.too_large"),
        (Kind::Unwanted, "rejected.refused_by_node"),
    ];
    for (kind, reason) in kinds {
        let died = |key: &str| {
            after(|history| {
                let poison = message("p", kind);
                history.dead.push(letter(&poison, key));
                history.published.push(poison);
            })
        };
        assert!(is_clean(&died(reason)), "{kind:?}");
        assert_eq!(died("rejected.reverted").wrong.len(), 1, "{kind:?}");
        let written = after(|history| {
            let poison = message("p", kind);
            history.chain.push(written(&poison, 4));
            history.finals.push(told("p", 4));
            history.published.push(poison);
        });
        assert_eq!(written.wrong.len(), 1, "{kind:?}: {written:?}");
        let nowhere = after(|history| history.published.push(message("p", kind)));
        assert_eq!(nowhere.lost, ["p"], "{kind:?}");
    }
}

#[test]
fn workers_that_go_on_with_an_older_copy_are_found() {
    assert!(judge_copy(true, false).is_some());
    assert!(judge_copy(true, true).is_none());
    assert!(judge_copy(false, false).is_none(), "the copy knows every start that served");
    assert!(judge_copy(false, true).is_none());
}

#[test]
fn a_second_journal_that_takes_something_or_says_nothing_is_found() {
    assert!(judge_second_journal(true, (0, 0)).is_empty());
    for (says_why, held) in [(false, (0, 0)), (true, (1, 0)), (true, (0, 1))] {
        assert_eq!(judge_second_journal(says_why, held).len(), 1, "{says_why} {held:?}");
    }
}
