//! How a connection shows who it is: a password, a client certificate or a token; and over which TLS.

use std::sync::Arc;

use lapin::auth::AuthProvider;
use lapin::types::{LongString, ShortString};
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::ClientConfig;

use crate::broker::tls::TlsFiles;
use crate::broker::token::{Token, Tokens};

/// The keys of `[broker]` about certificates and the login. All files are read again for each connection.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub tls: TlsFiles,
    pub login: Login,
}

#[derive(Debug, Clone, Default)]
pub enum Login {
    /// User and password of the address.
    #[default]
    Password,
    /// The broker takes the user's name from the client certificate (SASL EXTERNAL).
    Certificate,
    /// OAuth 2: a token in place of the password.
    Token(Arc<Tokens>),
}

/// Why no connection can be tried, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    pub(super) detail: String,
    pub(super) remedy: &'static str,
}

impl Obstacle {
    fn new(detail: impl ToString, remedy: &'static str) -> Self {
        Self { detail: detail.to_string(), remedy }
    }
}

/// All that a connection needs to show, as the files and the token server say now.
#[derive(Clone)]
pub(super) struct Pass {
    /// Set where an address is `amqps://`.
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) shows_certificate: bool,
    pub(super) token: Option<Token>,
    is_external: bool,
}

impl Access {
    /// Reads the files, and gets a token where one is needed.
    pub(super) async fn pass(&self, uris: &[AMQPUri]) -> Result<Pass, Obstacle> {
        let is_encrypted = |uri: &&AMQPUri| uri.scheme == AMQPScheme::AMQPS;
        let encrypted = uris.iter().filter(is_encrypted).count();
        let is_external = matches!(self.login, Login::Certificate);
        if encrypted < uris.len() && (self.tls.are_set() || is_external) {
            let key = if self.tls.authorities.is_some() { "ca_file" } else { "certificate_file" };
            let problem =
                format!("broker.{key} is set, and an address of the broker is amqp://, which is not encrypted");
            return Err(Obstacle::new(problem, "write amqps://, with the port of the broker's TLS listener"));
        }
        let tls = if encrypted > 0 {
            let files = self.tls.clone();
            let read = tokio::task::spawn_blocking(move || files.client_config()).await;
            let unreadable =
                "put a file in PEM there that the worker's user may read; it is read again at the next connect";
            let config = read.map_err(|error| Obstacle::new(error, "restart the worker"))?;
            Some(Arc::new(config.map_err(|fault| Obstacle::new(fault, unreadable))?))
        } else {
            None
        };
        let token = match &self.login {
            Login::Token(tokens) => {
                let without = "the broker is not asked without a token; the next connect asks for one again";
                Some(tokens.current().await.map_err(|error| Obstacle::new(error, without))?)
            }
            Login::Password | Login::Certificate => None,
        };
        Ok(Pass { tls, shows_certificate: self.tls.identity.is_some(), token, is_external })
    }

    /// Returns what to do about a refused login. A broker that does not offer a mechanism ends the connection without a word.
    pub(super) fn remedy(&self, refusal: &str, is_end: bool) -> Option<&'static str> {
        if is_end && matches!(self.login, Login::Certificate) {
            return Some(
                "see the broker's log: mostly it does not offer EXTERNAL; enable its plugin rabbitmq_auth_mechanism_ssl, and list \
                 EXTERNAL in auth_mechanisms",
            );
        }
        if !refusal.contains("ACCESS_REFUSED") {
            return None;
        }
        match self.login {
            Login::Password => None,
            Login::Certificate => Some(
                "on the broker, add a user whose name is the certificate's common name, or its alternative name, as \
                 ssl_cert_login_from in rabbitmq.conf says. The broker's log names the user that it found none of",
            ),
            Login::Token(_) => Some(
                "the broker does not take the token: its audience must hold auth_oauth2.resource_server_id, its scopes must grant \
                 this virtual host, and the broker must know the key that signed it. The broker's log says more",
            ),
        }
    }

    /// Drops a token that the broker refused.
    pub(super) async fn forget(&self) {
        if let Login::Token(tokens) = &self.login {
            tokens.forget().await;
        }
    }
}

impl Pass {
    /// Returns what to show in place of the address's user and password.
    pub(super) fn login(&self) -> Option<Shown> {
        match &self.token {
            // RabbitMQ takes the user's name from the token.
            Some(token) => Some(Shown { mechanism: "PLAIN", response: format!("\0\0{}", token.text()).into() }),
            None => self.is_external.then(|| Shown { mechanism: "EXTERNAL", response: LongString::default() }),
        }
    }
}

/// A login that has no second step.
pub(super) struct Shown {
    mechanism: &'static str,
    response: LongString,
}

impl AuthProvider for Shown {
    fn mechanism(&self) -> ShortString {
        self.mechanism.into()
    }

    fn auth_starter(&self) -> Result<LongString, String> {
        Ok(self.response.clone())
    }
}
