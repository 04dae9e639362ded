//! The training child's limits: a control group of its own where one can be made, else resource
//! limits.

use crate::error::{Error, Result};
use crate::host::Root;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Address space beside the child's memory and what it maps: heaps that are reserved and not
/// used, stacks, libraries.
const RESERVED: u64 = 256 << 20;

/// How the child's memory is limited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Limit {
    /// `memory.max` of a version 2 group: everything that the child touches.
    Cgroup {
        /// The group's folder.
        folder: PathBuf,
        /// Bytes.
        bytes: u64,
    },
    /// `RLIMIT_DATA` (memory that no file backs) and `RLIMIT_AS` (address space).
    Rlimit {
        /// Bytes that no file backs.
        data: u64,
        /// Bytes of address space.
        space: u64,
    },
}

impl Limit {
    /// A group of `bytes` for job `job` where the system below `root` lets us make one, else
    /// resource limits. `mapped`: bytes of the files that the child maps.
    pub fn choose(root: &Root, job: i64, bytes: u64, mapped: u64) -> Limit {
        match group(root, job, bytes) {
            Some(folder) => Limit::Cgroup { folder, bytes },
            None => {
                let space = bytes.saturating_add(mapped).saturating_add(RESERVED);
                Limit::Rlimit { data: bytes, space }
            }
        }
    }

    /// In words.
    pub fn sentence(&self) -> String {
        match self {
            Limit::Cgroup { folder, bytes } => {
                format!("memory.max of {} MiB in '{}'", bytes >> 20, folder.display())
            }
            Limit::Rlimit { data, space } => format!(
                "RLIMIT_DATA of {} MiB and RLIMIT_AS of {} MiB (no control group can be made)",
                data >> 20,
                space >> 20
            ),
        }
    }

    /// Puts the calling process under the limit, for good.
    ///
    /// # Errors
    /// What the system says.
    pub fn enter(&self) -> Result<()> {
        match self {
            Limit::Cgroup { folder, .. } => {
                let file = folder.join("cgroup.procs");
                std::fs::write(&file, "0").map_err(|e| Error::io(&file, e))
            }
            Limit::Rlimit { data, space } => {
                for (resource, bytes) in [(Resource::Data, *data), (Resource::As, *space)] {
                    let most = getrlimit(resource).maximum.map_or(bytes, |max| bytes.min(max));
                    let limit = Rlimit { current: Some(most), maximum: Some(most) };
                    setrlimit(resource, limit).map_err(|e| {
                        Error::failed(format!("limit {resource:?} can't be set: {e}"))
                    })?;
                }
                Ok(())
            }
        }
    }

    /// Times that the kernel killed something in the group for want of memory, since it was made.
    fn kills(&self) -> u64 {
        let Limit::Cgroup { folder, .. } = self else { return 0 };
        let text = std::fs::read_to_string(folder.join("memory.events")).unwrap_or_default();
        let kills = text.lines().find_map(|l| l.strip_prefix("oom_kill "));
        kills.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }
}

/// A limit that a child runs under. Its group is removed when this is dropped: the child must have
/// ended.
#[derive(Debug)]
pub struct Held {
    limit: Limit,
    /// A group that an earlier child left has its kills.
    kills_before: u64,
}

impl Held {
    /// Before the child is started.
    pub fn new(limit: Limit) -> Held {
        Held { kills_before: limit.kills(), limit }
    }

    /// Whether the kernel killed something in the group for want of memory since then.
    pub fn killed_for_memory(&self) -> bool {
        self.limit.kills() > self.kills_before
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Limit::Cgroup { folder, .. } = &self.limit {
            // The kernel's own files in it go with it; a group that is not empty stays.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Makes a group beside this process's own (systemd's `DelegateSubgroup=`) or below it.
fn group(root: &Root, job: i64, bytes: u64) -> Option<PathBuf> {
    let groups = root.text("/proc/self/cgroup")?;
    let own = groups.lines().find_map(|l| l.strip_prefix("0::"))?;
    let mount = root.path("/sys/fs/cgroup");
    let own = mount.join(own.trim_start_matches('/'));
    let beside = own.parent().filter(|p| p.starts_with(&mount)).map(Path::to_path_buf);
    [beside, Some(own)].into_iter().flatten().find_map(|parent| make(&parent, job, bytes))
}

/// `None` where any step fails; what was made is taken away again.
fn make(parent: &Path, job: i64, bytes: u64) -> Option<PathBuf> {
    let listed = |file: &str| {
        let text = std::fs::read_to_string(parent.join(file)).unwrap_or_default();
        text.split_whitespace().any(|c| c == "memory")
    };
    if !listed("cgroup.controllers") {
        return None;
    }
    if !listed("cgroup.subtree_control") {
        // Refused where processes sit in the group itself.
        std::fs::write(parent.join("cgroup.subtree_control"), "+memory").ok()?;
    }
    let folder = parent.join(format!("train-{job}"));
    match std::fs::create_dir(&folder) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return None,
        _ => {}
    }
    let set = |file: &str, value: &str| std::fs::write(folder.join(file), value);
    if set("memory.max", &bytes.to_string()).is_err() {
        let _ = std::fs::remove_dir(&folder);
        return None;
    }
    // Each may be missing: no swap accounting, older kernels, a controller that was not given.
    for (file, value) in [("memory.swap.max", "0"), ("memory.oom.group", "1"), ("cpu.idle", "1")] {
        let _ = set(file, value);
    }
    Some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::testing::Fake;

    #[test]
    fn a_delegated_group_is_used_and_else_resource_limits() {
        let fake = Fake::new(&[
            ("/proc/self/cgroup", "0::/system.slice/offshoot.service/daemon\n"),
            ("/sys/fs/cgroup/system.slice/offshoot.service/cgroup.controllers", "memory pids\n"),
            ("/sys/fs/cgroup/system.slice/offshoot.service/cgroup.subtree_control", "\n"),
        ]);
        let Limit::Cgroup { folder, bytes } = Limit::choose(&fake.root, 7, 1 << 27, 5) else {
            panic!("no group")
        };
        let parent = fake.root.path("/sys/fs/cgroup/system.slice/offshoot.service");
        assert_eq!((folder.clone(), bytes), (parent.join("train-7"), 1 << 27));
        let text = |file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
        assert_eq!((text("memory.max"), text("memory.swap.max")), ("134217728".into(), "0".into()));
        assert_eq!(
            std::fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap(),
            "+memory"
        );
        let limit = Limit::Cgroup { folder: folder.clone(), bytes };
        assert!(limit.sentence().contains("memory.max of 128 MiB"), "{}", limit.sentence());
        // Version 1, no controller, nothing at all.
        for files in [
            &[("/proc/self/cgroup", "4:memory:/a\n")][..],
            &[("/proc/self/cgroup", "0::/x\n"), ("/sys/fs/cgroup/x/cgroup.controllers", "pids\n")],
            &[],
        ] {
            let fake = Fake::new(files);
            let limit = Limit::choose(&fake.root, 7, 100 << 20, 20 << 20);
            assert_eq!(limit, Limit::Rlimit { data: 100 << 20, space: (120 << 20) + RESERVED });
            assert!(!Held::new(limit).killed_for_memory());
        }
    }

    /// A group that could not be removed was used again: every failure of the next child was told as
    /// want of memory.
    #[test]
    fn an_earlier_childs_kills_are_not_this_ones() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("train-7");
        std::fs::create_dir(&folder).unwrap();
        let events = folder.join("memory.events");
        std::fs::write(&events, "low 0\noom 2\noom_kill 3\n").unwrap();
        let held = Held::new(Limit::Cgroup { folder: folder.clone(), bytes: 1 });
        assert!(!held.killed_for_memory());
        std::fs::write(&events, "low 0\noom 3\noom_kill 4\n").unwrap();
        assert!(held.killed_for_memory());
        // A real group's files go with it.
        std::fs::remove_file(&events).unwrap();
        drop(held);
        assert!(!folder.exists());
    }
}
