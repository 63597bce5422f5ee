//! A disk that is full: writes are refused for now, reads go on, and once there is room again so do writes.

use super::support::node::{Node, Ports};
use super::support::wire::{self, Answer, Wire, fetch_all};
use super::support::{assert_same, eventually};
use lnc_protocol::message::{ProduceRequest, ProduceResponse, TopicOptions};
use lnc_protocol::{ErrorCode, Flags};
use std::io::Write;
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

/// A file that takes room until it is removed: this many bytes, or all that there are.
fn ballast(directory: &Path, bytes: u64) -> PathBuf {
    let path = directory.join("ballast");
    let mut file = std::fs::File::create(&path).unwrap();
    let block = [1; 64 << 10];
    for _ in 0..bytes / block.len() as u64 {
        if file.write_all(&block).is_err() {
            break;
        }
    }
    path
}

/// Produces without waiting for long.
fn try_produce(wire: &mut Wire, value: &[u8]) -> Answer<ProduceResponse> {
    let request = ProduceRequest { timeout_ms: 1000, ..wire::produce("t", 0, wire::batch([value])) };
    wire.produce(request, Flags::NONE).unwrap()
}

/// A node on a small disk that fills up, with this much room for it and so much of that kept in reserve, until the rest is
/// free again.
fn fill_and_free(bytes: u64, room: u64, reserve: u64) {
    let Some(disk) = SmallDisk::mount(bytes) else { return };
    let mut node = Node::new(
        disk.path(),
        1,
        &[Ports::free()],
        &["journal.retain_bytes=4MiB".to_owned(), format!("storage.reserve_bytes={reserve}")],
    );
    node.start();
    node.wait_ready();
    let mut wire = Wire::connect(&node.client()).unwrap();
    wire.ask(&wire::create("t", 1, TopicOptions::default()), Flags::NONE).unwrap().unwrap();
    let ballast = ballast(disk.path(), bytes - room);

    let value = vec![b'x'; 256 << 10];
    let mut acknowledged = 0;
    let refused = loop {
        match try_produce(&mut wire, &value) {
            Ok(done) => assert_eq!(done.base_offset, Some(acknowledged)),
            Err(error) => break error,
        }
        acknowledged += 1;
        assert!(acknowledged < 200, "more was acknowledged than fits on the disk");
    };
    assert!(refused.code.is_retriable(), "{refused}");
    let told = eventually("the disk is said to be full", || {
        try_produce(&mut wire, &value).err().filter(|error| error.code == ErrorCode::StorageFull)
    });
    assert!(told.message.contains("no space left"), "{told}");
    let (bytes, end) = fetch_all(&mut wire, "t", 0).unwrap();
    assert!(end >= acknowledged && bytes.len() as u64 >= acknowledged * value.len() as u64, "reads go on");

    std::fs::remove_file(ballast).unwrap();
    let next = eventually("writes go on once there is room", || try_produce(&mut wire, &value).ok());
    assert!(next.base_offset >= Some(end));
    node.kill();
    node.start();
    node.wait_ready();
    let mut wire = Wire::connect(&node.client()).unwrap();
    let (again, end_again) = fetch_all(&mut wire, "t", 0).unwrap();
    assert!(Some(end_again) > next.base_offset);
    assert_same("what was read while the disk was full", &again[..bytes.len()], &bytes);
}

#[test]
fn a_disk_that_fills_up_refuses_writes_for_now_and_serves_reads() {
    fill_and_free(48 << 20, 32 << 20, 0);
}

#[test]
fn a_journal_without_room_for_its_next_file_notices_when_there_is_some() {
    // Segments find room beside the journal's first file, but its second does not, wanted once that is half full.
    fill_and_free(32 << 20, 7 << 20, 0);
}

#[test]
fn a_node_that_touches_its_reserve_refuses_writes_and_goes_on_with_everything_else() {
    fill_and_free(96 << 20, 64 << 20, 24 << 20);
}
