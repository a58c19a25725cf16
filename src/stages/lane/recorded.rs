//! Records that are in the chain already, by a transaction that this journal does not know: another worker's, or one from
//! before the journal was lost. What is there with the same content is what the request asks for.

use crate::chain::follow::record_search::{Record, Search, SearchError, find};
use crate::chain::{Chain, ChainError, Receipt, Sent};
use crate::model::event::FinalTransaction;
use crate::model::{Address, BlockNumber};
use crate::policy::records::Taken;
use crate::stages::lane::term::Term;
use crate::stages::settle::inbox::LaneVerdict;

/// Calls for the log in one search for one record. A node that takes so short ranges has to be asked by hand:
/// `chainwriter verify`.
const CALLS: u32 = 64;

impl Term<'_> {
    /// Returns what an id that is taken means for a request of which nothing can land. `None`: the record is not final yet;
    /// ask again.
    pub(super) async fn verdict_on_taken(
        &mut self,
        contract: Address,
        taken: &Taken,
    ) -> Result<Option<LaneVerdict>, ChainError> {
        if !taken.is_ours() {
            return Ok(Some(LaneVerdict::Failed(taken.cause(""))));
        }
        let (Some(head), Some(height)) = (self.view.height(), self.view.final_up_to()) else { return Ok(None) };
        let chain = self.context.chain.as_ref();
        let search = Search { contract, id: Some(taken.id), from: BlockNumber(0), to: head, calls: CALLS };
        let failed = |why: &str| Ok(Some(LaneVerdict::Failed(taken.cause(why))));
        let record = match self.context.hear(find(chain, search, |_| true, |_| {})).await {
            Ok(Some(record)) if record.logged.content == taken.ours => record,
            Ok(Some(_)) => return failed("its log says otherwise"),
            Ok(None) => return failed("no node shows the transaction that wrote it"),
            Err(SearchError::Chain(error)) if error.is_of_endpoint() => return Err(error),
            Err(error) => return failed(&error.to_string()),
        };
        let inclusion = record.inclusion;
        if inclusion.block_number > height || !self.view.stands(chain, inclusion).await? {
            return Ok(None);
        }
        let Some(receipt) = receipt_of(chain, &record).await? else {
            let (hash, writer) = (inclusion.tx_hash, record.logged.writer);
            return failed(&format!("{hash} is not shown to be a transaction of {writer}"));
        };
        // One node alone can make up a log and a receipt, as it can those of the account's own transactions.
        chain.confirm(inclusion.block_number, inclusion.block_hash, std::slice::from_ref(&receipt)).await?;
        Ok(Some(LaneVerdict::Found(receipt.transaction)))
    }

    /// Returns the same for one that reverted at finality. A record that was in the way then is final, too.
    pub(super) async fn verdict_on_taken_at_finality(&mut self, contract: Address, taken: &Taken) -> LaneVerdict {
        match self.verdict_on_taken(contract, taken).await {
            Ok(Some(verdict)) => verdict,
            Ok(None) => LaneVerdict::Failed(taken.cause("it was not final when it was looked")),
            Err(error) => LaneVerdict::Failed(taken.cause(&error.to_string())),
        }
    }
}

/// Reads the receipt of the transaction that wrote a record, with the nonce that its block shows.
async fn receipt_of(chain: &dyn Chain, record: &Record) -> Result<Option<Receipt>, ChainError> {
    let inclusion = record.inclusion;
    let sent = chain.sent_in(record.logged.writer, inclusion.block_number).await?;
    let sent = sent.and_then(|block| block.sent.into_iter().find(|sent| sent.tx_hash == inclusion.tx_hash));
    let receipt = chain.receipts(&[inclusion.tx_hash]).await.pop().transpose()?.flatten();
    let receipt = receipt.filter(|receipt| receipt.succeeded && receipt.inclusion() == inclusion);
    let whole = |(sent, receipt): (Sent, Receipt)| Receipt {
        transaction: FinalTransaction { nonce: sent.nonce, ..receipt.transaction },
        ..receipt
    };
    Ok(sent.zip(receipt).map(whole))
}
