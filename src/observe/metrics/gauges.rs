//! How things stand at one moment: set together, before a page is written, so that no part has to keep them up to date.
//! `daemon/status/gauges.rs` sets them.

use prometheus_client::metrics::family::Family;

use crate::observe::metrics::book::Book;
use crate::observe::metrics::series::{AmountGauge, Pairs};

/// A gauge for each value of some labels, or a single one. What has labels and is not set is not on the page.
#[derive(Debug)]
pub struct Amounts<const N: usize> {
    family: Family<Pairs, AmountGauge>,
    names: [&'static str; N],
}

impl<const N: usize> Amounts<N> {
    /// Sets the gauge for these values of the labels.
    pub fn set(&self, values: [&str; N], amount: f64) {
        let pairs: Pairs = self.names.into_iter().zip(values.into_iter().map(str::to_owned)).collect();
        self.family.get_or_create(&pairs).set(amount);
    }
}

macro_rules! gauges {
    ($($field:ident = $name:literal by [$($label:literal),*], $help:literal;)+) => {
        #[derive(Debug)]
        pub struct Gauges {
            $(#[doc = $help] pub $field: Amounts<{ <[&str]>::len(&[$($label),*]) }>,)+
        }

        impl Gauges {
            pub(super) fn registered(book: &mut Book) -> Self {
                Self {
                    $($field: Amounts { family: book.amounts($name, $help, &[$($label),*]), names: [$($label),*] },)+
                }
            }

            /// Takes everything with labels off the page that is not set again.
            pub(super) fn clear(&self) {
                $(if !self.$field.names.is_empty() {
                    self.$field.family.clear();
                })+
            }
        }
    };
}

gauges! {
    build_info = "build_info" by ["version"], "1, with the program's version";
    start_time = "start_time_seconds" by [], "When the program started, in seconds since 1970";
    ready = "ready" by [], "1 while /readyz says so";
    broker_state = "broker_state" by ["state"],
        "1 for how it stands with the broker: connecting, consuming, paused (connected, no deliveries wanted), blocked";
    deliveries_wanted = "deliveries_wanted" by [], "1 while there is room and a lane takes requests";
    prefetch = "prefetch" by [], "How many deliveries may be held unacknowledged now";
    lane_owner = "lane_owner" by ["account"], "1 while this instance owns the account";
    lane_open = "lane_open" by ["account"], "1 while the lane takes requests, or another instance's does";
    lane_in_flight = "lane_in_flight" by ["account"], "Transactions that are not final";
    lane_window = "lane_window" by ["account"], "How many transactions may wait for a block now";
    lane_window_limit = "lane_window_limit" by ["account", "limit"],
        "1 for what keeps the window from being larger: start (no block has shown what it holds), blocks, pool, in_flight";
    lane_next_nonce = "lane_next_nonce" by ["account"], "The nonce that the next transaction gets";
    lane_head_block = "lane_head_block" by ["account"], "The newest block seen";
    lane_head_age = "lane_head_age_seconds" by ["account"], "How old that block is, by its own timestamp";
    lane_fee = "lane_fee_wei" by ["account"], "What a transaction would offer now at most, for one unit of gas";
    lane_balance = "lane_balance_ether" by ["account"], "What the account has, asked once a minute";
    lane_nonces_filled = "lane_nonces_filled" by ["account"],
        "Missing nonces that were filled since the start";
    lane_retiring = "lane_retiring_left" by ["account"],
        "Requests and events that an account with retire = true has left to finish; absent for others";
    lane_on_hold = "lane_on_hold" by ["account"], "1 while an operator holds the account, or everything";
    lane_paused = "lane_paused" by ["account", "reason"], "1 while the lane pauses, with the reason; absent otherwise";
    endpoint_up = "endpoint_up" by ["endpoint"], "1 while the endpoint serves; its place in chain.endpoints, from 1";
    endpoint_behind = "endpoint_blocks_behind" by ["endpoint"], "Blocks behind the best endpoint";
    requests_open = "requests_open" by ["account", "state"],
        "Requests in the journal that are not settled: accepted, writing, retry_pending, dead_pending; of all instances";
    oldest_age = "requests_oldest_age_seconds" by ["account", "state"],
        "For how long the first in line of them has been in this state";
    retries_lost = "retries_lost" by [],
        "Requests that wait for a retry which the broker has lost, of all instances; up to 100";
    holds = "holds" by ["scope"],
        "Holds of operators that stand, of all instances: everything, account, route";
    hold_age = "hold_oldest_age_seconds" by ["scope"], "For how long the oldest hold of this scope stands; 0 without one";
    outbox = "outbox_events" by ["account"], "Events without a publisher confirm; of all instances";
}
