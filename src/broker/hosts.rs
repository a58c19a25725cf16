//! Which of several hosts is asked, and when the next one is.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// A host that has not answered for this long gets company: the next one is asked too.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Returns the first success. An attempt begins when the one before has failed, or has not ended for `patience`.
///
/// # Errors
/// All failures, in the order of the attempts.
pub(super) async fn first_to_answer<T, E>(
    attempts: impl IntoIterator<Item = impl Future<Output = Result<T, E>>>,
    patience: Duration,
) -> Result<T, Vec<E>> {
    let numbered = attempts.into_iter().enumerate().map(|(number, attempt)| async move { (number, attempt.await) });
    let mut waiting = numbered.collect::<Vec<_>>().into_iter();
    let mut running = FuturesUnordered::new();
    let mut failures = Vec::new();
    running.extend(waiting.next());
    loop {
        let more = pin!(tokio::time::sleep(patience));
        let ended = tokio::select! {
            ended = running.next() => ended,
            // A host that is merely slow goes on.
            () = more, if waiting.len() > 0 => {
                running.extend(waiting.next());
                continue;
            }
        };
        match ended {
            Some((_, Ok(first))) => return Ok(first),
            Some((number, Err(failure))) => {
                failures.push((number, failure));
                running.extend(waiting.next());
            }
            None => {
                failures.sort_by_key(|(number, _)| *number);
                return Err(failures.into_iter().map(|(_, failure)| failure).collect());
            }
        }
    }
}

/// The order in which sessions use hosts: one that fails makes way for the next host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// The host to ask first.
    first: usize,
    /// The host of the session, and the number of hosts.
    connected: Option<(usize, usize)>,
    /// Sessions that failed soon one after the other, each on another host.
    failed: usize,
}

impl Turn {
    pub(super) fn first(&self) -> usize {
        self.first
    }

    /// Notes the host of the session, and the number of hosts.
    pub(super) fn connected(&mut self, place: (usize, usize)) {
        self.connected = Some(place);
    }

    /// Notes that the session failed after this time. Returns whether another host is worth a try at once: there is one that has not failed
    /// since the last pause. Where no host could be reached, all have been asked already.
    pub(super) fn moves_on(&mut self, lasted: Duration) -> bool {
        let connected = self.connected.take();
        if connected.is_none() || lasted >= PATIENCE {
            self.failed = 0;
        }
        let Some((host, hosts)) = connected else { return false };
        self.first = (host + 1) % hosts;
        self.failed = (self.failed + 1) % hosts;
        self.failed != 0
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Each host: after how long it answers, and whether it takes the connection.
    async fn race(hosts: &[(u64, bool)]) -> (Result<usize, Vec<usize>>, Vec<(usize, Duration)>, Duration) {
        let (began, started) = (Instant::now(), RefCell::new(Vec::new()));
        let attempts = hosts.iter().enumerate().map(|(number, (after, takes))| {
            let started = &started;
            async move {
                started.borrow_mut().push((number, began.elapsed()));
                tokio::time::sleep(ms(*after)).await;
                if *takes { Ok(number) } else { Err(number) }
            }
        });
        let end = first_to_answer(attempts, ms(1000)).await;
        let took = began.elapsed();
        (end, started.into_inner(), took)
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_host_is_asked_at_once_after_a_refusal_and_after_a_second_of_silence() {
        let (never, now) = (3_600_000, 1);
        for (hosts, end, took, asked) in [
            (vec![(now, true), (now, true)], Ok(0), 1, 1),
            (vec![(now, false), (now, true)], Ok(1), 2, 2),
            (vec![(never, true), (now, true)], Ok(1), 1001, 2),
            (vec![(never, true), (never, true), (now, true)], Ok(2), 2001, 3),
            (vec![(1500, true), (never, true)], Ok(0), 1500, 2),
            (vec![(1500, false), (now, false)], Err(vec![0, 1]), 1500, 2),
            (vec![(10_000, false)], Err(vec![0]), 10_000, 1),
        ] {
            let (ended, started, time) = race(&hosts).await;
            assert_eq!((ended, time, started.len()), (end, ms(took), asked), "{hosts:?}");
        }
    }

    #[test]
    fn each_other_host_gets_one_try_at_once_and_then_there_is_a_pause() {
        let mut turn = Turn::default();
        let mut failed = |host: Option<usize>| {
            if let Some(host) = host {
                turn.connected((host, 3));
            }
            (turn.moves_on(ms(5)), turn.first())
        };
        assert_eq!(failed(Some(0)), (true, 1));
        assert_eq!(failed(Some(1)), (true, 2));
        assert_eq!(failed(Some(2)), (false, 0), "all three have failed");
        assert_eq!(failed(Some(0)), (true, 1));
        assert_eq!(failed(None), (false, 1), "none could be reached");
        assert_eq!(failed(Some(1)), (true, 2));
        let mut alone = Turn::default();
        alone.connected((0, 1));
        assert!(!alone.moves_on(PATIENCE), "there is no other host");
        let mut lasting = Turn::default();
        for _ in 0..5 {
            lasting.connected((lasting.first(), 2));
            assert!(lasting.moves_on(PATIENCE), "a session that has lasted is no failure of its host");
        }
    }
}
