//! What the tests of the library and those of its users share.

// Each test program takes a part.
#![allow(dead_code)]

use offshoot::packing::PackOptions;
use offshoot::{Engine, pack};
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
