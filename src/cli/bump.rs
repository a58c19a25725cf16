//! `chainwriter bump ID`

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::time::{Instant, sleep};

use crate::cli::status::report_unknown;
use crate::cli::{check_reason, exit, operator, say, stop};
use crate::config::{HIGHEST_FEE, Settings};
use crate::journal::{BumpAnswer, BumpOutcome, OperatorsJournal};
use crate::model::{Order, RequestId, RequestState, Wei};

/// Interval between reads of the journal for the answer.
const CHECK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The request's id. Requests that share its transaction share its price.
    id: String,
    /// The most to offer for one unit of gas, such as "150 gwei"; without it fees.max_fee and policy.max_fee count.
    #[arg(long, value_name = "AMOUNT")]
    max_fee: Option<String>,
    /// Why; stands in `log` and in what `status` shows.
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    /// How long to wait for the worker that owns the account.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    patience: Duration,
}

pub(super) async fn run(arguments: Arguments, settings: Settings) -> anyhow::Result<u8> {
    let id = RequestId::new(&arguments.id).context("this is no request id")?;
    check_reason(&arguments.reason)?;
    let max_fee = arguments.max_fee.as_deref().map(amount).transpose()?;
    let journal = settings.journal.address.open_existing().await?;
    let code = match journal.bump(&id, max_fee, Order::new(operator(), arguments.reason)).await? {
        BumpAnswer::NotKnown => report_unknown(&id),
        BumpAnswer::NothingToRaise(state) => {
            say(format_args!("{id}: {}", nothing_text(state)));
            exit::TOO_LATE
        }
        BumpAnswer::Noted => wait(journal.as_ref(), &id, arguments.patience).await?,
    };
    journal.close().await;
    Ok(code)
}

/// Reads a price; the journal keeps none above the highest.
fn amount(text: &str) -> anyhow::Result<Wei> {
    let amount: Wei = text.parse().map_err(|error| stop(exit::USAGE, format!("--max-fee is {text:?}: {error}")))?;
    if amount > HIGHEST_FEE {
        return Err(stop(exit::USAGE, format!("--max-fee is {amount}, and {HIGHEST_FEE} is the most")));
    }
    Ok(amount)
}

async fn wait(journal: &dyn OperatorsJournal, id: &RequestId, patience: Duration) -> anyhow::Result<u8> {
    let until = Instant::now() + patience;
    loop {
        match journal.bump_outcome(id).await? {
            Some(BumpOutcome { is_raised: true, text }) => {
                say(format_args!("{id}: {text}"));
                return Ok(exit::OK);
            }
            Some(BumpOutcome { is_raised: false, text }) => {
                say(format_args!("{id}: not raised: {text}"));
                return Ok(exit::TOO_LATE);
            }
            None if Instant::now() >= until => {
                say(format_args!(
                    "{id}: noted, and no worker has acted on it yet; `chainwriter status {id}` shows when one has"
                ));
                return Ok(exit::STILL_OPEN);
            }
            None => sleep(CHECK).await,
        }
    }
}

fn nothing_text(state: RequestState) -> &'static str {
    match state {
        RequestState::Accepted => "not raised: it has no transaction yet; its price is chosen when it is signed",
        RequestState::RetryPending | RequestState::RetryWaiting => {
            "not raised: it failed, and waits for its retry; that gets a price of its own"
        }
        RequestState::Writing => "not raised",
        RequestState::DeadPending | RequestState::Dead => "not raised: it is a dead letter",
        RequestState::Final => "not raised: it is final",
    }
}
