//! Faults of a cluster of brokers: nodes that are killed, frozen, parted and restarted, one at a time.

use std::time::Duration;

use anyhow::anyhow;
use tokio::time::sleep;

use crate::faults::each;
use crate::record::Record;
use crate::schedule::{Fault, Planned};
use crate::support::{RabbitCluster, WHOLE_LIMIT};
use crate::{QUEUE, VHOST};

/// Lets the nodes fail one after the other. The next fault comes when the cluster is whole again, so that there is always a
/// majority: without one nothing is confirmed, and nothing is shown. What would come after the end, because those before took
/// long, is left out.
pub(crate) async fn fail(cluster: &mut RabbitCluster, planned: &[Planned], record: &Record, until: Duration) {
    each(planned, record, async |planned: &Planned| {
        if record.elapsed() > until {
            return;
        }
        if let Err(error) = fail_once(cluster, planned, record).await {
            record.say(&format!("{:?}: {error:#}", planned.fault));
        }
        match cluster.repair().await {
            Ok(true) => record.count("nodes restarted because a partition stayed"),
            Ok(false) => {}
            Err(error) => record.find(format!("after {:?}: {error}", planned.fault)),
        }
    })
    .await;
}

async fn fail_once(cluster: &mut RabbitCluster, planned: &Planned, record: &Record) -> anyhow::Result<()> {
    let leader = match planned.fault {
        Fault::NodeParted => planned.pick as usize % cluster.nodes.len(),
        _ => cluster.leader(VHOST, QUEUE).await.map_err(|error| anyhow!(error))?,
    };
    record.say(&format!("{:?}: node {leader}", planned.fault));
    match planned.fault {
        Fault::LeaderKilled => {
            cluster.nodes[leader].kill().await;
            sleep(planned.length).await;
            cluster.nodes[leader].start_again().await;
        }
        Fault::LeaderFreezes => {
            cluster.nodes[leader].pause();
            sleep(planned.length).await;
            cluster.nodes[leader].resume();
        }
        Fault::ClusterRestarts => {
            for place in 0..cluster.nodes.len() {
                cluster.nodes[place].restart().await;
                cluster.wait_whole(WHOLE_LIMIT).await.map_err(|error| anyhow!(error))?;
            }
        }
        _ => {
            cluster.isolate(leader);
            sleep(planned.length).await;
            cluster.heal(leader);
        }
    }
    Ok(())
}
