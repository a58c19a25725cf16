//! Checks that an endpoint may be used: that it serves the right chain, is up to date, and has the state that it lacked.

use std::time::Duration;

use jsonrpc_core::Value;
use serde_json::json;
use tokio::time::Instant;

use crate::chain::endpoint::{Endpoint, MethodCall};
use crate::chain::{ChainError, Header, Result, scalars};
use crate::model::Timestamp;
use crate::policy::node_texts::is_missing_state;

const SYNCING: &str = "eth_syncing";
/// A node whose newest block is not older, and that has shown further blocks within this time, is up to date, whatever it says of
/// its syncing.
const YOUNG: Duration = Duration::from_secs(60);
/// A node that has this many blocks to go is not syncing: on fast chains it never has none.
const BLOCKS_TO_GO: u64 = 8;

/// The meaning of an answer to `eth_syncing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    Done,
    Behind,
    /// Nothing that can be understood.
    Unclear,
}

impl Endpoint {
    /// Checks its chain id, that it is not syncing, and that it has the state that it lacked before.
    pub(super) async fn verify(&self, expected: u64) -> Result<()> {
        let answer = self.check("eth_chainId", vec![]).await?;
        self.check_chain_id(&answer, expected)?;
        self.check_sync().await?;
        self.check_state().await?;
        self.record_serves();
        Ok(())
    }

    /// A node that does not say whether it is syncing may still be up to date. Some say that they are syncing whatever they do:
    /// a young head that moves counts for more.
    async fn check_sync(&self) -> Result<()> {
        if self.lacks(SYNCING) {
            return Ok(());
        }
        let sync = match self.check(SYNCING, vec![]).await {
            Ok(answer) => sync_of(&answer),
            Err(error @ ChainError::RateLimited { .. }) => return Err(error),
            Err(error) => {
                self.record_lack(SYNCING, &error);
                return Ok(());
            }
        };
        if sync == Sync::Done {
            return Ok(());
        }
        let is_young = self.newest_header().await.is_ok_and(|head| is_young(&head));
        if is_young && self.health().has_advanced_within(Instant::now(), YOUNG) {
            return Ok(());
        }
        Err(ChainError::Syncing { endpoint: self.label().to_owned() })
    }

    /// Reads the newest block out of turn.
    pub(super) async fn newest_header(&self) -> Result<Header> {
        let answer = self.check("eth_getBlockByNumber", vec![json!("latest"), Value::Bool(false)]).await?;
        self.read_newest(answer)
    }

    /// Makes the call again that showed that it lacks the state of its newest block.
    async fn check_state(&self) -> Result<()> {
        let Some(call) = self.lacking_state() else { return Ok(()) };
        let answer = self.check(call.method, call.params.clone()).await;
        self.noting_state(&call, answer).map(drop)
    }

    /// Notes whether a call on the state of the newest block shows that the endpoint lacks that.
    pub(super) fn noting_state<T>(&self, call: &MethodCall, answer: Result<T>) -> Result<T> {
        match answer {
            Err(ChainError::Node { message, .. }) if is_missing_state(&message) => {
                self.set_lacking_state(Some(call.clone()));
                Err(ChainError::NoState { endpoint: self.label().to_owned(), detail: message })
            }
            Ok(value) => {
                self.set_lacking_state(None);
                Ok(value)
            }
            Err(error) => Err(error),
        }
    }
}

fn is_young(head: &Header) -> bool {
    let now = u64::try_from(Timestamp::now().0 / 1000).unwrap_or_default();
    now.abs_diff(head.timestamp) <= YOUNG.as_secs()
}

/// Reads an answer to `eth_syncing`: `false`, or an object whose members differ from client to client.
fn sync_of(answer: &Value) -> Sync {
    let number = |names: &[&str]| names.iter().find_map(|name| number_of(answer.get(*name)?));
    match answer {
        Value::Object(_) => {
            let current = number(&["currentBlock", "current_block", "currentBlockNumber"]);
            let highest = number(&["highestBlock", "highest_block", "highestBlockNumber"]);
            match (current, highest) {
                (Some(current), Some(highest)) if highest.saturating_sub(current) <= BLOCKS_TO_GO.into() => Sync::Done,
                (Some(_), Some(_)) => Sync::Behind,
                _ => Sync::Unclear,
            }
        }
        Value::Bool(true) => Sync::Unclear,
        Value::Bool(false) | Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => Sync::Done,
    }
}

fn number_of(value: &Value) -> Option<u128> {
    scalars::quantity(value).or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// zq2, Nethermind, Erigon, Nitro and others: an object does not mean that a node is behind.
    #[test]
    fn whether_a_node_syncs_is_read_in_every_shape() {
        let table = [
            (json!(false), Sync::Done),
            (Value::Null, Sync::Done),
            (json!("false"), Sync::Done),
            (json!({"startingBlock": "0x0", "currentBlock": "0x64", "highestBlock": "0x64"}), Sync::Done),
            (json!({"currentBlock": "0x64", "highestBlock": "0x0"}), Sync::Done),
            (
                json!({"currentBlock": 100, "highestBlock": 101, "stages": [{"stage_name": "Headers", "block_number": "0x64"}]}),
                Sync::Done,
            ),
            (json!({"current_block": "100", "highest_block": "100"}), Sync::Done),
            (json!({"currentBlock": "0x1", "highestBlock": "0x64"}), Sync::Behind),
            (json!({"currentBlock": "0x1", "highestBlock": "0x64", "knownStates": "0x0"}), Sync::Behind),
            (json!({"messageOfLastBlock": 7, "blockNum": 7}), Sync::Unclear),
            (json!({}), Sync::Unclear),
            (json!(true), Sync::Unclear),
        ];
        for (answer, expected) in table {
            assert_eq!(sync_of(&answer), expected, "{answer}");
        }
    }
}
