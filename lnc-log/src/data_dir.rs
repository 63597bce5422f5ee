//! The data directory as a whole: its lock, its format version and the identity of the node that it belongs to.
//!
//! A node that takes part in votes must never forget what it promised, so a directory is *fresh* only when it holds no
//! data at all. Everything else that is missing or unreadable is an error that says what to do.
//!
//! | file | content |
//! |---|---|
//! | `LOCK` | flocked by the running node; its text is that node's process id |
//! | `FORMAT` | the version of everything else in the directory |
//! | `IDENTITY` | node id, incarnation, cluster, and from format 3 on the format; text under a CRC-32 |
//!
//! What must be there depends on the format, so a `FORMAT` that says less than was reached would excuse any loss: it has no
//! checksum, for the oldest version to read it, and `IDENTITY` says it too.

use crate::advice::Advised;
use crate::disk::{EIO, refuse_others};
use crate::journal::MARK_FORMAT;
use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The formats that this build reads and writes. A directory begins with the oldest, and is raised when its cluster is:
/// until then, the version of LANCE that came before can go on with it.
///
/// 1: version 0.1.0. 2: the catalog holds the format of the cluster; leaders tell followers which entries belong to
/// recorded traces. 3: files name the member that wrote them and how far they were durable, so that what is missing can
/// be told from what never was; nodes tell each other their clocks.
pub const FORMATS: RangeInclusive<u32> = 1..=3;

const LOCK: &str = "LOCK";
const FORMAT: &str = "FORMAT";
const IDENTITY: &str = "IDENTITY";
const FORMAT_PREFIX: &str = "lance data directory, format ";
const IDENTITY_PREFIX: &str = "lance identity 1";
/// Larger than an identity with a thousand members; what is beyond was not written by us.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Who the node of this directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The configured number of the node.
    pub node_id: u64,
    /// Which life of this node id it is: drawn anew when a node starts with an empty directory.
    pub incarnation: u64,
    /// The cluster it belongs to, once known.
    pub cluster: Option<ClusterIdentity>,
}

/// The cluster that a node belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// Drawn at random when the cluster was formed.
    pub cluster_id: u128,
    /// Raft groups that hold partitions; fixed when the cluster was founded.
    pub data_groups: u32,
    /// Node id and incarnation of the nodes that founded the cluster.
    pub founders: Vec<(u64, u64)>,
    /// How new the list of members is: it counts the changes of the cluster's membership.
    pub version: u64,
    /// Node id and incarnation of the members that this node started from.
    pub members: Vec<(u64, u64)>,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// A system call failed.
    #[error("cannot {action} {path}: {}", Advised(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process uses the directory.
    #[error("{path} is in use by process {holder}: stop that process, or give this node a data directory of its own")]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process id found in the lock file, or `unknown`.
        holder: String,
    },
    /// The directory was written by another version of the format.
    #[error(
        "{path} says format {found}, this build reads formats {} to {}: run the version of LANCE that wrote the \
         directory, or a later one", FORMATS.start(), FORMATS.end()
    )]
    Format {
        /// The `FORMAT` file.
        path: PathBuf,
        /// The version found.
        found: u32,
    },
    /// A file of the directory is not what was written.
    #[error(
        "{path} is damaged: expected {expected}, found {found}; restore the file from a backup, or empty the data \
         directory and let the node rejoin its cluster as a new member (docs/ops/does-not-start.md)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// There is data, but nothing says whose.
    #[error(
        "{path} holds data ({found}) but no {missing} file, so it cannot be told whose it is: restore {missing} from a \
         backup, or empty the directory and let the node rejoin its cluster as a new member"
    )]
    NoIdentity {
        /// The directory.
        path: PathBuf,
        /// An entry that is data.
        found: String,
        /// The file that is missing.
        missing: &'static str,
    },
    /// The directory belongs to another node.
    #[error(
        "{path} belongs to node {found}, but this node is configured as node {expected}: correct the node id or the \
         data directory"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// The configured node id.
        expected: u64,
        /// The node id in the directory.
        found: u64,
    },
    /// The directory belongs to another cluster.
    #[error(
        "{path} belongs to cluster {found:032x}, not {expected:032x}: correct the addresses of the peers or the data \
         directory"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster that this node was told to belong to.
        expected: u128,
        /// The cluster in the directory.
        found: u128,
    },
    /// The cluster was set before the node had an identity.
    #[error("{path} has no node identity yet: create it before setting the cluster")]
    NotCreated {
        /// The directory.
        path: PathBuf,
    },
}

/// An open data directory. The lock is held as long as this value lives.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    identity: Option<Identity>,
    format: u32,
    /// The format that the identity says; 0 if it says none.
    noted: u32,
    /// Closing it releases the lock.
    _lock: File,
}

impl DataDir {
    /// Open the directory, making it if it is missing, and lock it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataDirError> {
        let root = path.as_ref().to_path_buf();
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o750).create(&root).map_err(at("create", &root))?;
        let lock = lock(&root)?;
        let format = read_format(&root)?;
        let (identity, reached) = match read_identity(&root)? {
            Some((identity, reached)) => (Some(identity), reached),
            None => (None, 0),
        };
        if identity.is_none() {
            refuse_data(&root, IDENTITY)?;
        }
        if format < reached {
            let expected = format!("format {reached} or a later one, as {IDENTITY} says");
            return Err(damaged(&root.join(FORMAT), expected, format!("format {format}")));
        }
        refuse_closed(&root)?;
        let mut data = Self { root, identity, format, noted: reached, _lock: lock };
        match data.note_format() {
            // It is noted once there is space, with the next start at the latest.
            Err(error) if error.is_full() => tracing::warn!(%error, "no space to note the format beside the identity"),
            noted => noted?,
        }
        Ok(data)
    }

    /// The path of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The node's identity; `None` in a fresh directory.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The identity, after checking that it is that of `node_id`. `Ok(None)`: the directory is fresh.
    pub fn identity_of(&self, node_id: u64) -> Result<Option<&Identity>, DataDirError> {
        match &self.identity {
            Some(identity) if identity.node_id != node_id => {
                Err(DataDirError::OtherNode { path: self.root.clone(), expected: node_id, found: identity.node_id })
            }
            identity => Ok(identity.as_ref()),
        }
    }

    /// Give a fresh directory its identity. A directory that has one already keeps it, if the node id is the same.
    pub fn create_identity(&mut self, node_id: u64, incarnation: u64) -> Result<&Identity, DataDirError> {
        if self.identity_of(node_id)?.is_none() {
            self.store(Identity { node_id, incarnation, cluster: None })?;
        }
        self.identity.as_ref().ok_or_else(|| DataDirError::NotCreated { path: self.root.clone() })
    }

    /// Record the cluster. Members may change later, the cluster id may not.
    pub fn set_cluster(&mut self, cluster: ClusterIdentity) -> Result<(), DataDirError> {
        let Some(identity) = &self.identity else {
            return Err(DataDirError::NotCreated { path: self.root.clone() });
        };
        match &identity.cluster {
            Some(known) if known.cluster_id != cluster.cluster_id => Err(DataDirError::OtherCluster {
                path: self.root.clone(),
                expected: cluster.cluster_id,
                found: known.cluster_id,
            }),
            Some(known) if *known == cluster => Ok(()),
            _ => self.store(Identity { cluster: Some(cluster), ..identity.clone() }),
        }
    }

    /// The format of what is stored.
    pub fn format(&self) -> u32 {
        self.format
    }

    /// From now on what is stored may have this format: builds that do not know it leave the directory alone.
    pub fn raise_format(&mut self, format: u32) -> Result<(), DataDirError> {
        if format > self.format {
            write_format(&self.root, format)?;
            self.format = format;
        }
        self.note_format()
    }

    /// Whether the identity says the format too, where it is one that it says.
    pub fn has_noted_format(&self) -> bool {
        self.identity.is_none() || self.format < MARK_FORMAT || self.noted >= self.format
    }

    /// Have the identity say the format, if it is one that it says.
    fn note_format(&mut self) -> Result<(), DataDirError> {
        match self.identity.clone().filter(|_| !self.has_noted_format()) {
            Some(identity) => self.store(identity),
            None => Ok(()),
        }
    }

    fn store(&mut self, identity: Identity) -> Result<(), DataDirError> {
        write_atomically(&self.root, IDENTITY, &encode_identity(&identity, self.format))?;
        (self.identity, self.noted) = (Some(identity), self.format);
        Ok(())
    }
}

impl DataDirError {
    /// Whether there was no space: the same may succeed later.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if crate::disk::is_full(source))
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_path_buf();
    move |source| DataDirError::Io { action, path, source }
}

fn lock(root: &Path) -> Result<File, DataDirError> {
    let path = root.join(LOCK);
    refuse_others(&path).map_err(at("open the lock file", &path))?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(at("open the lock file", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let readable = (&file).take(MAX_FILE_BYTES).read_to_string(&mut text).is_ok();
            let holder = text.trim().parse::<u32>().ok().filter(|_| readable);
            let holder = holder.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            return Err(DataDirError::Locked { path: root.to_path_buf(), holder });
        }
        Err(error) => return Err(at("lock", &path)(error.into())),
    }
    let told = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
    told.map_err(at("write the process id to", &path))?;
    Ok(file)
}

fn write_format(root: &Path, format: u32) -> Result<(), DataDirError> {
    write_atomically(root, FORMAT, &format!("{FORMAT_PREFIX}{format}\n"))
}

/// The format of the directory; a fresh one begins with the oldest.
fn read_format(root: &Path) -> Result<u32, DataDirError> {
    let path = root.join(FORMAT);
    let Some(text) = read_file(&path)? else {
        if read_file(&root.join(IDENTITY))?.is_some() {
            let (path, found) = (root.to_path_buf(), IDENTITY.to_owned());
            return Err(DataDirError::NoIdentity { path, found, missing: FORMAT });
        }
        refuse_data(root, FORMAT)?;
        return write_format(root, *FORMATS.start()).map(|()| *FORMATS.start());
    };
    let version = text.strip_prefix(FORMAT_PREFIX).and_then(|rest| rest.trim_end().parse::<u32>().ok());
    match version {
        Some(found) if FORMATS.contains(&found) => Ok(found),
        Some(found) => Err(DataDirError::Format { path, found }),
        None => Err(damaged(&path, format!("{FORMAT_PREFIX}{}", FORMATS.end()), excerpt(&text))),
    }
}

/// Without an identity there must not be any data: a directory that is not empty is data, whatever its name.
fn refuse_data(root: &Path, missing: &'static str) -> Result<(), DataDirError> {
    for entry in fs::read_dir(root).map_err(at("list", root))? {
        let entry = entry.map_err(at("list", root))?;
        let name = entry.file_name();
        let path = entry.path();
        // `lost+found` is what a mounted filesystem starts with.
        if name == "lost+found" || !path.is_dir() {
            continue;
        }
        if fs::read_dir(&path).map_err(at("list", &path))?.next().is_some() {
            let found = name.to_string_lossy().into_owned();
            return Err(DataDirError::NoIdentity { path: root.to_path_buf(), found, missing });
        }
    }
    Ok(())
}

/// The directories must be open to this process before it promises anything: what it writes first, it may write much later.
fn refuse_closed(root: &Path) -> Result<(), DataDirError> {
    let has_all = |path: &Path| {
        let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        accessat(CWD, path, all, AtFlags::EACCESS).map_err(|error| at("read, write and search", path)(error.into()))
    };
    has_all(root)?;
    // What else is there is somebody else's.
    let own = ["journal", "checkpoint", "segments", "incoming"].map(|name| root.join(name));
    own.iter().filter(|path| path.is_dir()).try_for_each(|path| has_all(path))
}

/// The text of a small file; `None` if it does not exist.
fn read_file(path: &Path) -> Result<Option<String>, DataDirError> {
    refuse_others(path).map_err(at("open", path))?;
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(at("open", path))?,
    };
    read_text(path, file).map(Some)
}

fn read_text(path: &Path, file: impl Read) -> Result<String, DataDirError> {
    let mut bytes = Vec::new();
    match file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes) {
        Err(error) if error.raw_os_error() == Some(EIO) => {
            return Err(damaged(path, "text that can be read", format!("{error}: the disk fails")));
        }
        other => other.map_err(at("read", path))?,
    };
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(damaged(path, format!("at most {MAX_FILE_BYTES} bytes"), "more"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            Err(damaged(path, "text", format!("other bytes from position {}", error.utf8_error().valid_up_to())))
        }
    }
}

fn damaged(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> DataDirError {
    DataDirError::Damaged { path: path.to_path_buf(), expected: expected.into(), found: found.into() }
}

fn excerpt(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

/// Replace a file such that a crash leaves the old or the new content, and completion means "on stable storage".
fn write_atomically(root: &Path, name: &str, text: &str) -> Result<(), DataDirError> {
    let path = root.join(name);
    let temporary = root.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary).map_err(at("create", &temporary))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(at("rename to", &path))?;
    sync_dir(root)?;
    match root.parent() {
        // The directory itself may be new.
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<(), DataDirError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(at("sync", path))
}

fn encode_identity(identity: &Identity, format: u32) -> String {
    let mut text = format!("{IDENTITY_PREFIX}\nnode_id {}\nincarnation {}\n", identity.node_id, identity.incarnation);
    // Earlier formats are read by versions that do not know the line.
    if format >= MARK_FORMAT {
        text += &format!("format {format}\n");
    }
    if let Some(cluster) = &identity.cluster {
        text += &format!("cluster_id {:032x}\n", cluster.cluster_id);
        text += &format!("data_groups {}\nversion {}\n", cluster.data_groups, cluster.version);
        for (name, nodes) in [("founder", &cluster.founders), ("member", &cluster.members)] {
            for (node_id, incarnation) in nodes {
                text += &format!("{name} {node_id} {incarnation}\n");
            }
        }
    }
    let crc = crc32fast::hash(text.as_bytes());
    text + &format!("crc32 {crc:08x}\n")
}

/// The identity, and the format that the directory had reached when it was written; 0 if it does not say.
fn read_identity(root: &Path) -> Result<Option<(Identity, u32)>, DataDirError> {
    let path = root.join(IDENTITY);
    let Some(text) = read_file(&path)? else { return Ok(None) };
    let Some(crc_at) = text.find("\ncrc32 ").map(|at| at + 1) else {
        return Err(damaged(&path, "a last line with a checksum", excerpt(&text)));
    };
    let (body, last) = text.split_at(crc_at);
    let expected = format!("crc32 {:08x}\n", crc32fast::hash(body.as_bytes()));
    if last != expected {
        return Err(damaged(&path, excerpt(&expected), excerpt(last)));
    }
    match parse_identity(body) {
        Some(identity) => Ok(Some(identity)),
        None => Err(damaged(&path, "an identity of format 1", excerpt(body))),
    }
}

fn parse_identity(body: &str) -> Option<(Identity, u32)> {
    let mut lines = body.lines().peekable();
    if lines.next()? != IDENTITY_PREFIX {
        return None;
    }
    let node_id = lines.next()?.strip_prefix("node_id ")?.parse().ok()?;
    let incarnation = lines.next()?.strip_prefix("incarnation ")?.parse().ok()?;
    let format = match lines.next_if(|line| line.starts_with("format ")) {
        Some(line) => line.strip_prefix("format ")?.parse().ok()?,
        None => 0,
    };
    let cluster = match lines.next() {
        None => None,
        Some(line) => {
            let cluster_id = u128::from_str_radix(line.strip_prefix("cluster_id ")?, 16).ok()?;
            let data_groups = lines.next()?.strip_prefix("data_groups ")?.parse().ok()?;
            let version = lines.next()?.strip_prefix("version ")?.parse().ok()?;
            let (mut founders, mut members) = (Vec::new(), Vec::new());
            for line in lines {
                let (kind, node) = line.split_once(' ')?;
                let (node_id, incarnation) = node.split_once(' ')?;
                let list = match kind {
                    "founder" => &mut founders,
                    "member" => &mut members,
                    _ => return None,
                };
                list.push((node_id.parse().ok()?, incarnation.parse().ok()?));
            }
            Some(ClusterIdentity { cluster_id, data_groups, founders, version, members })
        }
    };
    Some((Identity { node_id, incarnation, cluster }, format))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterIdentity {
        ClusterIdentity {
            cluster_id: 0xfeed << 64 | 7,
            data_groups: 3,
            founders: vec![(1, 10), (2, 20), (3, 30)],
            version: 5,
            members: vec![(1, 10), (2, 20), (3, u64::MAX)],
        }
    }

    /// A medium that does not give the bytes.
    struct Bad;

    impl Read for Bad {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(EIO))
        }
    }

    #[test]
    fn a_file_that_the_disk_does_not_give_is_damaged() {
        let error = read_text(Path::new("/data/IDENTITY"), Bad).unwrap_err();
        assert!(matches!(error, DataDirError::Damaged { .. }), "{error}");
        let text = error.to_string();
        for told in ["/data/IDENTITY", "expected text", "Input/output error", "as a new member", "docs/ops/"] {
            assert!(text.contains(told), "{told}: {text}");
        }
    }

    #[test]
    fn identity_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/data");
        let mut data = DataDir::open(&path).unwrap();
        assert_eq!(data.identity(), None);
        assert!(matches!(data.set_cluster(cluster()), Err(DataDirError::NotCreated { .. })));
        data.create_identity(3, 77).unwrap();
        drop(data);
        let mut data = DataDir::open(&path).unwrap();
        assert_eq!(data.identity(), Some(&Identity { node_id: 3, incarnation: 77, cluster: None }));
        data.set_cluster(cluster()).unwrap();
        drop(data);
        let mut data = DataDir::open(&path).unwrap();
        assert_eq!(data.identity().unwrap().cluster, Some(cluster()));
        // A second life does not overwrite the first.
        assert_eq!(data.create_identity(3, 78).unwrap().incarnation, 77);
        let other = ClusterIdentity { cluster_id: 1, ..cluster() };
        assert!(matches!(data.set_cluster(other), Err(DataDirError::OtherCluster { .. })));
        let error = data.identity_of(4).unwrap_err().to_string();
        assert!(error.contains("belongs to node 3") && error.contains("configured as node 4"), "{error}");
    }

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn data_without_identity_is_not_fresh() {
        for missing in [FORMAT, IDENTITY] {
            let dir = tempfile::tempdir().unwrap();
            DataDir::open(dir.path()).unwrap().create_identity(1, 1).unwrap();
            fs::create_dir(dir.path().join("journal")).unwrap();
            fs::write(dir.path().join("journal/1"), b"x").unwrap();
            fs::remove_file(dir.path().join(missing)).unwrap();
            let error = DataDir::open(dir.path()).unwrap_err();
            assert!(matches!(error, DataDirError::NoIdentity { missing: m, .. } if m == missing), "{error}");
        }
    }

    #[test]
    fn a_mounted_filesystem_is_fresh() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("lost+found/something")).unwrap();
        fs::create_dir(dir.path().join("journal")).unwrap();
        assert_eq!(DataDir::open(dir.path()).unwrap().identity(), None);
    }

    #[test]
    fn a_directory_begins_with_the_oldest_format_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.format(), *FORMATS.start());
        for format in [*FORMATS.end(), *FORMATS.start()] {
            data.raise_format(format).unwrap();
            assert_eq!(data.format(), *FORMATS.end());
        }
        drop(data);
        assert_eq!(DataDir::open(dir.path()).unwrap().format(), *FORMATS.end());
    }

    /// A format that was reached is not taken back by a file without a checksum: what must be there depends on it.
    #[test]
    fn a_format_below_the_one_that_was_reached_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let mut data = DataDir::open(dir.path()).unwrap();
        data.create_identity(3, 77).unwrap();
        data.set_cluster(cluster()).unwrap();
        let early = fs::read(dir.path().join(IDENTITY)).unwrap();
        data.raise_format(MARK_FORMAT).unwrap();
        drop(data);
        let late = fs::read(dir.path().join(IDENTITY)).unwrap();
        for lower in *FORMATS.start()..MARK_FORMAT {
            fs::write(dir.path().join(FORMAT), format!("{FORMAT_PREFIX}{lower}\n")).unwrap();
            let error = DataDir::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("FORMAT is damaged: expected format 3"), "{error}");
        }
        // From a start that was cut short between the two, or a build that did not write it.
        fs::write(dir.path().join(FORMAT), format!("{FORMAT_PREFIX}{MARK_FORMAT}\n")).unwrap();
        fs::write(dir.path().join(IDENTITY), &early).unwrap();
        assert_eq!(DataDir::open(dir.path()).unwrap().identity().unwrap().cluster, Some(cluster()));
        assert_eq!(fs::read(dir.path().join(IDENTITY)).unwrap(), late);
    }

    #[test]
    fn another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path()).unwrap());
        for other in [FORMATS.start() - 1, FORMATS.end() + 1] {
            fs::write(dir.path().join(FORMAT), format!("{FORMAT_PREFIX}{other}\n")).unwrap();
            assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Format { found, .. }) if found == other));
        }
        fs::write(dir.path().join(FORMAT), b"").unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Damaged { .. })));
    }

    #[test]
    fn every_damaged_byte_of_the_identity_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut data = DataDir::open(dir.path()).unwrap();
        data.create_identity(3, 77).unwrap();
        data.set_cluster(cluster()).unwrap();
        drop(data);
        let path = dir.path().join(IDENTITY);
        let good = fs::read(&path).unwrap();
        for position in 0..good.len() {
            for mask in [0x01, 0x20, 0x80] {
                let mut bad = good.clone();
                bad[position] ^= mask;
                fs::write(&path, &bad).unwrap();
                let error = DataDir::open(dir.path()).unwrap_err();
                assert!(matches!(error, DataDirError::Damaged { .. }), "byte {position}: {error}");
            }
        }
        for len in 0..good.len() {
            fs::write(&path, &good[..len]).unwrap();
            assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Damaged { .. })), "cut to {len}");
        }
    }
}
