//! Disks that lose power: file systems on loop devices, whose kernel then forgets what was not on stable storage.
//!
//! A volume has two layers, as a computer has. Below is the *device*: an ext4 file system whose one file is the disk.
//! Above, on a loop device over that file, is the *file system* that a node writes to. Shutting down the lower one
//! without a flush (`xfs_io -x -c shutdown`) takes away the upper page cache and the upper file system's running
//! transaction, and also the device's write cache: a write that went past the page cache, by direct I/O, is lost too
//! if no flush of the device followed it. One layer would keep it.

use super::within;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Bytes of a node's file system. Its files are sparse: what is not used takes no room.
const SIZE: u64 = 2 << 30;

/// Bytes of the file system that holds it: room for its own books and its journal.
const DEVICE_SIZE: u64 = SIZE + (128 << 20);

/// How long the kernel may take to let go of a file system whose process has ended: a ring is taken apart afterwards.
const RELEASE: Duration = Duration::from_secs(30);

/// A mounted file system. It is unmounted, and its files removed, with the value; whatever uses it must end before.
pub(crate) struct Volume {
    home: TempDir,
}

impl Volume {
    /// An empty file system.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let volume = Self { home: tempfile::tempdir().unwrap() };
        for directory in [volume.device(), volume.path()] {
            std::fs::create_dir(directory).unwrap();
        }
        sparse_file(&volume.device_image(), DEVICE_SIZE);
        system("mkfs.ext4", &["-q", "-m", "0"], &[&volume.device_image()]);
        system("mount", &["-o", "loop"], &[&volume.device_image(), &volume.device()]);
        sparse_file(&volume.image(), SIZE);
        system("mkfs.ext4", &["-q", "-m", "0"], &[&volume.image()]);
        volume.mount_upper();
        volume
    }

    /// Where the file system is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join("volume")
    }

    fn device(&self) -> PathBuf {
        self.home.path().join("device")
    }

    fn device_image(&self) -> PathBuf {
        self.home.path().join("device.image")
    }

    fn image(&self) -> PathBuf {
        self.device().join("image")
    }

    fn mount_upper(&self) {
        system("mount", &["-o", "loop"], &[&self.image(), &self.path()]);
    }

    /// Takes the power from all of these, microseconds apart. From then on they fail, until they are restored.
    #[track_caller]
    pub(crate) fn lose_power(volumes: &[&Self]) {
        let devices: Vec<PathBuf> = volumes.iter().map(|volume| volume.device()).collect();
        let select: Vec<String> = (0..devices.len()).map(|number| format!("file {number}")).collect();
        let shutdown = |select| ["-c", select, "-c", "shutdown"];
        let options: Vec<&str> = ["-x"].into_iter().chain(select.iter().flat_map(|select| shutdown(select))).collect();
        system("xfs_io", &options, &devices.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    }

    /// Gives the power back: both layers are read anew from what is on stable storage, and replay their journals.
    #[track_caller]
    pub(crate) fn restore(&self) {
        for directory in [self.path(), self.device()] {
            within(RELEASE, "a file system is unmounted", || unmount(&directory, &[]).then_some(()));
        }
        system("mount", &["-o", "loop"], &[&self.device_image(), &self.device()]);
        self.mount_upper();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: after a failure something may still use it. The loop devices go away with their last user.
        for directory in [self.path(), self.device()] {
            unmount(&directory, &["-l"]);
        }
    }
}

fn unmount(directory: &Path, options: &[&str]) -> bool {
    let mut command = Command::new("umount");
    command.args(options).arg(directory).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn sparse_file(path: &Path, bytes: u64) {
    std::fs::File::create_new(path).unwrap().set_len(bytes).unwrap();
}

/// Runs a program of the system that has to succeed.
#[track_caller]
fn system(program: &str, options: &[&str], paths: &[&Path]) {
    let output = Command::new(program).args(options).args(paths).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}
