//! A connection that only publishes, for the command line.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::broker::BrokerError;
use crate::broker::connection::BrokerSettings;
use crate::broker::marker::{SessionMarkers, SessionNumbers};
use crate::broker::publisher::{PublishSession, SessionPublisher};
use crate::broker::topology::Names;
use crate::observe::metrics::PublishMeter;

/// A connection that only publishes, for the command line.
pub struct PublishOnly {
    session: Arc<PublishSession>,
    sessions: watch::Sender<Option<Arc<PublishSession>>>,
    patience: Duration,
}

impl PublishOnly {
    pub async fn connect(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let connected = settings.connect("publish").await?;
        let session = Arc::new(PublishSession::new(connected, settings.publish_channels, settings.confirm_timeout));
        let sessions = watch::Sender::new(Some(Arc::clone(&session)));
        Ok(Self { session, sessions, patience: settings.confirm_timeout })
    }

    pub fn markers(&self, names: &Names) -> SessionMarkers {
        let (exchange, queue) = (names.retry.clone(), names.journal.clone());
        let (session, patience) = (self.sessions.subscribe(), self.patience);
        SessionMarkers { session, patience, exchange, queue, numbers: SessionNumbers::default() }
    }

    pub fn publisher(&self) -> SessionPublisher {
        SessionPublisher { session: self.sessions.subscribe(), patience: self.patience, meter: PublishMeter::default() }
    }

    pub async fn close(self) {
        self.session.connected.close().await;
    }
}
