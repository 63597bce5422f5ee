//! Watches a run from outside: shows its progress, takes what servers and generator have spent at both ends of the
//! window, and knows the environment.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lnc_client::Client;

use crate::BenchError;
use crate::args::ClusterArgs;
use crate::measure::{Clock, Window};
use crate::process::{self, Spent};
use crate::report::{Environment, Server, Usage};
use crate::wire;

/// How often progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// How long a broker's metrics are waited for.
const METRICS_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest page of metrics that is read, in bytes.
const METRICS_LIMIT: u64 = 16 << 20;

/// The servers of a run.
pub(crate) struct Watch {
    pids: Vec<u32>,
    /// What the servers say they are, with their version.
    software: String,
    /// The disk backends in use.
    backends: Vec<String>,
    nodes: usize,
}

impl Watch {
    pub(crate) async fn new(client: &Client, cluster: &ClusterArgs) -> Watch {
        let info = client.cluster_info().await.ok();
        let nodes = info.map(|info| info.nodes).unwrap_or_default();
        let mut addresses: Vec<String> = nodes.iter().map(|node| node.client_address.clone()).collect();
        if addresses.is_empty() {
            addresses.clone_from(&cluster.endpoints);
        }
        let mut pids = cluster.server_pids.clone();
        if pids.is_empty() {
            pids = process::listening(&addresses);
        }
        let hello = wire::connect(&addresses[0]).await.ok();
        let mut backends: Vec<String> = nodes.iter().filter_map(|node| backend(&node.http_address)).collect();
        backends.sort_unstable();
        backends.dedup();
        let software = hello.map_or("unknown".into(), |(_, hello)| hello.server_name);
        Watch { pids, software, backends, nodes: addresses.len() }
    }

    pub(crate) fn environment(&self, acks: Option<&str>) -> Environment {
        let (processor, cores, kernel) = process::machine();
        let systems = self.pids.iter().filter_map(|pid| process::file_system(&process::data_directory(*pid)?));
        let mut systems: Vec<String> = systems.collect();
        systems.sort_unstable();
        systems.dedup();
        let or_unknown = |list: &[String]| if list.is_empty() { "unknown".into() } else { list.join(", ") };
        Environment {
            generator: concat!("lnc-bench ", env!("CARGO_PKG_VERSION")).into(),
            server: self.software.clone(),
            nodes: self.nodes,
            local_servers: self.pids.len(),
            backend: or_unknown(&self.backends),
            file_system: or_unknown(&systems),
            acks: acks.unwrap_or("does not apply").into(),
            kernel,
            processor,
            cores,
        }
    }

    /// What the servers, and last the generator, have spent.
    fn spent(&self) -> Vec<Result<Spent, BenchError>> {
        self.pids.iter().chain([&std::process::id()]).map(|pid| process::spent(*pid)).collect()
    }

    /// The differences of two times at which it was asked what had been spent. A server that ended in between, which is
    /// what some runs are about, has spent nobody knows what.
    fn usage(&self, before: &[Spent], after: &[Option<Spent>]) -> Usage {
        let pids = self.pids.iter().copied().chain([std::process::id()]);
        let (mut servers, mut ended) = (Vec::new(), Vec::new());
        for (pid, (before, after)) in pids.zip(before.iter().zip(after)) {
            let Some(after) = after else {
                ended.push(pid);
                continue;
            };
            servers.push(Server {
                pid,
                cpu_seconds: after.cpu_seconds - before.cpu_seconds,
                peak_memory: after.peak_memory,
                written: after.written.zip(before.written).map(|(after, before)| after.saturating_sub(before)),
            });
        }
        let generator_cpu_seconds = servers.pop().map_or(0.0, |own| own.cpu_seconds);
        Usage { generator_cpu_seconds, servers, ended }
    }
}

/// Shows progress until the window ends, and says what was spent in it.
pub(crate) fn watch(
    watched: &Watch,
    clock: &Clock,
    window: Window,
    progress: &AtomicU64,
    failed: &AtomicBool,
) -> Result<Usage, BenchError> {
    let start = clock.now();
    let bar = ProgressBar::new((window.until.saturating_sub(start)) / 1_000_000);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
        bar.set_style(style);
    }
    let mut last = (start, 0);
    let mut wait_until = |until: u64, phase: &str| {
        loop {
            let now = clock.now();
            if now >= until || failed.load(Ordering::Relaxed) {
                return;
            }
            let count = progress.load(Ordering::Relaxed);
            let rate = (count - last.1) as f64 / ((now - last.0) as f64 / 1e9).max(0.001);
            last = (now, count);
            bar.set_position((now - start) / 1_000_000);
            bar.set_message(format!("{phase}: {rate:.0} records/s"));
            std::thread::sleep(PROGRESS_INTERVAL.min(Duration::from_nanos(until - now)));
        }
    };
    wait_until(window.from, "warm-up");
    let before = watched.spent().into_iter().collect::<Result<Vec<_>, _>>()?;
    wait_until(window.until, "measuring");
    let after: Vec<_> = watched.spent().into_iter().map(Result::ok).collect();
    bar.finish_and_clear();
    Ok(watched.usage(&before, &after))
}

/// The disk backend that a broker's metrics name.
fn backend(http_address: &str) -> Option<String> {
    let address = http_address.to_socket_addrs().ok()?.next()?;
    let mut stream = TcpStream::connect_timeout(&address, METRICS_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(METRICS_TIMEOUT)).ok()?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {http_address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut page = Vec::new();
    stream.take(METRICS_LIMIT).read_to_end(&mut page).ok()?;
    backend_in(&String::from_utf8_lossy(&page))
}

fn backend_in(metrics: &str) -> Option<String> {
    let name = metrics.lines().find_map(|line| line.strip_prefix("lance_backend_info{backend=\""))?;
    name.split_once('"').map(|(name, _)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backend_is_a_label() {
        let page = "HTTP/1.1 200 OK\r\n\r\n# TYPE lance_backend_info gauge\nlance_backend_info{backend=\"uring\"} 1\n";
        assert_eq!(backend_in(page).as_deref(), Some("uring"));
        assert_eq!(backend_in("lance_backend_info 1\n"), None);
    }

    #[test]
    fn what_was_spent_is_a_difference_and_the_last_is_the_generator() {
        let watched = Watch { pids: vec![7, 8], software: String::new(), backends: Vec::new(), nodes: 1 };
        let spent = |cpu_seconds, written| Spent { cpu_seconds, peak_memory: 99, written };
        let before = [spent(1.0, Some(100)), spent(1.0, None), spent(0.5, None)];
        let usage = watched.usage(&before, &[Some(spent(3.0, Some(350))), None, Some(spent(0.75, None))]);
        assert_eq!(usage.generator_cpu_seconds, 0.25);
        assert_eq!(usage.servers, [Server { pid: 7, cpu_seconds: 2.0, peak_memory: 99, written: Some(250) }]);
        assert_eq!(usage.ended, [8]);
    }
}
