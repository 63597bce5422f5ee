//! The document that `/status.json` gives: its fields, and how a view is made from a snapshot.
//!
//! `docs/OPERATIONS.md` describes it. It is bounded: topics come in pages, of each topic some partitions, and what is left
//! out is counted.

use super::rates::SnapshotRates;
use lnc_broker::status::{Snapshot, TopicExtent};
use lnc_protocol::message::{GroupStatus, NodeStatus};
use lnc_raft::NodeId;
use lnc_replication::notice::NodeFacts;
use serde::{Deserialize, Serialize};

/// Changes whenever a field changes its meaning or goes; new fields may come without.
pub const FORMAT: u32 = 1;

/// Most topics in one document.
pub const MAX_TOPICS: usize = 100;

/// Topics in a document that asks for no number.
const TOPICS: usize = 50;

/// Partitions of one topic that are shown, at most.
pub const MAX_PARTITIONS_OF_TOPIC: usize = 16;

/// What a document shows of the topics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    /// Most topics to show, up to [`MAX_TOPICS`].
    pub topics: Option<usize>,
    /// Topics to leave out, in the order asked for.
    pub skip: usize,
    /// The order.
    pub sort: Sort,
    /// Only topics that have this in their names, in whatever case; all if it is empty.
    pub find: String,
}

/// An order of topics. What is equal is in the order of names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// By name.
    #[default]
    Name,
    /// The one that grows fastest first.
    Rate,
    /// The largest first.
    Size,
    /// The one with most records first.
    Records,
}

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: u32,
    /// The node that answers.
    pub node: u64,
    /// Its version of LANCE.
    pub version: String,
    /// Its time, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Why it cannot serve clients, as `/readyz` says it; `None` if it can.
    pub not_ready: Option<String>,
    /// Why the view is older than it should be.
    pub problem: Option<String>,
    /// What this node has done, second by second.
    pub rates: Rates,
    /// The cluster; `None` while the node recovers or waits for others to form one.
    pub view: Option<View>,
}

/// Values per second of this node, the newest last.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Rates {
    /// Time between two values, in milliseconds.
    pub step_ms: u64,
    /// Records accepted from producers, as leader.
    pub records_in: Vec<f64>,
    /// Records sent to consumers.
    pub records_out: Vec<f64>,
    /// Bytes accepted from producers, as leader.
    pub bytes_in: Vec<f64>,
    /// Bytes sent to consumers.
    pub bytes_out: Vec<f64>,
    /// Mean time from a produce request's arrival to its reply, in milliseconds.
    pub produce_ms: Vec<Option<f64>>,
    /// Mean time of a sync of the journal, in milliseconds.
    pub sync_ms: Vec<Option<f64>>,
}

/// The cluster as the node sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct View {
    /// When the shard gave it, in milliseconds since the Unix epoch.
    pub taken_ms: u64,
    /// The cluster's id.
    pub cluster_id: String,
    /// What is wrong, in a sentence each; none if all is well.
    pub problems: Vec<String>,
    /// The nodes by number.
    pub nodes: Vec<NodeView>,
    /// What those of them that are heard do for clients together; `None` until one has been heard twice.
    #[serde(default)]
    pub traffic: Option<TrafficView>,
    /// The Raft groups by number.
    pub groups: Vec<GroupView>,
    /// States of groups on their way to this node.
    pub transfers: Vec<TransferView>,
    /// Who came to lead, the newest first.
    pub elections: Vec<ElectionView>,
    /// The topics.
    pub topics: TopicsView,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct NodeView {
    /// Its number.
    pub id: u64,
    /// The member that it is: the number, and after a dot how often its disk was lost.
    pub member: String,
    /// `ready`, why it is not, or `connected` and `not connected` of other nodes.
    pub state: String,
    /// `member`, `joining`, `leaving` or `expected`.
    pub membership: String,
    /// Whether it can be reached.
    pub connected: bool,
    /// The groups that it leads.
    pub leads: Vec<u32>,
    /// Where clients reach it.
    pub client_address: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    /// Where its status page is.
    pub http_address: String,
    /// Its version of LANCE; empty while nothing of it is heard.
    #[serde(default)]
    pub version: String,
    /// Bytes that are left on its disk; `None` while that is not heard, or it cannot tell.
    #[serde(default)]
    pub free_bytes: Option<u64>,
    /// What it does for clients; `None` until it has been heard twice.
    #[serde(default)]
    pub traffic: Option<TrafficView>,
}

/// What one node or all of them do for clients, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct TrafficView {
    /// Records accepted from producers, by leaders.
    pub records_in: f64,
    /// Bytes of them.
    pub bytes_in: f64,
    /// Records sent to consumers.
    pub records_out: f64,
    /// Bytes of them.
    pub bytes_out: f64,
    /// Produce requests answered.
    pub produces: f64,
    /// Mean time from their arrival to their replies, in milliseconds; `None` where there were none.
    pub produce_ms: Option<f64>,
}

/// A Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct GroupView {
    /// Its number.
    pub group: u32,
    /// What this node is in it.
    pub role: String,
    /// The node that leads it, if known.
    pub leader: Option<u64>,
    /// The term.
    pub term: u64,
    /// The last index known to be on a majority.
    pub commit_index: u64,
    /// The last index that took effect on this node.
    pub applied_index: u64,
    /// The last index on this node's stable storage.
    pub durable_index: u64,
    /// The last index in this node's journal.
    pub last_index: u64,
    /// Entries that the leader had committed and this node has not applied; `None` while it has not heard.
    pub behind: Option<u64>,
    /// The members that decide.
    pub voters: Vec<String>,
    /// Those that decided before, while the voters change.
    pub outgoing: Vec<String>,
    /// Members that get everything and decide nothing.
    pub learners: Vec<String>,
    /// The followers, which only a leader knows.
    pub followers: Vec<FollowerView>,
    /// What this replica lacks and waits for; empty if nothing.
    pub lacks: String,
}

/// A follower as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct FollowerView {
    /// The member.
    pub member: String,
    /// `probe`, `replicate` or `snapshot`; `unknown` until it has told this leader what it has.
    pub state: String,
    /// Entries of the leader's log that it does not have yet, if the leader can tell.
    pub lag: Option<u64>,
}

/// The state of a group on its way to this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TransferView {
    /// The group.
    pub group: u32,
    /// The node it comes from.
    pub from: u64,
    /// Bytes that have come.
    pub bytes_done: u64,
    /// Bytes of the whole.
    pub bytes_total: u64,
}

/// A node that came to lead a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ElectionView {
    /// When this node heard of it, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The group.
    pub group: u32,
    /// The term.
    pub term: u64,
    /// Who leads.
    pub leader: u64,
}

/// The topics: sums over all, and a page of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct TopicsView {
    /// How many there are.
    pub count: usize,
    /// Those of which nothing is known here but the name, since they have too many partitions in all; they are in none
    /// of the sums.
    pub left_out: usize,
    /// Partitions of all topics.
    pub partitions: u64,
    /// Records kept.
    pub records: u64,
    /// Bytes kept, on each replica.
    pub size_bytes: u64,
    /// Records that all topics get in a second; `None` until a second snapshot was made.
    pub records_per_second: Option<f64>,
    /// How many of those of which something is known have in their names what was asked for.
    #[serde(default)]
    pub found: usize,
    /// The order of the page.
    pub sort: Sort,
    /// Topics before the page.
    pub skip: usize,
    /// Topics behind the page.
    pub more: usize,
    /// The page.
    pub page: Vec<TopicView>,
}

/// A topic.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct TopicView {
    /// Its id, which is never used again.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// How many partitions it has.
    pub partitions: u32,
    /// Records kept.
    pub records: u64,
    /// Bytes kept, on each replica.
    pub size_bytes: u64,
    /// Records that it gets in a second; `None` until a second snapshot was made.
    pub records_per_second: Option<f64>,
    /// Age at which records are deleted, in milliseconds; `None`: never.
    pub max_age_ms: Option<u64>,
    /// Size of a partition at which its oldest records are deleted, in bytes; `None`: never.
    pub max_bytes: Option<u64>,
    /// Its first partitions, up to [`MAX_PARTITIONS_OF_TOPIC`].
    pub page: Vec<PartitionView>,
    /// Partitions behind these.
    pub more: u32,
}

/// A partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PartitionView {
    /// Its number.
    pub partition: u32,
    /// The group that holds it.
    pub group: u32,
    /// The node that leads the group, if known.
    pub leader: Option<u64>,
    /// The first offset kept.
    pub log_start_offset: u64,
    /// The offset behind the last committed record.
    pub high_watermark: u64,
    /// Bytes kept.
    pub size_bytes: u64,
}

/// The view that a snapshot gives.
pub(super) fn view(snapshot: &Snapshot, rates: &SnapshotRates, query: &Query) -> View {
    let cluster = &snapshot.cluster;
    let node_view = |node| node_view(node, snapshot.facts.get(&node.id).map(|said| &said.facts), &cluster.groups);
    let traffic = |node: &NodeStatus| rates.of_node(node.id);
    View {
        taken_ms: snapshot.taken_ms,
        cluster_id: format!("{:032x}", cluster.cluster_id),
        problems: problems(snapshot),
        nodes: cluster.nodes.iter().map(|node| NodeView { traffic: traffic(node), ..node_view(node) }).collect(),
        traffic: TrafficView::sum(cluster.nodes.iter().filter_map(traffic)),
        groups: cluster.groups.iter().map(|g| group_view(g, snapshot.behind.get(&g.group).copied())).collect(),
        transfers: cluster
            .transfers
            .iter()
            .map(|t| TransferView {
                group: t.group,
                from: t.from,
                bytes_done: t.bytes_done,
                bytes_total: t.bytes_total,
            })
            .collect(),
        elections: snapshot
            .elections
            .iter()
            .map(|e| ElectionView { at_ms: e.at_ms, group: e.group, term: e.term, leader: e.leader })
            .collect(),
        topics: topics_view(snapshot, rates, query),
    }
}

fn problems(snapshot: &Snapshot) -> Vec<String> {
    let cluster = &snapshot.cluster;
    let mut problems = Vec::new();
    for node in cluster.nodes.iter().filter(|node| !node.connected) {
        problems.push(format!("node {} is not connected", node.id));
    }
    problems.extend(snapshot.clock_problem.clone());
    problems.extend(snapshot.space_problem.clone());
    for group in &cluster.groups {
        if !group.lacks.is_empty() {
            problems.push(format!("group {}: this replica {}", group.group, group.lacks));
        } else if group.leader.is_none() {
            problems.push(format!("group {} has no known leader", group.group));
        }
    }
    problems
}

fn node_view(node: &NodeStatus, facts: Option<&NodeFacts>, groups: &[GroupStatus]) -> NodeView {
    NodeView {
        id: node.id,
        member: NodeId(node.member).to_string(),
        state: node.state.clone(),
        membership: node.membership.clone(),
        connected: node.connected,
        leads: groups.iter().filter(|group| group.leader == Some(node.id)).map(|group| group.group).collect(),
        client_address: node.client_address.clone(),
        peer_address: node.peer_address.clone(),
        http_address: node.http_address.clone(),
        version: facts.map(NodeFacts::version).unwrap_or_default(),
        free_bytes: facts.and_then(|facts| facts.free_bytes),
        traffic: None,
    }
}

fn group_view(group: &GroupStatus, behind: Option<u64>) -> GroupView {
    let members = |ids: &[u64]| ids.iter().map(|id| NodeId(*id).to_string()).collect();
    GroupView {
        group: group.group,
        role: group.role.clone(),
        leader: group.leader,
        term: group.term,
        commit_index: group.commit_index,
        applied_index: group.applied_index,
        durable_index: group.durable_index,
        last_index: group.last_index,
        behind,
        voters: members(&group.voters),
        outgoing: members(&group.outgoing),
        learners: members(&group.learners),
        followers: group
            .peers
            .iter()
            .map(|p| FollowerView { member: NodeId(p.member).to_string(), state: p.state.clone(), lag: p.known_lag() })
            .collect(),
        lacks: group.lacks.clone(),
    }
}

/// What topics are sorted by, and what is shown of them.
struct Sums<'a> {
    topic: &'a TopicExtent,
    records: u64,
    size_bytes: u64,
    rate: Option<f64>,
}

impl<'a> Sums<'a> {
    fn new(topic: &'a TopicExtent, rates: &SnapshotRates) -> Self {
        let records = topic.partitions.iter().map(|p| p.high_watermark.saturating_sub(p.log_start_offset)).sum();
        let size_bytes = topic.partitions.iter().map(|p| p.size_bytes).sum();
        Self { topic, records, size_bytes, rate: rates.of_topic(topic.id) }
    }

    fn view(&self) -> TopicView {
        let Self { topic, records, size_bytes, rate } = self;
        let page: Vec<PartitionView> = topic
            .partitions
            .iter()
            .take(MAX_PARTITIONS_OF_TOPIC)
            .map(|p| PartitionView {
                partition: p.partition,
                group: p.group,
                leader: p.leader,
                log_start_offset: p.log_start_offset,
                high_watermark: p.high_watermark,
                size_bytes: p.size_bytes,
            })
            .collect();
        TopicView {
            id: topic.id,
            name: topic.name.clone(),
            partitions: topic.count,
            records: *records,
            size_bytes: *size_bytes,
            records_per_second: *rate,
            max_age_ms: topic.options.max_age_ms,
            max_bytes: topic.options.max_bytes,
            more: topic.count - page.len() as u32,
            page,
        }
    }
}

fn topics_view(snapshot: &Snapshot, rates: &SnapshotRates, query: &Query) -> TopicsView {
    let mut topics: Vec<Sums<'_>> = snapshot.topics.iter().map(|topic| Sums::new(topic, rates)).collect();
    // The sorts are stable, and the snapshot is in the order of names.
    match query.sort {
        Sort::Name => {}
        Sort::Rate => topics.sort_by(|a, b| b.rate.unwrap_or(0.0).total_cmp(&a.rate.unwrap_or(0.0))),
        Sort::Size => topics.sort_by_key(|topic| std::cmp::Reverse(topic.size_bytes)),
        Sort::Records => topics.sort_by_key(|topic| std::cmp::Reverse(topic.records)),
    }
    let wanted = query.find.to_lowercase();
    let found: Vec<&Sums<'_>> =
        topics.iter().filter(|topic| topic.topic.name.to_lowercase().contains(&wanted)).collect();
    let skip = query.skip.min(found.len());
    let page: Vec<TopicView> =
        found[skip..].iter().take(query.topics.unwrap_or(TOPICS).min(MAX_TOPICS)).map(|topic| topic.view()).collect();
    TopicsView {
        count: snapshot.topic_count,
        left_out: snapshot.topic_count - topics.len(),
        partitions: topics.iter().map(|topic| u64::from(topic.topic.count)).sum(),
        records: topics.iter().map(|topic| topic.records).sum(),
        size_bytes: topics.iter().map(|topic| topic.size_bytes).sum(),
        records_per_second: rates.of_topics(),
        found: found.len(),
        sort: query.sort,
        skip,
        more: found.len() - skip - page.len(),
        page,
    }
}
