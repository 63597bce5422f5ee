//! Clusters of three nodes.

use super::node::{Node, Ports, lance, run};
use super::wire::{Wire, fetch_all};
use super::{PATIENCE, eventually};
use lnc_protocol::message::{ClusterInfoResponse, GroupStatus, PartitionDescription};
use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tempfile::TempDir;

/// Held while a cluster runs.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Three nodes. All of it ends with the value: processes, files, the right to run.
pub(crate) struct Cluster {
    /// The nodes, in the order of their ids; node 1 is the first.
    pub(crate) nodes: Vec<Node>,
    directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Three nodes that are ready.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Three nodes that are ready, with settings of the form "section.key=value".
    pub(crate) fn start_with(settings: &[&str]) -> Self {
        let mut cluster = Self::stopped(settings);
        for _ in 0..5 {
            cluster.nodes.iter_mut().for_each(Node::start);
            if cluster.become_ready() {
                return cluster;
            }
            // Somebody took a port since it was found free.
            let Self { _turn: turn, directory, nodes } = cluster;
            drop((nodes, directory));
            cluster = Self::stopped_in_turn(turn, settings);
        }
        panic!("no cluster starts");
    }

    /// Three nodes that are not started yet.
    pub(crate) fn stopped(settings: &[&str]) -> Self {
        Self::stopped_in_turn(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner), settings)
    }

    fn stopped_in_turn(turn: MutexGuard<'static, ()>, settings: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ports: Vec<Ports> = (0..3).map(|_| Ports::free()).collect();
        let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
        let nodes = (1..=3).map(|id| Node::new(directory.path(), id, &ports, &settings)).collect();
        Self { nodes, directory, _turn: turn }
    }

    fn become_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.nodes.iter().all(Node::is_ready) {
                return true;
            }
            if let Some(node) = self.nodes.iter_mut().find_map(|node| node.has_ended().then_some(node)) {
                let log = node.log();
                assert!(log.contains("cannot listen"), "node {} does not start:\n{log}", node.id);
                return false;
            }
            assert!(Instant::now() < deadline, "the cluster does not become ready");
            std::thread::sleep(super::POLL);
        }
    }

    /// One more node, that no configuration of the others knows; not started yet. Gives its id.
    pub(crate) fn another(&mut self) -> u64 {
        let ports: Vec<Ports> = self.nodes.iter().map(|node| node.ports.clone()).chain([Ports::free()]).collect();
        let (id, settings) = (ports.len() as u64, self.nodes[0].settings().to_vec());
        self.nodes.push(Node::new(self.directory.path(), id, &ports, &settings));
        id
    }

    /// A process that is configured as a node of this cluster, on other ports, with a copy of what is in its data
    /// directory now. Not started yet.
    pub(crate) fn copy_of(&self, id: u64) -> Node {
        let mut ports: Vec<Ports> = self.nodes.iter().map(|node| node.ports.clone()).collect();
        ports[id as usize - 1] = Ports::free();
        let original = &self.nodes[id as usize - 1];
        let copy = Node::new(&self.directory.path().join("copy"), id, &ports, original.settings());
        let copied = Command::new("cp").arg("-r").args([&original.data, &copy.data]).status().unwrap();
        assert!(copied.success());
        copy
    }

    /// A process on the ports of this node, with an empty disk, whose configuration has the others where they are not. Not
    /// started yet.
    pub(crate) fn moved(&self, id: u64) -> Node {
        let is_own = |at: usize| at == id as usize - 1;
        let place = |(at, node): (usize, &Node)| if is_own(at) { node.ports.clone() } else { Ports::free() };
        let ports: Vec<Ports> = self.nodes.iter().enumerate().map(place).collect();
        Node::new(&self.directory.path().join("moved"), id, &ports, self.nodes[0].settings())
    }

    /// Three fresh nodes for a cluster of their own, of which this one has the ports that it has here. Not started yet.
    pub(crate) fn another_cluster_with(&self, id: u64) -> Vec<Node> {
        let is_own = |at: usize| at == id as usize - 1;
        let place = |(at, node): (usize, &Node)| if is_own(at) { node.ports.clone() } else { Ports::free() };
        let ports: Vec<Ports> = self.nodes.iter().enumerate().map(place).collect();
        let home = self.directory.path().join("another");
        (1..=3).map(|id| Node::new(&home, id, &ports, self.nodes[0].settings())).collect()
    }

    /// A place for files of the test.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// The ids of the nodes other than this one.
    pub(crate) fn others(&self, id: u64) -> Vec<u64> {
        (1..=3).filter(|other| *other != id).collect()
    }

    /// Waits until every node is ready.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        self.nodes.iter().for_each(Node::wait_ready);
    }

    /// Kills all nodes as nearly at once as can be, and waits for their ends.
    pub(crate) fn kill_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill_now);
        self.nodes.iter_mut().for_each(Node::kill);
    }

    pub(crate) fn start_all(&mut self) {
        self.nodes.iter_mut().for_each(Node::start);
    }

    /// The addresses of all nodes, as `--endpoint` takes them.
    pub(crate) fn endpoints(&self) -> String {
        self.nodes.iter().map(Node::client).collect::<Vec<_>>().join(",")
    }

    /// A command of `lance` that knows all nodes.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_at(&self.endpoints(), arguments)
    }

    /// A command of `lance` that knows these addresses only.
    pub(crate) fn command_at(&self, endpoints: &str, arguments: &[&str]) -> Command {
        let mut command = lance();
        command.args(arguments).env("LANCE_ENDPOINT", endpoints).args(["--timeout", "20s"]);
        command
    }

    /// Runs a command that has to succeed, and gives its standard output.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        succeeded(arguments, run(self.command(arguments), input))
    }

    /// [`Cluster::ok`] for a command that knows one node only.
    #[track_caller]
    pub(crate) fn ok_at(&self, id: u64, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let endpoint = self.nodes[id as usize - 1].client();
        succeeded(arguments, run(self.command_at(&endpoint, arguments), input))
    }

    /// A connection to a node, past its greeting.
    #[track_caller]
    pub(crate) fn wire(&self, id: u64) -> Wire {
        Wire::connect(&self.nodes[id as usize - 1].client()).expect("the node accepts connections")
    }

    /// What a node says about the cluster; `None` if it does not answer.
    pub(crate) fn info(&self, id: u64) -> Option<ClusterInfoResponse> {
        Wire::connect(&self.nodes[id as usize - 1].client()).ok()?.cluster_info().ok()
    }

    /// What a node says about a group.
    pub(crate) fn group(&self, id: u64, group: u32) -> Option<GroupStatus> {
        self.info(id)?.groups.into_iter().find(|status| status.group == group)
    }

    /// Waits for the leader of a group: one of these nodes, by its own word, with no other claim in its term or later.
    #[track_caller]
    pub(crate) fn leader_among(&self, group: u32, ids: &[u64]) -> u64 {
        eventually(&format!("group {group} has a leader among nodes {ids:?}"), || {
            let views: Vec<(u64, GroupStatus)> =
                ids.iter().filter_map(|id| Some((*id, self.group(*id, group)?))).collect();
            let newest = views.iter().map(|(_, view)| view.term).max()?;
            let leads = |(id, view): &(u64, GroupStatus)| (view.role == "leader" && view.term == newest).then_some(*id);
            views.iter().find_map(leads)
        })
    }

    /// Waits for the leader of a group.
    #[track_caller]
    pub(crate) fn leader(&self, group: u32) -> u64 {
        self.leader_among(group, &[1, 2, 3])
    }

    /// Creates a topic and gives the group of each partition.
    #[track_caller]
    pub(crate) fn create_topic(&self, name: &str, partitions: u32, arguments: &[&str]) -> Vec<u32> {
        let partitions = partitions.to_string();
        let all = [&["topic", "create", name, "--partitions", &partitions], arguments].concat();
        self.ok(&all, b"");
        self.partitions(name).iter().map(|partition| partition.group).collect()
    }

    /// The partitions of a topic, each as the node describes it that knows most of its records.
    #[track_caller]
    pub(crate) fn partitions(&self, topic: &str) -> Vec<PartitionDescription> {
        eventually(&format!("topic {topic} is described"), || {
            let describe = |node: &Node| Some(Wire::connect(&node.client()).ok()?.describe(topic).ok()?.partitions);
            self.nodes.iter().filter_map(describe).reduce(|one, other| {
                let newer = |(one, other): (PartitionDescription, PartitionDescription)| {
                    if other.high_watermark > one.high_watermark { other } else { one }
                };
                one.into_iter().zip(other).map(newer).collect()
            })
        })
    }

    /// Waits until a replica serves a partition up to `end`, and gives all its bytes.
    #[track_caller]
    pub(crate) fn stored(&self, id: u64, topic: &str, partition: u32, end: u64) -> Vec<u8> {
        eventually(&format!("node {id} serves {topic}/{partition} up to {end}"), || {
            let mut wire = Wire::connect(&self.nodes[id as usize - 1].client()).ok()?;
            let (bytes, high_watermark) = fetch_all(&mut wire, topic, partition).ok()?;
            assert!(high_watermark <= end, "node {id} has {high_watermark} records of {topic}/{partition}, not {end}");
            (high_watermark == end).then_some(bytes)
        })
    }

    /// Waits until all replicas of a partition end at `end`, and compares their bytes.
    #[track_caller]
    pub(crate) fn assert_replicas_equal(&self, topic: &str, partition: u32, end: u64) {
        let first = self.stored(1, topic, partition, end);
        for id in 2..=3 {
            let other = self.stored(id, topic, partition, end);
            super::assert_same(&format!("{topic}/{partition} on node {id} and on node 1"), &other, &first);
        }
    }

    /// Checks that no two nodes lead a group in the same term, and that every node knows the same leader.
    #[track_caller]
    pub(crate) fn assert_one_leader_per_group(&self) {
        let mut claims: BTreeMap<(u32, u64), u64> = BTreeMap::new();
        eventually("all nodes name the same leader of every group", || {
            let views: Vec<ClusterInfoResponse> = (1..=3).filter_map(|id| self.info(id)).collect();
            let mut leaders: BTreeMap<u32, Vec<(u64, Option<u64>)>> = BTreeMap::new();
            for view in &views {
                for group in &view.groups {
                    leaders.entry(group.group).or_default().push((group.term, group.leader));
                    if group.role == "leader" {
                        let known = *claims.entry((group.group, group.term)).or_insert(view.node_id);
                        assert_eq!(known, view.node_id, "two leaders of group {} in term {}", group.group, group.term);
                    }
                }
            }
            let agreed = |views: &Vec<(u64, Option<u64>)>| views[0].1.is_some() && views.iter().all(|v| *v == views[0]);
            (views.len() == 3 && leaders.len() == 4 && leaders.values().all(agreed)).then_some(())
        });
    }
}

#[track_caller]
pub(crate) fn succeeded(arguments: &[&str], output: Output) -> Vec<u8> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} gave {}: {errors}", output.status);
    output.stdout
}
