//! Who may know whom. A change here is a change of the design: `docs/ARCHITECTURE.md` says why the lines run as they do.

/// What one crate may depend on outside of tests.
pub(crate) struct Manifest {
    /// The crate, which is also its folder.
    pub(crate) name: &'static str,
    /// Crates of this workspace.
    pub(crate) own: &'static [&'static str],
    /// Crates of others.
    pub(crate) others: &'static [&'static str],
}

/// Every crate of the workspace.
pub(crate) const MANIFESTS: &[Manifest] = &[
    Manifest {
        name: "lnc-protocol",
        own: &[],
        others: &["bytes", "crc32c", "crc32fast", "lz4_flex", "thiserror", "twox-hash", "zstd"],
    },
    Manifest { name: "lnc-mutation", own: &[], others: &[] },
    Manifest { name: "lnc-raft", own: &["lnc-mutation"], others: &["bytes", "thiserror"] },
    Manifest { name: "lnc-metrics", own: &[], others: &["prometheus"] },
    Manifest {
        name: "lnc-log",
        own: &["lnc-mutation", "lnc-protocol"],
        others: &["bytes", "crc32fast", "io-uring", "rustix", "thiserror", "tracing"],
    },
    Manifest {
        name: "lnc-replication",
        own: &["lnc-log", "lnc-metrics", "lnc-mutation", "lnc-raft"],
        others: &["bytes", "crc32fast", "socket2", "thiserror", "tokio", "tracing"],
    },
    Manifest {
        name: "lnc-broker",
        own: &["lnc-log", "lnc-metrics", "lnc-mutation", "lnc-protocol", "lnc-raft", "lnc-replication"],
        others: &["bytes", "thiserror", "tracing"],
    },
    Manifest {
        name: "lnc-client",
        own: &["lnc-protocol"],
        others: &["bytes", "futures-core", "thiserror", "tokio", "tracing"],
    },
    Manifest {
        name: "lnc-bench",
        own: &["lnc-client", "lnc-protocol"],
        others: &[
            "bytes",
            "clap",
            "clap_mangen",
            "crc32c",
            "crc32fast",
            "hdrhistogram",
            "indicatif",
            "rand",
            "rand_distr",
            "rustix",
            "serde",
            "serde_json",
            "thiserror",
            "tokio",
        ],
    },
    Manifest {
        name: "lnc-chaos",
        own: &[
            "lance",
            "lnc-broker",
            "lnc-client",
            "lnc-log",
            "lnc-metrics",
            "lnc-mutation",
            "lnc-protocol",
            "lnc-raft",
            "lnc-replication",
        ],
        others: &[
            "bytes",
            "clap",
            "indicatif",
            "mimalloc",
            "rustix",
            "serde",
            "serde_json",
            "tempfile",
            "thiserror",
            "tokio",
        ],
    },
    Manifest {
        name: "lance",
        own: &["lnc-broker", "lnc-client", "lnc-log", "lnc-metrics", "lnc-protocol", "lnc-raft", "lnc-replication"],
        others: &[
            "axum",
            "bytes",
            "clap",
            "clap_complete",
            "clap_mangen",
            "http-body-util",
            "hyper",
            "hyper-util",
            "indicatif",
            "opentelemetry-proto",
            "prost",
            "ratatui",
            "rustix",
            "serde",
            "serde_json",
            "strsim",
            "thiserror",
            "tokio",
            "toml",
            "tracing",
            "tracing-subscriber",
        ],
    },
];

/// Words that a part of the sources must not use outside of tests.
pub(crate) struct Words {
    /// Why.
    pub(crate) reason: &'static str,
    /// Files, or folders (with a slash at the end), from the root of the workspace.
    pub(crate) parts: &'static [&'static str],
    /// Parts of those that are exempt.
    pub(crate) except: &'static [&'static str],
    /// The words.
    pub(crate) banned: &'static [&'static str],
}

/// Code whose outputs follow from its inputs alone. It can run in a simulator, and replicas that do the same stay the
/// same.
const DETERMINISTIC: &[&str] = &[
    "lnc-protocol/src/",
    "lnc-raft/src/",
    "lnc-log/src/checkpoint.rs",
    "lnc-log/src/disk/memory.rs",
    "lnc-log/src/disk/memory/",
    "lnc-log/src/journal/",
    "lnc-log/src/segment/",
    "lnc-replication/src/",
    "lnc-broker/src/",
    "lnc-chaos/src/records.rs",
    "lnc-chaos/src/sim/",
];

/// The driver of the peer channels, the one part of its crate that owns sockets and timers, and who waits in it.
const PEERS: &[&str] = &["lnc-replication/src/peers.rs", "lnc-replication/src/strangers.rs"];

/// As [`PEERS`], and the simulated disk, which its node shares with whoever simulates.
const PEERS_AND_MEMORY_DISK: &[&str] =
    &["lnc-log/src/disk/memory.rs", "lnc-replication/src/peers.rs", "lnc-replication/src/strangers.rs"];

/// All rules on words.
pub(crate) const WORDS: &[Words] = &[
    Words {
        reason: "time is an input of deterministic code",
        parts: DETERMINISTIC,
        except: PEERS,
        banned: &["Instant", "SystemTime", "UNIX_EPOCH"],
    },
    Words {
        reason: "deterministic code draws no random numbers and iterates in an order that is the same everywhere",
        parts: DETERMINISTIC,
        except: PEERS,
        banned: &["rand", "getrandom", "HashMap", "HashSet", "RandomState", "DefaultHasher"],
    },
    Words {
        reason: "deterministic code touches the world only through its inputs and outputs",
        parts: DETERMINISTIC,
        except: PEERS,
        banned: &["tokio", "axum", "rustix", "socket2", "fs", "net", "process", "stdin", "stdout"],
    },
    Words {
        reason: "deterministic code runs on one thread and never waits",
        parts: DETERMINISTIC,
        except: PEERS_AND_MEMORY_DISK,
        banned: &["thread", "async", "await", "Mutex", "RwLock", "Condvar", "mpsc"],
    },
    Words {
        reason: "deterministic code has no state but its own values",
        parts: DETERMINISTIC,
        except: PEERS,
        banned: &["static", "thread_local", "OnceLock", "LazyLock"],
    },
    Words {
        reason: "only the backends and the data directory's keeper touch files; the others named here read what the \
                 user gave them: a configuration, lines to produce, the processes and the disk to measure, evidence to sum up; the memory that the \
                 system allows; or write a report, the trace of a simulated run, and what a run on real processes needs and \
                 leaves",
        parts: &[
            "lance/src/",
            "lnc-bench/src/",
            "lnc-broker/src/",
            "lnc-chaos/src/",
            "lnc-client/src/",
            "lnc-log/src/",
            "lnc-metrics/src/",
            "lnc-replication/src/",
        ],
        except: &[
            "lance/src/cli/produce/mod.rs",
            "lance/src/manual.rs",
            "lance/src/config/memory.rs",
            "lance/src/config/source.rs",
            "lance/src/dev.rs",
            "lnc-bench/src/evidence/mod.rs",
            "lnc-bench/src/limits.rs",
            "lnc-bench/src/output.rs",
            "lnc-bench/src/process.rs",
            "lnc-chaos/src/cli/live.rs",
            "lnc-chaos/src/cli/simulate.rs",
            "lnc-chaos/src/live/history.rs",
            "lnc-chaos/src/live/kubernetes.rs",
            "lnc-chaos/src/live/mod.rs",
            "lnc-chaos/src/live/node.rs",
            "lnc-chaos/src/live/volume.rs",
            "lnc-log/src/data_dir.rs",
            "lnc-log/src/disk/files.rs",
            "lnc-log/src/disk/threads.rs",
            "lnc-log/src/disk/uring.rs",
        ],
        banned: &["fs"],
    },
];

/// The one file with unsafe code, and the one that allows it.
pub(crate) const UNSAFE_FILE: &str = "lnc-log/src/disk/uring.rs";
/// Where [`UNSAFE_FILE`] is declared.
pub(crate) const UNSAFE_DECLARED: &str = "lnc-log/src/disk/mod.rs";

/// Files of one crate that another includes as its own.
pub(crate) const SHARED: &[(&str, &str)] = &[("lnc-bench", "lance/src/manual.rs")];
