//! A leader that is heard and whose entries do not arrive gives up its office, if the others could do better.

use bytes::Bytes;
use lnc_raft::{AppendReply, Body, Config, Configuration, HardState, Message, NodeId, Raft, Ready, Restored, Role};

const LEADER: NodeId = NodeId(1);
const TICKS: u32 = 10;

/// One that leads, after its first entry is committed.
fn leader(voters: &[u64]) -> Raft {
    let mut config = Config::new(LEADER, Configuration::of(voters.iter().copied().map(NodeId)), 7);
    (config.election_ticks, config.heartbeat_ticks) = (TICKS, 1);
    let mut raft = Raft::new(config, Restored::default()).expect("a configuration");
    let mut turns = 0;
    while raft.role() != Role::Leader {
        raft.tick();
        turn(&mut raft, |body| match body {
            Body::PreVote { round, .. } => Some(Body::PreVoteReply { round: *round, granted: true }),
            Body::Vote { .. } => Some(Body::VoteReply { granted: true }),
            _ => None,
        });
        turns += 1;
        assert!(turns < 100, "everybody votes for it");
    }
    for _ in 0..5 {
        turn(&mut raft, accepts);
    }
    assert_eq!(raft.commit_index(), 1);
    raft
}

fn accepts(body: &Body) -> Option<Body> {
    match body {
        Body::Append { prev_index, entries, .. } => {
            Some(Body::AppendReply(AppendReply::Accepted { match_index: prev_index + entries.len() as u64 }))
        }
        _ => hears(body, false),
    }
}

/// What a follower answers that gets nothing but heartbeats.
fn hears(body: &Body, slow: bool) -> Option<Body> {
    match body {
        Body::Heartbeat { round, .. } => Some(Body::HeartbeatReply { slow, round: *round }),
        _ => None,
    }
}

/// Everything leaves, is durable, and is answered.
fn turn(raft: &mut Raft, answer: impl Fn(&Body) -> Option<Body>) {
    let Ready { hard_state, entries, messages, messages_after_durable, .. } = raft.take_ready();
    if let Some(HardState { term, .. }) = hard_state {
        raft.on_hard_state_durable(term);
    }
    if let Some(last) = entries.last() {
        raft.on_durable(last.term, last.index);
    }
    for message in messages.into_iter().chain(messages_after_durable) {
        let term = if matches!(message.body, Body::PreVote { .. }) { raft.term() } else { message.term };
        if let Some(body) = answer(&message.body) {
            let _ = raft.step(Message { from: message.to, to: LEADER, term, body });
        }
    }
}

/// Ticks until it does not lead any more, at most `limit`.
fn reign(raft: &mut Raft, limit: u32, answer: impl Fn(&Body) -> Option<Body>) -> Option<u32> {
    for ticks in 0..limit {
        if raft.role() != Role::Leader {
            return Some(ticks);
        }
        raft.tick();
        turn(raft, &answer);
    }
    None
}

#[test]
fn it_gives_up_after_thirty_time_outs_and_lets_others_go_first() {
    let mut raft = leader(&[1, 2, 3]);
    raft.propose(Bytes::from_static(b"long")).expect("it leads");
    let ticks = reign(&mut raft, 1_000, |body| hears(body, false));
    assert!(matches!(ticks, Some(300..=301)), "{ticks:?}");
    let mut waited = 0;
    while raft.role() == Role::Follower {
        raft.tick();
        let _ = raft.take_ready();
        waited += 1;
    }
    assert!(waited > 2 * TICKS * 2, "others have stood for election by then: {waited} ticks");
}

#[test]
fn it_stays_while_entries_arrive_or_nobody_could_do_better() {
    let mut idle = leader(&[1, 2, 3]);
    assert_eq!(reign(&mut idle, 1_000, |body| hears(body, false)), None, "nothing waits");
    let mut slow = leader(&[1, 2, 3]);
    slow.propose(Bytes::from_static(b"long")).expect("it leads");
    assert_eq!(reign(&mut slow, 1_000, |body| hears(body, true)), None, "their disks are slow");
    let mut pair = leader(&[1, 2]);
    pair.propose(Bytes::from_static(b"long")).expect("it leads");
    assert_eq!(reign(&mut pair, 1_000, |body| hears(body, false)), None, "the other is no majority");
    let mut busy = leader(&[1, 2, 3]);
    busy.propose(Bytes::from_static(b"short")).expect("it leads");
    assert_eq!(reign(&mut busy, 1_000, accepts), None, "it commits");
}
