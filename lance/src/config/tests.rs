//! Tests of the configuration as an operator meets it.

use std::io::Write;
use std::time::Duration;

use super::*;

fn load(toml: &str) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    Config::load(&Sources::default().file(file.path()))
}

/// The problems of a file, with its random path replaced.
fn problems(toml: &str) -> Vec<String> {
    let error = load(toml).expect_err("the configuration should be refused");
    let shorten = |problem: &Problem| {
        let text = problem.to_string();
        match (text.find("(from /").or(text.find("(in /")), text.find(')')) {
            (Some(from), Some(to)) => {
                let line = text[from..to].rsplit(':').next().unwrap().to_owned();
                format!("{}(line {line}{}", &text[..from], &text[to..])
            }
            _ => text,
        }
    };
    error.problems().iter().map(shorten).collect()
}

fn three_nodes() -> String {
    (1..=3)
        .map(|id| {
            format!(
                "[[cluster.nodes]]\nid = {id}\nclient = \"h{id}:1992\"\npeer = \"h{id}:1993\"\nhttp = \"h{id}:1994\"\n"
            )
        })
        .collect()
}

#[test]
fn defaults_are_a_cluster_of_one() {
    let config = Config::default();
    assert_eq!(config.node.id, 1);
    assert_eq!(config.cluster.data_groups, 1);
    assert_eq!(config.cluster.nodes.len(), 1);
    assert_eq!(config.this_node().client.as_str(), "127.0.0.1:1992");
    assert_eq!(config.limits.idle_timeout, Duration::from_secs(600));
    assert_eq!(config.storage.backend, BackendChoice::Auto);
}

#[test]
fn the_default_file_gives_the_defaults() {
    let text = default_toml();
    assert_eq!(load(&text).unwrap(), Config::default());
    // And it is the file that is read, not just ignored: every key of it can be changed.
    let changed = text.replace("tick_ms = 25", "tick_ms = 26");
    assert_eq!(load(&changed).unwrap().raft.tick_ms, 26);
    assert!(text.lines().all(|line| line.len() <= 130), "lines of the template stay readable");
}

#[test]
fn data_groups_default_to_one_per_node() {
    let config = load(&(three_nodes() + "[node]\nid = 2\n")).unwrap();
    assert_eq!(config.cluster.data_groups, 3);
    assert_eq!(config.this_node().peer.as_str(), "h2:1993");
    let config = load(&("cluster.data_groups = 8\n".to_owned() + "[node]\nid = 2\n")).unwrap();
    assert_eq!(config.cluster.data_groups, 8);
}

#[test]
fn later_layers_win() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[raft]\ntick_ms = 30\nheartbeat_ms = 101\nelection_timeout_ms = 501\n").unwrap();
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let sources = Sources::default()
        .file(file.path())
        .env([
            variable("LANCE_RAFT__HEARTBEAT_MS", "102"),
            variable("LANCE_RAFT__ELECTION_TIMEOUT_MS", "502"),
            variable("LANCE_ENDPOINT", "not part of the configuration"),
            variable("PATH", "/bin"),
        ])
        .set("raft.election_timeout_ms", "503", "--set");
    let config = Config::load(&sources).unwrap();
    assert_eq!((config.raft.tick_ms, config.raft.heartbeat_ms, config.raft.election_timeout_ms), (30, 102, 503));
    assert_eq!(config.journal, Config::default().journal);
}

#[test]
fn nodes_can_come_from_the_environment() {
    let nodes = r#"[{id = 4, client = "a:1", peer = "a:2", http = "a:3"}, {id = 9, client = "b:1", peer = "b:2", http = "b:3"}]"#;
    let sources = Sources::default()
        .env([("LANCE_CLUSTER__NODES".to_owned(), nodes.to_owned()), ("LANCE_NODE__ID".to_owned(), "9".to_owned())]);
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.this_node().http.as_str(), "b:3");
    assert_eq!(config.cluster.nodes.len(), 2);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_one() {
    let cases = [
        ("[raft]\ntick = 5\n", "unknown key `raft.tick` (line 2); did you mean `raft.tick_ms`?"),
        ("[journl]\nfile_bytes = 5\n", "unknown key `journl` (line 1); did you mean `journal`?"),
        (
            "[journal]\nsegment_bytes = 5\n",
            "unknown key `journal.segment_bytes` (line 2); did you mean `storage.segment_bytes`?",
        ),
        ("data_dir = \"x\"\n", "unknown key `data_dir` (line 1); did you mean `node.data_dir`?"),
        ("\n[tls]\ncert = \"x\"\n", "unknown key `tls` (line 2)"),
        ("[listen]\ntls = true\n", "unknown key `listen.tls` (line 2)"),
        ("[listen]\ntls_cert = \"x\"\n", "unknown key `listen.tls_cert` (line 2)"),
    ];
    for (toml, expected) in cases {
        assert_eq!(problems(toml), [expected], "{toml}");
    }
    let nodes = three_nodes().replace("http = \"h2", "htpp = \"h2");
    assert!(
        problems(&nodes).contains(
            &"unknown key `cluster.nodes[1].htpp` (line 10); did you mean `cluster.nodes[1].http`?".to_owned()
        ),
        "{:?}",
        problems(&nodes)
    );
}

#[test]
fn unknown_variables_and_flags_are_refused() {
    let sources = Sources::default()
        .env([("LANCE_RAFT__TICK".to_owned(), "5".to_owned()), ("LANCE_TLS__CERT".to_owned(), "x".to_owned())])
        .set("node.datadir", "x", "--set");
    let error = Config::load(&sources).unwrap_err().to_string();
    let expected = "unknown key `raft.tick` (from environment variable LANCE_RAFT__TICK); did you mean `raft.tick_ms`?\n\
                    unknown key `tls.cert` (from environment variable LANCE_TLS__CERT)\n\
                    unknown key `node.datadir` (from --set); did you mean `node.data_dir`?";
    assert_eq!(error, expected);
}

#[test]
fn bad_values_name_key_value_range_and_origin() {
    let cases = [
        ("[raft]\n\ntick_ms = 0\n", "`raft.tick_ms` = `0` (line 3): must be a whole number, 1 to 1000"),
        ("[raft]\ntick_ms = -1\n", "`raft.tick_ms` = `-1` (line 2): must be a whole number, 1 to 1000"),
        ("[raft]\ntick_ms = 2.5\n", "`raft.tick_ms` = `2.5` (line 2): must be a whole number, 1 to 1000"),
        ("[raft]\ntick_ms = [1]\n", "`raft.tick_ms` = `<a list>` (line 2): must be a whole number, 1 to 1000"),
        (
            "[journal]\nfile_bytes = \"1KiB\"\n",
            "`journal.file_bytes` = `1KiB` (line 2): must be a size such as 64MiB, 1MiB to 4GiB",
        ),
        (
            "[limits]\nidle_timeout = 600\n",
            "`limits.idle_timeout` = `600` (line 2): must be a duration such as 500ms, 10s or 5m, 1s to 7d",
        ),
        ("[storage]\nbackend = \"aio\"\n", "`storage.backend` = `aio` (line 2): must be auto, uring or threads"),
        (
            "[listen]\nclient = \"1992\"\n",
            "`listen.client` = `1992` (line 2): must be an address such as 127.0.0.1:1992",
        ),
        ("[node]\ndata_dir = \"\"\n", "`node.data_dir` = `` (line 2): must be a path"),
        ("raft = 3\n", "`raft` = `a value` (line 1): must be a section, written [raft]"),
        ("[tracing]\nsample_ratio = 1.5\n", "`tracing.sample_ratio` = `1.5` (line 2): must be a number, 0 to 1"),
        ("[tracing]\nsample_ratio = nan\n", "`tracing.sample_ratio` = `nan` (line 2): must be a number, 0 to 1"),
        (
            "[tracing]\nservice_name = \"\"\n",
            "`tracing.service_name` = `` (line 2): must be a text of up to 255 bytes, not empty",
        ),
    ];
    for (toml, expected) in cases {
        assert_eq!(problems(toml), [expected], "{toml}");
    }
    assert!(problems("[raft\n")[0].starts_with("not valid TOML: "), "{:?}", problems("[raft\n"));
    let missing = Config::load(&Sources::default().file("/nonexistent/lance.toml")).unwrap_err();
    assert!(missing.to_string().starts_with("cannot read /nonexistent/lance.toml: "), "{missing}");
}

#[test]
fn all_problems_are_reported_at_once() {
    let toml = "[node]\nid = 0\n[raft]\ntick_ms = 0\ntock_ms = 1\n";
    assert_eq!(problems(toml).len(), 3, "{:?}", problems(toml));
}

#[test]
fn relations_between_values_are_checked() {
    let cases = [
        (
            "[raft]\nelection_timeout_ms = 200\n",
            "`raft.election_timeout_ms` = `200` (line 2): must be at least 300, three times raft.heartbeat_ms",
        ),
        (
            "[raft]\ntick_ms = 150\n",
            "`raft.heartbeat_ms` = `100` (from the defaults): must be at least raft.tick_ms, which is 150",
        ),
        (
            "[journal]\nretain_bytes = \"32MiB\"\n",
            "`journal.retain_bytes` = `32MiB` (line 2): must be at least 64MiB, which is journal.file_bytes",
        ),
        (
            "[listen]\npeer = \"127.0.0.1:1992\"\n",
            "`listen.peer` = `127.0.0.1:1992` (line 2): must be an address of its own",
        ),
        (
            "[listen]\nclient = \"0.0.0.0:1992\"\n",
            "`listen.client` = `0.0.0.0:1992` (line 2): must be an address that others can connect to; or set advertise.client",
        ),
    ];
    for (toml, expected) in cases {
        assert_eq!(problems(toml), [expected], "{toml}");
    }
    let advertised = load("[listen]\nclient = \"0.0.0.0:1992\"\n[advertise]\nclient = \"broker:1992\"\n").unwrap();
    assert_eq!(advertised.this_node().client.as_str(), "broker:1992");
}

#[test]
fn the_list_of_nodes_is_checked() {
    let nodes = three_nodes();
    let cases = [
        (
            nodes.clone() + "[node]\nid = 7\n",
            "`node.id` = `7` (line 17): must be one of those in cluster.nodes: 1, 2, 3",
        ),
        (nodes.replace("id = 3", "id = 2"), "`cluster.nodes[2].id` = `2` (line 12): must be unique among the nodes"),
        (
            nodes.replace("peer = \"h3:1993\"", "peer = \"h1:1993\""),
            "`cluster.nodes[2].peer` = `h1:1993` (line 14): must be unique among the nodes",
        ),
        (
            nodes.replace("peer = \"h3:1993\"\n", ""),
            "`cluster.nodes[2].peer` is missing (line 11): must be an address such as 127.0.0.1:1992",
        ),
        (
            nodes.replace("h2:1993", "0.0.0.0:1993"),
            "`cluster.nodes[1].peer` = `0.0.0.0:1993` (line 9): must be an address such as 127.0.0.1:1992 that the other nodes can connect to",
        ),
        (
            "[advertise]\nhttp = \"x:1\"\n".to_owned() + &nodes,
            "`advertise.http` = `x:1` (line 2): must be left out where cluster.nodes lists this node",
        ),
    ];
    for (toml, expected) in cases {
        assert_eq!(problems(&toml), [expected], "{toml}");
    }
}

#[test]
fn addresses() {
    let address = Address::parse("[::1]:1992").unwrap();
    assert_eq!((address.host(), address.port()), ("[::1]", 1992));
    assert!(Address::parse("[::]:1").unwrap().is_unspecified());
    assert!(Address::parse("0.0.0.0:1").unwrap().is_unspecified());
    assert!(!Address::parse("broker-1.lance.svc:1").unwrap().is_unspecified());
    for bad in ["", ":1", "host", "host:", "host:65536", "host:+1", "::1:1992", "a b:1", "[x]:1"] {
        assert_eq!(Address::parse(bad), None, "{bad}");
    }
}

/// The texts of all sources of this crate but those of the configuration itself and its tests of the command line.
fn other_sources(directory: &std::path::Path, texts: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match (path.is_dir(), name.as_str()) {
            (true, "config") | (false, "config.rs" | "tests.rs") => {}
            (true, _) => other_sources(&path, texts),
            (false, _) => texts.push(std::fs::read_to_string(&path).unwrap()),
        }
    }
}

#[test]
fn every_key_is_read_by_the_node() {
    let mut texts = Vec::new();
    other_sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
    // What is advertised becomes this node's entry in the list of nodes, which is what the node reads.
    let keys = schema::SECTIONS.iter().flat_map(|section| section.keys).filter(|key| key.section != "advertise");
    for path in keys.map(schema::Key::path).chain(["cluster.nodes".to_owned()]) {
        let read = |text: &String| {
            let reads = |(at, _): (usize, &str)| {
                // `log.level` in code, not in an error text, and not the beginning of a longer name.
                let before = text[..at].chars().next_back();
                let after = text[at + path.len()..].chars().next();
                before.is_none_or(|c| matches!(c, '.' | ' ' | '(' | '&'))
                    && after.is_none_or(|c| !c.is_alphanumeric() && c != '_')
            };
            text.match_indices(path.as_str()).any(reads)
        };
        assert!(texts.iter().any(read), "{path} can be set and changes nothing");
    }
}

#[test]
fn budgets_may_follow_the_memory() {
    let config = load("[limits]\nmemory_bytes = \"auto\"\ntail_cache_bytes = \"auto\"\n").unwrap();
    assert_eq!(config.limits.memory_bytes, config.limits.tail_cache_bytes);
    assert!(config.limits.memory_bytes >= 1 << 20 && config.limits.memory_bytes.is_multiple_of(1 << 20));
    let refused = problems("[limits]\nmemory_bytes = \"most\"\n");
    assert!(refused[0].contains("must be a size such as 64MiB, or auto, 1MiB to 1TiB"), "{refused:?}");
}

#[test]
fn an_endpoint_for_traces_is_a_url_that_can_be_reached_without_tls() {
    let parse = |text: &str| <kinds::MaybeUrl as kinds::Kind>::parse(text);
    let url = |text: &str| parse(text).flatten().map(|url| url.to_string());
    assert_eq!(parse(""), Some(None));
    assert_eq!(url("http://127.0.0.1:4318/v1/traces").as_deref(), Some("http://127.0.0.1:4318/v1/traces"));
    assert_eq!(url("http://collector.tools:4318").as_deref(), Some("http://collector.tools:4318/v1/traces"));
    assert_eq!(url("http://[::1]:80/").as_deref(), Some("http://[::1]:80/v1/traces"));
    assert_eq!(url("http://c:1/otlp?tenant=a").as_deref(), Some("http://c:1/otlp?tenant=a"));
    for bad in [
        "https://127.0.0.1:4318/v1/traces",
        "127.0.0.1:4318",
        "http://",
        "http://collector",
        "http://collector:0/",
        "http://0.0.0.0:4318",
        "http://user@collector:4318",
        "http://c:1/a b",
        "http://c:1/a\r\nX: y",
        "http://c:1/a#b",
    ] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

/// Whoever asks for traces gets them or is told why not.
#[test]
fn traces_need_a_program_that_was_built_for_them() {
    let text = "[tracing]\notlp_endpoint = \"http://127.0.0.1:4318\"\nsample_ratio = 0.25\n";
    if cfg!(feature = "otel") {
        let tracing = load(text).unwrap().tracing;
        assert_eq!(tracing.otlp_endpoint.unwrap().path, "/v1/traces");
        assert_eq!(tracing.sample_ratio, 0.25);
    } else {
        let expected = "`tracing.otlp_endpoint` = `http://127.0.0.1:4318/v1/traces` (line 2): must be empty, since this \
                        program was built without the feature `otel`: build it with `cargo build --release -p lance \
                        --features otel`";
        assert_eq!(problems(text), [expected]);
    }
    assert_eq!(load("[tracing]\nsample_ratio = 1\n").unwrap().tracing.otlp_endpoint, None, "nothing is asked for");
}
