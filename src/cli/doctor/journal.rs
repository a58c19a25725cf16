//! The journal: there, of this version, on a disk with room, in a database that keeps what it commits; and who works with it.

use std::path::Path;
use std::time::Duration;

use crate::cli::doctor::finding::Finding;
use crate::cli::{spell, text_of};
use crate::config::Settings;
use crate::journal::{
    Attendance, Hold, JournalAddress, JournalError, JournalOverview, LostRetry, OperatorsJournal, Proof,
};
use crate::model::Timestamp;
use crate::policy::passage::{LATE, longest_hold, taken_in_up_to};

const AREA: &str = "journal";
/// Below this its disk is nearly full: a day of writes may take as much.
const LOW_DISK_BYTES: u64 = 1 << 30;
/// Below this a write may fail any moment.
const FULL_DISK_BYTES: u64 = 16 << 20;
/// Leases allow for more; times in `status` are told wrong by as much.
const SKEW: Duration = Duration::from_secs(2);

/// The journal's own state, and its accounts.
pub(super) struct JournalFindings {
    pub(super) findings: Vec<Finding>,
    pub(super) overview: Option<JournalOverview>,
}

impl JournalFindings {
    pub(super) async fn read(settings: &Settings) -> Self {
        let address = &settings.journal.address;
        let mut findings: Vec<_> = match address {
            JournalAddress::Sqlite(path) if !is_of_some_folder(path) => disk(path).into_iter().collect(),
            JournalAddress::Sqlite(_) | JournalAddress::Postgres(_) => Vec::new(),
        };
        let overview = match address.open_existing().await {
            Ok(journal) => {
                findings.push(Finding::ok(AREA, address.to_string()));
                let looked = examine_open(journal.as_ref(), settings, &mut findings).await;
                journal.close().await;
                looked.map_err(|error| findings.push(failed(error))).ok()
            }
            Err(JournalError::Missing { .. }) => {
                findings.push(missing(address));
                None
            }
            Err(error) => {
                findings.push(failed(error));
                None
            }
        };
        Self { findings, overview }
    }
}

async fn examine_open(
    journal: &dyn OperatorsJournal,
    settings: &Settings,
    findings: &mut Vec<Finding>,
) -> Result<JournalOverview, JournalError> {
    let asked = Timestamp::now();
    let condition = journal.condition().await?;
    findings.extend(condition.concerns.into_iter().map(|concern| Finding::warn(AREA, concern)));
    findings.extend(condition.clock.map(|clock| skew(clock, asked, Timestamp::now())));
    findings.extend(instances(&journal.attendance().await?));
    let hold = longest_hold(settings.broker.consumer_timeout);
    findings.extend(forgetting(&journal.proof().await?, settings.journal.retention, hold, Timestamp::now()));
    let overview = journal.overview().await?;
    findings.extend(overview.holds.iter().map(held));
    findings.extend(lost(&overview.lost_retries));
    Ok(overview)
}

fn held(hold: &Hold) -> Finding {
    let option = match (hold.account, &hold.route) {
        (Some(account), _) => format!(" --account {account}"),
        (None, Some(route)) => format!(" --route {route}"),
        (None, None) => String::new(),
    };
    let old = if hold.is_old(Timestamp::now()) { "; that is more than a day ago: is it forgotten?" } else { "" };
    Finding::warn("hold", format!("{}; nothing new is signed for it{old}", hold.text()))
        .remedy(format!("when it is over: chainwriter release{option} --reason TEXT"))
}

/// Reports requests that wait in vain. A few are named.
fn lost(retries: &[LostRetry]) -> Option<Finding> {
    const NAMED: usize = 5;
    let first = retries.first()?;
    let named: Vec<_> = retries.iter().take(NAMED).map(|lost| lost.request.as_str()).collect();
    let others = retries.len().saturating_sub(NAMED);
    let more = if others > 0 { format!(" and {others} more") } else { String::new() };
    let what = format!(
        "{} for a retry that the broker has lost: {}{more}",
        if retries.len() == 1 { "a request waits" } else { "requests wait" },
        named.join(", ")
    );
    let LostRetry { request, attempt, .. } = first;
    let remedy = format!(
        "publish it again under its id, with {attempt} in the header cw-attempt; or give it up: `chainwriter cancel {request}`"
    );
    Some(Finding::warn("retries", what).remedy(remedy))
}

/// Reports an error of the journal, whose text says what to do.
fn failed(error: JournalError) -> Finding {
    Finding::fail(AREA, text_of(&error.into()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Returns whether there is no file of this bare name in the working directory, which may not be the worker's.
fn is_of_some_folder(path: &Path) -> bool {
    path.components().count() == 1 && !path.exists()
}

fn missing(address: &JournalAddress) -> Finding {
    match address {
        JournalAddress::Sqlite(path) if !folder_of(path).is_dir() => {
            let folder = folder_of(path).display();
            Finding::fail(AREA, format!("{address} cannot be made: there is no folder {folder}"))
                .remedy(format!("make it, for the worker's user alone: `install -d -m 0700 {folder}`"))
        }
        JournalAddress::Sqlite(path) if is_of_some_folder(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string();
            Finding::warn(AREA, format!("there is no {path}, and journal.url begins in the working directory"))
                .remedy("if a systemd unit works with this configuration, name it: `chainwriter --unit NAME doctor`")
        }
        JournalAddress::Sqlite(_) | JournalAddress::Postgres(_) => {
            Finding::ok(AREA, format!("{address} will be made at the first start"))
        }
    }
}

/// Returns nothing where the folder is missing: that is told elsewhere.
fn disk(path: &Path) -> Option<Finding> {
    let space = rustix::fs::statvfs(folder_of(path)).ok()?;
    Some(room(space.f_bavail.saturating_mul(space.f_frsize)))
}

fn room(bytes: u64) -> Finding {
    let what = format!("its disk has room for {}", bytesize::ByteSize::b(bytes).display().iec());
    let remedy = "make room: without it the worker ends, and starts again when there is some";
    if bytes < FULL_DISK_BYTES {
        return Finding::fail("disk", what).remedy(remedy);
    }
    if bytes < LOW_DISK_BYTES {
        return Finding::warn("disk", what).remedy(remedy);
    }
    Finding::ok("disk", what)
}

/// Returns the database's clock was read some time between the two.
fn skew(clock: Timestamp, before: Timestamp, after: Timestamp) -> Finding {
    let off = before.0.saturating_sub(clock.0).max(clock.0.saturating_sub(after.0)).max(0);
    let off = Duration::from_millis(off.unsigned_abs());
    if off > SKEW {
        return Finding::warn("clock", format!("this host's and the journal's database are {} apart", spell(off)))
            .remedy("set both clocks by NTP: see `timedatectl`");
    }
    Finding::ok("clock", "this host's agrees with the journal's database")
}

/// Reports that nothing is forgotten for long, and why as far as the journal shows it.
fn forgetting(proof: &Proof, retention: Duration, hold: Duration, now: Timestamp) -> Option<Finding> {
    let Proof { newest, passed, made_at } = proof;
    let up_to = taken_in_up_to(passed, hold).or(*made_at)?;
    let since = Duration::from_millis(u64::try_from(now.0.saturating_sub(up_to.0)).unwrap_or(0));
    if since <= retention.saturating_add(hold).saturating_mul(LATE) {
        return None;
    }
    let what = format!("nothing that ended since {} is forgotten", up_to.before(retention));
    let waits = newest.as_ref().filter(|newest| newest.state.passed_at.is_none());
    Some(match waits.map(|newest| newest.state) {
        Some(state) if state.is_confirmed => {
            let what = format!("{what}: what was in the work queue at {} has not all come out", state.published_at);
            Finding::warn(AREA, what)
                .remedy("see why with `chainwriter status`: deliveries pause, or the queue is long")
        }
        Some(state) => {
            let what = format!("{what}: a passage through the work queue of {} was not published", state.published_at);
            Finding::warn(AREA, what)
                .remedy("see the worker's log: the broker takes no messages, or a wait queue is missing")
        }
        None => Finding::warn(AREA, what).remedy(
            "start a worker; if one runs, set its host's clock by NTP: blocks and the database must agree with it",
        ),
    })
}

fn instances(attendance: &Attendance) -> Vec<Finding> {
    const AREA: &str = "instances";
    let Attendance { instances, .. } = attendance;
    if instances.is_empty() {
        return vec![Finding::notice(AREA, "no worker runs with this journal").remedy("start one: `chainwriter run`")];
    }
    let mut names: Vec<_> = instances.iter().map(|instance| instance.worker.as_str()).collect();
    names.sort_unstable();
    let mut findings =
        vec![Finding::ok(AREA, format!("{} at work with this journal: {}", names.len(), names.join(", ")))];
    if let Some(double) =
        names.windows(2).find_map(|pair| if let [a, b] = pair { (a == b).then_some(*a) } else { None })
    {
        findings.push(
            Finding::warn(AREA, format!("two runs are called {double}: one was killed just now, or two share a name"))
                .remedy("give each its own worker.instance"),
        );
    }
    let mut versions: Vec<_> = instances.iter().map(|instance| instance.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        findings.push(
            Finding::notice(AREA, format!("they run with the versions {}", versions.join(", ")))
                .remedy("bring all to the newest"),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Level;
    use crate::journal::Passage;
    use crate::policy::passage::Newest;

    #[test]
    fn a_journal_that_may_be_another_folders_is_not_said_to_be_well() {
        let of = |path: &str| missing(&JournalAddress::Sqlite(path.into()));
        let bare = of("no-such-journal.db");
        assert_eq!(bare.level, Level::Warn);
        assert!(bare.what.contains(std::env::current_dir().unwrap().to_str().unwrap()), "{bare}");
        assert!(bare.remedy.unwrap().contains("--unit"));
        assert_eq!(of("/tmp/no-such-journal.db").level, Level::Ok);
        assert_eq!(of("no-such-folder/journal.db").level, Level::Fail);
    }

    #[test]
    fn little_room_is_a_warning_and_none_a_failure() {
        let levels = [1 << 20, 500 << 20, 2 << 30].map(|bytes| room(bytes).level);
        assert_eq!(levels, [Level::Fail, Level::Warn, Level::Ok]);
    }

    #[test]
    fn a_journal_that_forgets_nothing_for_long_is_a_warning_that_says_why() {
        const HOUR: Duration = Duration::from_secs(3600);
        let (made, now) = (Timestamp(1_700_000_000_000), Timestamp(1_700_000_000_000).after(3 * HOUR));
        let newest = |is_confirmed, passed_at| {
            let state = Newest { published_at: made.after(HOUR), is_confirmed, passed_at };
            Some(Passage { token: "t".to_owned(), state })
        };
        let passed = |at: Option<Timestamp>| {
            let state = |at| Newest { published_at: at, is_confirmed: true, passed_at: Some(at) };
            at.into_iter().flat_map(|at| [state(at), state(at.after(HOUR / 4))]).collect()
        };
        let proof = |newest, at| Proof { newest, passed: passed(at), made_at: Some(made) };
        let of = |proof: &Proof| forgetting(proof, HOUR, HOUR / 4, now).map(|finding| finding.to_string());
        assert_eq!(of(&Proof::default()), None, "no worker has started with it");
        assert_eq!(of(&proof(newest(true, None), Some(made.after(HOUR)))), None);
        for (found, expected) in [
            (newest(true, None), "has not all come out"),
            (newest(false, None), "was not published"),
            (newest(true, Some(now)), "by NTP"),
            (None, "start a worker"),
        ] {
            let text = of(&proof(found, None)).unwrap();
            assert!(text.starts_with("warn") && text.contains(expected), "{text}");
        }
    }

    #[test]
    fn lost_retries_are_named_with_both_ways_on() {
        let of = |count: usize| -> Vec<_> {
            let retry = |number| LostRetry {
                request: format!("r{number}"),
                account: crate::model::Address([1; 20]),
                attempt: 2,
                waits_since: Timestamp(0),
            };
            (0..count).map(retry).collect()
        };
        assert!(lost(&[]).is_none());
        let one = lost(&of(1)).unwrap();
        assert_eq!(
            (one.level, one.what.as_str()),
            (Level::Warn, "a request waits for a retry that the broker has lost: r0")
        );
        let remedy = one.remedy.unwrap();
        assert!(remedy.contains("with 2 in the header") && remedy.contains("cancel r0"), "{remedy}");
        assert!(lost(&of(7)).unwrap().what.ends_with("r0, r1, r2, r3, r4 and 2 more"));
    }

    #[test]
    fn clocks_apart_are_told_and_a_slow_answer_is_not() {
        let at = |clock, before, after| skew(Timestamp(clock), Timestamp(before), Timestamp(after)).level;
        assert_eq!(at(10_000, 9_000, 11_000), Level::Ok);
        assert_eq!(at(10_000, 2_000, 20_000), Level::Ok, "it was read within these");
        assert_eq!(at(10_000, 13_000, 13_001), Level::Warn);
        assert_eq!(at(10_000, 6_000, 7_000), Level::Warn);
    }
}
