//! The cluster of a run: nodes that it starts itself, with the network and the disks that the faults need.

use super::error::{LiveError, Result};
use super::fault::{Fault, Need};
use super::network::{Network, PartitionBy, lacking_for_namespaces};
use super::node::{Addresses, Common, Node, SMALL};
use super::system::{is_root, missing};
use super::volume::{Throttle, Volume};
use std::path::{Path, PathBuf};

/// How many clusters are tried to be started, where others take ports at the same time.
const ATTEMPTS: u32 = 5;

/// What the nodes of a run are to be.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) nodes: u64,
    pub(super) program: Vec<String>,
    pub(super) home: PathBuf,
    pub(super) settings: Vec<String>,
    /// How to cut nodes apart, if they are to be.
    pub(super) partition_by: Option<PartitionBy>,
    /// File systems of their own, and whether these are to lose their power.
    pub(super) volumes: Option<bool>,
}

/// What the faults of a run need of a cluster on this machine: a way to cut it apart and file systems.
///
/// # Errors
/// With what this machine lacks.
pub(super) fn needs(faults: &[Fault], by: PartitionBy) -> Result<(Option<PartitionBy>, Option<bool>)> {
    let named = |need: Need| faults.iter().find(|fault| fault.need() == need);
    let unavailable = |fault: &Fault, why: String| Err(LiveError::Unavailable(format!("{fault} needs {why}")));
    let partition_by = match (named(Need::Network).or(named(Need::Proxy)), named(Need::Proxy), by) {
        (None, ..) => None,
        (Some(_), Some(fault), PartitionBy::Netns) => {
            return unavailable(fault, "--partition-by proxy: packet filters cannot do it".to_owned());
        }
        (Some(_), Some(_), _) | (_, _, PartitionBy::Proxy) => Some(PartitionBy::Proxy),
        (Some(fault), None, by) => {
            let lacking = lacking_for_namespaces();
            match (lacking.is_empty(), by) {
                (true, _) => Some(PartitionBy::Netns),
                (false, PartitionBy::Netns) => {
                    return unavailable(fault, format!("with --partition-by netns: {}", lacking.join(", ")));
                }
                (false, _) => Some(PartitionBy::Proxy),
            }
        }
    };
    let power = named(Need::Power);
    let volumes = power.or(named(Need::Volumes)).or(named(Need::Throttle));
    if let Some(fault) = volumes {
        let mut lacking = missing(&["unshare", "mount", "umount", "mkfs.ext4"]);
        lacking.extend(power.into_iter().flat_map(|_| missing(&["xfs_io"])));
        if !is_root() {
            lacking.push("root".to_owned());
        }
        if !Path::new("/dev/loop-control").exists() {
            lacking.push("loop devices".to_owned());
        }
        if !lacking.is_empty() {
            return unavailable(fault, lacking.join(", "));
        }
    }
    if named(Need::Throttle).is_some() {
        Throttle::check()?;
    }
    Ok((partition_by, volumes.map(|_| power.is_some())))
}

/// See the module documentation.
pub(super) struct Cluster {
    /// In the order of their ids; node 1 is the first.
    pub(super) nodes: Vec<Node>,
    pub(super) network: Network,
    /// By node, if they have file systems of their own.
    pub(super) volumes: Vec<Volume>,
}

impl Cluster {
    /// A cluster that is ready.
    pub(super) async fn start(wanted: &Wanted) -> Result<Self> {
        for attempt in 1.. {
            let home = wanted.home.join(if attempt == 1 { "cluster".to_owned() } else { format!("cluster-{attempt}") });
            let mut cluster = Self::new(wanted, &home).await?;
            match cluster.begin().await {
                Ok(()) => return Ok(cluster),
                Err(error) => {
                    // Somebody may have taken a port since it was found free.
                    let taken = cluster.nodes.iter().any(|node| node.last_words().contains("cannot listen"));
                    cluster.end().await;
                    if !taken || attempt >= ATTEMPTS {
                        return Err(error);
                    }
                }
            }
        }
        Err(LiveError::Unavailable("no cluster starts".to_owned()))
    }

    async fn new(wanted: &Wanted, home: &Path) -> Result<Self> {
        let network = Network::new(wanted.partition_by, wanted.nodes).await?;
        let told: Vec<Addresses> = network.told();
        let small = SMALL.iter().filter(|_| wanted.volumes.is_some()).map(|setting| (*setting).to_owned());
        let settings: Vec<String> = small.chain(wanted.settings.iter().cloned()).collect();
        let common = Common { program: &wanted.program, home, told: &told, settings: &settings };
        let mut cluster = Self { nodes: Vec::new(), network, volumes: Vec::new() };
        for (id, listen) in (1..).zip(cluster.network.listen()) {
            let node = Node::new(&common, id, listen, &cluster.network.launcher(id))?;
            if let Some(power) = wanted.volumes {
                let volume = Volume::new(home.join(format!("disk-{id}")), power).await?;
                volume.appear_at(&node.data)?;
                cluster.volumes.push(volume);
            }
            cluster.nodes.push(node);
        }
        Ok(cluster)
    }

    async fn begin(&mut self) -> Result<()> {
        self.nodes.iter_mut().try_for_each(Node::start)?;
        self.wait_ready().await
    }

    pub(super) fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// Where clients reach the nodes.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.network.told().iter().map(|addresses| addresses.client.to_string()).collect()
    }

    /// Wait until every node can serve.
    pub(super) async fn wait_ready(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.wait_ready().await?;
        }
        Ok(())
    }

    /// End all processes, and take down what they stood on.
    pub(super) async fn end(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill_now);
        for node in &mut self.nodes {
            node.kill().await;
        }
        for volume in self.volumes.drain(..) {
            volume.release().await;
        }
    }
}
