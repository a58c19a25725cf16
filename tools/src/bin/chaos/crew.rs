//! The workers of a run: started, killed, frozen, started again.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use crate::record::Record;
use crate::support::{Worker, WorkerHome};

/// Logs kept: those of the last starts.
const LOGS: usize = 200;
/// The time between two checks whether a worker has ended by itself, and before its restart.
const WATCH: Duration = Duration::from_millis(500);
/// Lines of its log that are printed when a worker ended by itself.
const TAIL: usize = 8;

pub(crate) struct Crew<'a> {
    home: &'a WorkerHome,
    binary: &'a str,
    record: &'a Record,
    /// In the order of every other worker; the rest have them the other way round.
    endpoints: [String; 2],
    /// The broker's hosts, in the order of the first worker; each next one begins with the next host.
    brokers: Vec<String>,
    workers: Vec<Mutex<Worker>>,
    starts: std::cell::Cell<usize>,
}

impl<'a> Crew<'a> {
    pub(crate) fn start(
        home: &'a WorkerHome,
        binary: &'a str,
        record: &'a Record,
        count: usize,
        endpoints: [String; 2],
        brokers: Vec<String>,
    ) -> Self {
        let starts = std::cell::Cell::default();
        let mut crew = Self { home, binary, record, endpoints, brokers, workers: Vec::new(), starts };
        crew.workers = (0..count).map(|place| Mutex::new(crew.start_one(place))).collect();
        crew
    }

    fn start_one(&self, place: usize) -> Worker {
        let run = self.starts.get();
        self.starts.set(run + 1);
        if let Some(old) = run.checked_sub(LOGS) {
            // The file is only in the way; a missing one is none.
            let _ = std::fs::remove_file(self.home.folder().join(format!("worker-{old}.log")));
        }
        let [first, second] = &self.endpoints;
        let endpoints = if place.is_multiple_of(2) { [first.as_str(), second] } else { [second.as_str(), first] };
        let mut brokers = self.brokers.clone();
        brokers.rotate_left(place % self.brokers.len().max(1));
        let environment = [
            ("CHAINWRITER__BROKER__URIS", &*brokers.join(",")),
            ("CHAINWRITER__WORKER__INSTANCE", &*format!("w{place}")),
            ("CHAINWRITER__CHAIN__ENDPOINTS", &endpoints.join(",")),
        ];
        let worker = self.home.start_with(self.binary, &environment);
        self.record.say(&format!("worker {place} starts as process {}, log worker-{run}.log", worker.pid()));
        worker
    }

    /// Returns how many there have been; the next one writes the log with this number.
    pub(crate) fn starts(&self) -> usize {
        self.starts.get()
    }

    /// Kills all workers, and starts them again when the work is done. No other fault starts one meanwhile.
    pub(crate) async fn while_stopped<T>(&self, work: impl AsyncFnOnce() -> T) -> T {
        let mut slots = Vec::with_capacity(self.workers.len());
        for slot in &self.workers {
            slots.push(slot.lock().await);
        }
        for (place, worker) in slots.iter_mut().enumerate() {
            if worker.is_running() {
                worker.kill().await;
            } else {
                self.note_end(place, worker).await;
            }
        }
        let done = work().await;
        for (place, worker) in slots.iter_mut().enumerate() {
            **worker = self.start_one(place);
        }
        done
    }

    /// The place of a worker, chosen by a number from the plan.
    fn chosen(&self, pick: u64) -> usize {
        (pick % self.workers.len() as u64) as usize
    }

    pub(crate) async fn kill(&self, pick: u64) {
        let place = self.chosen(pick);
        let Some(slot) = self.workers.get(place) else { return };
        let mut worker = slot.lock().await;
        if worker.is_running() {
            worker.kill().await;
            self.record.kill(place, &worker.log());
        } else {
            self.note_end(place, &mut worker).await;
        }
        *worker = self.start_one(place);
    }

    /// Asks a worker to end, for so long, and starts it again.
    pub(crate) async fn terminate(&self, pick: u64, length: Duration) {
        let place = self.chosen(pick);
        let Some(slot) = self.workers.get(place) else { return };
        let mut worker = slot.lock().await;
        if !worker.is_running() {
            return;
        }
        worker.signal("TERM");
        match timeout(length, worker.exit()).await {
            // By the signal itself: it came before the process listened to signals.
            Ok(status) if status.success() || status.code().is_none() => {}
            Ok(_) => self.note_end(place, &mut worker).await,
            Err(_) => worker.kill().await,
        }
        *worker = self.start_one(place);
    }

    /// Runs it for each worker, in this time.
    pub(crate) async fn restart_in_turn(&self, length: Duration) {
        let count = self.workers.len() as u32;
        for place in 0..u64::from(count) {
            self.terminate(place, length / count).await;
        }
    }

    /// Stops a worker's process for a while. It may be killed meanwhile.
    pub(crate) async fn freeze(&self, pick: u64, length: Duration) {
        let place = self.chosen(pick);
        let Some(slot) = self.workers.get(place) else { return };
        let pid = {
            let mut worker = slot.lock().await;
            if !worker.is_running() {
                return;
            }
            worker.signal("STOP");
            worker.pid()
        };
        sleep(length).await;
        let mut worker = slot.lock().await;
        if worker.is_running() && worker.pid() == pid {
            worker.signal("CONT");
        }
    }

    /// Starts again what ended by itself; never returns.
    pub(crate) async fn watch(&self) {
        loop {
            sleep(WATCH).await;
            for (place, slot) in self.workers.iter().enumerate() {
                let mut worker = slot.lock().await;
                if !worker.is_running() {
                    self.note_end(place, &mut worker).await;
                    *worker = self.start_one(place);
                }
            }
        }
    }

    async fn note_end(&self, place: usize, worker: &mut Worker) {
        let status = worker.exit().await;
        let log = worker.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default().join("\n    ");
        self.record.ended(place, &format!("{status}\n    {tail}"));
    }

    /// SIGTERM to all; what did not go well, as sentences.
    pub(crate) async fn drain(self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut workers: Vec<_> = self.workers.into_iter().map(Mutex::into_inner).collect();
        for worker in workers.iter_mut().filter_map(|worker| worker.is_running().then_some(worker)) {
            worker.signal("TERM");
        }
        for (place, worker) in workers.iter_mut().enumerate() {
            let status = worker.exit().await;
            if !status.success() {
                faults.push(format!("worker {place} ended with {status} after SIGTERM"));
            }
        }
        faults
    }
}
