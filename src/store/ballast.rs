//! Room that is kept for a full disk: a file that is given up so that something can be forgotten
//! there, and made anew when there is room.

use crate::error::Result;
use crate::fs::{Access, write_atomic};
use rustix::fs::FallocateFlags;
use std::io::Write;
use std::path::Path;

/// The file in the store's folder, and its bytes at the most.
const FILE: &str = "ballast";
const BYTES: u64 = 1 << 20;
/// What is left of a disk goes to it rather than to samples: all but this share of [`BYTES`].
const SPARE: u64 = BYTES / 16;
/// The least that is worth keeping.
const LEAST: u64 = BYTES / 2;

/// Gives the room up. Whether there was any.
pub(super) fn give_up(root: &Path) -> bool {
    let given = std::fs::remove_file(root.join(FILE)).is_ok();
    given && super::folder::sync(root).is_ok()
}

/// Makes the file if there is none and the disk has room.
pub(super) fn keep(root: &Path) -> Result<()> {
    let path = root.join(FILE);
    let bytes = free(root).saturating_sub(SPARE).min(BYTES);
    if path.exists() || bytes < LEAST {
        return Ok(());
    }
    write_atomic(&path, Access::Private, |to| {
        let kept = rustix::fs::fallocate(to.get_ref(), FallocateFlags::empty(), 0, bytes);
        match kept {
            Ok(()) => Ok(()),
            // Zeros where the file system can't set blocks aside.
            Err(_) => to.write_all(&vec![0; bytes as usize]),
        }
    })
}

fn free(root: &Path) -> u64 {
    rustix::fs::statvfs(root).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize))
}
