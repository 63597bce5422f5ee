//! Whether leaders keep their followers.

use super::Violation;
use lnc_raft::NodeId;

/// Where nothing but load goes on, nobody has to fetch the state.
pub(crate) fn check(leader: u64, group: u32, lost: &[NodeId]) -> Result<(), Violation> {
    match lost.first() {
        Some(follower) => {
            let what = format!("node {leader} leads group {group}, and has left node {follower} behind, which lives");
            Err(Violation::new("followers-kept", what))
        }
        None => Ok(()),
    }
}
