//! Records that are in the chain already, by a transaction that this journal does not know of: another worker's, or one from
//! before the journal was lost. What is there with the same content is what the request asks for.

use crate::chain::follow::record_search::{Record, Search, SearchError, find};
use crate::chain::{BlockTag, Chain, ChainError, Inclusion};
use crate::model::event::FinalTransaction;
use crate::model::{Address, BlockNumber};
use crate::policy::records::Taken;
use crate::stages::lane::Lane;
use crate::stages::settle::inbox::LaneVerdict;

/// Calls for the log in one look at one record. A node that takes so short ranges has to be asked by hand: `chainwriter verify`.
const CALLS: u32 = 64;
/// Blocks below the head within which a fork may be.
const NEAR: u64 = 256;

impl Lane {
    /// What an id that is taken means for a request that nothing of can land. `None`: it is to be asked again, since the
    /// record is not final yet.
    pub(super) async fn judge_taken(
        &mut self,
        contract: Address,
        taken: &Taken,
    ) -> Result<Option<LaneVerdict>, ChainError> {
        if !taken.is_ours() {
            return Ok(Some(LaneVerdict::Failed(taken.cause(""))));
        }
        let (Some(head), Some(height)) = (&self.head, self.final_up_to) else { return Ok(None) };
        let search = Search { contract, id: Some(taken.id), from: BlockNumber(0), to: head.number, calls: CALLS };
        let failed = |why: &str| Ok(Some(LaneVerdict::Failed(taken.cause(why))));
        let record = match find(self.chain.as_ref(), search, |_| true, |_| {}).await {
            Ok(Some(record)) if record.logged.content == taken.ours => record,
            Ok(Some(_)) => return failed("its log says otherwise"),
            Ok(None) => return failed("no node shows the transaction that wrote it"),
            Err(SearchError::Chain(error)) if error.is_of_endpoint() => return Err(error),
            Err(error) => return failed(&error.to_string()),
        };
        let inclusion = record.inclusion;
        let is_deep = head.number.0.saturating_sub(inclusion.block_number.0) > NEAR;
        if inclusion.block_number > height || !self.stands(inclusion, is_deep).await? {
            return Ok(None);
        }
        match transaction_of(self.chain.as_ref(), &record).await? {
            Some(transaction) => Ok(Some(LaneVerdict::Found(transaction))),
            None => {
                failed(&format!("{} cannot be told as a transaction of {}", inclusion.tx_hash, record.logged.writer))
            }
        }
    }

    /// Whether its block is part of the chain. Near the head that is followed by each block's parent; far below nodes have
    /// no forks.
    async fn stands(&mut self, inclusion: Inclusion, is_deep: bool) -> Result<bool, ChainError> {
        if !is_deep {
            return self.tracker.is_canonical(inclusion.block_number, inclusion.block_hash).await;
        }
        let header = self.chain.header(BlockTag::Number(inclusion.block_number)).await?;
        Ok(header.is_some_and(|header| header.hash == inclusion.block_hash))
    }

    /// The same for one that reverted at finality. A record that was in the way then is final, too.
    pub(super) async fn verdict_on_taken(&mut self, contract: Address, taken: &Taken) -> LaneVerdict {
        match self.judge_taken(contract, taken).await {
            Ok(Some(verdict)) => verdict,
            Ok(None) => LaneVerdict::Failed(taken.cause("it was not final when it was looked")),
            Err(error) => LaneVerdict::Failed(taken.cause(&error.to_string())),
        }
    }
}

/// The transaction that wrote a record, whole.
async fn transaction_of(chain: &dyn Chain, record: &Record) -> Result<Option<FinalTransaction>, ChainError> {
    let inclusion = record.inclusion;
    let sent = chain.sent_in(record.logged.writer, inclusion.block_number).await?;
    let sent = sent.and_then(|block| block.sent.into_iter().find(|sent| sent.tx_hash == inclusion.tx_hash));
    let receipt = chain.receipts(&[inclusion.tx_hash]).await?.into_iter().flatten().next();
    let receipt = receipt.filter(|receipt| receipt.succeeded && receipt.inclusion() == inclusion);
    Ok(sent.zip(receipt).map(|(sent, receipt)| FinalTransaction { nonce: sent.nonce, ..receipt.transaction }))
}
