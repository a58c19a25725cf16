//! A report as gauges: what `/metrics` says of a moment is what `/status` says of it.

use crate::daemon::status::{LaneReport, WorkerReport, wei};
use crate::journal::{HoldKind, JournalOverview};
use crate::model::Timestamp;
use crate::observe::metrics::Gauges;

const ETHER: f64 = 1e18;

pub(super) fn set(gauges: &Gauges, report: &WorkerReport) {
    let WorkerReport { version, started_at, at, not_ready, broker, lanes, endpoints, journal, .. } = report;
    gauges.build_info.set([version], 1.0);
    gauges.start_time.set([], started_at.0 as f64 / 1000.0);
    gauges.ready.set([], flag(not_ready.is_empty()));
    for state in ["connecting", "consuming", "paused", "blocked"] {
        gauges.broker_state.set([state], flag(broker.state == state));
    }
    gauges.deliveries_wanted.set([], flag(broker.deliveries_wanted));
    gauges.prefetch.set([], f64::from(broker.prefetch));
    for lane in lanes {
        set_lane(gauges, lane, *at);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let place = (index + 1).to_string();
        gauges.endpoint_up.set([&place], flag(endpoint.serves));
        gauges.endpoint_behind.set([&place], endpoint.blocks_behind as f64);
    }
    if let Some(journal) = journal {
        set_journal(gauges, journal);
    }
}

fn set_lane(gauges: &Gauges, lane: &LaneReport, at: Timestamp) {
    let account = lane.account.to_string();
    let of = [account.as_str()];
    gauges.lane_owner.set(of, flag(lane.owner));
    gauges.lane_open.set(of, flag(lane.open));
    if let Some(pause) = &lane.paused {
        gauges.lane_paused.set([&account, &pause.reason], 1.0);
    }
    if let Some(left) = lane.retiring.as_ref().and_then(|retiring| retiring.left) {
        gauges.lane_retiring.set(of, left as f64);
    }
    gauges.lane_on_hold.set(of, flag(lane.on_hold.is_some()));
    gauges.lane_in_flight.set(of, lane.in_flight as f64);
    gauges.lane_window.set(of, lane.window as f64);
    if lane.owner {
        gauges.lane_window_limit.set([&account, &lane.window_limit], 1.0);
    }
    gauges.lane_nonces_filled.set(of, lane.nonces_filled as f64);
    let amount = |text: &Option<String>| text.as_deref().and_then(wei).map(|wei| wei.0 as f64);
    for (gauge, value) in [
        (&gauges.lane_next_nonce, lane.next_nonce.map(|nonce| nonce.0 as f64)),
        (&gauges.lane_head_block, lane.head.map(|head| head.0 as f64)),
        (&gauges.lane_head_age, lane.head_at.map(|head_at| at.0.saturating_sub(head_at.0) as f64 / 1000.0)),
        (&gauges.lane_fee, amount(&lane.fee_wei)),
        (&gauges.lane_balance, amount(&lane.balance_wei).map(|balance| balance / ETHER)),
    ] {
        value.into_iter().for_each(|value| gauge.set(of, value));
    }
}

fn set_journal(gauges: &Gauges, journal: &JournalOverview) {
    for kind in HoldKind::ALL {
        let of_kind = || journal.holds.iter().filter(|hold| hold.kind() == kind);
        let oldest = of_kind().map(|hold| hold.since.age()).max().unwrap_or_default();
        gauges.holds.set([kind.as_str()], of_kind().count() as f64);
        gauges.hold_age.set([kind.as_str()], oldest.as_secs_f64());
    }
    gauges.retries_lost.set([], journal.lost_retries.len() as f64);
    for account in &journal.accounts {
        let address = account.address.to_string();
        gauges.outbox.set([&address], account.outbox as f64);
        for state in ["accepted", "writing", "retry_pending", "dead_pending"] {
            let open = account.open.iter().find(|open| open.state == state);
            gauges.requests_open.set([&address, state], open.map_or(0.0, |open| open.count as f64));
            let age = open.map_or(0.0, |open| open.since.age().as_secs_f64());
            gauges.oldest_age.set([&address, state], age);
        }
    }
}

fn flag(is_so: bool) -> f64 {
    if is_so { 1.0 } else { 0.0 }
}
