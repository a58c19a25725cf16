//! How deliveries of a session end. Each ack token reports its end from wherever it is, and the session sends the ends to the
//! broker, in as few frames as their order allows.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use tokio::sync::mpsc;

use crate::broker::consumers::Held;
use crate::broker::{AckToken, EndDelivery};

/// Ends sent to the broker in one go at most, so that deliveries come in between.
const BATCH: usize = 4096;

/// The ends that a session's tokens have reported. There are no more of them than deliveries, so the channel has no other limit.
pub(super) struct Endings {
    sender: mpsc::UnboundedSender<End>,
    receiver: mpsc::UnboundedReceiver<End>,
    ended: EndedTags,
    timeout: Duration,
}

#[derive(Debug)]
pub(super) struct End {
    tag: u64,
    is_ack: bool,
    _held: Held,
}

impl Endings {
    pub(super) fn new(timeout: Duration) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self { sender, receiver, ended: EndedTags::default(), timeout }
    }

    pub(super) fn token(&self, tag: u64, held: Held) -> AckToken {
        AckToken::new(AmqpAckToken { sender: self.sender.clone(), tag, held })
    }

    /// Waits for ends; dropping this future loses none that it has not returned.
    pub(super) async fn next(&mut self) -> Vec<End> {
        let mut ends = Vec::new();
        self.receiver.recv_many(&mut ends, BATCH).await;
        ends
    }

    /// Sends ends to the broker. What cannot be sent ends with the session: the broker delivers it again.
    pub(super) async fn send(&mut self, channel: &Channel, ends: Vec<End>) -> lapin::Result<()> {
        let acked = ends.iter().filter(|end| end.is_ack).map(|end| end.tag).collect();
        let requeued: Vec<_> = ends.iter().filter(|end| !end.is_ack).map(|end| end.tag).collect();
        let call = async {
            for tag in &requeued {
                let back = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                channel.basic_nack(*tag, back).await?;
            }
            for (tag, multiple) in self.ended.acks(acked, &requeued) {
                channel.basic_ack(tag, BasicAckOptions { multiple }).await?;
            }
            Ok(())
        };
        let in_time = tokio::time::timeout(self.timeout, call).await;
        in_time.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
    }

    pub(super) async fn send_rest(&mut self, channel: &Channel) -> lapin::Result<()> {
        let mut ends = Vec::new();
        while let Ok(end) = self.receiver.try_recv() {
            ends.push(end);
        }
        self.send(channel, ends).await
    }
}

#[derive(Debug)]
struct AmqpAckToken {
    sender: mpsc::UnboundedSender<End>,
    tag: u64,
    held: Held,
}

impl AmqpAckToken {
    fn end(self, is_ack: bool) -> bool {
        self.sender.send(End { tag: self.tag, is_ack, _held: self.held }).is_ok()
    }
}

#[async_trait]
impl EndDelivery for AmqpAckToken {
    async fn ack(self: Box<Self>) -> bool {
        self.end(true)
    }

    async fn requeue(self: Box<Self>) -> bool {
        self.end(false)
    }

    fn is_over(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Delivery tags of one channel that have ended. They begin with 1 and have no holes, but consumers may hand them on in
/// another order, so only tags that were ended here count: an ack of several must never take one along that was not.
#[derive(Debug, Default)]
struct EndedTags {
    /// All tags up to this one have ended.
    low: u64,
    /// Ended tags above it.
    above: BTreeSet<u64>,
}

impl EndedTags {
    /// Returns the acks to send, each with whether it stands for all tags up to it.
    fn acks(&mut self, acked: Vec<u64>, requeued: &[u64]) -> Vec<(u64, bool)> {
        self.above.extend(acked.iter().chain(requeued));
        while self.above.remove(&(self.low + 1)) {
            self.low += 1;
        }
        let (within, beyond): (Vec<_>, Vec<_>) = acked.into_iter().partition(|tag| *tag <= self.low);
        let multiple = within.len() > 1;
        let up_to = within.into_iter().max().map(|tag| (tag, multiple));
        up_to.into_iter().chain(beyond.into_iter().map(|tag| (tag, false))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_ack_stands_for_all_that_ended_without_a_hole() {
        let mut ended = EndedTags::default();
        assert_eq!(ended.acks(vec![1], &[]), [(1, false)]);
        assert_eq!(ended.acks(vec![4, 2, 3], &[]), [(4, true)]);
        assert_eq!(ended.acks(vec![7, 6], &[]), [(7, false), (6, false)], "5 is still held");
        assert_eq!(ended.acks(vec![8], &[5]), [(8, false)], "5 was given back, 6 and 7 are acked already");
        assert_eq!(ended.acks(vec![], &[9]), []);
        assert_eq!(ended.acks(vec![10, 11], &[]), [(11, true)]);
    }

    proptest! {
        /// Invariant 7: whatever the order, the broker hears of every ack, and of no other.
        #[test]
        fn the_broker_hears_of_just_what_was_acked(
            order in Just((1_u64..200).collect::<Vec<_>>()).prop_shuffle(),
            acks in proptest::collection::vec(proptest::bool::weighted(0.8), 200),
            sizes in proptest::collection::vec(1_usize..40, 200),
        ) {
            let mut ended = EndedTags::default();
            let (mut said, mut heard) = (BTreeSet::new(), BTreeSet::new());
            let mut requeued_so_far = BTreeSet::new();
            let mut rest = order.into_iter();
            for size in sizes {
                let batch: Vec<_> = rest.by_ref().take(size).collect();
                let (acked, requeued): (Vec<u64>, Vec<u64>) =
                    batch.into_iter().partition(|tag| acks[usize::try_from(*tag).unwrap()]);
                said.extend(acked.iter().copied());
                requeued_so_far.extend(requeued.iter().copied());
                for (tag, multiple) in ended.acks(acked, &requeued) {
                    let first = if multiple { 1 } else { tag };
                    heard.extend((first..=tag).filter(|tag| !requeued_so_far.contains(tag)));
                }
                prop_assert_eq!(&heard, &said);
            }
        }
    }
}
