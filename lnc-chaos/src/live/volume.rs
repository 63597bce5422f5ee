//! File systems of their own for nodes: small ones that can be filled up, and ones that can lose their power.
//!
//! One that can lose its power has two layers, as a computer has. Below is the *device*: an ext4 file system whose one file
//! is the disk. Above, on a loop device over that file, is what the node writes to. Shutting down the lower one without a
//! flush loses the upper page cache, its running transaction, and what the device had only in its cache.
//!
//! All of it lies in a mount namespace of this process, see [`super::enclosure`]: it goes away with the process, however
//! that ends.

use super::error::{LiveError, Result, os};
use super::system::{run, text};
use rustix::fs::{FallocateFlags, fallocate, major, minor, statvfs};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Bytes of a node's file system. Its files are sparse: what is not used takes no room.
const SIZE: u64 = 1 << 30;
/// Bytes of the file system that holds it: room for its own books and its journal.
const DEVICE_SIZE: u64 = SIZE + (128 << 20);
/// Bytes that a full disk has left.
const LEFT: u64 = 1 << 20;
/// How long the kernel may take to let go of a file system whose process has ended.
const RELEASE: Duration = Duration::from_secs(30);

/// A mounted file system.
pub(super) struct Volume {
    home: PathBuf,
    two_layers: bool,
}

impl Volume {
    /// An empty file system with its files below `home`, which is made.
    pub(super) async fn new(home: PathBuf, two_layers: bool) -> Result<Self> {
        let volume = Self { home, two_layers };
        for directory in [volume.path(), volume.device()] {
            fs::create_dir_all(&directory).map_err(os(format!("make {}", directory.display())))?;
        }
        if two_layers {
            sparse_file(&volume.device_image(), DEVICE_SIZE)?;
            run("mkfs.ext4", &["-q", "-m", "0", &text(&volume.device_image())]).await?;
            mount(&volume.device_image(), &volume.device()).await?;
        }
        sparse_file(&volume.image(), SIZE)?;
        run("mkfs.ext4", &["-q", "-m", "0", &text(&volume.image())]).await?;
        mount(&volume.image(), &volume.path()).await?;
        Ok(volume)
    }

    /// Where it is mounted.
    fn path(&self) -> PathBuf {
        self.home.join("volume")
    }

    /// Have it found under another path too.
    pub(super) fn appear_at(&self, path: &Path) -> Result<()> {
        symlink(self.path(), path).map_err(os(format!("link {}", path.display())))
    }

    fn device(&self) -> PathBuf {
        self.home.join("device")
    }

    fn device_image(&self) -> PathBuf {
        self.home.join("device.image")
    }

    fn image(&self) -> PathBuf {
        self.device().join("image")
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// The numbers of its block device, as control groups name it.
    pub(super) fn block_device(&self) -> Result<String> {
        let device = fs::metadata(self.path()).map_err(os(format!("look at {}", self.path().display())))?.dev();
        Ok(format!("{}:{}", major(device), minor(device)))
    }

    /// Leave next to no room.
    pub(super) fn fill(&self) -> Result<()> {
        let what = || format!("fill {}", self.path().display());
        let room = statvfs(self.path()).map_err(|error| os(what())(error.into()))?;
        let bytes = (room.f_bavail * room.f_frsize).saturating_sub(LEFT);
        let file = fs::File::create(self.ballast()).map_err(os(what()))?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes.max(1)) {
            // Somebody else took the last of it.
            Ok(()) | Err(rustix::io::Errno::NOSPC) => Ok(()),
            Err(error) => Err(os(what())(error.into())),
        }
    }

    /// Give the room back.
    pub(super) fn empty(&self) -> Result<()> {
        fs::remove_file(self.ballast()).map_err(os(format!("free space in {}", self.path().display())))
    }

    /// Take the power from all of these, microseconds apart. From then on they fail, until they are restored.
    pub(super) async fn lose_power(volumes: &[&Self]) -> Result<()> {
        let mut arguments = vec!["-x".to_owned()];
        for number in 0..volumes.len() {
            arguments.extend(["-c".to_owned(), format!("file {number}"), "-c".to_owned(), "shutdown".to_owned()]);
        }
        arguments.extend(volumes.iter().map(|volume| text(&volume.device())));
        run("xfs_io", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        Ok(())
    }

    /// Give the power back: both layers are read anew from what is on stable storage. Nothing may use them.
    pub(super) async fn restore(&self) -> Result<()> {
        for directory in [self.path(), self.device()] {
            let deadline = Instant::now() + RELEASE;
            while let Err(error) = run("umount", &[&text(&directory)]).await {
                if Instant::now() >= deadline {
                    return Err(error);
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        mount(&self.device_image(), &self.device()).await?;
        mount(&self.image(), &self.path()).await
    }

    /// Unmount it, whatever still uses it.
    pub(super) async fn release(&self) {
        for directory in [Some(self.path()), self.two_layers.then(|| self.device())].into_iter().flatten() {
            let _ = run("umount", &["-l", &text(&directory)]).await;
        }
    }
}

async fn mount(image: &Path, at: &Path) -> Result<()> {
    run("mount", &["-o", "loop", &text(image), &text(at)]).await?;
    Ok(())
}

fn sparse_file(path: &Path, bytes: u64) -> Result<()> {
    let made = fs::File::create_new(path).and_then(|file| file.set_len(bytes));
    made.map_err(os(format!("make {}", path.display())))
}

/// A control group that lets a process make few writes per second to one block device. It ends with this value.
pub(super) struct Throttle {
    group: PathBuf,
    /// The group that the process is given back to.
    parent: PathBuf,
    pid: u32,
}

/// Where the kernel shows its control groups, if they can limit writes: the second version, else the first.
fn hierarchy() -> Option<(PathBuf, bool)> {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if controllers.split_whitespace().any(|controller| controller == "io") {
        return Some((root.to_owned(), true));
    }
    let blkio = root.join("blkio");
    blkio.join("blkio.throttle.write_iops_device").exists().then_some((blkio, false))
}

impl Throttle {
    /// Whether this kernel has what it needs.
    ///
    /// # Errors
    /// With what is missing.
    pub(super) fn check() -> Result<()> {
        match hierarchy() {
            Some(_) => Ok(()),
            None => Err(LiveError::Unavailable(
                "slow-disk needs control groups that limit writes: neither io.max nor blkio.throttle is below \
                 /sys/fs/cgroup"
                    .to_owned(),
            )),
        }
    }

    /// From now on the process makes at most so many writes per second to the device.
    pub(super) fn start(pid: u32, device: &str, writes_per_second: u32) -> Result<Self> {
        Self::check()?;
        let (parent, second) = hierarchy().unwrap_or_default();
        let group = parent.join(format!("lnc-chaos-{}-{pid}", std::process::id()));
        let write = |path: PathBuf, text: String| {
            fs::write(&path, &text).map_err(os(format!("write {text:?} to {}", path.display())))
        };
        if second {
            write(parent.join("cgroup.subtree_control"), "+io".to_owned())?;
        }
        fs::create_dir(&group).map_err(os(format!("make {}", group.display())))?;
        let throttle = Self { group, parent, pid };
        if second {
            write(throttle.group.join("io.max"), format!("{device} wiops={writes_per_second}"))?;
        } else {
            let limit = format!("{device} {writes_per_second}");
            write(throttle.group.join("blkio.throttle.write_iops_device"), limit)?;
        }
        write(throttle.group.join("cgroup.procs"), pid.to_string())?;
        Ok(throttle)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // A process that has ended has left the group already.
        let _ = fs::write(self.parent.join("cgroup.procs"), self.pid.to_string());
        let _ = fs::remove_dir(&self.group);
    }
}
