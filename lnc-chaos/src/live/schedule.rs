//! When which fault strikes: one after the other at a pace, drawn from a seed, or as a file says.

use super::fault::Fault;
use crate::sim::rng::Rng;
use lance::config::units::format_duration;
use std::time::Duration;

/// A fault and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strike {
    /// When, from the end of the warm-up. A fault waits for the end of the one before it in any case.
    pub at: Duration,
    /// What.
    pub fault: Fault,
    /// How long until it is taken back.
    pub hold: Duration,
}

/// Where the faults come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// These in turn.
    Turns(Vec<Fault>),
    /// Drawn from these.
    Random(Vec<Fault>),
    /// As listed.
    Listed(Vec<Strike>),
}

/// The faults of a run, in order.
#[derive(Clone, Debug)]
pub struct Schedule {
    source: Source,
    every: Duration,
    hold: Duration,
    /// How many at most.
    repeat: Option<u64>,
    given: u64,
    next_at: Duration,
    rng: Rng,
}

impl Schedule {
    /// Faults from `source`, the beginnings of two `every` apart, each for `hold`, `repeat` at most. Listed faults have
    /// their own times, and `repeat` counts the whole list.
    pub fn new(source: Source, every: Duration, hold: Duration, repeat: Option<u64>, seed: u64) -> Self {
        let repeat = match &source {
            Source::Turns(faults) | Source::Random(faults) if faults.is_empty() => Some(0),
            // In turns, each of the faults comes `repeat` times.
            Source::Turns(faults) => repeat.map(|repeat| repeat * faults.len() as u64),
            Source::Random(_) => repeat,
            Source::Listed(strikes) => Some(strikes.len() as u64 * repeat.unwrap_or(1)),
        };
        Self { source, every, hold, repeat, given: 0, next_at: Duration::ZERO, rng: Rng::fork(seed, 0x5ced) }
    }

    /// How many faults there will be, if that is known.
    pub fn len(&self) -> Option<u64> {
        self.repeat
    }

    /// Whether there is no fault at all.
    pub fn is_empty(&self) -> bool {
        self.repeat == Some(0)
    }

    /// When the last of the faults is over at the earliest; `None` if they go on for as long as the run does.
    pub fn span(&self) -> Option<Duration> {
        self.repeat?;
        let over = |strike: Strike| strike.at + strike.hold.max(self.every);
        Some(self.clone().map(over).max().unwrap_or_default())
    }
}

impl Iterator for Schedule {
    type Item = Strike;

    fn next(&mut self) -> Option<Strike> {
        if self.repeat.is_some_and(|repeat| self.given >= repeat) {
            return None;
        }
        let n = self.given as usize;
        self.given += 1;
        let at = self.next_at;
        Some(match &self.source {
            Source::Turns(faults) => {
                self.next_at += self.every;
                Strike { at, fault: faults[n % faults.len()], hold: self.hold }
            }
            Source::Random(faults) => {
                let around = |rng: &mut Rng, span: Duration| span.mul_f64(0.5 + rng.below(1000) as f64 / 1000.0);
                self.next_at += around(&mut self.rng, self.every);
                let fault = self.rng.pick(faults);
                Strike { at, fault, hold: around(&mut self.rng, self.hold) }
            }
            Source::Listed(strikes) => {
                let strike = strikes[n % strikes.len()];
                // A list that is repeated begins anew when the last of its faults is over.
                let round = (n / strikes.len()) as u32;
                let last = strikes[strikes.len() - 1];
                Strike { at: strike.at + (last.at + last.hold.max(self.every)) * round, ..strike }
            }
        })
    }
}

/// Read a list of faults: in each line a time, a fault, and for how long if not for `hold`. What follows `#` is for
/// people.
///
/// # Errors
/// With the number of the line that cannot be read.
pub fn parse(
    text: &str,
    hold: Duration,
    duration: fn(&str) -> Result<Duration, String>,
) -> Result<Vec<Strike>, String> {
    let mut strikes: Vec<Strike> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let read = |at: &str, fault: &str, held: Option<&str>| {
            let hold = held.map_or(Ok(hold), duration)?;
            Ok(Strike { at: duration(at)?, fault: Fault::from_name(fault)?, hold })
        };
        let strike = match words[..] {
            [] => continue,
            [at, fault] => read(at, fault, None),
            [at, fault, held] => read(at, fault, Some(held)),
            _ => Err("expected a time, a fault, and perhaps for how long".to_owned()),
        };
        let strike = strike.map_err(|error: String| format!("line {}: {error}", n + 1))?;
        if strikes.last().is_some_and(|before| before.at > strike.at) {
            return Err(format!("line {}: {} is before the line above", n + 1, format_duration(strike.at)));
        }
        strikes.push(strike);
    }
    if strikes.is_empty() { Err("it lists no faults".to_owned()) } else { Ok(strikes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse_duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn read(text: &str) -> Result<Vec<Strike>, String> {
        parse(text, SECOND, parse_duration)
    }

    #[test]
    fn a_file_lists_times_faults_and_lengths() {
        let strikes = read("# two\n10s kill-leader\n\n1m partition-leader 5s # longer\n").unwrap();
        let expected = [
            Strike { at: 10 * SECOND, fault: Fault::KillLeader, hold: SECOND },
            Strike { at: 60 * SECOND, fault: Fault::PartitionLeader, hold: 5 * SECOND },
        ];
        assert_eq!(strikes, expected);
    }

    #[test]
    fn what_a_file_must_not_hold_is_said_with_its_line() {
        for (text, expected) in [
            ("", "lists no faults"),
            ("1s kill-leader\nsoon kill-leader", "line 2"),
            ("1s kil-leader", "no fault has the name"),
            ("1s", "expected a time"),
            ("2s kill-all\n1s kill-all", "before the line above"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn turns_repeat_each_fault() {
        let faults = vec![Fault::KillLeader, Fault::StopLeader];
        let schedule = Schedule::new(Source::Turns(faults), 5 * SECOND, SECOND, Some(2), 1);
        assert_eq!(schedule.span(), Some(20 * SECOND));
        let strikes: Vec<(u64, Fault)> = schedule.map(|strike| (strike.at.as_secs(), strike.fault)).collect();
        let [kill, stop] = [Fault::KillLeader, Fault::StopLeader];
        assert_eq!(strikes, [(0, kill), (5, stop), (10, kill), (15, stop)]);
    }

    #[test]
    fn a_seed_gives_the_same_faults_again_and_another_seed_others() {
        let draw = |seed| {
            let faults = vec![Fault::KillLeader, Fault::StopLeader, Fault::KillAll];
            Schedule::new(Source::Random(faults), SECOND, SECOND, Some(20), seed).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn a_list_can_be_repeated_and_nothing_can_be_asked_for() {
        let listed = Source::Listed(read("1s kill-leader").unwrap());
        let times: Vec<u64> =
            Schedule::new(listed, 3 * SECOND, SECOND, Some(3), 1).map(|strike| strike.at.as_secs()).collect();
        assert_eq!(times, [1, 5, 9]);
        let mut none = Schedule::new(Source::Turns(Vec::new()), SECOND, SECOND, None, 1);
        assert!(none.is_empty() && none.next().is_none());
    }
}
