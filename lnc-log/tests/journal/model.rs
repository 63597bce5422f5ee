//! Random runs with crashes and reopening, against the list of what was appended.

use crate::harness::{History, config, open, settle, step};
use lnc_log::disk::MemoryDisk;
use lnc_log::disk::memory::{CrashChoice, Order};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Action {
    /// Append to a group, `back` entries before its end, or `ahead` past it after a restart.
    Entry {
        group: u32,
        back: u64,
        len: usize,
    },
    Restart {
        group: u32,
        ahead: u64,
    },
    HardState {
        group: u32,
        vote: Option<u64>,
    },
    Flush,
    Step,
    Settle,
    MarkIdle,
    /// Release everything before the current file.
    Release,
    Crash {
        seed: u64,
    },
    Kill {
        happened: u64,
    },
}

fn action() -> impl Strategy<Value = Action> {
    let len = prop_oneof![6 => 0usize..200, 3 => 200usize..6000, 1 => 6000usize..40_000];
    let back = prop_oneof![6 => Just(0u64), 1 => 1u64..4];
    prop_oneof![
        10 => (0u32..3, back, len).prop_map(|(group, back, len)| Action::Entry { group, back, len }),
        1 => (0u32..3, 0u64..5).prop_map(|(group, ahead)| Action::Restart { group, ahead }),
        2 => (0u32..3, proptest::option::of(0u64..5)).prop_map(|(group, vote)| Action::HardState { group, vote }),
        8 => Just(Action::Flush),
        6 => Just(Action::Step),
        2 => Just(Action::Settle),
        1 => Just(Action::MarkIdle),
        1 => Just(Action::Release),
        1 => any::<u64>().prop_map(|seed| Action::Crash { seed }),
        1 => any::<u64>().prop_map(|happened| Action::Kill { happened }),
    ]
}

fn next_indexes(history: &History) -> BTreeMap<u32, u64> {
    let state = history.state(history.appended.len(), 0);
    let next = |group: &lnc_log::journal::RecoveredGroup| {
        let restarted = group.restarted_after.map_or(1, |(index, _)| index + 1);
        group.entries.last().map_or(restarted, |entry| entry.index + 1)
    };
    state.iter().map(|(id, group)| (*id, next(group))).collect()
}

fn run(actions: &[Action], seed: u64) {
    let config = config(4 * 4096, 1 + (seed % 4) as usize);
    let mut disk = MemoryDisk::new();
    let (mut journal, _) = open(&mut disk, config.clone(), 0);
    disk.set_order(Order::Seeded(seed));
    let mut history = History::default();
    let mut next = BTreeMap::new();
    let mut start = 0;
    for (n, action) in actions.iter().enumerate() {
        match action {
            Action::Entry { group, back, len } => {
                let end = next.entry(*group).or_insert(1u64);
                let index = end.saturating_sub(*back).max(1);
                history.entry(&mut journal, *group, n as u64, index, *len);
                *end = index + 1;
            }
            Action::Restart { group, ahead } => {
                let end = next.entry(*group).or_insert(1u64);
                history.restart(&mut journal, *group, n as u64, *end + ahead);
                *end += ahead + 1;
            }
            Action::HardState { group, vote } => history.hard_state(&mut journal, *group, n as u64, *vote),
            Action::Flush => history.flush(&mut journal, &mut disk),
            Action::Step => drop(step(&mut journal, &mut disk).expect("healthy")),
            Action::Settle => drop(settle(&mut journal, &mut disk).expect("healthy")),
            Action::MarkIdle => journal.mark_idle(&mut disk),
            Action::Release => {
                start = journal.current_file();
                journal.release(&mut disk, start);
            }
            Action::Crash { .. } | Action::Kill { .. } => {
                history.observe(&journal);
                disk = match action {
                    Action::Crash { seed } => disk.crash(CrashChoice::Torn(*seed)),
                    Action::Kill { happened } => disk.kill(*happened),
                    _ => unreachable!("matched above"),
                };
                let (reopened, recovered) = open(&mut disk, config.clone(), start);
                let count = history.matching(&recovered, start);
                history.restart_from(count.unwrap_or_else(|| panic!("step {n}: {recovered:?}")));
                journal = reopened;
                next = next_indexes(&history);
            }
        }
        history.observe(&journal);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn recovery_keeps_what_is_durable_and_invents_nothing(
        actions in proptest::collection::vec(action(), 1..120),
        seed in any::<u64>(),
    ) {
        run(&actions, seed);
    }
}

/// The same calls give the same bytes.
#[test]
fn the_journal_is_deterministic() {
    let files = |seed| {
        let mut disk = MemoryDisk::new();
        let (mut journal, _) = open(&mut disk, config(4 * 4096, 3), 0);
        disk.set_order(Order::Seeded(seed));
        let mut history = History::default();
        for index in 1..40 {
            history.hard_state(&mut journal, (index % 5) as u32, index, None);
            history.entry(&mut journal, 0, 1, index, (index * 97) as usize % 900);
            history.flush(&mut journal, &mut disk);
            step(&mut journal, &mut disk).expect("healthy");
        }
        settle(&mut journal, &mut disk).expect("healthy");
        disk.paths().into_iter().map(|path| (disk.file(&path), path)).collect::<Vec<_>>()
    };
    assert!(files(11) == files(11), "two runs differ");
}
