//! Requests over HTTP, for callers that have the token: one by its id, or a list by state. Nothing of it without a token file.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tracing::warn;
use url::form_urlencoded;

use crate::journal::{JournalError, Upkeep};
use crate::model::{RequestId, RequestState};

/// Requests in a list, unless the caller wants fewer or more, and at most.
const LISTED: u32 = 100;
const MOST_LISTED: u32 = 1000;
/// Reads of the journal at once; the stages need it more.
const READS: usize = 2;
/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// The pages below `/requests`.
pub struct RequestPages {
    journal: Arc<dyn Upkeep>,
    token_file: PathBuf,
    reads: Semaphore,
}

/// An answer: the HTTP status, and a document.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    pub(super) status: u16,
    pub(super) document: Value,
}

impl Page {
    fn error(status: u16, problem: impl Into<String>) -> Self {
        Self { status, document: json!({ "error": problem.into() }) }
    }
}

impl RequestPages {
    pub fn new(journal: Arc<dyn Upkeep>, token_file: PathBuf) -> Self {
        Self { journal, token_file, reads: Semaphore::new(READS) }
    }

    /// Answers for a path below `/requests`, with the query and the header `Authorization` of the call.
    pub(super) async fn page(&self, path: &str, query: &str, authorization: Option<&str>) -> Page {
        match self.is_allowed(authorization).await {
            Ok(true) => {}
            Ok(false) => return Page::error(401, "send the token of http.token_file: Authorization: Bearer TOKEN"),
            Err(problem) => {
                warn!(http.problem = problem, "requests are not served over HTTP");
                return Page::error(503, "the worker cannot read its token; see its log");
            }
        }
        let Ok(_turn) = self.reads.acquire().await else { return Page::error(503, "the worker stops") };
        match path.strip_prefix('/') {
            None | Some("") => self.list(query).await,
            Some(id) => self.one(&decoded(id)).await,
        }
        .unwrap_or_else(|error| {
            warn!(journal.error = %error, "requests could not be read for HTTP");
            Page::error(503, "the journal cannot be read now; see the worker's log")
        })
    }

    async fn one(&self, id: &str) -> Result<Page, JournalError> {
        let Ok(id) = RequestId::new(id) else { return Ok(Page::error(400, "this is no request id")) };
        let Some(history) = self.journal.history(&id).await? else {
            return Ok(Page::error(
                404,
                "not known: not taken from the queue yet, or forgotten after journal.retention",
            ));
        };
        Ok(document(serde_json::to_value(history)))
    }

    async fn list(&self, query: &str) -> Result<Page, JournalError> {
        let (state, most) = match read_query(query) {
            Ok(asked) => asked,
            Err(problem) => return Ok(Page::error(400, problem)),
        };
        let requests = self.journal.requests_of(state, most).await?;
        let listed = serde_json::to_value(requests);
        Ok(document(listed.map(|requests| json!({ "state": state.as_str(), "limit": most, "requests": requests }))))
    }

    /// Returns whether the call has the token, which is read anew.
    async fn is_allowed(&self, authorization: Option<&str>) -> Result<bool, String> {
        let shown = self.token_file.display();
        let text = tokio::fs::read_to_string(&self.token_file).await;
        let text = text.map_err(|error| format!("http.token_file {shown} cannot be read: {error}"))?;
        let token = text.trim();
        if token.len() < SHORTEST_TOKEN || token.contains(char::is_whitespace) {
            return Err(format!(
                "http.token_file {shown} holds no token of {SHORTEST_TOKEN} characters or more on one line"
            ));
        }
        let given = authorization.and_then(|header| {
            let (scheme, given) = header.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(given.trim())
        });
        // Of hashes, what a comparison shows by its time leads to no token.
        Ok(given.is_some_and(|given| Sha256::digest(given) == Sha256::digest(token)))
    }
}

fn document(value: serde_json::Result<Value>) -> Page {
    match value {
        Ok(document) => Page { status: 200, document },
        Err(problem) => Page::error(500, problem.to_string()),
    }
}

/// Reads a query `state=STATE&limit=N`; without a limit it is [`LISTED`].
fn read_query(query: &str) -> Result<(RequestState, u32), String> {
    let (mut state, mut most) = (None, LISTED);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "state" => state = RequestState::from_word(&value),
            "limit" => {
                let number = value.parse().ok().filter(|most| (1..=MOST_LISTED).contains(most));
                most = number.ok_or_else(|| format!("limit is a number from 1 to {MOST_LISTED}"))?;
            }
            _ => return Err("there are state and limit, nothing else".to_owned()),
        }
    }
    let states = || RequestState::ALL.map(RequestState::as_str).join(", ");
    Ok((state.ok_or_else(|| format!("say which: /requests?state=STATE, one of {}", states()))?, most))
}

/// Decodes a part of a path. Unlike in a form, `+` stands for itself.
fn decoded(part: &str) -> String {
    let as_name = part.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    form_urlencoded::parse(as_name.as_bytes()).map(|(name, _)| name.into_owned()).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_decoded_and_stay_whole() {
        for (part, id) in [
            ("a-1", "a-1"),
            ("a%2Fb/c", "a/b/c"),
            ("a+b&c=d", "a+b&c=d"),
            ("%C3%A4%20", "ä "),
            ("%zz", "%zz"),
            ("", ""),
        ] {
            assert_eq!(decoded(part), id);
        }
    }

    #[test]
    fn a_list_is_of_one_state_and_bounded() {
        assert_eq!(read_query("state=final"), Ok((RequestState::Final, LISTED)));
        assert_eq!(read_query("limit=1000&state=retry_waiting"), Ok((RequestState::RetryWaiting, 1000)));
        for (query, problem) in [
            ("", "one of accepted, writing"),
            ("state=open", "one of accepted, writing"),
            ("state=final&limit=0", "from 1 to 1000"),
            ("state=final&limit=1001", "from 1 to 1000"),
            ("state=final&limit=-1", "from 1 to 1000"),
            ("state=final&sort=id", "nothing else"),
        ] {
            assert!(read_query(query).is_err_and(|text| text.contains(problem)), "{query}");
        }
    }
}
