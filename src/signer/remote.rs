//! Signs by asking a server that has the key, over JSON-RPC: Web3Signer and nodes serve `eth_signTransaction`, Clef serves
//! `account_signTransaction`. What it answers is believed only when it is exactly what was asked for.
//!
//! Clef: <https://github.com/ethereum/go-ethereum/blob/v1.16.9/cmd/clef/README.md#external-api>.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jsonrpc_core::Value;
use reqwest::Url;
use tracing::info;
use web3::Transport;
use web3::error::Error;
use web3::signing::keccak256;

use crate::model::{Address, Fee, RawTransaction, UnsignedTransaction};
use crate::observe::metrics::CallResult;
use crate::observe::traces::{Traced, Tracer};
use crate::policy::classify::is_missing_method;
use crate::rpc::{HttpTransport, Tls, client_with, label};
use crate::signer::{Signer, SignerError, answer};

/// Calls to one server at once.
const AT_ONCE: usize = 32;

/// Says what a server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteKind {
    /// Web3Signer and nodes sign by `eth_signTransaction`.
    Eth,
    Clef,
}

impl RemoteKind {
    fn signs_by(self) -> &'static str {
        match self {
            Self::Eth => "eth_signTransaction",
            Self::Clef => "account_signTransaction",
        }
    }

    fn lists_by(self) -> &'static str {
        match self {
            Self::Eth => "eth_accounts",
            Self::Clef => "account_list",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Eth => Self::Clef,
            Self::Clef => Self::Eth,
        }
    }
}

/// A server that has the key of an account.
#[derive(Clone)]
pub struct RemoteSettings {
    pub url: Url,
    /// None where its answers are to show it.
    pub kind: Option<RemoteKind>,
    pub address: Address,
    pub timeout: Duration,
    pub tls: Tls,
}

impl std::fmt::Debug for RemoteSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a password.
        f.debug_struct("RemoteSettings").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A [`Signer`] on another machine, or in another process.
#[derive(Debug)]
pub struct RemoteSigner {
    server: HttpTransport,
    label: String,
    kind: Option<RemoteKind>,
    /// Shown by its answers.
    found: Mutex<Option<RemoteKind>>,
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
        let RemoteSettings { kind, address, .. } = *settings;
        Ok(Self { server, label: label(&settings.url), kind, found: Mutex::default(), address, tracer })
    }

    /// Returns host and port of the server.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the accounts that the server says it has keys of.
    pub async fn accounts(&self) -> Result<Vec<Address>, SignerError> {
        let (kind, answer) = self.ask(RemoteKind::lists_by, |_| Vec::new()).await;
        let answer = answer.map_err(|error| self.away(&error))?;
        let unreadable = || self.unavailable(format!("its {} is no list of addresses", kind.lists_by()));
        let texts = answer.as_array().ok_or_else(unreadable)?;
        texts.iter().map(|text| text.as_str()?.parse().ok()).collect::<Option<_>>().ok_or_else(unreadable)
    }

    async fn sign_one(
        &self,
        Traced { item: transaction, span }: Traced<UnsignedTransaction>,
    ) -> Result<RawTransaction, SignerError> {
        let began = Instant::now();
        let (kind, answer) = self.ask(RemoteKind::signs_by, |kind| vec![self.wanted(&transaction, kind)]).await;
        if let Some(span) = span {
            let failure = answer.as_ref().err().map(|error| {
                let code = if let Error::Rpc(error) = error { Some(error.code.code()) } else { None };
                (CallResult::Unreachable.as_str(), code, self.away(error).to_string())
            });
            self.tracer.record_call(&span, (kind.signs_by(), &self.label), began.elapsed(), failure);
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

    /// Makes a call by the method that the server serves, and returns which that is. Where nothing has shown it yet, or the server has
    /// become another one, a method that it lacks leads to the other.
    async fn ask(
        &self,
        method: fn(RemoteKind) -> &'static str,
        params: impl Fn(RemoteKind) -> Vec<Value>,
    ) -> (RemoteKind, Result<Value, Error>) {
        let ask = async |kind| self.server.execute(method(kind), params(kind)).await;
        if let Some(kind) = self.kind {
            return (kind, ask(kind).await);
        }
        let first = (*self.found()).unwrap_or(RemoteKind::Eth);
        let answer = ask(first).await;
        if !lacks_method(&answer) {
            self.note(first, &answer);
            return (first, answer);
        }
        let second = first.other();
        let answer_of_other = ask(second).await;
        if lacks_method(&answer_of_other) {
            return (first, Err(neither(method(first), method(second))));
        }
        self.note(second, &answer_of_other);
        (second, answer_of_other)
    }

    /// Notes what an answer shows of the server.
    fn note(&self, kind: RemoteKind, answer: &Result<Value, Error>) {
        if !matches!(answer, Ok(_) | Err(Error::Rpc(_))) {
            return;
        }
        if self.found().replace(kind) != Some(kind) {
            info!(account = %self.address, signer = self.label, "the signer is asked by {}", kind.signs_by());
        }
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Option<RemoteKind>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wanted(&self, transaction: &UnsignedTransaction, kind: RemoteKind) -> Value {
        // Clef refuses, or warns of, an address without its checksum.
        let address = |address: &Address| match kind {
            RemoteKind::Eth => address.to_string(),
            RemoteKind::Clef => checksummed(address),
        };
        let number = |number: u128| Value::from(format!("{number:#x}"));
        let fields = [
            ("from", address(&self.address).into()),
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
        let receiver = transaction.to.map(|to| ("to", Value::from(address(&to))));
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

fn lacks_method(answer: &Result<Value, Error>) -> bool {
    matches!(answer, Err(Error::Rpc(error)) if is_missing_method(error.code.code(), &error.message))
}

fn neither(one: &str, other: &str) -> Error {
    let message = format!("it has neither {one} nor {other}");
    Error::Rpc(jsonrpc_core::Error { code: jsonrpc_core::ErrorCode::MethodNotFound, message, data: None })
}

/// Writes an address with the checksum of EIP-55 in its capitals.
fn checksummed(address: &Address) -> String {
    let digits = hex::encode(address.as_bytes());
    let hash = hex::encode(keccak256(digits.as_bytes()));
    let capitals = digits.chars().zip(hash.chars()).map(
        |(digit, hash)| {
            if hash >= '8' { digit.to_ascii_uppercase() } else { digit }
        },
    );
    format!("0x{}", capitals.collect::<String>())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;
    use crate::model::{Gas, Nonce, Wei};
    use crate::signer::LocalSigner;
    use crate::support::{ACCOUNTS, Reply, ScriptedNode};

    const ETH: &str = "eth_signTransaction";
    const CLEF: &str = "account_signTransaction";

    fn unsigned(nonce: u64) -> UnsignedTransaction {
        UnsignedTransaction {
            chain_id: 1,
            nonce: Nonce(nonce),
            to: Some("0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed".parse().unwrap()),
            value: Wei(7),
            gas: Gas(50_000),
            data: Bytes::from_static(b"data"),
            fee: Fee::Eip1559 { max_fee: Wei(9), tip: Wei(2) },
        }
    }

    fn local() -> LocalSigner {
        LocalSigner::from_hex(&secrecy::SecretString::from(ACCOUNTS[0].1)).unwrap()
    }

    /// A server that signs nonce 0 to 3 by this method and lacks all others.
    async fn server(method: &'static str) -> ScriptedNode {
        let mut signed = Vec::new();
        for nonce in 0..4 {
            let raw = local().sign(vec![unsigned(nonce).into()]).await.unwrap().remove(0);
            signed.push(format!("0x{}", hex::encode(raw.bytes)));
        }
        ScriptedNode::start(None, move |call| {
            let place =
                || usize::from_str_radix(call["params"][0]["nonce"].as_str().unwrap().trim_start_matches("0x"), 16);
            match call["method"].as_str().unwrap() {
                asked if asked != method => {
                    Reply::error(-32601, &format!("the method {asked} does not exist/is not available"))
                }
                CLEF => Reply::Result(json!({"raw": signed[place().unwrap()], "tx": {}})),
                _ => Reply::Result(json!(signed[place().unwrap()])),
            }
        })
        .await
    }

    fn signer(url: &str, kind: Option<RemoteKind>) -> RemoteSigner {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = RemoteSettings {
            url: url.parse().unwrap(),
            kind,
            address: local().address(),
            timeout: Duration::from_secs(5),
            tls: Tls::default(),
        };
        RemoteSigner::new(&settings, Tracer::default()).unwrap()
    }

    async fn sign(signer: &RemoteSigner, nonce: u64) -> Result<(), String> {
        signer.sign(vec![unsigned(nonce).into()]).await.map(drop).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_server_is_asked_by_the_method_that_it_has_and_that_is_kept() {
        for (method, first) in [(ETH, [1, 0]), (CLEF, [1, 1])] {
            let server = server(method).await;
            let signer = signer(&server.url(), None);
            assert_eq!(sign(&signer, 0).await, Ok(()), "{method}");
            assert_eq!([server.times(ETH), server.times(CLEF)], first, "{method}");
            for nonce in 1..4 {
                assert_eq!(sign(&signer, nonce).await, Ok(()), "{method}");
            }
            let others = [ETH, CLEF].iter().filter(|other| **other != method).map(|other| server.times(other));
            assert_eq!(others.sum::<usize>(), usize::from(method != ETH), "{method}: no other is tried again");
        }
    }

    #[tokio::test]
    async fn a_configured_kind_is_not_left() {
        for (kind, method) in [(RemoteKind::Eth, ETH), (RemoteKind::Clef, CLEF)] {
            let server = server(method).await;
            assert_eq!(sign(&signer(&server.url(), Some(kind)), 0).await, Ok(()));
            let refused = sign(&signer(&server.url(), Some(kind.other())), 0).await.unwrap_err();
            assert!(refused.contains("does not exist"), "{refused}");
            assert_eq!(server.times(method), 1);
        }
    }

    /// Another server may be behind the address; one that has no method for signing says so.
    #[tokio::test]
    async fn a_server_that_becomes_another_one_is_followed_and_one_without_either_method_is_named() {
        let turn = Arc::new(AtomicUsize::new(0));
        let now = Arc::clone(&turn);
        let raw = local().sign(vec![unsigned(0).into()]).await.unwrap().remove(0);
        let raw = json!(format!("0x{}", hex::encode(raw.bytes)));
        let server = ScriptedNode::start(None, move |call| {
            let has = [Some(CLEF), Some(ETH), None][now.load(Ordering::Relaxed)];
            if call["method"].as_str() == has {
                Reply::Result(raw.clone())
            } else {
                Reply::error(-32601, "Method not found")
            }
        });
        let server = server.await;
        let signer = signer(&server.url(), None);
        for place in 0..2 {
            turn.store(place, Ordering::Relaxed);
            assert_eq!(sign(&signer, 0).await, Ok(()));
        }
        turn.store(2, Ordering::Relaxed);
        let named = sign(&signer, 0).await.unwrap_err();
        assert!(named.contains("has neither eth_signTransaction nor account_signTransaction"), "{named}");
    }

    /// A refusal is no sign of another kind.
    #[tokio::test]
    async fn a_server_that_refuses_is_not_asked_by_another_method() {
        let server = ScriptedNode::start(None, |_| Reply::refusal("Request denied")).await;
        let refused = sign(&signer(&server.url(), None), 0).await.unwrap_err();
        assert!(refused.contains("it refuses: Request denied"), "{refused}");
        assert_eq!([server.times(ETH), server.times(CLEF)], [1, 0]);
    }

    /// Clef by default refuses a receiver without its checksum, and takes one object.
    #[test]
    fn what_clef_is_asked_for_has_checksums_and_a_node_gets_plain_addresses() {
        let signer = signer("http://127.0.0.1:1", None);
        let clef = signer.wanted(&unsigned(1), RemoteKind::Clef);
        assert_eq!(clef["to"], "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed");
        assert_eq!(clef["from"], "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
        assert_eq!(
            (&clef["nonce"], &clef["maxFeePerGas"], &clef["data"]),
            (&json!("0x1"), &json!("0x9"), &json!("0x64617461"))
        );
        assert_eq!(signer.wanted(&unsigned(1), RemoteKind::Eth)["to"], "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed");
        for known in ["0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359", "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb"] {
            assert_eq!(checksummed(&known.to_lowercase().parse().unwrap()), known, "an example of EIP-55");
        }
    }
}
