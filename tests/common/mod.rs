//! What the tests of the library and those of its users share.

// Each test program takes a part.
#![allow(dead_code)]

use offshoot::packing::PackOptions;
use offshoot::{Engine, pack};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of full-precision models and reference outputs; `None`, with a line, where it is
/// not at hand. Panics there if `OFFSHOOT_NEEDS_SHARED` is set, as in CI.
pub fn shared() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The second: a git worktree lies one folder deeper than the checkout.
    let near = [root.join("../shared"), root.join("../../shared")];
    let found = std::env::var_os("OFFSHOOT_SHARED")
        .map(PathBuf::from)
        .into_iter()
        .chain(near)
        .find(|folder| folder.join("reference").is_dir());
    if found.is_none() {
        assert!(std::env::var_os("OFFSHOOT_NEEDS_SHARED").is_none(), "../shared is absent");
        eprintln!("skipped: ../shared is absent");
    }
    found
}

/// Whether the processor is emulated (`cross/aarch64.sh`): answers are right, and slow.
pub fn emulated() -> bool {
    std::env::var_os("OFFSHOOT_EMULATED_CPU").is_some()
}

/// Packs `source` and opens the base; the file is unlinked, the mapping keeps it.
///
/// `OFFSHOOT_TEST_BASES` may name a folder that keeps them: tests on an emulated processor, where
/// packing takes minutes, then serve what this machine has packed. It must be empty before the
/// first test of a build.
pub fn packed(source: &Path, options: &PackOptions) -> Engine {
    let kept = std::env::var_os("OFFSHOOT_TEST_BASES").map(PathBuf::from);
    let folder = match &kept {
        Some(kept) => tempfile::tempdir_in(kept).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    let mut path = folder.path().join("model.base");
    let kept = kept.map(|kept| kept.join(key(source, options)).with_extension("base"));
    match kept {
        Some(kept) if kept.exists() => path = kept,
        kept => {
            pack(source, &path, options).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
            if let Some(kept) = kept {
                std::fs::hard_link(&path, kept).or_else(already_there).unwrap();
            }
        }
    }
    Engine::open(&path).unwrap_or_else(|e| panic!("{}: {e}", source.display()))
}

/// Another test may have packed it meanwhile.
fn already_there(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

fn key(source: &Path, options: &PackOptions) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&std::fs::read(source).unwrap());
    hasher.update(format!("{options:?}").as_bytes());
    hasher.finalize().to_string()
}

/// Files by their paths in a folder.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// All files below `root`, a state: but for those that say nothing of it.
pub fn files(root: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if !["state.db-shm", "ballast", "daemon.lock"].contains(&name) {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path.strip_prefix(root).unwrap().into(), bytes);
            }
        }
    }
    found
}

/// Makes `root` hold these files and no others.
pub fn put(root: &Path, files: &Files) {
    let _ = std::fs::remove_dir_all(root);
    for (path, bytes) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// Makes `to` a copy of the folder `from`, without its sockets.
pub fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|e| e.unwrap()) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&path, &target);
        } else if kind.is_file() || kind.is_symlink() {
            std::fs::copy(path, target).unwrap();
        }
    }
}
