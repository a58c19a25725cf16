//! A copy of the journal comes back; the workers refuse it, and an operator goes the documented way (docs/operations).

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::checker::{self, MAYBE_WRITTEN, SentBack, Target, Written};
use crate::copies::Copies;
use crate::crew::Crew;
use crate::evidence;
use crate::messages::Kind;
use crate::record::Record;
use crate::schedule::Planned;
use crate::support::{RabbitCluster, RpcClient, WorkerHome};

/// For a copy to be made or put in place, and for the workers to refuse it, while other faults go on.
const LIMIT: Duration = Duration::from_secs(90);
/// For `chainwriter recover` to have done it, as often as it must be run.
const RECOVERY_LIMIT: Duration = Duration::from_secs(240);
/// For it to find everything in blocks by itself.
const PATIENT: Duration = Duration::from_secs(40);
const PLAIN: [&str; 3] = ["recover", "--from-block", "0"];
const AGAIN: Duration = Duration::from_millis(500);
const OLDER_COPY: &str = "is an older copy";
const IS_BEHIND: &str = "journal_is_behind";
/// The copy is of the time between a recovery and the first start after it: the decision is in it, as the docs say.
const TAKES_OVER: &str = "the journal takes the queue over";
const SERVES: &str = "the journal serves the queue";

pub(crate) struct Restorer<'a> {
    pub(crate) copies: Copies,
    pub(crate) crew: &'a Crew<'a>,
    pub(crate) home: &'a WorkerHome,
    pub(crate) binary: &'a str,
    pub(crate) rpc: RpcClient,
    pub(crate) record: &'a Record,
    /// The end of the faults.
    pub(crate) until: Duration,
    /// One command at a time has the journal in its hands.
    pub(crate) hands: &'a Mutex<()>,
}

impl Restorer<'_> {
    pub(crate) async fn act(&self, planned: &Planned) {
        // The ones before took long.
        if self.record.elapsed() > self.until {
            return;
        }
        if let Err(error) = self.restore(planned).await {
            self.record.find(format!("a journal restored from a copy: {error:#}"));
        }
    }

    async fn restore(&self, planned: &Planned) -> anyhow::Result<()> {
        let Self { copies, crew, record, .. } = self;
        let first = crew.starts();
        let how = retry(LIMIT, || copies.make(planned.pick)).await.context("no copy")?;
        record.say(&format!("a copy of the journal is made: {how}"));
        sleep(planned.length).await;
        let (starts, restored) = {
            let _hands = self.hands.lock().await;
            let restore = async || (crew.starts(), retry(LIMIT, || copies.restore()).await);
            crew.while_stopped(restore).await
        };
        restored.context("the copy cannot take the journal's place")?;
        record.say("the copy has taken the journal's place");
        // A start that the copy does not know has left its marker at the broker.
        let has_served = self.logs_say(first, starts, &[SERVES]).is_some();
        let begun = Instant::now();
        let refused = loop {
            let refused = self.logs_say(starts, crew.starts(), &[OLDER_COPY, IS_BEHIND, TAKES_OVER]);
            if refused.is_some() || begun.elapsed() > if has_served { LIMIT } else { LIMIT / 6 } {
                break refused;
            }
            sleep(AGAIN).await;
        };
        record.count(match refused {
            Some(OLDER_COPY) => "copies refused by the marker",
            Some(TAKES_OVER) => "copies that held an open recovery, and took the queue over",
            Some(_) => "copies refused by the chain",
            None => "copies that no worker refused",
        });
        if let Some(found) = checker::judge_copy(has_served, refused.is_some()) {
            record.find(found);
        }
        let recovered = {
            let _hands = self.hands.lock().await;
            let recover = async || (crew.starts(), self.recover().await);
            crew.while_stopped(recover).await
        };
        record.restored();
        recovered.1?;
        // Until then what the operator has decided is open, and a copy of it would take the queue over as well.
        let begun = Instant::now();
        while self.logs_say(recovered.0, crew.starts(), &[SERVES]).is_none() {
            ensure!(begun.elapsed() < LIMIT, "the recovered journal does not serve the queue");
            sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Returns the first of these texts that a log of the workers has, of the starts from the first to before the last.
    fn logs_say(&self, first: usize, end: usize, texts: &[&'static str]) -> Option<&'static str> {
        let logs = (first..end).filter_map(|run| {
            let file = self.home.folder().join(format!("worker-{run}.log"));
            // Old ones are gone.
            std::fs::read(file).ok().map(|log| String::from_utf8_lossy(&log).into_owned())
        });
        logs.into_iter().find_map(|log| texts.iter().find(|text| log.contains(**text)).copied())
    }

    /// While no worker runs. What keeps a node, or the broker, from answering ends some time.
    async fn recover(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            // What the lost part of the journal has signed may offer too little to land.
            let is_patient = begun.elapsed() < PATIENT;
            let arguments: &[_] = if is_patient { &PLAIN } else { &[PLAIN.as_slice(), &["--cancel-pooled"]].concat() };
            let limit = if is_patient { PATIENT } else { RECOVERY_LIMIT };
            let command = timeout(limit, self.home.command(self.binary, arguments)).await;
            let Ok((code, text)) = command else {
                ensure!(is_patient, "chainwriter recover does not end");
                continue;
            };
            let last = text.trim().lines().last().unwrap_or_default().to_owned();
            self.record.say(&format!("chainwriter recover: {code}, {last}"));
            if code == 0 {
                return retry(LIMIT, || self.drop_what_waits_behind_gaps()).await;
            }
            ensure!(begun.elapsed() < RECOVERY_LIMIT, "chainwriter recover ends with {code}: {text}");
            sleep(AGAIN).await;
        }
    }

    /// The docs: a node may keep transactions behind a gap, which no count shows. An operator takes them out of the pool, once
    /// everything else is in blocks.
    async fn drop_what_waits_behind_gaps(&self) -> anyhow::Result<()> {
        let pool = self.rpc.call("txpool_content", json!([])).await.map_err(anyhow::Error::msg)?;
        for (from, _) in pool["queued"].as_object().into_iter().flatten() {
            // Of one alone Anvil drops only what is next.
            self.rpc.call("anvil_removePoolTransactions", json!([from])).await.map_err(anyhow::Error::msg)?;
        }
        Ok(())
    }
}

async fn retry<T>(limit: Duration, act: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        match act().await {
            Err(_) if begun.elapsed() < limit => sleep(AGAIN).await,
            done => return done,
        }
    }
}

/// Once all messages have come through: sends back what may have been written and was not, as the documented operator decides it.
/// Returns how many letters those were.
pub(crate) async fn decide(
    broker: &RabbitCluster,
    rpc: RpcClient,
    home: &WorkerHome,
    binary: &str,
    record: &Record,
) -> anyhow::Result<usize> {
    let (chain, ..) = evidence::chain(rpc).await?;
    let writes = chain.iter().filter(|transaction| transaction.succeeded && transaction.target == Target::Contract);
    let written: std::collections::HashSet<&Written> = writes.flat_map(|transaction| &transaction.writes).collect();
    let letters = evidence::look_at_dead_letters(broker).await?;
    let mut sent_back = 0;
    for letter in letters.into_iter().filter(|letter| letter.key == MAYBE_WRITTEN) {
        let number = record.with_published(|published| {
            published.iter().find(|message| message.body == letter.body).map(|message| (message.number, message.kind))
        });
        let Some((number, kind)) = number else { bail!("a letter of no message: {:?}", letter.id) };
        let is_written =
            written.contains(&Written::Body(letter.body.clone())) || written.contains(&Written::Number(number));
        if is_written || kind == Kind::NoId {
            continue;
        }
        let Some(id) = letter.id else { continue };
        let sent = SentBack { body: letter.body, replay: letter.replay + 1, is_confirmed: true };
        record.send_back(sent);
        let arguments = ["dead", "replay", &id, "--cause", ".maybe_written", "--yes", "--even-forgotten"];
        let (code, text) = home.command(binary, &arguments).await;
        record.say(&format!("decides to send {id} back: {code}, {}", text.trim()));
        ensure!(code == 0, "chainwriter dead replay {id}: {code}, {text}");
        sent_back += 1;
    }
    Ok(sent_back)
}
