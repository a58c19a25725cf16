//! Certificates of a server's connections: whom we trust, and what we show.

use std::time::Duration;

use reqwest::{Certificate, ClientBuilder, Identity};

use crate::rpc::client_with;

/// Without any, the system's authorities are trusted and nothing is shown.
#[derive(Clone, Default)]
pub struct Tls {
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
}

impl Tls {
    /// Trusts these authorities (PEM) and no others.
    pub fn trust_only(&mut self, authorities: &[u8]) -> Result<(), String> {
        let read = Certificate::from_pem_bundle(authorities).map_err(|error| text_of(&error))?;
        if read.is_empty() {
            return Err("holds no certificate in PEM".to_owned());
        }
        self.authorities = Some(read);
        Ok(())
    }

    /// Shows this certificate with those that vouch for it, and has this key (PEM, all of it).
    pub fn show(&mut self, certificate: &[u8], key: &[u8]) -> Result<(), String> {
        let identity = Identity::from_pem(&[key, b"\n", certificate].concat());
        self.identity = Some(identity.map_err(|error| text_of(&error))?);
        // Whether the two go together shows only when a client is made.
        client_with(Duration::ZERO, |builder| self.applied(builder)).map(drop).map_err(|error| error.to_string())
    }

    /// Returns whether it changes nothing.
    pub(crate) fn is_default(&self) -> bool {
        self.authorities.is_none() && self.identity.is_none()
    }

    pub(crate) fn applied(&self, mut builder: ClientBuilder) -> ClientBuilder {
        if let Some(authorities) = &self.authorities {
            builder = builder.tls_certs_only(authorities.iter().cloned());
        }
        match &self.identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        }
    }
}

fn text_of(error: &reqwest::Error) -> String {
    let first: &dyn std::error::Error = error;
    let causes = std::iter::successors(Some(first), |cause| cause.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
