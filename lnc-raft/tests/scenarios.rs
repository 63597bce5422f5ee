//! Scenarios as text: each file under `tests/scenarios` is a story in blocks of commands, with the trace that is
//! expected of them below `----`. `UPDATE=1` rewrites the expectations; read the difference before you believe it.
//!
//! Commands (a leading `!` keeps the trace short by hiding what the command did):
//!
//! ```text
//! cluster SIZE [option=value ...]   options: append (bytes), appends, bytes, uncommitted, election, heartbeat,
//!                                   rpc, round (ticks)
//! disk N term=T [vote=V] T,T,T...   restart N from a disk with entries of these terms
//! tick N [COUNT]                    time passes on N
//! campaign N                        time passes on N until it starts a round
//! deliver [A->B] [COUNT|all]        messages arrive, those of one link if named; all and what follows by default
//! drop A->B                         messages of a link get lost
//! duplicate A->B | reverse A->B     messages of a link double, or change places
//! cut A->B | cut A | heal           links lose everything from now on
//! inject A->B TERM BODY             a message that no node of the cluster sent
//! propose N TEXT ...                several texts: in one turn
//! read N CTX                        read-index
//! transfer N TO | lost N PEER | back N PEER
//! hold N | durable N [COUNT] | unhold N    the disk of N
//! crash N [KEPT] | restart N        KEPT writes under way reach the disk
//! release N INDEX | compact N INDEX | load N | failed N TO | unavailable N TO | state A->B
//! status N ... | who N              what a node knows of the group, and of its members
//! join N                            starts a node that knows nothing of the group
//! members N V,V... [learners=L,L]   proposes members
//! ```

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use lnc_raft::{AppendReply, Body, Configuration, Entry, EntryKind, HardState, Message, NodeId, Role};
use support::{Cluster, show_status};

/// A number, or the name of a node in a later life, such as 3.1.
fn number(text: &str) -> u64 {
    if let Some((node, generation)) = text.split_once('.') {
        return NodeId::new(number(node) as u32, number(generation) as u32).0;
    }
    text.parse().unwrap_or_else(|_| panic!("not a number: {text}"))
}

fn link(text: &str) -> Option<(u64, u64)> {
    let (from, to) = text.split_once("->")?;
    Some((number(from), number(to)))
}

fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

struct Story {
    cluster: Cluster,
}

impl Story {
    fn run(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let n = || number(words[1]);
        let count = |default: u64| words.get(2).map_or(default, |word| number(word));
        match words[0] {
            "cluster" => self.cluster = new_cluster(&words),
            "disk" => self.disk(&words),
            "tick" => (0..count(1)).for_each(|_| self.cluster.with(n(), |raft| raft.tick()).unwrap_or_default()),
            "campaign" => self.campaign(n()),
            "deliver" => self.deliver(&words[1..]),
            "drop" | "duplicate" | "reverse" => self.tamper(words[0], words[1]),
            "cut" => self.cut(words[1]),
            "heal" => self.cluster.cut.clear(),
            "inject" => self.inject(&words),
            "propose" => self.propose(n(), &words[2..]),
            "hold" | "unhold" => self.hold(n(), words[0] == "hold"),
            "durable" => {
                self.cluster.flush(n(), count(u64::from(u32::MAX)) as usize);
                self.cluster.turn(n());
            }
            "crash" => self.cluster.crash(n(), count(0) as usize),
            "restart" => self.cluster.restart(n()),
            "load" => self.cluster.load(n()),
            "state" => {
                let (from, to) = link(words[1]).unwrap_or_default();
                assert!(self.cluster.transfer_state(from, to), "no state to transfer");
            }
            "join" => self.cluster.add(n(), Configuration::default(), |_| ()),
            "members" => self.members(&words),
            "who" => {
                let members = self.cluster.raft(n()).map(|raft| raft.configuration().to_string());
                self.cluster.trace.push(format!("{}: members {}", words[1], members.unwrap_or_default()));
            }
            "status" => words[1..].iter().for_each(|id| self.status(number(id))),
            _ => self.call(&words),
        }
    }

    /// Commands that are one call of the API.
    fn call(&mut self, words: &[&str]) {
        let (id, arg) = (number(words[1]), number(words[2]));
        let refused = match words[0] {
            "read" => self.cluster.read(id, arg).and_then(|result| result.err()).map(|error| error.to_string()),
            "transfer" => {
                let result = self.cluster.with(id, |raft| raft.transfer_leadership(NodeId(arg)));
                result.and_then(|result| result.err()).map(|error| error.to_string())
            }
            "lost" => self.cluster.with(id, |raft| raft.peer_lost(NodeId(arg))).and(None),
            "back" => self.cluster.with(id, |raft| raft.peer_back(NodeId(arg))).and(None),
            "release" => self.cluster.with(id, |raft| raft.release_memory(arg)).and(None),
            "failed" => self.cluster.with(id, |raft| raft.entries_failed(NodeId(arg))).and(None),
            "unavailable" => self.cluster.with(id, |raft| raft.entries_unavailable(NodeId(arg))).and(None),
            "compact" => {
                if let Some(node) = self.cluster.nodes.get_mut(&id) {
                    node.disk.compact(arg);
                }
                self.cluster.with(id, |raft| raft.compact(arg)).and(None)
            }
            other => panic!("unknown command: {other}"),
        };
        if let Some(error) = refused {
            self.cluster.trace.push(format!("{id}: refuses: {error}"));
        }
    }

    fn disk(&mut self, words: &[&str]) {
        let id = number(words[1]);
        let terms = words[2..].iter().find(|word| !word.contains('=')).copied().unwrap_or_default();
        let entry = |(position, term): (usize, &str)| Entry {
            term: number(term),
            index: position as u64 + 1,
            kind: EntryKind::Normal,
            payload: Bytes::from_static(b"x"),
        };
        let entries = terms.split(',').filter(|term| !term.is_empty()).enumerate().map(entry).collect();
        self.cluster.crash(id, 0);
        if let Some(node) = self.cluster.nodes.get_mut(&id) {
            let vote = option(words, "vote").map(|vote| NodeId(number(vote)));
            node.disk.hard_state = HardState { term: option(words, "term").map_or(0, number), vote };
            node.disk.entries = entries;
        }
        self.cluster.restart(id);
    }

    fn members(&mut self, words: &[&str]) {
        let set = |list: &str| list.split(',').map(|node| NodeId(number(node))).collect();
        let target = Configuration {
            voters: set(words[2]),
            learners: option(words, "learners").map(set).unwrap_or_default(),
            ..Configuration::default()
        };
        let id = number(words[1]);
        if let Some(Err(error)) = self.cluster.with(id, |raft| raft.propose_configuration(target)) {
            self.cluster.trace.push(format!("{id}: refuses: {error}"));
        }
    }

    fn campaign(&mut self, id: u64) {
        let round = |story: &Self| story.cluster.raft(id).is_some_and(|raft| raft.role() != Role::Follower);
        for _ in 0..100 {
            if round(self) {
                break;
            }
            self.cluster.with(id, |raft| raft.tick());
        }
    }

    fn deliver(&mut self, words: &[&str]) {
        let mut only = None;
        let mut left = usize::MAX;
        for word in words {
            match link(word) {
                Some(link) => only = Some(link),
                None if *word == "all" => {}
                None => left = number(word) as usize,
            }
        }
        if only.is_none() && left == usize::MAX {
            return self.cluster.settle();
        }
        let on_link = |message: &Message| only.is_none_or(|link| link == (message.from.0, message.to.0));
        left = left.min(self.cluster.net.iter().filter(|message| on_link(message)).count());
        for _ in 0..left {
            if let Some(at) = self.cluster.net.iter().position(on_link) {
                self.cluster.deliver(at);
            }
        }
    }

    fn tamper(&mut self, how: &str, on: &str) {
        let link = link(on);
        let net = std::mem::take(&mut self.cluster.net);
        let (mut hit, rest): (Vec<Message>, Vec<Message>) =
            net.into_iter().partition(|message| Some((message.from.0, message.to.0)) == link);
        match how {
            "drop" => hit.clear(),
            "duplicate" => hit = hit.iter().flat_map(|message| [message.clone(), message.clone()]).collect(),
            _ => hit.reverse(),
        }
        self.cluster.net = rest.into_iter().chain(hit).collect();
    }

    fn cut(&mut self, what: &str) {
        if let Some(link) = link(what) {
            self.cluster.cut.insert(link);
            return;
        }
        let id = number(what);
        let others: Vec<u64> = self.cluster.nodes.keys().copied().filter(|&other| other != id).collect();
        self.cluster.cut.extend(others.iter().flat_map(|&other| [(id, other), (other, id)]));
    }

    fn inject(&mut self, words: &[&str]) {
        let (from, to) = link(words[1]).unwrap_or_default();
        let field = |name| option(words, name).map_or(0, number);
        let granted = words.contains(&"granted");
        let body = match words[3] {
            "Vote" => Body::Vote { last_index: field("last"), last_term: field("last_term"), transfer: false },
            "VoteReply" => Body::VoteReply { granted },
            "Heartbeat" => {
                let commit = field("commit");
                Body::Heartbeat { commit, leader_commit: commit, round: field("round") }
            }
            "Accepted" => Body::AppendReply(AppendReply::Accepted { match_index: field("match") }),
            "Rejected" => Body::AppendReply(AppendReply::Rejected {
                prev_index: field("prev"),
                hint_index: field("hint"),
                hint_term: field("hint_term"),
                last_index: field("last"),
            }),
            "TimeoutNow" => Body::TimeoutNow,
            "Append" => {
                let terms = option(words, "entries").unwrap_or_default();
                let entry = |(position, term): (u64, &str)| Entry {
                    term: number(term),
                    index: field("prev").wrapping_add(1 + position),
                    kind: EntryKind::Normal,
                    payload: Bytes::from_static(b"y"),
                };
                let entries = (0u64..).zip(terms.split(',').filter(|term| !term.is_empty())).map(entry).collect();
                let (prev_index, prev_term) = (field("prev"), field("prev_term"));
                Body::Append { prev_index, prev_term, commit: field("commit"), entries }
            }
            other => panic!("unknown body: {other}"),
        };
        let message = Message { from: NodeId(from), to: NodeId(to), term: number(words[2]), body };
        self.cluster.checks.deceived = true;
        self.cluster.net.push_front(message);
        self.cluster.deliver(0);
    }

    fn propose(&mut self, id: u64, texts: &[&str]) {
        for text in texts {
            let payload = Bytes::copy_from_slice(text.as_bytes());
            if let Some(Err(error)) = self.cluster.quietly(id, |raft| raft.propose(payload)) {
                self.cluster.trace.push(format!("{id}: refuses {text}: {error}"));
            }
        }
        self.cluster.turn(id);
    }

    fn hold(&mut self, id: u64, hold: bool) {
        if let Some(node) = self.cluster.nodes.get_mut(&id) {
            node.hold = hold;
        }
    }

    fn status(&mut self, id: u64) {
        match self.cluster.raft(id).map(|raft| raft.status()) {
            Some(status) => self.cluster.trace.extend(show_status(&status)),
            None => self.cluster.trace.push(format!("{id}: down")),
        }
    }
}

fn new_cluster(words: &[&str]) -> Cluster {
    let field = |name, default: usize| option(words, name).map_or(default, |value| number(value) as usize);
    Cluster::new(number(words[1]), 1, |config| {
        config.max_append_bytes = field("append", config.max_append_bytes);
        config.max_in_flight_appends = field("appends", config.max_in_flight_appends);
        config.max_in_flight_bytes = field("bytes", config.max_in_flight_bytes);
        config.max_uncommitted_bytes = field("uncommitted", config.max_uncommitted_bytes);
        config.election_ticks = field("election", config.election_ticks as usize) as u32;
        config.heartbeat_ticks = field("heartbeat", config.heartbeat_ticks as usize) as u32;
        config.election_rpc_ticks = field("rpc", config.election_rpc_ticks as usize) as u32;
        config.election_round_ticks = field("round", config.election_round_ticks as usize) as u32;
    })
}

/// Runs a file's commands; the file as it should be.
fn play(text: &str) -> String {
    let mut story = Story { cluster: new_cluster(&["cluster", "3"]) };
    let mut out = String::new();
    for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let said = block.trim().lines().take_while(|line| *line != "----");
        let mut commands = String::new();
        let mut trace = Vec::new();
        let mut silent = true;
        for line in said {
            let _ = writeln!(commands, "{line}");
            let command = line.trim();
            if command.starts_with('#') {
                continue;
            }
            silent = false;
            story.run(command.trim_start_matches('!'));
            let lines = std::mem::take(&mut story.cluster.trace);
            if !command.starts_with('!') {
                trace.extend(lines);
            }
        }
        out.push_str(if out.is_empty() { "" } else { "\n" });
        out.push_str(&commands);
        if !silent && !trace.is_empty() {
            let _ = writeln!(out, "----\n{}", trace.join("\n"));
        }
    }
    out
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    files
}

#[test]
fn scenarios_go_as_written() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = String::new();
    let files = files();
    assert!(!files.is_empty(), "no scenarios");
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let played = play(&text);
        if played == text {
            continue;
        }
        if update {
            std::fs::write(&path, &played).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            continue;
        }
        let _ = writeln!(wrong, "{}:", path.display());
        let at = played.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
        for line in text.lines().skip(at).take(5) {
            let _ = writeln!(wrong, "  expected  {line}");
        }
        for line in played.lines().skip(at).take(5) {
            let _ = writeln!(wrong, "  happened  {line}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
