//! `chainwriter status ID`: what happened to one request.

use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;

use crate::cli::status::{unknown, waits};
use crate::cli::{exit, print, say};
use crate::config::Settings;
use crate::daemon::status::wei;
use crate::journal::{History, Hold, TransactionHistory};
use crate::model::IncidentKind;
use crate::model::event::BatchPlace;
use crate::model::text::Escaped;
use crate::model::{RequestId, RequestState, TransactionState};
use crate::stages::lost_retries::NO_LETTER;

pub(super) async fn run(id: &str, json: bool, settings: Settings) -> anyhow::Result<u8> {
    let id = RequestId::new(id).context("this is no request id")?;
    let journal = settings.journal.address.open_existing().await?;
    let history = journal.history(&id).await?;
    let holds = journal.holds().await?;
    journal.close().await;
    match history {
        Some(mut history) => {
            add_holds(&mut history, holds);
            let waits_for = waits::waits(&history, &settings).await;
            let known = Known { history: &history, waits_for: &waits_for };
            print(json, &known, || known.text()).map(|()| exit::OK)
        }
        None => Ok(unknown::run(&id, holds, &settings).await),
    }
}

/// Adds the holds that cover a request which is not accepted and not settled: they say why nothing of its account or its route moves.
fn add_holds(history: &mut History, holds: Vec<Hold>) {
    let request = &history.request;
    let is_open = RequestState::from_word(&request.state)
        .is_some_and(|state| !state.is_settled() && state != RequestState::Accepted);
    let covers = |hold: &Hold| {
        hold.account.is_none_or(|account| account == request.account)
            && hold.route.as_ref().is_none_or(|route| *route == request.route)
    };
    if is_open {
        history.holds = holds.into_iter().filter(covers).collect();
    }
}

/// The history of a request, and what it waits for now.
#[derive(Serialize)]
struct Known<'k> {
    #[serde(flatten)]
    history: &'k History,
    /// In sentences; empty where it waits for nothing, or only for the broker.
    waits_for: &'k [String],
}

impl Known<'_> {
    fn text(&self) -> String {
        let mut text = explain(self.history);
        for wait in self.waits_for {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "  waits for  {}", Escaped(wait));
        }
        text
    }
}

pub(in crate::cli) fn report_unknown(id: &RequestId) -> u8 {
    say(format_args!(
        "{id}: the journal does not know it. Its message may still be in a queue, or it ended more than journal.retention ago; `chainwriter status ID` says more."
    ));
    exit::NOT_FOUND
}

/// Returns what the journal knows, line by line.
pub(in crate::cli) fn explain(history: &History) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let (id, refused_id) = (&history.request.id, &history.request.refused_id);
    let _ = writeln!(text, "{}: {}", Escaped(refused_id.as_ref().unwrap_or(id)), Escaped(&meaning(history)));
    if refused_id.is_some() {
        let _ = writeln!(text, "  known as   {}", Escaped(id));
    }
    let _ = writeln!(text, "  received   {}", history.request.received_at);
    let _ = writeln!(text, "  changed    {}", history.request.changed_at);
    let _ = writeln!(text, "  account    {} on chain {}", history.request.account, history.request.chain_id);
    if !history.request.route.is_empty() {
        let _ = writeln!(text, "  route      {}", Escaped(&history.request.route));
    }
    for hold in &history.holds {
        let _ = writeln!(text, "  held       {}", Escaped(&hold.text()));
    }
    let replay =
        if history.request.replay > 0 { format!(" of replay {}", history.request.replay) } else { String::new() };
    let _ = writeln!(text, "  attempt    {}{replay}", history.request.attempt);
    let transactions = history.transactions.iter().map(|transaction| (transaction.created_at, lines_of(transaction)));
    let incidents = history.incidents.iter().map(|incident| {
        (incident.at, format!("  {:<10} {} {}\n", incident.what, incident.at, Escaped(&incident.detail)))
    });
    let mut steps: Vec<_> = incidents.chain(transactions).collect();
    // What has the same time stays in the order of the journal.
    steps.sort_by_key(|(at, _)| at.0);
    text.extend(steps.into_iter().map(|(_, lines)| lines));
    text
}

/// Returns a transaction's end, and each of its signed transactions in a line of its own.
fn lines_of(transaction: &TransactionHistory) -> String {
    let mut lines = format!("  nonce {:<5}{}\n", transaction.nonce.0, ending(transaction));
    for signed in &transaction.signed {
        let kind = if signed.kind == "cancel" { " cancels" } else { "" };
        let (at, hash, price) = (signed.signed_at, &signed.hash, &signed.max_fee);
        // Writing to a text cannot fail.
        let _ = writeln!(lines, "    signed   {at} {hash}{kind} at most {price} for a unit of gas");
        if let Some(cause) = &signed.cause {
            let _ = writeln!(lines, "             {}", Escaped(cause));
        }
    }
    lines
}

fn meaning(history: &History) -> String {
    let cause = history.request.failure.as_deref().unwrap_or("no reason recorded");
    if history.request.refused {
        return format!(
            "refused ({cause}); it never became a request, and is no outcome of another message with this id"
        );
    }
    match RequestState::from_word(&history.request.state) {
        Some(RequestState::Accepted) if !history.holds.is_empty() => "accepted, an operator holds it".to_owned(),
        Some(RequestState::Accepted) => "accepted, it waits for a nonce".to_owned(),
        Some(RequestState::Writing) => "signed, it waits for the chain".to_owned(),
        Some(RequestState::RetryPending) => format!("failed, its retry is on its way to the broker ({cause})"),
        Some(RequestState::RetryWaiting) if is_lost(history) => {
            format!("failed, it waits for retry {}, which the broker has lost ({cause})", history.request.attempt)
        }
        Some(RequestState::RetryWaiting) => {
            format!("failed, it waits at the broker for retry {} ({cause})", history.request.attempt)
        }
        Some(RequestState::DeadPending) => {
            format!("failed for good, its dead letter is on its way to the broker ({cause})")
        }
        Some(RequestState::Dead) if cause.ends_with(NO_LETTER) => {
            format!("cancelled ({cause}); none of its transactions can land any more")
        }
        Some(RequestState::Dead) => format!("dead letter ({cause}); none of its transactions can land any more"),
        Some(RequestState::Final) => meaning_of_final(history).to_owned(),
        None => history.request.state.clone(),
    }
}

/// Returns whether its retry counts as lost: nothing has come of it since that was found.
fn is_lost(history: &History) -> bool {
    let changes = |what: &str| {
        let kind = IncidentKind::from_word(what);
        matches!(kind, Some(IncidentKind::RetryLost | IncidentKind::Returned | IncidentKind::Failed)).then_some(kind)
    };
    let last = history.incidents.iter().filter_map(|incident| changes(&incident.what)).next_back();
    last == Some(Some(IncidentKind::RetryLost))
}

/// Explains the state `final`. The journal keeps it even where the chain has dropped the block; the transactions show that.
fn meaning_of_final(history: &History) -> &'static str {
    let succeeded = TransactionState::Succeeded.as_str();
    let mut kinds = history.incidents.iter().map(|incident| IncidentKind::from_word(&incident.what));
    match history.transactions.iter().find(|transaction| transaction.state == succeeded) {
        Some(written) if written.reorged_at.is_some() => {
            "was final, but the chain has dropped its block; the same transaction is sent again"
        }
        Some(_) => "final, written once",
        None if kinds.any(|kind| kind == Some(IncidentKind::Recorded)) => "final, its record was in the chain already",
        None => {
            "was final, but the chain has dropped its block, and its transaction can never land; send it under a new id"
        }
    }
}

fn ending(transaction: &TransactionHistory) -> String {
    let place = match (transaction.block_number, transaction.gas_used, transaction.final_hash) {
        (Some(block), Some(gas), Some(hash)) => {
            let l1 = transaction.l1_fee.as_deref().and_then(wei).map(|fee| format!(" and {fee} for L1"));
            format!(" in block {block} as {hash}, {gas} gas used{}", l1.unwrap_or_default())
        }
        _ => String::new(),
    };
    let place = match transaction.batch {
        Some(BatchPlace { index, size }) => format!("{place}, as {} of {size} in it", index + 1),
        None => place,
    };
    if transaction.reorged_at.is_some() {
        return format!("was {}{place}, a block that the chain has dropped", transaction.state);
    }
    match transaction.state.as_str() {
        "live" => format!("not final yet{place}"),
        state @ ("succeeded" | "reverted" | "cancelled") => format!("{state}{place}"),
        "displaced" => "taken by a transaction that is not ours".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Incident, RequestSummary};
    use crate::model::{Address, Nonce, Timestamp};

    /// A retry comes back before its transaction is signed, and the page has it in this order.
    #[test]
    fn what_happened_is_in_order_of_time() {
        let at = |second: i64| Timestamp(second * 1000);
        let incident = |second, what: &str| Incident { at: at(second), what: what.to_owned(), detail: String::new() };
        let transaction = TransactionHistory {
            nonce: Nonce(1),
            state: "succeeded".to_owned(),
            created_at: at(6),
            signed: Vec::new(),
            final_hash: None,
            block_number: None,
            block_hash: None,
            gas_used: None,
            l1_fee: None,
            reorged_at: None,
            batch: None,
        };
        let history = History {
            request: request(at(0)),
            transactions: vec![transaction],
            incidents: vec![incident(1, "failed"), incident(5, "returned"), incident(9, "reorged")],
            holds: Vec::new(),
        };
        let text = explain(&history);
        let places = ["failed", "returned", "nonce 1", "reorged"].map(|word| text.rfind(word).unwrap());
        assert!(places.is_sorted(), "{text}");
    }

    fn request(at: Timestamp) -> RequestSummary {
        RequestSummary {
            id: "order-1".to_owned(),
            state: "final".to_owned(),
            attempt: 1,
            replay: 0,
            received_at: at,
            changed_at: at,
            chain_id: 1,
            account: Address([7; 20]),
            route: String::new(),
            refused: false,
            refused_id: None,
            failure: None,
        }
    }
}
