//! Confirms by another endpoint that a block is final and how its transactions went: what one node alone says may be a lie.

use crate::chain::{BlockTag, Chain, ChainError, Receipt, Result};
use crate::model::{BlockHash, BlockNumber, TxHash};
use crate::policy::finality::{FinalityRule, highest_final};

/// The endpoints of `chain.confirm_with`. None of them is asked for anything else.
pub(super) struct Confirmer {
    pub(super) node: Box<dyn Chain>,
    pub(super) finality: FinalityRule,
}

impl std::fmt::Debug for Confirmer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Confirmer").field("finality", &self.finality).finish_non_exhaustive()
    }
}

impl Confirmer {
    /// Returns once an endpoint has shown this block as final, with the same outcome for each of these receipts.
    ///
    /// # Errors
    /// [`ChainError::Unconfirmed`] while it cannot be asked, is behind, or says something else.
    pub(super) async fn confirm(&self, number: BlockNumber, block: BlockHash, receipts: &[Receipt]) -> Result<()> {
        let refused = |error: ChainError| unconfirmed(error.to_string());
        let final_up_to = self.final_up_to().await.map_err(refused)?;
        if final_up_to < Some(number) {
            return Err(unconfirmed(format!("block {number} is not final there yet")));
        }
        let header = self.node.header(BlockTag::Number(number)).await.map_err(refused)?;
        if header.is_none_or(|header| header.hash != block) {
            return Err(unconfirmed(format!("block {number} is another one there; {block} is not confirmed")));
        }
        let hashes: Vec<TxHash> = receipts.iter().map(|receipt| receipt.transaction.tx_hash).collect();
        let theirs = self.node.receipts_in(block, &hashes).await.map_err(refused)?;
        for ours in receipts {
            let hash = ours.transaction.tx_hash;
            match theirs.iter().find(|theirs| theirs.transaction.tx_hash == hash) {
                Some(theirs) if theirs.succeeded == ours.succeeded => {}
                Some(_) => return Err(unconfirmed(format!("{hash} went otherwise there"))),
                None => return Err(unconfirmed(format!("{hash} is not in block {number} there"))),
            }
        }
        Ok(())
    }

    async fn final_up_to(&self) -> Result<Option<BlockNumber>> {
        let Some(head) = self.node.header(BlockTag::Latest).await? else { return Ok(None) };
        let tagged = match BlockTag::of(self.finality) {
            Some(tag) => self.node.header(tag).await?.map(|tagged| tagged.number),
            None => None,
        };
        Ok(highest_final(self.finality, head.number, tagged))
    }
}

fn unconfirmed(detail: String) -> ChainError {
    ChainError::Unconfirmed { detail }
}
