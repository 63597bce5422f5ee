//! The simulator itself: runs can be repeated exactly, every profile of the rotation holds, and five nodes run as three do.

use lnc_chaos::sim::profile::{Profile, ROTATION};
use lnc_chaos::sim::{Plan, run};

fn plan(seed: u64, profile: Profile) -> Plan {
    Plan { seed, profile, nodes: 3, virtual_us: 30_000_000, schedule: None }
}

#[test]
fn the_same_seed_twice_gives_the_same_run() {
    for profile in [Profile::Calm, Profile::Network, Profile::Power, Profile::Everything] {
        let (one, two) = (run(&plan(11, profile)), run(&plan(11, profile)));
        assert_eq!(one.hash, two.hash, "{}", profile.name());
        assert_eq!(one.schedule, two.schedule, "{}", profile.name());
        assert!(one.counts.events > 5_000, "{}: only {} events", profile.name(), one.counts.events);
    }
    assert_ne!(run(&plan(11, Profile::Calm)).hash, run(&plan(12, Profile::Calm)).hash);
}

#[test]
fn a_schedule_that_is_given_replaces_the_drawn_one() {
    let drawn = run(&plan(5, Profile::Crashes));
    let given = run(&Plan { schedule: Some(drawn.schedule.clone()), ..plan(5, Profile::Crashes) });
    assert_eq!(drawn.hash, given.hash);
    let without = run(&Plan { schedule: Some(Vec::new()), ..plan(5, Profile::Crashes) });
    assert_ne!(drawn.hash, without.hash);
    assert!(without.counts.faults.is_empty(), "{:?}", without.counts.faults);
}

#[test]
fn every_profile_of_the_rotation_keeps_the_promises() {
    for profile in ROTATION {
        let report = run(&Plan { virtual_us: 60_000_000, ..plan(21, *profile) });
        assert!(report.failure.is_none(), "{}: {:#?}", profile.name(), report.failure);
        assert!(report.counts.produced > 100, "{}: {:?}", profile.name(), report.counts);
        let quiet = *profile == Profile::Calm || *profile == Profile::Everything;
        assert!(quiet || !report.counts.faults.is_empty(), "{} had no faults", profile.name());
    }
}

#[test]
fn five_nodes_run_too() {
    let report = run(&Plan { nodes: 5, ..plan(31, Profile::Crashes) });
    assert!(report.failure.is_none(), "{:#?}", report.failure);
    assert!(report.counts.starts > 5, "{:?}", report.counts);
}
