//! What processes of this machine have spent, as the operating system counts it, and which of them serve an address.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};

use crate::BenchError;

/// What a process has spent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    /// User and system time, in seconds.
    pub(crate) cpu_seconds: f64,
    /// The most memory that it has had, in bytes.
    pub(crate) peak_memory: u64,
    /// Bytes that it has caused to be written to storage; not known for processes of other users.
    pub(crate) written: Option<u64>,
}

/// What process `pid` has spent.
pub(crate) fn spent(pid: u32) -> Result<Spent, BenchError> {
    let failed = |problem: String| BenchError::Process { pid, problem };
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let stat = read("stat").map_err(|error| failed(error.to_string()))?;
    let ticks = ticks(&stat).ok_or_else(|| failed("/proc says something unexpected".into()))?;
    let field = |text: String, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    Ok(Spent {
        cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        peak_memory: read("status").ok().and_then(|text| field(text, "VmHWM:")).unwrap_or(0) * 1024,
        written: read("io").ok().and_then(|text| field(text, "write_bytes:")),
    })
}

/// User and system time, in clock ticks, from a line of `/proc/PID/stat`. The command's name, the second field, may
/// hold anything, spaces and parentheses included.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

/// The processes of this machine that listen on one of the addresses ("host:port"), as far as they can be seen.
pub(crate) fn listening(addresses: &[String]) -> Vec<u32> {
    let tables: String =
        ["tcp", "tcp6"].iter().filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok()).collect();
    let mut inodes = BTreeSet::new();
    for address in addresses {
        let Some(address) = address.to_socket_addrs().ok().and_then(|mut found| found.next()) else { continue };
        // A socket can be bound to addresses of this machine only; asking for one sends nothing.
        if UdpSocket::bind((address.ip(), 0)).is_ok() {
            inodes.extend(tables.lines().filter_map(|line| listener(line, address)));
        }
    }
    if inodes.is_empty() {
        return Vec::new();
    }
    let wanted: BTreeSet<PathBuf> = inodes.iter().map(|inode| format!("socket:[{inode}]").into()).collect();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| open_files(*pid).iter().any(|file| wanted.contains(file))).collect()
}

/// What the file descriptors of a process stand for; empty if that cannot be seen.
fn open_files(pid: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}

/// The inode of the socket that a line of `/proc/net/tcp` or `tcp6` is about, if it listens on this address or on its
/// port of all addresses.
fn listener(line: &str, address: SocketAddr) -> Option<u64> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let listens = *fields.get(3)? == "0A" && u16::from_str_radix(port, 16).ok()? == address.port();
    let here = ip.bytes().all(|digit| digit == b'0') || ip.eq_ignore_ascii_case(&hex(address.ip()));
    if listens && here { fields.get(9)?.parse().ok() } else { None }
}

/// An address as the kernel's tables show it: words in the order of this machine's bytes.
fn hex(ip: IpAddr) -> String {
    let words = |bytes: &[u8]| {
        bytes
            .chunks_exact(4)
            .map(|word| format!("{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
            .collect()
    };
    match ip {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    }
}

/// The data directory of a broker: where its lock is.
pub(crate) fn data_directory(pid: u32) -> Option<PathBuf> {
    let lock = open_files(pid).into_iter().find(|file| file.file_name().is_some_and(|name| name == "LOCK"))?;
    lock.parent().map(Path::to_path_buf)
}

/// The kind of file system that a path lies on, such as `ext4`.
pub(crate) fn file_system(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    file_system_in(&fs::read_to_string("/proc/self/mountinfo").ok()?, &path)
}

/// The longest mount point that `path` is under, from the text of `/proc/PID/mountinfo`; of several at one place, the
/// last, which hides the others.
fn file_system_in(mounts: &str, path: &Path) -> Option<String> {
    let found = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = Path::new(mount.split(' ').nth(4)?);
        path.starts_with(point).then(|| (point.as_os_str().len(), kind.split(' ').next()))
    });
    found.max_by_key(|(len, _)| *len)?.1.map(str::to_owned)
}

/// The processor, the number of its cores that can be used, and the kernel.
pub(crate) fn machine() -> (String, usize, String) {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    (model.map_or("unknown", |(_, model)| model.trim()).to_owned(), cores, kernel.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_times_are_fields_14_and_15() {
        let stat = "42 (a) name) S 1 42 42 0 -1 4194560 100 0 0 0 321 123 7 7 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(444));
        assert_eq!(ticks("42 (name) S 1"), None);
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn this_process_has_spent_something_and_no_process_has_not() {
        let spent_here = spent(std::process::id()).unwrap();
        assert!(spent_here.peak_memory > 100_000 && spent_here.written.is_some(), "{spent_here:?}");
        assert!(matches!(spent(u32::MAX), Err(BenchError::Process { pid: u32::MAX, .. })));
    }

    #[test]
    fn who_listens_is_found_by_address() {
        let own = std::process::id();
        for (bind, ask) in [("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.1"), ("127.0.0.1:0", "localhost")] {
            let listener = TcpListener::bind(bind).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(listening(&[format!("{ask}:{port}")]), [own], "{bind}");
            drop(listener);
            assert_eq!(listening(&[format!("{ask}:{port}")]), [0; 0], "{bind}");
        }
        // An address of documentation: of no machine.
        assert_eq!(listening(&["192.0.2.1:22".into(), "nonsense".into()]), [0; 0]);
    }

    #[test]
    fn the_kernels_table_is_understood() {
        let line =
            "   2: 0100007F:07C8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3579 1 0";
        assert_eq!(listener(line, "127.0.0.1:1992".parse().unwrap()), Some(3579));
        assert_eq!(listener(line, "127.0.0.2:1992".parse().unwrap()), None);
        assert_eq!(listener(line, "127.0.0.1:1993".parse().unwrap()), None);
        assert_eq!(listener(&line.replace(" 0A ", " 01 "), "127.0.0.1:1992".parse().unwrap()), None);
        assert_eq!(listener("  sl  local_address rem_address", "127.0.0.1:1992".parse().unwrap()), None);
    }

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      30 22 0:25 / /data rw shared:5 - xfs /dev/vdb rw\n\
                      31 22 0:26 / /data rw - tmpfs tmpfs rw\n";
        assert_eq!(file_system_in(mounts, Path::new("/data/node-1")).as_deref(), Some("tmpfs"));
        assert_eq!(file_system_in(mounts, Path::new("/database")).as_deref(), Some("ext4"));
        assert_eq!(file_system_in("", Path::new("/data")), None);
    }
}
