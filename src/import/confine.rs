//! What the worker may touch of the machine's files, where the kernel has Landlock (5.13 and newer):
//! to read the model's folders and what the kernel tells of itself, to write the folder of the base.

use crate::error::{Error, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The newest of Landlock's versions that is asked for; older kernels hold what they know of it.
const NEWEST: ABI = ABI::V5;

/// How deep links are looked for in an export folder, and among how many entries of one.
const FOLDERS: usize = 2;
const ENTRIES: usize = 1000;

/// What processors, memory and limits are read from, by tract too.
const MACHINE: [&str; 4] = ["/proc", "/sys", "/dev/null", "/dev/urandom"];

/// Confines the calling process for good: it reads `files` and what lies in their folders, the folders
/// that links lead to included, and writes in the folder of `out`; it opens no connection. Gives
/// whether the kernel holds it to that.
///
/// # Errors
/// What the system says (failed).
pub fn confine(files: &[PathBuf], out: Option<&Path>) -> Result<bool> {
    let mut readable: BTreeSet<PathBuf> = MACHINE.iter().map(PathBuf::from).collect();
    for file in files {
        readable.insert(folder_of(file));
        follow(file, FOLDERS, &mut readable);
    }
    let failed = |e: &dyn std::fmt::Display| {
        Error::failed(format!("the import worker can't be confined: {e}"))
    };
    let created = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(Ruleset::create);
    let mut rules = created.map_err(|e| failed(&e))?;
    let mut allow = |path: &Path, access: BitFlags<AccessFs>| -> Result<()> {
        // What is not there can't be read either.
        let Ok(fd) = PathFd::new(path) else { return Ok(()) };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(NEWEST) };
        let added = (&mut rules).add_rule(PathBeneath::new(fd, access));
        added.map(drop).map_err(|e| failed(&e))
    };
    for path in &readable {
        allow(path, AccessFs::from_read(NEWEST))?;
    }
    if let Some(out) = out {
        allow(&folder_of(out), AccessFs::from_all(NEWEST))?;
    }
    let status = rules.restrict_self().map_err(|e| failed(&e))?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// Adds the folders that files really lie in: those of a Hugging Face cache are links into another,
/// and so is the data beside them.
fn follow(path: &Path, depth: usize, readable: &mut BTreeSet<PathBuf>) {
    if let Ok(real) = path.canonicalize() {
        readable.insert(folder_of(&real));
    }
    let Ok(entries) = path.read_dir() else { return };
    for entry in entries.flatten().take(ENTRIES) {
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_link && entry.path().is_file() {
            follow(&entry.path(), 0, readable);
        } else if is_folder && depth > 0 {
            follow(&entry.path(), depth - 1, readable);
        }
    }
}

/// A folder itself; of a file the folder that it is in.
fn folder_of(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.into();
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// In a process of its own: what is confined stays so.
    #[test]
    fn a_confined_process_reads_and_writes_its_folders_only() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["in/model.onnx", "in/below/data", "out/old", "other/secret"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "import::confine::tests::confined_child", "--nocapture"])
            .env("OFFSHOOT_TEST_CONFINED", folder.path())
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
    }

    #[test]
    fn confined_child() {
        let Some(folder) = std::env::var_os("OFFSHOOT_TEST_CONFINED") else { return };
        let at = |name: &str| Path::new(&folder).join(name);
        if !confine(&[at("in/model.onnx")], Some(&at("out/new.base"))).unwrap() {
            eprintln!("skipped: the kernel has no Landlock");
            return;
        }
        for readable in ["in/model.onnx", "in/below/data", "out/old"] {
            std::fs::read(at(readable)).unwrap();
        }
        std::fs::read("/proc/self/status").unwrap();
        std::fs::write(at("out/new"), "x").unwrap();
        std::fs::rename(at("out/new"), at("out/new.base")).unwrap();
        for closed in ["other/secret", "."] {
            assert!(std::fs::read_dir(at(closed)).is_err() && std::fs::read(at(closed)).is_err());
        }
        assert!(std::fs::read("/etc/passwd").is_err());
        assert!(std::fs::write(at("in/model.onnx"), "y").is_err());
        assert!(std::fs::remove_file(at("in/below/data")).is_err());
        assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err() || !has_net());
    }

    /// Connections are Landlock's matter since Linux 6.7.
    fn has_net() -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(6), Some(7))
    }
}
