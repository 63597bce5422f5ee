//! The network between the nodes, and how it is made to fail: by packet filters where each node has a network namespace of
//! its own, or by a proxy in front of each node.

use super::enclosure::prepare_network;
use super::error::{LiveError, Result};
use super::node::Addresses;
use super::proxy::Proxies;
use super::system::{is_root, missing, run_with};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// How nodes are cut apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionBy {
    /// A network namespace for each node, with nft rules in it.
    Netns,
    /// A TCP proxy in front of each node.
    Proxy,
    /// Namespaces where this machine has what they need, else the proxy.
    Auto,
}

/// What does not get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Anything between this node and the others.
    Alone(u64),
    /// What this node sends to the others.
    Mute(u64),
    /// Anything to or from this node, clients included.
    Isolated(u64),
}

/// See the module documentation.
pub(super) enum Network {
    /// Nothing can be done to it.
    Plain(Vec<Addresses>),
    Namespaces(Namespaces),
    Proxies(Proxies),
}

/// What namespaces need on this machine and is not there.
pub(super) fn lacking_for_namespaces() -> Vec<String> {
    let mut lacking = missing(&["ip", "nft", "nsenter", "unshare", "mount"]);
    if !is_root() {
        lacking.push("root".to_owned());
    }
    lacking
}

impl Network {
    pub(super) async fn new(by: Option<PartitionBy>, nodes: u64) -> Result<Self> {
        match by {
            None => Ok(Self::Plain((0..nodes).map(|_| Addresses::free()).collect::<Result<_>>()?)),
            Some(PartitionBy::Proxy) => Ok(Self::Proxies(Proxies::start(nodes).await?)),
            Some(_) => Ok(Self::Namespaces(Namespaces::new(nodes).await?)),
        }
    }

    /// Where the nodes listen.
    pub(super) fn listen(&self) -> Vec<Addresses> {
        match self {
            Self::Plain(addresses) => addresses.clone(),
            Self::Namespaces(namespaces) => namespaces.addresses(),
            Self::Proxies(proxies) => proxies.listen.clone(),
        }
    }

    /// Where others reach them.
    pub(super) fn told(&self) -> Vec<Addresses> {
        match self {
            Self::Proxies(proxies) => proxies.told.clone(),
            other => other.listen(),
        }
    }

    /// What a node's process must be started with.
    pub(super) fn launcher(&self, node: u64) -> Vec<String> {
        match self {
            Self::Namespaces(_) => vec!["nsenter".to_owned(), format!("--net={}", name_of(node)), "--".to_owned()],
            _ => Vec::new(),
        }
    }

    pub(super) async fn cut(&mut self, cut: Cut) -> Result<()> {
        match self {
            Self::Plain(_) => Err(unavailable()),
            Self::Namespaces(namespaces) => namespaces.cut(cut).await,
            Self::Proxies(proxies) => {
                proxies.cut(cut);
                Ok(())
            }
        }
    }

    pub(super) async fn heal(&mut self) -> Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Namespaces(namespaces) => namespaces.heal().await,
            Self::Proxies(proxies) => {
                proxies.heal();
                Ok(())
            }
        }
    }

    fn proxies(&mut self) -> Result<&mut Proxies> {
        match self {
            Self::Proxies(proxies) => Ok(proxies),
            _ => Err(unavailable()),
        }
    }

    pub(super) fn delay(&mut self, delay: Duration) -> Result<()> {
        self.proxies()?.delay(delay);
        Ok(())
    }

    /// Break all connections between nodes.
    pub(super) fn reset(&mut self) -> Result<()> {
        self.proxies()?.reset();
        Ok(())
    }

    /// Break connections between this node and others on its side; the others see nothing until the network is healed.
    pub(super) fn half_open(&mut self, node: u64) -> Result<()> {
        self.proxies()?.half_open(node);
        Ok(())
    }
}

fn unavailable() -> LiveError {
    LiveError::Unavailable("this network cannot be made to fail in that way".to_owned())
}

/// A network namespace for each node, all on one bridge.
pub(super) struct Namespaces {
    nodes: u64,
    /// The node with rules.
    filtered: Option<u64>,
}

/// The bridge's address; node i has the address that ends in i.
const SUBNET: [u8; 3] = [10, 77, 0];
const BRIDGE: u8 = 254;

fn host(number: u8) -> IpAddr {
    let [a, b, c] = SUBNET;
    Ipv4Addr::new(a, b, c, number).into()
}

fn name_of(node: u64) -> String {
    format!("/run/netns/node{node}")
}

impl Namespaces {
    /// Inside an enclosure with a network of its own.
    async fn new(nodes: u64) -> Result<Self> {
        prepare_network().await?;
        let mut script =
            format!("link add nodes type bridge\naddr add {}/24 dev nodes\nlink set nodes up\n", host(BRIDGE));
        for node in 1..=nodes {
            script += &format!(
                "netns add node{node}\nlink add veth{node} type veth peer name eth0 netns node{node}\n\
                 link set veth{node} master nodes up\n"
            );
        }
        run_with("ip", &["-batch", "-"], &script).await?;
        for node in 1..=nodes {
            let script = format!("link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\n", host(node as u8));
            run_with("ip", &["-netns", &format!("node{node}"), "-batch", "-"], &script).await?;
        }
        Ok(Self { nodes, filtered: None })
    }

    fn addresses(&self) -> Vec<Addresses> {
        (1..=self.nodes).map(|node| Addresses::of_host(host(node as u8))).collect()
    }

    async fn nft(node: u64, rules: &str) -> Result<()> {
        run_with("nsenter", &[&format!("--net={}", name_of(node)), "--", "nft", "-f", "-"], rules).await?;
        Ok(())
    }

    async fn cut(&mut self, cut: Cut) -> Result<()> {
        self.heal().await?;
        let (Cut::Alone(node) | Cut::Mute(node) | Cut::Isolated(node)) = cut;
        Self::nft(node, &rules(cut, self.nodes)).await?;
        self.filtered = Some(node);
        Ok(())
    }

    async fn heal(&mut self) -> Result<()> {
        match self.filtered.take() {
            Some(node) => Self::nft(node, "delete table inet chaos\n").await,
            None => Ok(()),
        }
    }
}

/// The packet filter of the node that is cut off.
fn rules(cut: Cut, nodes: u64) -> String {
    let (Cut::Alone(node) | Cut::Mute(node) | Cut::Isolated(node)) = cut;
    let others: Vec<String> =
        (1..=nodes).filter(|other| *other != node).map(|other| host(other as u8).to_string()).collect();
    let others = others.join(", ");
    let (input, output) = match cut {
        Cut::Alone(_) => (format!("ip saddr {{ {others} }} drop"), format!("ip daddr {{ {others} }} drop")),
        Cut::Mute(_) => (String::new(), format!("ip daddr {{ {others} }} drop")),
        Cut::Isolated(_) => ("iifname != \"lo\" drop".to_owned(), "oifname != \"lo\" drop".to_owned()),
    };
    format!(
        "table inet chaos {{\n  chain input {{ type filter hook input priority 0; {input}; }}\n  \
         chain output {{ type filter hook output priority 0; {output}; }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_those_who_are_not_heard() {
        let alone = rules(Cut::Alone(1), 3);
        assert!(alone.contains("ip saddr { 10.77.0.2, 10.77.0.3 } drop"), "{alone}");
        assert!(alone.contains("ip daddr { 10.77.0.2, 10.77.0.3 } drop"), "{alone}");
        let mute = rules(Cut::Mute(2), 3);
        assert!(mute.contains("ip daddr { 10.77.0.1, 10.77.0.3 } drop") && !mute.contains("saddr"), "{mute}");
        let isolated = rules(Cut::Isolated(3), 3);
        assert!(isolated.contains("iifname != \"lo\" drop") && isolated.contains("oifname"), "{isolated}");
    }
}
