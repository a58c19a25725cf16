//! Spawns, names and joins every task; turns signals into a drain; keeps systemd informed.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::model::Heartbeat;
use crate::model::text::escaped;

/// Time that is left after a second signal.
const HURRIED_DEADLINE: Duration = Duration::from_secs(2);
/// The interval between comparisons of the status line: short, so that `systemctl status` right after the start is true.
const STATUS_INTERVAL: Duration = Duration::from_millis(500);
/// The longest interval between checks of the stages.
const PULSE_INTERVAL: Duration = Duration::from_secs(5);
/// Time that a start gets with each tick, in microseconds.
const MORE_TIME_US: u32 = 30_000_000;
/// A longer status is cut: it is one line of `systemctl status`.
const LONGEST_STATUS: usize = 300;

/// Holds all tasks of the process.
#[derive(Debug, Default)]
pub struct Tasks {
    running: JoinSet<(&'static str, anyhow::Result<()>)>,
    names: Vec<&'static str>,
    beats: Vec<(&'static str, Heartbeat)>,
}

impl Tasks {
    /// Makes the watchdog check a sign of life.
    pub fn watch(&mut self, name: &'static str, beat: Heartbeat) {
        self.beats.push((name, beat));
    }

    /// Starts a task. It may end only while the process drains.
    pub fn spawn<E>(&mut self, name: &'static str, task: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: Into<anyhow::Error> + Send + 'static,
    {
        self.names.push(name);
        self.running.spawn(async move { (name, task.await.map_err(Into::into)) });
    }

    /// Starts a task that cannot fail.
    pub fn spawn_endless(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name, async move {
            task.await;
            anyhow::Ok(())
        });
    }

    /// Starts a task that is dropped when `stop` is cancelled.
    pub fn spawn_until(
        &mut self,
        name: &'static str,
        stop: CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_endless(name, async move { _ = stop.run_until_cancelled(task).await });
    }

    /// Returns the signs of life that the watchdog checks.
    pub fn beats(&self) -> Vec<(&'static str, Heartbeat)> {
        self.beats.clone()
    }

    /// Runs until a signal asks for a drain, then drains: `stop` gets the names of the tasks that still run,
    /// first of all and again after each end, and cancels what may go next.
    ///
    /// # Errors
    /// When a task ends before it was asked to, with its error.
    pub async fn run_until_drained(mut self, deadline: Duration, stop: impl Fn(&[&'static str])) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        tokio::select! {
            () = signals.next() => {}
            ended = self.join_next() => {
                let (name, result) = ended.context("no task runs")??;
                let early = anyhow::anyhow!("the task {name} ended");
                return Err(result.err().unwrap_or(early).context(format!("{name} failed")));
            }
        }
        info!(deadline_s = deadline.as_secs(), tasks = self.names.len(), "stopping: finishing what is begun");
        notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
        let mut until = Instant::now() + deadline;
        loop {
            stop(&self.names);
            tokio::select! {
                ended = self.join_next() => match ended {
                    None => return Ok(()),
                    Some(ended) => {
                        let (name, result) = ended?;
                        result.with_context(|| format!("{name} failed while stopping"))?;
                    }
                },
                () = signals.next() => {
                    warn!("a second signal: stopping in a hurry");
                    until = until.min(Instant::now() + HURRIED_DEADLINE);
                }
                () = tokio::time::sleep_until(until) => {
                    warn!(tasks = ?self.names, "not everything was finished in time; the journal and the queue hold the rest");
                    self.running.abort_all();
                    return Ok(());
                }
            }
        }
    }

    async fn join_next(&mut self) -> Option<anyhow::Result<(&'static str, anyhow::Result<()>)>> {
        let joined = self.running.join_next().await?;
        if let Ok((name, _)) = &joined
            && let Some(place) = self.names.iter().position(|running| running == name)
        {
            self.names.remove(place);
        }
        Some(joined.context("a task panicked"))
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Says READY, keeps the status line, and pings the watchdog for as long as every stage moves. A stage that stands still
/// for `stall` ends the pings, and systemd ends the process. `stuck_stages` gets the names of such stages.
pub async fn notify_systemd(
    beats: Vec<(&'static str, Heartbeat)>,
    stall: Duration,
    status: impl Fn() -> String,
    stuck_stages: watch::Sender<Vec<&'static str>>,
) {
    let mut last_status = status();
    notify(&[NotifyState::Ready, NotifyState::Status(&escaped(&last_status))]);
    let watchdog = sd_notify::watchdog_enabled();
    let mut pulses = Pulses::new(beats);
    let mut tick = tokio::time::interval(watchdog.map_or(PULSE_INTERVAL, |limit| (limit / 3).min(PULSE_INTERVAL)));
    let mut renewal = tokio::time::interval(STATUS_INTERVAL);
    renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let stuck = pulses.stuck_for(stall);
                if stuck.is_empty() {
                    notify(&[NotifyState::Watchdog]);
                } else {
                    error!(stages = ?stuck, stall_s = stall.as_secs(), "stages stand still; the watchdog is not fed any more");
                }
                stuck_stages.send_replace(stuck);
            }
            _ = renewal.tick() => {
                let status = status();
                if status != last_status {
                    // A line feed would begin another notification.
                    notify(&[NotifyState::Status(&escaped(&status))]);
                    last_status = status;
                }
            }
        }
    }
}

/// Does what a start may have to wait for, such as a database that is away. Meanwhile the status line says so, and systemd
/// gives the start more time: to be started again would change nothing.
pub async fn while_starting<T>(doing: &str, work: impl Future<Output = T>) -> T {
    notify(&[NotifyState::Status(doing)]);
    let mut tick = tokio::time::interval(PULSE_INTERVAL);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = tick.tick() => notify(&[NotifyState::ExtendTimeoutUsec(MORE_TIME_US)]),
        }
    }
}

/// Makes the reason of the end the status line, which `systemctl status` shows also when the process is gone.
pub fn say_why(reason: &str) {
    let line = reason.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let line: String = line.chars().take(LONGEST_STATUS).collect();
    notify(&[NotifyState::Status(&escaped(&format!("ended: {line}")))]);
}

/// Holds when each stage was last seen to move.
struct Pulses(Vec<(&'static str, Heartbeat, u64, Instant)>);

impl Pulses {
    fn new(beats: Vec<(&'static str, Heartbeat)>) -> Self {
        let now = Instant::now();
        Self(beats.into_iter().map(|(name, beat)| (name, beat.clone(), beat.count(), now)).collect())
    }

    /// Returns the stages that have not moved for longer than this.
    fn stuck_for(&mut self, stall: Duration) -> Vec<&'static str> {
        let now = Instant::now();
        let mut stuck = Vec::new();
        for (name, beat, count, since) in &mut self.0 {
            if beat.count() != *count {
                (*count, *since) = (beat.count(), now);
            } else if now.duration_since(*since) > stall {
                stuck.push(*name);
            }
        }
        stuck
    }
}

/// Does nothing without systemd.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "could not notify systemd");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stage_that_stands_still_is_named_until_it_moves_again() {
        const STALL: Duration = Duration::from_secs(60);
        let (moving, still) = (Heartbeat::default(), Heartbeat::default());
        let mut pulses = Pulses::new(vec![("moving", moving.clone()), ("still", still.clone())]);
        for _ in 0..7 {
            assert!(pulses.stuck_for(STALL).is_empty());
            tokio::time::advance(Duration::from_secs(10)).await;
            moving.beat();
        }
        assert_eq!(pulses.stuck_for(STALL), ["still"]);
        still.beat();
        assert!(pulses.stuck_for(STALL).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn others_hear_which_stages_stand_still() {
        let (moving, still) = (Heartbeat::default(), Heartbeat::default());
        let (stuck_stages, mut stuck) = watch::channel(Vec::new());
        let beats = vec![("moving", moving.clone()), ("still", still)];
        let notifies = notify_systemd(beats, Duration::from_secs(60), String::new, stuck_stages);
        let moves = async {
            loop {
                moving.beat();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            () = notifies => panic!("it ended"),
            () = moves => {}
            heard = stuck.wait_for(|stuck| !stuck.is_empty()) => assert_eq!(*heard.unwrap(), ["still"]),
        }
    }

    #[tokio::test]
    async fn a_task_that_ends_early_ends_the_process_with_its_error() {
        let mut tasks = Tasks::default();
        tasks.spawn("steady", std::future::pending::<anyhow::Result<()>>());
        tasks.spawn("broken", async { Err(anyhow::anyhow!("no disk")) });
        let error = tasks.run_until_drained(Duration::from_secs(1), |_| ()).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "broken failed: no disk");
        let mut tasks = Tasks::default();
        tasks.spawn("quiet", async { anyhow::Ok(()) });
        let error = tasks.run_until_drained(Duration::from_secs(1), |_| ()).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "quiet failed: the task quiet ended");
    }
}
