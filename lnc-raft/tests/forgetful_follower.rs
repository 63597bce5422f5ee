//! A follower whose disk lost what it had acknowledged is caught up by the leader that remembers.

use bytes::Bytes;
use lnc_raft::{AppendReply, Body, Config, Configuration, Message, NodeId, ProgressState, Raft, Ready, Restored, Role};

const LEADER: NodeId = NodeId(1);
const FOLLOWER: NodeId = NodeId(2);

fn from_follower(raft: &mut Raft, body: Body) {
    let message = Message { from: FOLLOWER, to: LEADER, term: raft.term(), body };
    raft.step(message).expect("a sensible message");
}

fn elect() -> Raft {
    let voters = Configuration::of([1, 2, 3].map(NodeId));
    let mut raft = Raft::new(Config::new(LEADER, voters, 7), Restored::default()).expect("a valid configuration");
    let round = loop {
        raft.tick();
        let Ready { messages, .. } = raft.take_ready();
        if let Some(Message { body: Body::PreVote { round, .. }, .. }) = messages.first() {
            break *round;
        }
    };
    from_follower(&mut raft, Body::PreVoteReply { round, granted: true });
    let _ = raft.take_ready();
    raft.on_hard_state_durable(raft.term());
    from_follower(&mut raft, Body::VoteReply { granted: true });
    assert_eq!(raft.role(), Role::Leader);
    let _ = raft.take_ready();
    raft.on_durable(raft.term(), 1);
    from_follower(&mut raft, Body::AppendReply(AppendReply::Accepted { match_index: 1 }));
    raft
}

#[test]
fn what_it_forgot_is_sent_again_and_nothing_is_uncommitted() {
    let mut raft = elect();
    for index in 2..=4 {
        raft.propose(Bytes::from_static(b"kept")).expect("it leads");
        let _ = raft.take_ready();
        raft.on_durable(raft.term(), index);
    }
    from_follower(&mut raft, Body::AppendReply(AppendReply::Accepted { match_index: 4 }));
    assert_eq!(raft.commit_index(), 4);
    let _ = raft.take_ready();

    let restarted = AppendReply::Rejected { prev_index: 0, hint_index: 0, hint_term: 0, last_index: 2 };
    from_follower(&mut raft, Body::AppendReply(restarted));
    let peer = raft.status().peers.into_iter().find(|peer| peer.id == FOLLOWER).expect("a voter");
    assert_eq!((peer.match_index, peer.state), (0, ProgressState::Probe));
    assert_eq!(raft.commit_index(), 4);
    let sent = raft.take_ready().messages.into_iter().find_map(|message| match message.body {
        Body::Append { prev_index, entries, .. } if message.to == FOLLOWER => Some((prev_index, entries.len())),
        _ => None,
    });
    assert_eq!(sent, Some((2, 2)), "entries 3 and 4, behind the last one it has");
}
