//! The nemesis: carries out the faults, one after the other, and waits for the cluster to be whole again.

use super::cluster::Cluster;
use super::error::{LiveError, Result, client};
use super::fault::Fault;
use super::kubernetes::Pods;
use super::ledger::Ledger;
use super::network::Cut;
use super::schedule::{Schedule, Strike};
use super::volume::{Throttle, Volume};
use crate::sim::rng::Rng;
use lnc_client::Client;
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Longest time for a partition to have a leader that clients can name.
const LEADERLESS: Duration = Duration::from_secs(30);
/// Between two looks at the nodes, and two attempts to learn who leads.
const POLL: Duration = Duration::from_millis(100);
/// How long a node may take to notice that its disk is gone, before it is killed as the computer would have been.
const NOTICE: Duration = Duration::from_secs(5);
/// Writes per second of a slow disk.
const SLOW_WRITES: u32 = 20;
/// Delay of a slow network, each way.
const SLOW_NETWORK: Duration = Duration::from_millis(50);
/// Between two times that all connections break.
const RESETS: Duration = Duration::from_millis(200);

/// The cluster that faults are done to.
pub(super) enum Target {
    /// Processes of this run.
    Own(Cluster),
    /// Pods of a stateful set.
    Pods(Pods),
    /// Something that runs, which nothing is done to.
    Running,
}

/// See the module documentation.
pub(super) struct Nemesis<'a> {
    pub(super) target: &'a mut Target,
    pub(super) ledger: Ledger,
    pub(super) client: Client,
    pub(super) topic: String,
    pub(super) partitions: u32,
    pub(super) rng: Rng,
}

impl Nemesis<'_> {
    /// Carry out the schedule until it or the time is over. A cluster that does not come back to life is a finding, and
    /// ends the faults.
    pub(super) async fn run(&mut self, schedule: Schedule, end: Option<Instant>) -> Result<()> {
        let begin = Instant::now();
        // What the last fault does to leadership later on belongs to it too.
        let span = schedule.span().unwrap_or_default();
        for strike in schedule {
            let at = begin + strike.at;
            if end.is_some_and(|end| at.max(Instant::now()) >= end) {
                break;
            }
            self.watch_until(at).await;
            match self.strike(strike).await {
                Ok(()) => {}
                Err(error @ LiveError::NotReady { .. }) => {
                    self.ledger.lock().broken(format!("after {}: {error}", strike.fault));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        self.watch_until(end.unwrap_or(begin + span)).await;
        Ok(())
    }

    /// Wait, and see whether a node ends by itself.
    pub(super) async fn watch_until(&mut self, at: Instant) {
        loop {
            self.look();
            let now = Instant::now();
            if now >= at {
                return;
            }
            sleep_until(at.min(now + POLL)).await;
        }
    }

    fn look(&mut self) {
        let Target::Own(cluster) = &mut *self.target else { return };
        for node in &mut cluster.nodes {
            if let Some(status) = node.ended() {
                let what = format!("node {} has ended by itself with {status}: {}", node.id, node.last_words());
                self.ledger.lock().broken(what);
                // Counted once; the others go on.
                if let Err(error) = node.start() {
                    self.ledger.lock().broken(error.to_string());
                }
            }
        }
    }

    /// The leader of a partition that is drawn, and a node that does not lead it, drawn too.
    async fn roles(&mut self) -> Result<(u64, u64)> {
        let partition = self.rng.below(u64::from(self.partitions)) as u32;
        let deadline = Instant::now() + LEADERLESS;
        loop {
            let metadata = self.client.metadata(Some(&[self.topic.as_str()])).await;
            let metadata = metadata.map_err(client("ask who leads"))?;
            let partitions = metadata.topics.first().map(|topic| topic.partitions.as_slice()).unwrap_or_default();
            let leader = partitions.iter().find(|found| found.partition == partition).and_then(|found| found.leader);
            if let Some(leader) = leader {
                let others: Vec<u64> = metadata.nodes.iter().map(|node| node.id).filter(|id| *id != leader).collect();
                return Ok((leader, if others.is_empty() { leader } else { self.rng.pick(&others) }));
            }
            if Instant::now() >= deadline {
                let (who, state) = (format!("partition {partition} is"), "it has no leader".to_owned());
                return Err(LiveError::NotReady { who, after: LEADERLESS, state });
            }
            sleep(POLL).await;
        }
    }

    /// Do it, hold it, take it back, and wait until all is well.
    async fn strike(&mut self, Strike { fault, hold, .. }: Strike) -> Result<()> {
        let (leader, follower) = self.roles().await?;
        let Self { target, ledger, rng, .. } = self;
        match target {
            Target::Own(cluster) => {
                let mut blow = Blow { cluster, ledger, fault, hold };
                blow.strike(leader, follower).await?;
                cluster.wait_ready().await?;
            }
            Target::Pods(pods) => strike_pods(pods, ledger, fault, rng).await?,
            Target::Running => return Err(LiveError::Unavailable(format!("{fault} needs nodes of its own"))),
        }
        ledger.lock().healed(true);
        Ok(())
    }
}

async fn strike_pods(pods: &Pods, ledger: &Ledger, fault: Fault, rng: &mut Rng) -> Result<()> {
    if fault == Fault::RolloutRestart {
        ledger.lock().begin(fault, "all pods");
        return pods.rollout_restart().await;
    }
    let victim = rng.below(pods.replicas.max(1));
    ledger.lock().begin(fault, &pods.pod(victim));
    pods.delete(victim).await?;
    pods.wait_ready().await
}

/// One fault, done to processes of this run.
struct Blow<'a> {
    cluster: &'a mut Cluster,
    ledger: &'a Ledger,
    fault: Fault,
    hold: Duration,
}

impl Blow<'_> {
    fn begin(&self, what: &str) {
        self.ledger.lock().begin(self.fault, what);
    }

    fn begin_at(&self, node: u64) {
        self.begin(&format!("node {node}"));
    }

    fn healed(&self) {
        self.ledger.lock().healed(false);
    }

    async fn strike(&mut self, leader: u64, follower: u64) -> Result<()> {
        let all: Vec<u64> = self.cluster.nodes.iter().map(|node| node.id).collect();
        match self.fault {
            Fault::KillLeader => self.kill(&[leader]).await,
            Fault::KillFollower => self.kill(&[follower]).await,
            Fault::KillAll => self.kill(&all).await,
            Fault::StopLeader => self.pause(leader).await,
            Fault::StopFollower => self.pause(follower).await,
            Fault::TermLeader => self.terminate(leader).await,
            Fault::RollingRestart => self.rolling_restart(&all).await,
            Fault::PartitionLeader => self.cut(leader, Cut::Alone(leader)).await,
            Fault::PartitionFollower => self.cut(follower, Cut::Alone(follower)).await,
            Fault::OneWayPartition => self.cut(leader, Cut::Mute(leader)).await,
            Fault::IsolateLeader => self.cut(leader, Cut::Isolated(leader)).await,
            Fault::SlowNetwork => {
                self.begin("all nodes");
                self.cluster.network.delay(SLOW_NETWORK)?;
                self.hold_and_heal().await
            }
            Fault::DropConnections => self.drop_connections().await,
            Fault::HalfOpen => {
                self.begin_at(leader);
                self.cluster.network.half_open(leader)?;
                self.hold_and_heal().await
            }
            Fault::SlowDisk => self.slow_disk(leader).await,
            Fault::FullDisk => self.full_disk(leader).await,
            Fault::PowerLoss => self.power_loss(&[leader]).await,
            Fault::PowerLossAll => self.power_loss(&all).await,
            Fault::PodDelete | Fault::RolloutRestart => {
                Err(LiveError::Unavailable(format!("{} needs a stateful set", self.fault)))
            }
        }
    }

    async fn kill(&mut self, victims: &[u64]) -> Result<()> {
        self.begin(&names(victims));
        victims.iter().for_each(|victim| self.cluster.node(*victim).kill_now());
        for victim in victims {
            self.cluster.node(*victim).kill().await;
        }
        sleep(self.hold).await;
        self.start(victims)
    }

    fn start(&mut self, victims: &[u64]) -> Result<()> {
        self.healed();
        victims.iter().try_for_each(|victim| self.cluster.node(*victim).start())
    }

    async fn pause(&mut self, victim: u64) -> Result<()> {
        self.begin_at(victim);
        self.cluster.node(victim).signal(Signal::STOP)?;
        sleep(self.hold).await;
        self.healed();
        self.cluster.node(victim).signal(Signal::CONT)
    }

    async fn stop(&mut self, victim: u64) -> Result<()> {
        let status = self.cluster.node(victim).stop().await?;
        if !status.success() {
            self.ledger.lock().broken(format!("node {victim} was told to stop and ended with {status}"));
        }
        Ok(())
    }

    async fn terminate(&mut self, victim: u64) -> Result<()> {
        self.begin_at(victim);
        self.stop(victim).await?;
        sleep(self.hold).await;
        self.start(&[victim])
    }

    async fn rolling_restart(&mut self, all: &[u64]) -> Result<()> {
        self.begin("all nodes in turn");
        for victim in all {
            self.stop(*victim).await?;
            self.cluster.node(*victim).start()?;
            self.cluster.wait_ready().await?;
        }
        self.healed();
        Ok(())
    }

    async fn cut(&mut self, victim: u64, cut: Cut) -> Result<()> {
        self.begin_at(victim);
        self.cluster.network.cut(cut).await?;
        self.hold_and_heal().await
    }

    async fn hold_and_heal(&mut self) -> Result<()> {
        sleep(self.hold).await;
        self.healed();
        self.cluster.network.heal().await
    }

    async fn drop_connections(&mut self) -> Result<()> {
        self.begin("all nodes");
        let end = Instant::now() + self.hold;
        loop {
            self.cluster.network.reset()?;
            if Instant::now() >= end {
                self.healed();
                return Ok(());
            }
            sleep(RESETS.min(end - Instant::now())).await;
        }
    }

    async fn slow_disk(&mut self, victim: u64) -> Result<()> {
        let device = self.cluster.volumes[victim as usize - 1].block_device()?;
        let Some(pid) = self.cluster.node(victim).pid() else { return Ok(()) };
        self.begin_at(victim);
        let throttle = Throttle::start(pid, &device, SLOW_WRITES)?;
        sleep(self.hold).await;
        self.healed();
        drop(throttle);
        Ok(())
    }

    async fn full_disk(&mut self, victim: u64) -> Result<()> {
        self.begin_at(victim);
        self.cluster.volumes[victim as usize - 1].fill()?;
        sleep(self.hold).await;
        self.healed();
        self.cluster.volumes[victim as usize - 1].empty()
    }

    async fn power_loss(&mut self, victims: &[u64]) -> Result<()> {
        self.begin(&names(victims));
        let Cluster { volumes, nodes, .. } = &mut *self.cluster;
        Volume::lose_power(&victims.iter().map(|victim| &volumes[*victim as usize - 1]).collect::<Vec<_>>()).await?;
        for victim in victims {
            let node = &mut nodes[*victim as usize - 1];
            match node.wait(NOTICE).await {
                // It fails because its disk is gone, and must not say that all is well.
                Ok(status) if status.success() => {
                    self.ledger.lock().broken(format!("node {victim} has lost its disk and ended with {status}"));
                }
                Ok(_) => {}
                Err(_) => node.kill().await,
            }
        }
        sleep(self.hold).await;
        for victim in victims {
            self.cluster.volumes[*victim as usize - 1].restore().await?;
        }
        self.start(victims)
    }
}

fn names(nodes: &[u64]) -> String {
    let names: Vec<String> = nodes.iter().map(u64::to_string).collect();
    if let [one] = &names[..] { format!("node {one}") } else { format!("nodes {}", names.join(", ")) }
}
