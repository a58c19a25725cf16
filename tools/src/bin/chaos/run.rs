//! One run from its start to its report: publish and break, wait until all is quiet, check.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::checker::{self, History};
use crate::crew::Crew;
use crate::faults::{self, Parts};
use crate::journal::Journal;
use crate::lagging::LaggingNode;
use crate::operator::Operator;
use crate::other_node::OtherNode;
use crate::record::Record;
use crate::report::Report;
use crate::restoring::{self, Restorer};
use crate::schedule::Plan;
use crate::second::SecondJournal;
use crate::support::{self, Amqp, Anvil, AnvilConfig, RabbitCluster, TcpProxy, WorkerConfig, WorkerHome, contracts};
use crate::{
    BLOCK_GAS, CONTRACT, EVENTS, FINALITY, KEEP, KEEP_MANY, MAX_FEE_GWEI, MAX_LAG, Options, QUEUE, SIGNERS, VHOST,
    evidence, leaks, listener, messages, producer, standing,
};

/// Messages come for this long after the last fault.
const CALM: Duration = Duration::from_secs(20);
const PROGRESS: Duration = Duration::from_secs(10);
/// For everything to become quiet after the last fault: this, and half of the run's duration.
const QUIET: Duration = Duration::from_secs(180);

/// Checks, a second apart, that must find nothing in a row: the broker reports the length of a queue a second late, and a message may
/// be on its way from one queue to another.
const QUIET_LOOKS: u32 = 3;

/// The parts of a run.
pub(crate) struct Run {
    seed: u64,
    duration: Duration,
    binary: String,
    broker: RabbitCluster,
    anvil: Anvil,
    second: LaggingNode,
    /// To each node.
    ways_to_broker: Vec<TcpProxy>,
    way_to_node: TcpProxy,
    way_to_second: TcpProxy,
    other: OtherNode,
    journal: Journal,
    home: WorkerHome,
    /// Of the worker with a journal of its own.
    second_home: WorkerHome,
    record: Arc<Record>,
}

impl Run {
    pub(crate) async fn start(seed: u64, options: &Options, journal: Journal) -> anyhow::Result<Self> {
        let binary = support::chainwriter().map_err(anyhow::Error::msg)?;
        let duration = Duration::from_secs(options.duration);
        let blocks = AnvilConfig {
            block_time: Some(Duration::from_secs(1)),
            gas_limit: BLOCK_GAS,
            // Old states only fill the memory; blocks and receipts stay.
            extra_args: vec!["--prune-history".to_owned(), "64".to_owned()],
            ..AnvilConfig::default()
        };
        let (broker, anvil) = tokio::join!(RabbitCluster::start(options.cluster), Anvil::start(blocks));
        let second = LaggingNode::start(anvil.rpc()).await;
        let mut ways_to_broker = Vec::with_capacity(broker.nodes.len());
        for node in &broker.nodes {
            ways_to_broker.push(TcpProxy::start(node.address()).await);
        }
        let other = OtherNode::start(anvil.rpc()).await;
        let way_to_node = TcpProxy::start(other.node.address()).await;
        let way_to_second = TcpProxy::start(second.node.address()).await;
        let with_journal =
            |url| configuration(&uris_through(&broker, &ways_to_broker), &way_to_node, url, options.batch);
        let home = WorkerHome::new(&with_journal(journal.url()));
        let second_home = WorkerHome::new(&with_journal(None));
        let record = Arc::new(Record::new(&home.folder().join("chaos.log"))?);
        let run = Self {
            seed,
            duration,
            binary,
            broker,
            anvil,
            second,
            ways_to_broker,
            way_to_node,
            way_to_second,
            other,
            journal,
            home,
            second_home,
            record,
        };
        run.prepare(if options.batch > 1 { contracts::BY_NUMBER } else { contracts::BY_WORD }).await?;
        Ok(run)
    }

    async fn prepare(&self, contract: &str) -> anyhow::Result<()> {
        self.anvil.set_code(CONTRACT, contract).await.map_err(anyhow::Error::msg)?;
        self.anvil.set_storage(CONTRACT, 0, 1).await.map_err(anyhow::Error::msg)?;
        // So deep that no reorg takes the contract back.
        self.anvil.mine(FINALITY + 3).await.map_err(anyhow::Error::msg)?;
        let (code, text) = self.home.command(&self.binary, &["topology", "apply"]).await;
        ensure!(code == 0, "chainwriter topology apply ended with {code}: {text}");
        let amqp = Amqp::connect(&self.broker.first().uri(VHOST)).await;
        // The queue must be there while any one node is away.
        amqp.declare_quorum(EVENTS).await;
        amqp.bind(EVENTS, &format!("{QUEUE}.events"), "#").await;
        Ok(())
    }

    /// Publishes and breaks, waits until all is quiet, checks.
    pub(crate) async fn storm(&mut self, options: &Options) -> anyhow::Result<Report> {
        let uris = self.broker.uris(VHOST);
        let stop = CancellationToken::new();
        let pace = Duration::from_secs(1) / options.rate;
        let producer = producer::produce(uris.clone(), QUEUE, pace, self.seed, Arc::clone(&self.record), stop.clone());
        let producer = tokio::spawn(producer);
        let listener = Aborted(tokio::spawn(listener::listen(uris.clone(), EVENTS, Arc::clone(&self.record))));
        let progress = Aborted(tokio::spawn(show_progress(Arc::clone(&self.record))));
        let plan = Plan::new(self.seed, self.duration, &options.only);
        let record = Arc::clone(&self.record);
        let endpoints = [self.way_to_node.url(), self.way_to_second.url()];
        let brokers = uris_through(&self.broker, &self.ways_to_broker);
        let crew = Crew::start(&self.home, &self.binary, &record, options.workers, endpoints, brokers);
        let (home, binary, hands) = (&self.home, &self.binary, Mutex::new(()));
        let operator = Operator { uris, home, binary, record: &record, hands: &hands };
        let (copies, rpc) = (self.journal.copies(home), self.anvil.rpc());
        let restorer =
            Restorer { copies, crew: &crew, home, binary, rpc, record: &record, until: self.duration, hands: &hands };
        let second_journal = SecondJournal { home: &self.second_home, binary, record: &record };
        let parts = Parts {
            broker: &mut self.broker,
            anvil: &mut self.anvil,
            second: &self.second,
            way_to_node: &self.way_to_node,
            way_to_second: &self.way_to_second,
            ways_to_broker: &self.ways_to_broker,
            database: self.journal.parts(),
            other: &self.other,
            crew: &crew,
            restorer: &restorer,
            second_journal: &second_journal,
            operator: &operator,
            record: &record,
        };
        let storm = async {
            Box::pin(parts.fail(&plan)).await;
            sleep(self.duration.saturating_sub(record.elapsed())).await;
        };
        tokio::select! {
            () = storm => {}
            () = crew.watch() => {}
        }
        let ways = [Some(&self.way_to_node), Some(&self.way_to_second), self.journal.way()];
        let ways = ways.into_iter().flatten().chain(&self.ways_to_broker);
        faults::heal(self.anvil.rpc(), ways).await.map_err(anyhow::Error::msg)?;
        record.calm();
        println!("No more faults; messages for {} s more, then waiting until everything is done", CALM.as_secs());
        tokio::select! {
            () = sleep(CALM) => stop.cancel(),
            () = crew.watch() => {}
        }
        producer.await?;
        let open = tokio::select! {
            open = self.end_of_recovery() => open?,
            () = crew.watch() => Vec::new(),
        };
        let mut faults = crew.drain().await;
        drop((progress, listener));
        // Workers must leave nothing behind when they stop, either.
        let open = if open.is_empty() { self.open().await? } else { open };
        self.check(open, &mut faults).await
    }

    /// As [`Self::quiet`]; where a recovery is on, an operator decides on what may have been written, and ends it.
    async fn end_of_recovery(&self) -> anyhow::Result<Vec<String>> {
        let open = self.quiet().await?;
        if !self.record.is_recovering() || !open.is_empty() {
            return Ok(open);
        }
        let Self { broker, anvil, home, binary, record, .. } = self;
        let sent_back = restoring::decide(broker, anvil.rpc(), home, binary, record).await?;
        let open = if sent_back > 0 { self.quiet().await? } else { open };
        let (code, text) = home.command(binary, &["recover", "--end"]).await;
        ensure!(code == 0, "chainwriter recover --end: {code}, {text}");
        Ok(open)
    }

    /// Returns what is still open when the limit is reached; nothing, and sooner, if all is well.
    async fn quiet(&self) -> anyhow::Result<Vec<String>> {
        let (limit, started) = (QUIET + self.duration / 2, Instant::now());
        let mut quiet = 0;
        loop {
            let open = self.open().await?;
            quiet = if open.is_empty() { quiet + 1 } else { 0 };
            if quiet == QUIET_LOOKS || started.elapsed() > limit {
                return Ok(open);
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn open(&self) -> anyhow::Result<Vec<String>> {
        evidence::open(&self.broker, &self.journal, &self.home, self.record.is_recovering()).await
    }

    async fn check(&self, open: Vec<String>, faults: &mut Vec<String>) -> anyhow::Result<Report> {
        let (chain, counted, blocks) = timeout(Duration::from_secs(300), evidence::chain(self.anvil.rpc())).await??;
        let given = self.journal.next_nonces(&self.home).await?;
        let history = History {
            published: self.record.with_published(<[_]>::to_vec),
            chain,
            next_nonces: counted.into_iter().zip(given).map(|(counted, given)| counted.max(given)).collect(),
            dead: evidence::dead_letters(&self.broker).await,
            finals: self.record.finals(),
            sent_back: self.record.sent_back(),
            cancellations: self.record.cancellations(),
            before_restore: self.record.before_restore(),
            stay: evidence::stay(&self.journal, &self.home).await?,
            waits: self.record.waits(),
        };
        let mut findings = checker::check(&history);
        findings.wrong.append(faults);
        let (mut leaks, log_lines) = leaks::in_logs(self.home.folder())?;
        let (mut of_second, more_lines) = leaks::in_logs(self.second_home.folder())?;
        findings.wrong.append(&mut leaks);
        findings.wrong.append(&mut of_second);
        findings.wrong.append(&mut self.record.found());
        let log_lines = log_lines + more_lines;
        let seconds = self.record.elapsed().as_secs();
        let standing = standing::after(&self.record.kills(), self.home.folder())?;
        let totals = self.record.totals();
        let version = self.broker.first().version().await.map_err(anyhow::Error::msg)?;
        let broker = (self.broker.nodes.len(), version);
        Ok(Report { seed: self.seed, seconds, blocks, totals, findings, open, log_lines, standing, broker })
    }

    /// Copies what explains a bad end to where it stays.
    pub(crate) async fn keep(&self, findings: &str) -> anyhow::Result<PathBuf> {
        let folder =
            support::build_folder().map_err(anyhow::Error::msg)?.join("chaos-kept").join(self.seed.to_string());
        std::fs::create_dir_all(&folder)?;
        for entry in std::fs::read_dir(self.home.folder())? {
            let file = entry?.path();
            if let (true, Some(name)) = (file.is_file(), file.file_name()) {
                std::fs::copy(&file, folder.join(name))?;
            }
        }
        std::fs::write(folder.join("findings.txt"), findings)?;
        self.journal.keep(&folder).await?;
        std::fs::write(folder.join("anvil.log"), self.anvil.log())?;
        for (place, node) in self.broker.nodes.iter().enumerate() {
            std::fs::write(folder.join(format!("rabbitmq-{place}.log")), node.log_tail())?;
        }
        Ok(folder)
    }
}

/// A task that ends with its owner.
struct Aborted(JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn show_progress(record: Arc<Record>) {
    loop {
        sleep(PROGRESS).await;
        println!("{}", record.line());
    }
}

/// The broker as workers reach it.
fn uris_through(broker: &RabbitCluster, ways: &[TcpProxy]) -> Vec<String> {
    broker.nodes.iter().zip(ways).map(|(node, way)| node.uri_through(way.addr(), VHOST)).collect()
}

fn configuration(
    brokers: &[String],
    way_to_node: &TcpProxy,
    journal_url: Option<String>,
    batch: usize,
) -> WorkerConfig {
    let config = WorkerConfig {
        broker_uri: brokers.first().cloned().unwrap_or_default(),
        queue: QUEUE.to_owned(),
        endpoint: way_to_node.url(),
        account: 0,
        to: CONTRACT.to_owned(),
        extra: journal_url.map(|url| ("journal", format!("url = {url:?}"))).into_iter().collect(),
    };
    let (config, all) = if batch > 1 {
        let arguments = "arguments = [\"json:/word\", \"json:/number\"]";
        let call = format!("\nmode = \"call\"\nfunction = {KEEP:?}\n{arguments}\nbatch_function = {KEEP_MANY:?}");
        (config.with("batch", format!("max_requests = {batch}")), call)
    } else {
        (config, String::new())
    };
    SIGNERS
        .iter()
        .fold(config, |config, (_, key)| config.with("signer", format!("key = {key:?}")))
        .with("route", format!("name = \"transactions\"\ntype = {:?}\nmode = \"transaction\"", messages::TRANSACTION))
        .with("route", format!("name = \"all\"{all}"))
        .with("policy.allow", format!("to = {CONTRACT:?}"))
        .with("worker", "organisation = \"chaos\"")
        // The default.
        .with("lease", "ttl = \"15s\"")
        .with("broker", format!("max_body = {}\nmax_hold = \"20s\"\npark_delay = \"2s\"", messages::MAX_BODY))
        .with("broker", format!("uris = {brokers:?}"))
        .with("broker", "confirm_timeout = \"5s\"")
        .with("chain", format!("finality = {FINALITY}\ntimeout = \"2s\"\npoll_interval = \"200ms\""))
        .with("chain", format!("max_lag = {MAX_LAG}"))
        .with("chain", "resend_after = \"3s\"\nreplace_after = \"6s\"\nrefused_after = \"1s\"")
        .with("fees", format!("max_fee = \"{MAX_FEE_GWEI} gwei\""))
        .with("retry", "max_attempts = 6\ninitial_delay = \"1s\"\nmultiplier = 2.0\nmax_delay = \"4s\"")
        // Where most is said, most could be shown.
        .with("log", "level = \"debug\"")
}
