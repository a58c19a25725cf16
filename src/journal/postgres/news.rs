//! Notifications between instances, by LISTEN and NOTIFY. They only make things sooner: polls find what gets lost here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::journal::changes::{Changes, Seen};
use crate::journal::database::CHANNEL;
use crate::journal::error::Result;
use crate::journal::postgres::pool::Pool;
use crate::model::ids;

/// Between two announcements of one instance; what comes in between goes with the second.
const PAUSE: Duration = Duration::from_millis(100);
/// Between checks of an idle session, and after it has gone.
const CHECK: Duration = Duration::from_secs(5);

/// Of an announcement, behind the instance's name: leases or instances have changed; requests were admitted or settled.
const CHANGED: &str = "changed";
const WORK: &str = "work";
/// The part of a journal that talks with other instances. Its task ends with the last handle.
#[derive(Debug, Clone)]
pub struct News {
    shared: Arc<Shared>,
    _task: Arc<AbortOnDropHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Distinguishes own announcements from others'.
    instance: String,
    due: Notify,
    seen: watch::Sender<Seen>,
}

impl News {
    pub fn start(pool: Pool) -> Self {
        let shared =
            Arc::new(Shared { instance: ids::unique(), due: Notify::new(), seen: watch::Sender::new(Seen::default()) });
        let task = AbortOnDropHandle::new(tokio::spawn(keep_talking(pool, Arc::clone(&shared))));
        Self { shared, _task: Arc::new(task) }
    }

    pub fn changes(&self) -> Changes {
        Changes::new(self.shared.seen.subscribe())
    }

    /// Announces that something was admitted or settled: others may wait for it.
    pub fn announce_work(&self) {
        self.shared.due.notify_one();
    }

    /// Returns what the transaction sends that gives a lease up, or by which an instance comes or goes.
    pub fn changed(&self) -> String {
        format!("{} {CHANGED}", self.shared.instance)
    }
}

async fn keep_talking(pool: Pool, shared: Arc<Shared>) {
    loop {
        if let Err(error) = talk(&pool, &shared).await {
            debug!(%error, "no news from other instances");
        }
        sleep(CHECK).await;
    }
}

/// Talks until the session ends.
async fn talk(pool: &Pool, shared: &Arc<Shared>) -> Result<()> {
    let ears = Arc::clone(shared);
    let session = pool.connect_hearing(move |said| ears.record(said)).await?;
    let channel = session.simple("find its channel", &format!("SELECT {CHANNEL}")).await?;
    session.run("listen to other instances", &format!("LISTEN {channel}")).await?;
    // Of what was before, nothing was heard.
    shared.seen.send_modify(Seen::anything);
    // A lost announcement is no loss: it need not wait for its flush.
    let announce = format!(
        "BEGIN; SET LOCAL synchronous_commit = off; SELECT pg_notify('{channel}', '{} {WORK}'); COMMIT",
        shared.instance
    );
    while !session.is_closed() {
        if timeout(CHECK, shared.due.notified()).await.is_ok() {
            session.run("notify other instances", &announce).await?;
            sleep(PAUSE).await;
        }
    }
    Ok(())
}

impl Shared {
    fn record(&self, said: &str) {
        match said.split_once(' ') {
            Some((instance, _)) if instance == self.instance => {}
            Some((_, CHANGED)) => self.seen.send_modify(Seen::change),
            _ => self.seen.send_modify(Seen::work),
        }
    }
}
