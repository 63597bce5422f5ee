//! A fresh node on its way into a cluster: it waits until all that are configured are there, or until a cluster admits it. What is
//! decided is in [`lnc_replication::formation`]; here is who is heard, what is told meanwhile, and what becomes durable.

use crate::config::Config;
use crate::http::Health;
use crate::server::{PeerInbox, ServerError};
use crate::systemd::Systemd;
use lnc_log::data_dir::{ClusterIdentity, DataDir};
use lnc_raft::NodeId;
use lnc_replication::formation::{self, Cluster, Decision, Identity, Nodes, decide};
use lnc_replication::peers::{PeerEvent, Peers};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Who the node of a data directory is.
pub(crate) fn identity_of(stored: &lnc_log::data_dir::Identity) -> Identity {
    let named = |nodes: &[(u64, u64)]| nodes.iter().map(|(id, incarnation)| (NodeId(*id), *incarnation)).collect();
    let cluster = stored.cluster.as_ref().map(|c| Cluster {
        id: c.cluster_id,
        founders: named(&c.founders),
        data_groups: c.data_groups,
        version: c.version,
        members: named(&c.members),
    });
    let member = cluster.as_ref().and_then(|cluster| cluster.member(stored.node_id, stored.incarnation));
    Identity { node: member.unwrap_or(NodeId(stored.node_id)), incarnation: stored.incarnation, cluster }
}

/// Wait until this node belongs to a cluster. One that does already returns at once.
pub(crate) async fn form(
    config: &Config,
    data_dir: &mut DataDir,
    own: Identity,
    peers: &Rc<Peers>,
    inbox: &PeerInbox,
    (health, systemd): (&Health, &mut Systemd),
) -> Result<Identity, ServerError> {
    /// How often the state of the formation is looked at while nothing happens.
    const LOOK: Duration = Duration::from_millis(500);
    if own.cluster.is_some() {
        return Ok(own);
    }
    let configured: BTreeSet<NodeId> = config.cluster.nodes.iter().map(|node| NodeId(node.id)).collect();
    let start = Instant::now();
    let mut heard = formation::Heard::default();
    let mut told = String::new();
    loop {
        let now_us = start.elapsed().as_micros() as u64;
        for event in inbox.events.take() {
            match event {
                // Only those count that are where this node's configuration says.
                PeerEvent::Heard(identity) => drop(heard.note(now_us, identity)),
                PeerEvent::Knocked(identity) => {
                    heard.call(now_us, &identity);
                    if heard.is_news(&identity) {
                        peers.hurry(identity.node.node());
                    }
                }
                _ => {}
            }
        }
        let elsewhere = heard.elsewhere(now_us);
        let mut state = match decide(&own, &configured, config.cluster.data_groups, &heard.now(now_us)) {
            // Those who call may have admitted it: it would be in both.
            Decision::Join(cluster) if elsewhere.iter().any(|(_, id)| *id != cluster.id) => {
                format!(
                    "this node would belong to cluster {:032x}, and hears of another one: it belongs to neither as long as nodes \
                     of both call it",
                    cluster.id
                )
            }
            Decision::Join(cluster) => {
                let named =
                    |nodes: BTreeMap<NodeId, u64>| nodes.iter().map(|(node, number)| (node.0, *number)).collect();
                data_dir.set_cluster(ClusterIdentity {
                    cluster_id: cluster.id,
                    data_groups: cluster.data_groups,
                    founders: named(cluster.founders),
                    version: cluster.version,
                    members: named(cluster.members),
                })?;
                let joined = identity_of(data_dir.create_identity(config.node.id, own.incarnation)?);
                let others = config.cluster.nodes.iter().filter(|node| node.id != config.node.id);
                peers.set_members(joined.clone(), others.map(|node| (node.id, node.peer.to_string())).collect());
                return Ok(joined);
            }
            Decision::Wait { missing } => format!("waiting for nodes {} to form the cluster", Nodes(&missing)),
            Decision::AwaitAdmission { cluster, known: true } => format!(
                "cluster {cluster:032x} knows another incarnation of node {}: this data directory is new; the node is \
                 admitted as a new member once its former self is silent, by a majority of the members (docs/ops/quorum-lost.md \
                 if there is none)",
                own.node
            ),
            Decision::AwaitAdmission { cluster, known: false } => format!(
                "cluster {cluster:032x} does not know node {}: `lance cluster add {}` makes it a member",
                own.node, own.node
            ),
            Decision::Conflict { clusters } => {
                let list: Vec<String> = clusters.iter().map(|id| format!("{id:032x}")).collect();
                return Err(ServerError::Conflict(list.join(", ")));
            }
        };
        let elsewhere = heard.long_elsewhere(now_us);
        if !elsewhere.is_empty() {
            state += &format!(
                "; nodes {} of a cluster call this one, and `cluster.nodes` does not lead to them: if it is theirs, list those that \
                 `lance cluster status` shows there, and start again; if not, stop them, or have them call elsewhere",
                Nodes(&elsewhere.into_iter().map(|(node, _)| node).collect())
            );
        }
        if state != told {
            tracing::info!("{state}");
            told.clone_from(&state);
        }
        health.beat();
        let waiting = Err(state);
        systemd.beat(Instant::now(), &waiting);
        health.set_ready(waiting);
        tokio::select! {
            () = inbox.wake.notified() => {}
            () = sleep(LOOK) => {}
        }
    }
}
