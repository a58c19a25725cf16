//! A private RabbitMQ, Anvil and PostgreSQL for tests and tools, nodes and proxies that misbehave on request.
//!
//! Integration tests declare `mod support;`, the library's tests and `tools/` include this file through `#[path]`. Nothing
//! started here outlives the process that started it, however that process ends (see `guard`).
#![allow(dead_code, unused_imports, missing_docs, unreachable_pub, reason = "each test uses a part of it")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::wildcard_enum_match_arm,
    reason = "a test that lacks its services can only stop"
)]

pub mod amqp;
pub mod amqp10;
pub mod anvil;
pub mod clef;
pub mod cluster;
pub mod contracts;
pub mod documents;
pub mod epmd;
pub mod geth;
pub mod guard;
pub mod http;
pub mod nodes;
pub mod npm_nodes;
pub mod ports;
pub mod postgres;
pub mod proxy;
pub mod rabbit;
pub mod rabbit_control;
pub mod raw_amqp;
pub mod rpc;
pub mod tls;
pub mod tour;
pub mod worker;

pub use amqp::{Amqp, Taken, Watch, headers, next_event, with_id};
pub use anvil::{ACCOUNTS, Anvil, AnvilConfig};
pub use clef::Clef;
pub use cluster::{RabbitCluster, WHOLE_LIMIT};
pub use geth::{Geth, GethConfig};
pub use guard::Guard;
pub use nodes::{DeafNode, Reply, ScriptedNode, highest_fee_of, nonce_of};
pub use npm_nodes::{NpmConfig, NpmKind, NpmNode};
pub use ports::free_port;
pub use postgres::{NOBODY, Pooler, Postgres, PostgresConfig, SchemaDumps};
pub use proxy::{Mode, TcpProxy};
pub use rabbit::{Rabbit, RabbitConfig};
pub use rabbit_control::QueueCount;
pub use rpc::RpcClient;
pub use tls::TlsFront;
pub use worker::{Worker, WorkerConfig, WorkerHome, build_folder, chainwriter};

use std::time::Duration;

/// Returns whether RabbitMQ and Anvil are here. If one is missing, a test says so and returns, unless
/// `CHAINWRITER_REQUIRE_SERVICES=1` (as `make test` sets it) makes that a failure.
pub fn services_are_here() -> bool {
    are_here(&[
        ("RabbitMQ", rabbit::server_program().is_some(), "scripts/setup.sh"),
        ("Anvil", anvil::program().is_some(), "scripts/setup.sh"),
    ])
}

/// Returns the same for PostgreSQL and PgBouncer.
pub fn postgres_is_here() -> bool {
    are_here(&[
        ("PostgreSQL", postgres::program("postgres").is_some(), "scripts/setup.sh postgres"),
        ("PgBouncer", postgres::pooler_program().is_some(), "scripts/setup.sh postgres"),
    ])
}

fn are_here(services: &[(&str, bool, &str)]) -> bool {
    let Some((missing, _, setup)) = services.iter().find(|(_, is_here, _)| !is_here) else { return true };
    let required = std::env::var_os("CHAINWRITER_REQUIRE_SERVICES").is_some_and(|value| value == "1");
    assert!(!required, "{missing} is missing; run {setup}");
    eprintln!("skipped: {missing} is missing; run {setup}");
    false
}

/// Waits for `condition` to become true, checked every 20 ms; panics with `what` after `limit`.
pub async fn wait_until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition().await {
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
