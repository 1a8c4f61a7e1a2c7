//! Rejects new handshakes when the control group is near its memory limit. The kernel would end the whole
//! process, and open connections would suffer.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Of what the process may use, in percent: the rest is for those who are connected.
const ENOUGH: u64 = 85;
/// What the first version of control groups says where there is no limit is a little below 2^63.
const NO_LIMIT: u64 = 1 << 60;

/// What is taken to be left where nothing says it.
const UNKNOWN: usize = 1 << 30;

/// Where a version of control groups says what.
#[derive(Debug)]
struct Version {
    /// Finds the group in a line of `/proc/self/cgroup`.
    line: fn(&str) -> Option<&str>,
    mount: &'static str,
    most: &'static str,
    used: &'static str,
    /// In `memory.stat`: pages of files that the kernel can take back at once.
    files: &'static str,
}

/// <https://docs.kernel.org/admin-guide/cgroup-v2.html> and, for older machines, `cgroup-v1/memory.html`.
const VERSIONS: [Version; 2] = [
    Version {
        line: |line| line.strip_prefix("0::/"),
        mount: "/sys/fs/cgroup",
        most: "memory.max",
        used: "memory.current",
        files: "inactive_file ",
    },
    Version {
        line: |line| line.split_once(":memory:/").map(|(_, group)| group),
        mount: "/sys/fs/cgroup/memory",
        most: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        files: "total_inactive_file ",
    },
];

/// A control group whose memory is limited.
#[derive(Debug)]
pub struct Group {
    version: &'static Version,
    directory: PathBuf,
}

impl Group {
    /// The one that this process is in, or the nearest above it that has a limit. In a container it is the root of the
    /// mount, whatever its name outside is.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        let groups = read_to_string("/proc/self/cgroup").ok()?;
        VERSIONS.iter().find_map(|version| {
            let own = Path::new(version.mount).join(groups.lines().find_map(version.line)?);
            let mut groups = own.ancestors().take_while(|group| group.starts_with(version.mount));
            groups.find_map(|group| Self { version, directory: group.to_owned() }.if_limited())
        })
    }

    /// What is left of the memory, in bytes.
    fn left(&self) -> Option<u64> {
        Some(self.number(self.version.most)?.saturating_sub(self.used()?))
    }

    /// What is used, without what the kernel can take back at once (pages of files).
    fn used(&self) -> Option<u64> {
        let used = self.number(self.version.used)?;
        let statistics = read_to_string(self.directory.join("memory.stat")).unwrap_or_default();
        let files = statistics.lines().find_map(|line| line.strip_prefix(self.version.files));
        let files: u64 = files.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or_default();
        Some(used.saturating_sub(files))
    }

    fn if_limited(self) -> Option<Self> {
        self.number(self.version.most).is_some_and(|most| most < NO_LIMIT).then_some(self)
    }

    /// Is so much of the memory used that nobody else should come?
    #[must_use]
    pub fn is_short(&self) -> bool {
        let most = self.number(self.version.most);
        most.zip(self.used()).is_some_and(|(most, used)| used >= most / 100 * ENOUGH)
    }

    /// A file with one number; `max` is none.
    fn number(&self, file: &str) -> Option<u64> {
        read_to_string(self.directory.join(file)).ok()?.trim().parse().ok()
    }
}

/// What the control group of this process, or the machine, has left for it, in bytes.
#[must_use]
pub fn memory_left() -> usize {
    let of_machine = || {
        let memory = read_to_string("/proc/meminfo").ok()?;
        let left = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        left.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    let left = Group::of_this_process().and_then(|group| group.left()).or_else(of_machine);
    left.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_short_near_its_limit_and_files_do_not_count() {
        for version in &VERSIONS {
            let directory = tempfile::tempdir().unwrap();
            let write = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).unwrap();
            let group = || Group { version, directory: directory.path().to_owned() };
            assert!(!group().is_short() && group().if_limited().is_none(), "there is nothing to read");
            write(version.most, "1000000\n");
            write(version.used, "849999\n");
            assert!(!group().is_short() && group().if_limited().is_some());
            write(version.used, "850000\n");
            assert!(group().is_short());
            write("memory.stat", &format!("anon 700000\n{}100000\nactive_file 5\n", version.files));
            assert!(!group().is_short());
            for none in ["max\n", "9223372036854771712\n"] {
                write(version.most, none);
                write(version.used, "999999999\n");
                assert!(!group().is_short() && group().if_limited().is_none(), "there is no limit");
            }
        }
    }

    #[test]
    fn the_line_of_each_version_is_found() {
        let [second, first] = VERSIONS;
        let lines = ["9:name=systemd:/", "4:memory:/docker/af", "1:cpu,cpuacct:/", "0::/user.slice"];
        assert_eq!(lines.iter().find_map(|line| (second.line)(line)), Some("user.slice"));
        assert_eq!(lines.iter().find_map(|line| (first.line)(line)), Some("docker/af"));
    }
}
