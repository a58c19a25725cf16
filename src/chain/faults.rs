//! Turns an answer without a result into an error: of the call, of the endpoint, or of its rate.

use crate::chain::{ChainError, Result, answers};
use crate::observe::metrics::CallResult;
use crate::policy::classify::{ErrorTable, Fault};
use crate::rpc::Refusal;

/// Turns what a server said in place of a result into an error of the call or of the endpoint.
pub(crate) fn refused(errors: &ErrorTable, endpoint: String, refusal: Refusal) -> ChainError {
    let Refusal { status, retry_after, code, text, data } = refusal;
    match (errors.fault_of(status, code, &text), code) {
        (Fault::RateLimit, _) => ChainError::RateLimited { endpoint, retry_after },
        (Fault::Outage, _) if retry_after.is_some() => ChainError::RateLimited { endpoint, retry_after },
        (Fault::Outage, _) if is_denial(status) => {
            let said = if text.is_empty() { "it does not say why".to_owned() } else { text };
            ChainError::Denied { endpoint, status, said }
        }
        (Fault::Outage, code) => {
            let detail = match (code, text.as_str()) {
                (Some(_), text) if status < 400 => text.to_owned(),
                (_, "") => format!("HTTP status {status}"),
                (_, text) => format!("HTTP status {status}: {text}"),
            };
            ChainError::Unreachable { endpoint, detail }
        }
        (Fault::Call, Some(code)) => {
            ChainError::Node { endpoint, code, message: text, data: data.as_ref().and_then(answers::revert_data) }
        }
        (Fault::Call, None) => {
            let message = format!("HTTP status {status}: the request is too large");
            ChainError::Node { endpoint, code: status.into(), message, data: None }
        }
    }
}

/// Returns whether this HTTP status is about what was asked, or by whom.
fn is_denial(status: u16) -> bool {
    const REQUEST_TIMEOUT: u16 = 408;
    (400..500).contains(&status) && status != REQUEST_TIMEOUT
}

pub(super) fn call_result<T>(answer: &Result<T>) -> CallResult {
    answer.as_ref().map_or_else(result_of, |_| CallResult::Answered)
}

pub(super) fn result_of(error: &ChainError) -> CallResult {
    match error {
        ChainError::Node { .. } => CallResult::Refused,
        ChainError::RateLimited { .. } => CallResult::RateLimited,
        ChainError::Nonsense { .. } | ChainError::NoStatus { .. } => CallResult::Nonsense,
        ChainError::Unreachable { .. }
        | ChainError::Denied { .. }
        | ChainError::NoState { .. }
        | ChainError::Syncing { .. }
        | ChainError::Lagging { .. }
        | ChainError::Unconfirmed { .. }
        | ChainError::WrongChain { .. } => CallResult::Unreachable,
    }
}

/// Returns the first failure of the endpoint.
pub(super) fn first_failure<T>(answers: &[Result<T>]) -> Option<&ChainError> {
    answers.iter().filter_map(|answer| answer.as_ref().err()).find(|error| error.is_of_endpoint())
}
