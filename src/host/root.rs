//! The folder that `/proc` and `/sys` are read below.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Longest file that is read from `/proc` and `/sys`.
const MAX_TEXT: u64 = 1 << 20;
/// Most entries of a folder that are looked at.
const MAX_NAMES: usize = 1024;

/// `/`, or in tests a folder that stands for it.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The running system.
    pub fn system() -> Root {
        Root(PathBuf::from("/"))
    }

    /// The system below `folder`.
    pub fn at(folder: impl Into<PathBuf>) -> Root {
        Root(folder.into())
    }

    /// Whether this is the running system.
    pub fn is_system(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// Where the absolute `path` lies.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file without blanks and NULs at its ends; `None` if it can't be read.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let mut bytes = vec![];
        self.open(path)?.take(MAX_TEXT).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        Some(text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_string())
    }

    /// The integer that a file holds.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<i64> {
        self.text(path)?.parse().ok()
    }

    /// Names in a folder, sorted; none if it can't be read.
    pub fn names(&self, folder: impl AsRef<Path>) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(folder)).into_iter().flatten();
        let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.take(MAX_NAMES).collect();
        names.sort();
        names
    }

    /// Opens a regular file without waiting.
    pub(super) fn open(&self, path: impl AsRef<Path>) -> Option<File> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits();
        let mut options = OpenOptions::new();
        let file =
            options.read(true).custom_flags(i32::try_from(flags).ok()?).open(self.path(path));
        file.ok().filter(|f| f.metadata().is_ok_and(|m| m.is_file()))
    }
}

/// A system made of files, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::Root;

    /// A folder that stands for `/`, removed when dropped.
    pub(crate) struct Fake {
        folder: tempfile::TempDir,
        /// The system.
        pub(crate) root: Root,
    }

    impl Fake {
        /// A system of these files: absolute path and text. `LINK -> TARGET` makes a link.
        pub(crate) fn new(files: &[(&str, &str)]) -> Fake {
            let folder = tempfile::tempdir().unwrap();
            let root = Root::at(folder.path());
            let fake = Fake { folder, root };
            for (path, text) in files {
                fake.put(path, text);
            }
            fake
        }

        pub(crate) fn put(&self, path: &str, text: &str) {
            let at = self.root.path(path);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, at).unwrap(),
                None => std::fs::write(at, text).unwrap(),
            }
        }

        pub(crate) fn folder(&self) -> &std::path::Path {
            self.folder.path()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Fake;

    #[test]
    fn what_is_missing_or_no_file_is_nothing() {
        let fake =
            Fake::new(&[("/sys/a/n", "42\n"), ("/proc/model", "Board 5\0"), ("/sys/b", "x")]);
        let root = &fake.root;
        assert_eq!(root.number("/sys/a/n"), Some(42));
        assert_eq!(root.text("/proc/model").unwrap(), "Board 5");
        assert_eq!((root.number("/sys/b"), root.text("/sys/c")), (None, None));
        assert_eq!(root.text("/sys/a"), None);
        assert_eq!(
            (root.names("/sys"), root.names("/nowhere")),
            (vec!["a".into(), "b".into()], vec![])
        );
        assert!(!root.is_system() && root.path("/x").starts_with(fake.folder()));
        let fifo = root.path("/fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        assert_eq!(root.text("/fifo"), None);
    }
}
