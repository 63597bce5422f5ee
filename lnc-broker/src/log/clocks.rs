//! The time of the cluster, as this node makes it out: of what all members' clocks say, the median, if a majority is
//! close to it. Records are stamped with it, and age is counted by it.
//!
//! A clock may be wrong by years for a while, the leader's too. Peers tell each other every second what their clocks say,
//! beside the heartbeats; what was heard is kept as the distance from this node's own monotonic clock, so that a jump of
//! any wall clock shows, this node's included:
//!
//! | what is found | stamps | removal by age |
//! |---|---|---|
//! | a majority agrees, this node with it | its own clock | goes on |
//! | a majority agrees, this node is off | the median; what it leads it hands over | stops |
//! | no majority agrees, or is heard | the last time that was agreed on, by the monotonic clock | stops |
//! | the same since the start, and none but this node's clock is heard | nothing is stamped until one is | stops |
//! | what is agreed on has jumped: all at once, or a lone node | the later of the two times | stops, for an hour at most |
//!
//! To stamp too late keeps a record for too long, to stamp too early would have it removed too early: in doubt, late.

use crate::machines::command::Command;
use crate::watch::status::Said;
use crate::{Broker, Clock};
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_raft::NodeId;
use lnc_replication::notice::{NodeFacts, PeerNotice, SINCE_FORMAT, Traffic};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::{Discriminant, discriminant};

/// How long what a peer's clock said is reckoned with, in microseconds.
const FRESH_US: u64 = 5_000_000;

/// A time that all clocks have jumped to is believed once they have kept it for so long, in microseconds: long enough for
/// somebody to see the alert.
const SETTLE_US: u64 = 3_600_000_000;

/// Time that a peer whose clock was off is left alone, in microseconds: leadership should not come and go.
const UNFIT_US: u64 = 10_000_000;

/// Notices of one peer that are kept. One that was delayed looks like a clock that is behind: the latest time counts.
const MOST_NOTICES: usize = 8;

/// What the clocks of the cluster are found to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Verdict {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// A majority agrees, this node with it.
    Agreed,
    /// Fewer than a majority are heard.
    Alone { heard: usize, of: usize },
    /// No majority agrees.
    Apart { agreeing: usize, of: usize },
    /// A majority agrees, and this node's clock is this far ahead of it.
    Off { by_ms: i64 },
    /// What a majority agrees on, this node with it, has jumped by so much.
    Jumped { by_ms: i64 },
    /// The same since the start, and the newest record is so much older: nodes were down or idle, or all clocks are ahead.
    Idle { by_ms: i64 },
}

/// What was heard of a peer's clock: its distance from this node's monotonic clock, and when.
#[derive(Default)]
struct Heard {
    notices: VecDeque<(i64, u64)>,
    unfit_until_us: u64,
}

impl Heard {
    fn note(&mut self, base_ms: i64, now_us: u64) {
        if self.notices.len() == MOST_NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back((base_ms, now_us));
    }

    fn base_ms(&self, now_us: u64) -> Option<i64> {
        let fresh = self.notices.iter().filter(|(_, at_us)| at_us + FRESH_US > now_us);
        fresh.map(|(base_ms, _)| *base_ms).max()
    }
}

/// See the module documentation. Times called *base* are distances from the monotonic clock.
pub(crate) struct Clocks {
    max_skew_ms: u64,
    heard: BTreeMap<NodeId, Heard>,
    /// Peers are told and heard: the cluster has the format for it, as this node's disk says or the catalog.
    compares: bool,
    /// What records are stamped with where this node's own clock is not close to it.
    base_ms: Option<i64>,
    /// The earliest of the clocks that agree.
    earliest_ms: i64,
    /// The time that was agreed on for long enough.
    trusted_ms: Option<i64>,
    /// That was ever found in clocks, and is not what the newest record says.
    agreed_once: bool,
    /// The time that is agreed on now, and since when, if that is another one.
    shifted: Option<(i64, u64)>,
    verdict: Verdict,
    /// Since the start no other clock was heard, though there are some: nothing is known of the time.
    is_lost: bool,
    /// Since when, and what was said of it.
    since_us: u64,
    told: Option<Discriminant<Verdict>>,
    pub(crate) outbox: Vec<PeerNotice>,
}

/// Who is asked, and what else is known of the time.
struct Known<'a> {
    /// The members, this node included.
    members: &'a BTreeSet<NodeId>,
    /// The latest stamp in the data; 0: there is none.
    newest_ms: u64,
}

fn base_of(wall_ms: u64, mono_us: u64) -> i64 {
    /// Beyond any date; sums and differences of such times do not overflow.
    const END_MS: u64 = 1 << 60;
    wall_ms.min(END_MS) as i64 - (mono_us / 1000) as i64
}

fn time_of(base_ms: i64, mono_us: u64) -> u64 {
    base_ms.saturating_add_unsigned(mono_us / 1000).max(0) as u64
}

impl Clocks {
    /// Of a node whose data directory has this format.
    pub(crate) fn new(max_skew_ms: u64, format: u32) -> Self {
        Self {
            max_skew_ms,
            heard: BTreeMap::new(),
            compares: format >= SINCE_FORMAT,
            base_ms: None,
            earliest_ms: 0,
            trusted_ms: None,
            agreed_once: false,
            shifted: None,
            verdict: Verdict::default(),
            is_lost: false,
            since_us: 0,
            told: None,
            outbox: Vec::new(),
        }
    }

    fn near(&self, one: i64, other: i64) -> bool {
        one.abs_diff(other) <= self.max_skew_ms
    }

    /// Look at all clocks.
    fn judge(&mut self, node: NodeId, clock: Clock, known: &Known<'_>) {
        let now_us = clock.mono_us;
        let own = base_of(clock.wall_ms, now_us);
        let peers = || self.heard.values().filter_map(|heard| heard.base_ms(now_us)).filter(|_| self.compares);
        let mut bases: Vec<i64> = peers().chain([own]).collect();
        bases.sort_unstable();
        let median = bases[(bases.len() - 1) / 2];
        let of = if self.compares { known.members.iter().filter(|member| **member != node).count() + 1 } else { 1 };
        let agreeing: Vec<i64> = bases.iter().copied().filter(|base| self.near(*base, median)).collect();
        if agreeing.len() <= of / 2 {
            self.verdict = match bases.len() <= of / 2 {
                true => Verdict::Alone { heard: bases.len(), of },
                false => Verdict::Apart { agreeing: agreeing.len(), of },
            };
            // Since the start, nothing was agreed on: the earliest of the clocks that are not behind the
            // data does the least harm. Where no data is known, none is known to be late enough but the latest.
            let newest = base_of(known.newest_ms, now_us);
            let late = |base: &i64| *base >= newest || self.near(*base, newest);
            let undecided = match known.newest_ms {
                0 => bases.last().copied(),
                _ => bases.iter().copied().find(late),
            };
            self.is_lost = self.trusted_ms.is_none() && bases.len() == 1;
            self.base_ms = self.trusted_ms.or(undecided).or(Some(newest));
            return;
        }
        self.is_lost = false;
        self.earliest_ms = agreeing[0];
        let jumped = self.settle(median, now_us, known.newest_ms);
        self.base_ms = Some(jumped.map_or(median, |by_ms| median.max(median - by_ms)));
        self.verdict = match jumped {
            _ if !self.near(own, median) => Verdict::Off { by_ms: own - median },
            Some(by_ms) if !self.agreed_once && by_ms > 0 => Verdict::Idle { by_ms },
            Some(by_ms) => Verdict::Jumped { by_ms },
            None => Verdict::Agreed,
        };
        for heard in self.heard.values_mut() {
            let off = heard.base_ms(now_us).is_some_and(|base| base.abs_diff(median) > self.max_skew_ms);
            if off {
                heard.unfit_until_us = now_us + UNFIT_US;
            }
        }
    }

    /// A majority agrees on a time: how far is it from the one that is trusted? After a start that is the time of the
    /// newest record, and a while after it.
    fn settle(&mut self, median: i64, now_us: u64, newest_ms: u64) -> Option<i64> {
        let newest = base_of(newest_ms, now_us);
        let skew_ms = self.max_skew_ms as i64;
        let idle = newest.saturating_sub(skew_ms)..=newest.saturating_add((SETTLE_US / 1000) as i64);
        let trusted = match self.trusted_ms {
            Some(trusted) => trusted,
            None if newest_ms == 0 || idle.contains(&median) => median,
            None => newest,
        };
        let shifted = self.shifted.filter(|(base, _)| self.near(*base, median)).unwrap_or((median, now_us));
        if self.near(trusted, median) || now_us >= shifted.1 + SETTLE_US {
            (self.trusted_ms, self.agreed_once, self.shifted) = (Some(median), true, None);
            return None;
        }
        (self.trusted_ms, self.shifted) = (Some(trusted), Some(shifted));
        Some(median - trusted)
    }

    /// The time for what is proposed now.
    pub(crate) fn stamp_ms(&self, clock: Clock) -> u64 {
        match self.base_ms {
            Some(base) if !self.near(base, base_of(clock.wall_ms, clock.mono_us)) => time_of(base, clock.mono_us),
            _ => clock.wall_ms,
        }
    }

    /// The time by which records are old; `None` while clocks disagree.
    pub(crate) fn retention_ms(&self, clock: Clock) -> Option<u64> {
        (self.verdict == Verdict::Agreed).then(|| time_of(self.earliest_ms, clock.mono_us).min(clock.wall_ms))
    }

    /// Whether a peer may lead, as far as its clock goes.
    pub(crate) fn is_fit(&self, peer: NodeId, now_us: u64) -> bool {
        self.heard.get(&peer).is_none_or(|heard| heard.unfit_until_us <= now_us)
    }

    /// Whether a stamp could be too early, for all that is known: who leads hears another clock soon.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost
    }

    fn is_off(&self) -> bool {
        matches!(self.verdict, Verdict::Off { .. })
    }

    /// What is wrong, in a sentence; `None` if nothing is.
    fn problem(&self, now_us: u64) -> Option<String> {
        /// How long a node that has just started, or whose peers have, may hear no clocks.
        const PATIENCE_US: u64 = 5_000_000;
        let seconds = |by_ms: i64| match by_ms >= 0 {
            true => format!("{:.1} s ahead of", by_ms as f64 / 1e3),
            false => format!("{:.1} s behind", -by_ms as f64 / 1e3),
        };
        let what = match self.verdict {
            // Nothing is wrong with who starts again after a while.
            Verdict::Unknown | Verdict::Agreed | Verdict::Idle { .. } => return None,
            Verdict::Alone { .. } if now_us < self.since_us + PATIENCE_US => return None,
            Verdict::Alone { heard, of } => format!("the clocks of only {heard} of {of} nodes are heard"),
            Verdict::Apart { agreeing, of } => {
                format!("the clocks of only {agreeing} of {of} nodes agree: set them right")
            }
            Verdict::Off { by_ms } => {
                format!("this node's clock is {} those of a majority: set it right", seconds(by_ms))
            }
            Verdict::Jumped { by_ms } => {
                format!("the clock has jumped: it is {} the time expected", seconds(by_ms))
            }
        };
        Some(format!("{what}; nothing is removed by age meanwhile"))
    }
}

impl<D: Disk> Broker<D> {
    /// A peer says what its clock says, and whether it is about to end.
    pub(crate) fn heard_notice(&mut self, notice: PeerNotice) {
        let said = Said { at_ms: notice.wall_ms, facts: notice.facts };
        if self.peers.tell(notice.from, notice.drains, said) {
            self.hear_addresses(notice.from, notice.addresses);
        }
        let base_ms = base_of(notice.wall_ms, self.clock.mono_us);
        self.clocks.heard.entry(notice.from).or_default().note(base_ms, self.clock.mono_us);
        if self.clocks.verdict != Verdict::Agreed {
            self.judge_clocks();
        }
    }

    /// What operators want to see of this node.
    pub(crate) fn own_facts(&self) -> NodeFacts {
        let (metrics, produce) = (&self.metrics, &self.metrics.produce_latency_seconds);
        let traffic = Traffic {
            records_in: metrics.messages_in_total.get(),
            bytes_in: metrics.bytes_in_total.get(),
            records_out: metrics.messages_out_total.get(),
            bytes_out: metrics.bytes_out_total.get(),
            produces: produce.get_sample_count(),
            produce_us: (produce.get_sample_sum() * 1e6) as u64,
        };
        NodeFacts::of_build(self.space.free_bytes(), traffic)
    }

    /// Tell a peer what this node's clock says, and whether it is about to end.
    pub(crate) fn tell_clock(&mut self, peer: NodeId) {
        let speaks = self.peers.greeted(peer).is_some_and(|peer| peer.formats.contains(SINCE_FORMAT));
        if speaks && self.compares_clocks() {
            let (from, wall_ms) = (self.config.node, self.clock.wall_ms);
            let facts = self.own_facts();
            let addresses = self.own_addresses();
            self.clocks.outbox.push(PeerNotice {
                from,
                to: peer,
                wall_ms,
                drains: self.leadership.is_draining(),
                facts,
                addresses,
            });
        }
    }

    /// The same, to all of them.
    pub(crate) fn tell_clocks(&mut self) {
        let peers: Vec<NodeId> = self.peers.ids().collect();
        peers.into_iter().for_each(|peer| self.tell_clock(peer));
    }

    /// Compare the clocks, once a second, and do what follows.
    pub(crate) fn look_at_clocks(&mut self) {
        self.tell_clocks();
        self.judge_clocks();
        self.show_clocks();
        if self.clocks.is_off() {
            self.hand_to_the_fit();
        }
        self.turn_back_time();
    }

    fn compares_clocks(&self) -> bool {
        self.clocks.compares || self.format() >= SINCE_FORMAT
    }

    /// What is proposed before the first tick is stamped like the rest.
    pub(crate) fn first_look_at_clocks(&mut self) {
        if self.clocks.verdict == Verdict::Unknown {
            self.judge_clocks();
        }
    }

    fn judge_clocks(&mut self) {
        let compares = self.compares_clocks();
        if compares != self.clocks.compares {
            // What this node believed by itself is worth nothing to a majority.
            self.clocks.compares = compares;
            (self.clocks.trusted_ms, self.clocks.agreed_once, self.clocks.shifted) = (None, false, None);
        }
        let catalog = self.catalog.members();
        let members: BTreeSet<NodeId> = match catalog.is_founded() {
            true => catalog.current().filter(|member| member.incarnation != 0).map(|member| member.id).collect(),
            false => self.config.members.keys().copied().collect(),
        };
        // Those that are to go are heard as long as groups may need them.
        let is_former = |peer: &NodeId| catalog.former().any(|member| member.id == *peer);
        let is_stranger = |peer: &&NodeId| !members.contains(peer) && !is_former(peer);
        let strangers: Vec<NodeId> = self.clocks.heard.keys().filter(is_stranger).copied().collect();
        for peer in strangers {
            self.clocks.heard.remove(&peer);
            let _ = self.metrics.clock_skew_seconds.remove_label_values(&[&peer.node().to_string()]);
        }
        let newest_ms = self.groups.values().map(|data| data.state.clock_ms()).max().unwrap_or(0);
        let before = self.clocks.verdict;
        self.clocks.judge(self.config.node, self.clock, &Known { members: &members, newest_ms });
        self.say_what_is_wrong(discriminant(&before));
    }

    /// Log what has become of the clocks since the last look, once.
    fn say_what_is_wrong(&mut self, before: Discriminant<Verdict>) {
        let (now_us, verdict) = (self.clock.mono_us, discriminant(&self.clocks.verdict));
        if before != verdict {
            self.clocks.since_us = now_us;
            if matches!(self.clocks.verdict, Verdict::Idle { .. }) {
                tracing::info!(
                    "nothing is removed by age for an hour: the newest record is from long before the start of this node"
                );
            }
        }
        match self.clocks.problem(now_us) {
            Some(problem) if self.clocks.told != Some(verdict) => {
                tracing::warn!(limit_ms = self.clocks.max_skew_ms, "{problem}");
                self.clocks.told = Some(verdict);
            }
            None if self.clocks.verdict == Verdict::Agreed && self.clocks.told.take().is_some() => {
                tracing::info!("the clocks of a majority agree again");
            }
            _ => {}
        }
    }

    /// What is wrong with the clocks, for whoever looks on.
    pub(crate) fn clock_problem(&self) -> Option<String> {
        self.clocks.problem(self.clock.mono_us)
    }

    fn show_clocks(&self) {
        let own = base_of(self.clock.wall_ms, self.clock.mono_us);
        let skews = &self.metrics.clock_skew_seconds;
        for (peer, heard) in &self.clocks.heard {
            let peer = peer.node().to_string();
            match heard.base_ms(self.clock.mono_us) {
                Some(base) => skews.with_label_values(&[&peer]).set((base - own) as f64 / 1e3),
                None => drop(skews.remove_label_values(&[&peer])),
            }
        }
        let wrong = matches!(self.clocks.verdict, Verdict::Off { .. } | Verdict::Apart { .. } | Verdict::Jumped { .. });
        self.metrics.clock_untrusted.set(u64::from(wrong));
        self.metrics.retention_by_age_stopped.set(u64::from(self.clocks.verdict != Verdict::Agreed));
    }

    /// The time of a group that is ahead of every clock goes back, and with it what was stamped ahead: it would never be
    /// old enough. All of that was appended before now.
    fn turn_back_time(&mut self) {
        if self.clocks.verdict != Verdict::Agreed || self.format() < SINCE_FORMAT {
            return;
        }
        let now_ms = self.clocks.stamp_ms(self.clock);
        let most_ms = now_ms.saturating_add(2 * self.clocks.max_skew_ms);
        let ahead = |(group, data): (&GroupId, &crate::DataGroup)| {
            let time_ms = data.state.clock_ms();
            (self.shard.is_leader(*group) && time_ms > most_ms).then_some((*group, time_ms))
        };
        let ahead: Vec<(GroupId, u64)> = self.groups.iter().filter_map(ahead).collect();
        for (group, time_ms) in ahead {
            if !self.has_backlog(group) {
                let by_ms = time_ms - now_ms;
                tracing::warn!(
                    group = group.0,
                    by_ms,
                    "the time of the group is ahead of all clocks, and is turned back"
                );
                self.submit(group, &Command::TurnBack { time_ms: now_ms }, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEW_MS: u64 = 10_000;
    const YEARS_MS: i64 = 315_360_000_000;
    const START_MS: u64 = 1_700_000_000_000;
    const SECOND_US: u64 = 1_000_000;
    const HOUR: u64 = 3_600;

    /// Node 1 of some, at a second of its life, with a true time of its own: what clocks are ahead of.
    struct Scene {
        clocks: Clocks,
        members: BTreeSet<NodeId>,
        newest_ms: u64,
        second: u64,
    }

    impl Scene {
        fn new(members: u64) -> Self {
            let clocks = Clocks::new(SKEW_MS, SINCE_FORMAT);
            Self { clocks, members: (1..=members).map(NodeId).collect(), newest_ms: 0, second: 0 }
        }

        fn clock(&self, ahead_ms: i64) -> Clock {
            let true_ms = START_MS + self.second * 1000;
            Clock { wall_ms: true_ms.saturating_add_signed(ahead_ms), mono_us: self.second * SECOND_US }
        }

        /// Some seconds pass, in each of which the clocks of node 1 and of further ones say this.
        fn pass(&mut self, seconds: u64, ahead_ms: &[i64]) -> Verdict {
            for _ in 0..seconds {
                self.second += 1;
                for (peer, ahead_ms) in (2..).zip(&ahead_ms[1..]) {
                    let said = self.clock(*ahead_ms);
                    let base_ms = base_of(said.wall_ms, said.mono_us);
                    self.clocks.heard.entry(NodeId(peer)).or_default().note(base_ms, said.mono_us);
                }
                let known = Known { members: &self.members, newest_ms: self.newest_ms };
                let clock = self.clock(ahead_ms[0]);
                self.clocks.judge(NodeId(1), clock, &known);
            }
            self.clocks.verdict
        }

        /// How far the stamps of node 1 are ahead, if its clock is by so much.
        fn stamp(&self, ahead_ms: i64) -> i64 {
            self.clocks.stamp_ms(self.clock(ahead_ms)) as i64 - self.clock(0).wall_ms as i64
        }

        fn removes(&self, ahead_ms: i64) -> Option<i64> {
            let clock = self.clock(ahead_ms);
            self.clocks.retention_ms(clock).map(|ms| ms as i64 - self.clock(0).wall_ms as i64)
        }
    }

    #[test]
    fn a_majority_that_agrees_is_the_time() {
        let mut scene = Scene::new(3);
        assert_eq!(scene.pass(1, &[300, -200, 0]), Verdict::Agreed);
        assert_eq!(
            (scene.stamp(300), scene.removes(300)),
            (300, Some(-200)),
            "records are young by every clock that agrees"
        );
        assert_eq!(scene.pass(1, &[0, 0, YEARS_MS]), Verdict::Agreed);
        assert_eq!((scene.stamp(0), scene.removes(0)), (0, Some(0)));
        assert!(!scene.clocks.is_fit(NodeId(3), scene.second * SECOND_US) && scene.clocks.is_fit(NodeId(2), 0));
        for off in [YEARS_MS, -YEARS_MS, 11_000] {
            assert_eq!(scene.pass(6, &[off, 0, 0]), Verdict::Off { by_ms: off });
            assert_eq!((scene.stamp(off), scene.removes(off)), (0, None));
        }
    }

    #[test]
    fn without_a_majority_time_goes_on_as_it_was() {
        let mut scene = Scene::new(3);
        scene.pass(1, &[0, 0, 0]);
        assert_eq!(scene.pass(8, &[YEARS_MS]), Verdict::Alone { heard: 1, of: 3 });
        assert_eq!((scene.stamp(YEARS_MS), scene.removes(YEARS_MS)), (0, None));
        assert_eq!(scene.pass(8, &[0, YEARS_MS]), Verdict::Apart { agreeing: 1, of: 3 });
        assert_eq!((scene.stamp(0), scene.removes(0)), (0, None));
        // Since the start, nothing was agreed on: the earliest clock that is not before the data.
        for newest_ms in [START_MS - 5_000, START_MS + 13_000] {
            for clocks in [[0, YEARS_MS], [-YEARS_MS, 0], [YEARS_MS, 0]] {
                let mut scene = Scene { newest_ms, ..Scene::new(2) };
                assert_eq!(scene.pass(8, &clocks), Verdict::Apart { agreeing: 1, of: 2 });
                assert_eq!((scene.stamp(clocks[0]), scene.removes(clocks[0])), (0, None));
            }
        }
    }

    #[test]
    fn since_the_start_nothing_is_stamped_before_another_clock_is_heard() {
        let mut scene = Scene::new(3);
        assert_eq!(scene.pass(2, &[-YEARS_MS]), Verdict::Alone { heard: 1, of: 3 });
        assert!(scene.clocks.is_lost());
        assert_eq!(scene.pass(1, &[-YEARS_MS, 0]), Verdict::Apart { agreeing: 1, of: 3 });
        assert_eq!((scene.clocks.is_lost(), scene.stamp(-YEARS_MS)), (false, 0), "no data is known: the latest");
        scene.pass(1, &[0, 0]);
        scene.pass(8, &[0]);
        assert!(!scene.clocks.is_lost() && scene.clocks.verdict != Verdict::Agreed, "it knows the time by now");
        let mut lone = Scene::new(1);
        lone.pass(1, &[0]);
        assert!(!lone.clocks.is_lost());
    }

    #[test]
    fn a_time_that_all_have_jumped_to_is_believed_after_an_hour() {
        for members in [1, 3] {
            let mut scene = Scene::new(members);
            let all = |ahead: i64| vec![ahead; members as usize];
            scene.pass(10, &all(0));
            assert_eq!(scene.pass(6, &all(YEARS_MS)), Verdict::Jumped { by_ms: YEARS_MS });
            assert_eq!((scene.stamp(YEARS_MS), scene.removes(YEARS_MS)), (YEARS_MS, None), "in doubt, late");
            assert_eq!(scene.pass(10, &all(0)), Verdict::Agreed, "it is back");
            assert_eq!(scene.pass(10, &all(-YEARS_MS)), Verdict::Jumped { by_ms: -YEARS_MS });
            assert_eq!((scene.stamp(-YEARS_MS), scene.removes(-YEARS_MS)), (0, None), "in doubt, late");
            scene.pass(HOUR - 20, &all(-YEARS_MS));
            assert_eq!(scene.removes(-YEARS_MS), None);
            assert_eq!(scene.pass(20, &all(-YEARS_MS)), Verdict::Agreed);
            assert_eq!((scene.stamp(-YEARS_MS), scene.removes(-YEARS_MS)), (-YEARS_MS, Some(-YEARS_MS)));
        }
    }

    #[test]
    fn after_a_start_the_newest_record_says_what_to_expect() {
        let idle = Verdict::Idle { by_ms: 7_201_000 };
        let ahead = Verdict::Jumped { by_ms: 1_000 - YEARS_MS };
        let young = [0, 1_800_000, -1_000].map(|age_ms| (age_ms, Verdict::Agreed));
        for (age_ms, expected) in young.into_iter().chain([(7_200_000, idle), (-YEARS_MS, ahead)]) {
            let newest_ms = START_MS.saturating_add_signed(-age_ms);
            let mut scene = Scene { newest_ms, ..Scene::new(1) };
            assert_eq!(scene.pass(1, &[0]), expected, "the newest record is {age_ms} ms old");
            assert_eq!(scene.removes(0).is_some(), expected == Verdict::Agreed);
            scene.pass(HOUR, &[0]);
            assert_eq!(scene.removes(0), Some(0));
        }
    }

    #[test]
    fn what_was_on_its_way_for_long_does_not_count_and_no_number_breaks_anything() {
        let mut scene = Scene::new(3);
        scene.pass(3, &[0, 0, 0]);
        for peer in [2, 3] {
            let late = base_of(START_MS - 60_000, 0);
            scene.clocks.heard.entry(NodeId(peer)).or_default().note(late, scene.second * SECOND_US);
        }
        let known = Known { members: &scene.members, newest_ms: u64::MAX };
        let clock = scene.clock(0);
        scene.clocks.judge(NodeId(1), clock, &known);
        assert_eq!(scene.clocks.verdict, Verdict::Agreed);
        for wall_ms in [0, u64::MAX] {
            let known = Known { members: &scene.members, newest_ms: u64::MAX };
            scene.clocks.heard.entry(NodeId(2)).or_default().note(base_of(wall_ms, 0), scene.second * SECOND_US);
            scene.clocks.judge(NodeId(1), Clock { wall_ms, ..clock }, &known);
            scene.clocks.stamp_ms(clock);
            assert!(scene.clocks.problem(u64::MAX).is_some());
        }
    }
}
