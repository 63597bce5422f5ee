//! Mounts and networks that cannot outlive the run: the process starts itself anew inside namespaces of its own, and the
//! kernel takes them down with the last process in them, however that ends.

use super::error::{LiveError, Result, os};
use super::system::{is_root, missing, run};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set where the process has started itself anew.
const MARK: &str = "LNC_CHAOS_ENCLOSED";

/// What a run wants for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) mounts: bool,
    pub(super) network: bool,
}

/// Make sure that this process has what it wants for itself. Starts the program anew, with the same arguments, if it does
/// not: in that case it does not return.
pub(super) fn enter(wants: Wants) -> Result<()> {
    if !wants.mounts && !wants.network || std::env::var_os(MARK).is_some() {
        return Ok(());
    }
    let programs = missing(&["unshare", "mount", "umount"]);
    if !is_root() || !programs.is_empty() {
        let lacks = if is_root() { programs.join(", ") } else { "root".to_owned() };
        return Err(LiveError::Unavailable(format!("namespaces for disks and networks need {lacks}")));
    }
    let program = std::env::current_exe().map_err(os("find the program itself"))?;
    let mut command = Command::new("unshare");
    // A network of its own comes with names for those of the nodes, which are mounts.
    command.arg("--mount");
    if wants.network {
        command.arg("--net");
    }
    let error = command.arg("--").arg(program).args(std::env::args_os().skip(1)).env(MARK, "1").exec();
    Err(os("run unshare")(error))
}

/// Inside the enclosure: bring up the network, and hide the names of others' networks.
pub(super) async fn prepare_network() -> Result<()> {
    run("mkdir", &["-p", "/run/netns"]).await?;
    run("mount", &["-t", "tmpfs", "tmpfs", "/run/netns"]).await?;
    run("ip", &["link", "set", "lo", "up"]).await?;
    Ok(())
}
