//! Programs of the system: whether they are there, and what they say.

use super::error::{LiveError, Result, os};
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Whether a program of this name is on the path, or in the directories for the administrator.
pub(super) fn is_present(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    directories.into_iter().any(|directory| directory.join(program).is_file())
}

/// Those of these programs that are not there.
pub(super) fn missing(programs: &[&str]) -> Vec<String> {
    programs.iter().filter(|program| !is_present(program)).map(|program| (*program).to_owned()).collect()
}

/// Whether this process may do everything.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Run a program that has to succeed; gives its standard output.
pub(super) async fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with(program, arguments, "").await
}

/// [`run`] with this standard input.
pub(super) async fn run_with(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let command = format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(os(format!("run {program}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input says itself what is wrong.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(os(format!("wait for {program}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(LiveError::Program { command, said: if said.is_empty() { output.status.to_string() } else { said } })
}

/// A path as an argument.
pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
