//! The part of the set about which journal this is, and about passages through the work queue.

use std::sync::Arc;
use std::time::Duration;

use crate::journal::contract::{set, succeeded};
use crate::journal::{Journal, NewStart, RecoveredAccount, Recovery};
use crate::model::{Address, Adoption, BlockNumber, JournalId, MarkedStart, Nonce, Order, StartToken, Timestamp};
use crate::policy::passage::Band;

pub(crate) fn new_start(token: &str) -> NewStart {
    NewStart {
        journal: JournalId(format!("journal-of-{token}")),
        token: StartToken(token.to_owned()),
        worker: "acme/a".to_owned(),
        host: "one".to_owned(),
        at: Timestamp(5),
    }
}

pub(crate) async fn starts_are_counted_and_known_by_their_tokens(journal: Arc<dyn Journal>) {
    let first = journal.begin_start(new_start("a")).await.unwrap();
    let second = journal.begin_start(new_start("b")).await.unwrap();
    assert_eq!((first.number, second.number), (1, 2));
    assert_eq!(second.journal, first.journal, "the first start gives the journal its id");
    assert_eq!(second.token, StartToken("b".to_owned()));
    for (number, token, is_known) in
        [(1, "a", true), (2, "b", true), (1, "b", false), (3, "a", false), (u64::MAX, "a", false)]
    {
        let standing = journal.claim_standing(Some((number, StartToken(token.to_owned())))).await.unwrap();
        assert_eq!(standing.knows_start, is_known, "{number} {token}");
        assert_eq!((standing.journal, standing.has_requests), (first.journal.clone(), false));
    }
    journal.confirm_start(&second, None).await.unwrap();
    let standing = journal.claim_standing(Some((1, StartToken("a".to_owned())))).await.unwrap();
    assert!(standing.knows_start, "the marker may be an earlier one");
    let set = set(journal, &["a"]).await;
    assert!(set.journal.claim_standing(None).await.unwrap().has_requests);
}

pub(crate) async fn an_adoption_stands_until_a_start_is_confirmed(journal: Arc<dyn Journal>) {
    let adoption = async || journal.claim_standing(None).await.unwrap().adoption;
    let marked = |text: &str, number| MarkedStart { journal: JournalId(text.to_owned()), number };
    assert_eq!(adoption().await, None);
    journal.adopt(marked("first", 3), Order::new("bob", "")).await.unwrap();
    journal.adopt(marked("other", 7), Order::new("eve", "")).await.unwrap();
    let start = journal.begin_start(new_start("a")).await.unwrap();
    let standing = journal.claim_standing(None).await.unwrap();
    let adopted = standing.adoption.unwrap();
    assert_eq!((adopted.by.as_str(), &adopted.from), ("eve", &marked("other", 7)), "the last one counts");
    assert!(adopted.at.age() < Duration::from_secs(60));
    assert_eq!(standing.journal, start.journal);
    journal.confirm_start(&start, None).await.unwrap();
    assert_eq!(adoption().await, None);
    let account = journal.account(1, Address([7; 20])).await.unwrap();
    let recovery = Recovery {
        begun_at: Timestamp(6),
        operator: "bob".to_owned(),
        from_block: BlockNumber(1),
        to_block: BlockNumber(2),
    };
    for from in [None, Some(marked("lost", 9))] {
        let account = RecoveredAccount { account, first_nonce: Nonce(0), next_nonce: Nonce(3), writes: Vec::new() };
        journal.begin_recovery(recovery.clone(), vec![account], from.clone(), Order::new("bob", "")).await.unwrap();
        let expected = from.map(|from| Adoption { by: "bob".to_owned(), at: Timestamp(6), from });
        assert_eq!(adoption().await, expected, "the lost journal's marker is still there");
    }
}

pub(crate) async fn passages_go_one_at_a_time_and_show_what_came_before_them(journal: Arc<dyn Journal>) {
    let begin = async |token: &str, at, after: Option<&str>| {
        journal.begin_passage(token.to_owned(), Timestamp(at), after.map(str::to_owned)).await.unwrap()
    };
    let end = async |token: &str, band, at| journal.end_passage(token, band, Timestamp(at)).await.unwrap();
    let newest = async || journal.proof().await.unwrap().newest.unwrap();
    assert_eq!(journal.proof().await.unwrap().newest, None);
    assert!(begin("a", 100, None).await);
    assert!(!begin("x", 101, None).await, "another instance was faster");
    let first = newest().await;
    assert_eq!((first.token.as_str(), first.state.is_confirmed, first.state.passed_at), ("a", false, None));
    journal.confirm_passage("a").await.unwrap();
    assert!(newest().await.state.is_confirmed);
    assert!(!end("x", Band::Low, 150).await, "a producer made it up");
    assert!(end("a", Band::Low, 150).await);
    assert!(end("a", Band::Low, 170).await, "the broker delivered it twice");
    assert_eq!(newest().await.state.passed_at, None, "what has a high priority may wait still");
    assert!(end("a", Band::High, 160).await);
    assert!(end("a", Band::High, 180).await);
    assert_eq!(newest().await.state.passed_at, Some(Timestamp(160)));
    assert!(begin("b", 200, Some("a")).await);
    assert!(begin("c", 300, Some("b")).await, "that one is lost");
    assert!(end("c", Band::High, 350).await);
    assert!(end("c", Band::Low, 340).await);
    assert!(newest().await.state.is_confirmed, "it came out, so the broker had it");
    let passed = journal.proof().await.unwrap().passed;
    let passed: Vec<_> = passed.iter().map(|one| (one.published_at.0, one.passed_at.unwrap().0)).collect();
    assert_eq!(passed, [(100, 160), (300, 350)]);
}

/// A clock that is wrong by weeks while requests end.
pub(crate) async fn what_ends_counts_as_ended_after_the_last_passage_was_sent(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a"]).await;
    let sent = Timestamp::now().after(Duration::from_secs(30 * 86_400));
    assert!(set.journal.begin_passage("p".to_owned(), sent, None).await.unwrap());
    set.sign(0, 0).await.unwrap();
    set.journal.settle(&set.lease, vec![succeeded(set.seq(0), 0, "a")]).await.unwrap();
    assert_eq!(set.journal.prune(sent, 10).await.unwrap(), 0);
    assert_eq!(set.journal.prune(sent.after(Duration::from_millis(1)), 10).await.unwrap(), 1);
}
