//! A node that may lack what it acknowledged neither votes nor stands, until it has an entry of a leader that was elected
//! without it.

use bytes::Bytes;
use lnc_raft::{
    Body, Config, Configuration, Entry, EntryKind, HardState, Message, NodeId, Raft, Ready, Restored, Role,
};

const NODE: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);
/// The first term in which it has not voted.
const TERM: u64 = 5;

fn entry(term: u64, index: u64) -> Entry {
    Entry { term, index, kind: EntryKind::Normal, payload: Bytes::new() }
}

fn restored(in_doubt: u64, entries: Vec<Entry>) -> Raft {
    let voters = Configuration::of([1, 2, 3].map(NodeId));
    let hard_state = HardState { term: TERM, vote: Some(NODE) };
    let restored = Restored { hard_state, entries, in_doubt, ..Restored::default() };
    Raft::new(Config::new(NODE, voters, 7), restored).expect("a memory that makes sense")
}

/// What it answers to a candidate whose log is far ahead.
fn is_granted(raft: &mut Raft, term: u64) -> bool {
    let body = Body::Vote { last_index: 100, last_term: term - 1, transfer: true };
    raft.step(Message { from: OTHER, to: NODE, term, body }).expect("sensible");
    let Ready { messages_after_durable, .. } = raft.take_ready();
    let answer = messages_after_durable.into_iter().find_map(|message| match message.body {
        Body::VoteReply { granted } => Some(granted),
        _ => None,
    });
    answer.expect("every candidate is answered")
}

fn append(raft: &mut Raft, term: u64, prev: (u64, u64), entries: Vec<Entry>) {
    let last = entries.last().map(|last| (last.term, last.index));
    let (prev_term, prev_index) = prev;
    let body = Body::Append { prev_index, prev_term, commit: 0, entries };
    raft.step(Message { from: OTHER, to: NODE, term, body }).expect("sensible");
    let _ = raft.take_ready();
    if let Some((term, index)) = last {
        raft.on_durable(term, index);
    }
}

#[test]
fn it_neither_votes_nor_stands() {
    let mut raft = restored(TERM, vec![entry(4, 1)]);
    assert!(raft.is_in_doubt());
    for _ in 0..1000 {
        raft.tick();
        assert_eq!(raft.role(), Role::Follower);
    }
    assert_eq!(raft.term(), TERM);
    raft.peer_lost(OTHER);
    assert!(!is_granted(&mut raft, TERM + 1) && raft.role() == Role::Follower);
}

#[test]
fn entries_of_earlier_terms_do_not_suffice_and_those_of_a_new_leader_do() {
    let mut raft = restored(TERM, vec![entry(4, 1)]);
    append(&mut raft, TERM + 1, (4, 1), vec![entry(4, 2)]);
    assert!(raft.is_in_doubt(), "an entry of before says nothing of what came after it");
    assert!(!is_granted(&mut raft, TERM + 2));
    append(&mut raft, TERM + 2, (4, 2), vec![entry(TERM + 2, 3)]);
    assert!(!raft.is_in_doubt());
    assert!(is_granted(&mut raft, TERM + 3));
}

#[test]
fn a_log_that_has_such_an_entry_at_the_start_is_whole() {
    assert!(!restored(TERM, vec![entry(4, 1), entry(TERM, 2)]).is_in_doubt());
    assert!(!restored(0, Vec::new()).is_in_doubt());
}
