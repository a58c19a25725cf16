//! `chainwriter cancel ID`

use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::cli::status::report_unknown;
use crate::cli::{check_reason, exit, operator, say};
use crate::config::Settings;
use crate::journal::{CancelAnswer, History};
use crate::model::{Order, RequestId, RequestState, TransactionState};
use crate::stages::lost_retries::NO_LETTER;

/// How often `--wait` reads the journal.
const CHECK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The request's id.
    id: String,
    /// Why; stands in the dead letter and in what `status` shows.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// Wait until the request has ended, one way or the other.
    #[arg(long)]
    wait: bool,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    let id = RequestId::new(&arguments.id).context("this is no request id")?;
    check_reason(&arguments.reason)?;
    let journal = settings.journal.address.open_existing().await?;
    let answer = journal.cancel(&id, Order::new(operator(), arguments.reason)).await?;
    let mut history = journal.history(&id).await?;
    if let CancelAnswer::Noted(state) = answer {
        let shares = history.as_ref().is_some_and(shares_its_transaction);
        say(format_args!("{id}: {}", if shares { SHARED } else { accepted_text(state) }));
        while arguments.wait && history.as_ref().is_some_and(|history| !has_ended(history)) {
            tokio::time::sleep(CHECK).await;
            history = journal.history(&id).await?;
        }
    }
    journal.close().await;
    Ok(match history {
        None => report_unknown(&id),
        Some(history) if has_ended(&history) => print_end(&id, &history),
        Some(_) => exit::OK,
    })
}

/// A transaction of several requests is not cancelled for one of them.
const SHARED: &str = "to be cancelled, but it shares a transaction with others, which is signed: it is written with them, unless \
                      that fails; then it becomes a dead letter";

fn shares_its_transaction(history: &History) -> bool {
    let live = TransactionState::Live.as_str();
    history.transactions.iter().any(|transaction| transaction.state == live && transaction.batch.is_some())
}

fn accepted_text(state: RequestState) -> &'static str {
    match state {
        RequestState::Accepted => {
            "to be cancelled; it waits for a nonce, and a running worker makes it a dead letter at once"
        }
        RequestState::Writing => {
            "to be cancelled; it is signed, so a running worker takes its nonce with a transfer to the account itself. If the write lands first, it counts"
        }
        RequestState::RetryPending | RequestState::RetryWaiting => {
            "to be cancelled; it waits at the broker for its retry, and becomes a dead letter when it comes back. If the broker has lost the retry, a running worker ends the request once that is sure"
        }
        RequestState::DeadPending | RequestState::Dead | RequestState::Final => "has ended",
    }
}

fn has_ended(history: &History) -> bool {
    matches!(
        RequestState::from_word(&history.request.state),
        Some(RequestState::Final | RequestState::DeadPending | RequestState::Dead)
    )
}

fn print_end(id: &RequestId, history: &History) -> u8 {
    if history.request.state == RequestState::Final.as_str() {
        say(format_args!("{id}: final: it was written, and nothing can be cancelled any more"));
        return exit::TOO_LATE;
    }
    let cause = history.request.failure.as_deref().unwrap_or_default();
    if cause.starts_with("rejected.cancelled") && cause.ends_with(NO_LETTER) {
        say(format_args!("{id}: cancelled; {NO_LETTER}, and none of its transactions can land"));
        return exit::OK;
    }
    if cause.starts_with("rejected.cancelled") {
        say(format_args!("{id}: cancelled; it is a dead letter, and none of its transactions can land"));
        return exit::OK;
    }
    say(format_args!("{id}: a dead letter already, for another reason ({cause}); none of its transactions can land"));
    exit::TOO_LATE
}
