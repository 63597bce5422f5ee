//! What a recovery finds missing: by the mark beside the journal, by later flushes, by the checkpoint. And what follows: groups that
//! do not vote until a leader that was elected without this node has brought them up to date.

use super::super::mark::{GroupMark, Mark};
use super::super::{Covered, GroupId, JournalConfig, LostTail, Recovered, RecoveredGroup, file_path};
use super::{Chain, End, Source};
use lnc_mutation::{Mutation, mutated};
use std::collections::BTreeMap;

/// What the mark says to be there, and is not.
pub(super) fn lost_tail(mark: &Mark, sources: &[Source], begins: u64, chain: &Chain, end: &End) -> Option<LostTail> {
    let here = sources.get(end.at);
    let (file, position) = here.map_or((begins, 0), |here| (here.number, end.position));
    let lost = |expected, found| Some(LostTail { file, position, expected, found });
    // The files that it names from the one on where the flushes end: those before are whole, as far as it matters.
    for (number, len) in mark.files.range(file.max(begins)..) {
        match sources.iter().find(|source| source.number == *number) {
            None => return lost(format!("{}, which was in use", file_path(*number)), "no such file".to_owned()),
            Some(source) if source.len < *len => {
                return lost(format!("{len} bytes in {}", file_path(*number)), format!("{} bytes", source.len));
            }
            Some(_) => {}
        }
    }
    let durable = chain.number.unwrap_or(0);
    let found = || end.damaged.clone().unwrap_or_else(|| "nothing behind it".to_owned());
    let is_short = durable < mark.durable || end.damaged.is_some();
    is_short.then(|| lost(format!("flushes up to {}", mark.durable), format!("flush {durable}, {}", found())))?
}

/// Whether the journal has what was durable only once a newer mark than this one said so: then this one is from an older time, and
/// what the newer one named may be missing behind what is there.
pub(super) fn outdated(mark: &Mark, chain: &Chain, end: &End, here: Option<&Source>) -> Option<LostTail> {
    let expected = newer(mark, chain, chain.attested)?;
    let newest = mark.files.last_key_value().map_or(0, |(number, _)| *number);
    let found = format!("one of an older time, whose newest file is {}", file_path(newest));
    Some(LostTail { file: here.map_or(newest, |here| here.number), position: end.position, expected, found })
}

/// Whether the checkpoint is newer than the journal and its mark together: those are from an older time then. The mark knows of each
/// checkpoint before the next but one; and what was applied was of a term that the journal had, or the mark.
pub(super) fn behind(
    mark: &Mark,
    config: &JournalConfig,
    covered: &BTreeMap<GroupId, Covered>,
    recovered: &Recovered,
    here: Option<&Source>,
    position: u64,
) -> Option<LostTail> {
    let known = |id: &GroupId| {
        let of_mark = mark.groups.get(id).map_or(0, |group| group.term);
        let group = recovered.groups.get(id);
        let of_votes = group.and_then(|group| group.hard_state).map_or(0, |(term, _)| term);
        let of_entries = group.and_then(|group| group.entries.last()).map_or(0, |entry| entry.term);
        let of_restart = group.and_then(|group| group.restarted_after).map_or(0, |(_, term)| term);
        of_mark.max(of_votes).max(of_entries).max(of_restart)
    };
    let newer = covered.iter().find(|(id, covered)| covered.applied_term > known(id));
    let expected = match newer {
        Some((id, covered)) => {
            format!("term {} of group {}, of which the checkpoint knows", covered.applied_term, id.0)
        }
        None if mark.checkpoint > 0 && config.checkpoint > mark.checkpoint + 1 => {
            format!("a mark that knows of checkpoint {}", config.checkpoint - 1)
        }
        None => return None,
    };
    let newest = mark.files.last_key_value().map_or(0, |(number, _)| *number);
    let found = format!("a journal and a mark of an older time, which know of checkpoint {}", mark.checkpoint);
    Some(LostTail { file: here.map_or(newest, |here| here.number), position, expected, found })
}

/// What flushes up to this number have that a mark must know, and this one does not: a mark that would.
pub(super) fn newer(mark: &Mark, chain: &Chain, upto: u64) -> Option<String> {
    let newest = mark.files.last_key_value().map_or(0, |(number, _)| *number);
    let file = chain.begun.range(newest + 1..).find(|(_, number)| **number <= upto);
    let vote = chain.voted.iter().find(|(group, (term, vote, number))| {
        let known = mark.groups.get(group).copied().unwrap_or_default();
        let is_newer = *term > known.term || (*term == known.term && known.vote.is_none() && vote.is_some());
        is_newer && *number <= upto
    });
    match (file, vote) {
        (Some((file, _)), _) => Some(format!("a mark that names {}, which is in use", file_path(*file))),
        (None, Some((group, (term, ..)))) => Some(format!("a mark that knows of term {term} of group {}", group.0)),
        (None, None) => None,
    }
}

/// Take over what the mark knows of the groups. After a loss it is not known what they had: none of them may vote before it
/// has heard of a leader of a term in which it has not voted.
pub(super) fn take_mark(
    mark: &Mark,
    config: &JournalConfig,
    lost: bool,
    covered: &BTreeMap<GroupId, Covered>,
    recovered: &mut Recovered,
) {
    for (id, GroupMark { term, vote, in_doubt }) in &mark.groups {
        let group = recovered.groups.entry(*id).or_default();
        let newer = group.hard_state.is_none_or(|(own, voted)| own < *term || (own == *term && voted.is_none()));
        if newer && *term > 0 {
            group.hard_state = Some((*term, *vote));
        }
        if *in_doubt > 0 && !mutated(Mutation::ForgetDoubt) {
            recovered.in_doubt.insert(*id, *in_doubt);
        }
    }
    if !lost {
        return;
    }
    for id in covered.keys() {
        recovered.groups.entry(*id).or_default();
    }
    for (id, group) in &mut recovered.groups {
        // The checkpoint may be newer than the journal and its mark together.
        let checkpoint = covered.get(id).copied().unwrap_or_default().term;
        let term = group.hard_state.map_or(0, |(term, _)| term).max(checkpoint) + 1;
        // A vote for itself, with which it does not stand: nobody else gets one in this term.
        group.hard_state = Some((term, Some(config.owner.node)));
        recovered.in_doubt.insert(*id, term);
    }
}

/// What the mark is to say of what was found, the checkpoint too: it goes on from there. Groups of which something is lost are in doubt.
pub(super) fn as_found(
    mark: &Mark,
    config: &JournalConfig,
    sources: &[Source],
    chain: &Chain,
    recovered: &Recovered,
) -> Mark {
    let group = |(id, group): (&GroupId, &RecoveredGroup)| {
        let (term, vote) = group.hard_state.unwrap_or_default();
        (*id, GroupMark { term, vote, in_doubt: recovered.in_doubt.get(id).copied().unwrap_or_default() })
    };
    Mark {
        durable: chain.number.unwrap_or(0),
        epoch: chain.epoch,
        files: sources.iter().map(|source| (source.number, source.len)).collect(),
        groups: recovered.groups.iter().map(group).collect(),
        checkpoint: mark.checkpoint.max(config.checkpoint),
        ..mark.clone()
    }
}
