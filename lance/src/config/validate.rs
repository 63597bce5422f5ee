//! The relations between values: what no key can check alone.

use std::collections::BTreeSet;

use super::error::Problem;
use super::kinds::Address;
use super::schema::{Config, NODE_KEYS, NodeAddresses};
use super::source::{Given, GivenNode, Origin, Setting};
use super::units::format_size;

/// Bytes of a produce request around its record batch: header, topic name and fixed fields, rounded up.
const REQUEST_OVERHEAD: u64 = 4096;

/// Fills in what is derived from other keys, and reports each relation that is not valid.
pub(super) fn check(mut config: Config, given: &Given, problems: &mut Vec<Problem>) -> Config {
    let mut report = Report { given, problems };
    relations(&config, &mut report);
    if given.nodes.is_empty() {
        config.cluster.nodes = vec![single_node(&config, &mut report)];
    } else {
        config.cluster.nodes = listed_nodes(&config, &mut report);
    }
    if config.cluster.data_groups == 0 {
        config.cluster.data_groups = u32::try_from(config.cluster.nodes.len()).unwrap_or(u32::MAX);
    }
    config
}

struct Report<'a> {
    given: &'a Given,
    problems: &'a mut Vec<Problem>,
}

impl Report<'_> {
    fn refuse(&mut self, key: &str, value: impl ToString, allowed: impl Into<String>) {
        let origin = self.given.keys.get(key).map_or(Origin::Default, |setting| setting.origin.clone());
        self.problems.push(Setting { text: value.to_string(), origin }.refused(key, allowed));
    }

    fn size_at_least(&mut self, key: &str, value: u64, other: &str, low: u64) {
        if value < low {
            self.refuse(key, format_size(value), format!("at least {}, which is {other}", format_size(low)));
        }
    }
}

fn relations(config: &Config, report: &mut Report<'_>) {
    let raft = &config.raft;
    if raft.heartbeat_ms < raft.tick_ms {
        let allowed = format!("at least raft.tick_ms, which is {}", raft.tick_ms);
        report.refuse("raft.heartbeat_ms", raft.heartbeat_ms, allowed);
    }
    if raft.election_timeout_ms < raft.heartbeat_ms * 3 {
        let allowed = format!("at least {}, three times raft.heartbeat_ms", raft.heartbeat_ms * 3);
        report.refuse("raft.election_timeout_ms", raft.election_timeout_ms, allowed);
    }
    let journal = &config.journal;
    report.size_at_least("journal.retain_bytes", journal.retain_bytes, "journal.file_bytes", journal.file_bytes);
    let limits = &config.limits;
    let frame = limits.max_batch_bytes + REQUEST_OVERHEAD;
    let why = format!("limits.max_batch_bytes and {} around it", format_size(REQUEST_OVERHEAD));
    report.size_at_least("limits.max_frame_bytes", limits.max_frame_bytes, &why, frame);
    report.size_at_least("limits.memory_bytes", limits.memory_bytes, "limits.max_frame_bytes", limits.max_frame_bytes);
    // A batch must find room in three quarters of it.
    let batches = limits.max_batch_bytes.saturating_mul(2);
    report.size_at_least("limits.reply_bytes", limits.reply_bytes, "twice limits.max_batch_bytes", batches);
    report.size_at_least("limits.peer_bytes", limits.peer_bytes, "twice limits.max_batch_bytes", batches);
    // A flush holds at least one whole batch, and lies in one file.
    let file = limits.max_batch_bytes.saturating_mul(2);
    report.size_at_least("journal.file_bytes", journal.file_bytes, "twice limits.max_batch_bytes", file);

    if let Some(endpoint) = config.tracing.otlp_endpoint.as_ref().filter(|_| !cfg!(feature = "otel")) {
        let allowed = "empty, since this program was built without the feature `otel`: build it with `cargo build --release \
                       -p lance --features otel`";
        report.refuse("tracing.otlp_endpoint", endpoint, allowed);
    }

    let listen = [&config.listen.client, &config.listen.peer, &config.listen.http];
    for (at, (key, address)) in ["listen.client", "listen.peer", "listen.http"].iter().zip(listen).enumerate() {
        if address.port() != 0 && listen[..at].contains(&address) {
            report.refuse(key, address, "an address of its own");
        }
    }
}

/// The node of a cluster that lists none: itself, under its advertised addresses.
fn single_node(config: &Config, report: &mut Report<'_>) -> NodeAddresses {
    let mut address = |name: &str, advertised: &Option<Address>, listened: &Address| {
        let address = advertised.as_ref().unwrap_or(listened);
        if address.is_unspecified() {
            let key = format!("{}.{name}", if advertised.is_some() { "advertise" } else { "listen" });
            let allowed = format!("an address that others can connect to; or set advertise.{name}");
            report.refuse(&key, address, allowed);
        }
        address.clone()
    };
    NodeAddresses {
        id: config.node.id,
        client: address("client", &config.advertise.client, &config.listen.client),
        peer: address("peer", &config.advertise.peer, &config.listen.peer),
        http: address("http", &config.advertise.http, &config.listen.http),
    }
}

fn listed_nodes(config: &Config, report: &mut Report<'_>) -> Vec<NodeAddresses> {
    let given = report.given;
    let advertise = &config.advertise;
    for (name, advertised) in [("client", &advertise.client), ("peer", &advertise.peer), ("http", &advertise.http)] {
        if let Some(address) = advertised {
            report.refuse(&format!("advertise.{name}"), address, "left out where cluster.nodes lists this node");
        }
    }
    let listen = &config.listen;
    for (key, address) in [("listen.client", &listen.client), ("listen.peer", &listen.peer)] {
        if address.port() == 0 {
            report.refuse(key, address, "a fixed port, since cluster.nodes tells others where to connect");
        }
    }
    let mut nodes = Vec::new();
    let (mut ids, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (at, entry) in given.nodes.iter().enumerate() {
        let Some(node) = read_node(at, entry, report.problems) else { continue };
        let mut unique = |name: &str, value: String, fresh: bool| {
            if !fresh {
                let origin = entry.fields.get(name).map_or(&entry.origin, |setting| &setting.origin).clone();
                let key = format!("cluster.nodes[{at}].{name}");
                report.problems.push(Setting { text: value, origin }.refused(&key, "unique among the nodes"));
            }
        };
        unique("id", node.id.to_string(), ids.insert(node.id));
        for (name, address) in [("client", &node.client), ("peer", &node.peer), ("http", &node.http)] {
            unique(name, address.to_string(), addresses.insert(address.clone()));
        }
        nodes.push(node);
    }
    if nodes.len() == given.nodes.len() && !ids.contains(&config.node.id) {
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        report.refuse("node.id", config.node.id, format!("one of those in cluster.nodes: {}", ids.join(", ")));
    }
    nodes.sort_by_key(|node| node.id);
    nodes
}

/// One entry of the list, if all its fields are there and good.
fn read_node(at: usize, entry: &GivenNode, problems: &mut Vec<Problem>) -> Option<NodeAddresses> {
    for (name, allowed) in NODE_KEYS {
        let key = format!("cluster.nodes[{at}].{name}");
        match entry.fields.get(*name) {
            None => {
                let (allowed, origin) = ((*allowed).to_owned(), entry.origin.clone());
                problems.push(Problem::Missing { key, allowed, origin });
            }
            Some(setting) if *name == "id" => {
                if setting.text.parse::<u64>().is_ok_and(|id| id > 0) {
                    continue;
                }
                problems.push(setting.refused(&key, *allowed));
            }
            Some(setting) => {
                if Address::parse(&setting.text).is_some_and(|address| !address.is_unspecified() && address.port() > 0)
                {
                    continue;
                }
                problems.push(setting.refused(&key, format!("{allowed} that the other nodes can connect to")));
            }
        }
    }
    let field = |name: &str| entry.fields.get(name).map(|setting| setting.text.as_str());
    let address = |name: &str| Address::parse(field(name)?);
    Some(NodeAddresses {
        id: field("id")?.parse().ok()?,
        client: address("client")?,
        peer: address("peer")?,
        http: address("http")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::source::Sources;
    use lnc_replication::wire::{FULL_FRAME_BODY, MAX_FRAME_BODY};

    /// What else lies in a log entry with a batch, and around it: commands that came first, up to 1 MiB of them, and
    /// fixed fields, rounded up.
    const ENTRY_OVERHEAD: u64 = 2 << 20;

    /// The result of loading a file with these two limits, in bytes of the batch or the text of the problem.
    fn load(max_batch_bytes: &str, max_frame_bytes: &str) -> Result<u64, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text =
            format!("[limits]\nmax_batch_bytes = \"{max_batch_bytes}\"\nmax_frame_bytes = \"{max_frame_bytes}\"\n");
        std::fs::write(file.path(), text).unwrap();
        let config = super::Config::load(&Sources::default().file(file.path()));
        config.map(|config| config.limits.max_batch_bytes).map_err(|error| error.to_string())
    }

    #[test]
    fn every_batch_fits_into_a_frame_between_nodes() {
        let largest = load("32MiB", "33MiB").unwrap();
        assert!(FULL_FRAME_BODY as u64 + ENTRY_OVERHEAD + largest <= MAX_FRAME_BODY as u64);
        let refused = load("33554433", "64MiB").unwrap_err();
        assert!(refused.contains("`limits.max_batch_bytes` = `33554433`") && refused.contains("to 32MiB"), "{refused}");
    }

    #[test]
    fn every_batch_fits_into_a_frame_of_clients() {
        assert_eq!(load("1020KiB", "1MiB"), Ok(1020 << 10));
        let refused = load("1MiB", "1MiB").unwrap_err();
        let expected = "must be at least 1028KiB, which is limits.max_batch_bytes and 4KiB around it";
        assert!(refused.contains("`limits.max_frame_bytes` = `1MiB`") && refused.contains(expected), "{refused}");
    }
}
