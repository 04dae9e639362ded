//! Advisory locks between processes.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A held lock; released when dropped or when the process ends, however it ends.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock `path` for this process alone, creating the (empty) file if it is missing.
    /// Never waits: a lock held elsewhere is an error of kind refused.
    pub fn exclusive(path: &Path) -> Result<FileLock> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| Error::io(path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(FileLock { _file: file }),
            Err(TryLockError::WouldBlock) => {
                Err(Error::refused(format!("'{}' is locked by another process", path.display()))
                    .hint("wait until the other command has ended"))
            }
            Err(TryLockError::Error(e)) => Err(Error::io(path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_until_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::exclusive(&path).unwrap();
        let e = FileLock::exclusive(&path).unwrap_err();
        assert_eq!(e.kind(), crate::error::ErrorKind::Refused);
        drop(held);
        FileLock::exclusive(&path).unwrap();
    }
}
