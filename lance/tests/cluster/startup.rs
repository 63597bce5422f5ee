//! A node that cannot run says why and ends with an exit code.

use super::support::node::{Node, Ports};
use std::io::Read;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A node that is a cluster of its own.
pub(crate) fn alone(directory: &TempDir) -> Node {
    Node::new(directory.path(), 1, &[Ports::free()], &[])
}

/// Runs a server that has to end by itself, and gives its exit code and what it says.
#[track_caller]
fn refused(mut command: Command) -> (i32, String) {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut errors = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.read_to_string(&mut text);
        text
    });
    let deadline = std::time::Instant::now() + super::support::PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (status, text) = (child.wait().unwrap(), reader.join().unwrap());
    (status.code().unwrap_or_else(|| panic!("it did not end by itself: {text}")), text)
}

#[test]
fn a_data_directory_belongs_to_one_process_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = alone(&directory);
    first.start();
    first.wait_ready();
    let mut second = first.command();
    let ports = Ports::free();
    let ports = [("client", ports.client), ("peer", ports.peer), ("http", ports.http)];
    for (name, port) in ports {
        second.args(["--set", &format!("listen.{name}=127.0.0.1:{port}")]);
    }
    let (code, text) = refused(second);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&format!("is in use by process {}", first.pid())), "{text}");
    assert!(first.is_ready(), "the first one goes on");
}

#[test]
fn a_data_directory_belongs_to_one_node() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = alone(&directory);
    node.start();
    node.wait_ready();
    node.kill();
    let ports = [Ports::free(), Ports::free()];
    let other = Node::new(directory.path(), 2, &ports, &[]);
    let mut command = other.command();
    command.args(["--data-dir", node.data.to_str().unwrap()]);
    let (code, text) = refused(command);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("node 1") && text.contains("node 2") || text.contains("node 1, not"), "{text}");
    node.start();
    node.wait_ready();
}

#[test]
fn an_unknown_key_is_refused_with_the_one_that_was_meant() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = alone(&directory).command();
    command.args(["--set", "journal.file_byte=4MiB"]);
    let (code, text) = refused(command);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("journal.file_byte") && text.contains("journal.file_bytes"), "{text}");

    let file = directory.path().join("bad.toml");
    std::fs::write(&file, "[node]\nid = 1\n\n[storage]\nsegments_bytes = \"1MiB\"\n").unwrap();
    let mut command = super::support::node::lance();
    command.args(["server", "--config"]).arg(&file);
    let (code, text) = refused(command);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("storage.segments_bytes") && text.contains("storage.segment_bytes"), "{text}");
    assert!(text.contains("bad.toml"), "{text}");
}

#[test]
fn a_port_in_use_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for (at, what) in ["clients", "peers", "HTTP"].into_iter().enumerate() {
        let node = alone(&directory);
        let port = [node.ports.client, node.ports.peer, node.ports.http][at];
        let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (code, text) = refused(node.command());
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(&format!("cannot listen for {what} on 127.0.0.1:{port}")), "{text}");
    }
}

#[test]
fn damaged_identity_files_are_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let mut node = alone(&directory);
    node.start();
    node.wait_ready();
    node.kill();
    for name in ["IDENTITY", "FORMAT"] {
        let path = node.data.join(name);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        let (code, text) = refused(node.command());
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(name), "{text}");
        assert_eq!(std::fs::read(&path).unwrap(), bad, "{name} is left as it was");
        std::fs::write(&path, &good).unwrap();
    }
    node.start();
    node.wait_ready();
}
