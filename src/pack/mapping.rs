//! A read-only mapping of a file that nobody may be writing, and what the kernel is told about the
//! memory beside it.
//!
//! A mapped file that is truncated gives SIGBUS on access, and one that is rewritten changes under
//! the reader. So bases are replaced by rename only, and at open a read lease (`F_SETLEASE`) is
//! taken where the system grants one: it is refused while anybody has the file open for writing,
//! and it makes later writers wait (`/proc/sys/fs/lease-break-time`, 45 s), which [`Mapping::check`]
//! reports. Where none is granted and others may write the file, it is copied into memory instead.

#[cfg_attr(not(feature = "cli"), allow(dead_code))]
mod cut;
#[cfg_attr(
    not(all(
        target_os = "linux",
        any(
            target_arch = "x86_64",
            target_arch = "x86",
            target_arch = "aarch64",
            target_arch = "arm",
            target_arch = "riscv64"
        )
    )),
    path = "mapping/no_lease.rs"
)]
mod lease;

use crate::error::{Error, Result};
use crate::fs::{Opened, available_bytes, open_regular};
use cut::Watched;
use memmap2::{Advice, Mmap, MmapMut};
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[cfg(feature = "cli")]
pub(crate) use cut::say_cut_files;

/// A mapped file. Holding one proves: a regular file, without an open writer where the system can
/// tell, all of whose `bytes` were within it when it was opened.
#[derive(Debug)]
pub(super) struct Mapping {
    /// First, so that it is dropped before the map.
    _watched: Option<Watched>,
    map: Mmap,
    /// Kept open: closing it would give up the lease.
    file: File,
    leased: bool,
    /// `map` is a copy: what happens to the file is no matter.
    copied: bool,
    /// Length and time of last change (seconds, nanoseconds) at open.
    stamp: (u64, i64, i64),
}

impl Mapping {
    /// Maps the whole of `path`, which must not be empty; copies it where others may write it and
    /// no lease would tell.
    ///
    /// Errors: missing, empty or no regular file (bad input), open for writing elsewhere, or to be
    /// copied and too large for that (refused), what the system says (failed).
    pub(super) fn open(path: &Path) -> Result<Mapping> {
        let shown = path.display();
        let Opened { file, .. } = open_regular(path, isize::MAX as u64)?;
        let leased = match lease::take(&file) {
            Ok(granted) => granted,
            Err(lease::OpenWriter) => {
                return Err(Error::refused(format!(
                    "'{shown}' is open for writing by another process"
                ))
                .hint("a base is written beside and renamed, never in place; try again when the writer is done"));
            }
        };
        // The length counts only now that no writer can change it.
        let stamp = stamp(&file).map_err(|e| Error::io(path, e))?;
        let len = usize::try_from(stamp.0).ok().filter(|&n| n > 0 && n <= isize::MAX as usize);
        let Some(len) = len else {
            return Err(Error::bad_input(format!(
                "'{shown}' is empty or too large to map ({} bytes)",
                stamp.0
            )));
        };
        let meta = file.metadata().map_err(|e| Error::io(path, e))?;
        if !leased && others_may_write(&meta) {
            return Mapping::copied(path, file, len, stamp);
        }
        // SAFETY: the bytes must not change while mapped. `file` is a regular file; our own writers
        // replace it by rename, which leaves this inode alone; other writers are kept out by the
        // lease where it is granted, and by the file's mode. What remains (a writer of its owner's on a
        // system without leases, or one that has waited out the lease) is the hazard that the module's documentation states.
        let map = unsafe { memmap2::MmapOptions::new().len(len).map(&file) }
            .map_err(|e| Error::io(path, e))?;
        let watched = Watched::new(&map, path);
        Ok(Mapping { _watched: watched, map, file, leased, copied: false, stamp })
    }

    fn copied(path: &Path, file: File, len: usize, before: (u64, i64, i64)) -> Result<Mapping> {
        let shown = path.display();
        if let Some(free) = available_bytes().filter(|free| *free / 2 < len as u64) {
            return Err(Error::refused(format!(
                "others may write '{shown}' while it is in use, and its {len} bytes are too many to copy \
                 ({free} are free)"
            ))
            .hint("'chmod go-w' it, and have it owned by root or by the user that runs this"));
        }
        let io = |e| Error::io(path, e);
        let mut copy = MmapMut::map_anon(len).map_err(io)?;
        (&file).read_exact(&mut copy).map_err(io)?;
        if stamp(&file).map_err(io)? != before {
            return Err(Error::refused(format!("'{shown}' was changed while it was read")));
        }
        tracing::warn!(
            "'{shown}' is copied into memory, {} MB: others may write it ('chmod go-w' it)",
            len.div_ceil(1_000_000)
        );
        let map = copy.make_read_only().map_err(io)?;
        Ok(Mapping { _watched: None, map, file, leased: false, copied: true, stamp: before })
    }

    /// Lets writers in, as a lease that was waited out does.
    #[cfg(test)]
    fn give_up_lease(&self) {
        lease::give_up(&self.file);
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Whether a read lease was granted.
    pub(super) fn leased(&self) -> bool {
        self.leased
    }

    /// An error if somebody has opened the file for writing, or has written it, since it was mapped.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        if self.copied {
            return Ok(());
        }
        let now = stamp(&self.file).map_err(|e| Error::io(path, e))?;
        if now != self.stamp {
            return Err(Error::bad_input(format!(
                "'{}' was changed in place while in use",
                path.display()
            )));
        }
        if self.leased && !lease::held(&self.file) {
            return Err(Error::refused(format!(
                "'{}' is being opened for writing by another process",
                path.display()
            )));
        }
        Ok(())
    }

    /// Asks the kernel to read `len` bytes at `offset` ahead of use. Best effort.
    pub(super) fn will_need(&self, offset: usize, len: usize) {
        if offset.checked_add(len).is_some_and(|end| end <= self.map.len()) && len > 0 {
            // Only advice: a kernel without it reads on demand.
            let _ = self.map.advise_range(Advice::WillNeed, offset, len);
        }
    }

    /// Reads the whole file in and keeps it in memory for as long as this mapping lives.
    ///
    /// Errors: refused, where the limit on locked memory is smaller or the system says no.
    pub(super) fn lock(&self, path: &Path) -> Result<()> {
        self.map.lock().map_err(|e| {
            let (shown, len) = (path.display(), self.map.len());
            let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
            let limit = limit.map_or("not limited".into(), |n| format!("limited to {n} bytes"));
            Error::refused(format!(
                "'{shown}' can't be locked in memory: {len} bytes, locked memory is {limit} ({e})"
            ))
            .hint("raise the limit: 'ulimit -l', or LimitMEMLOCK= of a systemd unit")
        })
    }
}

/// Prepares the process's heap for runs, which free and take the same buffers each time. The program
/// `offshoot` calls it; others may, once and before their first run.
///
/// - The C library keeps what is freed, up to some tens of megabytes, instead of giving it back at
///   once: each page given back costs a page fault. A process that answers holds what its largest run
///   took: 12 MB unshared in all with EfficientNet-Lite0, 5 MB with MiniLM at 64 tokens. glibc's
///   threshold for giving back is twice the largest block that it has mapped and freed, up to 32 MiB
///   (mallopt(3), M_MMAP_THRESHOLD). Other C libraries keep or give back as they do.
/// - The kernel is asked for huge pages under the buffers of the first runs, where it has them
///   (`transparent_hugepage`): the first answer waits for one fault instead of 512 (5.9 ms became
///   3.7 ms with EfficientNet-Lite0). Memory that is never touched stays free.
pub fn prepare_heap() {
    const LARGEST: usize = (32 << 20) - (64 << 10);
    const ON_HUGE_PAGES: usize = 16 << 20;
    // Where there is no room for it, runs go on without.
    let reserved = |bytes: usize| {
        let mut block = Vec::<u8>::new();
        block.try_reserve_exact(bytes).ok().map(|()| std::hint::black_box(block))
    };
    drop(reserved(LARGEST));
    // Below the threshold now, so from the heap, whose end the block becomes.
    if let Some(mut block) = reserved(ON_HUGE_PAGES) {
        ask_for_huge_pages(block.spare_capacity_mut());
    }
}

/// Has all threads share one of glibc's heaps; by itself it makes eight for each processor, each of
/// which keeps what was freed in it, and [`release_heap`] cuts the end of the first one only. To be
/// called before there are threads.
#[cfg(feature = "daemon")]
pub(crate) fn share_heaps() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Of glibc's malloc.h.
        const M_ARENA_MAX: std::ffi::c_int = -8;
        // SAFETY: the name and the type of glibc's function, which takes any numbers.
        unsafe extern "C" {
            safe fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        // Where it refuses, there are more heaps.
        let _ = mallopt(M_ARENA_MAX, 1);
    }
}

/// Gives back to the system what the heap keeps of what was freed, megabytes after
/// [`prepare_heap`]. Where another C library than glibc is at work there is little to give.
pub(crate) fn release_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the name and the type of glibc's function, which any thread may call.
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // Whether there was something to give.
        let _ = malloc_trim(0);
    }
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(block: &mut [std::mem::MaybeUninit<u8>]) {
    use rustix::mm::{Advice, madvise};
    let start = block.as_mut_ptr();
    let skipped = start.align_offset(rustix::param::page_size());
    let Some(len) = block.len().checked_sub(skipped) else { return };
    // SAFETY: the range lies in the block, and the advice changes nothing that is stored there.
    // Kernels without huge pages refuse it.
    let _ = unsafe { madvise(start.wrapping_add(skipped).cast(), len, Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &mut [std::mem::MaybeUninit<u8>]) {}

/// Whether somebody else than root and this user may write to a file.
fn others_may_write(meta: &Metadata) -> bool {
    let own = [0, rustix::process::geteuid().as_raw()].contains(&meta.uid());
    !own || meta.mode() & 0o022 != 0
}

fn stamp(file: &File) -> std::io::Result<(u64, i64, i64)> {
    let meta = file.metadata()?;
    Ok((meta.len(), meta.mtime(), meta.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::fs::{Access, write_atomic_bytes};
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    #[cfg(all(target_os = "linux", target_env = "gnu", feature = "daemon"))]
    #[test]
    fn what_was_freed_goes_back_to_the_system() {
        // qemu need not pass it on.
        if crate::common::emulated() {
            return;
        }
        // In a process of its own: this one has its threads and heaps already.
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pack::mapping::tests::heap_child", "--nocapture"])
            .env("OFFSHOOT_TEST_HEAP", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("it went back"), "{said}");
    }

    /// Runs in a child started by the test above; alone it does nothing.
    #[cfg(all(target_os = "linux", target_env = "gnu", feature = "daemon"))]
    #[test]
    fn heap_child() {
        if std::env::var_os("OFFSHOOT_TEST_HEAP").is_none() {
            return;
        }
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
        };
        share_heaps();
        prepare_heap();
        let worker = std::thread::spawn(move || {
            // Less than what lets glibc cut the heap's end by itself: 64 MiB.
            drop((0..400).map(|_| vec![1u8; 100 << 10]).collect::<Vec<_>>());
            let kept = resident();
            release_heap();
            (kept, resident())
        });
        let (kept, left) = worker.join().unwrap();
        assert!(kept > 40_000 && left + 36_000 < kept, "{left} of {kept} kB are left");
        println!("it went back");
    }

    #[test]
    fn a_replaced_or_removed_file_stays_as_it_was_under_the_map() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic_bytes(&path, Access::Shared, &[1; 100_000]).unwrap();
        let old = Mapping::open(&path).unwrap();
        write_atomic_bytes(&path, Access::Shared, &[2; 50]).unwrap();
        let new = Mapping::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(old.bytes().len() == 100_000 && old.bytes().iter().all(|&b| b == 1));
        assert_eq!(new.bytes(), [2; 50]);
        assert!(old.check(&path).is_ok() && new.check(&path).is_ok());
    }

    #[test]
    fn an_open_writer_is_refused_and_a_later_one_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [1; 9000]).unwrap();
        let mapping = Mapping::open(&path).unwrap();
        if !mapping.leased() {
            println!("skipped: no leases on this file system");
            return;
        }
        // Without NONBLOCK this open would wait for the lease-break time.
        let late = OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(&path);
        assert_eq!(late.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!(mapping.check(&path).unwrap_err().kind(), ErrorKind::Refused);
        drop(mapping);
        let mut writer = OpenOptions::new().append(true).open(&path).unwrap();
        let e = Mapping::open(&path).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Refused);
        assert!(e.message().contains("open for writing"), "{e}");
        writer.write_all(b"x").unwrap();
        drop(writer);
        assert_eq!(Mapping::open(&path).unwrap().bytes().len(), 9001);
    }

    #[test]
    fn a_locked_file_is_locked_whole_or_the_limit_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![1; 300_000]).unwrap();
        let mapping = Mapping::open(&path).unwrap();
        match mapping.lock(&path) {
            Ok(()) => {
                let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
                let line = status.lines().find_map(|l| l.strip_prefix("VmLck:"));
                let kb: u64 = line.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
                assert!(kb >= 293, "{kb} kB are locked");
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Refused);
                assert!(e.message().contains("300000 bytes"), "{e}");
            }
        }
    }

    #[test]
    fn what_others_may_write_is_told_by_owner_and_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [7; 9000]).unwrap();
        for (mode, others) in [(0o644, false), (0o600, false), (0o664, true), (0o666, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let meta = std::fs::metadata(&path).unwrap();
            assert_eq!(others_may_write(&meta), others, "{mode:o}");
        }
    }

    #[test]
    fn a_copy_stays_whatever_happens_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, [7; 9000]).unwrap();
        let file = File::open(&path).unwrap();
        let now = stamp(&file).unwrap();
        let copy = Mapping::copied(&path, file, 9000, now).unwrap();
        std::fs::write(&path, [8; 10]).unwrap();
        assert!(copy.bytes() == [7; 9000] && copy.check(&path).is_ok() && !copy.leased());
        let file = File::open(&path).unwrap();
        let e = Mapping::copied(&path, file, 10, now).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Refused);
        let file = File::open(&path).unwrap();
        let e = Mapping::copied(&path, file, 1 << 50, now).unwrap_err();
        assert!(e.message().contains("too many to copy"), "{e}");
    }

    #[test]
    fn empty_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"").unwrap();
        let e = Mapping::open(&path).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::BadInput);
        assert!(e.message().contains("is empty"), "{e}");
    }
}
