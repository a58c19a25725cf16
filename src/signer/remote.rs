//! Signs by asking a server that has the key: JSON-RPC `eth_signTransaction`, as Web3Signer, Clef and nodes serve it. What it
//! answers is believed only when it is exactly what was asked for.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jsonrpc_core::Value;
use reqwest::{Certificate, ClientBuilder, Identity, Url};
use web3::Transport;
use web3::error::Error;

use crate::model::{Address, Fee, RawTransaction, UnsignedTransaction};
use crate::observe::metrics::CallResult;
use crate::observe::traces::{Traced, Tracer};
use crate::rpc::{HttpTransport, client_with, label};
use crate::signer::{Signer, SignerError, answer};

/// Calls to one server at once.
const AT_ONCE: usize = 32;

/// A server that has the key of an account.
#[derive(Clone)]
pub struct RemoteSettings {
    pub url: Url,
    pub address: Address,
    pub timeout: Duration,
    pub tls: RemoteTls,
}

/// Certificates of a server's connections. Without any, the system's authorities are trusted and nothing is shown.
#[derive(Clone, Default)]
pub struct RemoteTls {
    authorities: Option<Vec<Certificate>>,
    identity: Option<Identity>,
}

impl RemoteTls {
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

    fn applied(&self, mut builder: ClientBuilder) -> ClientBuilder {
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

impl std::fmt::Debug for RemoteSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a password.
        f.debug_struct("RemoteSettings").field("address", &self.address).finish_non_exhaustive()
    }
}

const SIGN: &str = "eth_signTransaction";

/// A [`Signer`] on another machine, or in another process.
#[derive(Debug)]
pub struct RemoteSigner {
    server: HttpTransport,
    label: String,
    address: Address,
    tracer: Tracer,
}

impl RemoteSigner {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When the HTTP client cannot be made, for want of the system's certificates say.
    pub fn new(settings: &RemoteSettings, tracer: Tracer) -> Result<Self, Error> {
        let server = HttpTransport::new(
            client_with(settings.timeout, |builder| settings.tls.applied(builder))?,
            settings.url.clone(),
        );
        Ok(Self { server, label: label(&settings.url), address: settings.address, tracer })
    }

    /// Returns host and port of the server.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the accounts that the server says it has keys of.
    pub async fn accounts(&self) -> Result<Vec<Address>, SignerError> {
        let answer = self.server.execute("eth_accounts", Vec::new()).await.map_err(|error| self.away(&error))?;
        let unreadable = || self.unavailable("its eth_accounts is no list of addresses".to_owned());
        let texts = answer.as_array().ok_or_else(unreadable)?;
        texts.iter().map(|text| text.as_str()?.parse().ok()).collect::<Option<_>>().ok_or_else(unreadable)
    }

    async fn sign_one(
        &self,
        Traced { item: transaction, span }: Traced<UnsignedTransaction>,
    ) -> Result<RawTransaction, SignerError> {
        let asked = vec![self.wanted(&transaction)];
        let began = Instant::now();
        let answer = self.server.execute(SIGN, asked).await;
        if let Some(span) = span {
            let failure = answer.as_ref().err().map(|error| {
                let code = if let Error::Rpc(error) = error { Some(error.code.code()) } else { None };
                (CallResult::Unreachable.as_str(), code, self.away(error).to_string())
            });
            self.tracer.record_call(&span, (SIGN, &self.label), began.elapsed(), failure);
        }
        let answer = answer.map_err(|error| self.away(&error))?;
        let wrong = |problem: String| SignerError::Wrong {
            label: self.label.clone(),
            address: self.address,
            nonce: transaction.nonce,
            problem,
        };
        let raw = raw_of(&answer).ok_or_else(|| wrong("it holds no bytes in hexadecimal".to_owned()))?;
        answer::checked(&transaction, self.address, raw).map_err(wrong)
    }

    fn wanted(&self, transaction: &UnsignedTransaction) -> Value {
        let number = |number: u128| Value::from(format!("{number:#x}"));
        let fields = [
            ("from", self.address.to_string().into()),
            ("gas", number(transaction.gas.0.into())),
            ("value", number(transaction.value.0)),
            ("nonce", number(transaction.nonce.0.into())),
            ("data", format!("0x{}", hex::encode(&transaction.data)).into()),
            ("chainId", number(transaction.chain_id.into())),
        ];
        let prices = match transaction.fee {
            Fee::Eip1559 { max_fee, tip } => {
                vec![("maxFeePerGas", number(max_fee.0)), ("maxPriorityFeePerGas", number(tip.0))]
            }
            Fee::Legacy { gas_price } => vec![("gasPrice", number(gas_price.0))],
        };
        let receiver = transaction.to.map(|to| ("to", Value::from(to.to_string())));
        fields.into_iter().chain(receiver).chain(prices).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn away(&self, error: &Error) -> SignerError {
        self.unavailable(if let Error::Rpc(error) = error {
            format!("it refuses: {}", error.message)
        } else {
            error.to_string()
        })
    }

    fn unavailable(&self, detail: String) -> SignerError {
        SignerError::Unavailable { address: self.address, detail: format!("{}: {detail}", self.label) }
    }
}

/// Reads the bytes of an answer: Web3Signer and Anvil return them, Clef and Geth return an object that has them as `raw`.
fn raw_of(answer: &Value) -> Option<Bytes> {
    let text = answer.as_str().or_else(|| answer.get("raw")?.as_str())?;
    hex::decode(text.strip_prefix("0x")?).ok().map(Bytes::from)
}

#[async_trait]
impl Signer for RemoteSigner {
    fn address(&self) -> Address {
        self.address
    }

    async fn sign(&self, transactions: Vec<Traced<UnsignedTransaction>>) -> Result<Vec<RawTransaction>, SignerError> {
        let answers = stream::iter(transactions).map(|transaction| self.sign_one(transaction));
        answers.buffered(AT_ONCE).try_collect().await
    }
}
