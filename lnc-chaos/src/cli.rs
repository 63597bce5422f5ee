//! The command line.

use crate::sim::profile::Profile;
use crate::sim::{Plan, run};
use std::process::ExitCode;

/// Run the command that the arguments name.
pub fn main() -> ExitCode {
    let seed = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(1);
    let profile = std::env::args().nth(2).and_then(|s| Profile::from_name(&s)).unwrap_or(Profile::Calm);
    let plan = Plan { seed, profile, nodes: 3, virtual_us: 120_000_000, schedule: None };
    let t = std::time::Instant::now();
    let report = run(&plan, None);
    println!("{:?} {:x}\n{:?}", t.elapsed(), report.hash, report.counts);
    if let Some(f) = report.failure {
        println!("{:#?}", f);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
