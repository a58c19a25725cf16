//! Bumps: an order is answered once, together with the replacement.

use std::sync::Arc;

use crate::journal::contract::{attempt, id, set, succeeded};
use crate::journal::{AnsweredBump, Bump, BumpAnswer, BumpOutcome, Journal};
use crate::model::{Nonce, Order, RequestState, Wei};

pub(crate) async fn a_bump_is_answered_once_and_with_its_replacement(journal: Arc<dyn Journal>) {
    let set = set(journal, &["a", "b"]).await;
    let order = || Order::new("ann", "stuck");
    let bump = async |text: &str, max_fee| set.journal.bump(&id(text), max_fee, order()).await.unwrap();
    assert_eq!(bump("unknown", None).await, BumpAnswer::NotKnown);
    assert_eq!(bump("a", None).await, BumpAnswer::NothingToRaise(RequestState::Accepted));
    set.sign(0, 0).await.unwrap();
    assert_eq!(bump("a", Some(Wei(5))).await, BumpAnswer::Noted);
    assert_eq!(bump("a", Some(Wei(7))).await, BumpAnswer::Noted, "the last one counts");
    let open = async || set.journal.bumps(set.account).await.unwrap();
    let request = set.seq(0);
    assert_eq!(open().await, [Bump { request, max_fee: Some(Wei(7)) }]);
    assert_eq!(set.journal.bump_outcome(&id("a")).await.unwrap(), None);
    let raised = |nonce: u64| AnsweredBump {
        request,
        signed: Some((Nonce(nonce), attempt(77))),
        text: "it offers more".to_owned(),
    };
    assert!(set.journal.answer_bumps(&set.lease, vec![raised(3)]).await.is_err(), "no such nonce is live");
    assert_eq!(open().await.len(), 1, "nothing of it was written");
    set.journal.answer_bumps(&set.lease, vec![raised(0)]).await.unwrap();
    assert!(open().await.is_empty());
    let outcome = set.journal.bump_outcome(&id("a")).await.unwrap();
    assert_eq!(outcome, Some(BumpOutcome { is_raised: true, text: "it offers more".to_owned() }));
    let live = set.journal.live_transactions(set.account).await.unwrap();
    assert_eq!(live[0].signed, [attempt(0), attempt(77)]);
    assert_eq!(set.incidents("a").await, ["bump", "bump", "bump"]);
    // Another one, which is refused.
    assert_eq!(bump("a", None).await, BumpAnswer::Noted);
    assert_eq!(set.journal.bump_outcome(&id("a")).await.unwrap(), None);
    let refused = AnsweredBump { request, signed: None, text: "it is in a block".to_owned() };
    set.journal.answer_bumps(&set.lease, vec![refused]).await.unwrap();
    assert!(!set.journal.bump_outcome(&id("a")).await.unwrap().unwrap().is_raised);
    assert_eq!(set.journal.live_transactions(set.account).await.unwrap()[0].signed.len(), 2);
    set.journal.settle(&set.lease, vec![succeeded(request, 0, "a")]).await.unwrap();
    assert_eq!(bump("a", None).await, BumpAnswer::NothingToRaise(RequestState::Final));
    assert!(set.journal.prune(crate::model::Timestamp::now().after(super::TTL), 9).await.unwrap() > 0);
}
