//! Memory that there is, and limits on it.

use super::Root;
use serde::Serialize;
use std::path::Path;

/// Memory in bytes; `None` where the system does not say.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Memory {
    /// All of it.
    pub total: Option<u64>,
    /// What can still be given without swapping.
    pub available: Option<u64>,
    /// Swap.
    pub swap: Option<u64>,
    /// Whether all swap is compressed memory (zram).
    pub swap_is_zram: bool,
    /// The smallest limit of the control groups that this process is in.
    pub limit: Option<u64>,
    /// Whether the kernel can limit the memory of a service (`MemoryMax=`).
    pub controller: Option<bool>,
}

impl Memory {
    /// What this process may still take: of the machine, and of what its control groups may have.
    pub fn free(&self) -> Option<u64> {
        self.available.into_iter().chain(self.limit).chain(address_space()).min()
    }
}

/// What is left of this process's address space, where that has a limit (`ulimit -v`): past it the
/// allocator ends the process.
fn address_space() -> Option<u64> {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::As).current?;
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(pages.saturating_mul(rustix::param::page_size() as u64)))
}

/// What a version 1 group without a limit shows is near `i64::MAX`.
const NO_LIMIT: u64 = 1 << 60;

/// Reads what `root` shows.
pub fn memory(root: &Root) -> Memory {
    let info = root.text("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| -> Option<u64> {
        let line = info.lines().find_map(|l| l.strip_prefix(key))?;
        let kb: u64 = line.strip_suffix("kB")?.trim().parse().ok()?;
        kb.checked_mul(1024)
    };
    let swaps = root.text("/proc/swaps").unwrap_or_default();
    let mut devices = swaps.lines().skip(1).filter_map(|l| l.split_whitespace().next()).peekable();
    Memory {
        total: bytes("MemTotal:"),
        available: bytes("MemAvailable:"),
        swap: bytes("SwapTotal:"),
        swap_is_zram: devices.peek().is_some() && devices.all(|d| d.starts_with("/dev/zram")),
        limit: limit(root),
        controller: controller(root),
    }
}

/// The smallest limit from this process's groups up to the root, of either version.
fn limit(root: &Root) -> Option<u64> {
    let groups = root.text("/proc/self/cgroup")?;
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (mount, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for group in Path::new(path).ancestors() {
            let group = group.strip_prefix("/").unwrap_or(group);
            let found = root.text(Path::new(mount).join(group).join(file));
            let found: Option<u64> = found.and_then(|t| t.parse().ok()).filter(|&n| n < NO_LIMIT);
            least = least.into_iter().chain(found).min();
        }
    }
    least
}

/// Raspberry Pi's kernel switches the controller off unless it is told otherwise.
fn controller(root: &Root) -> Option<bool> {
    if let Some(list) = root.text("/sys/fs/cgroup/cgroup.controllers") {
        return Some(list.split_whitespace().any(|c| c == "memory"));
    }
    let table = root.text("/proc/cgroups")?;
    let line = table.lines().find(|l| l.split_whitespace().next() == Some("memory"))?;
    Some(line.split_whitespace().nth(3) == Some("1"))
}

#[cfg(test)]
mod tests {
    use super::super::root::testing::Fake;
    use super::*;

    const MEMINFO: &str = "MemTotal:        4016240 kB\nMemFree:  10 kB\n\
        MemAvailable:    3000000 kB\nSwapTotal:        204796 kB\n";

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let fake = Fake::new(&[
            ("/proc/meminfo", MEMINFO),
            ("/proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 100\n"),
            ("/proc/self/cgroup", "0::/system.slice/offshoot.service\n"),
            ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
            ("/sys/fs/cgroup/system.slice/memory.max", "268435456\n"),
            ("/sys/fs/cgroup/system.slice/offshoot.service/memory.max", "max\n"),
        ]);
        let m = memory(&fake.root);
        assert_eq!(m.total, Some(4016240 << 10));
        assert_eq!(m.available, Some(3000000 << 10));
        assert_eq!((m.limit, m.controller, m.swap_is_zram), (Some(1 << 28), Some(true), true));
    }

    #[test]
    fn version_one_groups_and_a_controller_that_is_off() {
        let fake = Fake::new(&[
            (
                "/proc/swaps",
                "Filename Type Size Used Priority\n/dev/zram0 p 1 0 1\n/var/swap f 1 0 1\n",
            ),
            ("/proc/self/cgroup", "5:devices:/\n4:memory,x:/a/b\n0::/\n"),
            (
                "/proc/cgroups",
                "#subsys_name hierarchy num_cgroups enabled\ncpu 1 2 1\nmemory 0 1 0\n",
            ),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000000\n"),
            ("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "2000000\n"),
        ]);
        let m = memory(&fake.root);
        assert_eq!((m.limit, m.controller, m.swap_is_zram), (Some(1_000_000), Some(false), false));
        let m = memory(&Fake::new(&[]).root);
        assert_eq!((m.total, m.limit, m.controller), (None, None, None));
    }
}
