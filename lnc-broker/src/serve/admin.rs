//! Topics, the cluster as clients see it, and the chores that keep data groups in step with the catalog.

use crate::log::proposals::{Kind, Origin};
use crate::machines::catalog::{META, Topic};
use crate::machines::command::Command;
use crate::machines::members::Addresses;
use crate::machines::partitions::{WHOLE_TOPICS_SINCE_FORMAT, whole_topic};
use crate::serve::passed_on::Patience;
use crate::{Broker, Caller};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::PartitionKey;
use lnc_protocol::message::{
    ClusterInfoResponse, CreateTopicRequest, DeleteTopicRequest, GroupStatus, HelloRequest, HelloResponse,
    MetadataRequest, MetadataResponse, NodeInfo, NodeStatus, Opcode, PartitionDescription, PartitionMetadata,
    PeerProgress, Response, TopicDescription, TopicMetadata, TopicOptions, TopicSummary, TransferStatus,
    UNKNOWN_PROGRESS,
};
use lnc_protocol::{ErrorCode, PROTOCOL_VERSION, names, trace};
use lnc_raft::{NodeId, Role, Status};
use std::collections::{BTreeMap, BTreeSet};

/// Smallest segment that a topic may ask for, in bytes.
const MIN_SEGMENT_BYTES: u64 = 1 << 20;

impl<D: Disk> Broker<D> {
    pub(crate) fn hello(&mut self, caller: Caller, hello: HelloRequest) {
        if hello.min_version > PROTOCOL_VERSION || hello.max_version < PROTOCOL_VERSION {
            let message = format!(
                "this broker speaks version {PROTOCOL_VERSION}, the client versions {} to {}",
                hello.min_version, hello.max_version
            );
            return self.refuse(caller, Opcode::Hello, ErrorCode::UnsupportedVersion, message);
        }
        let response = HelloResponse {
            version: PROTOCOL_VERSION,
            features: hello.features & trace::FEATURE,
            cluster_id: self.config.cluster_id,
            node_id: self.config.node.node(),
            server_name: concat!("lance/", env!("CARGO_PKG_VERSION")).to_owned(),
            max_frame_bytes: self.config.max_frame_bytes as u32,
            max_batch_bytes: self.config.max_batch_bytes as u32,
        };
        self.reply(caller, Opcode::Hello, Response::Hello(response));
    }

    pub(crate) fn create_topic(&mut self, caller: Caller, request: CreateTopicRequest, body: Bytes) {
        let opcode = Opcode::CreateTopic;
        if let Err(error) = names::validate(&request.name) {
            return self.refuse(caller, opcode, ErrorCode::InvalidTopicName, error.to_string());
        }
        if let Err(message) = self.check_settings(request.partitions, &request.options) {
            return self.refuse(caller, opcode, ErrorCode::InvalidTopicSettings, message);
        }
        if !self.decides(caller, opcode, META, &body) {
            return;
        }
        if self.leadership.is_draining() {
            return self.refuse_new_work(caller, opcode);
        }
        if self.shard.journal().is_full() {
            return self.refuse_for_the_journal(caller, opcode);
        }
        let topics = self.catalog.topics().len();
        if topics >= self.config.max_topics && self.catalog.topic(&request.name).is_none() {
            let message = format!("the cluster has {topics} topics, the limit is {}", self.config.max_topics);
            return self.refuse(caller, opcode, ErrorCode::TooManyTopics, message);
        }
        let command = Command::CreateTopic {
            name: request.name,
            partitions: request.partitions,
            data_groups: self.config.data_groups,
            options: request.options,
        };
        self.submit_admin(caller, opcode, &command, Kind::CreateTopic);
    }

    fn check_settings(&self, partitions: u32, options: &TopicOptions) -> Result<(), String> {
        let max = self.config.max_partitions_per_topic;
        if partitions == 0 || partitions > max {
            return Err(format!("{partitions} partitions were asked for, allowed are 1 to {max}"));
        }
        if options.max_age_ms == Some(0) {
            return Err("a maximum age of 0 would delete everything: leave it out to keep everything".into());
        }
        if options.max_bytes == Some(0) {
            return Err("a maximum size of 0 would delete everything: leave it out to keep everything".into());
        }
        if let Some(bytes) = options.segment_bytes.filter(|bytes| *bytes < MIN_SEGMENT_BYTES) {
            return Err(format!(
                "segments of {bytes} bytes were asked for, the smallest allowed is {MIN_SEGMENT_BYTES}"
            ));
        }
        Ok(())
    }

    pub(crate) fn delete_topic(&mut self, caller: Caller, request: DeleteTopicRequest, body: Bytes) {
        let opcode = Opcode::DeleteTopic;
        if !self.decides(caller, opcode, META, &body) {
            return;
        }
        if self.leadership.is_draining() {
            return self.refuse_new_work(caller, opcode);
        }
        let command = Command::DeleteTopic { name: request.name };
        self.submit_admin(caller, opcode, &command, Kind::DeleteTopic);
    }

    pub(crate) fn init_producer(&mut self, caller: Caller, body: Bytes) {
        if !self.decides(caller, Opcode::InitProducer, META, &body) {
            return;
        }
        if self.shard.journal().is_full() {
            return self.refuse_for_the_journal(caller, Opcode::InitProducer);
        }
        self.submit_admin(caller, Opcode::InitProducer, &Command::InitProducer, Kind::InitProducer);
    }

    /// There is no space for the journal's next file: what is left of this one is for votes and for what makes room.
    fn refuse_for_the_journal(&mut self, caller: Caller, opcode: Opcode) {
        let (node, left) = (self.config.node, self.space_left());
        let message = format!("node {node} has no space left in its data directory for the journal to go on: {left}");
        self.refuse(caller, opcode, ErrorCode::StorageFull, message);
    }

    /// Have the meta group decide a client's command.
    pub(crate) fn submit_admin(&mut self, caller: Caller, opcode: Opcode, command: &Command, kind: Kind) {
        let Patience { since_us, deadline_us } = self.patience();
        self.submit(META, command, Some(Origin { caller, opcode, bytes: 0, since_us, deadline_us, kind }));
    }

    pub(crate) fn has_partition(&self, topic: &Topic, key: PartitionKey) -> bool {
        self.groups.get(&topic.group_of(key.partition)).is_some_and(|data| data.state.get(key).is_some())
    }

    /// Bring the partitions of the groups that this node leads in line with the catalog: the catalog says what should
    /// be, each data group's log makes it so. Only ids that the catalog has given out and dropped are deleted; one that
    /// this replica has not seen yet is not.
    pub(crate) fn reconcile_partitions(&mut self) {
        if !std::mem::take(&mut self.reconcile) {
            return;
        }
        let whole_topics = self.format() >= WHOLE_TOPICS_SINCE_FORMAT;
        let mut commands: Vec<(GroupId, PartitionKey, Command)> = Vec::new();
        for topic in self.catalog.topics() {
            for key in topic.keys().filter(|key| !self.has_partition(topic, *key)) {
                let segment_bytes = Some(topic.options.segment_bytes.unwrap_or(self.config.segment_bytes));
                commands.push((topic.group_of(key.partition), key, Command::CreatePartition { key, segment_bytes }));
            }
        }
        for (group, data) in &self.groups {
            let gone = data.state.iter().map(|(key, _)| key).filter(|key| self.catalog.was_deleted(key.topic_id));
            if whole_topics {
                let topics = gone.map(|key| key.topic_id).chain(self.unmade_topics(*group)).collect::<BTreeSet<u64>>();
                let delete = |topic_id| (*group, whole_topic(topic_id), Command::DeleteTopicPartitions { topic_id });
                commands.extend(topics.into_iter().map(delete));
            } else {
                commands.extend(gone.map(|key| (*group, key, Command::DeletePartition { key })));
            }
        }
        for (group, key, command) in commands {
            let leads = self.shard.is_leader(group) && !self.has_backlog(group);
            let fresh = leads && self.groups.get_mut(&group).is_some_and(|data| data.reconciling.insert(key));
            if fresh {
                self.submit(group, &command, None);
            }
        }
    }

    pub(crate) fn metadata(&mut self, caller: Caller, request: MetadataRequest) {
        // Without a leader of the catalog nobody could be asked: the topic may exist.
        let known = self.shard.leader(META).is_some();
        let missing = if known { ErrorCode::UnknownTopic } else { ErrorCode::LeaderUnknown };
        // Each name once, however often it was said.
        let mut seen = BTreeSet::new();
        let once = |names: Vec<String>| names.into_iter().filter(|name| seen.insert(name.clone())).collect();
        let names: Option<Vec<String>> = request.topics.map(once);
        let known_of = |name: &String| (name.len(), self.catalog.topic(name).map_or(0, |topic| topic.partitions));
        let fits = match &names {
            None => self.fits_a_reply(self.catalog.topics().map(|topic| (topic.name.len(), topic.partitions))),
            Some(names) => self.fits_a_reply(names.iter().map(known_of)),
        };
        if let Err(message) = fits {
            return self.refuse(caller, Opcode::Metadata, ErrorCode::InvalidRequest, message);
        }
        let leaders = self.leaders();
        let topics = match names {
            None => self.catalog.topics().map(|topic| topic_metadata(topic, &leaders)).collect(),
            Some(names) => names
                .into_iter()
                .map(|name| match self.catalog.topic(&name) {
                    Some(topic) => topic_metadata(topic, &leaders),
                    None => TopicMetadata { name, topic_id: 0, error: missing, partitions: Vec::new() },
                })
                .collect(),
        };
        let members = self.membership();
        let nodes = members.nodes.iter().map(|(id, node)| NodeInfo {
            id: *id,
            client_address: node.client.clone(),
            alive: *id == self.config.node.node() || self.peers.is_node_connected(*id),
        });
        let response = MetadataResponse { cluster_id: self.config.cluster_id, nodes: nodes.collect(), topics };
        self.reply(caller, Opcode::Metadata, Response::Metadata(response));
    }

    /// Who leads each group, and in which term.
    fn leaders(&self) -> BTreeMap<GroupId, (Option<u64>, u64)> {
        let of = |group| {
            (self.shard.leader(group).map(NodeId::node), self.shard.status(group).map_or(0, |status| status.term))
        };
        self.shard.group_ids().map(|group| (group, of(group))).collect()
    }

    pub(crate) fn list_topics(&mut self, caller: Caller) {
        let summary = |topic: &Topic| TopicSummary {
            name: topic.name.clone(),
            topic_id: topic.id,
            partitions: topic.partitions,
            options: topic.options.clone(),
        };
        let topics = self.catalog.topics().map(summary).collect();
        self.reply(caller, Opcode::ListTopics, Response::ListTopics(topics));
    }

    pub(crate) fn describe_topic(&mut self, caller: Caller, name: &str) {
        self.storage.hand_over();
        match self.catalog.topic(name) {
            Some(topic) => {
                let description = self.describe(topic);
                self.reply(caller, Opcode::DescribeTopic, Response::DescribeTopic(description));
            }
            None => {
                let message = format!("topic {name:?} does not exist");
                self.refuse(caller, Opcode::DescribeTopic, ErrorCode::UnknownTopic, message);
            }
        }
    }

    pub(crate) fn describe(&self, topic: &Topic) -> TopicDescription {
        TopicDescription {
            name: topic.name.clone(),
            topic_id: topic.id,
            options: topic.options.clone(),
            created_ms: topic.created_ms,
            partitions: topic.keys().map(|key| self.describe_partition(topic, key)).collect(),
        }
    }

    pub(crate) fn describe_partition(&self, topic: &Topic, key: PartitionKey) -> PartitionDescription {
        let group = topic.group_of(key.partition);
        let state = self.groups.get(&group).and_then(|data| data.state.get(key));
        PartitionDescription {
            partition: key.partition,
            group: group.0,
            leader: self.shard.leader(group).map(NodeId::node),
            log_start_offset: state.map_or(0, |state| state.log_start_offset),
            high_watermark: state.map_or(0, |state| state.log_end_offset),
            size_bytes: self.storage.handed_over().size_bytes(key),
        }
    }

    pub(crate) fn cluster_info(&mut self, caller: Caller) {
        let response = self.cluster_status();
        self.reply(caller, Opcode::ClusterInfo, Response::ClusterInfo(response));
    }

    pub(crate) fn cluster_status(&self) -> ClusterInfoResponse {
        let nodes = self.node_statuses();
        let groups = self.shard.group_ids().filter_map(|group| self.group_status(group)).collect();
        let transfer = |(group, from, bytes_done, bytes_total): (GroupId, NodeId, u64, u64)| TransferStatus {
            group: group.0,
            from: from.node(),
            bytes_done,
            bytes_total,
        };
        let transfers = self.transfers.progress().map(transfer).collect();
        let (cluster_id, node_id) = (self.config.cluster_id, self.config.node.node());
        ClusterInfoResponse { cluster_id, node_id, nodes, groups, transfers }
    }

    fn group_status(&self, group: GroupId) -> Option<GroupStatus> {
        if let Some(lost) = self.shard.lost_entries(group) {
            return Some(GroupStatus {
                group: group.0,
                role: "repairing".to_owned(),
                leader: None,
                term: self.shard.hard_state(group).term,
                commit_index: 0,
                applied_index: self.applied_index(group),
                durable_index: 0,
                last_index: 0,
                first_index: 0,
                peers: Vec::new(),
                voters: Vec::new(),
                outgoing: Vec::new(),
                learners: Vec::new(),
                lacks: format!("waits for {lost} entries that its damaged journal lost"),
            });
        }
        let status = self.shard.status(group)?;
        let peer = |peer: &lnc_raft::Progress| PeerProgress {
            member: peer.id.0,
            match_index: peer.match_index,
            next_index: peer.next_index,
            state: match peer.known {
                true => peer.state.name().to_owned(),
                false => UNKNOWN_PROGRESS.to_owned(),
            },
            in_flight: peer.in_flight as u32,
            lag: status.last.saturating_sub(peer.match_index),
        };
        Some(GroupStatus {
            group: group.0,
            role: self.role_name(&status),
            leader: status.leader.map(NodeId::node),
            term: status.term,
            commit_index: status.commit,
            applied_index: self.applied_index(group),
            durable_index: status.durable,
            last_index: status.last,
            first_index: status.first_index,
            peers: status.peers.iter().map(peer).collect(),
            voters: status.configuration.voters.iter().map(|id| id.0).collect(),
            outgoing: status.configuration.outgoing.iter().map(|id| id.0).collect(),
            learners: status.configuration.learners.iter().map(|id| id.0).collect(),
            lacks: String::new(),
        })
    }

    fn role_name(&self, status: &Status) -> String {
        let votes = status.configuration.is_voter(self.config.node);
        match status.role {
            Role::Follower if !votes => "learner".to_owned(),
            role => role.name().to_owned(),
        }
    }

    fn node_statuses(&self) -> Vec<NodeStatus> {
        let members = self.catalog.members();
        let own = self.config.node.node();
        let status = |(id, at): (&u64, &Addresses)| {
            let connected = *id == own || self.peers.is_node_connected(*id);
            let state = match (*id == own, self.readiness()) {
                (true, Ok(())) => "ready".to_owned(),
                (true, Err(reason)) => reason,
                (false, _) if connected => "connected".to_owned(),
                (false, _) => "not connected".to_owned(),
            };
            let member = members.of_node(*id).map_or(NodeId(*id), |member| member.id);
            let incarnation = match members.of_node(*id) {
                Some(member) => member.incarnation,
                None => self.config.members.get(&member).copied().unwrap_or_default(),
            };
            NodeStatus {
                id: *id,
                client_address: at.client.clone(),
                peer_address: at.peer.clone(),
                http_address: at.http.clone(),
                connected,
                incarnation,
                state,
                member: member.0,
                membership: self.standing_of(member, incarnation).to_owned(),
            }
        };
        let present: Vec<u64> = match members.is_founded() {
            true => members.current().map(|member| member.id.node()).collect(),
            false => self.config.nodes.keys().copied().collect(),
        };
        let reached = |id: &u64| self.addresses(*id).map(|at| (*id, at.clone()));
        let present: BTreeMap<u64, Addresses> = present.iter().filter_map(reached).collect();
        let mut nodes: Vec<NodeStatus> = present.iter().map(status).collect();
        let leaving = members.former().filter(|former| members.of_node(former.id.node()).is_none());
        let gone = self.estranged().filter(|_| self.is_removed());
        let is_gone = |id: NodeId| id == self.config.node && gone.is_some();
        nodes.extend(leaving.map(|former| NodeStatus {
            id: former.id.node(),
            client_address: former.addresses.client.clone(),
            peer_address: former.addresses.peer.clone(),
            http_address: former.addresses.http.clone(),
            connected: self.peers.is_node_connected(former.id.node()),
            incarnation: former.incarnation,
            state: gone.clone().filter(|_| is_gone(former.id)).unwrap_or_else(|| "leaving".to_owned()),
            member: former.id.0,
            membership: if is_gone(former.id) { "removed" } else { "leaving" }.to_owned(),
        }));
        nodes.sort_by_key(|node| node.id);
        nodes
    }

    /// What a member is to the cluster, as far as this replica knows.
    fn standing_of(&self, id: NodeId, incarnation: u64) -> &'static str {
        if id == self.config.node && self.is_removed() {
            return "removed";
        }
        let votes = |group| {
            self.shard
                .status(group)
                .is_some_and(|s| !s.configuration.is_joint() && s.configuration.voters.contains(&id))
        };
        match incarnation {
            0 => "expected",
            _ if self.shard.group_ids().all(votes) => "member",
            _ => "joining",
        }
    }
}

fn topic_metadata(topic: &Topic, leaders: &BTreeMap<GroupId, (Option<u64>, u64)>) -> TopicMetadata {
    let partition = |partition| {
        let group = topic.group_of(partition);
        let (leader, leader_term) = leaders.get(&group).copied().unwrap_or_default();
        PartitionMetadata { partition, group: group.0, leader, leader_term }
    };
    TopicMetadata {
        name: topic.name.clone(),
        topic_id: topic.id,
        error: ErrorCode::None,
        partitions: (0..topic.partitions).map(partition).collect(),
    }
}
