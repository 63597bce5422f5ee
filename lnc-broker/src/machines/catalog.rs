//! The state machine of the meta group: topics, producer ids and members. Deterministic.

use crate::machines::command::{
    CommandError, check_topic, get_options, get_string, get_u32, get_u64, put_options, put_string,
};
use crate::machines::members::Members;
use bytes::{BufMut, Bytes, BytesMut};
use lnc_log::journal::GroupId;
use lnc_log::segment::PartitionKey;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::ErrorCode;
use lnc_protocol::message::TopicOptions;
use std::collections::BTreeMap;

/// The group that holds the catalog.
pub const META: GroupId = GroupId(0);

/// A topic. Its id is never used again, so a name that is deleted and made anew is another topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topic {
    /// Unique for the life of the cluster.
    pub id: u64,
    /// Unique at any time.
    pub name: String,
    /// Number of partitions.
    pub partitions: u32,
    /// Number of data groups over which they are placed.
    pub data_groups: u32,
    /// Settings.
    pub options: TopicOptions,
    /// When the leader made it, in milliseconds since the Unix epoch.
    pub created_ms: u64,
}

impl Topic {
    /// The data group of a partition.
    pub fn group_of(&self, partition: u32) -> GroupId {
        let groups = u64::from(self.data_groups.max(1));
        GroupId(1 + ((self.id + u64::from(partition)) % groups) as u32)
    }

    /// The key of a partition.
    pub fn key(&self, partition: u32) -> PartitionKey {
        PartitionKey { topic_id: self.id, partition }
    }

    /// Every partition's key.
    pub fn keys(&self) -> impl Iterator<Item = PartitionKey> + '_ {
        (0..self.partitions).map(|partition| self.key(partition))
    }
}

/// Why a topic was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// The name is taken by a topic with other settings.
    Exists(Box<Topic>),
}

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    next_topic_id: u64,
    next_producer_id: u64,
    /// By id: requests that carry one, which is most of them, need no search by name.
    topics: BTreeMap<u64, Topic>,
    ids: BTreeMap<String, u64>,
    members: Members,
    /// Formats after the first that the cluster was raised to.
    raised: u32,
}

/// More topics and producers than there will ever be.
const MAX_ID: u64 = u64::MAX / 4;

/// The format of a cluster that was never raised.
const FIRST_FORMAT: u32 = 1;

impl Catalog {
    /// The format of the cluster: what later ones add is not used, so that versions without them can take part.
    pub fn format(&self) -> u32 {
        FIRST_FORMAT + self.raised
    }

    /// Raise it. It never goes back.
    pub fn raise_format(&mut self, format: u32) {
        self.raised = self.raised.max(format.saturating_sub(FIRST_FORMAT));
    }

    /// Who belongs to the cluster.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The same, to change it.
    pub fn members_mut(&mut self) -> &mut Members {
        &mut self.members
    }

    /// Make a topic. Making it again with the same settings gives the one that exists; `true` if it is new.
    pub fn create(
        &mut self,
        name: &str,
        partitions: u32,
        data_groups: u32,
        options: &TopicOptions,
        now_ms: u64,
    ) -> Result<(Topic, bool), CreateError> {
        if let Some(topic) = self.topic(name) {
            return if topic.partitions == partitions && topic.options == *options {
                Ok((topic.clone(), false))
            } else {
                Err(CreateError::Exists(Box::new(topic.clone())))
            };
        }
        self.next_topic_id += 1;
        let topic = Topic {
            id: self.next_topic_id,
            name: name.to_owned(),
            partitions,
            data_groups,
            options: options.clone(),
            created_ms: now_ms,
        };
        self.ids.insert(name.to_owned(), topic.id);
        self.topics.insert(topic.id, topic.clone());
        Ok((topic, true))
    }

    /// Remove a topic; gives it back if it existed.
    pub fn delete(&mut self, name: &str) -> Option<Topic> {
        let id = self.ids.remove(name)?;
        self.topics.remove(&id)
    }

    /// A producer id that nobody has had before.
    pub fn init_producer(&mut self) -> u64 {
        self.next_producer_id += 1;
        self.next_producer_id
    }

    /// A topic by name.
    pub fn topic(&self, name: &str) -> Option<&Topic> {
        self.ids.get(name).and_then(|id| self.topics.get(id))
    }

    /// The topic of this name, of which a client says that it has this id (0: it does not know).
    fn named(&self, name: &str, id: u64) -> Option<&Topic> {
        let expected = self.topics.get(&id).filter(|topic| topic.name == name);
        expected.or_else(|| self.topic(name))
    }

    /// Whether this replica can tell what a client means that names a topic and perhaps its id (0: any): it has a topic
    /// of that name, and not only one that is older than the id.
    pub fn knows(&self, name: &str, id: u64) -> bool {
        self.named(name, id).is_some_and(|topic| id <= topic.id)
    }

    /// A topic by id.
    pub fn topic_by_id(&self, id: u64) -> Option<&Topic> {
        self.topics.get(&id)
    }

    /// The partition that a request means, and its group; else what to answer. `topic_id` 0 means any topic of the name.
    pub fn resolve(
        &self,
        name: &str,
        topic_id: u64,
        partition: u32,
    ) -> Result<(PartitionKey, GroupId), (ErrorCode, String)> {
        let Some(topic) = self.named(name, topic_id) else {
            return Err((ErrorCode::UnknownTopic, format!("topic {name:?} does not exist")));
        };
        if topic_id != 0 && topic_id != topic.id {
            let message =
                format!("topic {name:?} has id {}, not {topic_id}: it was deleted and created anew", topic.id);
            return Err((ErrorCode::TopicIdMismatch, message));
        }
        if partition >= topic.partitions {
            let message = format!("topic {name:?} has partitions 0 to {}, not {partition}", topic.partitions - 1);
            return Err((ErrorCode::UnknownPartition, message));
        }
        Ok((topic.key(partition), topic.group_of(partition)))
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Topic> {
        self.ids.values().map(|id| &self.topics[id])
    }

    /// Whether this id was given to a topic that has been deleted since. An id that this replica has not seen yet is
    /// not: its creation may be on its way.
    pub fn was_deleted(&self, topic_id: u64) -> bool {
        topic_id <= self.next_topic_id && !self.topics.contains_key(&topic_id)
    }

    /// The state for a checkpoint.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.next_topic_id);
        out.put_u64_le(if mutated(Mutation::ForgetProducerIds) { 0 } else { self.next_producer_id });
        out.put_u32_le(self.topics.len() as u32);
        for topic in self.topics() {
            out.put_u64_le(topic.id);
            put_string(out, &topic.name);
            out.put_u32_le(topic.partitions);
            out.put_u32_le(topic.data_groups);
            put_options(out, &topic.options);
            out.put_u64_le(topic.created_ms);
        }
        self.members.encode(out);
        // The first format has no place for itself.
        if self.raised > 0 {
            out.put_u32_le(self.raised);
        }
    }

    /// The state from a checkpoint.
    pub fn decode(from: &mut Bytes) -> Result<Self, CommandError> {
        let mut catalog = Self { next_topic_id: get_u64(from)?, next_producer_id: get_u64(from)?, ..Self::default() };
        for _ in 0..get_u32(from)? {
            let topic = Topic {
                id: get_u64(from)?,
                name: get_string(from)?,
                partitions: get_u32(from)?,
                data_groups: get_u32(from)?,
                options: get_options(from)?,
                created_ms: get_u64(from)?,
            };
            check_topic(&topic.name, topic.partitions, topic.data_groups)?;
            let known = catalog.ids.insert(topic.name.clone(), topic.id);
            if known.is_some() || catalog.topics.insert(topic.id, topic).is_some() {
                return Err(CommandError("a topic that is there twice"));
            }
        }
        if catalog.next_topic_id.max(catalog.next_producer_id) > MAX_ID {
            return Err(CommandError("the next number of a topic or producer"));
        }
        catalog.members = Members::decode(from)?;
        if !from.is_empty() {
            catalog.raised = get_u32(from).ok().filter(|raised| *raised > 0).ok_or(CommandError("the format"))?;
        }
        Ok(catalog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creation_is_idempotent_for_the_same_settings_only() {
        let mut catalog = Catalog::default();
        let options = TopicOptions::default();
        let (first, new) = catalog.create("words", 3, 3, &options, 5).unwrap();
        assert!(new);
        assert_eq!(catalog.create("words", 3, 3, &options, 9), Ok((first.clone(), false)));
        assert_eq!(catalog.create("words", 4, 3, &options, 9), Err(CreateError::Exists(Box::new(first.clone()))));
        assert_eq!(catalog.delete("words"), Some(first.clone()));
        assert!(catalog.was_deleted(first.id));
        assert!(!catalog.was_deleted(first.id + 1), "an id not seen yet is not a deleted one");
        let (second, _) = catalog.create("words", 3, 3, &options, 9).unwrap();
        assert_ne!(first.id, second.id);
    }

    #[test]
    fn state_survives_a_checkpoint() {
        let mut catalog = Catalog::default();
        let options = TopicOptions { max_age_ms: Some(1), max_bytes: Some(2), segment_bytes: None };
        catalog.create("a", 1, 3, &options, 5).unwrap();
        catalog.create("b", 2, 3, &TopicOptions::default(), 6).unwrap();
        catalog.delete("a");
        catalog.init_producer();
        let encoded = |catalog: &Catalog| {
            let mut out = BytesMut::new();
            catalog.encode(&mut out);
            out.freeze()
        };
        let first = encoded(&catalog);
        assert_eq!(Catalog::decode(&mut first.clone()), Ok(catalog.clone()));
        assert_eq!(catalog.format(), 1);
        for _ in 0..2 {
            catalog.raise_format(2);
            catalog.raise_format(1);
        }
        assert_eq!(catalog.format(), 2);
        assert_eq!(encoded(&catalog).len(), first.len() + 4, "before it is raised, it is what 0.1.0 reads");
        assert_eq!(Catalog::decode(&mut encoded(&catalog)), Ok(catalog));
    }

    #[test]
    fn a_state_that_names_a_topic_twice_is_refused() {
        let mut catalog = Catalog::default();
        catalog.create("a", 1, 3, &TopicOptions::default(), 5).unwrap();
        let mut out = BytesMut::new();
        catalog.encode(&mut out);
        let topic = out.split_off(20);
        out[16] = 2;
        for other_id in [0, 1] {
            let mut twice = [&out[..], &topic, &topic].concat();
            twice[20 + topic.len()] ^= other_id;
            assert!(Catalog::decode(&mut twice.into()).is_err());
        }
    }

    #[test]
    fn partitions_of_a_topic_spread_over_the_groups() {
        let (topic, _) = Catalog::default().create("words", 3, 3, &TopicOptions::default(), 0).unwrap();
        let groups: std::collections::BTreeSet<_> = (0..3).map(|p| topic.group_of(p)).collect();
        assert_eq!(groups, [1, 2, 3].map(GroupId).into());
    }
}
