//! Holds of operators: what they cover, and that nothing new is stored for it.

use std::sync::Arc;

use crate::journal::contract::{arrival, event, id, set, transaction};
use crate::journal::{AccountId, Arrival, HoldScope, Journal, RequestSeq};
use crate::model::{Address, Generation, Nonce, Order};
use crate::policy::limits::{Granted, Limits};

fn of_route(account: AccountId, text: &str, route: &str) -> Arrival {
    Arrival { route: route.to_owned(), ..arrival(account, text, Generation::default(), "body") }
}

pub(crate) async fn nothing_new_is_stored_for_what_is_held(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    let arrivals = [("a", "x"), ("b", "y"), ("c", "x")].map(|(text, route)| of_route(set.account, text, route));
    set.journal.admit(arrivals.to_vec()).await.unwrap();
    let queued = async |without: &[&str]| {
        let without: Vec<_> = without.iter().map(|route| (*route).to_owned()).collect();
        let queued = set.journal.queued_except(set.account, i64::MIN, 9, &without).await.unwrap();
        queued.into_iter().map(|request| (request.id.to_string(), request.route, request.seq)).collect::<Vec<_>>()
    };
    let ids = |queued: &[(String, String, RequestSeq)]| {
        queued.iter().map(|(id, route, _)| format!("{id}{route}")).collect::<Vec<_>>()
    };
    assert_eq!(ids(&queued(&[]).await), ["ax", "by", "cx"]);
    assert_eq!(ids(&queued(&["x", "z"]).await), ["by"]);
    let all = queued(&[]).await;
    let sign = async |from: u64, requests: &[usize]| {
        let new = requests.iter().zip(from..).map(|(index, nonce)| transaction(all[*index].2, nonce)).collect();
        let Granted { count, throttled } =
            set.journal.record_transactions(&set.lease, new, Limits::default()).await.unwrap();
        assert!(throttled.is_none());
        count
    };
    let order = |reason: &str| Order::new("ann", reason);
    let other = set.journal.account(31337, Address([9; 20])).await.unwrap();
    let held = |scope: HoldScope| set.journal.hold(scope, order("because"));
    let released = |scope: HoldScope| set.journal.release(scope, order("done"));
    for scope in [HoldScope::Everything, HoldScope::Account(set.account), HoldScope::Route("x".to_owned())] {
        assert_eq!(held(scope.clone()).await.unwrap(), None);
        assert_eq!(sign(0, &[0, 1]).await, 0, "{scope:?}");
        let again = set.journal.hold(scope.clone(), order("again")).await.unwrap().unwrap();
        assert_eq!((again.reason.as_str(), again.by.user.as_str()), ("because", "ann"), "the first stays");
        assert_eq!(released(scope.clone()).await.unwrap(), Some(again), "{scope:?}");
        assert_eq!(released(scope).await.unwrap(), None, "once");
    }
    held(HoldScope::Account(other)).await.unwrap();
    held(HoldScope::Route("x".to_owned())).await.unwrap();
    let standing: Vec<_> = set.journal.holds().await.unwrap().into_iter().map(|hold| hold.scope_text()).collect();
    assert_eq!(standing, [format!("account {}", Address([9; 20])), "route x".to_owned()]);
    assert_eq!(sign(0, &[1, 2]).await, 1, "those before the first that is held");
    assert_eq!(set.journal.live_transactions(set.account).await.unwrap().len(), 1);
    // What is signed goes on: another price, and its end.
    held(HoldScope::Everything).await.unwrap();
    let again = vec![(Nonce(0), crate::journal::contract::attempt(77))];
    set.journal.record_replacements(&set.lease, again).await.unwrap();
    set.journal.settle(&set.lease, vec![crate::journal::contract::succeeded(all[1].2, 0, "b")]).await.unwrap();
    assert_eq!(set.journal.events(&[set.account], 0, 9).await.unwrap()[0].event_id, event("b").id);
    released(HoldScope::Route("x".to_owned())).await.unwrap();
    assert_eq!(sign(1, &[0]).await, 0, "everything is held still");
    released(HoldScope::Everything).await.unwrap();
    assert_eq!(sign(1, &[0, 2]).await, 2);
    let covered = set.journal.history(&id("a")).await.unwrap().unwrap();
    assert_eq!((covered.request.route.as_str(), covered.holds.len()), ("x", 0), "it is signed");
}

pub(crate) async fn open_requests_are_counted_by_route(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    let arrivals = [("a", "x"), ("b", "y"), ("c", "x"), ("d", "z")];
    let arrivals = arrivals.map(|(text, route)| of_route(set.account, text, route));
    set.journal.admit(arrivals.to_vec()).await.unwrap();
    let open = async || set.journal.open_of_routes(["x", "y", "none"].map(str::to_owned).to_vec()).await.unwrap();
    assert_eq!(open().await, [("x".to_owned(), 2), ("y".to_owned(), 1)]);
    let queued = set.journal.queued(set.account, i64::MIN, 9).await.unwrap();
    set.journal.settle(&set.lease, vec![crate::journal::contract::failed(queued[1].seq, 1)]).await.unwrap();
    assert_eq!(open().await, [("x".to_owned(), 2)], "one waits for its retry");
}

/// A replay may have another route; a retry keeps the one that it came with.
pub(crate) async fn a_request_says_which_holds_cover_it(journal: Arc<dyn Journal>) {
    let set = set(journal, &[]).await;
    set.journal.admit(vec![of_route(set.account, "a", "x")]).await.unwrap();
    let covering = async || {
        let history = set.journal.history(&id("a")).await.unwrap().unwrap();
        history.holds.into_iter().map(|hold| hold.scope_text()).collect::<Vec<_>>()
    };
    for scope in [HoldScope::Route("y".to_owned()), HoldScope::Route("x".to_owned()), HoldScope::Everything] {
        set.journal.hold(scope, Order::new("ann", "because")).await.unwrap();
    }
    assert_eq!(covering().await, ["route x", "everything"]);
    assert_eq!(set.journal.overview().await.unwrap().holds.len(), 3);
    let queued = set.journal.queued(set.account, i64::MIN, 9).await.unwrap();
    set.journal.settle(&set.lease, vec![crate::journal::contract::failed(queued[0].seq, 1)]).await.unwrap();
    assert!(covering().await.is_empty(), "it waits for its retry, and for no operator");
    let copy =
        Arrival { route: "y".to_owned(), ..arrival(set.account, "a", Generation { replay: 0, retry: 1 }, "body") };
    set.journal.admit(vec![copy]).await.unwrap();
    assert_eq!(covering().await, ["route x", "everything"]);
}
