//! The properties, in the order in which a bounded run takes them: the rows of the table.

use std::future::Future;
use std::pin::Pin;

use crate::node::Kind;
use crate::{blocks, limits, outcomes, records, writes};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pass,
    /// The node has nothing that this could be tried with, or cannot do it.
    NotApplicable(&'static str),
}

pub const RUNS_BOTH: Outcome = Outcome::NotApplicable(
    "Ganache runs a replaced transaction beside its replacement, and what came before its turn although a nonce is missing",
);

pub type Running = Pin<Box<dyn Future<Output = Outcome>>>;

#[derive(Clone, Copy)]
pub struct Property {
    pub name: &'static str,
    /// Its row of the table, for operators.
    pub what: &'static str,
    pub run: fn(Kind) -> Running,
}

macro_rules! properties {
    ($($module:ident::$name:ident: $what:literal,)*) => {
        pub const PROPERTIES: &[Property] = &[
            $(Property {
                name: stringify!($name),
                what: $what,
                run: |kind| Box::pin($module::$name(kind)),
            },)*
        ];
    };
}

properties! {
    outcomes::doctor: "`doctor` says in one screen what the node is, its fork, its pool and what a write costs",
    outcomes::reverts: "a revert with each kind of reason, simulated and in a block",
    outcomes::poor: "a request that costs more than the account has fails alone",
    outcomes::refused: "a refused transaction is cancelled, and the others go on",
    writes::killed: "a worker killed three times writes each message once",
    blocks::on_demand: "blocks for transactions alone: the worker says what it waits for",
    blocks::lost_pool: "a restart with an empty pool",
    blocks::set_back: "the chain set back before finality",
    writes::foreign: "another program uses the key",
    writes::abi: "calls by ABI",
    records::records: "records, and `verify`",
    records::batches: "batches of records",
    records::recover: "`recover` after a lost journal",
    blocks::finalized: "finality by `finalized`",
    blocks::replaced: "a replacement after a rise of the base fee",
    writes::window: "the window grows without a word in the configuration",
    limits::rate: "a rate limit of 20 calls a second in front of the node",
    limits::small_pool: "a pool with little room",
    limits::price_limit: "a least tip above the market's",
    limits::batch_limit: "fewer calls in a batch than `chain.batch_size`",
    limits::range_limit: "a limit on the range of `eth_getLogs`",
    limits::gas_cap: "a cap on the gas of calls",
    limits::fee_cap: "a cap on a transaction's fee",
    writes::clef: "50 writes signed by Clef",
    writes::thousand: "a thousand writes, each once, in order, final",
}
