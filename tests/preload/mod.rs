//! The library that tests preload into the program (`preload.c`): the n-th call of a sort on files below a
//! path fails, once or from it on; or what was synced is noted, so that a cut of power can be played.
//!
//! What is called past the C library (`rustix`) is not reached.

// Each test program takes a part.
#![allow(dead_code)]

use crate::common::emulated;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

/// Builds it; `None`, with a line, where the program has no C library to come before.
pub fn library() -> Option<&'static Path> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if emulated() || !cfg!(all(target_env = "gnu", target_pointer_width = "64")) {
        println!("skipped: nothing can be preloaded here");
        return None;
    }
    Some(BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/preload/preload.c");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let part = folder.join(format!("preload.{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(&part).arg(source);
        assert!(cc.arg("-ldl").arg("-lpthread").status().unwrap().success(), "{cc:?}");
        // Another test program may use the one that is there.
        let built = folder.join("preload.so");
        std::fs::rename(part, &built).unwrap();
        built
    }))
}

/// Calls by what they do, and the errors that they may have.
pub const CALLS: &[(&str, &[&str])] = &[
    ("open", &["EIO", "EMFILE", "ENOSPC", "ENOMEM", "EINTR"]),
    ("read", &["EIO", "EINTR", "SHORT"]),
    ("write", &["ENOSPC", "EIO", "EINTR", "SHORT"]),
    ("sync", &["EIO", "ENOSPC"]),
    ("rename", &["EIO", "ENOSPC"]),
    ("map", &["ENOMEM"]),
    ("truncate", &["EIO", "ENOSPC"]),
    ("unlink", &["EIO"]),
    ("link", &["EIO", "ENOSPC"]),
    ("mkdir", &["EIO", "ENOSPC"]),
    ("thread", &["EAGAIN"]),
    ("random", &["ENOSYS", "EINTR"]),
];

/// One call that fails, or all from it on.
#[derive(Clone, Debug)]
pub struct Fault {
    pub call: &'static str,
    pub error: &'static str,
    pub nth: u64,
    pub ever: bool,
}

impl Fault {
    /// Whether it is none: what is interrupted or cut short is gone on with.
    pub fn is_harmless(&self) -> bool {
        ["EINTR", "SHORT"].contains(&self.error)
    }

    /// Has `command` and its children meet it on paths that begin with `below`. `counts`: a file for what
    /// [`Counts::read`] reads.
    pub fn put(&self, command: &mut Command, below: &Path, counts: &Path) {
        let Some(library) = library() else { return };
        std::fs::write(counts, [0; 16]).unwrap();
        let Fault { call, error, nth, ever } = self;
        let way = if *ever { "ever" } else { "once" };
        let (below, counts) = (below.display(), counts.display());
        let words = format!("{call} {error} {nth} {way} {below} {counts}");
        command.env("LD_PRELOAD", library).env("OFFSHOOT_TEST_FAULT", words);
    }
}

/// What a program met.
pub struct Counts {
    /// Calls of the sort.
    pub seen: u64,
    /// Those that failed.
    pub failed: u64,
}

impl Counts {
    pub fn read(file: &Path) -> Counts {
        let bytes = std::fs::read(file).unwrap();
        let [seen, failed] =
            [0, 8].map(|at| u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap()));
        Counts { seen, failed }
    }
}

/// Walks over all faults: each sort, error, once and for ever, and n until a run is not hit. Of so many
/// runs `share` gives one is made, the first of each always; the end is looked for now and then.
pub fn every_fault(share: u64, seed: u64, mut run: impl FnMut(&Fault) -> bool) -> u64 {
    let (mut tried, mut dice) = (0, seed);
    for (call, errors) in CALLS {
        for error in *errors {
            for ever in [false, true] {
                // What is interrupted for ever is tried for ever.
                if ever && *error == "EINTR" {
                    continue;
                }
                let mut nth = 1;
                while run(&Fault { call, error, nth, ever }) {
                    tried += 1;
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    nth += 1 + (dice >> 33) % (2 * share - 1);
                }
            }
        }
    }
    tried
}

/// Of so many faults one, where all are asked for; `FAULTS_SHARE` says another number.
pub fn share(usual: u64) -> u64 {
    std::env::var("FAULTS_SHARE").map_or(usual, |n| n.parse().unwrap())
}

/// Notes of what was synced in a folder.
pub struct Medium {
    root: PathBuf,
    notes: PathBuf,
}

/// What a cut of power leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cut {
    /// Nothing that was not synced: neither bytes nor names.
    Strict,
    /// Of each file any of its unsynced sectors; names as they were last.
    Torn,
}

impl Medium {
    /// Takes all that is below `root` now as synced.
    pub fn of(root: &Path, notes: &Path) -> Medium {
        let medium = Medium { root: root.into(), notes: notes.into() };
        let _ = std::fs::remove_dir_all(notes);
        std::fs::create_dir_all(notes).unwrap();
        medium.begin(root);
        medium
    }

    fn begin(&self, folder: &Path) {
        let mut names = String::new();
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
            let (path, key) = (entry.path(), key(&entry.path()).unwrap());
            let name = entry.file_name().into_string().unwrap();
            if path.is_dir() {
                names += &format!("folder {key} {name}\n");
                self.begin(&path);
            } else if path.is_file() {
                names += &format!("file {key} {name}\n");
                std::fs::copy(&path, self.notes.join(key)).unwrap();
            }
        }
        std::fs::write(self.notes.join(key(folder).unwrap()), names).unwrap();
    }

    /// Has `command` and its children note.
    pub fn put(&self, command: &mut Command) {
        let Some(library) = library() else { return };
        let words = format!("{} {}", self.root.display(), self.notes.display());
        command.env("LD_PRELOAD", library).env("OFFSHOOT_TEST_CUT", words);
    }

    /// Makes the folder `to` what a cut of power would have left, the processes being gone.
    pub fn image(&self, to: &Path, cut: Cut, dice: &mut impl FnMut(usize) -> usize) {
        let found = self.now(&self.root);
        let _ = std::fs::remove_dir_all(to);
        std::fs::create_dir(to).unwrap();
        self.leave(&self.root, &key(&self.root).unwrap(), to, cut, &found, dice);
    }

    /// All files by what names them for good.
    fn now(&self, folder: &Path) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap()) {
            match entry.path() {
                path if path.is_dir() => found.extend(self.now(&path)),
                path => found.extend(key(&path).map(|key| (key, path))),
            }
        }
        found
    }

    fn leave(
        &self,
        folder: &Path,
        of: &str,
        to: &Path,
        cut: Cut,
        now: &BTreeMap<String, PathBuf>,
        dice: &mut impl FnMut(usize) -> usize,
    ) {
        let listed = match cut {
            Cut::Strict => std::fs::read_to_string(self.notes.join(of)).unwrap_or_default(),
            Cut::Torn => {
                let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap());
                let line = |path: PathBuf| {
                    let sort = if path.is_dir() { "folder" } else { "file" };
                    let name = path.file_name().unwrap().to_str().unwrap();
                    format!("{sort} {} {name}\n", key(&path).unwrap())
                };
                entries.map(|e| line(e.path())).collect()
            }
        };
        for line in listed.lines() {
            let mut words = line.splitn(3, ' ');
            let (sort, key, name) =
                (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            let to = to.join(name);
            if sort == "folder" {
                std::fs::create_dir(&to).unwrap();
                self.leave(&folder.join(name), key, &to, cut, now, dice);
                continue;
            }
            let synced = std::fs::read(self.notes.join(key)).unwrap_or_default();
            let newest = now.get(key).map(|path| std::fs::read(path).unwrap());
            let bytes = match (cut, newest) {
                (Cut::Torn, Some(newest)) => torn(&synced, &newest, dice),
                _ => synced,
            };
            std::fs::write(to, bytes).unwrap();
        }
    }
}

/// Each sector of the one or the other; the end of either. A file that was cut is cut or not: file systems
/// give up a file's end as a whole, by their journals, and leave no holes in what was there before.
fn torn(old: &[u8], new: &[u8], dice: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    const SECTOR: usize = 512;
    let length = if dice(2) == 0 { old.len() } else { new.len() };
    // What was written beyond the end of the one is zero there.
    let mut bytes = old.to_vec();
    bytes.resize(length, 0);
    let share = dice(8);
    for (i, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        let from = if dice(8) < share { old } else { new };
        let from = from.get(i * SECTOR..).unwrap_or_default();
        let n = sector.len().min(from.len());
        sector[..n].copy_from_slice(&from[..n]);
    }
    bytes
}

/// As the library names a file: inode and birth.
fn key(path: &Path) -> Option<String> {
    let meta = std::fs::symlink_metadata(path).ok()?;
    let birth = meta.created().unwrap().duration_since(UNIX_EPOCH).unwrap();
    Some(format!("{}.{}.{:09}", meta.ino(), birth.as_secs(), birth.subsec_nanos()))
}
