//! How things stand at one moment: set together, before a page is written, so that nobody has to keep them up to date.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::observe::metrics::book::Book;
use crate::observe::metrics::meters::Pairs;

pub(super) type AmountGauge = Gauge<f64, AtomicU64>;

/// A gauge that says one thing.
#[derive(Debug)]
pub struct Amount(pub(super) AmountGauge);

impl Amount {
    pub fn set(&self, amount: f64) {
        self.0.set(amount);
    }
}

/// A gauge for each value of some labels. What is not set is not on the page.
#[derive(Debug)]
pub struct Amounts<const N: usize> {
    family: Family<Pairs, AmountGauge>,
    names: [&'static str; N],
}

impl<const N: usize> Amounts<N> {
    fn of(book: &mut Book, name: &'static str, help: &'static str, names: [&'static str; N]) -> Self {
        Self { family: book.amounts(name, help, &names), names }
    }

    /// From now on, for these values of the labels.
    pub fn set(&self, values: [&str; N], amount: f64) {
        let pairs: Pairs = self.names.into_iter().zip(values.into_iter().map(str::to_owned)).collect();
        self.family.get_or_create(&pairs).set(amount);
    }

    fn clear(&self) {
        self.family.clear();
    }
}

#[derive(Debug)]
pub struct Gauges {
    /// Always 1.
    pub build_info: Amounts<1>,
    /// Seconds since 1970.
    pub start_time: Amount,
    /// 1 or 0.
    pub ready: Amount,
    /// 1 for the state that it is in.
    pub broker_state: Amounts<1>,
    /// 1 or 0.
    pub deliveries_wanted: Amount,
    pub lane: LaneGauges,
    /// 1 or 0.
    pub endpoint_up: Amounts<1>,
    pub endpoint_behind: Amounts<1>,
    /// By account and state.
    pub requests_open: Amounts<2>,
    /// By account and state.
    pub oldest_age: Amounts<2>,
    pub outbox: Amounts<1>,
}

/// Those of lanes, by account.
#[derive(Debug)]
pub struct LaneGauges {
    /// 1 or 0.
    pub owner: Amounts<1>,
    /// 1 or 0.
    pub open: Amounts<1>,
    /// 1 for the reason.
    pub paused: Amounts<2>,
    pub in_flight: Amounts<1>,
    pub window: Amounts<1>,
    pub next_nonce: Amounts<1>,
    pub head_block: Amounts<1>,
    pub head_age: Amounts<1>,
    /// Wei for a unit of gas.
    pub fee: Amounts<1>,
    pub balance: Amounts<1>,
    /// Nonces since the start.
    pub mended: Amounts<1>,
}

impl Gauges {
    pub(super) fn registered(book: &mut Book) -> Self {
        const ENDPOINT: [&str; 1] = ["endpoint"];
        const STATE: [&str; 2] = ["account", "state"];
        Self {
            build_info: Amounts::of(book, "build_info", "1, with the program's version", ["version"]),
            start_time: book.amount("start_time_seconds", "When the program started, in seconds since 1970"),
            ready: book.amount("ready", "1 while /readyz says so"),
            broker_state: Amounts::of(
                book,
                "broker_state",
                "1 for how it stands with the broker: connecting, consuming, paused (connected, no deliveries wanted), blocked",
                ["state"],
            ),
            deliveries_wanted: book.amount("deliveries_wanted", "1 while there is room and a lane takes requests"),
            lane: LaneGauges::registered(book),
            endpoint_up: Amounts::of(
                book,
                "endpoint_up",
                "1 while the endpoint serves; its place in chain.endpoints, from 1",
                ENDPOINT,
            ),
            endpoint_behind: Amounts::of(book, "endpoint_blocks_behind", "Blocks behind the best endpoint", ENDPOINT),
            requests_open: Amounts::of(
                book,
                "requests_open",
                "Requests in the journal that are not settled: accepted, writing, retry_pending, dead_pending; of all instances",
                STATE,
            ),
            oldest_age: Amounts::of(
                book,
                "requests_oldest_age_seconds",
                "For how long the first in line of them has been in this state",
                STATE,
            ),
            outbox: Amounts::of(
                book,
                "outbox_events",
                "Events without a publisher confirm; of all instances",
                ["account"],
            ),
        }
    }

    /// Nothing is said any more of what is not set anew.
    pub(super) fn clear(&self) {
        let Self { build_info, start_time: _, ready: _, broker_state, deliveries_wanted: _, lane, .. } = self;
        let LaneGauges {
            owner,
            open,
            paused,
            in_flight,
            window,
            next_nonce,
            head_block,
            head_age,
            fee,
            balance,
            mended,
        } = lane;
        for amounts in [
            build_info,
            broker_state,
            owner,
            open,
            in_flight,
            window,
            next_nonce,
            head_block,
            head_age,
            fee,
            balance,
            mended,
            &self.endpoint_up,
            &self.endpoint_behind,
            &self.outbox,
        ] {
            amounts.clear();
        }
        for amounts in [paused, &self.requests_open, &self.oldest_age] {
            amounts.clear();
        }
    }
}

impl LaneGauges {
    fn registered(book: &mut Book) -> Self {
        let mut of = |name, help| Amounts::of(book, name, help, ["account"]);
        Self {
            owner: of("lane_owner", "1 while this instance owns the account"),
            open: of("lane_open", "1 while the lane takes requests, or another instance's does"),
            in_flight: of("lane_in_flight", "Transactions that are not final"),
            window: of("lane_window", "How many transactions may wait for a block now"),
            next_nonce: of("lane_next_nonce", "The nonce that the next transaction gets"),
            head_block: of("lane_head_block", "The newest block seen"),
            head_age: of("lane_head_age_seconds", "How old that block is, by its own timestamp"),
            fee: of("lane_fee_wei", "What a transaction would offer now at most, for one unit of gas"),
            balance: of("lane_balance_ether", "What the account has, asked once a minute"),
            mended: of("lane_nonces_mended", "Nonces in gaps that something was sent for since the start"),
            paused: Amounts::of(
                book,
                "lane_paused",
                "1 while the lane pauses, with the reason; absent otherwise",
                ["account", "reason"],
            ),
        }
    }
}
