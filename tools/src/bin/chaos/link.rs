//! A connection straight to the broker, for the parts of a run that are not workers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use tokio::time::timeout;

/// For one answer of the broker. A memory alarm holds answers back for longer; then it is tried anew.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// Before it is tried anew.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct Link {
    pub(crate) channel: Channel,
    connection: Connection,
}

impl Link {
    /// With publisher confirms, to the first host that answers. Each link begins with another host than the one before.
    pub(crate) async fn open(uris: &[String]) -> anyhow::Result<Self> {
        static FIRST: AtomicUsize = AtomicUsize::new(0);
        let first = FIRST.fetch_add(1, Ordering::Relaxed) % uris.len().max(1);
        let mut failed = anyhow!("there is no host");
        for uri in uris.iter().skip(first).chain(uris.iter().take(first)) {
            match Self::open_at(uri).await {
                Ok(link) => return Ok(link),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn open_at(uri: &str) -> anyhow::Result<Self> {
        let connection = timeout(LIMIT, Connection::connect(uri, ConnectionProperties::default())).await??;
        let channel = timeout(LIMIT, connection.create_channel()).await??;
        timeout(LIMIT, channel.confirm_select(ConfirmSelectOptions::default())).await??;
        Ok(Self { channel, connection })
    }

    /// Returns when the broker has given its word for the message.
    pub(crate) async fn publish(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> anyhow::Result<()> {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let sent = self.channel.basic_publish(exchange.into(), key.into(), options, body, properties);
        let confirm = timeout(LIMIT, async { sent.await?.await }).await.context("no publisher confirm")??;
        ensure!(confirm == Confirmation::Ack(None), "the broker answers {confirm:?}");
        Ok(())
    }

    /// In the background: a blocked connection may take long to close.
    pub(crate) fn close(self) {
        tokio::spawn(async move { timeout(LIMIT, self.connection.close(200, "done".into())).await });
    }
}
