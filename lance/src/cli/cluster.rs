//! `lance cluster`: how the nodes and their Raft groups are.
//!
//! Each node knows its own part only, so every node is asked; one that does not answer is shown as it looks from there.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use lnc_client::{ConnectOptions, Connection};
use lnc_protocol::message::{ClusterInfoResponse, GroupStatus, NodeStatus, Request, Response};
use lnc_raft::NodeId;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Global;
use super::error::CliError;
use super::output::{self, OutputFormat, Table, or_dash};

/// Longest time to wait for one node's answer.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);

/// Show the state of the cluster
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lance cluster status
  lance cluster status -o json --endpoint broker-1:1992")]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show nodes, leaders, terms, indexes and lag; exit code 1 if a node is down or a group has no leader
    #[command(after_help = "\
Group 0 holds the cluster's own data, the others hold partitions. LAG counts the entries of the leader's log that the
replica does not have yet.

Example:
  lance cluster status -o json")]
    Status,
}

pub(super) async fn run(global: &Global, args: ClusterArgs) -> Result<ExitCode, CliError> {
    let ClusterCommand::Status = args.command;
    let view = View::new(ask_all(global).await?);
    match global.output {
        OutputFormat::Json => output::print_json(&view.json())?,
        OutputFormat::Table => output::print(&view.text())?,
    }
    let problems = view.problems();
    if problems.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError::failed(format!("the cluster is degraded: {}", problems.join("; "))))
}

/// The answers of all nodes that can be reached; at least one.
async fn ask_all(global: &Global) -> Result<Vec<ClusterInfoResponse>, CliError> {
    let limit = NODE_TIMEOUT.min(global.timeout);
    let mut answers: BTreeMap<u64, ClusterInfoResponse> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut asked = Vec::new();
    // The first round asks the endpoints given, the second the nodes that the answers named.
    for _ in 0..2 {
        let named = answers.values().flat_map(|info| &info.nodes).map(|node| node.client_address.clone());
        let mut addresses: Vec<String> = global.endpoint.iter().cloned().chain(named).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut questions = JoinSet::new();
        for address in addresses.into_iter().filter(|address| !asked.contains(address)).collect::<Vec<_>>() {
            asked.push(address.clone());
            questions.spawn(ask(address, limit));
        }
        while let Some(answer) = questions.join_next().await {
            match answer {
                Ok(Ok(info)) => drop(answers.insert(info.node_id, info)),
                Ok(Err(failure)) => failures.push(failure),
                Err(error) => failures.push(error.to_string()),
            }
        }
    }
    if answers.is_empty() {
        return Err(CliError::unreachable(format!("no node answers: {}", failures.join("; "))));
    }
    Ok(answers.into_values().collect())
}

async fn ask(address: String, limit: Duration) -> Result<ClusterInfoResponse, String> {
    let exchange = async {
        let options = ConnectOptions { client_name: "lance-cli".to_owned(), timeout: limit, ..Default::default() };
        let connection = Connection::connect(&address, &options).await.map_err(|error| error.to_string())?;
        let reply = connection.request(&Request::ClusterInfo).await.map_err(|error| error.to_string())?;
        match reply.result {
            Ok(Response::ClusterInfo(info)) => Ok(info),
            Ok(_) => Err(format!("{address} answered something else")),
            Err(error) => Err(format!("{address}: {error}")),
        }
    };
    tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| Err(format!("{address} does not answer")))
}

/// The cluster, put together from the answers of its nodes.
struct View {
    cluster_id: u128,
    nodes: Vec<NodeView>,
    /// One per replica that answered, by group and node.
    replicas: Vec<Replica>,
}

struct NodeView {
    status: NodeStatus,
    /// Whether the node itself answered.
    answered: bool,
}

struct Replica {
    node: u64,
    status: GroupStatus,
    /// How far this replica is behind, as the group's leader sees it.
    lag: Option<u64>,
}

impl View {
    fn new(answers: Vec<ClusterInfoResponse>) -> Self {
        let cluster_id = answers.first().map_or(0, |info| info.cluster_id);
        let mut nodes: BTreeMap<u64, NodeView> = BTreeMap::new();
        let mut lags: BTreeMap<(u32, u64), (u64, u64)> = BTreeMap::new();
        for info in &answers {
            for status in &info.nodes {
                let own = status.id == info.node_id;
                let seen = NodeView { status: status.clone(), answered: own };
                // What a node says about itself wins over what others say about it.
                match nodes.get(&status.id) {
                    Some(known) if known.answered || !own => {}
                    _ => drop(nodes.insert(status.id, seen)),
                }
            }
            for group in info.groups.iter().filter(|group| group.leader == Some(info.node_id)) {
                let own = std::iter::once((info.node_id, 0));
                for (node, lag) in own.chain(group.peers.iter().map(|peer| (NodeId(peer.member).node(), peer.lag))) {
                    // Two nodes may both think that they lead: the later term is right.
                    let newest = lags.entry((group.group, node)).or_insert((group.term, lag));
                    if group.term >= newest.0 {
                        *newest = (group.term, lag);
                    }
                }
            }
        }
        let mut replicas: Vec<Replica> = Vec::new();
        for info in answers {
            for status in info.groups {
                let lag = lags.get(&(status.group, info.node_id)).map(|(_, lag)| *lag);
                replicas.push(Replica { node: info.node_id, status, lag });
            }
        }
        replicas.sort_by_key(|replica| (replica.status.group, replica.node));
        Self { cluster_id, nodes: nodes.into_values().collect(), replicas }
    }

    /// The leader of each group, as the replica with the latest term knows it.
    fn leaders(&self) -> BTreeMap<u32, Option<u64>> {
        let mut newest: BTreeMap<u32, (u64, Option<u64>)> = BTreeMap::new();
        for Replica { status, .. } in &self.replicas {
            let known = newest.entry(status.group).or_insert((status.term, status.leader));
            if status.term > known.0 || (status.term == known.0 && known.1.is_none()) {
                *known = (status.term, status.leader);
            }
        }
        newest.into_iter().map(|(group, (_, leader))| (group, leader)).collect()
    }

    fn groups_led_by(&self, node: u64) -> Vec<u32> {
        self.leaders().into_iter().filter(|(_, leader)| *leader == Some(node)).map(|(group, _)| group).collect()
    }

    fn problems(&self) -> Vec<String> {
        let down = self.nodes.iter().filter(|node| !node.answered);
        let down = down.map(|node| format!("node {} does not answer", node.status.id));
        let leaderless = self.leaders().into_iter().filter(|(_, leader)| leader.is_none());
        down.chain(leaderless.map(|(group, _)| format!("group {group} has no leader"))).collect()
    }

    fn text(&self) -> String {
        let mut nodes = Table::new(&["NODE", "STATE", "LEADS", "CLIENTS", "PEERS", "HTTP"]);
        for NodeView { status, answered } in &self.nodes {
            let leads: Vec<String> = self.groups_led_by(status.id).iter().map(u32::to_string).collect();
            nodes.row(vec![
                status.id.to_string(),
                if *answered { status.state.clone() } else { "unreachable".to_owned() },
                if leads.is_empty() { "-".to_owned() } else { leads.join(",") },
                status.client_address.clone(),
                status.peer_address.clone(),
                status.http_address.clone(),
            ]);
        }
        let mut groups = Table::new(&["GROUP", "NODE", "ROLE", "TERM", "COMMIT", "APPLIED", "DURABLE", "LAST", "LAG"]);
        for Replica { node, status, lag } in &self.replicas {
            let mut row = vec![status.group.to_string(), node.to_string(), status.role.clone()];
            let indexes = [status.commit_index, status.applied_index, status.durable_index, status.last_index];
            row.push(status.term.to_string());
            row.extend(indexes.iter().map(u64::to_string));
            row.push(or_dash(*lag));
            groups.row(row);
        }
        format!("cluster {:032x}\n\n{}\n{}", self.cluster_id, nodes.render(), groups.render())
    }

    fn json(&self) -> Value {
        let node = |NodeView { status, answered }: &NodeView| {
            json!({
                "id": status.id,
                "state": if *answered { &status.state } else { "unreachable" },
                "leads": self.groups_led_by(status.id),
                "incarnation": status.incarnation,
                "client_address": status.client_address,
                "peer_address": status.peer_address,
                "http_address": status.http_address,
            })
        };
        let replica = |Replica { node, status, lag }: &Replica| {
            json!({
                "group": status.group,
                "node": node,
                "role": status.role,
                "leader": status.leader,
                "term": status.term,
                "commit_index": status.commit_index,
                "applied_index": status.applied_index,
                "durable_index": status.durable_index,
                "first_index": status.first_index,
                "last_index": status.last_index,
                "lag": lag,
            })
        };
        json!({
            "cluster_id": format!("{:032x}", self.cluster_id),
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
            "replicas": self.replicas.iter().map(replica).collect::<Vec<_>>(),
            "problems": self.problems(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_protocol::message::PeerProgress;

    fn node(id: u64) -> NodeStatus {
        NodeStatus {
            id,
            client_address: format!("h{id}:1992"),
            peer_address: format!("h{id}:1993"),
            http_address: format!("h{id}:1994"),
            connected: true,
            incarnation: 1,
            state: "serving".into(),
            member: id,
            membership: "member".into(),
        }
    }

    fn group(role: &str, leader: Option<u64>, term: u64, peers: &[(u64, u64)]) -> GroupStatus {
        let peer = |&(member, lag): &(u64, u64)| PeerProgress {
            member,
            match_index: 10 - lag,
            next_index: 11,
            state: "replicate".into(),
            in_flight: 0,
            lag,
        };
        GroupStatus {
            group: 0,
            role: role.into(),
            leader,
            term,
            commit_index: 9,
            applied_index: 9,
            durable_index: 10,
            last_index: 10,
            first_index: 1,
            peers: peers.iter().map(peer).collect(),
            voters: vec![1, 2, 3],
            outgoing: Vec::new(),
            learners: Vec::new(),
            lacks: String::new(),
        }
    }

    fn answer(node_id: u64, group: GroupStatus) -> ClusterInfoResponse {
        ClusterInfoResponse {
            cluster_id: 10,
            node_id,
            nodes: vec![node(1), node(2), node(3)],
            groups: vec![group],
            transfers: Vec::new(),
        }
    }

    #[test]
    fn answers_of_all_nodes_make_one_view() {
        let view = View::new(vec![
            answer(1, group("leader", Some(1), 4, &[(2, 3), (3, 10)])),
            answer(2, group("follower", Some(1), 4, &[])),
        ]);
        let expected = "cluster 0000000000000000000000000000000a\n\n\
            NODE  STATE        LEADS  CLIENTS  PEERS    HTTP\n   \
            1  serving          0  h1:1992  h1:1993  h1:1994\n   \
            2  serving          -  h2:1992  h2:1993  h2:1994\n   \
            3  unreachable      -  h3:1992  h3:1993  h3:1994\n\n\
            GROUP  NODE  ROLE      TERM  COMMIT  APPLIED  DURABLE  LAST  LAG\n    \
            0     1  leader       4       9        9       10    10    0\n    \
            0     2  follower     4       9        9       10    10    3\n";
        assert_eq!(view.text(), expected);
        assert_eq!(view.problems(), ["node 3 does not answer"]);
        assert_eq!(view.json()["replicas"][1]["lag"], 3);
    }

    #[test]
    fn a_deposed_leader_does_not_count() {
        let view = View::new(vec![
            answer(1, group("leader", Some(1), 4, &[(2, 0)])),
            answer(2, group("leader", Some(2), 5, &[(1, 7)])),
            answer(3, group("candidate", None, 5, &[])),
        ]);
        assert_eq!(view.leaders(), BTreeMap::from([(0, Some(2))]));
        assert_eq!(view.replicas[0].lag, Some(7));
        assert!(view.problems().is_empty());
    }

    #[test]
    fn a_group_without_a_leader_is_a_problem() {
        let view = View::new(vec![answer(1, group("candidate", None, 6, &[]))]);
        assert!(view.problems().contains(&"group 0 has no leader".to_owned()));
    }
}
