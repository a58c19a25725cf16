//! Receipts of one endpoint: of a whole block where it gives them, else of our own transactions one by one.

use std::collections::HashSet;

use jsonrpc_core::Value;
use serde_json::json;
use tracing::debug;

use crate::chain::endpoint::{Endpoint, MethodCall, Order};
use crate::chain::{ChainError, Header, Receipt, Result, answers};
use crate::model::TxHash;

const BLOCK_RECEIPTS: &str = "eth_getBlockReceipts";

/// The calls for the receipt of each of these.
pub(super) fn calls(hashes: &[TxHash]) -> impl Iterator<Item = MethodCall> + '_ {
    hashes.iter().map(|hash| ("eth_getTransactionReceipt", vec![json!(hash)]))
}

impl Endpoint {
    /// The receipts of those of `ours` that are in this very block.
    pub(super) async fn receipts_in(&self, block: &Header, ours: &[TxHash]) -> Result<Vec<Receipt>> {
        if !self.lacks(BLOCK_RECEIPTS) {
            match self.ask(BLOCK_RECEIPTS, vec![json!(block.hash)]).await {
                Ok(Value::Array(all)) if are_of(block, &all) => return self.pick(&all, ours),
                Ok(_) => debug!(block = %block.number, "receipts that are not this block's; asked for one by one"),
                Err(error @ ChainError::Node { .. }) => self.note_lack(BLOCK_RECEIPTS, &error),
                Err(error) => return Err(error),
            }
        }
        let calls: Vec<_> = calls(ours).collect();
        let receipts = self.read_receipts(self.ask_many(&calls, Order::Any).await)?;
        Ok(receipts.into_iter().flatten().filter(|receipt| receipt.transaction.block_hash == block.hash).collect())
    }

    fn pick(&self, all: &[Value], ours: &[TxHash]) -> Result<Vec<Receipt>> {
        let ours: HashSet<_> = ours.iter().collect();
        let is_ours = |value: &&Value| answers::receipt_hash(value).is_some_and(|hash| ours.contains(&hash));
        let read = |value: &Value| answers::receipt(value).map_err(|detail| self.nonsense(detail));
        let receipts: Result<Vec<_>> = all.iter().filter(is_ours).map(read).collect();
        Ok(receipts?.into_iter().flatten().collect())
    }

    pub(super) fn read_receipts(&self, answers: Vec<Result<Value>>) -> Result<Vec<Option<Receipt>>> {
        let read = |answer: Result<Value>| answers::receipt(&answer?).map_err(|detail| self.nonsense(detail));
        answers.into_iter().map(read).collect()
    }
}

/// All of the block's receipts and none of another's. Some chains give receipts beyond the block's transactions.
fn are_of(block: &Header, receipts: &[Value]) -> bool {
    let is_complete = block.transactions.is_none_or(|count| receipts.len() >= count);
    is_complete && receipts.iter().all(|receipt| answers::receipt_block(receipt) == Some(block.hash))
}
