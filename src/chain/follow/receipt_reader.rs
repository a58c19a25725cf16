//! Reads the receipts of final blocks, one block after the other, while the lane goes on.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::chain::{Chain, Receipt, Result};
use crate::model::{BlockHash, BlockNumber, TxHash};

#[derive(Debug)]
pub struct BlockRead {
    pub block: BlockHash,
    pub asked: Vec<TxHash>,
    /// Those that the node has, all of this very block.
    pub receipts: Result<Vec<Receipt>>,
}

/// A final block, and which of ours it holds.
#[derive(Debug)]
struct Wanted {
    number: BlockNumber,
    block: BlockHash,
    transactions: Vec<TxHash>,
}

/// The lane's side. The lane's transactions limit what waits: each is in one block.
#[derive(Debug)]
pub struct ReceiptReader {
    wanted: mpsc::UnboundedSender<Wanted>,
    read: mpsc::UnboundedReceiver<BlockRead>,
    open: BTreeSet<BlockHash>,
}

/// The reading side, for one term of a lane.
pub struct Reading {
    chain: Arc<dyn Chain>,
    wanted: mpsc::UnboundedReceiver<Wanted>,
    read: mpsc::UnboundedSender<BlockRead>,
}

/// Returns a reader, and its work to run beside the lane.
pub fn start(chain: Arc<dyn Chain>) -> (ReceiptReader, Reading) {
    let (want, wanted) = mpsc::unbounded_channel();
    let (to_read, read) = mpsc::unbounded_channel();
    (ReceiptReader { wanted: want, read, open: BTreeSet::new() }, Reading { chain, wanted, read: to_read })
}

impl ReceiptReader {
    /// Asks for the receipts of a block, behind earlier ones. Does nothing while they are asked for already.
    pub fn ask(&mut self, number: BlockNumber, block: BlockHash, transactions: Vec<TxHash>) {
        // Without the reading side the lane's term is over, and the next term asks again.
        if self.open.insert(block) {
            let _ = self.wanted.send(Wanted { number, block, transactions });
        }
    }

    /// Returns the next block's receipts. Waits for ever when none are asked for. Dropping this future loses nothing.
    pub async fn next(&mut self) -> BlockRead {
        match self.read.recv().await {
            Some(read) => {
                self.open.remove(&read.block);
                read
            }
            None => std::future::pending().await,
        }
    }
}

impl Reading {
    /// Reads the receipts of a final block, and has them confirmed where the operator asks for that.
    async fn confirmed_receipts(
        &self,
        number: BlockNumber,
        block: BlockHash,
        asked: &[TxHash],
    ) -> Result<Vec<Receipt>> {
        let receipts = self.chain.receipts_in(block, asked).await?;
        self.chain.confirm(number, block, &receipts).await?;
        Ok(receipts)
    }

    /// Reads for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        while let Some(Wanted { number, block, transactions: asked }) = self.wanted.recv().await {
            let receipts = self.confirmed_receipts(number, block, &asked).await;
            // Without a receiver the lane has ended, and this with it.
            let _ = self.read.send(BlockRead { block, asked, receipts });
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::fakes::{FakeChain, own_hash};

    async fn next(reader: &mut ReceiptReader, reading: &mut std::pin::Pin<Box<impl Future>>) -> BlockRead {
        tokio::select! {
            _ = reading => unreachable!("it never ends"),
            read = reader.next() => read,
        }
    }

    #[tokio::test]
    async fn each_block_is_read_once_and_only_its_own_receipts_count() {
        let chain = FakeChain::sent_in(&[3, 4]);
        chain.change(|state| state.reverted = vec![own_hash(0)]);
        let (mut reader, reading) = start(chain.clone());
        let mut reading = Box::pin(reading.run());
        for _ in 0..2 {
            reader.ask(BlockNumber(3), chain.hash_of(3), vec![own_hash(0), own_hash(1)]);
        }
        let read = next(&mut reader, &mut reading).await;
        let receipts = read.receipts.unwrap();
        assert_eq!((read.block, read.asked.len()), (chain.hash_of(3), 2));
        assert_eq!(receipts.iter().map(|receipt| receipt.transaction.tx_hash).collect::<Vec<_>>(), [own_hash(0)]);
        assert_eq!((receipts[0].succeeded, chain.calls()), (false, 1));
    }

    #[tokio::test]
    async fn a_node_that_is_away_fails_the_block_which_can_be_asked_for_again() {
        let chain = FakeChain::sent_in(&[3]);
        chain.change(|state| state.is_away = true);
        let (mut reader, reading) = start(chain.clone());
        let mut reading = Box::pin(reading.run());
        reader.ask(BlockNumber(3), chain.hash_of(3), vec![own_hash(0)]);
        assert!(next(&mut reader, &mut reading).await.receipts.is_err());
        chain.change(|state| state.is_away = false);
        reader.ask(BlockNumber(3), chain.hash_of(3), vec![own_hash(0)]);
        assert!(next(&mut reader, &mut reading).await.receipts.is_ok());
    }
}
