//! `lance server`: one node.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::config::environment;
use super::error::CliError;
use crate::config::{Config, Sources};

/// Run one node, until it is asked to stop (SIGTERM, SIGINT)
#[derive(Debug, Args)]
#[command(after_help = "\
The configuration comes from the file, then environment variables LANCE_SECTION__KEY, then flags; the last one wins. \
`lance config default` shows every key.

Examples:
  lance server --config /etc/lance/lance.toml
  lance server --node-id 1 --data-dir /var/lib/lance --listen 127.0.0.1:1992
  LANCE_NODE__ID=2 lance server --set journal.file_bytes=128MiB
  lance server --node-id-from-hostname        pod lance-0 is node 1, and so on")]
pub(super) struct ServerArgs {
    /// The TOML file; without one the node starts from the defaults
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Number of this node (node.id)
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// Take the number of this node from the host's name, as in a Kubernetes StatefulSet: lance-0 is node 1
    #[arg(long, conflicts_with = "node_id")]
    node_id_from_hostname: bool,
    /// Directory for everything that this node stores (node.data_dir)
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Address to listen on for clients (listen.client)
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Set any key of the configuration; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = assignment)]
    set: Vec<(String, String)>,
    /// Stop when standard input ends: a child that must not outlive the process that started it
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "write section.key=value".to_owned())?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl ServerArgs {
    /// All layers of the configuration, with `environment` in the middle.
    pub(super) fn sources(&self, environment: impl IntoIterator<Item = (String, String)>) -> Sources {
        let mut sources = Sources::default().env(environment);
        if let Some(file) = &self.config {
            sources = sources.file(file);
        }
        for (key, value) in &self.set {
            sources = sources.set(key, value, "--set");
        }
        let flags = [
            ("node.id", &self.node_id, "--node-id"),
            ("node.data_dir", &self.data_dir, "--data-dir"),
            ("listen.client", &self.listen, "--listen"),
        ];
        for (key, value, flag) in flags {
            if let Some(value) = value {
                sources = sources.set(key, value, flag);
            }
        }
        sources
    }
}

pub(super) fn run(args: ServerArgs) -> Result<ExitCode, CliError> {
    let mut sources = args.sources(environment());
    if args.node_id_from_hostname {
        sources = sources.set("node.id", node_of_host()?, "--node-id-from-hostname");
    }
    let config = Config::load(&sources).map_err(|error| CliError::usage(error.to_string()))?;
    crate::log::start(&config.log);
    let (requests, tail_cache) = (config.limits.memory_bytes, config.limits.tail_cache_bytes);
    tracing::info!(node = config.node.id, requests, tail_cache, "starting; memory budgets in bytes");
    if args.stop_with_stdin {
        stop_with_stdin()?;
    }
    match crate::server::run(config) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            // In the log's own format, for whoever collects it; that is standard error too, so once is enough.
            match error.run_book() {
                Some(page) => tracing::error!("the node has stopped: {error}; what to do: {page}"),
                None => tracing::error!("the node has stopped: {error}"),
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The number of the node on this host.
fn node_of_host() -> Result<String, CliError> {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let node = node_of(&name).ok_or_else(|| {
        let expected = "--node-id-from-hostname needs a host name that ends in a dash and a number, such as lance-0";
        CliError::usage(format!("this host is named `{name}`: {expected}"))
    })?;
    Ok(node.to_string())
}

/// The number of the node in the pod of this name: pods are counted from 0, nodes from 1.
fn node_of(pod: &str) -> Option<u64> {
    let pod = pod.split('.').next()?;
    let (_, ordinal) = pod.rsplit_once('-')?;
    ordinal.parse::<u32>().ok().map(|ordinal| u64::from(ordinal) + 1)
}

/// Asks this process to stop, as an operator would, once standard input ends.
fn stop_with_stdin() -> Result<(), CliError> {
    let wait = || {
        let mut sink = [0; 64];
        while matches!(std::io::stdin().read(&mut sink), Ok(length) if length > 0) {}
        // This process exists, so the only failure would be a forbidden signal to oneself, which there is not.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    };
    let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(wait);
    thread.map(drop).map_err(|error| CliError::failed(format!("cannot start a thread: {error}")))
}

#[cfg(test)]
mod tests {
    use super::node_of;

    #[test]
    fn pods_are_numbered_from_zero_and_nodes_from_one() {
        assert_eq!(node_of("lance-0"), Some(1));
        assert_eq!(node_of("my-lance-12"), Some(13));
        assert_eq!(node_of("lance-2.lance-peers.lance.svc.cluster.local"), Some(3));
        for other in ["lance", "lance-", "lance-x", "3", "", "lance-99999999999"] {
            assert_eq!(node_of(other), None, "{other}");
        }
    }
}
