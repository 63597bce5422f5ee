//! Topics and the state of the cluster.

use std::sync::Arc;
use std::time::Duration;

use lnc_protocol::ErrorCode;
use lnc_protocol::message::{
    ChangeMembersRequest, ClusterInfoResponse, CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest,
    ListOffsetsPartition, ListOffsetsRequest, MetadataRequest, MetadataResponse, OffsetSpec, RaiseFormatRequest,
    Request, Response, TopicDescription, TopicMetadata, TopicOptions, TopicSummary,
};
use tokio::time::Instant;

use crate::client::{Call, Client, Outcome, unexpected};
use crate::error::{Error, Operation, Result};

/// An offset and, where it belongs to a record, that record's timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset.
    pub offset: u64,
    /// The timestamp in milliseconds since 1970, if known.
    pub timestamp_ms: Option<i64>,
}

/// A topic as one node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTopic {
    /// The name.
    pub name: String,
    /// The id.
    pub topic_id: u64,
    /// How many partitions it has.
    pub partitions: u32,
}

/// Takes a response of the expected kind out of an outcome.
macro_rules! expect {
    ($outcome:expr, $operation:expr, $pattern:pat => $value:expr) => {{
        let outcome: Outcome = $outcome;
        match outcome.response {
            $pattern => Ok($value),
            _ => Err(unexpected(&outcome.address, &$operation)),
        }
    }};
}

impl Client {
    /// Asks a broker for a sign of life and returns how long that took.
    pub async fn ping(&self) -> Result<Duration> {
        let start = Instant::now();
        self.call(Call::new(Operation::new("ping"), Request::Ping)).await?;
        Ok(start.elapsed())
    }

    /// Creates a topic with the cluster's default settings. Fails if it exists; see [`Client::ensure_topic`].
    pub async fn create_topic(&self, name: &str, partitions: u32) -> Result<TopicDescription> {
        self.create_topic_with_retention(name, partitions, TopicOptions::default()).await
    }

    /// Creates a topic, with limits on the age and size of what it keeps.
    pub async fn create_topic_with_retention(
        &self,
        name: &str,
        partitions: u32,
        options: TopicOptions,
    ) -> Result<TopicDescription> {
        let operation = Operation::on_topic("create topic", name);
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            options: options.clone(),
            timeout_ms: Client::broker_timeout_ms(self.call_timeout()),
        };
        match self.call(Call::new(operation.clone(), Request::CreateTopic(request))).await {
            Ok(outcome) => expect!(outcome, operation, Response::CreateTopic(topic) => topic),
            // An attempt whose answer was lost may be what created it.
            Err(failure) if failure.repeated && failure.error.code() == Some(ErrorCode::TopicExists) => {
                let topic = self.describe_topic(name).await?;
                let as_asked = topic.partitions.len() == partitions as usize && topic.options == options;
                if as_asked { Ok(topic) } else { Err(failure.error) }
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// Creates a topic unless one of this name exists, whatever its settings.
    pub async fn ensure_topic(&self, name: &str, partitions: u32) -> Result<TopicDescription> {
        match self.create_topic(name, partitions).await {
            Err(error) if error.code() == Some(ErrorCode::TopicExists) => self.describe_topic(name).await,
            result => result,
        }
    }

    /// Deletes a topic and all its records.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        let operation = Operation::on_topic("delete topic", name);
        let request =
            DeleteTopicRequest { name: name.to_owned(), timeout_ms: Client::broker_timeout_ms(self.call_timeout()) };
        let result = self.call(Call::new(operation.clone(), Request::DeleteTopic(request))).await;
        self.metadata_cache().forget(name);
        match result {
            Ok(outcome) => expect!(outcome, operation, Response::DeleteTopic => ()),
            // An attempt whose answer was lost may be what deleted it.
            Err(failure) if failure.repeated && failure.error.code() == Some(ErrorCode::UnknownTopic) => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    /// All topics, in the order of their names.
    pub async fn list_topics(&self) -> Result<Vec<TopicSummary>> {
        let operation = Operation::new("list topics");
        let outcome = self.call(Call::new(operation.clone(), Request::ListTopics)).await?;
        expect!(outcome, operation, Response::ListTopics(topics) => topics)
    }

    /// All topics that the node which answers knows of, in the order of their names, each with its number of partitions:
    /// also where the cluster has no majority, and no leader who could say that it is all.
    pub async fn known_topics(&self) -> Result<Vec<KnownTopic>> {
        let operation = Operation::new("list known topics");
        let request = Request::Metadata(MetadataRequest { topics: None });
        let outcome = self.call(Call::new(operation.clone(), request)).await?;
        let known = |topic: TopicMetadata| KnownTopic {
            name: topic.name,
            topic_id: topic.topic_id,
            partitions: topic.partitions.len() as u32,
        };
        expect!(outcome, operation, Response::Metadata(all) => all.topics.into_iter().map(known).collect())
    }

    /// One topic's settings and the extent of its partitions.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription> {
        let operation = Operation::on_topic("describe topic", name);
        let request = Request::DescribeTopic(DescribeTopicRequest { name: name.to_owned() });
        let outcome = self.call(Call::new(operation.clone(), request)).await?;
        expect!(outcome, operation, Response::DescribeTopic(topic) => topic)
    }

    /// The brokers, and who leads the partitions of the given topics (of all topics if `None`).
    pub async fn metadata(&self, topics: Option<&[&str]>) -> Result<MetadataResponse> {
        let operation = Operation::new("metadata");
        let topics = topics.map(|names| names.iter().map(|name| name.to_string()).collect());
        let request = Request::Metadata(MetadataRequest { topics });
        let outcome = self.call(Call::new(operation.clone(), request)).await?;
        let response = expect!(outcome, operation, Response::Metadata(response) => response)?;
        self.metadata_cache().update(&response);
        Ok(response)
    }

    /// The state of the brokers and Raft groups, as the broker sees it that answers.
    pub async fn cluster_info(&self) -> Result<ClusterInfoResponse> {
        let operation = Operation::new("cluster info");
        let outcome = self.call(Call::new(operation.clone(), Request::ClusterInfo)).await?;
        expect!(outcome, operation, Response::ClusterInfo(info) => info)
    }

    /// Changes who belongs to the cluster. Returns when the change is decided; [`Client::cluster_info`] shows how far the
    /// groups have followed. Asking for what is so already changes nothing, so it may be repeated.
    pub async fn change_members(&self, request: ChangeMembersRequest) -> Result<()> {
        let operation = Operation::new("change members");
        let outcome = self.call(Call::new(operation.clone(), Request::ChangeMembers(request))).await?;
        expect!(outcome, operation, Response::ChangeMembers => ())
    }

    /// Raises the format of the cluster, for good: versions of the broker that do not speak it cannot come back. Returns
    /// when it is decided; it may be repeated.
    pub async fn raise_format(&self, format: u32) -> Result<()> {
        let operation = Operation::new("raise format");
        let timeout_ms = Client::broker_timeout_ms(self.call_timeout());
        let request = Request::RaiseFormat(RaiseFormatRequest { format, timeout_ms });
        let outcome = self.call(Call::new(operation.clone(), request)).await?;
        expect!(outcome, operation, Response::RaiseFormat => ())
    }

    /// The earliest or latest offset of a partition, or that of the first record at or after a time; a time beyond
    /// the last record gives the latest offset.
    pub async fn list_offset(&self, topic: &str, partition: u32, spec: OffsetSpec) -> Result<ListedOffset> {
        let topic = self.topic(topic).await?.name;
        self.offset_of(&topic, 0, partition, spec).await
    }

    /// [`Client::list_offset`] for several partitions of a topic, all asked at the same time.
    pub async fn list_offsets(
        &self,
        topic: &str,
        partitions: impl IntoIterator<Item = (u32, OffsetSpec)>,
    ) -> Result<Vec<(u32, ListedOffset)>> {
        let topic = self.topic(topic).await?;
        self.offsets_of(&topic.name, topic.id, partitions).await
    }

    pub(crate) async fn offsets_of(
        &self,
        topic: &Arc<str>,
        topic_id: u64,
        partitions: impl IntoIterator<Item = (u32, OffsetSpec)>,
    ) -> Result<Vec<(u32, ListedOffset)>> {
        let mut questions = tokio::task::JoinSet::new();
        for (partition, spec) in partitions {
            let (client, topic) = (self.clone(), topic.clone());
            questions.spawn(async move { (partition, client.offset_of(&topic, topic_id, partition, spec).await) });
        }
        let mut offsets = Vec::new();
        while let Some(answer) = questions.join_next().await {
            // A question that was cancelled or panicked has no answer to give.
            let (partition, offset) = answer.map_err(|_| Error::Closed)?;
            offsets.push((partition, offset?));
        }
        offsets.sort_unstable_by_key(|(partition, _)| *partition);
        Ok(offsets)
    }

    async fn offset_of(
        &self,
        topic: &Arc<str>,
        topic_id: u64,
        partition: u32,
        spec: OffsetSpec,
    ) -> Result<ListedOffset> {
        let operation = Operation::on_partition("list offsets", topic, partition);
        let asked = ListOffsetsPartition { topic: topic.to_string(), topic_id, partition, spec };
        let request = Request::ListOffsets(ListOffsetsRequest { partitions: vec![asked] });
        let call = Call::new(operation.clone(), request).at_leader(topic, partition);
        let outcome = self.call(call).await?;
        match outcome.response {
            // `call` has turned the partition's error into its own.
            Response::ListOffsets(found) if found.len() == 1 && found[0].partition == partition => Ok(ListedOffset {
                offset: found[0].offset,
                timestamp_ms: Some(found[0].timestamp_ms).filter(|timestamp| *timestamp >= 0),
            }),
            _ => Err(unexpected(&outcome.address, &operation)),
        }
    }
}
