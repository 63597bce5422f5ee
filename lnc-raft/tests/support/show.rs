//! One line for each thing worth reading in a trace.

use lnc_raft::{AppendReply, Body, Configuration, Entry, EntryKind, Message, ProgressState, Status};

/// `term/index:payload`, space separated.
pub(crate) fn show_entries(entries: &[Entry]) -> String {
    let one = |entry: &Entry| match entry.kind {
        EntryKind::Empty => format!("{}/{}", entry.term, entry.index),
        EntryKind::Configuration => match Configuration::decode(&entry.payload) {
            Ok(members) => format!("{}/{}:members {members}", entry.term, entry.index),
            Err(error) => format!("{}/{}:{error}", entry.term, entry.index),
        },
        EntryKind::Normal => format!("{}/{}:{}", entry.term, entry.index, String::from_utf8_lossy(&entry.payload)),
    };
    entries.iter().map(one).collect::<Vec<_>>().join(" ")
}

pub(crate) fn show_message(message: &Message) -> String {
    let body = match &message.body {
        Body::PreVote { last_index, last_term, .. } => format!("PreVote last {last_term}/{last_index}"),
        Body::PreVoteReply { granted, .. } => format!("PreVoteReply {}", yes(*granted)),
        Body::Vote { last_index, last_term, transfer } => {
            format!("Vote last {last_term}/{last_index}{}", if *transfer { " transfer" } else { "" })
        }
        Body::VoteReply { granted } => format!("VoteReply {}", yes(*granted)),
        Body::Append { prev_index, prev_term, commit, entries } => {
            format!("Append prev {prev_term}/{prev_index} commit {commit} [{}]", show_entries(entries))
        }
        Body::AppendReply(AppendReply::Accepted { match_index }) => format!("Accepted {match_index}"),
        Body::AppendReply(AppendReply::Rejected { prev_index, hint_index, hint_term, last_index }) => {
            format!("Rejected {prev_index} hint {hint_term}/{hint_index} last {last_index}")
        }
        Body::Heartbeat { commit, round, .. } => format!("Heartbeat commit {commit} round {round}"),
        Body::HeartbeatReply { round, .. } => format!("HeartbeatReply round {round}"),
        Body::StateNeeded { index, term } => format!("StateNeeded {term}/{index}"),
        Body::TimeoutNow => "TimeoutNow".into(),
        Body::ReadIndex { .. } => "ReadIndex".into(),
        Body::ReadIndexReply { index, .. } => format!("ReadIndexReply {index:?}"),
    };
    format!("{}->{} t{} {body}", message.from, message.to, message.term)
}

fn yes(granted: bool) -> &'static str {
    if granted { "granted" } else { "refused" }
}

pub(crate) fn show_status(status: &Status) -> Vec<String> {
    let leader = status.leader.map_or("none".into(), |leader| leader.to_string());
    let mut lines = vec![format!(
        "{}: {:?} term {} leader {leader} commit {} applied {} durable {} last {} first {} in memory from {}",
        status.id,
        status.role,
        status.term,
        status.commit,
        status.applied,
        status.durable,
        status.last,
        status.first_index,
        status.first_in_memory,
    )];
    for peer in &status.peers {
        let state = match peer.state {
            ProgressState::Probe => "probe",
            ProgressState::Replicate => "replicate",
            ProgressState::NeedsSnapshot => "needs snapshot",
        };
        let learner = if peer.learner { " learner" } else { "" };
        let active = if peer.recently_active { "" } else { " silent" };
        lines.push(format!(
            "   {}: {state} match {} next {} in flight {}{learner}{active}",
            peer.id, peer.match_index, peer.next_index, peer.in_flight
        ));
    }
    let members = &status.configuration;
    if members.is_joint() || !members.learners.is_empty() || !status.configuration_committed {
        let committed = if status.configuration_committed { "" } else { " (not committed)" };
        lines.push(format!("   members {members}{committed}"));
    }
    if let Some(to) = status.transferring {
        lines.push(format!("   transferring to {to}"));
    }
    lines
}
