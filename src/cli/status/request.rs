//! `chainwriter status ID`: what happened to one request.

use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;

use crate::cli::status::waits;
use crate::cli::{exit, print, say};
use crate::config::Settings;
use crate::daemon::status::wei;
use crate::journal::{History, TransactionHistory};
use crate::model::IncidentKind;
use crate::model::event::BatchPlace;
use crate::model::text::Escaped;
use crate::model::{RequestId, RequestState, TransactionState};

pub(super) async fn run(id: &str, json: bool, settings: Settings) -> anyhow::Result<u8> {
    let id = RequestId::new(id).context("this is no request id")?;
    let journal = settings.journal.address.open_existing().await?;
    let history = journal.history(&id).await?;
    journal.close().await;
    match history {
        Some(history) => {
            let waits_for = waits::waits(&history, &settings).await;
            let known = Known { history: &history, waits_for: &waits_for };
            print(json, &known, || known.text()).map(|()| exit::OK)
        }
        None => Ok(report_unknown(&id)),
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
        "{id}: not known. Either no worker with this journal has taken it from the queue yet, or it was settled longer than journal.retention ago."
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
    for transaction in &history.transactions {
        let _ = writeln!(text, "  nonce {:<5}{}", transaction.nonce.0, ending(transaction));
        for attempt in &transaction.signed {
            let kind = if attempt.kind == "cancel" { " cancels" } else { "" };
            let _ = writeln!(
                text,
                "    signed   {} {}{kind} at most {} for a unit of gas",
                attempt.signed_at, attempt.hash, attempt.max_fee
            );
            if let Some(cause) = &attempt.cause {
                let _ = writeln!(text, "             {}", Escaped(cause));
            }
        }
    }
    for incident in &history.incidents {
        let _ = writeln!(text, "  {:<10} {} {}", incident.what, incident.at, Escaped(&incident.detail));
    }
    text
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
        Some(RequestState::RetryWaiting) => {
            format!("failed, it waits at the broker for retry {} ({cause})", history.request.attempt)
        }
        Some(RequestState::DeadPending) => {
            format!("failed for good, its dead letter is on its way to the broker ({cause})")
        }
        Some(RequestState::Dead) => format!("dead letter ({cause}); none of its transactions can land any more"),
        Some(RequestState::Final) => meaning_of_final(history).to_owned(),
        None => history.request.state.clone(),
    }
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
