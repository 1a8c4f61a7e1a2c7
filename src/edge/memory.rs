//! Is this process about to use more memory than it may? Then nobody new is let in, so that those who are here do not
//! suffer: the kernel would end the whole process.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Of what the process may use, in percent: the rest is for those who are connected.
const ENOUGH: u64 = 85;

/// The control group of this process (cgroup v2), if it has one whose memory is limited. In a container it is the root
/// of the mount.
#[must_use]
pub fn limited_group() -> Option<PathBuf> {
    let mount = Path::new("/sys/fs/cgroup");
    let own = read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    [mount.join(own), mount.to_path_buf()].into_iter().find(|group| number(group, "memory.max").is_some())
}

/// Does this group use so much of its memory that nobody else should come? What the kernel can take back at once (pages
/// of files) does not count.
#[must_use]
pub fn is_short(group: &Path) -> bool {
    let (Some(most), Some(used)) = (number(group, "memory.max"), number(group, "memory.current")) else {
        return false;
    };
    let statistics = read_to_string(group.join("memory.stat")).unwrap_or_default();
    let files = statistics.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let files: u64 = files.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or_default();
    used.saturating_sub(files) >= most / 100 * ENOUGH
}

/// A file with one number; `max` is none.
fn number(group: &Path, file: &str) -> Option<u64> {
    read_to_string(group.join(file)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_short_near_its_limit_and_files_do_not_count() {
        let group = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(group.path().join(file), text).unwrap();
        assert!(!is_short(group.path()), "there is nothing to read");
        write("memory.max", "1000000\n");
        write("memory.current", "849999\n");
        assert!(!is_short(group.path()));
        write("memory.current", "850000\n");
        assert!(is_short(group.path()));
        write("memory.stat", "anon 700000\ninactive_file 100000\nactive_file 5\n");
        assert!(!is_short(group.path()));
        write("memory.max", "max\n");
        write("memory.current", "999999999\n");
        assert!(!is_short(group.path()), "there is no limit");
    }
}
