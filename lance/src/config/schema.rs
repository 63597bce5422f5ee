//! The table of all keys. From it come the structs, the checks of single values and the default file.

use super::error::Problem;
use super::kinds::{
    Address, BackendChoice, Budget, HostPort, Kind, LogFormat, LogLevel, MaybeHostPort, MaybeUrl, Path, Share, Size,
    Span, Text, Url, Whole, Whole32,
};
use super::source::{Given, Origin, Setting};

/// One key of the configuration.
pub(super) struct Key {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    /// Lines of the documentation, each with the space that follows `///`.
    pub(super) doc: &'static [&'static str],
    /// Default, as text.
    pub(super) default: &'static str,
    /// Lowest and highest value, as text.
    pub(super) range: Option<(&'static str, &'static str)>,
    /// For how long the first value stays, where a restart does not change it.
    pub(super) fixed: Option<&'static str>,
    pub(super) form: &'static str,
    pub(super) quoted: bool,
}

impl Key {
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// Ends the sentence "must be …".
    pub(super) fn allowed(&self) -> String {
        match self.range {
            Some((low, high)) => format!("{}, {low} to {high}", self.form),
            None => self.form.to_owned(),
        }
    }
}

/// One section of the configuration.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) doc: &'static [&'static str],
    pub(super) keys: &'static [Key],
}

/// Turns the table below into the structs, [`SECTIONS`] and [`build`].
macro_rules! settings {
    ($(
        $(#[doc = $section_doc:literal])+
        $section:ident: $Section:ident {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $type:ty [$kind:ty] = $default:literal $(in $low:literal ..= $high:literal)?
                    $(fixed $fixed:literal)?;
            )+
            $(extra { $(#[doc = $extra_doc:literal])+ $extra:ident: $extra_type:ty = $extra_value:expr })?
        }
    )+) => {
        /// A node's configuration. It comes from [`Config::load`] alone, so its values are within their limits and fit
        /// together; sizes are in bytes.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub struct Config {
            $($(#[doc = $section_doc])+ pub $section: $Section,)+
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Clone, Debug, PartialEq)]
            #[non_exhaustive]
            pub struct $Section {
                $($(#[doc = $doc])+ pub $key: $type,)+
                $($(#[doc = $extra_doc])+ pub $extra: $extra_type,)?
            }
        )+

        /// All sections, in the order of the default file.
        pub(super) const SECTIONS: &[Section] = &[$(Section {
            name: stringify!($section),
            doc: &[$($section_doc),+],
            keys: &[$(Key {
                section: stringify!($section),
                name: stringify!($key),
                doc: &[$($doc),+],
                default: $default,
                range: settings!(@optional $(($low, $high))?),
                fixed: settings!(@optional $($fixed)?),
                form: <$kind as Kind>::FORM,
                quoted: <$kind as Kind>::QUOTED,
            },)+],
        },)+];

        /// Reads every key; `None` if a value is bad, which is then among the problems.
        pub(super) fn build(given: &Given, problems: &mut Vec<Problem>) -> Option<Config> {
            let mut keys = SECTIONS.iter().flat_map(|section| section.keys);
            // First every value, then the struct, so that all bad values are reported at once.
            $(let $section = ($(value::<$kind>(keys.next()?, given, problems),)+);)+
            Some(Config {
                $($section: {
                    let ($($key,)+) = $section;
                    $Section { $($key: $key?,)+ $($extra: $extra_value,)? }
                },)+
            })
        }
    };
    (@optional) => { None };
    (@optional $value:expr) => { Some($value) };
}

settings! {
    /// This node.
    node: Node {
        /// Number of this node, unique in the cluster. A node that comes back without its data is admitted as a new
        /// member under its old number, and replaces its former self once it has caught up.
        id: u64 [Whole] = "1" in "1" ..= "4294967295" fixed "for the life of the data directory";
        /// Directory for everything that this node stores. One node per directory; it is locked while in use.
        data_dir: std::path::PathBuf [Path] = "lance-data";
        /// How long this node looks for the next event itself, in microseconds, before it sleeps until it is woken, which
        /// takes longer than many an event. Only while few bytes are on their way to the disk or to a majority. It costs
        /// processor time; 0 turns it off, and so does having one processor only.
        busy_poll_us: u64 [Whole] = "250" in "0" ..= "10000";
    }
    /// The addresses that this node listens on. Port 0 takes any free port, in a cluster of one node.
    listen: Listen {
        /// For clients.
        client: Address [HostPort] = "127.0.0.1:1992";
        /// For the other nodes. Keep it inside the cluster's own network.
        peer: Address [HostPort] = "127.0.0.1:1993";
        /// For metrics and health, over plain HTTP.
        http: Address [HostPort] = "127.0.0.1:1994";
    }
    /// The addresses under which others reach this node, where they differ from those that it listens on. Only for a
    /// cluster of one node; with more nodes, `cluster.nodes` says it.
    advertise: Advertise {
        /// For clients.
        client: Option<Address> [MaybeHostPort] = "";
        /// For the other nodes.
        peer: Option<Address> [MaybeHostPort] = "";
        /// For metrics and health.
        http: Option<Address> [MaybeHostPort] = "";
    }
    /// The cluster. When it is founded, this must read the same on every node. All nodes are listed, this one included;
    /// none at all means a cluster of this one node. A node that joins later lists itself and those that it joins:
    ///
    /// ```toml
    /// [[cluster.nodes]]
    /// id = 1
    /// client = "10.0.0.1:1992"
    /// peer = "10.0.0.1:1993"
    /// http = "10.0.0.1:1994"
    /// ```
    cluster: Cluster {
        /// Raft groups that hold partitions. More groups spread the work of leading over more nodes; each costs a
        /// little memory on every node. 0 means one per node.
        data_groups: u32 [Whole32] = "0" in "0" ..= "256" fixed "for the life of the cluster";
        /// Furthest that a node's clock may be from those of a majority to be believed. While it is further, the node
        /// leads nothing that another can, stamps records by the others' clocks, and removes nothing by age. The same on
        /// all nodes.
        max_clock_skew: std::time::Duration [Span] = "10s" in "100ms" ..= "1h";
        extra {
            /// All nodes of the cluster in the order of their numbers, this one included.
            nodes: Vec<NodeAddresses> = Vec::new()
        }
    }
    /// Consensus. The defaults suit one data centre; across regions, raise the two time-outs together.
    raft: Raft {
        /// Length of one tick of the consensus clock, in milliseconds.
        tick_ms: u64 [Whole] = "25" in "1" ..= "1000";
        /// Time between two heartbeats of a leader, in milliseconds.
        heartbeat_ms: u64 [Whole] = "100" in "1" ..= "10000";
        /// Silence of a leader, in milliseconds, after which a follower stands for election; each wait is drawn
        /// between this and its double. At least three heartbeats: a lower value takes a hiccup for a death.
        election_timeout_ms: u64 [Whole] = "500" in "10" ..= "60000";
    }
    /// The journal: the write-ahead log that all groups of this node share.
    journal: Journal {
        /// Size of one journal file. Files are written with zeroes once, then recycled.
        file_bytes: u64 [Size] = "64MiB" in "1MiB" ..= "4GiB";
        /// Journal kept for followers that lag. One that is further behind fetches the state of its groups instead.
        retain_bytes: u64 [Size] = "1GiB" in "1MiB" ..= "1TiB";
        /// Journal written since the last checkpoint that starts the next one. More means fewer, larger writes of
        /// segments and a longer recovery.
        checkpoint_bytes: u64 [Size] = "128MiB" in "1MiB" ..= "64GiB";
        /// A leader whose syncs take longer than this, 99 of 100 counted, for several seconds hands over to nodes with
        /// faster disks.
        slow_sync: std::time::Duration [Span] = "500ms" in "1ms" ..= "1h";
        /// Flushes that may be on their way to the disk at once.
        max_in_flight_flushes: u32 [Whole32] = "2" in "1" ..= "64";
    }
    /// The storage of partitions.
    storage: Storage {
        /// How files are written: uring, threads, or auto for uring where the kernel allows it.
        backend: BackendChoice [BackendChoice] = "auto";
        /// Size at which a partition starts its next segment, where the topic does not say otherwise.
        segment_bytes: u64 [Size] = "256MiB" in "1MiB" ..= "4GiB";
        /// Bytes per second that this node gives to others that fetch the state of a group. More makes them whole
        /// sooner, less leaves more of disk and network to clients.
        transfer_bytes_per_second: u64 [Size] = "64MiB" in "64KiB" ..= "1TiB";
        /// Free space that is kept for votes, checkpoints and deletions: with less, records are refused until there is
        /// more. It must hold two files of the journal and a checkpoint.
        reserve_bytes: u64 [Size] = "256MiB" in "0" ..= "1TiB";
        /// Bytes per second that the scrub reads to find damage before anybody needs what is damaged; 0 turns it off.
        scrub_bytes_per_second: u64 [Size] = "8MiB" in "0" ..= "1TiB";
        /// Shortest time from the beginning of one pass of the scrub over everything to that of the next.
        scrub_interval: std::time::Duration [Span] = "1d" in "1s" ..= "365d";
    }
    /// Limits. What goes past one gets an error that says so.
    limits: Limits {
        /// Largest frame of the wire protocol that is read.
        max_frame_bytes: u64 [Size] = "8MiB" in "64KiB" ..= "1GiB";
        /// Largest record batch, as it comes over the wire. It must fit into a frame, of clients and between nodes.
        max_batch_bytes: u64 [Size] = "1MiB" in "1KiB" ..= "32MiB";
        /// Client connections that may be open at once; at most a quarter of the files that the process may open (LimitNOFILE,
        /// ulimit -n). Eight beyond it are told why they are refused, further ones are closed.
        max_connections: u32 [Whole32] = "10000" in "1" ..= "1000000";
        /// Silence after which a client's connection is closed.
        idle_timeout: std::time::Duration [Span] = "10m" in "1s" ..= "7d";
        /// Memory for requests that have come, wholly or in part, and are not answered yet. A client that has more of it than
        /// is left is not read; at the limit, clients are told to come back later. auto is a
        /// quarter of what the control group of this process allows (containers, systemd), or of what the machine has.
        memory_bytes: u64 [Budget] = "128MiB" in "1MiB" ..= "1TiB";
        /// Memory for replies that clients have not taken yet, and for records that are read for them. At the limit, clients get
        /// fewer records at a time, and those that take none for ten seconds are cut off.
        reply_bytes: u64 [Size] = "64MiB" in "1MiB" ..= "1TiB";
        /// Memory for what is on its way to one other node. With more the connection to it is made anew. Half of it is divided
        /// among the groups: so much may a leader have sent that a follower has not acknowledged.
        peer_bytes: u64 [Size] = "128MiB" in "1MiB" ..= "1TiB";
        /// Memory for the newest records of each partition, from which most readers are served; auto is the same quarter.
        tail_cache_bytes: u64 [Budget] = "128MiB" in "0" ..= "1TiB";
        /// Topics in the cluster.
        max_topics: u32 [Whole32] = "10000" in "1" ..= "1000000";
        /// Partitions of one topic.
        max_partitions_per_topic: u32 [Whole32] = "1024" in "1" ..= "100000";
    }
    /// The log that this node writes about itself, to standard error.
    log: Log {
        /// Least severe level that is logged: error, warn, info, debug or trace.
        level: LogLevel [LogLevel] = "info";
        /// text for people, json for machines.
        format: LogFormat [LogFormat] = "text";
    }
    /// Traces of produce requests, for OpenTelemetry: who took how long over one, on every node that had a part in it.
    /// The program must have been built with the feature `otel`.
    tracing: Tracing {
        /// Where spans are sent, in OTLP over HTTP: a collector on this machine or in a network that you trust. Empty
        /// turns traces off.
        otlp_endpoint: Option<Url> [MaybeUrl] = "";
        /// Share of the produce requests that are recorded, chosen at random by the node that a client is connected to.
        /// Requests that come with a trace context are recorded if their trace is, whatever this says.
        sample_ratio: f64 [Share] = "0.001" in "0" ..= "1";
        /// `service.name` of the spans. The node is told by `service.instance.id`, its number.
        service_name: String [Text] = "lance";
        /// Time that the collector may take over one delivery. Spans that it did not take are lost, and counted.
        timeout: std::time::Duration [Span] = "10s" in "1ms" ..= "10m";
    }
    /// The end of a node that is asked to stop.
    shutdown: Shutdown {
        /// Longest time to hand over leadership and to answer what is in flight.
        drain_timeout: std::time::Duration [Span] = "10s" in "0" ..= "10m";
    }
}

/// One node of the cluster and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Number of the node.
    pub id: u64,
    /// Address for clients.
    pub client: Address,
    /// Address for the other nodes.
    pub peer: Address,
    /// Address for metrics and health.
    pub http: Address,
}

/// The keys of one entry of `cluster.nodes`, with what each must be.
pub(super) const NODE_KEYS: &[(&str, &str)] = &[
    ("id", "a whole number, 1 or more"),
    ("client", HostPort::FORM),
    ("peer", HostPort::FORM),
    ("http", HostPort::FORM),
];

/// The value of one key, from the last layer that gives it.
fn value<K: Kind>(key: &Key, given: &Given, problems: &mut Vec<Problem>) -> Option<K::Value> {
    let default = Setting { text: key.default.to_owned(), origin: Origin::Default };
    let setting = given.keys.get(&key.path()).unwrap_or(&default);
    let within = |value: &K::Value| match key.range {
        Some((low, high)) => {
            K::parse(low).is_some_and(|low| *value >= low) && K::parse(high).is_some_and(|high| *value <= high)
        }
        None => true,
    };
    let value = K::parse(&setting.text).filter(within);
    if value.is_none() {
        problems.push(setting.refused(&key.path(), key.allowed()));
    }
    value
}
