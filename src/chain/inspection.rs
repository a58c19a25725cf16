//! Calls for commands alone: what a node is, what is at an address, what became of a deployment.

use bytes::Bytes;
use jsonrpc_core::Value;
use serde_json::json;

use crate::chain::route::Route;
use crate::chain::{Chain, ChainError, CountAt, NodeClient, Result, answers, scalars};
use crate::model::{Address, BlockNumber, Gas, Nonce, TxHash};
use crate::policy::classify::is_missing_method;

impl NodeClient {
    /// Returns the account's next nonce with its pending transactions, as each endpoint reports it, by the endpoint's label.
    pub async fn pending_counts(&self, account: Address) -> Vec<(String, Result<Nonce>)> {
        self.counts(account, CountAt::Pending).await
    }

    /// Returns the code of the contract at this address; empty where there is none.
    pub async fn code(&self, address: Address) -> Result<Bytes> {
        self.ask("eth_getCode", vec![json!(address), json!("latest")], |answer: Value| {
            let code = if answer.is_null() { Some(Bytes::new()) } else { scalars::bytes(&answer) };
            code.ok_or_else(|| format!("code {answer}"))
        })
        .await
    }

    /// Returns the node's name of itself, such as `Geth/v1.16.7-stable/linux-amd64/go1.25.4`.
    pub async fn program(&self) -> Result<String> {
        self.ask("web3_clientVersion", vec![], Ok).await
    }

    /// Sends bytes that are no transaction to an endpoint that gets transactions, and returns whether it refuses them like one.
    ///
    /// # Errors
    /// When it does not answer, or does not support the method.
    pub async fn send_nothing(&self) -> Result<()> {
        let mut route = Route::of_transactions(&self.endpoints);
        let Some(endpoint) = route.next().await else { return Err(route.failure()) };
        match endpoint.ask::<Value>("eth_sendRawTransaction", vec![json!("0x")]).await {
            Err(ChainError::Node { code, message, .. }) if !is_missing_method(code, &message) => Ok(()),
            Err(error) => Err(error),
            Ok(answer) => Err(endpoint.nonsense(format!("it takes bytes that are no transaction: {answer}"))),
        }
    }

    /// Estimates the gas of deploying this code.
    ///
    /// # Errors
    /// When no endpoint answers, or the node refuses.
    pub async fn estimate_creation(&self, from: Address, code: &[u8]) -> Result<Gas> {
        let call = json!({ "from": from, "data": format!("0x{}", hex::encode(code)) });
        self.ask("eth_estimateGas", vec![call, json!("latest")], |answer: Value| {
            scalars::amount(&answer).map(Gas).ok_or_else(|| format!("gas estimate {answer}"))
        })
        .await
    }

    /// Returns the contract that this transaction deployed, once it is in a block.
    ///
    /// # Errors
    /// When no endpoint answers, or it reverted.
    pub async fn created(&self, transaction: TxHash) -> Result<Option<(Address, BlockNumber)>> {
        self.ask("eth_getTransactionReceipt", vec![json!(transaction)], answers::created).await
    }
}
