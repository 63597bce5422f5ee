//! Nodes come and go: whatever is on its way, every group has a leader, and nothing acknowledged is lost.

use crate::harness::{Cluster, META, Rng, SECOND, Settings, Writer, addresses, produce_request};
use bytes::Bytes;
use lnc_broker::Broker;
use lnc_log::disk::MemoryDisk;
use lnc_log::disk::memory::CrashChoice;
use lnc_protocol::message::{ChangeMembersRequest, MemberChange};
use lnc_protocol::{ErrorCode, Request, Response};
use lnc_raft::{Body, Entry, EntryKind, Message, NodeId};
use lnc_replication::formation::{Formats, Greeted};
use lnc_replication::notice::{NodeFacts, OwnAddresses, PeerNotice, Traffic};
use lnc_replication::wire::PeerMessage;

fn change(change: MemberChange, node: u64) -> ChangeMembersRequest {
    ChangeMembersRequest {
        change,
        node,
        client_address: String::new(),
        peer_address: String::new(),
        http_address: String::new(),
        replaces: None,
        timeout_ms: 5_000,
    }
}

fn adding(node: u64) -> ChangeMembersRequest {
    let at = addresses(node);
    ChangeMembersRequest {
        client_address: at.client,
        peer_address: at.peer,
        http_address: at.http,
        ..change(MemberChange::Add, node)
    }
}

fn decide(cluster: &mut Cluster, request: ChangeMembersRequest) {
    assert_eq!(cluster.demand(&Request::ChangeMembers(request)), Response::ChangeMembers);
}

/// A cluster under load.
struct Loaded {
    cluster: Cluster,
    writer: Writer,
    rng: Rng,
}

impl Loaded {
    fn new(settings: Settings) -> Self {
        let rng = Rng::new(settings.seed);
        let mut cluster = Cluster::ready(settings);
        cluster.create_topic("t", 3);
        let writer = Writer::new(&mut cluster, "t", 3);
        Self { cluster, writer, rng }
    }

    /// Let time pass under load until something is true.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Cluster) -> bool) {
        for _ in 0..120 * SECOND {
            if done(&mut self.cluster) {
                return;
            }
            self.writer.go_on(&mut self.cluster, &mut self.rng);
            self.cluster.tick();
        }
        panic!("two minutes passed, but not: {what}; {}", self.cluster.describe());
    }

    /// Wait until records are acknowledged in every partition.
    fn go_on(&mut self, when: &str) {
        let before = self.writer.acknowledged();
        for _ in 0..60 * SECOND {
            if self.writer.acknowledged() > before + 20 {
                return;
            }
            self.writer.go_on(&mut self.cluster, &mut self.rng);
            self.cluster.tick();
        }
        panic!("records are not acknowledged {when}; {}", self.cluster.describe());
    }

    /// Let time pass under load.
    fn go_on_some(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.writer.go_on(&mut self.cluster, &mut self.rng);
            self.cluster.tick();
        }
    }

    /// Wait until exactly these nodes vote in every group, and nobody else is named.
    fn await_voters(&mut self, nodes: &[u64]) {
        let nodes = nodes.to_vec();
        self.until(&format!("{nodes:?} are the members"), |cluster| {
            cluster.groups().into_iter().all(|group| {
                let Some(leader) = cluster.leader(group) else { return false };
                let view = cluster.view(leader, group);
                view.voters == nodes && view.others == 0
            })
        });
    }

    fn remove(&mut self, node: u64) {
        decide(&mut self.cluster, change(MemberChange::Remove, node));
    }

    /// Everything acknowledged is there, on every node.
    fn finish(mut self) {
        self.writer.finish(&mut self.cluster, &mut self.rng);
        self.cluster.await_same();
        self.writer.check(&mut self.cluster);
    }
}

#[test]
fn removal_down_to_one_leaves_every_group_with_a_leader() {
    for seed in 1..=4 {
        for nodes in [2, 3] {
            let mut loaded = Loaded::new(Settings { nodes, data_groups: 3, seed, ..Settings::default() });
            // Whoever stays leads something, and so does whoever goes.
            let stays = 1 + seed % nodes;
            let mut left: Vec<u64> = (1..=nodes).collect();
            for goes in (1..=nodes).filter(|node| *node != stays) {
                loaded.remove(goes);
                left.retain(|node| *node != goes);
                loaded.await_voters(&left);
                loaded.go_on(&format!("without node {goes}, of {nodes}, seed {seed}"));
            }
            for goes in (1..=nodes).filter(|node| *node != stays) {
                loaded.cluster.kill(goes);
            }
            loaded.cluster.kill(stays);
            loaded.cluster.start(stays);
            loaded.finish();
        }
    }
}

#[test]
fn a_live_node_of_four_goes_while_one_is_down() {
    for seed in 1..=3 {
        let mut loaded = Loaded::new(Settings { nodes: 4, data_groups: 3, seed, ..Settings::default() });
        let (down, goes) = (1 + seed % 4, 1 + (seed + 1) % 4);
        loaded.cluster.kill(down);
        loaded.remove(goes);
        let left: Vec<u64> = (1..=4).filter(|node| *node != goes).collect();
        loaded.await_voters(&left);
        loaded.cluster.kill(goes);
        loaded.cluster.start(down);
        loaded.go_on("of three again");
        loaded.finish();
    }
}

#[test]
fn from_five_to_one_and_back_under_load_with_restarts_in_between() {
    for seed in [1] {
        let mut loaded = Loaded::new(Settings { nodes: 5, data_groups: 3, seed, ..Settings::default() });
        let mut left: Vec<u64> = (1..=5).collect();
        while left.len() > 1 {
            let goes = left.remove((seed + left.len() as u64 * 7) as usize % left.len());
            loaded.remove(goes);
            // Somebody ends, at any moment of the change, and so may who is to leave.
            let restarted = if left.len().is_multiple_of(2) { goes } else { left[0] };
            loaded.go_on_some(30 * left.len() as u32);
            loaded.cluster.kill(restarted);
            loaded.go_on_some(SECOND);
            loaded.cluster.start(restarted);
            loaded.await_voters(&left);
            loaded.go_on(&format!("by {left:?}, seed {seed}"));
            loaded.cluster.kill(goes);
        }
        for comes in (1..=5).filter(|node| !left.contains(node)).collect::<Vec<_>>() {
            loaded.cluster.appear(comes);
            decide(&mut loaded.cluster, adding(comes));
            loaded.go_on_some(SECOND);
            let restarted = left[0];
            loaded.cluster.kill(restarted);
            loaded.go_on_some(SECOND / 2);
            loaded.cluster.start(restarted);
            left.push(comes);
            left.sort_unstable();
            loaded.await_voters(&left);
            loaded.go_on(&format!("by {left:?} again, seed {seed}"));
        }
        loaded.finish();
    }
}

#[test]
fn a_node_is_replaced_while_it_lives_and_leads() {
    for seed in 1..=2 {
        for old in 1..=3 {
            let mut loaded = Loaded::new(Settings { nodes: 3, data_groups: 3, seed, ..Settings::default() });
            loaded.cluster.await_balance();
            loaded.cluster.appear(4);
            decide(&mut loaded.cluster, ChangeMembersRequest { replaces: Some(old), ..adding(4) });
            let left: Vec<u64> = (1..=4).filter(|node| *node != old).collect();
            loaded.await_voters(&left);
            loaded.go_on(&format!("with 4 for {old}, seed {seed}"));
            // The members are at rest: nothing is added to be removed again.
            let last = |cluster: &mut Cluster| cluster.leader(META).map(|id| cluster.view(id, META).last);
            loaded.until("the old one is forgotten", |cluster| membership(cluster, left[0], old).is_none());
            loaded.cluster.ticks(2 * SECOND);
            let before = last(&mut loaded.cluster);
            loaded.cluster.ticks(10 * SECOND);
            assert_eq!(last(&mut loaded.cluster), before, "the catalog's log goes on without a reason");
            loaded.cluster.kill(old);
            loaded.finish();
        }
    }
}

/// Its knock, heard before it was admitted, must not admit it a second time.
#[test]
fn who_goes_and_is_expected_again_does_not_succeed_itself() {
    let mut loaded = Loaded::new(Settings { nodes: 3, data_groups: 2, seed: 1, ..Settings::default() });
    loaded.cluster.appear(4);
    decide(&mut loaded.cluster, adding(4));
    loaded.await_voters(&[1, 2, 3, 4]);
    loaded.remove(4);
    loaded.await_voters(&[1, 2, 3]);
    decide(&mut loaded.cluster, adding(4));
    loaded.go_on_some(12 * SECOND);
    // Its directory belongs to a member that was removed: it has no part, and nobody waits for it.
    loaded.await_voters(&[1, 2, 3]);
    assert_eq!(membership(&mut loaded.cluster, 1, 4).as_deref(), Some("expected"));
    loaded.cluster.kill(4);
    loaded.finish();
}

/// Nobody's checkpoint has the new members yet, and no configuration file names them all.
#[test]
fn a_cluster_that_has_just_grown_comes_back_after_it_lost_its_power() {
    for choice in [CrashChoice::Nothing, CrashChoice::Everything] {
        let mut loaded = Loaded::new(Settings { nodes: 1, data_groups: 2, seed: 3, ..Settings::default() });
        for comes in 2..=3 {
            loaded.cluster.appear(comes);
            decide(&mut loaded.cluster, adding(comes));
            loaded.await_voters(&(1..=comes).collect::<Vec<_>>());
        }
        for node in 1..=3 {
            loaded.cluster.crash(node, choice);
        }
        for node in 1..=3 {
            loaded.cluster.start(node);
        }
        loaded.go_on("after the power came back");
        loaded.finish();
    }
}

/// What a node says of a member's part in the cluster.
fn membership(cluster: &mut Cluster, asked: u64, node: u64) -> Option<String> {
    let known = cluster.node(asked).snapshot().cluster.nodes;
    known.into_iter().find(|known| known.id == node).map(|known| known.membership)
}

#[test]
fn a_node_that_was_removed_says_so() {
    let mut loaded = Loaded::new(Settings::default());
    loaded.remove(3);
    loaded.await_voters(&[1, 2]);
    loaded.cluster.until("the node says that it was removed", |cluster| {
        cluster
            .node(3)
            .readiness()
            .is_err_and(|reason| reason.contains("was removed") && reason.contains("cluster add 3"))
    });
    assert_eq!(loaded.cluster.node(1).readiness(), Ok(()));
    loaded.cluster.kill(3);
    loaded.cluster.start(3);
    loaded.cluster.ticks(3 * SECOND);
    let reason = loaded.cluster.node(3).readiness().expect_err("it has left");
    assert!(reason.contains("was removed"), "{reason}");
}

#[test]
fn nobody_who_is_alive_is_replaced_the_leader_of_the_catalog_least_of_all() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.ticks(5 * SECOND);
    for node in 1..=3 {
        for _ in 0..10 {
            cluster.apply_for(node, 99);
            cluster.ticks(SECOND / 2);
        }
    }
    for node in 1..=3 {
        assert_eq!(membership(&mut cluster, 1, node).as_deref(), Some("member"), "node {node}");
        assert_eq!(cluster.node(node).snapshot().cluster.nodes.len(), 3);
    }
    // Strangers are not even remembered, nor is one without an incarnation believed.
    cluster.apply_for(9, 9);
    cluster.ticks(2 * SECOND);
    assert_eq!(membership(&mut cluster, 1, 9), None);
}

/// A fresh node was told that it is admitted by a leader that fell before that counted.
#[test]
fn who_joined_by_a_word_that_got_lost_is_admitted_as_who_it_believes_to_be() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.ticks(5 * SECOND);
    decide(&mut cluster, adding(4));
    let mut comes = |id: NodeId, incarnation, state: &str| {
        cluster.stray(id, incarnation);
        cluster.ticks(2 * SECOND);
        assert_eq!(membership(&mut cluster, 1, id.node()).as_deref(), Some(state), "{id}");
    };
    // Under another generation it would be somebody else; and nobody takes the place of who is alive.
    comes(NodeId::new(4, 1), 44, "expected");
    comes(NodeId(3), 99, "member");
    comes(NodeId::new(3, 1), 99, "member");
    comes(NodeId(4), 44, "joining");
}

#[test]
fn who_is_to_be_replaced_serves_until_then_and_to_say_so_again_begins_nothing_anew() {
    let mut loaded = Loaded::new(Settings::default());
    decide(&mut loaded.cluster, change(MemberChange::Renew, 2));
    for _ in 0..5 {
        loaded.go_on_some(SECOND);
        assert_eq!(loaded.cluster.node(2).readiness(), Ok(()), "it votes, and others need it");
    }
    loaded.cluster.kill(2);
    loaded.until("it comes with an empty disk", |cluster| {
        cluster.apply_for(2, 99);
        membership(cluster, 1, 2).as_deref() == Some("joining")
    });
    decide(&mut loaded.cluster, change(MemberChange::Renew, 2));
    loaded.go_on_some(2 * SECOND);
    assert_eq!(membership(&mut loaded.cluster, 1, 2).as_deref(), Some("joining"), "it goes on");
}

#[test]
fn what_cannot_complete_is_forgotten_and_who_votes_is_not() {
    let mut loaded = Loaded::new(Settings::default());
    let refused = |loaded: &mut Loaded, node| {
        let leader = loaded.cluster.leader_of(crate::harness::META);
        let error = loaded.cluster.ask(leader, &Request::ChangeMembers(change(MemberChange::Forget, node)));
        error.expect_err("it is refused").code
    };
    assert_eq!(refused(&mut loaded, 2), ErrorCode::InvalidMembership, "it votes");
    assert_eq!(refused(&mut loaded, 9), ErrorCode::UnknownMember);

    // A node that never comes.
    decide(&mut loaded.cluster, adding(4));
    assert_eq!(membership(&mut loaded.cluster, 1, 4).as_deref(), Some("expected"));
    decide(&mut loaded.cluster, change(MemberChange::Forget, 4));
    loaded.await_voters(&[1, 2, 3]);
    loaded.until("nobody is expected", |cluster| membership(cluster, 1, 4).is_none());

    // One that is to come back with an empty disk, and does not; then one that has shown itself and is never reached.
    for node in [1, 2] {
        decide(&mut loaded.cluster, change(MemberChange::Renew, node));
        loaded.go_on_some(SECOND);
        if node == 2 {
            let leader = loaded.cluster.leader_of(crate::harness::META);
            loaded.cluster.apply_for(2, 99);
            loaded.until("it is a learner", |cluster| cluster.view(leader, crate::harness::META).others > 0);
        }
        assert_ne!(membership(&mut loaded.cluster, 3, node).as_deref(), Some("member"));
        decide(&mut loaded.cluster, change(MemberChange::Forget, node));
        loaded.await_voters(&[1, 2, 3]);
        loaded.until("it is a member as before", |cluster| {
            (1..=3).all(|asked| membership(cluster, asked, node).as_deref() == Some("member"))
        });
        loaded.go_on("as before");
        assert_eq!(refused(&mut loaded, node), ErrorCode::InvalidMembership, "it votes");
    }
    loaded.until("everybody is ready", |cluster| (1..=3).all(|node| cluster.node(node).readiness().is_ok()));
    loaded.finish();
}

#[test]
fn addresses_that_are_none_or_another_s_are_refused() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.ticks(2 * SECOND);
    let leader = cluster.leader_of(crate::harness::META);
    let mut why = |request: ChangeMembersRequest| {
        let error = cluster.ask(leader, &Request::ChangeMembers(request)).expect_err("it is refused");
        assert_eq!(error.code, ErrorCode::InvalidMembership, "{error}");
        error.message
    };
    let good = adding(4);
    assert!(why(ChangeMembersRequest { peer_address: "node-4".into(), ..good.clone() }).contains("host:port"));
    assert!(why(ChangeMembersRequest { client_address: String::new(), ..good.clone() }).contains("client address"));
    assert!(why(ChangeMembersRequest { http_address: "node-4:1993".into(), ..good.clone() }).contains("twice"));
    for other in 1..=3 {
        let message = why(ChangeMembersRequest { client_address: format!("node-{other}:1994"), ..good.clone() });
        assert!(message.contains(&format!("one of node {other}")), "{message}");
        let inherits = ChangeMembersRequest { replaces: Some(other), ..adding(other) };
        let message = why(ChangeMembersRequest { node: 4, ..inherits });
        assert!(message.contains(&format!("node {other}, which still runs there")), "{message}");
    }
    decide(&mut cluster, good);
}

/// It cannot be asked what the time is.
#[test]
fn a_lone_voter_goes_on_without_the_member_that_came_and_left_again() {
    let mut cluster = Cluster::ready(Settings { nodes: 1, checkpoint_bytes: 10_000, ..Settings::default() });
    cluster.create_topic("t", 1);
    cluster.ticks(2 * SECOND);
    decide(&mut cluster, adding(2));
    cluster.apply_for(2, 99);
    cluster.until("it is admitted", |cluster| membership(cluster, 1, 2).as_deref() == Some("joining"));
    let value = "v".repeat(20_000);
    cluster.produce(&produce_request("t", 0, &[&value]));
    cluster.until("the catalog is in a checkpoint", |cluster| cluster.node(1).checkpoint(META).is_some());
    cluster.kill(1);
    cluster.start(1);
    for n in 0..3 {
        let request = produce_request("t", 0, &[&n.to_string()]);
        assert_eq!(cluster.produce(&request).base_offset, Some(n + 1));
    }
}

#[test]
fn whoever_replaces_a_node_that_is_gone_may_have_its_addresses() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.ticks(2 * SECOND);
    cluster.kill(2);
    cluster.ticks(SECOND);
    decide(&mut cluster, ChangeMembersRequest { node: 4, replaces: Some(2), ..adding(2) });
}

/// A peer that speaks for the leader of a later term, with something in its log that nobody can apply.
#[test]
fn an_entry_that_cannot_be_applied_gets_into_no_log() {
    let mut loaded = Loaded::new(Settings::default());
    loaded.go_on("at first");
    for group in loaded.cluster.groups() {
        for node in 1..=3 {
            let view = loaded.cluster.view(node, group);
            let from = NodeId(1 + node % 3);
            let entry = Entry {
                term: view.term + 1,
                index: 1,
                kind: EntryKind::Normal,
                payload: Bytes::from_static(b"no commands"),
            };
            // Before the first entry, every log agrees with every other.
            let body = Body::Append { prev_index: 0, prev_term: 0, commit: 0, entries: vec![entry] };
            let message = Message { from, to: NodeId(node), term: view.term + 1, body };
            loaded.cluster.inject(message, group);
            loaded.cluster.ticks(20);
            assert!(loaded.cluster.node(node).metrics().entries_refused_total.get() > 0);
        }
    }
    loaded.go_on("after that");
    loaded.finish();
}

#[test]
fn a_term_at_its_maximum_from_a_peer_leaves_room_for_elections() {
    let mut loaded = Loaded::new(Settings::default());
    for group in loaded.cluster.groups() {
        for (node, term) in [(1, u64::MAX), (2, u64::MAX / 4), (3, u64::MAX / 4 - 1)] {
            let from = NodeId(1 + node % 3);
            let vote = Body::Vote { last_index: u64::MAX / 4, last_term: term, transfer: true };
            let beat = Body::Heartbeat { commit: 0, leader_commit: 0, round: 0 };
            for body in [vote, beat] {
                loaded.cluster.inject(Message { from, to: NodeId(node), term, body }, group);
            }
        }
    }
    loaded.go_on("after that");
    for node in 1..=3 {
        loaded.cluster.kill(node);
        loaded.cluster.start(node);
        loaded.go_on("after a restart");
    }
    loaded.finish();
}

/// It has lost its catalog, or never had one, and its configuration lists older members only.
#[test]
fn a_member_that_nobody_has_told_of_says_itself_how_it_is_reached() {
    let mut cluster = Cluster::new(Settings::default());
    let (clock, from, to) = (cluster.clock(), NodeId(4), NodeId(1));
    let told = |peer: &str| PeerNotice {
        from,
        to,
        wall_ms: clock.wall_ms,
        drains: false,
        facts: NodeFacts::of_build(None, Traffic::default()),
        addresses: OwnAddresses { client: "n4:1992".into(), peer: peer.into(), http: "n4:1994".into() },
    };
    let broker = cluster.node_mut(1).broker_mut().expect("it runs");
    let reached = |broker: &Broker<MemoryDisk>| broker.membership().nodes.get(&4).map(|node| node.peer.clone());
    broker.peer_message(clock, PeerMessage::Notice(told("n4:1993")));
    assert_eq!(reached(broker), None, "nobody is let in who is no member");
    broker.peer_changed(clock, from, Some(Greeted { incarnation: 44, formats: Formats::BUILD }));
    broker.peer_message(clock, PeerMessage::Notice(told("nowhere")));
    assert_eq!(reached(broker), None, "that is no address");
    broker.peer_message(clock, PeerMessage::Notice(told("n4:1993")));
    assert_eq!(reached(broker).as_deref(), Some("n4:1993"));
}
