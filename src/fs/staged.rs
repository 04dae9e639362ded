//! A file or a folder that is made beside its place.

use super::sync_folder;
use crate::error::{Error, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Files staged by this process, so that each has a name of its own.
static STAGED: AtomicU32 = AtomicU32::new(0);

/// A hidden file or folder beside the one to be written, removed when dropped.
pub struct Staged {
    folder: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// Names it; removes those of processes that are gone.
    ///
    /// # Errors
    /// Usage: `out` exists and is no regular file, or names none; failed: its folder isn't there.
    pub fn beside(out: &Path) -> Result<Staged> {
        if std::fs::metadata(out).is_ok_and(|m| !m.is_file()) {
            let place = out.display();
            return Err(Error::usage(format!("'{place}' exists and is not a regular file")));
        }
        let name = out.file_name().ok_or_else(|| {
            Error::usage(format!("'{}' does not name a file to write", out.display()))
        })?;
        let folder = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !folder.is_dir() {
            return Err(Error::failed(format!("folder of '{}' does not exist", out.display())));
        }
        let prefix = [".", &name.to_string_lossy(), "."].concat();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let process = file.strip_prefix(&prefix).and_then(|f| f.strip_suffix(".part"));
            let process = process.map(|p| p.split_once('.').map_or(p, |(p, _)| p));
            let process = process.filter(|p| p.bytes().all(|b| b.is_ascii_digit()));
            if process.is_some_and(|p| !Path::new("/proc").join(p).exists()) {
                // Left by a cut of power or a kill; no harm if it stays.
                remove(&entry.path());
            }
        }
        let mut hidden = OsString::from(".");
        hidden.push(name);
        let number = STAGED.fetch_add(1, Ordering::Relaxed);
        hidden.push(format!(".{}.{number}.part", std::process::id()));
        Ok(Staged { path: folder.join(hidden), folder: folder.to_path_buf() })
    }

    /// The hidden file or folder, which the caller makes.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that it stands in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Renames it, which its writer has fsynced, to `out` and makes that durable.
    pub fn put(self, out: &Path) -> Result<()> {
        std::fs::rename(&self.path, out).map_err(|e| Error::io(out, e))?;
        sync_folder(&self.folder).map_err(|e| Error::io(&self.folder, e))
    }
}

fn remove(path: &Path) {
    let _ = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Not there where it was renamed or never written.
        remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_files_of_the_dead_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("m.base");
        // Process numbers end far below this on Linux.
        let stale = dir.path().join(".m.base.4294967290.7.part");
        let alive = dir.path().join(format!(".m.base.{}.0.part", 1));
        for path in [&stale, &alive] {
            std::fs::write(path, "x").unwrap();
        }
        let staged = Staged::beside(&out).unwrap();
        assert!(!stale.exists() && alive.exists());
        std::fs::write(&staged.path, "new").unwrap();
        let path = staged.path.clone();
        drop(staged);
        assert!(!path.exists() && !out.exists());
    }
}
