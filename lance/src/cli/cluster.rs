//! `lance cluster`: how the nodes and their Raft groups are, and who belongs to the cluster.
//!
//! Each node knows its own part only, so every node is asked; one that does not answer is shown as it looks from there.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use lnc_client::{ConnectOptions, Connection};
use lnc_protocol::message::{ClusterInfoResponse, GroupStatus, NodeStatus, Request, Response, TransferStatus};
use lnc_raft::NodeId;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Global;
use super::error::CliError;
use super::formats::{self, Formats};
use super::members;
use super::output::{self, OutputFormat, Table, counted, or_dash};
use crate::config::units::format_size;

/// Longest time to wait for one node's answer.
pub(super) const NODE_TIMEOUT: Duration = Duration::from_secs(3);

/// Show the state of the cluster, and change who belongs to it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lance cluster status
  lance cluster add 4 --client n4:1992 --peer n4:1993 --http n4:1994 --wait
  lance cluster remove 2 --wait
  lance cluster replace 3 --wait
  lance cluster forget 4
  lance cluster finalize --yes")]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show nodes, leaders, terms, indexes and lag; exit code 1 if a node is down or a group has no leader
    #[command(after_help = "\
Group 0 holds the cluster's own data, the others hold partitions. LAG counts the entries of the leader's log that the \
replica does not have yet.

Example:
  lance cluster status -o json")]
    Status,
    Add(members::AddArgs),
    Remove(members::RemoveArgs),
    Replace(members::ReplaceArgs),
    Forget(members::ForgetArgs),
    Finalize(formats::FinalizeArgs),
}

pub(super) async fn run(global: &Global, args: ClusterArgs) -> Result<ExitCode, CliError> {
    match args.command {
        ClusterCommand::Status => status(global).await,
        ClusterCommand::Add(args) => members::add(global, args).await,
        ClusterCommand::Remove(args) => members::remove(global, args).await,
        ClusterCommand::Replace(args) => members::replace(global, args).await,
        ClusterCommand::Forget(args) => members::forget(global, args).await,
        ClusterCommand::Finalize(args) => {
            let addresses = View::new(ask_all(global).await?).addresses();
            formats::finalize(global, &args, &addresses).await
        }
    }
}

async fn status(global: &Global) -> Result<ExitCode, CliError> {
    let view = View::new(ask_all(global).await?);
    let formats = Formats::ask(global, &view.addresses()).await;
    match global.output {
        OutputFormat::Json => {
            let mut json = view.json();
            json["formats"] = formats.json();
            output::print_json(&json)?;
        }
        OutputFormat::Table => {
            let formats = Some(formats.text()).filter(|text| !text.is_empty());
            output::print(&format!("{}{}", view.text(), formats.map_or(String::new(), |text| format!("\n{text}"))))?;
        }
    }
    let problems = view.problems();
    if problems.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError::failed(format!("the cluster is degraded: {}", problems.join("; "))))
}

/// The answers of all nodes that can be reached; at least one.
pub(super) async fn ask_all(global: &Global) -> Result<Vec<ClusterInfoResponse>, CliError> {
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

pub(super) async fn ask(address: String, limit: Duration) -> Result<ClusterInfoResponse, String> {
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
pub(super) struct View {
    cluster_id: u128,
    /// Nodes that answered for another cluster: what they say of groups and members is about that one.
    strangers: BTreeMap<u64, u128>,
    nodes: Vec<NodeView>,
    /// One per replica that answered, by group and node.
    replicas: Vec<Replica>,
    /// State on its way to a node.
    transfers: Vec<(u64, TransferStatus)>,
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
    pub(super) fn new(mut answers: Vec<ClusterInfoResponse>) -> Self {
        // The cluster is the one that most of those belong to who answer; the first one's, if that is not decided.
        let mut counts: BTreeMap<u128, usize> = BTreeMap::new();
        answers.iter().for_each(|info| *counts.entry(info.cluster_id).or_default() += 1);
        let most = counts.values().max().copied();
        let cluster_id =
            answers.iter().map(|info| info.cluster_id).find(|id| counts.get(id).copied() == most).unwrap_or(0);
        // What a node knows that was removed is from before: it is asked only if nobody else is there.
        let is_removed = |info: &ClusterInfoResponse| {
            info.nodes.iter().any(|status| status.id == info.node_id && status.membership == "removed")
        };
        if answers.iter().any(|info| info.cluster_id == cluster_id && !is_removed(info)) {
            answers.retain(|info| !is_removed(info));
        }
        let strangers = answers.iter().filter(|info| info.cluster_id != cluster_id);
        let strangers = strangers.map(|info| (info.node_id, info.cluster_id)).collect();
        answers.retain(|info| info.cluster_id == cluster_id);
        let mut nodes: BTreeMap<u64, NodeView> = BTreeMap::new();
        let mut lags: BTreeMap<(u32, u64), (u64, Option<u64>)> = BTreeMap::new();
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
                let own = std::iter::once((info.node_id, Some(0)));
                let others = group.peers.iter().map(|peer| (NodeId(peer.member).node(), peer.known_lag()));
                for (node, lag) in own.chain(others) {
                    // Two nodes may both think that they lead: the later term is right.
                    let newest = lags.entry((group.group, node)).or_insert((group.term, lag));
                    if group.term >= newest.0 {
                        *newest = (group.term, lag);
                    }
                }
            }
        }
        let mut replicas: Vec<Replica> = Vec::new();
        let mut transfers = Vec::new();
        for info in answers {
            transfers.extend(info.transfers.iter().map(|transfer| (info.node_id, transfer.clone())));
            for status in info.groups {
                let lag = lags.get(&(status.group, info.node_id)).and_then(|(_, lag)| *lag);
                replicas.push(Replica { node: info.node_id, status, lag });
            }
        }
        replicas.sort_by_key(|replica| (replica.status.group, replica.node));
        Self { cluster_id, strangers, nodes: nodes.into_values().collect(), replicas, transfers }
    }

    /// Where the nodes that answered are, for clients.
    fn addresses(&self) -> Vec<String> {
        let answered = self.nodes.iter().filter(|node| node.answered);
        answered.map(|node| node.status.client_address.clone()).collect()
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

    /// Each group as its leader says it is, or else the replica with the latest term.
    pub(super) fn groups(&self) -> Vec<&GroupStatus> {
        let mut newest: BTreeMap<u32, &GroupStatus> = BTreeMap::new();
        let rank = |status: &GroupStatus| (status.term, status.role == "leader");
        for Replica { status, .. } in &self.replicas {
            let known = newest.entry(status.group).or_insert(status);
            if rank(status) > rank(known) {
                *known = status;
            }
        }
        newest.into_values().collect()
    }

    /// What is under way, in a line each: transfers, changes of members, repairs.
    pub(super) fn under_way(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for NodeView { status, .. } in self.nodes.iter().filter(|node| node.status.membership != "member") {
            lines.push(format!("node {} ({}): {}", status.id, NodeId(status.member), status.membership));
        }
        for (node, transfer) in &self.transfers {
            let percent = 100 * transfer.bytes_done / transfer.bytes_total.max(1);
            lines.push(format!(
                "node {node} fetches the state of group {} from node {}: {} of {} ({percent} %)",
                transfer.group,
                transfer.from,
                format_size(transfer.bytes_done),
                format_size(transfer.bytes_total)
            ));
        }
        for group in self.groups() {
            for learner in &group.learners {
                let lag = group.peers.iter().find(|peer| peer.member == *learner);
                let lag = lag
                    .and_then(|peer| peer.known_lag())
                    .map_or(String::new(), |lag| format!(", {} behind", counted(lag, "entry")));
                lines.push(format!("group {}: {} is a learner{lag}", group.group, NodeId(*learner)));
            }
            if !group.outgoing.is_empty() {
                lines.push(format!("group {}: its voters change, {}", group.group, voters(group)));
            }
        }
        for Replica { node, status, .. } in self.replicas.iter().filter(|replica| !replica.status.lacks.is_empty()) {
            lines.push(format!("group {} on node {node}: {}", status.group, status.lacks));
        }
        lines
    }

    fn groups_led_by(&self, node: u64) -> Vec<u32> {
        self.leaders().into_iter().filter(|(_, leader)| *leader == Some(node)).map(|(group, _)| group).collect()
    }

    fn problems(&self) -> Vec<String> {
        let is_stranger = |node: &&NodeView| self.strangers.contains_key(&node.status.id);
        let down = self.nodes.iter().filter(|node| !node.answered && !is_stranger(node));
        let down = down.map(|node| format!("node {} does not answer", node.status.id));
        let leaderless = self.leaders().into_iter().filter(|(_, leader)| leader.is_none());
        let strangers = self.strangers.iter().map(|(node, cluster)| {
            format!(
                "node {node} has a data directory of another cluster, {cluster:032x}: put the right one in its place"
            )
        });
        let removed = self.nodes.iter().filter(|node| node.status.membership == "removed");
        let removed = removed.map(|node| {
            format!(
                "node {} was removed: what it says of the others is from before that; ask one of them",
                node.status.id
            )
        });
        down.chain(removed)
            .chain(leaderless.map(|(group, _)| format!("group {group} has no leader")))
            .chain(strangers)
            .collect()
    }

    fn text(&self) -> String {
        let mut nodes = Table::new(&["NODE", "MEMBER", "STATE", "LEADS", "CLIENTS", "PEERS", "HTTP"]);
        for NodeView { status, answered } in &self.nodes {
            let leads: Vec<String> = self.groups_led_by(status.id).iter().map(u32::to_string).collect();
            nodes.row(vec![
                status.id.to_string(),
                NodeId(status.member).to_string(),
                match (*answered, self.strangers.contains_key(&status.id)) {
                    (true, _) => status.state.clone(),
                    (false, true) => "another cluster".to_owned(),
                    (false, false) => "unreachable".to_owned(),
                },
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
        let mut members = Table::new(&["GROUP", "VOTERS", "LEARNERS"]);
        for group in self.groups() {
            let learners = if group.learners.is_empty() { "-".to_owned() } else { names(&group.learners) };
            members.row(vec![group.group.to_string(), voters(group), learners]);
        }
        let under_way: String = self.under_way().iter().map(|line| format!("  {line}\n")).collect();
        let under_way = if under_way.is_empty() { under_way } else { format!("\nunder way:\n{under_way}") };
        let (nodes, members, groups) = (nodes.render(), members.render(), groups.render());
        format!("cluster {:032x}\n\n{nodes}\n{members}\n{groups}{under_way}", self.cluster_id)
    }

    fn json(&self) -> Value {
        let node = |NodeView { status, answered }: &NodeView| {
            json!({
                "id": status.id,
                "state": if *answered { &status.state } else { "unreachable" },
                "leads": self.groups_led_by(status.id),
                "member": NodeId(status.member).to_string(),
                "membership": status.membership,
                "incarnation": output::id(status.incarnation),
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
                "lacks": status.lacks,
            })
        };
        let group = |status: &&GroupStatus| {
            let list = |ids: &[u64]| ids.iter().map(|id| NodeId(*id).to_string()).collect::<Vec<_>>();
            json!({
                "group": status.group,
                "voters": list(&status.voters),
                "outgoing": list(&status.outgoing),
                "learners": list(&status.learners),
            })
        };
        let transfer = |(node, transfer): &(u64, TransferStatus)| {
            json!({
                "node": node,
                "group": transfer.group,
                "from": transfer.from,
                "bytes_done": transfer.bytes_done,
                "bytes_total": transfer.bytes_total,
            })
        };
        json!({
            "cluster_id": format!("{:032x}", self.cluster_id),
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
            "replicas": self.replicas.iter().map(replica).collect::<Vec<_>>(),
            "groups": self.groups().iter().map(group).collect::<Vec<_>>(),
            "transfers": self.transfers.iter().map(transfer).collect::<Vec<_>>(),
            "under_way": self.under_way(),
            "problems": self.problems(),
        })
    }
}

fn names(ids: &[u64]) -> String {
    ids.iter().map(|id| NodeId(*id).to_string()).collect::<Vec<_>>().join(",")
}

/// The voters of a group; while they change, from whom to whom.
fn voters(group: &GroupStatus) -> String {
    match group.outgoing.is_empty() {
        true => names(&group.voters),
        false => format!("{} → {}", names(&group.outgoing), names(&group.voters)),
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
            incarnation: u64::MAX,
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
    fn a_node_that_was_removed_does_not_speak_for_the_others() {
        let mut removed = answer(1, group("follower", None, 2, &[]));
        removed.nodes[0].membership = "removed".into();
        let alone = View::new(vec![removed.clone()]);
        assert!(
            alone.problems().iter().any(|problem| problem.starts_with("node 1 was removed")),
            "{:?}",
            alone.problems()
        );
        let mut others = answer(2, group("leader", Some(2), 4, &[(3, 0)]));
        others.nodes.remove(0);
        let view = View::new(vec![removed, others.clone(), ClusterInfoResponse { node_id: 3, ..others }]);
        assert!(
            view.problems().is_empty() && view.under_way().is_empty(),
            "{:?} {:?}",
            view.problems(),
            view.under_way()
        );
        assert_eq!(view.nodes.iter().map(|node| node.status.id).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn a_node_of_another_cluster_is_none_of_this_one() {
        let stranger = ClusterInfoResponse { cluster_id: 11, ..answer(1, group("leader", Some(1), 7777, &[(2, 0)])) };
        let view = View::new(vec![
            stranger,
            answer(2, group("leader", Some(2), 4, &[(3, 0)])),
            answer(3, group("follower", Some(2), 4, &[])),
        ]);
        assert!(view.text().starts_with("cluster 0000000000000000000000000000000a\n"), "{}", view.text());
        assert!(!view.text().contains("7777") && view.text().contains("1  another cluster"), "{}", view.text());
        assert_eq!(
            view.problems(),
            ["node 1 has a data directory of another cluster, 0000000000000000000000000000000b: put the \
                                     right one in its place"]
        );
    }

    #[test]
    fn answers_of_all_nodes_make_one_view() {
        let view = View::new(vec![
            answer(1, group("leader", Some(1), 4, &[(2, 3), (3, 10)])),
            answer(2, group("follower", Some(1), 4, &[])),
        ]);
        let expected = "cluster 0000000000000000000000000000000a\n\n\
            NODE  MEMBER  STATE        LEADS  CLIENTS  PEERS    HTTP\n   \
            1       1  serving          0  h1:1992  h1:1993  h1:1994\n   \
            2       2  serving          -  h2:1992  h2:1993  h2:1994\n   \
            3       3  unreachable      -  h3:1992  h3:1993  h3:1994\n\n\
            GROUP  VOTERS  LEARNERS\n    \
            0  1,2,3          -\n\n\
            GROUP  NODE  ROLE      TERM  COMMIT  APPLIED  DURABLE  LAST  LAG\n    \
            0     1  leader       4       9        9       10    10    0\n    \
            0     2  follower     4       9        9       10    10    3\n";
        assert_eq!(view.text(), expected);
        assert_eq!(view.problems(), ["node 3 does not answer"]);
        assert_eq!(view.json()["replicas"][1]["lag"], 3);
        assert_eq!(view.json()["nodes"][0]["incarnation"], "18446744073709551615");
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
    fn what_is_under_way_is_told() {
        let again = NodeId::new(3, 1).0;
        let mut joint = group("leader", Some(1), 4, &[(2, 0)]);
        joint.voters = vec![1, 2, again];
        joint.outgoing = vec![1, 2, 3];
        joint.learners = vec![4];
        let mut info = answer(1, joint);
        info.nodes[2].member = again;
        info.nodes[2].membership = "joining".into();
        info.transfers = vec![TransferStatus { group: 0, from: 2, bytes_done: 512, bytes_total: 2048 }];
        let view = View::new(vec![info]);
        assert_eq!(
            view.under_way(),
            [
                "node 3 (3.1): joining",
                "node 1 fetches the state of group 0 from node 2: 512 of 2KiB (25 %)",
                "group 0: 4 is a learner",
                "group 0: its voters change, 1,2,3 → 1,2,3.1",
            ]
        );
        assert!(view.text().contains("1,2,3 → 1,2,3.1"));
    }

    #[test]
    fn a_group_without_a_leader_is_a_problem() {
        let view = View::new(vec![answer(1, group("candidate", None, 6, &[]))]);
        assert!(view.problems().contains(&"group 0 has no leader".to_owned()));
    }
}
