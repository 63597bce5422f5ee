//! The CPU time that servers spent, as the operating system counts it.

use std::time::Duration;

use crate::BenchError;

/// The CPU time, user and system, that process `pid` has used so far.
pub(crate) fn time_of(pid: u32) -> Result<Duration, BenchError> {
    let failed = |problem: String| BenchError::Cpu { pid, problem };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| failed(error.to_string()))?;
    let ticks = ticks(&stat).ok_or_else(|| failed("/proc says something unexpected".into()))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// The CPU times of several processes.
pub(crate) fn times_of(pids: &[u32]) -> Result<Vec<Duration>, BenchError> {
    pids.iter().map(|pid| time_of(*pid)).collect()
}

/// User and system time, in clock ticks, from a line of `/proc/PID/stat`. The command's name, the second field, may
/// hold anything, spaces and parentheses included.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_fields_14_and_15() {
        let stat = "42 (a) name) S 1 42 42 0 -1 4194560 100 0 0 0 321 123 7 7 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(444));
        assert_eq!(ticks("42 (name) S 1"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn this_process_has_a_cpu_time_and_no_process_has_none() {
        assert!(time_of(std::process::id()).is_ok());
        assert!(matches!(time_of(u32::MAX), Err(BenchError::Cpu { pid: u32::MAX, .. })));
    }
}
