//! The consumers of one session. Together they hold no more than the prefetch, in deliveries and in bytes, they begin
//! carefully, and each has a tag of its own: a quorum queue that meets a tag again whose earlier deliveries are still unacked takes those for lost on the
//! way, and RabbitMQ 3.10 ends the connection over them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{StreamExt, stream};
use lapin::Channel;
use lapin::message::Delivery;

use crate::broker::BrokerError;
use crate::broker::connection::{Connected, broker_detail};
use crate::broker::fit;

/// Prefix of consumer tags; a number follows.
const TAG: &str = "chainwriter";
/// Prefetch while each delivery may be the one that ends the process.
const CAREFUL_PREFETCH: u16 = 1;
/// All but this part of what may be held counts as all: acks are on their way.
const NEARLY: u16 = 16;
/// A further consumer starts only for at least the prefetch divided by this.
const WORTH_A_CONSUMER: u16 = 4;

/// Advice where a delivery was held too long. Up to RabbitMQ 4.2 the broker closes the channel then, from 4.3 on it cancels
/// the consumer.
const HELD_TOO_LONG: &str = "; broker.max_hold must be below half of the broker's consumer_timeout";

type Deliveries = BoxStream<'static, Option<lapin::Result<Delivery>>>;

/// All consumers of a session, on its one channel.
pub(super) struct Consumers<'s> {
    connected: &'s Connected,
    channel: &'s Channel,
    queue: &'s str,
    /// Limits what all consumers hold together.
    prefetch: u16,
    /// Bytes that all of them may have together.
    bytes: u64,
    /// Set while the bytes that are held leave no room.
    is_full: bool,
    /// Set to have one consumer at a time: between two the broker keeps no order.
    is_ordered: bool,
    /// Each ends with `None` when the broker cancels it.
    streams: SelectAll<Deliveries>,
    tags: Vec<String>,
    /// The sum of the running consumers' prefetches.
    granted: u16,
    /// Consumers of this session so far.
    count: u64,
    /// A crash counts against all unacked deliveries. So suspects, which the broker delivers first, are taken one at a time:
    /// only the one that caused the crash is unacked when it causes the next.
    is_careful: bool,
    /// The unacked deliveries of the running consumers.
    held: Holder,
    /// The same for cancelled consumers, whose deliveries are still held and count.
    earlier: Vec<Holder>,
}

/// Returns the bytes of a delivery: its body, and its properties with their headers.
pub(super) fn bytes_of(delivery: &Delivery) -> usize {
    delivery.data.len() + fit::bytes_of(&delivery.properties)
}

/// Returns whether the bytes leave no room. Once they do, a quarter has to go first, so that consumers do not come and go with
/// each delivery.
fn is_full(was_full: bool, held: u64, most: u64) -> bool {
    if was_full { held > most / 4 * 3 } else { held > most }
}

/// Counts the unacked deliveries of some consumers, and the bytes of all in the session.
#[derive(Debug, Default)]
pub(super) struct Holder {
    deliveries: Arc<()>,
    bytes: Arc<AtomicU64>,
}

impl Holder {
    pub(super) fn hold(&self, bytes: usize) -> Held {
        let bytes = bytes as u64;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Held { _deliveries: Arc::clone(&self.deliveries), bytes, of_all: Arc::clone(&self.bytes) }
    }

    fn count(&self) -> usize {
        Arc::strong_count(&self.deliveries) - 1
    }
}

/// Kept with a delivery until its end.
#[derive(Debug)]
pub(super) struct Held {
    _deliveries: Arc<()>,
    bytes: u64,
    of_all: Arc<AtomicU64>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of_all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<'s> Consumers<'s> {
    pub(super) fn new(
        connected: &'s Connected,
        channel: &'s Channel,
        queue: &'s str,
        (prefetch, bytes, is_ordered): (u16, u64, bool),
    ) -> Self {
        Self {
            connected,
            channel,
            queue,
            prefetch,
            bytes,
            is_full: false,
            is_ordered,
            streams: SelectAll::new(),
            tags: Vec::new(),
            granted: 0,
            count: 0,
            is_careful: true,
            held: Holder::default(),
            earlier: Vec::new(),
        }
    }

    pub(super) fn are_running(&self) -> bool {
        !self.tags.is_empty()
    }

    /// Returns what deliveries of the running consumers are held by.
    pub(super) fn holder(&self) -> &Holder {
        &self.held
    }

    /// Returns whether the bytes that are held leave room for more.
    pub(super) fn have_room(&mut self) -> bool {
        self.is_full = is_full(self.is_full, self.held.bytes.load(Ordering::Relaxed), self.bytes);
        !self.is_full
    }

    /// Lets further consumers hold more, or less. A value counts for a new consumer only.
    pub(super) fn set_prefetch(&mut self, prefetch: u16) {
        self.prefetch = prefetch;
    }

    /// Returns whether all that the running consumers may hold is held.
    pub(super) fn are_exhausted(&mut self) -> bool {
        self.are_running() && !self.is_careful && self.held.count() >= usize::from(self.granted - self.granted / NEARLY)
    }

    /// Returns whether the running consumers may hold far more than they should.
    pub(super) fn are_oversized(&self) -> bool {
        self.granted / 2 > self.prefetch
    }

    /// Ends the careful mode: the broker delivers suspects first, so there are none left.
    pub(super) fn trust(&mut self) {
        self.is_careful = false;
    }

    /// Starts a consumer if there is room for one.
    pub(super) async fn grow(&mut self) -> Result<(), BrokerError> {
        if self.is_ordered && self.are_running() {
            return Ok(());
        }
        let earlier = self.held_earlier();
        let room = room(self.prefetch, self.is_careful, self.granted, earlier);
        if room > 0 {
            self.count += 1;
            let tag = format!("{TAG}-{}", self.count);
            let consumer = self.connected.consume(self.channel, self.queue, &tag, room).await?;
            self.tags.push(tag);
            self.streams.push(consumer.map(Some).chain(stream::iter([None])).boxed());
            self.granted += room;
        }
        Ok(())
    }

    /// Returns whether the only consumer of an ordered queue could hold more if it was stopped and started again.
    pub(super) fn is_outgrown(&mut self) -> bool {
        let (own, earlier) = (self.held.count(), self.held_earlier());
        let may_grow = self.is_ordered && self.are_running() && !self.is_careful;
        may_grow && is_outgrown(self.prefetch, self.granted, own, earlier)
    }

    fn held_earlier(&mut self) -> usize {
        self.earlier.retain(|held| held.count() > 0);
        self.earlier.iter().map(Holder::count).sum()
    }

    /// Returns the next delivery. Waits for ever while no consumer runs.
    pub(super) async fn next(&mut self) -> Result<Delivery, BrokerError> {
        match self.streams.next().await {
            Some(Some(Ok(delivery))) => Ok(delivery),
            Some(Some(Err(error))) => {
                let detail = broker_detail(&error);
                let hint = if detail.contains("delivery acknowledgement") { HELD_TOO_LONG } else { "" };
                Err(self.connected.failed("consume", detail + hint))
            }
            Some(None) => {
                let why = "the broker cancelled the consumer: the queue is gone, or a delivery was held too long";
                Err(self.connected.failed("consume", why.to_owned() + HELD_TOO_LONG))
            }
            None => std::future::pending().await,
        }
    }

    /// Cancels all consumers. Returns the buffered deliveries, at most the prefetch, with what holds them.
    pub(super) async fn stop(&mut self) -> Result<Vec<(Delivery, Held)>, BrokerError> {
        for tag in std::mem::take(&mut self.tags) {
            self.connected.cancel(self.channel, &tag).await?;
        }
        let mut buffered = Vec::new();
        while let Some(delivery) = self.streams.next().await {
            buffered.extend(delivery.and_then(Result::ok).map(|delivery| {
                let held = self.held.hold(bytes_of(&delivery));
                (delivery, held)
            }));
        }
        self.granted = 0;
        let next = Holder { deliveries: Arc::default(), bytes: Arc::clone(&self.held.bytes) };
        self.earlier.push(std::mem::replace(&mut self.held, next));
        Ok(buffered)
    }
}

/// Returns the prefetch of a further consumer, or 0 for none. `granted` is what the running consumers may hold, `earlier` what
/// cancelled ones delivered and is still held.
fn room(prefetch: u16, is_careful: bool, granted: u16, earlier: usize) -> u16 {
    let earlier = u16::try_from(earlier).unwrap_or(u16::MAX);
    let room = prefetch.saturating_sub(granted).saturating_sub(earlier);
    if is_careful {
        return room.min(CAREFUL_PREFETCH.saturating_sub(granted));
    }
    let is_worth_it = granted == 0 || room >= prefetch / WORTH_A_CONSUMER;
    if is_worth_it { room } else { 0 }
}

/// Returns whether a consumer that holds all its `granted` deliveries gives way to one with a larger prefetch; `earlier` is what
/// others hold. Each consumer is larger than the one before, so this ends. One that holds less stays: deliveries on their way
/// to a cancelled consumer go to the end of a queue without a delivery limit.
fn is_outgrown(prefetch: u16, granted: u16, own: usize, earlier: usize) -> bool {
    let held = u16::try_from(own.saturating_add(earlier)).unwrap_or(u16::MAX);
    let room = prefetch.saturating_sub(held);
    own >= usize::from(granted) && room > granted && room >= prefetch / WORTH_A_CONSUMER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_never_hold_more_than_the_prefetch_together() {
        for (prefetch, is_careful, granted, earlier, expected) in [
            (1000, true, 0, 0, 1),
            (1000, true, 1, 0, 0),
            (1000, true, 0, 999, 1),
            (1000, true, 0, 1000, 0),
            (1000, false, 1, 0, 999),
            (1000, false, 0, 1000, 0),
            (1000, false, 0, 999, 1),
            (1000, false, 1, 800, 0),
            (1000, false, 1, 700, 299),
            (1000, false, 1000, 0, 0),
            (1000, false, 300, 100_000, 0),
            (1, false, 1, 0, 0),
            (2, false, 1, 0, 1),
        ] {
            let case = (prefetch, is_careful, granted, earlier);
            assert_eq!(room(prefetch, is_careful, granted, earlier), expected, "{case:?}");
        }
    }

    #[test]
    fn bytes_are_held_until_their_delivery_ends() {
        let mut is_over = false;
        let mut check = |held: u64| {
            is_over = is_full(is_over, held, 1000);
            is_over
        };
        assert_eq!(
            [900, 1000, 1001, 900, 751, 750, 900].map(&mut check),
            [false, false, true, true, true, false, false]
        );
        let holder = Holder::default();
        let (first, second) = (holder.hold(700), holder.hold(50));
        assert_eq!((holder.count(), holder.bytes.load(Ordering::Relaxed)), (2, 750));
        drop(first);
        assert_eq!((holder.count(), holder.bytes.load(Ordering::Relaxed)), (1, 50));
        drop(second);
        assert_eq!((holder.count(), holder.bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_lone_consumer_gives_way_to_one_that_may_hold_more() {
        for (prefetch, granted, own, earlier, expected) in [
            (1000, 1, 1, 0, true),
            (1000, 1, 0, 0, false),
            (1000, 100, 99, 0, false),
            (1000, 100, 100, 600, true),
            (1000, 100, 100, 700, false),
            (1000, 400, 400, 0, true),
            (1000, 600, 600, 0, false),
            (1000, 1000, 1000, 0, false),
            (1, 1, 1, 0, false),
            (2, 1, 1, 0, false),
            (3, 1, 1, 0, true),
        ] {
            assert_eq!(is_outgrown(prefetch, granted, own, earlier), expected, "{prefetch} {granted} {own} {earlier}");
        }
    }
}
