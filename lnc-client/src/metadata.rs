//! What the client knows of the cluster: the brokers' addresses and who leads which partition.
//!
//! All of it is hearsay. It decides where a request goes first, never whether the request is right: a broker that is
//! asked wrongly says so, and what it says is remembered here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lnc_protocol::message::{LeaderHint, MetadataResponse, TopicMetadata};
use lnc_protocol::{ErrorCode, MAX_ENTRIES};
use tokio::time::Instant;

use crate::error::Result;

/// The cache. The lock is held for look-ups and updates only, never while waiting.
#[derive(Default)]
pub(crate) struct Metadata {
    state: Mutex<State>,
    /// Held while a refresh is under way, so that many who need one share it.
    pub(crate) refreshing: tokio::sync::Mutex<Pace>,
}

/// How fast refreshes may follow one another. A leader is often replaced within milliseconds, so the second look comes
/// soon; but a thousand failing requests must not ask a thousand times.
#[derive(Default)]
pub(crate) struct Pace {
    span: Duration,
}

impl Pace {
    const SHORTEST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_millis(100);
    /// So long without a refresh, and the next ones may follow fast again.
    const REST: Duration = Duration::from_secs(1);

    /// The least time from the last refresh, so long ago, to the next one.
    pub(crate) fn distance(&mut self, ago: Duration) -> Duration {
        self.span =
            if ago >= Self::REST { Self::SHORTEST } else { (self.span * 2).clamp(Self::SHORTEST, Self::LONGEST) };
        self.span
    }
}

#[derive(Default)]
struct State {
    /// Counts the refreshes.
    generation: u64,
    refreshed_at: Option<Instant>,
    brokers: BTreeMap<u64, Arc<str>>,
    topics: BTreeMap<Arc<str>, Topic>,
    /// What the next refresh asks for, whoever makes it.
    wishes: Vec<Wish>,
}

/// Somebody wants to know of a topic, and shares the refresh that somebody else makes.
#[derive(Clone)]
pub(crate) struct Wish {
    topic: Arc<str>,
    answer: Arc<OnceLock<Result<()>>>,
}

impl Wish {
    /// How the refresh ended that asked for the topic; `None` if there was none.
    pub(crate) fn answer(&self) -> Option<Result<()>> {
        self.answer.get().cloned()
    }

    /// The refresh that asked for the topic has ended. A failure that would not pass may be of what others asked: then each
    /// asks by itself.
    pub(crate) fn fulfil(&self, result: &Result<()>) {
        if result.as_ref().is_err_and(|error| !error.is_retriable()) {
            return;
        }
        // It may have been so by an earlier one, of which the asker has not heard yet.
        let _ = self.answer.set(result.clone());
    }
}

struct Topic {
    id: u64,
    leaders: Vec<Leader>,
}

#[derive(Clone, Copy)]
struct Leader {
    node: Option<u64>,
    /// The term for which `node` leads; answers about older terms are out of date.
    term: u64,
}

/// A topic's identity, as producers and consumers need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicInfo {
    pub(crate) name: Arc<str>,
    pub(crate) id: u64,
    pub(crate) partitions: u32,
}

impl Metadata {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many refreshes there have been, and when the last one was.
    pub(crate) fn age(&self) -> (u64, Option<Instant>) {
        let state = self.lock();
        (state.generation, state.refreshed_at)
    }

    /// The topics worth asking about, as many as one request may name: those known so far.
    pub(crate) fn topics(&self) -> Vec<String> {
        self.lock().topics.keys().take(MAX_ENTRIES).map(|name| name.to_string()).collect()
    }

    /// Note that somebody wants to know of a topic.
    pub(crate) fn wish(&self, topic: &str) -> Wish {
        let wish = Wish { topic: topic.into(), answer: Arc::default() };
        self.lock().wishes.push(wish.clone());
        wish
    }

    /// What a refresh that is begun for `own` asks for: what everybody wants who has come, and then the topics known so far, as
    /// many as one request may name.
    pub(crate) fn ask(&self, own: Wish) -> (Vec<Wish>, Vec<String>) {
        let mut state = self.lock();
        // Whoever began a refresh before may have taken the wish and gone away.
        let mut wishes = vec![own];
        let more = state.wishes.len().min(MAX_ENTRIES - 1);
        wishes.extend(state.wishes.drain(..more));
        let mut names: BTreeSet<&str> = wishes.iter().map(|wish| &*wish.topic).collect();
        for known in state.topics.keys() {
            if names.len() >= MAX_ENTRIES {
                break;
            }
            names.insert(known);
        }
        let names = names.into_iter().map(str::to_owned).collect();
        (wishes, names)
    }

    pub(crate) fn topic(&self, name: &str) -> Option<TopicInfo> {
        let state = self.lock();
        let (name, topic) = state.topics.get_key_value(name)?;
        Some(TopicInfo { name: name.clone(), id: topic.id, partitions: topic.leaders.len() as u32 })
    }

    /// The addresses of all known brokers.
    pub(crate) fn brokers(&self) -> Vec<Arc<str>> {
        self.lock().brokers.values().cloned().collect()
    }

    /// The address of the partition's leader, if one is known.
    pub(crate) fn leader(&self, topic: &str, partition: u32) -> Option<Arc<str>> {
        let state = self.lock();
        let node = state.topics.get(topic)?.leaders.get(partition as usize)?.node?;
        state.brokers.get(&node).cloned()
    }

    /// Takes in a broker's answer. A topic it says does not exist is forgotten; one it did not speak of stays.
    pub(crate) fn update(&self, reply: &MetadataResponse) {
        let mut state = self.lock();
        state.generation += 1;
        state.refreshed_at = Some(Instant::now());
        if !reply.nodes.is_empty() {
            let nodes = reply.nodes.iter().filter(|node| !node.client_address.is_empty());
            state.brokers = nodes.map(|node| (node.id, node.client_address.as_str().into())).collect();
        }
        for topic in &reply.topics {
            match topic.error {
                ErrorCode::None => state.update_topic(topic),
                ErrorCode::UnknownTopic => {
                    state.topics.remove(topic.name.as_str());
                }
                _ => {}
            }
        }
    }

    /// Forgets a topic, because it was deleted or turned out to be another one.
    pub(crate) fn forget(&self, topic: &str) {
        self.lock().topics.remove(topic);
    }

    /// Notes that `address` does not lead the partition, or cannot be reached. What a later answer said stays.
    pub(crate) fn distrust(&self, topic: &str, partition: u32, address: &str) {
        let mut state = self.lock();
        let State { brokers, topics, .. } = &mut *state;
        if let Some(leader) = topics.get_mut(topic).and_then(|topic| topic.leaders.get_mut(partition as usize))
            && leader.node.and_then(|node| brokers.get(&node)).is_some_and(|known| **known == *address)
        {
            leader.node = None;
        }
    }

    /// Notes who leads the partition according to a broker that does not. True if that is news.
    pub(crate) fn redirect(&self, topic: &str, partition: u32, hint: &LeaderHint) -> bool {
        if hint.address.is_empty() {
            return false;
        }
        let mut state = self.lock();
        let State { brokers, topics, .. } = &mut *state;
        let Some(leader) = topics.get_mut(topic).and_then(|topic| topic.leaders.get_mut(partition as usize)) else {
            return false;
        };
        let news = leader.node != Some(hint.node_id)
            || brokers.get(&hint.node_id).is_none_or(|known| **known != *hint.address);
        leader.node = Some(hint.node_id);
        brokers.insert(hint.node_id, hint.address.as_str().into());
        news
    }
}

impl State {
    fn update_topic(&mut self, reply: &TopicMetadata) {
        let known = self.topics.get(reply.name.as_str()).filter(|topic| topic.id == reply.topic_id);
        let mut leaders = Vec::with_capacity(reply.partitions.len());
        for partition in &reply.partitions {
            let heard = Leader { node: partition.leader, term: partition.leader_term };
            let before = known.and_then(|topic| topic.leaders.get(partition.partition as usize));
            // A broker that lags behind may name a leader that was replaced.
            let best = before.copied().filter(|before| before.term > heard.term && before.node.is_some());
            leaders.push((partition.partition, best.unwrap_or(heard)));
        }
        leaders.sort_unstable_by_key(|(partition, _)| *partition);
        // Partitions are numbered from 0 without gaps; an answer that says otherwise cannot be used.
        if leaders.iter().enumerate().any(|(index, (partition, _))| index != *partition as usize) {
            return;
        }
        let leaders = leaders.into_iter().map(|(_, leader)| leader).collect();
        self.topics.insert(reply.name.as_str().into(), Topic { id: reply.topic_id, leaders });
    }
}

#[cfg(test)]
mod tests {
    use lnc_protocol::message::{NodeInfo, PartitionMetadata};

    use super::*;

    fn reply(topic_id: u64, leaders: &[(Option<u64>, u64)]) -> MetadataResponse {
        let node = |id: u64| NodeInfo { id, client_address: format!("broker-{id}:1992"), alive: true };
        let partition = |(partition, &(leader, leader_term)): (usize, &(Option<u64>, u64))| PartitionMetadata {
            partition: partition as u32,
            group: 1,
            leader,
            leader_term,
        };
        MetadataResponse {
            cluster_id: 1,
            nodes: vec![node(1), node(2)],
            topics: vec![TopicMetadata {
                name: "t".into(),
                topic_id,
                error: ErrorCode::None,
                partitions: leaders.iter().enumerate().map(partition).collect(),
            }],
        }
    }

    fn leader(metadata: &Metadata, partition: u32) -> Option<String> {
        metadata.leader("t", partition).map(|address| address.to_string())
    }

    #[test]
    fn an_older_term_does_not_replace_a_newer_one() {
        let metadata = Metadata::default();
        metadata.update(&reply(7, &[(Some(2), 5), (Some(1), 5)]));
        metadata.update(&reply(7, &[(Some(1), 4), (Some(2), 6)]));
        assert_eq!(leader(&metadata, 0).as_deref(), Some("broker-2:1992"));
        assert_eq!(leader(&metadata, 1).as_deref(), Some("broker-2:1992"));
    }

    #[test]
    fn a_topic_made_anew_starts_with_a_clean_slate() {
        let metadata = Metadata::default();
        metadata.update(&reply(7, &[(Some(2), 5)]));
        metadata.update(&reply(8, &[(Some(1), 1)]));
        assert_eq!(leader(&metadata, 0).as_deref(), Some("broker-1:1992"));
        assert_eq!(metadata.topic("t").map(|topic| topic.id), Some(8));
    }

    #[test]
    fn distrust_spares_a_leader_learned_since() {
        let metadata = Metadata::default();
        metadata.update(&reply(7, &[(Some(1), 1)]));
        let hint = LeaderHint { node_id: 2, address: "broker-2:1992".into() };
        assert!(metadata.redirect("t", 0, &hint));
        assert!(!metadata.redirect("t", 0, &hint), "the same hint is no news");
        metadata.distrust("t", 0, "broker-1:1992");
        assert_eq!(leader(&metadata, 0).as_deref(), Some("broker-2:1992"));
        metadata.distrust("t", 0, "broker-2:1992");
        assert_eq!(leader(&metadata, 0), None);
    }

    #[test]
    fn refreshes_follow_fast_at_first_then_slower_and_fast_again_after_a_rest() {
        let mut pace = Pace::default();
        let distances: Vec<u128> = (0..7).map(|_| pace.distance(Duration::ZERO).as_millis()).collect();
        assert_eq!(distances, [5, 10, 20, 40, 80, 100, 100]);
        assert_eq!(pace.distance(Pace::REST), Pace::SHORTEST);
    }

    #[test]
    fn partitions_with_gaps_are_not_believed() {
        let metadata = Metadata::default();
        let mut odd = reply(7, &[(Some(1), 1), (Some(1), 1)]);
        odd.topics[0].partitions[1].partition = 9;
        metadata.update(&odd);
        assert_eq!(metadata.topic("t"), None);
    }
}
