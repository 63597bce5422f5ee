//! The final reading: every partition from every replica, from its beginning to its end.

use super::error::{Result, client};
use super::history::Event;
use super::ledger::Ledger;
use lnc_client::{Client, ConnectOptions, Connection, OffsetSpec};
use lnc_protocol::Limits;
use lnc_protocol::message::{FetchPartition, FetchRequest, Request, Response};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Bytes of one fetch.
const FETCH_BYTES: u32 = 1 << 20;
/// Between two attempts.
const POLL: Duration = Duration::from_millis(100);
/// Longest time for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What to read.
pub(super) struct Reading<'a> {
    pub(super) client: &'a Client,
    pub(super) ledger: &'a Ledger,
    pub(super) topic: &'a str,
    pub(super) topic_id: u64,
    pub(super) partitions: u32,
    /// Addresses at which nodes may be found.
    pub(super) endpoints: Vec<String>,
    /// How long all of it may wait for replicas that are behind.
    pub(super) patience: Duration,
}

impl Reading<'_> {
    /// Read everything; gives how many replicas were read. What cannot be read in time is a finding.
    pub(super) async fn run(&self) -> Result<usize> {
        let mut ends = BTreeMap::new();
        let all = (0..self.partitions).map(|partition| (partition, OffsetSpec::Latest));
        let listed = self.client.list_offsets(self.topic, all).await;
        for (partition, end) in listed.map_err(client("ask for the ends of the partitions"))? {
            ends.insert(partition, end.offset);
        }
        let nodes = self.nodes().await?;
        for (node, address) in &nodes {
            let deadline = Instant::now() + self.patience;
            for (partition, end) in &ends {
                self.read(*node, address, *partition, *end, deadline).await;
            }
        }
        Ok(nodes.len())
    }

    /// The replicas that can be reached, by node: under the addresses given, and under those that the cluster tells.
    async fn nodes(&self) -> Result<BTreeMap<u64, String>> {
        let metadata = self.client.metadata(None).await.map_err(client("ask for the nodes"))?;
        let told = metadata.nodes.iter().map(|node| node.client_address.clone());
        let mut nodes = BTreeMap::new();
        for address in self.endpoints.iter().cloned().chain(told) {
            if let Ok(connection) = Connection::connect(&address, &ConnectOptions::default()).await {
                nodes.entry(connection.hello().node_id).or_insert(address);
            }
        }
        for node in metadata.nodes.iter().filter(|node| !nodes.contains_key(&node.id)) {
            self.ledger.lock().broken(format!(
                "node {} cannot be read: nobody answers at {} and no --endpoint leads to it",
                node.id, node.client_address
            ));
        }
        Ok(nodes)
    }

    /// Read one partition from one replica.
    async fn read(&self, node: u64, address: &str, partition: u32, end: u64, deadline: Instant) {
        let mut offset = 0;
        let mut connection = None;
        let mut problem = "it is behind".to_owned();
        while offset < end && Instant::now() < deadline {
            match timeout(ANSWER, self.fetch(&mut connection, address, partition, offset)).await {
                Ok(Ok(found)) => {
                    let mut books = self.ledger.lock();
                    let next = books.checker.fetched(node, offset, &found);
                    let at_us = books.now();
                    books.history.note(&Event::Read { at_us, node, partition, offset, next });
                    if next > offset {
                        offset = next;
                        continue;
                    }
                    problem = format!("{} {}", found.error, found.message);
                    // What cannot be read will not become readable by waiting.
                    let stuck = !found.records.pieces().is_empty() || found.error != lnc_client::ErrorCode::None;
                    if stuck {
                        break;
                    }
                }
                Ok(Err(error)) => {
                    problem = error;
                    connection = None;
                }
                Err(_) => {
                    problem = "no answer".to_owned();
                    connection = None;
                }
            }
            sleep(POLL).await;
        }
        let mut books = self.ledger.lock();
        if offset < end {
            books.broken(format!("node {node}, partition {partition}: read up to {offset} of {end}: {problem}"));
        }
        books.checker.read_all(node, partition, offset);
    }

    async fn fetch(
        &self,
        connection: &mut Option<Connection>,
        address: &str,
        partition: u32,
        offset: u64,
    ) -> std::result::Result<lnc_protocol::message::FetchedPartition, String> {
        let open = match connection {
            Some(open) => open,
            None => {
                let opened = Connection::connect(address, &ConnectOptions::default()).await;
                connection.insert(opened.map_err(|error| error.to_string())?)
            }
        };
        let partition = FetchPartition {
            topic: self.topic.to_owned(),
            topic_id: self.topic_id,
            partition,
            offset,
            max_bytes: FETCH_BYTES.min(Limits::default().max_batch_bytes as u32),
        };
        let request =
            FetchRequest { max_wait_ms: 100, min_bytes: 1, max_bytes: FETCH_BYTES, partitions: vec![partition] };
        let reply = open.request(&Request::Fetch(request)).await.map_err(|error| error.to_string())?;
        match reply.result {
            Ok(Response::Fetch(mut found)) if found.len() == 1 => Ok(found.remove(0)),
            Ok(other) => Err(format!("an answer to another question: {other:?}")),
            Err(refused) => Err(refused.to_string()),
        }
    }
}
