//! A disk that is full: writes are refused for now, reads go on, and once there is room again so do writes.

use super::support::cluster::Cluster;
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

/// A small ext4 file system on a loop device, as a node's data directory. Unmounted at the end.
struct Ext4 {
    home: tempfile::TempDir,
}

impl Ext4 {
    /// `None`, said aloud, where this process may not mount.
    fn mount(bytes: u64, inodes: u64) -> Option<Self> {
        let disk = Self { home: tempfile::tempdir().unwrap() };
        let (image, at) = (disk.home.path().join("image"), disk.path());
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create_new(&image).unwrap().set_len(bytes).unwrap();
        let inodes = inodes.to_string();
        let make = Command::new("mkfs.ext4").args(["-q", "-m", "0", "-N", &inodes]).arg(&image).output();
        let mount = || Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).output();
        for output in [make, mount()] {
            match output {
                Ok(output) if output.status.success() => {}
                other => {
                    eprintln!("SKIPPED, cannot make and mount a file system: {other:?}");
                    return None;
                }
            }
        }
        Some(disk)
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Bytes and inodes that are free.
    fn free(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        (stat.f_bavail * stat.f_frsize, stat.f_favail)
    }

    /// Another program takes all bytes.
    fn fill(&self) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.path().join("ballast")).unwrap();
        for len in [1 << 20, 64 << 10, 4 << 10] {
            while file.write_all(&vec![1; len]).is_ok() {}
        }
        file.sync_all().unwrap();
    }

    /// Another program takes all inodes.
    fn fill_inodes(&self) {
        let directory = self.path().join("many");
        std::fs::create_dir_all(&directory).unwrap();
        let mut number = self.free().1;
        while std::fs::File::create(directory.join(format!("{number}"))).is_ok() {
            number += 1 << 20;
        }
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        // Lazily: after a failure something may still use it.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// A line of the run book, if it says so.
fn run_book(line: &str) -> Vec<String> {
    let book = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ops/disk-full.md");
    let book = std::fs::read_to_string(book).unwrap();
    assert!(book.contains(&format!("`{line}`")), "the run book has no line {line:?}");
    line.split(' ').skip(1).map(|word| if word == "OLD" { "old".to_owned() } else { word.to_owned() }).collect()
}

/// Three nodes on disks of their own, with a topic worth deleting and one that is kept; then another program fills them.
fn fill_all_and_delete(fill: fn(&Ext4), short: fn(&Ext4) -> bool, back: fn(&Ext4) -> bool, word: &str) {
    let settings = [
        "journal.file_bytes=4MiB",
        "journal.retain_bytes=4MiB",
        "journal.checkpoint_bytes=8MiB",
        "storage.segment_bytes=1MiB",
        "storage.reserve_bytes=16MiB",
    ];
    let mut cluster = Cluster::stopped(&settings);
    let disks: Option<Vec<Ext4>> = cluster.nodes.iter().map(|_| Ext4::mount(160 << 20, 1024)).collect();
    let Some(disks) = disks else { return };
    for (node, disk) in cluster.nodes.iter().zip(&disks) {
        std::os::unix::fs::symlink(disk.path(), &node.data).unwrap();
    }
    cluster.start_all();
    cluster.wait_ready();
    cluster.create_topic("old", 12, &[]);
    cluster.create_topic("t", 1, &[]);
    let lines: Vec<u8> = (0..400_000).flat_map(|number| format!("{number:0>99}\n").into_bytes()).collect();
    cluster.ok(&["produce", "old"], &lines);
    cluster.ok(&["produce", "t"], b"before\n");
    // A node gives some back as long as a checkpoint of its takes the place of another.
    let is_full = || {
        disks.iter().for_each(fill);
        disks.iter().all(short).then_some(())
    };
    eventually("others have taken all", is_full);
    let refused = |cluster: &Cluster| {
        let told = try_produce(&mut cluster.wire(1), b"refused").err();
        told.filter(|error| error.code == ErrorCode::StorageFull)
    };
    let told = eventually("records are refused", || refused(&cluster));
    assert!(told.message.contains(word), "{told}");

    // A node that starts now says why it is full, and nothing of what it is not.
    cluster.node(2).kill();
    disks.iter().for_each(fill);
    cluster.node(2).start();
    cluster.wait_ready();
    let log = cluster.node(2).log();
    assert!(!log.contains("seccomp"), "a full disk is no reason to blame the container: {log}");

    for line in ["lance topic list", "lance topic describe OLD", "lance topic delete OLD --yes"] {
        let line = run_book(line);
        cluster.ok(&line.iter().map(String::as_str).collect::<Vec<_>>(), b"");
    }
    eventually("there is space again on every disk", || disks.iter().all(back).then_some(()));
    eventually("records are taken", || try_produce(&mut cluster.wire(1), b"after").ok());
    cluster.kill_all();
    cluster.start_all();
    cluster.wait_ready();
    for id in 1..=3 {
        let records = cluster.ok_at(id, &["consume", "t", "--until-end", "--format", "%v\\n"], b"");
        // Space is looked at once a second: some may have been taken before.
        let records = String::from_utf8(records).unwrap();
        assert!(records.starts_with("before\n") && records.ends_with("after\n"), "node {id}: {records:?}");
        let metrics = cluster.node(id).metrics();
        assert!(metrics.contains("lance_damage_found_total 0"), "node {id} speaks of damage");
    }
    cluster.kill_all();
}

#[test]
fn a_deletion_gives_space_back_when_other_programs_left_none_on_any_disk() {
    fill_all_and_delete(Ext4::fill, |disk| disk.free().0 < 64 << 10, |disk| disk.free().0 > 30 << 20, "bytes are free");
}

#[test]
fn a_deletion_gives_inodes_back_when_other_programs_left_none_on_any_disk() {
    let back = |disk: &Ext4| disk.free().1 >= 64;
    fill_all_and_delete(Ext4::fill_inodes, |disk| disk.free().1 == 0, back, "inodes are free");
}
