//! A file without a name, for what memory has no room for.

use super::atomic::{nameless, write_error};
use super::fault::{self, Op};
use crate::error::{Error, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Written and read by this process alone; its bytes go when it is dropped, or the process ends in any
/// way.
pub struct Scratch {
    /// What errors name: the file that it lies beside.
    beside: PathBuf,
    write: File,
    read: File,
    len: u64,
}

impl Scratch {
    /// An empty one in the folder of `path`.
    ///
    /// # Errors
    /// As of [`write_atomic`](super::write_atomic).
    pub fn beside(path: &Path) -> Result<Scratch> {
        let (write, read) = nameless(path)?;
        Ok(Scratch { beside: path.to_path_buf(), write, read, len: 0 })
    }

    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Writes `parts` behind the rest; where they begin.
    ///
    /// # Errors
    /// Failed: a full disk or other I/O failures; what was there can still be read.
    pub fn append(&mut self, parts: &[&[u8]]) -> Result<u64> {
        let failed = |e| write_error(&self.beside, e);
        fault::point(Op::Append, &self.beside).map_err(failed)?;
        let start = self.len;
        let mut at = start;
        for part in parts {
            self.write.write_all_at(part, at).map_err(failed)?;
            at += part.len() as u64;
        }
        self.len = at;
        Ok(start)
    }

    /// Fills `into` from byte `at`.
    ///
    /// # Errors
    /// Failed: I/O failures; fewer bytes.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.read.read_exact_at(into, at).map_err(|e| Error::io(&self.beside, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn it_has_no_name_and_gives_back_what_it_got() {
        let dir = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::beside(&dir.path().join("x.adapter")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(scratch.append(&[b"one", b"", b"two"]).unwrap(), 0);
        assert_eq!(scratch.append(&[b"three"]).unwrap(), 6);
        let mut bytes = [0; 5];
        scratch.read(6, &mut bytes).unwrap();
        assert_eq!((&bytes, scratch.bytes()), (b"three", 11));
        assert!(scratch.read(7, &mut bytes).is_err());
        assert!(Scratch::beside(&dir.path().join("no/x")).is_err());
    }

    #[test]
    fn a_full_disk_is_said_and_what_was_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut scratch = Scratch::beside(&dir.path().join("x.adapter")).unwrap();
        scratch.append(&[b"one"]).unwrap();
        let full = |_, _: &Path| Err(io::ErrorKind::StorageFull.into());
        let e = fault::with(full, || scratch.append(&[b"two"])).unwrap_err();
        assert!(e.message().starts_with("no space left on device while writing '"), "{e}");
        let mut bytes = [0; 3];
        scratch.read(0, &mut bytes).unwrap();
        assert_eq!((&bytes, scratch.bytes()), (b"one", 3));
    }
}
