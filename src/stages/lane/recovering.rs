//! A journal in the place of a lost one: what may be written already is not signed, until an operator has decided.

use tracing::info;

use crate::journal::{JournalError, Lease};
use crate::model::{BodyHash, Cause, Reason};
use crate::stages::lane::{Lane, ending};

impl Lane {
    /// Whether the journal is such a one, at the lane's start and for as long as it is.
    pub(super) async fn look_whether_recovering(&mut self) -> Result<(), JournalError> {
        let recovery = self.journal.recovery().await?;
        if let Some(recovery) = &recovery
            && !self.is_recovering
        {
            info!(account = %self.signer.address(), since = %recovery.begun_at, from_block = %recovery.from_block, "a recovery is on: what may be written already becomes a dead letter");
        } else if recovery.is_none() && self.is_recovering {
            info!(account = %self.signer.address(), "the recovery has ended");
        }
        self.is_recovering = recovery.is_some();
        Ok(())
    }

    /// Rules on what was fetched and has its calldata in the chain since before the journal began. What an operator has
    /// sent back is decided.
    pub(super) async fn set_written_aside(&mut self, lease: &Lease) -> Result<(), JournalError> {
        if !self.is_recovering || self.fetched.is_empty() {
            return Ok(());
        }
        let hashes = self.fetched.iter().map(|fetched| BodyHash::of(fetched.request.calldata())).collect();
        let found = self.journal.recovered_writes(hashes).await?;
        let mut rulings = Vec::new();
        for (fetched, written) in std::mem::take(&mut self.fetched).into_iter().zip(found) {
            match written.filter(|_| fetched.request.generation.replay == 0) {
                Some(write) => {
                    let detail = format!(
                        "transaction {} in block {} has the same calldata, from before the journal was lost",
                        write.tx_hash, write.block_number
                    );
                    rulings.push(ending::failed(lease, fetched.request, Cause::new(Reason::MaybeWritten, detail)));
                }
                None => self.fetched.push(fetched),
            }
        }
        self.rule(rulings).await;
        Ok(())
    }
}
