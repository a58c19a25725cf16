//! The settings of an endpoint: its address, its role, and what it asks for.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, Url};
use serde::{Deserialize, Serialize};
use web3::error::Error;

use crate::rpc::{Headers, Tls, client_with};

/// Says what an endpoint is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    All,
    /// Gets no transactions.
    Read,
    /// Gets transactions, and is asked for nothing else.
    Send,
}

impl Role {
    pub fn reads(self) -> bool {
        match self {
            Self::All | Self::Read => true,
            Self::Send => false,
        }
    }

    pub fn sends(self) -> bool {
        match self {
            Self::All | Self::Send => true,
            Self::Read => false,
        }
    }
}

/// An endpoint as it is configured.
#[derive(Clone)]
pub struct EndpointAccess {
    pub url: Url,
    pub role: Role,
    /// While one is private, no other gets transactions.
    pub is_private: bool,
    /// Each call carries them.
    pub headers: Headers,
    pub tls: Tls,
    /// Calls a second at most, where that is configured.
    pub calls_per_second: Option<f64>,
}

impl std::fmt::Debug for EndpointAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a key, and headers are keys.
        f.debug_struct("EndpointAccess")
            .field("role", &self.role)
            .field("is_private", &self.is_private)
            .finish_non_exhaustive()
    }
}

impl From<Url> for EndpointAccess {
    fn from(url: Url) -> Self {
        Self {
            url,
            role: Role::All,
            is_private: false,
            headers: Headers::default(),
            tls: Tls::default(),
            calls_per_second: None,
        }
    }
}

impl EndpointAccess {
    /// Returns which of these endpoints get transactions.
    pub fn receivers(all: &[Self]) -> Vec<bool> {
        let has_private = all.iter().any(|endpoint| endpoint.is_private);
        all.iter().map(|endpoint| endpoint.role.sends() && (endpoint.is_private || !has_private)).collect()
    }

    /// Returns the client for this endpoint: the shared one unless it needs headers or certificates of its own.
    pub(super) fn client(&self, shared: &Client, timeout: Duration) -> Result<Client, Error> {
        if !self.headers.are_set() && self.tls.is_default() {
            return Ok(shared.clone());
        }
        self.client_with(timeout, |builder| builder)
    }

    /// Returns a client of its own.
    pub(super) fn client_with(
        &self,
        timeout: Duration,
        more: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> Result<Client, Error> {
        client_with(timeout, |builder| more(self.headers.applied(self.tls.applied(builder))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_endpoint_keeps_transactions_from_all_others() {
        let of = |role, is_private| {
            let url: Url = "http://a".parse().unwrap();
            EndpointAccess { role, is_private, ..url.into() }
        };
        for (endpoints, receivers) in [
            (vec![of(Role::All, false), of(Role::Read, false), of(Role::Send, false)], vec![true, false, true]),
            (vec![of(Role::All, false), of(Role::Send, true), of(Role::Send, false)], vec![false, true, false]),
            (vec![of(Role::All, true), of(Role::All, false), of(Role::Send, true)], vec![true, false, true]),
            (vec![of(Role::Read, false)], vec![false]),
        ] {
            assert_eq!(EndpointAccess::receivers(&endpoints), receivers, "{endpoints:?}");
        }
    }
}
