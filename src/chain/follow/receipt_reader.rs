//! The stage that reads how the transactions of final blocks went: one block after the other, while the lane goes on.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::chain::{Chain, Receipt, Result};
use crate::model::{BlockHash, TxHash};

/// What a node said of one block.
#[derive(Debug)]
pub struct BlockRead {
    pub block: BlockHash,
    /// The transactions whose receipts were asked for.
    pub asked: Vec<TxHash>,
    /// Those that the node has, each of this very block.
    pub receipts: Result<Vec<Receipt>>,
}

/// What the lane has of the stage. What waits is limited by the lane's transactions: each is in one block.
#[derive(Debug)]
pub struct ReceiptReader {
    wanted: mpsc::UnboundedSender<(BlockHash, Vec<TxHash>)>,
    read: mpsc::UnboundedReceiver<BlockRead>,
    /// Asked for, and not yet answered.
    open: BTreeSet<BlockHash>,
    is_failing: bool,
}

/// The stage itself, for one term of a lane.
pub struct Reading {
    chain: Arc<dyn Chain>,
    wanted: mpsc::UnboundedReceiver<(BlockHash, Vec<TxHash>)>,
    read: mpsc::UnboundedSender<BlockRead>,
}

/// A reader with nothing to read, and the work that somebody has to run.
pub fn start(chain: Arc<dyn Chain>) -> (ReceiptReader, Reading) {
    let (want, wanted) = mpsc::unbounded_channel();
    let (to_read, read) = mpsc::unbounded_channel();
    (
        ReceiptReader { wanted: want, read, open: BTreeSet::new(), is_failing: false },
        Reading { chain, wanted, read: to_read },
    )
}

impl ReceiptReader {
    /// Asks for the receipts of a block, after those before; nothing where they are asked for already.
    pub fn ask(&mut self, block: BlockHash, transactions: Vec<TxHash>) {
        // Without somebody who reads the lane's term is over, and the next one asks again.
        if self.open.insert(block) {
            let _ = self.wanted.send((block, transactions));
        }
    }

    /// The next block's; waits for ever when nothing was asked for. Dropping this future loses nothing.
    pub async fn next(&mut self) -> BlockRead {
        match self.read.recv().await {
            Some(read) => {
                self.open.remove(&read.block);
                self.is_failing = read.receipts.is_err();
                read
            }
            None => std::future::pending().await,
        }
    }

    /// The last block that was asked for could not be read.
    pub fn is_failing(&self) -> bool {
        self.is_failing
    }

    /// There is no such block any more.
    pub fn forget_failure(&mut self) {
        self.is_failing = false;
    }
}

impl Reading {
    /// Reads, for as long as it is polled.
    pub async fn run(mut self) -> Infallible {
        while let Some((block, asked)) = self.wanted.recv().await {
            let receipts = self.chain.receipts_in(block, &asked).await;
            // A lane that does not listen has ended, and with it this.
            let _ = self.read.send(BlockRead { block, asked, receipts });
        }
        std::future::pending().await
    }
}
