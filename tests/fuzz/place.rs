//! A folder in memory for one target, and what the tree has to make seeds of.

use offshoot::packing::PackOptions;
use offshoot::{Engine, pack};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// The repository's file.
pub fn repo(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // libFuzzer's crate lies one folder deeper.
    let root = root.parent().filter(|_| root.ends_with("fuzz") && !root.join("src").exists());
    root.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR"))).join(path)
}

/// The bytes of the repository's file.
pub fn file(path: &str) -> Vec<u8> {
    std::fs::read(repo(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The bytes of all files below a folder of the repository that have this ending, none above 64 kB.
pub fn files(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let mut found = vec![];
    let mut folders = vec![repo(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending)
                && path.metadata().unwrap().len() < 64 << 10
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// A folder to work in, there until the last of its clones is gone.
#[derive(Clone)]
pub struct Place(Rc<tempfile::TempDir>);

impl Place {
    pub fn new() -> Place {
        let memory = Path::new("/dev/shm");
        let made = match memory.is_dir() && std::env::var_os("TMPDIR").is_none() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        Place(Rc::new(made.unwrap()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An empty folder here, whatever was in it.
    pub fn fresh(&self, name: &str) -> PathBuf {
        use std::os::unix::fs::DirBuilderExt;
        let path = self.path(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).unwrap();
        }
        std::fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        path
    }

    /// A base of the repository's ONNX file.
    pub fn packed(&self, source: &str) -> PathBuf {
        self.packed_with(source, &PackOptions::default())
    }

    fn packed_with(&self, source: &str, options: &PackOptions) -> PathBuf {
        let path = self.path("packed.base");
        pack(&repo(source), &path, options).unwrap();
        path
    }

    /// The same, opened.
    pub fn engine(&self, source: &str) -> Engine {
        self.engine_with(source, &PackOptions::default())
    }

    /// The same with these options.
    pub fn engine_with(&self, source: &str, options: &PackOptions) -> Engine {
        Engine::open(self.packed_with(source, options)).unwrap()
    }
}
