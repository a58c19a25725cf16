//! `chainwriter recover --adopt`

use anyhow::bail;

use crate::broker::{BrokerError, MarkerQueue, PublishOnly, QueueDepths, QueueRole};
use crate::cli::{exit, say};
use crate::config::Settings;
use crate::journal::OperatorsJournal;
use crate::model::text::counted;
use crate::model::{JournalId, Marker, Order, Timestamp};
use crate::policy::marker::{Ruling, newest, rule};

/// Lets this journal take the queue over from the one that serves it.
pub(super) async fn run(settings: &Settings, order: Order) -> anyhow::Result<u8> {
    let journal = settings.journal.address.open_existing().await?;
    let adopted = adopt(journal.as_ref(), settings, order).await;
    journal.close().await;
    adopted.map(|()| exit::OK)
}

async fn adopt(journal: &dyn OperatorsJournal, settings: &Settings, order: Order) -> anyhow::Result<()> {
    let found = marker(settings).await?;
    let standing = journal.claim_standing(found.as_ref().map(|found| (found.start, found.token.clone()))).await?;
    let from = match (rule(&standing, found.as_ref(), Timestamp::now()), &found) {
        (Ruling::Make | Ruling::MakeAnew, _) | (_, None) => {
            say("no journal serves this queue yet; start the worker");
            return Ok(());
        }
        (Ruling::GoOn(_), _) => {
            say("this journal serves this queue already");
            return Ok(());
        }
        (Ruling::TakeOver { .. } | Ruling::Refuse(..), Some(from)) => from,
    };
    if let Some(consumers) = consumers(settings).await?.filter(|consumers| *consumers > 0) {
        bail!(
            "{} on {} now, and the queue was served last by {from}; stop that worker first",
            counted(consumers.into(), "consumer"),
            settings.queue()
        );
    }
    journal.adopt(from.marked_start(), order).await?;
    let JournalId(own) = &standing.journal;
    say(format_args!(
        "journal {own} takes the queue over from {from} at its next start, or within a minute if it runs. That holds for 24 hours, and for no other marker. What only the other journal knows is not known here. So a message that it has written, and that is still in the queue or is \
         published again, is written a second time. If there may be such messages, read the chain first with `chainwriter \
         recover --from-block N`. The other journal is refused from then on"
    ));
    Ok(())
}

/// Returns the marker at the broker. Reads it as a start does, and leaves the same one: at no moment is there none.
pub(in crate::cli) async fn marker(settings: &Settings) -> Result<Option<Marker>, BrokerError> {
    let connection = PublishOnly::connect(&settings.broker).await?;
    let held = connection.markers(&settings.broker.topology.names).hold().await?;
    let found = newest(held.found()).cloned();
    if let Some(found) = &found {
        held.replace(found).await?;
    }
    connection.close().await;
    Ok(found)
}

async fn consumers(settings: &Settings) -> anyhow::Result<Option<u32>> {
    let queues = QueueDepths::connect(&settings.broker).await?;
    let depths = queues.depths().await;
    queues.close().await;
    Ok(depths?.into_iter().find(|depth| depth.role == QueueRole::Work).map(|depth| depth.consumers))
}
