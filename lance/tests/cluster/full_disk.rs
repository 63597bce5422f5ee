//! A disk that is full: writes are refused for now, reads go on, and once there is room again so do writes.

use super::support::node::{Node, Ports};
use super::support::wire::{self, Wire, fetch_all};
use super::support::{assert_same, eventually};
use lnc_protocol::message::TopicOptions;
use lnc_protocol::{ErrorCode, Flags};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system in memory, unmounted at the end.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, said aloud, where this process may not mount.
    fn mount(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self { directory }),
            Ok(output) => {
                eprintln!("SKIPPED, cannot mount: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                eprintln!("SKIPPED, cannot mount: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.directory.path()).status();
    }
}

/// A file that takes room until it is removed.
fn ballast(directory: &Path, bytes: usize) -> PathBuf {
    let path = directory.join("ballast");
    std::fs::write(&path, vec![1; bytes]).unwrap();
    path
}

#[test]
fn a_full_disk_refuses_writes_for_now_and_serves_reads() {
    let Some(disk) = SmallDisk::mount(48 << 20) else { return };
    let ballast = ballast(disk.path(), 16 << 20);
    let mut node = Node::new(disk.path(), 1, &[Ports::free()], &["journal.retain_bytes=4MiB".to_owned()]);
    node.start();
    node.wait_ready();
    let mut wire = Wire::connect(&node.client()).unwrap();
    wire.ask(&wire::create("t", 1, TopicOptions::default()), Flags::NONE).unwrap().unwrap();

    let value = vec![b'x'; 256 << 10];
    let mut acknowledged = 0;
    let full = loop {
        let mut request = wire::produce("t", 0, wire::batch([&value[..]]));
        request.timeout_ms = 3000;
        match wire.produce(request, Flags::NONE).unwrap() {
            Ok(done) => assert_eq!(done.base_offset, Some(acknowledged)),
            Err(error) => break error,
        }
        acknowledged += 1;
        assert!(acknowledged < 200, "more was acknowledged than fits on the disk");
    };
    assert!(full.code.is_retriable(), "{full}");
    let told = eventually("the disk is said to be full", || {
        let mut request = wire::produce("t", 0, wire::batch([&value[..]]));
        request.timeout_ms = 1000;
        let error = wire.produce(request, Flags::NONE).unwrap().err()?;
        (error.code == ErrorCode::StorageFull).then_some(error)
    });
    assert!(told.message.contains("no space left"), "{told}");
    let (bytes, end) = fetch_all(&mut wire, "t", 0).unwrap();
    assert!(end >= acknowledged && bytes.len() as u64 > acknowledged * value.len() as u64, "reads go on");

    std::fs::remove_file(ballast).unwrap();
    let next = eventually("writes go on once there is room", || {
        wire.produce(wire::produce("t", 0, wire::batch([&value[..]])), Flags::NONE).unwrap().ok()
    });
    assert!(next.base_offset >= Some(end));
    node.kill();
    node.start();
    node.wait_ready();
    let mut wire = Wire::connect(&node.client()).unwrap();
    let (again, end_again) = fetch_all(&mut wire, "t", 0).unwrap();
    assert!(Some(end_again) > next.base_offset);
    assert_same("what was read while the disk was full", &again[..bytes.len()], &bytes);
}
