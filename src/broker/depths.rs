//! How full the queues are, for operators. Declares passively: nothing is made, taken or changed.

use serde::Serialize;

use crate::broker::BrokerError;
use crate::broker::connection::{BrokerSettings, Connected, broker_detail};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
#[serde(rename_all = "snake_case")]
pub enum QueueRole {
    Work,
    /// Retries, parks and messages for later wait in it.
    Wait,
    Dead,
    Unrouted,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub struct QueueDepth {
    pub queue: String,
    pub role: QueueRole,
    /// Messages that no consumer holds. AMQP does not show how many are held unacked.
    pub ready: u32,
    pub consumers: u32,
    /// Why the depth is unknown: mostly because there is no such queue.
    pub problem: Option<String>,
}

pub struct QueueDepths {
    connected: Connected,
    queues: Vec<(String, QueueRole)>,
}

impl QueueDepths {
    pub async fn connect(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let names = &settings.topology.names;
        let role = |queue: &String| match queue {
            queue if *queue == names.work => QueueRole::Work,
            queue if *queue == names.dead => QueueRole::Dead,
            queue if *queue == names.unrouted() => QueueRole::Unrouted,
            _ => QueueRole::Wait,
        };
        let queues = settings.topology.queue_names().into_iter().map(|queue| (queue.clone(), role(&queue))).collect();
        Ok(Self { connected: settings.connect("status").await?, queues })
    }

    /// Returns the depth of every queue, in the order of the topology.
    pub async fn depths(&self) -> Result<Vec<QueueDepth>, BrokerError> {
        let mut depths = Vec::with_capacity(self.queues.len());
        for (queue, role) in self.queues.clone() {
            let (ready, consumers, problem) = match self.connected.queue(&queue).await? {
                Ok(found) => (found.message_count(), found.consumer_count(), None),
                Err(error) => (0, 0, Some(broker_detail(&error))),
            };
            depths.push(QueueDepth { queue, role, ready, consumers, problem });
        }
        Ok(depths)
    }

    pub async fn close(self) {
        self.connected.close().await;
    }
}
