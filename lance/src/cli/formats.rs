//! `lance cluster finalize`, and what `lance cluster status` says of versions: which formats the nodes speak, and which one
//! the cluster has.

use std::process::ExitCode;

use clap::Args;
use lnc_client::{ConnectOptions, Connection};
use lnc_protocol::ErrorCode;
use lnc_protocol::message::{FormatsResponse, Request, Response};
use serde_json::{Value, json};

use super::Global;
use super::cluster::NODE_TIMEOUT;
use super::confirm::confirm;
use super::error::CliError;
use super::output::{self, OutputFormat};

/// End an upgrade: let the cluster use what the new version brings, after which the old one cannot come back
///
/// Every member must be there and run a version that speaks the new format.
#[derive(Debug, Args)]
#[command(after_help = "\
Until then each node may go back to the version before, with its data.

Example:
  lance cluster finalize --yes")]
pub(super) struct FinalizeArgs {
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

/// What one node says.
struct Speaker {
    node: u64,
    version: String,
    formats: FormatsResponse,
}

/// What all nodes say that answer.
pub(super) struct Formats {
    speakers: Vec<Speaker>,
}

impl Formats {
    /// Asks the nodes at these addresses.
    pub(super) async fn ask(global: &Global, addresses: &[String]) -> Self {
        let limit = NODE_TIMEOUT.min(global.timeout);
        let mut speakers = Vec::new();
        for address in addresses {
            if let Ok(Some(speaker)) = tokio::time::timeout(limit, ask(address)).await {
                speakers.push(speaker);
            }
        }
        speakers.sort_by_key(|speaker| speaker.node);
        Self { speakers }
    }

    /// The format of the cluster: the latest that anybody knows of.
    fn current(&self) -> u32 {
        self.speakers.iter().map(|speaker| speaker.formats.format).max().unwrap_or_default()
    }

    /// The newest format that all who answer speak.
    fn newest(&self) -> u32 {
        self.speakers.iter().map(|speaker| speaker.formats.newest).min().unwrap_or_default()
    }

    /// Who keeps the cluster from the newest format that anybody speaks.
    fn behind(&self) -> Vec<String> {
        let newest = self.speakers.iter().map(|speaker| speaker.formats.newest).max().unwrap_or_default();
        let behind = self.speakers.iter().filter(|speaker| speaker.formats.newest < newest);
        behind.map(|speaker| format!("node {} runs {}", speaker.node, speaker.version)).collect()
    }

    /// What is worth saying: nothing, where all nodes run one version and the cluster has its format.
    pub(super) fn text(&self) -> String {
        let mut versions: Vec<&str> = self.speakers.iter().map(|speaker| speaker.version.as_str()).collect();
        versions.sort_unstable();
        versions.dedup();
        let mut text = String::new();
        if versions.len() > 1 {
            for version in versions {
                let nodes = self.speakers.iter().filter(|speaker| speaker.version == version);
                let nodes: Vec<String> = nodes.map(|speaker| speaker.node.to_string()).collect();
                text += &format!("version {version}: node {}\n", nodes.join(", "));
            }
        }
        if self.newest() > self.current() {
            text += &format!(
                "the cluster has format {}, and every node that answers speaks {}: `lance cluster finalize` ends the upgrade\n",
                self.current(),
                self.newest()
            );
        }
        text
    }

    pub(super) fn json(&self) -> Value {
        let node = |speaker: &Speaker| {
            json!({
                "id": speaker.node,
                "version": speaker.version,
                "oldest_format": speaker.formats.oldest,
                "newest_format": speaker.formats.newest,
            })
        };
        json!({ "current": self.current(), "nodes": self.speakers.iter().map(node).collect::<Vec<_>>() })
    }
}

async fn ask(address: &str) -> Option<Speaker> {
    let options = ConnectOptions { client_name: "lance-cli".to_owned(), timeout: NODE_TIMEOUT, ..Default::default() };
    let connection = Connection::connect(address, &options).await.ok()?;
    let hello = connection.hello();
    let (node, version) = (hello.node_id, hello.server_name.clone());
    let formats = match connection.request(&Request::Formats).await.ok()?.result {
        Ok(Response::Formats(formats)) => formats,
        // Version 0.1.0 does not know the question.
        Err(error) if error.code == ErrorCode::UnknownOpcode => FormatsResponse { format: 1, oldest: 1, newest: 1 },
        _ => return None,
    };
    Some(Speaker { node, version, formats })
}

pub(super) async fn finalize(global: &Global, args: &FinalizeArgs, addresses: &[String]) -> Result<ExitCode, CliError> {
    let formats = Formats::ask(global, addresses).await;
    let (current, newest) = (formats.current(), formats.newest());
    let behind = formats.behind();
    if !behind.is_empty() {
        return Err(CliError::failed(format!("upgrade all nodes first: {}", behind.join(", "))));
    }
    if newest > current {
        if !args.yes {
            let question = format!("Raise the format from {current} to {newest}, for good?");
            confirm(&question, &newest.to_string(), "versions without the new format cannot come back afterwards")?;
        }
        global.connect().await?.raise_format(newest).await?;
    }
    match global.output {
        OutputFormat::Json => output::print_json(&json!({ "before": current, "after": newest.max(current) }))?,
        OutputFormat::Table if newest > current => {
            output::print(&format!("the cluster has format {newest}; it had {current}\n"))?;
        }
        OutputFormat::Table => {
            output::print(&format!("the cluster has format {current}: there is nothing to finalize\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(nodes: &[(&str, u32, u32)]) -> Formats {
        let speaker = |(at, &(version, format, newest)): (usize, &(&str, u32, u32))| Speaker {
            node: at as u64 + 1,
            version: version.to_owned(),
            formats: FormatsResponse { format, oldest: 1, newest },
        };
        Formats { speakers: nodes.iter().enumerate().map(speaker).collect() }
    }

    #[test]
    fn a_cluster_at_rest_says_nothing() {
        assert_eq!(formats(&[("lance/2", 2, 2), ("lance/2", 2, 2)]).text(), "");
    }

    #[test]
    fn an_upgrade_says_who_runs_what_and_when_it_can_end() {
        let half = formats(&[("lance/2", 1, 2), ("lance/1", 1, 1), ("lance/2", 1, 2)]);
        assert_eq!(half.text(), "version lance/1: node 2\nversion lance/2: node 1, 3\n");
        assert_eq!((half.current(), half.newest()), (1, 1));
        assert_eq!(half.behind(), ["node 2 runs lance/1"]);
        let whole = formats(&[("lance/2", 1, 2), ("lance/2", 1, 2)]);
        assert!(whole.behind().is_empty());
        assert!(whole.text().contains("`lance cluster finalize` ends the upgrade"), "{}", whole.text());
        assert_eq!(whole.json()["nodes"][0]["newest_format"], 2);
    }
}
