//! The end of a run: faults are over, clients finish, every group has a leader, replicas agree, all can be read.

use super::super::invariants::records::KeptTopic;
use super::super::invariants::{Violation, topics};
use super::super::trace::Event;
use super::super::workload::{BEGIN, reader};
use super::{Checked, Cluster, What};
use lnc_log::disk::Disk;

/// How long the cluster may take, from the moment at which clients stop, until everything has come to rest, beside the time in
/// which states travel.
const REST_US: u64 = 120_000_000;
/// How long it may take after the last fault until every group has a leader; where members change, beside the same.
const LEADER_US: u64 = 30_000_000;
/// Time between two looks.
const LOOK_US: u64 = 500_000;

enum Phase {
    /// Clients work.
    Work,
    /// Clients finish what they have begun.
    Stopping {
        since_us: u64,
    },
    /// Everything is read from every node.
    Reading {
        first_reader: usize,
        since_us: u64,
    },
    Done,
}

/// How near the end is.
pub(super) struct Finish {
    phase: Phase,
    healed_us: Option<u64>,
    led: bool,
}

impl Finish {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Work, healed_us: None, led: false }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    pub(super) fn is_stopping(&self) -> bool {
        !matches!(self.phase, Phase::Work)
    }

    pub(super) fn is_healed(&self) -> bool {
        self.healed_us.is_some()
    }

    pub(super) fn healed(&mut self, now_us: u64) {
        self.healed_us = Some(now_us);
    }
}

impl Cluster {
    pub(super) fn stop(&mut self) {
        self.finish.phase = Phase::Stopping { since_us: self.now_us };
        self.after(0, What::Look);
    }

    /// How long it takes at most until one node has sent the state of all groups to each of the others, at the rate that is set.
    fn states_travel_us(&self) -> u64 {
        let largest = self.nodes.iter().map(|node| node.disk.used()).max().unwrap_or(0);
        largest * self.settings.nodes * 1_000_000 / self.settings.transfer_bytes_per_second
    }

    /// See how far the end has come.
    pub(super) fn look(&mut self) -> Checked {
        match self.finish.phase {
            Phase::Work | Phase::Done => return Ok(()),
            Phase::Stopping { since_us } => self.look_for_rest(since_us)?,
            Phase::Reading { first_reader, since_us } => {
                let read = self.clients[first_reader..].iter().all(|client| client.is_idle());
                let late = self.now_us > since_us + REST_US + self.states_travel_us();
                if read && self.rest.is_quiet(self.now_us, since_us) {
                    self.invariants.records.finish()?;
                    let (reigns, groups) = (&self.invariants.reigns, u64::from(self.settings.data_groups));
                    let group = |id: u64, partition: u32| 1 + ((id + u64::from(partition)) % groups) as u32;
                    let alone_since = |topic: &KeptTopic, partition| reigns.alone_since_us(group(topic.id, partition));
                    self.invariants.records.leaders_kept(alone_since)?;
                    for (name, operations) in self.history.topics() {
                        self.counts.topics_unchecked += u64::from(!topics::check(name, operations)?);
                    }
                    self.finish.phase = Phase::Done;
                } else if late && read {
                    return Err(self.rest.disturbance(&self.describe()));
                } else if late {
                    let what = format!("reading everything does not end;{}", self.describe());
                    return Err(Violation::new("liveness-reads", what));
                }
            }
        }
        self.after(LOOK_US, What::Look);
        Ok(())
    }

    fn look_for_rest(&mut self, since_us: u64) -> Checked {
        let travel_us = self.states_travel_us();
        let late = self.now_us > since_us + REST_US + travel_us;
        if !self.finish.led {
            self.finish.led = self.unled().is_none();
            let healed_us = self.finish.healed_us.unwrap_or(since_us);
            // Half of the voters may be on their way.
            let leader_us = LEADER_US + if self.settings.changes_members { travel_us } else { 0 };
            if let Some(group) = self.unled().filter(|_| self.now_us > healed_us + leader_us) {
                let seconds = leader_us / 1_000_000;
                let what = format!("group {group} has no leader {seconds} s after the last fault;{}", self.describe());
                return Err(Violation::new("liveness-leader", what));
            }
        }
        if late && let Some(node) = self.nodes.iter().find(|node| node.filled) {
            let (bytes, inodes) = (node.disk.free_bytes(), node.disk.free_files());
            let what = format!(
                "a topic was to be deleted, and node {} has {bytes:?} bytes and {inodes:?} inodes free;{}",
                node.id,
                self.describe()
            );
            return Err(Violation::new("space-returns", what));
        }
        let busy = self.clients.iter().position(|client| !client.is_idle());
        if let Some(client) = busy {
            if late {
                let client = self.clients[client].describe();
                let what = format!("{client} does not finish;{}", self.describe());
                return Err(Violation::new("liveness-clients", what));
            }
            return Ok(());
        }
        match self.apart() {
            None => self.begin_reading(),
            Some(apart) if late => {
                let what = format!("replicas do not come together: {apart};{}", self.describe());
                return Err(Violation::new("liveness-convergence", what));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// A group that no node leads with everything committed.
    fn unled(&self) -> Option<u32> {
        let led = |group: &u32| {
            let members = self.nodes.iter().filter(|node| node.serves());
            let views = members.filter_map(|node| node.broker()?.inspect(*group));
            views.into_iter().any(|view| view.role == lnc_raft::Role::Leader && view.commit == view.last)
        };
        (0..=self.settings.data_groups).find(|group| !led(group))
    }

    /// In what way replicas differ.
    fn apart(&mut self) -> Option<String> {
        for group in 0..=self.settings.data_groups {
            let mut first = None;
            for node in self.nodes.iter().filter(|node| node.serves()) {
                let Some(broker) = node.broker() else { return Some(format!("node {} is down", node.id)) };
                if let Err(reason) = broker.is_ready() {
                    return Some(format!("node {}: {reason}", node.id));
                }
                let view = broker.inspect(group)?;
                if view.applied != view.last {
                    return Some(format!(
                        "node {} has applied {} of {} in group {group}",
                        node.id, view.applied, view.last
                    ));
                }
                let here = (view.applied, broker.state(group), broker.configuration(group));
                match &first {
                    None => first = Some(here),
                    Some(there) if *there != here => {
                        return Some(format!(
                            "node {} is at {} of group {group} with members {}, another at {} with {}, states {}",
                            node.id,
                            here.0,
                            here.2,
                            there.0,
                            there.2,
                            if here.1 == there.1 { "equal" } else { "different" }
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        None
    }

    fn begin_reading(&mut self) {
        self.note(Event::Fault { what: "the cluster is at rest; everything is read from every node".to_owned() });
        let first_reader = self.clients.len();
        let members: Vec<u64> = self.nodes.iter().filter(|node| node.serves()).map(|node| node.id).collect();
        for node in members {
            let client = self.clients.len();
            self.clients.push(Box::new(reader::Reader::new(node, self.invariants.records.partitions())));
            self.after(0, What::Timer { client, token: BEGIN });
        }
        self.finish.phase = Phase::Reading { first_reader, since_us: self.now_us };
    }

    /// The state of every node, for a report.
    pub(in crate::sim) fn describe(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            match node.broker() {
                None if node.away => {}
                None => text += &format!("\n  node {} is down", node.id),
                Some(broker) => {
                    for group in 0..=self.settings.data_groups {
                        text += &format!("\n  node {} group {group}: {:?}", node.id, broker.inspect(group));
                    }
                }
            }
        }
        text
    }
}
