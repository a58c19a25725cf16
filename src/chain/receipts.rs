//! Receipts of one endpoint: of a whole block where it gives them, else of our own transactions one by one.

use std::collections::HashSet;

use jsonrpc_core::Value;
use serde::Deserialize;
use serde_json::json;
use tracing::debug;

use crate::chain::answers::ReceiptFields;
use crate::chain::endpoint::{Endpoint, MethodCall, Order};
use crate::chain::{ChainError, Receipt, Result, answers};
use crate::model::{BlockHash, TxHash};

const BLOCK_RECEIPTS: &str = "eth_getBlockReceipts";

pub(super) fn calls(hashes: &[TxHash]) -> impl Iterator<Item = MethodCall> + '_ {
    hashes.iter().map(|hash| MethodCall::new("eth_getTransactionReceipt", vec![json!(hash)]))
}

impl Endpoint {
    /// Returns the receipts of those of `ours` that are in this very block.
    pub(super) async fn receipts_in(&self, block: BlockHash, ours: &[TxHash]) -> Result<Vec<Receipt>> {
        if !self.lacks(BLOCK_RECEIPTS) {
            match self.ask::<Option<Vec<ReceiptFields>>>(BLOCK_RECEIPTS, vec![json!(block)]).await {
                Ok(Some(all)) if all.iter().all(|receipt| receipt.block() == Some(block)) => {
                    let found = self.pick(&all, ours)?;
                    if found.len() == ours.len() {
                        return Ok(found);
                    }
                    debug!(block.hash = %block, "not all of the block's receipts; asked for one by one");
                }
                Ok(_) => debug!(block.hash = %block, "receipts that are not this block's; asked for one by one"),
                Err(error @ ChainError::Node { .. }) => self.record_lack(BLOCK_RECEIPTS, &error),
                Err(error) => return Err(error),
            }
        }
        let calls: Vec<_> = calls(ours).collect();
        let answers = self.ask_many(&calls, Order::Any).await.into_iter();
        let receipts = answers.map(|answer| self.read_receipt(answer?)).collect::<Result<Vec<_>>>()?;
        Ok(receipts.into_iter().flatten().filter(|receipt| receipt.transaction.block_hash == block).collect())
    }

    fn pick(&self, all: &[ReceiptFields], ours: &[TxHash]) -> Result<Vec<Receipt>> {
        let ours: HashSet<_> = ours.iter().collect();
        let is_ours = |fields: &&ReceiptFields| fields.transaction().is_some_and(|hash| ours.contains(&hash));
        all.iter().filter(is_ours).map(|fields| answers::receipt(fields).map_err(|d| self.nonsense(d))).collect()
    }

    /// Returns `None` for a node's `null`.
    pub(super) fn read_receipt(&self, answer: Value) -> Result<Option<Receipt>> {
        let fields = Option::<ReceiptFields>::deserialize(answer);
        let fields = fields.map_err(|error| self.nonsense(format!("a receipt: {error}")))?;
        fields.map(|fields| answers::receipt(&fields).map_err(|detail| self.nonsense(detail))).transpose()
    }
}
