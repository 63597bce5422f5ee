//! How much memory this process may use, for budgets that are `auto`: what its control group allows, which is how
//! containers and systemd limit it, or else what the machine has.

use std::path::Path;

/// What a budget that is `auto` takes of it. Two budgets make a half; the rest is for the logs' newest entries, what is
/// on its way to the disk and to peers, and the kernel's cache, which counts too.
const SHARE: u64 = 4;

/// Taken for the memory where it cannot be found out, as without `/proc`.
const UNKNOWN: u64 = 512 << 20;

/// A budget that is `auto`, in bytes.
pub(super) fn share() -> u64 {
    let limit = limit(|path| std::fs::read_to_string(path).ok()).unwrap_or(UNKNOWN);
    // A whole number of MiB is easier to read in a log.
    (limit / SHARE) & !((1 << 20) - 1)
}

/// The lowest limit that applies, in bytes, by the files that `read` gives.
fn limit(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    });
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let groups = groups.lines().flat_map(|line| {
        // "4:memory:/path" of version 1, "0::/path" of version 2.
        let mut fields = line.splitn(3, ':').skip(1);
        let (root, file) = match fields.next() {
            Some("") => ("/sys/fs/cgroup", "memory.max"),
            Some("memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return Vec::new(),
        };
        // A limit of a group binds those below it. In a container the path may be that of the host, of which only the
        // container's own end is to be seen, at the root.
        let group = Path::new(fields.next().unwrap_or("/").trim_start_matches('/'));
        group.ancestors().map(|above| Path::new(root).join(above).join(file)).collect()
    });
    // No limit is "max", or a number beyond any machine.
    let limits = groups.filter_map(|path| read(&path)?.trim().parse::<u64>().ok());
    limits.chain(machine).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: (&str, &str) = ("/proc/meminfo", "MemTotal:       1024 kB\nMemFree:         512 kB\n");

    fn limit_of(files: &[(&str, &str)]) -> Option<u64> {
        limit(|path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned()))
    }

    #[test]
    fn without_a_limit_it_is_the_machine() {
        assert_eq!(limit_of(&[MACHINE]), Some(1 << 20));
        let unlimited = [MACHINE, ("/proc/self/cgroup", "0::/a\n"), ("/sys/fs/cgroup/a/memory.max", "max\n")];
        assert_eq!(limit_of(&unlimited), Some(1 << 20));
        assert_eq!(limit_of(&[]), None);
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_counts() {
        let nested = [
            MACHINE,
            ("/proc/self/cgroup", "0::/pod/container\n"),
            ("/sys/fs/cgroup/pod/container/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/memory.max", "4096\n"),
        ];
        assert_eq!(limit_of(&nested), Some(4096));
    }

    #[test]
    fn in_a_container_the_limit_is_at_the_root() {
        let version_2 = [MACHINE, ("/proc/self/cgroup", "0::/\n"), ("/sys/fs/cgroup/memory.max", "8192\n")];
        assert_eq!(limit_of(&version_2), Some(8192));
        let version_1 = [
            MACHINE,
            ("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/kubepods/abc\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "16384\n"),
        ];
        assert_eq!(limit_of(&version_1), Some(16384));
    }
}
