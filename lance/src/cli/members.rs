//! `lance cluster add`, `remove`, `replace` and `forget`: who belongs to the cluster. Each only says what should be; the cluster
//! gets there by itself, step by step, so any of them may be interrupted and repeated.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use lnc_protocol::message::{ChangeMembersRequest, ClusterInfoResponse, MemberChange};
use lnc_raft::NodeId;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::cluster::{View, ask_all};
use super::confirm::confirm;
use super::error::CliError;
use super::output::{self, OutputFormat};
use super::{Global, positive_duration};
use lnc_broker::members::Addresses;

/// How often a change that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The addresses of a node that joins.
#[derive(Debug, Args)]
struct AddressArgs {
    /// Address at which clients reach the node
    #[arg(long, value_name = "HOST:PORT")]
    client: Option<String>,
    /// Address at which the other nodes reach it
    #[arg(long, value_name = "HOST:PORT")]
    peer: Option<String>,
    /// Address of its metrics and health
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
}

#[derive(Debug, Args)]
struct WaitArgs {
    /// Wait until the change is complete, and show each step
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 90s or 1h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = positive_duration)]
    wait_timeout: Duration,
}

/// Add a node to the cluster
#[derive(Debug, Args)]
#[command(after_help = "\
The node joins as soon as it is started with this id, an empty data directory, and a cluster.nodes list that names it and \
at least one member. It learns first, and votes once it has caught up. May be interrupted and repeated.

Example:
  lance cluster add 4 --client n4:1992 --peer n4:1993 --http n4:1994 --wait")]
pub(super) struct AddArgs {
    /// Id of the new node
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    node: u32,
    #[command(flatten)]
    addresses: AddressArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Remove a node from the cluster
#[derive(Debug, Args)]
#[command(after_help = "\
The node leaves every group, after handing over what it leads; its data stays on its disk, and it may be stopped then. \
May be interrupted and repeated.

Example:
  lance cluster remove 2 --wait --yes")]
pub(super) struct RemoveArgs {
    /// Id of the node
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    node: u32,
    /// Do not ask first
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Replace a node by one with an empty disk, or by another node
#[derive(Debug, Args)]
#[command(after_help = "\
Without --with: whoever comes next under this id with an empty data directory takes the node's place, even while the \
former one still runs. (A node that comes back empty while its former self is silent is replaced without this command.)

With --with: the new node joins, and the old one leaves once the new one votes. May be interrupted and repeated.

Examples:
  lance cluster replace 3 --wait
  lance cluster replace 3 --with 4 --client b:1992 --peer b:1993 --http b:1994")]
pub(super) struct ReplaceArgs {
    /// Id of the node that goes
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    node: u32,
    /// Id of the node that comes; by default it is the same
    #[arg(long, value_name = "NODE", value_parser = clap::value_parser!(u32).range(1..))]
    with: Option<u32>,
    #[command(flatten)]
    addresses: AddressArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// End what a node's coming has begun, if it cannot complete
#[derive(Debug, Args)]
#[command(after_help = "\
For a node that stays `joining` or `expected` in `lance cluster status` and will not come to vote: it is no longer waited \
for. If a former self of it still votes, as after `lance cluster replace` or when another node took its id by mistake, that \
one stays a member. A node that votes in any group is refused. May be interrupted and repeated.

Example:
  lance cluster forget 4 --wait")]
pub(super) struct ForgetArgs {
    /// Id of the node
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    node: u32,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What is to be true in the end.
enum Goal {
    /// The node votes in every group, under its latest name.
    Votes(u64),
    /// The node is in no group.
    Gone(u64),
    /// No group waits for the node.
    Settled(u64),
}

pub(super) async fn add(global: &Global, args: AddArgs) -> Result<ExitCode, CliError> {
    let node = u64::from(args.node);
    decide(global, joining(global, node, args.addresses, None)?).await?;
    conclude(global, &format!("node {node} may join"), &[Goal::Votes(node)], &args.wait).await
}

pub(super) async fn remove(global: &Global, args: RemoveArgs) -> Result<ExitCode, CliError> {
    let node = u64::from(args.node);
    if !args.yes {
        let question = format!("Remove node {node} from the cluster?");
        confirm(&question, &node.to_string(), &format!("node {node} would leave the cluster"))?;
    }
    let request = ChangeMembersRequest { change: MemberChange::Remove, ..request(global, node) };
    decide(global, request).await?;
    conclude(global, &format!("node {node} leaves"), &[Goal::Gone(node)], &args.wait).await
}

pub(super) async fn forget(global: &Global, args: ForgetArgs) -> Result<ExitCode, CliError> {
    let node = u64::from(args.node);
    let request = ChangeMembersRequest { change: MemberChange::Forget, ..request(global, node) };
    decide(global, request).await?;
    conclude(global, &format!("node {node} is no longer waited for"), &[Goal::Settled(node)], &args.wait).await
}

pub(super) async fn replace(global: &Global, args: ReplaceArgs) -> Result<ExitCode, CliError> {
    let node = u64::from(args.node);
    match args.with.map(u64::from) {
        Some(new) if new == node => Err(CliError::usage("a node is replaced by itself without --with")),
        Some(new) => {
            decide(global, joining(global, new, args.addresses, Some(node))?).await?;
            let goals = [Goal::Votes(new), Goal::Gone(node)];
            conclude(global, &format!("node {new} may join, then node {node} leaves"), &goals, &args.wait).await
        }
        None => {
            let request = ChangeMembersRequest { change: MemberChange::Renew, ..request(global, node) };
            decide(global, request).await?;
            let said = format!("node {node} may come back with an empty data directory");
            conclude(global, &said, &[Goal::Votes(node)], &args.wait).await
        }
    }
}

fn request(global: &Global, node: u64) -> ChangeMembersRequest {
    ChangeMembersRequest {
        change: MemberChange::Add,
        node,
        client_address: String::new(),
        peer_address: String::new(),
        http_address: String::new(),
        replaces: None,
        timeout_ms: u32::try_from(global.timeout.as_millis()).unwrap_or(u32::MAX),
    }
}

fn joining(
    global: &Global,
    node: u64,
    addresses: AddressArgs,
    replaces: Option<u64>,
) -> Result<ChangeMembersRequest, CliError> {
    let AddressArgs { client: Some(client_address), peer: Some(peer_address), http: Some(http_address) } = addresses
    else {
        return Err(CliError::usage("a new node needs its addresses: --client, --peer and --http"));
    };
    let given = Addresses { client: client_address.clone(), peer: peer_address.clone(), http: http_address.clone() };
    given.check().map_err(CliError::usage)?;
    Ok(ChangeMembersRequest { client_address, peer_address, http_address, replaces, ..request(global, node) })
}

async fn decide(global: &Global, request: ChangeMembersRequest) -> Result<(), CliError> {
    Ok(global.connect().await?.change_members(request).await?)
}

/// Say what was decided, and wait for it if asked to.
async fn conclude(global: &Global, said: &str, goals: &[Goal], wait: &WaitArgs) -> Result<ExitCode, CliError> {
    if global.output == OutputFormat::Table {
        output::print(&format!("decided: {said}\n"))?;
    }
    let mut complete = false;
    if wait.wait {
        watch(global, goals, wait.wait_timeout).await?;
        complete = true;
    }
    match (global.output, complete) {
        (OutputFormat::Json, _) => output::print_json(&json!({ "decided": said, "complete": complete }))?,
        (OutputFormat::Table, true) => output::print("complete\n")?,
        (OutputFormat::Table, false) => output::print("`lance cluster status` shows how far it is\n")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Show each step until the goals are reached.
async fn watch(global: &Global, goals: &[Goal], limit: Duration) -> Result<(), CliError> {
    let deadline = Instant::now() + limit;
    let spinner = if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    spinner.enable_steady_tick(Duration::from_millis(120));
    let mut told: Vec<String> = Vec::new();
    loop {
        let missing = match ask_all(global).await {
            Ok(answers) => {
                let missing = goals.iter().find_map(|goal| lacks(goal, &answers));
                let steps = View::new(answers).under_way();
                if steps != told && !spinner.is_hidden() {
                    spinner.set_message(steps.join("; "));
                } else if steps != told {
                    steps.iter().filter(|step| !told.contains(step)).for_each(|step| eprintln!("{step}"));
                }
                told = steps;
                missing
            }
            Err(_) => Some("no node answers".to_owned()),
        };
        let Some(missing) = missing else {
            spinner.finish_and_clear();
            return Ok(());
        };
        if Instant::now() >= deadline {
            spinner.finish_and_clear();
            return Err(CliError::failed(format!(
                "not complete within {} s: {missing}; the cluster goes on with it, ask again with the same command",
                limit.as_secs()
            )));
        }
        sleep(LOOK).await;
    }
}

/// What is missing to reach a goal, as the leaders of the groups know.
fn lacks(goal: &Goal, answers: &[ClusterInfoResponse]) -> Option<String> {
    let led = answers.iter().flat_map(|info| &info.groups).filter(|group| group.role == "leader");
    let led: Vec<_> = led.collect();
    let groups = answers.iter().flat_map(|info| &info.groups).map(|group| group.group).max().map_or(0, |last| last + 1);
    if let Some(group) = (0..groups).find(|group| !led.iter().any(|status| status.group == *group)) {
        return Some(format!("group {group} has no leader that answers"));
    }
    let of = |node: u64| move |id: &&u64| NodeId(**id).node() == node;
    let missing = led.into_iter().find_map(|status| {
        if !status.outgoing.is_empty() {
            return Some(format!("the voters of group {} are changing", status.group));
        }
        match *goal {
            Goal::Votes(node) => {
                let latest = answers.iter().flat_map(|info| &info.nodes).filter(|known| known.id == node);
                let latest = latest.map(|known| known.member).max();
                let votes = latest.is_some_and(|member| status.voters.contains(&member));
                (!votes).then(|| format!("node {node} does not vote in group {} yet", status.group))
            }
            Goal::Gone(node) => {
                let there = status.voters.iter().chain(&status.learners).any(|id| of(node)(&id));
                there.then(|| format!("node {node} is still in group {}", status.group))
            }
            Goal::Settled(node) => {
                let waits = status.learners.iter().any(|id| of(node)(&id));
                waits.then(|| format!("node {node} is still a learner in group {}", status.group))
            }
        }
    });
    missing.or_else(|| still_listed(goal, answers))
}

/// Who lists a node that no group names any more: it belongs to the cluster until all have forgotten it. One that was removed
/// itself, and still runs, lists those whom it knew.
fn still_listed(goal: &Goal, answers: &[ClusterInfoResponse]) -> Option<String> {
    let Goal::Gone(node) = *goal else { return None };
    let catalog =
        answers.iter().flat_map(|info| &info.groups).filter(|group| group.group == 0 && group.role == "leader");
    let voters = &catalog.max_by_key(|group| group.term)?.voters;
    let votes = |info: &ClusterInfoResponse| voters.iter().any(|id| NodeId(*id).node() == info.node_id);
    let lists = |info: &&ClusterInfoResponse| votes(info) && info.nodes.iter().any(|known| known.id == node);
    answers.iter().find(lists).map(|info| format!("node {} still lists node {node}", info.node_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_protocol::message::{GroupStatus, NodeStatus};

    fn node(id: u64) -> NodeStatus {
        let (client_address, peer_address, http_address) = Default::default();
        let (state, membership) = ("connected".to_owned(), "member".to_owned());
        let (connected, incarnation, member) = (true, 7, id);
        NodeStatus { id, client_address, peer_address, http_address, connected, incarnation, state, member, membership }
    }

    fn answer(node_id: u64, nodes: &[u64], voters: &[u64]) -> ClusterInfoResponse {
        let group = GroupStatus {
            group: 0,
            role: if node_id == 1 { "leader" } else { "follower" }.to_owned(),
            leader: Some(1),
            term: 3,
            commit_index: 9,
            applied_index: 9,
            durable_index: 9,
            last_index: 9,
            first_index: 1,
            peers: Vec::new(),
            voters: voters.to_vec(),
            outgoing: Vec::new(),
            learners: Vec::new(),
            lacks: String::new(),
        };
        let nodes = nodes.iter().map(|id| node(*id)).collect();
        ClusterInfoResponse { cluster_id: 10, node_id, nodes, groups: vec![group], transfers: Vec::new() }
    }

    /// What `lance cluster status` shows next agrees with it.
    #[test]
    fn a_node_is_gone_once_no_group_names_it_and_nobody_lists_it() {
        let missing = |nodes: &[u64], voters: &[u64]| {
            let answers = [answer(1, nodes, voters), answer(3, &[1, 2, 3], voters), answer(2, &[1, 2], voters)];
            lacks(&Goal::Gone(3), &answers)
        };
        assert_eq!(missing(&[1, 2, 3], &[1, 2, 3]).as_deref(), Some("node 3 is still in group 0"));
        assert_eq!(missing(&[1, 2, 3], &[1, 2]).as_deref(), Some("node 1 still lists node 3"));
        assert_eq!(missing(&[1, 2], &[1, 2]), None, "what those say that do not vote does not count");
    }
}
