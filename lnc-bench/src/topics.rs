//! The topics of a run: making those that are missing, finding out who leads their partitions, and sharing the
//! partitions among connections.

use std::collections::{BTreeMap, BTreeSet};

use indicatif::{ProgressBar, ProgressStyle};
use lnc_client::{Client, ErrorCode};
use tokio::task::JoinSet;

use crate::BenchError;
use crate::args::ClusterArgs;
use crate::words::counted;

/// Topics that are being created at the same time.
const CREATIONS_AT_ONCE: usize = 16;

/// A partition to write to or to read from.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) topic: String,
    pub(crate) topic_id: u64,
    pub(crate) partition: u32,
    /// The node that leads it, if known.
    pub(crate) leader: Option<u64>,
}

/// The nodes, and the partitions of all topics of a run.
#[derive(Clone, Debug)]
pub(crate) struct Topology {
    /// Client addresses by node id.
    pub(crate) nodes: BTreeMap<u64, String>,
    pub(crate) targets: Vec<Target>,
}

impl Topology {
    /// The address of the node that leads a partition, or of some node if nobody is known to.
    pub(crate) fn address(&self, leader: Option<u64>) -> Option<&String> {
        leader.and_then(|leader| self.nodes.get(&leader)).or_else(|| self.nodes.values().next())
    }
}

/// The names of `count` topics: `topic` itself if it is one, else `topic-0` and so on.
pub(crate) fn names(topic: &str, count: u32) -> Vec<String> {
    if count == 1 { vec![topic.to_owned()] } else { (0..count).map(|number| format!("{topic}-{number}")).collect() }
}

/// Creates those of the topics that do not exist; gives their names.
pub(crate) async fn create(client: &Client, names: &[String], partitions: u32) -> Result<Vec<String>, BenchError> {
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    let known = client.metadata(Some(&asked)).await?.topics.into_iter();
    let missing: Vec<String> =
        known.filter(|topic| topic.error == ErrorCode::UnknownTopic).map(|topic| topic.name).collect();
    let bar = ProgressBar::new(missing.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos} of {len} topics created") {
        bar.set_style(style);
    }
    let created = missing.clone();
    let mut missing = missing.into_iter();
    let mut creations = JoinSet::new();
    loop {
        while creations.len() < CREATIONS_AT_ONCE
            && let Some(name) = missing.next()
        {
            let client = client.clone();
            creations.spawn(async move { client.create_topic(&name, partitions).await });
        }
        match creations.join_next().await {
            None => break,
            Some(Ok(Err(error))) if error.code() != Some(ErrorCode::TopicExists) => return Err(error.into()),
            Some(Ok(_)) => bar.inc(1),
            Some(Err(_)) => return Err(BenchError::Thread),
        }
    }
    bar.finish_and_clear();
    Ok(created)
}

/// Deletes what a run has created, or says that it stays. What cannot be deleted is told, and costs no report.
pub(crate) fn clean_up(cluster: &ClusterArgs, created: &[String]) {
    if created.is_empty() {
        return;
    }
    let (count, first) = (counted(created.len() as u64, "topic"), &created[0]);
    if !cluster.delete_topics {
        match created.len() {
            1 => eprintln!(
                "lnc-bench: the topic {first}, which this run has created, stays; --delete-topics takes it away"
            ),
            _ => eprintln!(
                "lnc-bench: {count} created by this run, {first} among them, stay; --delete-topics takes them away"
            ),
        }
        return;
    }
    let deleted =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BenchError::from).and_then(
            |runtime| {
                runtime.block_on(async {
                    let client = crate::client(&cluster.endpoints).await?;
                    for name in created {
                        client.delete_topic(name).await?;
                    }
                    Ok(())
                })
            },
        );
    if let Err(error) = deleted {
        eprintln!("lnc-bench: not all of the {count} that this run created were deleted: {error}");
    }
}

/// The partitions of the topics, as they are now.
pub(crate) async fn look_up(client: &Client, names: &[String]) -> Result<Topology, BenchError> {
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    let metadata = client.metadata(Some(&asked)).await?;
    let nodes = metadata.nodes.into_iter().map(|node| (node.id, node.client_address)).collect();
    let mut targets = Vec::new();
    for topic in metadata.topics {
        if topic.error != ErrorCode::None {
            return Err(BenchError::Topic { topic: topic.name, problem: topic.error.text() });
        }
        targets.extend(topic.partitions.into_iter().map(|partition| Target {
            topic: topic.name.clone(),
            topic_id: topic.topic_id,
            partition: partition.partition,
            leader: partition.leader,
        }));
    }
    Ok(Topology { nodes, targets })
}

/// Shares targets, given by who leads them, among `lines` connections: which targets each connection serves.
///
/// With at least as many connections as targets each connection has one target; else each target has one connection,
/// and as far as there are enough, all targets of a connection have the same leader.
pub(crate) fn assign(leaders: &[Option<u64>], lines: usize) -> Vec<Vec<usize>> {
    if lines >= leaders.len() {
        return (0..lines).map(|line| vec![line % leaders.len()]).collect();
    }
    let nodes: Vec<Option<u64>> = leaders.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let mut shares = vec![Vec::new(); lines];
    for (position, node) in nodes.iter().enumerate() {
        let mut own: Vec<usize> = (position..lines).step_by(nodes.len()).collect();
        if own.is_empty() {
            own.push(position % lines);
        }
        let led = (0..leaders.len()).filter(|target| leaders[*target] == *node);
        for (turn, target) in led.enumerate() {
            shares[own[turn % own.len()]].push(target);
        }
    }
    // A node that leads less than it has connections leaves some without work: they share the work of others.
    let busy: Vec<Vec<usize>> = shares.iter().filter(|share| !share.is_empty()).cloned().collect();
    for (turn, share) in shares.iter_mut().filter(|share| share.is_empty()).enumerate() {
        share.clone_from(&busy[turn % busy.len()]);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::Cluster;

    #[test]
    fn connections_share_few_partitions() {
        assert_eq!(assign(&[Some(1), Some(2)], 5), [[0], [1], [0], [1], [0]]);
    }

    #[test]
    fn many_partitions_go_to_connections_of_their_leader() {
        let leaders: Vec<_> = (0..100).map(|target| Some(target % 3)).collect();
        let shares = assign(&leaders, 8);
        let mut all: Vec<usize> = shares.concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        for share in &shares {
            assert!((11..=17).contains(&share.len()), "{shares:?}");
            assert!(share.iter().all(|target| leaders[*target] == leaders[share[0]]));
        }
    }

    #[test]
    fn too_few_connections_serve_several_leaders_and_none_is_idle() {
        let shares = assign(&[Some(1), Some(2), Some(3), Some(1)], 2);
        assert_eq!(shares, [vec![0, 3, 2], vec![1]]);
        let shares = assign(&[Some(1), Some(1), Some(1), Some(1), None], 4);
        assert!(shares.iter().all(|share| !share.is_empty()), "{shares:?}");
    }

    #[tokio::test]
    async fn only_missing_topics_are_created() {
        let cluster = Cluster::start(1, 2).await;
        cluster.hook(|request| {
            if let lnc_protocol::Request::CreateTopic(create) = request.request {
                assert_ne!(create.name, "t");
            }
            crate::support::Action::Serve
        });
        let client = cluster.client().await;
        let names = ["t".to_owned(), "u-0".to_owned(), "u-1".to_owned()];
        assert_eq!(create(&client, &names, 3).await.unwrap(), ["u-0", "u-1"]);
        let topology = look_up(&client, &names).await.unwrap();
        assert_eq!(topology.targets.len(), 2 + 3 + 3);
        let problem = look_up(&client, &["missing".to_owned()]).await.unwrap_err();
        assert!(problem.to_string().contains("missing"), "{problem}");
    }

    /// What was there before the run stays, whatever is asked for.
    #[test]
    fn what_a_run_has_created_goes_at_its_end_where_that_is_asked_for() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (cluster, client) = runtime.block_on(async {
            let cluster = Cluster::start(1, 1).await;
            let client = cluster.client().await;
            (cluster, client)
        });
        let there = || -> Vec<String> {
            let topics = runtime.block_on(client.metadata(None)).unwrap().topics;
            topics.into_iter().map(|topic| topic.name).collect()
        };
        let names = ["t".to_owned(), "u-0".to_owned(), "u-1".to_owned()];
        let created = runtime.block_on(create(&client, &names, 1)).unwrap();
        for (delete_topics, left) in [(false, 3), (true, 1)] {
            let args = ClusterArgs {
                endpoints: vec![cluster.address(1).to_owned()],
                topic: "u".into(),
                topics: 2,
                delete_topics,
                server_pids: Vec::new(),
            };
            clean_up(&args, &created);
            assert_eq!(there().len(), left, "{:?}", there());
        }
        assert_eq!(there(), ["t"]);
    }
}
