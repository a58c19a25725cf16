//! Receipts of one endpoint: of a whole block where it gives them, else of our own transactions one by one.

use std::collections::HashSet;

use jsonrpc_core::Value;
use serde::Deserialize;
use serde_json::json;
use tracing::debug;

use crate::chain::answers::{NoReceipt, ReceiptFields};
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
        let failure = match self.block_receipts(block, ours).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error @ ChainError::RateLimited { .. }) => return Err(error),
            Err(error) => Some(error),
        };
        let calls: Vec<_> = calls(ours).collect();
        let answers = self.ask_many(&calls, Order::Any).await.into_iter();
        let receipts = answers.map(|answer| self.read_receipt(answer?)).collect::<Result<Vec<_>>>()?;
        if let Some(failure) = failure {
            // Single receipts replace the block's, whatever is wrong with those.
            self.record_lack(BLOCK_RECEIPTS, &failure);
        }
        Ok(receipts.into_iter().flatten().filter(|receipt| receipt.transaction.block_hash == block).collect())
    }

    /// Returns ours among the receipts of a block; `None` where the endpoint does not give all of them.
    async fn block_receipts(&self, block: BlockHash, ours: &[TxHash]) -> Result<Option<Vec<Receipt>>> {
        if self.lacks(BLOCK_RECEIPTS) {
            return Ok(None);
        }
        let Some(all) = self.ask::<Option<Vec<ReceiptFields>>>(BLOCK_RECEIPTS, vec![json!(block)]).await? else {
            return Ok(None);
        };
        self.record_method(BLOCK_RECEIPTS);
        if all.iter().any(|receipt| receipt.block() != Some(block)) {
            debug!(block.hash = %block, "receipts that are not this block's; asked for one by one");
            return Ok(None);
        }
        let found = self.pick(&all, ours)?;
        if found.len() < ours.len() {
            debug!(block.hash = %block, "not all of the block's receipts; asked for one by one");
            return Ok(None);
        }
        Ok(Some(found))
    }

    fn pick(&self, all: &[ReceiptFields], ours: &[TxHash]) -> Result<Vec<Receipt>> {
        let ours: HashSet<_> = ours.iter().collect();
        let is_ours = |fields: &&ReceiptFields| fields.transaction().is_some_and(|hash| ours.contains(&hash));
        let read = |fields| self.receipt_of(fields).transpose();
        all.iter().filter(is_ours).filter_map(read).collect()
    }

    /// Returns `None` for a node's `null`, and for a transaction that is in no block.
    pub(super) fn read_receipt(&self, answer: Value) -> Result<Option<Receipt>> {
        let fields = Option::<ReceiptFields>::deserialize(answer);
        let fields = fields.map_err(|error| self.nonsense(format!("a receipt: {error}")))?;
        fields.map_or(Ok(None), |fields| self.receipt_of(&fields))
    }

    fn receipt_of(&self, fields: &ReceiptFields) -> Result<Option<Receipt>> {
        match answers::receipt(fields) {
            Ok(receipt) => Ok(Some(receipt)),
            Err(NoReceipt::Pending) => Ok(None),
            Err(NoReceipt::NoStatus) => Err(ChainError::NoStatus { endpoint: self.label().to_owned() }),
            Err(NoReceipt::Unreadable(detail)) => Err(self.nonsense(detail)),
        }
    }
}
