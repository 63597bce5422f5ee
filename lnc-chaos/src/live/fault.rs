//! The faults, by name, and what each needs to be carried out.

use std::fmt;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The leader of a partition is killed.
    KillLeader,
    /// A node that does not lead the partition is killed.
    KillFollower,
    /// All nodes are killed at once.
    KillAll,
    /// The leader hangs.
    StopLeader,
    /// A follower hangs.
    StopFollower,
    /// The leader is told to stop, and hands over.
    TermLeader,
    /// Each node in turn is told to stop, and started again.
    RollingRestart,
    /// The leader and the other nodes do not hear each other; clients reach all.
    PartitionLeader,
    /// A follower and the other nodes do not hear each other.
    PartitionFollower,
    /// What the leader sends to the other nodes is lost; it hears them.
    OneWayPartition,
    /// The leader is cut off from the other nodes and from clients.
    IsolateLeader,
    /// Everything between nodes takes longer.
    SlowNetwork,
    /// All connections between nodes break.
    DropConnections,
    /// Connections to the leader break on its side only.
    HalfOpen,
    /// The leader's disk takes few writes per second.
    SlowDisk,
    /// The leader's disk is full.
    FullDisk,
    /// The leader loses its power.
    PowerLoss,
    /// All nodes lose their power at once.
    PowerLossAll,
    /// A pod is deleted.
    PodDelete,
    /// The stateful set is restarted, pod by pod.
    RolloutRestart,
}

/// What must be there for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Processes that this run has started.
    Processes,
    /// Packets that can be dropped, or a proxy.
    Network,
    /// The proxy.
    Proxy,
    /// File systems on loop devices.
    Volumes,
    /// A control group that limits writes, beside what [`Need::Volumes`] needs.
    Throttle,
    /// File systems that can lose what is not on stable storage.
    Power,
    /// A stateful set.
    Kubernetes,
}

/// Every fault: its name, what it needs, and what it does.
pub const ALL: &[(Fault, &str, Need, &str)] = &[
    (Fault::KillLeader, "kill-leader", Need::Processes, "kill -9 of the leader of a partition"),
    (Fault::KillFollower, "kill-follower", Need::Processes, "kill -9 of a node that does not lead the partition"),
    (Fault::KillAll, "kill-all", Need::Processes, "kill -9 of all nodes at once"),
    (Fault::StopLeader, "stop-leader", Need::Processes, "SIGSTOP of the leader, later SIGCONT"),
    (Fault::StopFollower, "stop-follower", Need::Processes, "SIGSTOP of a follower, later SIGCONT"),
    (Fault::TermLeader, "term-leader", Need::Processes, "SIGTERM of the leader: it hands over and ends"),
    (Fault::RollingRestart, "rolling-restart", Need::Processes, "SIGTERM and start of each node, once all are ready"),
    (Fault::PartitionLeader, "partition-leader", Need::Network, "the leader and the other nodes are cut apart"),
    (Fault::PartitionFollower, "partition-follower", Need::Network, "a follower and the other nodes are cut apart"),
    (Fault::OneWayPartition, "one-way-partition", Need::Network, "what the leader sends to the other nodes is lost"),
    (Fault::IsolateLeader, "isolate-leader", Need::Network, "the leader is cut off from nodes and clients"),
    (Fault::SlowNetwork, "slow-network", Need::Proxy, "50 ms of delay between nodes, each way"),
    (Fault::DropConnections, "drop-connections", Need::Proxy, "all connections between nodes break, again and again"),
    (Fault::HalfOpen, "half-open", Need::Proxy, "connections to the leader break on its side; the others see nothing"),
    (Fault::SlowDisk, "slow-disk", Need::Throttle, "the leader's disk takes 20 writes per second"),
    (Fault::FullDisk, "full-disk", Need::Volumes, "the leader's disk is filled up"),
    (Fault::PowerLoss, "power-loss", Need::Power, "the leader loses its power, and all that was not on stable storage"),
    (Fault::PowerLossAll, "power-loss-all", Need::Power, "all nodes lose their power at once"),
    (Fault::PodDelete, "pod-delete", Need::Kubernetes, "kubectl delete pod, of one that is drawn"),
    (Fault::RolloutRestart, "rollout-restart", Need::Kubernetes, "kubectl rollout restart of the stateful set"),
];

impl Fault {
    fn entry(self) -> (&'static str, Need) {
        let found = ALL.iter().find(|(fault, ..)| *fault == self);
        found.map_or(("", Need::Processes), |(_, name, need, _)| (*name, *need))
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        self.entry().0
    }

    /// What it needs.
    pub fn need(self) -> Need {
        self.entry().1
    }

    /// The fault of this name.
    ///
    /// # Errors
    /// With the names that there are.
    pub fn from_name(name: &str) -> Result<Self, String> {
        ALL.iter().find(|(_, known, ..)| *known == name).map(|(fault, ..)| *fault).ok_or_else(|| {
            let names: Vec<&str> = ALL.iter().map(|(_, name, ..)| *name).collect();
            format!("no fault has the name `{name}`; there are {}, random and none", names.join(", "))
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_faults_and_back() {
        for (fault, name, ..) in ALL {
            assert_eq!((Fault::from_name(name), fault.name()), (Ok(*fault), *name));
        }
        assert!(Fault::from_name("kill").unwrap_err().contains("kill-leader"));
    }
}
