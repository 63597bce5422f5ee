//! `kubectl`, as a command: what it is asked, and what it answers.

use std::fmt;
use std::io::{self, Write};
use std::process::{Command, Stdio};

/// How a cluster of Kubernetes is reached.
#[derive(Clone, Debug)]
pub struct Kubectl {
    /// The command.
    pub program: String,
    /// The namespace of everything that is asked.
    pub namespace: String,
    /// The container of a pod that `lance` runs in.
    pub container: String,
}

/// Why something did not come about.
#[derive(Debug)]
#[non_exhaustive]
pub enum KubectlError {
    /// The command could not be run.
    NotRun(String, io::Error),
    /// The command failed; its arguments and its words.
    Failed(String, String),
    /// The cluster is not one to test on.
    Unsuitable(String),
}

impl fmt::Display for KubectlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRun(program, error) => write!(f, "cannot run {program}: {error}"),
            Self::Failed(arguments, words) => write!(f, "kubectl {arguments}: {words}"),
            Self::Unsuitable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for KubectlError {}

impl Kubectl {
    /// Runs `kubectl` in the namespace with this standard input; gives its standard output.
    ///
    /// # Errors
    /// When it cannot be run, or does not exit with 0.
    pub fn run(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, KubectlError> {
        let not_run = |error| KubectlError::NotRun(self.program.clone(), error);
        let mut child = Command::new(&self.program)
            .args(["--namespace", &self.namespace])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(not_run)?;
        // It answers after it has read all, and the inputs are small. One that fails early need not read its input.
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(input);
        }
        let output = child.wait_with_output().map_err(not_run)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(KubectlError::Failed(arguments.join(" "), format!("{}: {words}", output.status)))
    }

    /// Runs `lance` inside a pod.
    ///
    /// # Errors
    /// As [`Kubectl::run`]; also when the pod is not there.
    pub fn lance(&self, pod: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>, KubectlError> {
        let exec = ["exec", "--stdin", pod, "--container", &self.container, "--", "/usr/bin/lance"];
        self.run(&[&exec, arguments].concat(), input)
    }
}
