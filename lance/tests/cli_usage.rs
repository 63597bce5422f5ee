//! The `lance` command as a shell sees it: output, errors and exit codes, without a cluster.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn lance(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// The command with an environment that holds nothing of ours.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lance"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An address of this machine at which nobody listens.
fn dead_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn the_default_configuration_passes_the_check() {
    let output = lance(&["config", "default"]);
    assert!(output.status.success());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&output.stdout).unwrap();
    let output = lance(&["config", "check", file.path().to_str().unwrap()]);
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), format!("{}: ok\n", file.path().display())));
}

#[test]
fn a_bad_configuration_is_wrong_usage() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[journal]\nfile_byte = 3\n").unwrap();
    let path = file.path().to_str().unwrap();
    let expected =
        format!("lance: unknown key `journal.file_byte` (from {path}:2); did you mean `journal.file_bytes`?\n");
    for arguments in [vec!["config", "check", path], vec!["server", "--config", path]] {
        let output = lance(&arguments);
        assert_eq!((output.status.code(), stderr(&output)), (Some(2), expected.clone()), "{arguments:?}");
    }
}

#[test]
fn the_check_sees_the_environment() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = command(&["config", "check", file.path().to_str().unwrap()])
        .env("LANCE_RAFT__TICK_MS", "never")
        .env("LANCE_ENDPOINT", "ignored:1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = stderr(&output);
    assert!(error.contains("`raft.tick_ms` = `never` (from environment variable LANCE_RAFT__TICK_MS)"), "{error}");
}

#[test]
fn a_cluster_that_is_not_there_has_its_exit_code() {
    let endpoint = dead_address();
    for arguments in [vec!["topic", "list"], vec!["cluster", "status"], vec!["produce", "t"], vec!["consume", "t"]] {
        let mut arguments = arguments;
        arguments.extend(["--endpoint", &endpoint, "--timeout", "300ms"]);
        let output = lance(&arguments);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(&endpoint), "{arguments:?}: {}", stderr(&output));
    }
}

/// However long an operation may take: who would wait an hour to hear that nobody is there?
#[test]
fn that_nobody_listens_is_said_at_once() {
    let endpoints = format!("{},{}", dead_address(), dead_address());
    for arguments in [vec!["topic", "list"], vec!["cluster", "status"], vec!["produce", "t"], vec!["consume", "t"]] {
        let output = lance(&[&arguments[..], &["--endpoint", &endpoints, "--timeout", "1h"]].concat());
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).to_lowercase().contains("connection refused"), "{}", stderr(&output));
        for endpoint in endpoints.split(',') {
            assert!(stderr(&output).contains(endpoint), "{arguments:?}: {}", stderr(&output));
        }
    }
}

#[test]
fn an_address_that_is_none_is_wrong_usage() {
    let output = lance(&["topic", "list", "--endpoint", "n1:port"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("`n1:port` is no address"), "{}", stderr(&output));
}

#[test]
fn help_is_a_command_too() {
    for (words, flag) in [
        (vec!["help", "produce"], vec!["produce", "--help"]),
        (vec!["topic", "help", "ls"], vec!["topic", "ls", "--help"]),
    ] {
        let (asked, shown) = (lance(&words), lance(&flag));
        assert_eq!((asked.status.code(), stdout(&asked)), (Some(0), stdout(&shown)), "{words:?}");
    }
}

#[test]
fn the_endpoint_comes_from_the_environment() {
    let endpoint = dead_address();
    let output = command(&["topic", "list", "--timeout", "300ms"]).env("LANCE_ENDPOINT", &endpoint).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains(&endpoint), "{}", stderr(&output));
}

#[test]
fn deleting_wants_a_confirmation() {
    let output = lance(&["topic", "delete", "orders"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--yes"), "{}", stderr(&output));
}

#[test]
fn a_missing_file_is_named() {
    let output = lance(&["produce", "t", "--file", "/nonexistent/lines.txt"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nonexistent/lines.txt"), "{}", stderr(&output));
}

#[test]
fn completions_exist_for_the_common_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = lance(&["completions", shell]);
        assert!(output.status.success());
        let script = stdout(&output);
        assert!(script.contains("lance") && script.contains("consume"), "{shell}: {script}");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let directory = tempfile::tempdir().unwrap();
    let output = lance(&["man", directory.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    for name in ["lance", "lance-server", "lance-topic-create", "lance-consume"] {
        let page = std::fs::read_to_string(directory.path().join(format!("{name}.1"))).expect(name);
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
    }
    let output = lance(&["man", directory.path().join("none").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = command(&["config", "default"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

#[test]
fn an_endpoint_of_the_environment_is_not_asked_for() {
    for endpoint in ["127.0.0.1:1", "::not one"] {
        let output = command(&["consume"]).env("LANCE_ENDPOINT", endpoint).output().unwrap();
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("Usage: lance consume <TOPIC>..."), "{told}");
    }
}

#[test]
fn a_manual_page_keeps_the_layout_of_its_examples() {
    let directory = tempfile::tempdir().unwrap();
    assert!(lance(&["man", directory.path().to_str().unwrap()]).status.success());
    let page = std::fs::read_to_string(directory.path().join("lance-consume.1")).unwrap();
    assert!(page.contains(".SH EXAMPLES\n.nf\n  lance consume orders\n"), "{page}");
    assert!(page.contains("lance consume [OPTIONS] <TOPIC>..."), "{page}");
}
