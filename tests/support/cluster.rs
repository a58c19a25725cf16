//! Private RabbitMQ nodes on one host as one cluster, which a test can kill, freeze and part.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::epmd::{Directory, Epmd};
use super::free_port;
use super::proxy::{Mode, TcpProxy};
use super::rabbit::{Distribution, Rabbit, RabbitConfig};

/// For the nodes to see each other, after whatever parted them.
pub const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// For a minority to start again by itself once it sees the others.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nodes that hear nothing of each other for about this number of seconds take each other for dead. The default of 60 s is long for
/// a test.
const TICK_TIME: u32 = 8;
/// The setting that RabbitMQ's guide recommends for three nodes: the minority stops, and starts again when it sees the others.
const PARTITIONS: &str = "cluster_partition_handling = pause_minority";

/// One node, or several that are a cluster. Gone, with all processes and files, when dropped.
pub struct RabbitCluster {
    pub nodes: Vec<Rabbit>,
    /// From each node to each other one.
    links: Vec<Link>,
    /// Of each node.
    _port_mappers: Vec<Epmd>,
}

struct Link {
    ends: [usize; 2],
    proxy: TcpProxy,
}

impl RabbitCluster {
    /// Starts this number of nodes. Several of them are one cluster when this returns; one alone is a node as any other.
    pub async fn start(count: usize) -> Self {
        if count == 1 {
            let nodes = vec![Rabbit::start(RabbitConfig::default()).await];
            return Self { nodes, links: Vec::new(), _port_mappers: Vec::new() };
        }
        let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let mut links = Vec::new();
        let mut port_mappers = Vec::new();
        let directory = Directory::default();
        for from in 0..count {
            let mut ways = HashMap::new();
            for (to, port) in ports.iter().enumerate().filter(|(to, _)| *to != from) {
                let proxy = TcpProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, *port))).await;
                ways.insert(*port, proxy.addr().port());
                links.push(Link { ends: [from, to], proxy });
            }
            port_mappers.push(Epmd::start(directory.clone(), ways));
        }
        let starts = ports.iter().zip(&port_mappers).map(|(port, mapper)| {
            Rabbit::start(RabbitConfig {
                extra_conf: vec![PARTITIONS.to_owned()],
                distribution: Some(Distribution { port: *port, epmd_port: mapper.port(), tick_seconds: TICK_TIME }),
                ..RabbitConfig::default()
            })
        });
        let nodes = futures_util::future::join_all(starts).await;
        let cluster = Self { nodes, links, _port_mappers: port_mappers };
        let (first, others) = cluster.nodes.split_first().expect("there are several");
        for node in others {
            for command in [&["stop_app"][..], &["join_cluster", &first.node_name()], &["start_app"]] {
                node.ctl(command).await.unwrap_or_else(|error| panic!("{command:?}: {error}\n{}", node.log_tail()));
            }
        }
        cluster.wait_whole(WHOLE_LIMIT).await.unwrap_or_else(|error| panic!("{error}"));
        cluster
    }

    pub fn first(&self) -> &Rabbit {
        self.nodes.first().expect("there is a node")
    }

    /// Returns the AMQP URIs of a virtual host, as the user guest.
    pub fn uris(&self, vhost: &str) -> Vec<String> {
        self.nodes.iter().map(|node| node.uri(vhost)).collect()
    }

    /// Parts one node from all others, without a word to anybody: what they send each other goes nowhere.
    pub fn isolate(&self, node: usize) {
        for link in self.links.iter().filter(|link| link.ends.contains(&node)) {
            link.proxy.set_mode(Mode::Swallow);
        }
    }

    /// Lets this node and the others reach each other again. Their connections, which have lost bytes, end.
    pub fn heal(&self, node: usize) {
        for link in self.links.iter().filter(|link| link.ends.contains(&node)) {
            link.proxy.set_mode(Mode::Pass);
            link.proxy.cut_all();
        }
    }

    /// Returns the place of the node that leads a quorum queue.
    pub async fn leader(&self, vhost: &str, queue: &str) -> Result<usize, String> {
        let binary = super::rabbit_control::erlang_binary;
        let ask = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({}, queue, {})), {{_, Node}} = amqqueue:get_pid(Q), Node",
            binary(vhost),
            binary(queue)
        );
        let mut problem = String::new();
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            match node.eval(&ask).await {
                Ok(leader) => {
                    let leader = leader.trim_matches('\'');
                    let place = self.nodes.iter().position(|node| node.node_name() == leader);
                    return place.ok_or(format!("{leader} is no node of this cluster"));
                }
                Err(error) => problem = error,
            }
        }
        Err(problem)
    }

    /// Waits until each node serves, and sees all others.
    pub async fn wait_whole(&self, limit: Duration) -> Result<(), String> {
        let started = Instant::now();
        loop {
            match self.problem().await {
                None => return Ok(()),
                Some(problem) if started.elapsed() > limit => {
                    return Err(format!("the cluster is not whole within {limit:?}: {problem}"));
                }
                Some(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Returns what is missing for the cluster to be whole.
    async fn problem(&self) -> Option<String> {
        let ask =
            "{rabbit:is_running(), length(rabbit_mnesia:cluster_nodes(running)), rabbit_node_monitor:partitions()}";
        let whole = format!("{{true,{},[]}}", self.nodes.len());
        for node in &self.nodes {
            let says = if node.is_running() { node.eval(ask).await } else { Err("does not run".to_owned()) };
            if says.as_ref().ok() != Some(&whole) {
                return Some(format!("{} says {says:?}", node.node_name()));
            }
        }
        None
    }

    /// Starts again what does not run, and waits until the cluster is whole. Where a partition stays although the nodes reach
    /// each other, which is what a node leaves that was frozen for long, this restarts the one that lost most others: as
    /// RabbitMQ's guide to partitions advises. Returns whether that was necessary.
    pub async fn repair(&mut self) -> Result<bool, String> {
        for node in self.nodes.iter_mut().filter(|node| !node.is_running()) {
            node.start_again().await;
        }
        if self.wait_whole(PATIENCE).await.is_ok() {
            return Ok(false);
        }
        for _ in 1..self.nodes.len() {
            let mut lost = Vec::with_capacity(self.nodes.len());
            for node in &self.nodes {
                let count = node.eval("length(rabbit_node_monitor:partitions())").await;
                lost.push(count.ok().and_then(|count| count.parse::<usize>().ok()).unwrap_or_default());
            }
            let most = lost.iter().enumerate().max_by_key(|(_, count)| **count);
            let Some((place, 1..)) = most else { break };
            self.nodes[place].restart().await;
            if self.wait_whole(PATIENCE).await.is_ok() {
                break;
            }
        }
        self.wait_whole(WHOLE_LIMIT).await.map(|()| true)
    }
}
