//! Does what the plan says: each part has its own line of faults, and all lines run side by side.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::cluster;
use crate::crew::Crew;
use crate::lagging::{Lag, LaggingNode};
use crate::operator::Operator;
use crate::other_node::OtherNode;
use crate::record::Record;
use crate::restoring::Restorer;
use crate::schedule::{Fault, Plan, Planned};
use crate::second::SecondJournal;
use crate::support::rpc::hex;
use crate::support::{Anvil, Mode, Postgres, Rabbit, RabbitCluster, RpcClient, TcpProxy};
use crate::{BLOCK_GAS, CONTRACT, FINALITY, FULL_BALANCE, MAX_FEE_GWEI, MAX_LAG, SIGNERS, STRANGER};

/// Gas of a block in which about half of the writes have no room. Most of those can still be simulated, so they have a
/// nonce when the node refuses them.
const SMALL_BLOCK: u64 = 33_000;
const GWEI: u64 = 1_000_000_000;
/// Tries of a reorg that a freshly started node has too little history for, once a block.
const REORG_TRIES: u32 = 4;

/// The parts that fail.
pub(crate) struct Parts<'a> {
    pub(crate) broker: &'a mut RabbitCluster,
    pub(crate) anvil: &'a mut Anvil,
    pub(crate) second: &'a LaggingNode,
    pub(crate) way_to_node: &'a TcpProxy,
    pub(crate) way_to_second: &'a TcpProxy,
    /// To each node.
    pub(crate) ways_to_broker: &'a [TcpProxy],
    /// The journal's, if it is one, and the workers' way to it.
    pub(crate) database: Option<(&'a mut Postgres, &'a TcpProxy)>,
    pub(crate) other: &'a OtherNode,
    pub(crate) crew: &'a Crew<'a>,
    pub(crate) restorer: &'a Restorer<'a>,
    pub(crate) second_journal: &'a SecondJournal<'a>,
    pub(crate) operator: &'a Operator<'a>,
    pub(crate) record: &'a Record,
}

impl Parts<'_> {
    /// Returns when the plan is through, with every fault at its end.
    pub(crate) async fn fail(self, plan: &Plan) {
        let Parts { broker, anvil, second, way_to_node, way_to_second, ways_to_broker, crew, operator, record, .. } =
            self;
        let (other, restorer, second_journal) = (self.other, self.restorer, self.second_journal);
        let (database, way_to_database) = self.database.unzip();
        let rpc = anvil.rpc();
        tokio::join!(
            each(&plan.kills, record, async |planned: &Planned| crew.kill(planned.pick).await),
            each(&plan.halts, record, async |planned: &Planned| match planned.fault {
                Fault::Terminate => crew.terminate(planned.pick, planned.length).await,
                Fault::RollingRestart => crew.restart_in_turn(planned.length).await,
                _ => crew.freeze(planned.pick, planned.length).await,
            }),
            each(&plan.account, record, async |planned: &Planned| {
                if let Err(error) = send_foreign(rpc, planned.pick).await {
                    record.say(&format!("no foreign transaction: {error}"));
                }
            }),
            each(&plan.contract, record, async |planned: &Planned| close_contract(rpc, planned.length).await),
            each(&plan.lag, record, async |planned: &Planned| lag(second, planned).await),
            each(&plan.way_to_node, record, async |planned: &Planned| fail_way(way_to_node, planned).await),
            each(&plan.way_to_second, record, async |planned: &Planned| fail_way(way_to_second, planned).await),
            each(&plan.way_to_broker, record, async |planned: &Planned| fail_ways(ways_to_broker, planned).await),
            each(&plan.operator, record, async |planned: &Planned| operator.act(planned).await),
            each(&plan.other, record, async |planned: &Planned| {
                other.set(Some(planned));
                sleep(planned.length).await;
                other.set(None);
            }),
            each(&plan.restored, record, async |planned: &Planned| restorer.act(planned).await),
            each(&plan.second_journal, record, async |planned: &Planned| second_journal.act(planned).await),
            fail_node(anvil, &plan.node, record),
            fail_broker(broker, plan, record, restorer.until),
            fail_database(database, &plan.database, record),
            async {
                if let Some(way) = way_to_database {
                    each(&plan.way_to_database, record, async |planned: &Planned| fail_way(way, planned).await).await;
                }
            },
        );
    }
}

/// One line of the plan. A fault that comes late, because the one before took long, is not left out.
pub(crate) async fn each(planned: &[Planned], record: &Record, mut fail: impl AsyncFnMut(&Planned)) {
    for planned in planned {
        sleep(planned.at.saturating_sub(record.elapsed())).await;
        if planned.fault == Fault::Kill {
            fail(planned).await;
        } else {
            record.begin(planned.fault);
            fail(planned).await;
            record.end(planned.fault);
        }
    }
}

async fn close_contract(rpc: RpcClient, length: Duration) {
    // A node that is away keeps its contract as it is.
    let _ = rpc.set_storage(CONTRACT, 0, 0).await;
    sleep(length).await;
    let _ = rpc.set_storage(CONTRACT, 0, 1).await;
}

/// At an account's next nonce or a little above it, for more than the worker may offer.
async fn send_foreign(rpc: RpcClient, pick: u64) -> Result<(), String> {
    let account = chosen(pick);
    let nonce = rpc.nonce(account, "latest").await? + pick % 3;
    let transaction = json!({
        "from": account,
        "to": STRANGER,
        "value": "0x1",
        "gas": hex(21_000),
        "nonce": hex(nonce),
        "maxFeePerGas": hex(2 * MAX_FEE_GWEI * GWEI),
        // As in a market: what others pay here is what the worker offers next.
        "maxPriorityFeePerGas": hex(MAX_FEE_GWEI / 5 * GWEI),
    });
    rpc.call("eth_sendTransaction", json!([transaction])).await.map(drop)
}

async fn lag(node: &LaggingNode, planned: &Planned) {
    let blocks = match planned.fault {
        Fault::NodeLags => 1 + planned.pick % MAX_LAG,
        _ => MAX_LAG + 1 + planned.pick % 10,
    };
    node.set(Some(Lag { blocks, swallows: (planned.pick >> 32).is_multiple_of(2) }));
    sleep(planned.length).await;
    node.set(None);
}

fn mode_of(planned: &Planned) -> Mode {
    let http = |status, body: &str, retry_after| Mode::HttpAnswer { status, body: body.to_owned(), retry_after };
    match planned.fault {
        Fault::NodeRefuses | Fault::BrokerRefuses | Fault::DatabaseRefuses => Mode::Refuse,
        Fault::NodeSwallows | Fault::BrokerSwallows | Fault::DatabaseSwallows => Mode::Swallow,
        Fault::NodeDropsAnswers | Fault::BrokerDropsAnswers | Fault::DatabaseDropsAnswers => Mode::DropAnswers,
        Fault::NodeResetsAfterRequest | Fault::BrokerResetsAfterRequest | Fault::DatabaseResetsAfterRequest => {
            Mode::ResetAfterRequest
        }
        Fault::NodeDelays => Mode::Delay(Duration::from_millis(50 + planned.pick % 2_500)),
        Fault::DatabaseDelays => Mode::Delay(Duration::from_millis(5 + planned.pick % 100)),
        Fault::BrokerDelays => Mode::Delay(Duration::from_millis(20 + planned.pick % 300)),
        Fault::NodeGarbage => match planned.pick % 4 {
            0 => http(200, "<html>welcome</html>", None),
            1 => http(200, r#"{"jsonrpc":"2.0","id":0,"result":null}"#, None),
            2 => http(200, r#"{"jsonrpc":"2.0","id":4711,"result":"0x1"#, None),
            _ => http(200, r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"Internal error"}}"#, None),
        },
        Fault::NodeRateLimits => http(429, "too many requests", Some(1 + planned.pick % 2)),
        Fault::NodeBadGateway => http(502, "<html>bad gateway</html>", None),
        _ => Mode::Pass,
    }
}

async fn fail_way(way: &TcpProxy, planned: &Planned) {
    way.set_mode(mode_of(planned));
    sleep(planned.length).await;
    way.set_mode(Mode::Pass);
    // A connection that has lost bytes must not go on with the next ones: networks do not do that.
    if !matches!(planned.fault, Fault::NodeDelays | Fault::BrokerDelays | Fault::DatabaseDelays) {
        way.cut_all();
    }
}

/// Fails the ways to all nodes of the broker, or to one of them.
async fn fail_ways(ways: &[TcpProxy], planned: &Planned) {
    let place = (planned.pick >> 16) as usize % (ways.len() + 1);
    let failing = ways.get(place).map_or(ways, std::slice::from_ref);
    futures_util::future::join_all(failing.iter().map(|way| fail_way(way, planned))).await;
}

async fn fail_node(anvil: &mut Anvil, planned: &[Planned], record: &Record) {
    each(planned, record, async |planned: &Planned| match planned.fault {
        Fault::NodeRestarts => restart_node(anvil, planned.length).await,
        Fault::NodeFreezes => {
            anvil.pause();
            sleep(planned.length).await;
            anvil.resume();
        }
        Fault::Reorg => {
            if let Err(error) = reorg(anvil.rpc(), 1 + planned.pick % FINALITY).await {
                record.say(&format!("no reorg: {error}"));
            }
        }
        _ => {
            if let Err(error) = trouble(anvil.rpc(), planned).await {
                record.say(&format!("{:?}: {error}", planned.fault));
            }
        }
    })
    .await;
}

/// Mines nothing more before it ends, so that it keeps what it reported.
async fn restart_node(anvil: &mut Anvil, length: Duration) {
    let _ = anvil.set_interval_mining(0).await;
    anvil.stop().await;
    sleep(length).await;
    anvil.start_again().await;
}

async fn reorg(rpc: RpcClient, depth: u64) -> Result<(), String> {
    let mut done = rpc.reorg(depth).await;
    for _ in 1..REORG_TRIES {
        if done.is_ok() {
            break;
        }
        sleep(Duration::from_secs(1)).await;
        done = rpc.reorg(depth).await;
    }
    // Anvil takes back with the blocks what was set meanwhile.
    let _ = heal_accounts(rpc).await;
    done.map(drop)
}

async fn trouble(rpc: RpcClient, planned: &Planned) -> Result<(), String> {
    match planned.fault {
        Fault::PoolDropsOne => {
            let pool = rpc.call("txpool_content", json!([])).await?;
            let accounts = pool.pointer("/pending").and_then(|pending| pending.as_object());
            let transactions =
                accounts.into_iter().flat_map(|accounts| accounts.values()).filter_map(|of| of.as_object());
            let hashes: Vec<_> = transactions
                .flat_map(|of_account| of_account.values())
                .filter_map(|transaction| transaction.pointer("/hash")?.as_str())
                .collect();
            let place = planned.pick.checked_rem(hashes.len() as u64).unwrap_or_default() as usize;
            let hash = hashes.get(place).ok_or("the pool is empty")?;
            rpc.drop_transaction(hash).await?;
        }
        Fault::PoolDropsAll => _ = rpc.drop_all().await?,
        Fault::FeeRise | Fault::FeeSpike => {
            let fee_gwei = match planned.fault {
                Fault::FeeRise => MAX_FEE_GWEI / 10 + planned.pick % (MAX_FEE_GWEI / 2),
                _ => MAX_FEE_GWEI + 20 + planned.pick % 150,
            };
            rpc.set_next_base_fee(fee_gwei * GWEI).await?;
            sleep(planned.length).await;
            rpc.set_next_base_fee(GWEI).await?;
        }
        Fault::NodeRefusesLong => {
            rpc.call("evm_setBlockGasLimit", json!([hex(SMALL_BLOCK)])).await?;
            sleep(planned.length).await;
            rpc.call("evm_setBlockGasLimit", json!([hex(BLOCK_GAS)])).await?;
        }
        Fault::Drained => {
            // Nothing at all, or too little for many.
            let account = chosen(planned.pick);
            rpc.set_balance(account, u128::from(planned.pick % 2) * u128::from(GWEI) * 200_000).await?;
            sleep(planned.length).await;
            rpc.set_balance(account, FULL_BALANCE).await?;
        }
        _ => {}
    }
    Ok(())
}

async fn heal_accounts(rpc: RpcClient) -> Result<(), String> {
    for (account, _) in SIGNERS {
        rpc.set_balance(account, FULL_BALANCE).await?;
    }
    Ok(())
}

/// One of the accounts, by a number from the plan.
fn chosen(pick: u64) -> &'static str {
    let place = (pick >> 8) % SIGNERS.len() as u64;
    SIGNERS[place as usize].0
}

async fn fail_broker(broker: &mut RabbitCluster, plan: &Plan, record: &Record, until: Duration) {
    match broker.nodes.as_mut_slice() {
        [only] => fail_only_node(only, &plan.broker, record).await,
        _ => cluster::fail(broker, &plan.cluster, record, until).await,
    }
}

async fn fail_only_node(rabbit: &mut Rabbit, planned: &[Planned], record: &Record) {
    each(planned, record, async |planned: &Planned| {
        let done = match planned.fault {
            Fault::BrokerStops => {
                let stopped = rabbit.stop_app().await;
                sleep(planned.length).await;
                stopped.and(rabbit.start_app().await)
            }
            Fault::BrokerKilled => {
                rabbit.kill().await;
                sleep(planned.length).await;
                rabbit.start_again().await;
                Ok(())
            }
            Fault::BrokerMemoryAlarm => {
                let raised = rabbit.raise_memory_alarm().await;
                sleep(planned.length).await;
                raised.and(rabbit.clear_memory_alarm().await)
            }
            Fault::BrokerClosesConnections => rabbit.close_all_connections("an operator closes it").await,
            _ => Ok(()),
        };
        if let Err(error) = done {
            record.say(&format!("{:?}: {error}", planned.fault));
        }
    })
    .await;
}

async fn fail_database(database: Option<&mut Postgres>, planned: &[Planned], record: &Record) {
    let Some(database) = database else { return };
    each(planned, record, async |planned: &Planned| match planned.fault {
        Fault::DatabaseStops => {
            database.stop().await;
            sleep(planned.length).await;
            database.start_again().await;
        }
        Fault::DatabaseKilled => {
            database.kill().await;
            sleep(planned.length).await;
            database.start_again().await;
        }
        _ => database.cut_all().await,
    })
    .await;
}

/// After the last fault: nothing is in the way any more.
pub(crate) async fn heal(rpc: RpcClient, ways: impl Iterator<Item = &TcpProxy>) -> Result<(), String> {
    for way in ways {
        way.set_mode(Mode::Pass);
    }
    heal_accounts(rpc).await?;
    rpc.set_next_base_fee(GWEI).await?;
    rpc.call("evm_setBlockGasLimit", json!([hex(BLOCK_GAS)])).await?;
    rpc.set_storage(CONTRACT, 0, 1).await.map(drop)
}
