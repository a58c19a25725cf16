//! An operator at work, whatever goes wrong meanwhile: sends dead letters back, cancels requests.

use anyhow::Context;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::types::{AMQPValue, ShortString};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::checker::{CONFLICT, MAYBE_WRITTEN, SentBack};
use crate::evidence::{REPLAY_COUNT, replay_count};
use crate::link::{LIMIT, Link};
use crate::record::Record;
use crate::schedule::{Fault, Planned};
use crate::support::WorkerHome;
use crate::{DEAD, QUEUE};

/// Dead letters sent back in one go, at most.
const AT_ONCE: u64 = 4;
/// A request that is cancelled is one of this many published last: about those of five seconds.
const RECENT: usize = 60;
/// Exit codes of `chainwriter cancel` that say that nothing was cancelled: not known, too late.
const NOTHING_CANCELLED: [i32; 2] = [1, 2];

pub(crate) struct Operator<'a> {
    pub(crate) uris: Vec<String>,
    pub(crate) home: &'a WorkerHome,
    pub(crate) binary: &'a str,
    pub(crate) record: &'a Record,
    /// One command at a time has the journal in its hands.
    pub(crate) hands: &'a Mutex<()>,
}

impl Operator<'_> {
    pub(crate) async fn act(&self, planned: &Planned) {
        let done = match planned.fault {
            // From then on only what `chainwriter dead replay` sends back counts as decided, at the end.
            Fault::Replay if self.record.is_recovering() => Ok(()),
            Fault::Replay => self.replay(1 + planned.pick % AT_ONCE).await,
            _ => self.cancel(planned.pick).await,
        };
        if let Err(error) = done {
            self.record.say(&format!("{:?}: {error:#}", planned.fault));
        }
    }

    async fn replay(&self, count: u64) -> anyhow::Result<()> {
        let link = Link::open(&self.uris).await?;
        let mut done = Ok(());
        for _ in 0..count {
            if done.is_ok() {
                done = self.send_back(&link).await;
            }
        }
        link.close();
        done
    }

    /// The oldest dead letter. Between the confirm and the ack it is in both queues, and stays there if the ack fails.
    async fn send_back(&self, link: &Link) -> anyhow::Result<()> {
        let got = timeout(LIMIT, link.channel.basic_get(DEAD.into(), BasicGetOptions::default())).await??;
        let Some(letter) = got.map(|got| got.delivery) else { return Ok(()) };
        if [CONFLICT, MAYBE_WRITTEN].contains(&letter.routing_key.as_str()) {
            // Its id is another message's, or it may be written. To the end of the queue, so that the next ones come to the front.
            link.publish(
                letter.exchange.as_str(),
                letter.routing_key.as_str(),
                letter.properties.clone(),
                &letter.data,
            )
            .await?;
        } else {
            let replay = replay_count(&letter.properties) + 1;
            let mut headers = letter.properties.headers().clone().unwrap_or_default().inner().clone();
            headers.remove(&ShortString::from("cw-attempt"));
            headers.insert(REPLAY_COUNT.into(), AMQPValue::LongLongInt(replay));
            let properties = letter.properties.clone().with_headers(headers.into());
            let sent = SentBack { body: letter.data.clone(), replay, is_confirmed: false };
            self.record.say(&format!("sends {:?} back, {replay}", properties.message_id()));
            self.record.send_back(sent.clone());
            link.publish("", QUEUE, properties, &letter.data).await?;
            self.record.send_back(SentBack { is_confirmed: true, ..sent });
        }
        timeout(LIMIT, letter.ack(BasicAckOptions::default())).await??;
        Ok(())
    }

    async fn cancel(&self, pick: u64) -> anyhow::Result<()> {
        let chosen = self.record.with_published(|published| {
            let recent = published.iter().rev().filter_map(|message| message.id.clone()).take(RECENT);
            recent.clone().nth((pick % recent.count().max(1) as u64) as usize)
        });
        let id = chosen.context("nothing is published yet")?;
        let _hands = self.hands.lock().await;
        let (code, text) = self.home.command(self.binary, &["cancel", &id, "--reason", "chaos"]).await;
        self.record.say(&format!("cancels {id}: {code}, {}", text.trim()));
        if !NOTHING_CANCELLED.contains(&code) {
            self.record.ask_to_cancel(id);
        }
        Ok(())
    }
}
