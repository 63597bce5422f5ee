//! The simulator: three or five real nodes in one thread, with time, network, disks, clocks and clients made up. A run
//! follows from its seed and profile, bit for bit.

mod adapter;
mod clocks;
mod cluster;
pub(crate) mod faults;
mod history;
pub mod invariants;
pub mod minimise;
mod network;
mod node;
pub mod profile;
pub mod report;
pub(crate) mod rng;
mod settings;
pub(crate) mod trace;
mod workload;

use self::cluster::Cluster;
use self::faults::Scheduled;
use self::invariants::Violation;
use self::profile::Profile;
use self::report::{Failure, Report};
use self::settings::Settings;
use self::trace::{Sink, Trace};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// What run to make.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything that looks random follows from it.
    pub seed: u64,
    /// Which faults.
    pub profile: Profile,
    /// Number of nodes that the cluster has at its largest: 3 or 5.
    pub nodes: u64,
    /// Virtual time in which clients work and faults strike, in microseconds; the end comes on top.
    pub virtual_us: u64,
    /// The faults instead of those that the seed gives.
    pub schedule: Option<Vec<Scheduled>>,
}

impl Plan {
    /// The faults of this run.
    pub fn schedule(&self) -> Vec<Scheduled> {
        let (span_us, machines) = (self.virtual_us * 2 / 3, self.profile.machines(self.nodes));
        self.schedule.clone().unwrap_or_else(|| faults::schedule(self.seed, self.profile, machines, span_us))
    }
}

/// Make a run.
pub fn run(plan: &Plan) -> Report {
    run_with(plan, None)
}

/// Make a run. Every event goes to `sink`, if there is one.
pub(crate) fn run_with(plan: &Plan, sink: Option<Sink>) -> Report {
    let schedule = plan.schedule();
    let settings = Settings::draw(plan.seed, plan.profile, plan.nodes);
    let trace = Rc::new(RefCell::new(Trace::new(sink)));
    let clients = workload::clients(&settings, plan.profile);
    let mut cluster = Cluster::new(settings, schedule.clone(), clients, plan.virtual_us, trace.clone());
    // A broken assertion is a finding like any other, where the build unwinds.
    let result = catch_unwind(AssertUnwindSafe(|| cluster.run())).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation::new("panic", text.unwrap_or_else(|| "a panic without words".to_owned())))
    });
    let trace = trace.borrow();
    let mut counts = std::mem::take(&mut cluster.counts);
    (counts.runs, counts.virtual_us, counts.events) = (1, cluster.now_us, trace.events());
    let failure = result.err().map(|violation| Failure { violation, at_us: cluster.now_us, newest: trace.newest() });
    Report { seed: plan.seed, profile: plan.profile, nodes: plan.nodes, schedule, counts, hash: trace.hash(), failure }
}
