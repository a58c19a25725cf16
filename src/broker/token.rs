//! OAuth 2 tokens for the broker: from a file that something else renews, or from a server by client credentials (RFC 6749, 4.4).

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;
use url::form_urlencoded::{Serializer, byte_serialize};

use crate::model::text::cleaned;
use crate::rpc::{client_with, label};

/// A token is some kilobytes.
const LONGEST_ANSWER_BYTES: usize = 256 << 10;
const LONGEST_TEXT_BYTES: usize = 512;
/// For the answer of a token server.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A file is read this often where its token does not say when it expires.
const WITHOUT_EXPIRY: Duration = Duration::from_secs(60);
/// Shortest and longest wait after a token could not be replaced, and the wait once it has expired.
const AFTER_FAILURE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
const AFTER_EXPIRY: Duration = Duration::from_secs(5);

/// Where tokens come from.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// Read at each connect, and again before the token expires.
    File(PathBuf),
    Server(TokenServer),
}

/// A server that gives tokens for client credentials.
#[derive(Clone)]
pub struct TokenServer {
    pub url: Url,
    pub client_id: String,
    /// The file with the client's secret, read for each token.
    pub secret: PathBuf,
    pub scope: Option<String>,
    pub audience: Option<String>,
    /// The authorities (PEM) to trust for this server, and no others; without it, those of the system.
    pub authorities: Option<PathBuf>,
}

impl std::fmt::Debug for TokenServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a key.
        f.debug_struct("TokenServer").field("server", &label(&self.url)).finish_non_exhaustive()
    }
}

/// Why there is no token, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenError(String);

type Result<T> = std::result::Result<T, TokenError>;

/// The tokens of one source. All connections of the process share them.
#[derive(Debug)]
pub struct Tokens {
    source: TokenSource,
    last: Mutex<Option<Token>>,
}

#[derive(Debug, Clone)]
pub(super) struct Token {
    text: SecretString,
    began: Instant,
    /// From `began` on; `None` where the token does not say.
    life: Option<Duration>,
}

impl Token {
    fn new(text: SecretString, life: Option<Duration>) -> Self {
        Self { text, began: Instant::now(), life }
    }

    /// Returns the token as it is shown to the broker.
    pub(super) fn text(&self) -> &str {
        self.text.expose_secret()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.text() == other.text()
    }

    /// Returns how long it is valid; `None` where that is not known.
    pub(super) fn left(&self) -> Option<Duration> {
        self.life.map(|life| life.saturating_sub(self.began.elapsed()))
    }

    /// Returns when to replace it: when a third of its life is left. `None` where it does not say.
    fn renews_in(&self) -> Option<Duration> {
        self.life.map(|life| (life / 3 * 2).max(AFTER_FAILURE.0).saturating_sub(self.began.elapsed()))
    }
}

impl Tokens {
    pub fn new(source: TokenSource) -> Self {
        Self { source, last: Mutex::new(None) }
    }

    /// Returns a token for a new connection: the last one until it is time to replace it. A file is always read.
    pub(super) async fn current(&self) -> Result<Token> {
        let last = self.last.lock().await.clone();
        let is_good = |token: &Token| token.renews_in().is_none_or(|wait| !wait.is_zero());
        match (last, &self.source) {
            (Some(token), TokenSource::Server(_)) if is_good(&token) => Ok(token),
            _ => self.fetch().await,
        }
    }

    /// Gets a token from the source.
    pub(super) async fn fetch(&self) -> Result<Token> {
        let mut last = self.last.lock().await;
        let token = match &self.source {
            TokenSource::File(path) => {
                let text = tokio::fs::read_to_string(path).await.map_err(|error| {
                    TokenError(format!("broker.token_file {} cannot be read: {error}", path.display()))
                })?;
                of_file(text.trim(), SystemTime::now())
                    .map_err(|problem| TokenError(format!("broker.token_file {}: {problem}", path.display())))?
            }
            TokenSource::Server(server) => server.token().await?,
        };
        *last = Some(token.clone());
        Ok(token)
    }

    /// Forgets the last token: the broker has refused it.
    pub(super) async fn forget(&self) {
        *self.last.lock().await = None;
    }

    /// Returns how long to wait before this token, which was shown last, is replaced. `None`: for ever.
    pub(super) fn wait_for(&self, token: &Token) -> Option<Duration> {
        match (token.renews_in(), &self.source) {
            (None, TokenSource::Server(_)) => None,
            (None, TokenSource::File(_)) => Some(WITHOUT_EXPIRY),
            (wait, _) => wait,
        }
    }

    /// Returns how long to wait after a failure to replace this token.
    pub(super) fn wait_after_failure(token: &Token) -> Duration {
        match token.left() {
            None => WITHOUT_EXPIRY,
            Some(Duration::ZERO) => AFTER_EXPIRY,
            Some(left) => (left / 3).clamp(AFTER_FAILURE.0, AFTER_FAILURE.1),
        }
    }
}

fn of_file(text: &str, now: SystemTime) -> std::result::Result<Token, &'static str> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("holds no token; expected one alone, on one line");
    }
    Ok(Token::new(SecretString::from(text), life_of(text, now)))
}

/// Returns how long a JSON web token is valid from now on (RFC 7519, `exp`). `None` where the token is of another kind or does
/// not say.
fn life_of(token: &str, now: SystemTime) -> Option<Duration> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let expires = Duration::try_from_secs_f64(claims.get("exp")?.as_f64()?).ok()?;
    Some(expires.saturating_sub(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()))
}

impl TokenServer {
    async fn token(&self) -> Result<Token> {
        let fault = |problem: String| TokenError(format!("broker.token_url {}: {problem}", label(&self.url)));
        let secret = tokio::fs::read_to_string(&self.secret).await.map(SecretString::from).map_err(|error| {
            TokenError(format!("broker.token_client_secret_file {} cannot be read: {error}", self.secret.display()))
        })?;
        let authorities = match &self.authorities {
            Some(path) => {
                let unusable = |error: String| TokenError(format!("broker.token_ca_file {}: {error}", path.display()));
                let pem = tokio::fs::read(path).await.map_err(|error| unusable(error.to_string()))?;
                let read = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| unusable(error.to_string()))?;
                Some(read)
            }
            None => None,
        };
        let client = client_with(TIMEOUT, |builder| match authorities {
            Some(authorities) => builder.tls_certs_only(authorities),
            None => builder,
        });
        let client = client.map_err(|error| fault(error.to_string()))?;
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let sent = client
            .post(self.url.clone())
            .basic_auth(encoded(&self.client_id), Some(encoded(secret.expose_secret().trim_end_matches(['\r', '\n']))))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(ACCEPT, "application/json")
            .body(self.form())
            .send()
            .await;
        let mut answer = sent.map_err(|error| fault(cause_of(&error)))?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| fault(cause_of(&error)))? {
            body.extend_from_slice(&chunk);
            if body.len() > LONGEST_ANSWER_BYTES {
                return Err(fault("its answer is no token: it is too long".to_owned()));
            }
        }
        read_answer(status.as_u16(), &body, SystemTime::now()).map_err(fault)
    }

    fn form(&self) -> String {
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        for (name, value) in [("scope", &self.scope), ("audience", &self.audience)] {
            if let Some(value) = value {
                form.append_pair(name, value);
            }
        }
        form.finish()
    }
}

/// Returns the innermost cause. The error itself would show the URL.
fn cause_of(error: &reqwest::Error) -> String {
    let first: &dyn std::error::Error = error;
    let last = std::iter::successors(first.source(), |cause| cause.source()).last();
    let text = if error.is_timeout() { "no answer in time".to_owned() } else { last.unwrap_or(first).to_string() };
    cleaned(&text, LONGEST_TEXT_BYTES)
}

/// Reads a token from an answer (RFC 6749, 5.1 and 5.2).
fn read_answer(status: u16, body: &[u8], now: SystemTime) -> std::result::Result<Token, String> {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| json.get(name).and_then(Value::as_str);
    if let (200, Some(token)) = (status, text("access_token")) {
        let life = match json.get("expires_in") {
            Some(Value::Number(seconds)) => seconds.as_f64(),
            Some(Value::String(seconds)) => seconds.parse().ok(),
            _ => None,
        };
        let life = life.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        return Ok(Token::new(SecretString::from(token), life.or_else(|| life_of(token, now))));
    }
    let said = [text("error"), text("error_description")].into_iter().flatten().collect::<Vec<_>>().join(": ");
    let remedy = match text("error") {
        Some("invalid_client") => "; check broker.token_client_id and the file in broker.token_client_secret_file",
        Some("invalid_scope") => "; check broker.token_scope",
        Some("invalid_target") => "; check broker.token_audience",
        Some("unauthorized_client" | "unsupported_grant_type") => "; let this client use client credentials there",
        _ if status == 401 => "; check broker.token_client_id and the file in broker.token_client_secret_file",
        _ if status == 404 => "; check the path of broker.token_url",
        _ => "",
    };
    Err(match (status, said.is_empty()) {
        (200, true) => "its answer holds no access_token; name the server's token endpoint".to_owned(),
        (_, true) => format!("it answers with HTTP status {status}{remedy}"),
        (_, false) => format!("it answers with HTTP status {status}, {}{remedy}", cleaned(&said, LONGEST_TEXT_BYTES)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn jwt(claims: &str) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_tokens_life_is_what_it_says_and_unknown_where_it_says_nothing() {
        for (token, seconds) in [
            (jwt(r#"{"exp": 1000060, "sub": "worker"}"#), Some(60)),
            (jwt(r#"{"exp": 1000060.9}"#), Some(60)),
            (jwt(r#"{"exp": 999000}"#), Some(0)),
            (jwt(r#"{"exp": -5}"#), None),
            (jwt(r#"{"exp": 1e300}"#), None),
            (jwt(r#"{"exp": "soon"}"#), None),
            (jwt("{}"), None),
            (jwt("[1]"), None),
            ("opaque".to_owned(), None),
            ("a.%%%.c".to_owned(), None),
            ("..".to_owned(), None),
        ] {
            assert_eq!(life_of(&token, now()).map(|life| life.as_secs()), seconds, "{token}");
        }
    }

    #[test]
    fn an_answer_is_a_token_or_says_what_to_do() {
        let token =
            |body: &str| read_answer(200, body.as_bytes(), now()).map(|token| token.life.map(|life| life.as_secs()));
        assert_eq!(token(r#"{"access_token": "a", "expires_in": 300}"#), Ok(Some(300)));
        assert_eq!(token(r#"{"access_token": "a", "expires_in": "300"}"#), Ok(Some(300)));
        assert_eq!(token(r#"{"access_token": "a"}"#), Ok(None));
        let own = format!(r#"{{"access_token": {:?}, "expires_in": -1}}"#, jwt(r#"{"exp": 1000007}"#));
        assert_eq!(token(&own), Ok(Some(7)), "the token itself says it");
        for (status, body, words) in [
            (
                401,
                r#"{"error": "invalid_client", "error_description": "no such client"}"#,
                "no such client; check broker.token_client_id",
            ),
            (400, r#"{"error": "invalid_scope"}"#, "check broker.token_scope"),
            (400, r#"{"error": "unauthorized_client"}"#, "client credentials"),
            (401, "<html>", "status 401; check broker.token_client_id"),
            (404, "", "status 404; check the path"),
            (503, "busy", "status 503"),
            (302, r#"{"access_token": "a"}"#, "status 302"),
            (200, "<html>", "holds no access_token"),
            (200, r#"{"access_token": 5}"#, "holds no access_token"),
            (400, "{\"error\": \"x\\u001b[31m\"}", "status 400, x"),
        ] {
            let problem = read_answer(status, body.as_bytes(), now()).unwrap_err();
            assert!(problem.contains(words) && !problem.contains('\u{1b}'), "{status} {body}: {problem}");
        }
    }

    #[test]
    fn a_file_holds_one_token_alone() {
        assert!(of_file("abc", now()).is_ok());
        for text in ["", "a b", "a\nb"] {
            assert!(of_file(text, now()).is_err(), "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_replaced_when_a_third_of_its_life_is_left_and_more_often_while_that_fails() {
        let (seconds, minute) = (Duration::from_secs, Duration::from_secs(60));
        let file = Tokens::new(TokenSource::File(PathBuf::new()));
        let of = |life| Token::new(SecretString::from("a"), life);
        let token = of(Some(seconds(3600)));
        assert_eq!(file.wait_for(&token), Some(40 * minute));
        tokio::time::advance(40 * minute).await;
        assert_eq!(file.wait_for(&token), Some(Duration::ZERO));
        assert_eq!(Tokens::wait_after_failure(&token), 5 * minute);
        tokio::time::advance(14 * minute).await;
        assert_eq!(Tokens::wait_after_failure(&token), 2 * minute);
        tokio::time::advance(5 * minute + seconds(59)).await;
        assert_eq!(Tokens::wait_after_failure(&token), seconds(1));
        tokio::time::advance(seconds(5)).await;
        assert_eq!((token.left(), Tokens::wait_after_failure(&token)), (Some(Duration::ZERO), AFTER_EXPIRY));
        assert_eq!(file.wait_for(&of(Some(Duration::ZERO))), Some(seconds(1)), "never without a pause");
        assert_eq!(file.wait_for(&of(None)), Some(minute));
    }

    #[test]
    fn neither_a_token_nor_a_url_shows_up_in_logs() {
        let url = Url::parse("https://user:hunter2@idp.example/token?key=hunter2").unwrap();
        let server = TokenServer {
            url,
            client_id: "id".to_owned(),
            secret: PathBuf::from("secret"),
            scope: None,
            audience: None,
            authorities: None,
        };
        let token = Token::new(SecretString::from("hunter2"), None);
        let shown = format!("{:?} {token:?}", Tokens::new(TokenSource::Server(server)));
        assert!(shown.contains("idp.example") && !shown.contains("hunter2"), "{shown}");
    }
}
