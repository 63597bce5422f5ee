//! When a node that has just started stands for election.

use lnc_raft::{Config, Configuration, NodeId, Raft, Restored, Role};

/// Ticks until it asks for pre-votes, none of which are answered.
fn stands_after(raft: &mut Raft) -> u32 {
    for ticks in 1..=1000 {
        raft.tick();
        if raft.take_ready().messages.iter().any(|message| matches!(message.body, lnc_raft::Body::PreVote { .. })) {
            return ticks;
        }
    }
    panic!("it never stands");
}

#[test]
fn the_first_wait_is_shorter_than_a_time_out_and_no_other_is() {
    let voters = Configuration::of([1, 2, 3].map(NodeId));
    for seed in 0..200 {
        let config = Config::new(NodeId(1), voters.clone(), seed);
        let (election_ticks, rpc_ticks) = (config.election_ticks, config.election_rpc_ticks);
        let mut raft = Raft::new(config, Restored::default()).expect("a valid configuration");
        assert!(stands_after(&mut raft) <= election_ticks, "seed {seed}");
        assert_eq!((raft.role(), raft.term()), (Role::PreCandidate, 0), "nobody's term is touched, seed {seed}");
        // Without an answer it asks again when a voter should have answered, or anew after a whole time-out.
        assert!(stands_after(&mut raft) >= election_ticks.min(rpc_ticks), "seed {seed}");
    }
}
