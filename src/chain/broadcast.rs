//! Sends signed bytes to every endpoint that serves and gets transactions, and returns the best of their answers. Here alone bytes
//! go out, whatever they are for; while a private endpoint is configured, no other gets any.
//!
//! Each gets everything, each time. So a node that takes bytes and never passes them on, or that restarts with an empty
//! pool, holds up nothing. The cost is each transaction's bytes once for each endpoint.

use std::time::Duration;

use futures_util::future::{join, join_all};
use jsonrpc_core::Value;
use tokio_util::sync::CancellationToken;

use crate::chain::client::NodeClient;
use crate::chain::endpoint::{Endpoint, MethodCall, Order};
use crate::chain::faults::first_failure;
use crate::chain::route::Route;
use crate::chain::{ChainError, Result};
use crate::model::{RawTransaction, TxHash};
use crate::observe::traces::Traced;
use crate::policy::classify::{ErrorTable, SendMeaning};

/// Lets the others take this much longer than the first endpoint. Their failures do not fail the call.
const GRACE: Duration = Duration::from_secs(3);

impl NodeClient {
    pub(super) async fn broadcast_everywhere(&self, transactions: &[Traced<RawTransaction>]) -> Vec<Result<()>> {
        let calls = transactions.iter().map(|Traced { item, span }| MethodCall {
            method: "eth_sendRawTransaction",
            params: vec![Value::String(format!("0x{}", hex::encode(&item.bytes)))],
            span: span.clone(),
        });
        let calls: Vec<_> = calls.collect();
        let mut route = Route::of_transactions(&self.endpoints);
        let Some(first) = route.next().await else {
            let failure = route.failure();
            return transactions.iter().map(|_| Err(failure.clone())).collect();
        };
        let others = self.endpoints.receivers().filter(|other| !std::ptr::eq(*other, first) && other.is_ready());
        let first_is_done = CancellationToken::new();
        let others = others.map(|endpoint| self.send_beside(endpoint, transactions, &calls, &first_is_done));
        let first = async {
            let answers = self.send_to(first, transactions, &calls).await;
            first_is_done.cancel();
            answers
        };
        let (first, others) = join(first, join_all(others)).await;
        others.into_iter().flatten().fold(first, |best, answers| {
            best.into_iter().zip(answers).map(|(best, answer)| better(&self.errors, best, answer)).collect()
        })
    }

    async fn send_beside(
        &self,
        endpoint: &Endpoint,
        transactions: &[Traced<RawTransaction>],
        calls: &[MethodCall],
        first_is_done: &CancellationToken,
    ) -> Option<Vec<Result<()>>> {
        let too_late = async {
            first_is_done.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            answers = self.send_to(endpoint, transactions, calls) => Some(answers),
            () = too_late => {
                endpoint.record_silence(GRACE);
                None
            }
        }
    }

    async fn send_to(
        &self,
        endpoint: &Endpoint,
        transactions: &[Traced<RawTransaction>],
        calls: &[MethodCall],
    ) -> Vec<Result<()>> {
        let answers = endpoint.ask_many(calls, Order::Kept).await;
        let read = |(signed, answer): (&Traced<RawTransaction>, Result<Value>)| {
            let answer = answer?;
            let hash = answer.as_str().and_then(|text| text.parse::<TxHash>().ok());
            if hash == Some(signed.item.hash) { Ok(()) } else { Err(endpoint.nonsense(format!("hash {answer}"))) }
        };
        let answers: Vec<_> = transactions.iter().zip(answers).map(read).collect();
        let failure: Result<()> = first_failure(&answers).map_or(Ok(()), |failure| Err(failure.clone()));
        // Bytes that an endpoint fails at, and only those, hold up no other account.
        endpoint.record_call(&failure, self.endpoints.chain_id()).await;
        let is_about_itself = |answer: &Result<()>| {
            matches!(meaning(&self.errors, answer), SendMeaning::Syncing | SendMeaning::WrongChain)
        };
        if answers.iter().any(is_about_itself) {
            endpoint.health().doubt();
        }
        answers
    }
}

fn meaning(errors: &ErrorTable, answer: &Result<()>) -> SendMeaning {
    match answer {
        Ok(()) => SendMeaning::AlreadyKnown,
        Err(ChainError::Node { message, .. }) => errors.meaning_of(message),
        Err(_) => SendMeaning::Unknown,
    }
}

/// Returns the answer about the same bytes that promises more, the first of equal ones.
fn better(errors: &ErrorTable, one: Result<()>, other: Result<()>) -> Result<()> {
    if rank(errors, &other) < rank(errors, &one) { other } else { one }
}

/// Ranks an answer, the best lowest. What a node says about the bytes comes before what it says about itself; that it has
/// them comes first, and that it will never take them comes last.
fn rank(errors: &ErrorTable, answer: &Result<()>) -> u8 {
    if answer.as_ref().is_err_and(ChainError::is_of_endpoint) {
        return u8::MAX;
    }
    match meaning(errors, answer) {
        SendMeaning::AlreadyKnown => 0,
        SendMeaning::NonceTooLow => 1,
        SendMeaning::NonceTooHigh => 2,
        SendMeaning::PoolFull => 3,
        SendMeaning::Underpriced => 4,
        SendMeaning::ReplacementUnderpriced => 5,
        SendMeaning::InsufficientFunds => 6,
        SendMeaning::NotPermitted => 7,
        SendMeaning::Unknown => 8,
        SendMeaning::Refused => 9,
        SendMeaning::Syncing | SendMeaning::RateLimited | SendMeaning::WrongChain => 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(message: &str) -> Result<()> {
        Err(ChainError::Node { endpoint: "a".to_owned(), code: -32000, message: message.to_owned(), data: None })
    }

    /// C19
    #[test]
    fn the_answer_that_promises_most_is_told_whoever_gave_it() {
        let away = || Err(ChainError::Unreachable { endpoint: "a".to_owned(), detail: String::new() });
        let best_first: [fn() -> Result<()>; 7] = [
            || Ok(()),
            || node("nonce too low"),
            || node("nonce too high"),
            || node("transaction underpriced"),
            || node("who knows"),
            || node("intrinsic gas too low"),
            || node("node is syncing"),
        ];
        let errors = ErrorTable::default();
        for (index, best) in best_first.iter().enumerate() {
            for worse in best_first.iter().skip(index + 1).map(|worse| worse()).chain([away()]) {
                for (one, other) in [(best(), worse.clone()), (worse.clone(), best())] {
                    let told = format!("{:?}", better(&errors, one, other));
                    assert_eq!(told, format!("{:?}", best()), "against {worse:?}");
                }
            }
        }
    }
}
