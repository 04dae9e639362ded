//! Atomic writes: a temporary file beside the target, fsync, rename, fsync of the folder.
//!
//! An existing file is never truncated or rewritten, so mappings of it stay valid. A reader sees
//! the old bytes or the new ones, also after a power cut.

use super::fault::{self, Op};
use crate::error::{Cause, Error, Result};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Who may open a newly written file (before the process's umask).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// 0644: everybody reads, the owner writes.
    Shared,
    /// 0600: the owner alone. For samples and what was learned from them.
    Private,
    /// 0444: nobody writes. For files that a store owns.
    ReadOnly,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Access::Shared => 0o644,
            Access::Private => 0o600,
            Access::ReadOnly => 0o444,
        }
    }
}

/// Distinguishes temporary files of one process.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Longest file name that Linux file systems take, in bytes.
const NAME_MAX: usize = 255;

/// Writes `path` as a whole or not at all.
///
/// `fill` gets a buffered writer on a new hidden file (`.NAME.PID.N.tmp`) in the same folder. Then
/// the file is fsynced, renamed to `path`, and the folder fsynced. On any error the temporary file
/// is removed; a file that was at `path` keeps its bytes, unless only the last step (fsync of the
/// folder) failed. A symbolic link at `path` is replaced, not followed.
///
/// `fill` may fail with an [`Error`] of ours by `io::Error::other(error)`: it comes out as it is.
///
/// Errors: something at `path` that is no regular file (usage); the folder missing or closed to
/// us, a full disk or other I/O failures (failed).
pub fn write_atomic<T>(
    path: &Path,
    access: Access,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> Result<T> {
    let name = path.file_name().ok_or_else(|| {
        Error::usage(format!("'{}' does not name a file to write", path.display()))
    })?;
    // A rename would put a plain file in the place of a device such as /dev/null.
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            return Err(Error::usage(format!(
                "'{}' exists and is not a regular file",
                path.display()
            )));
        }
        _ => {}
    }
    let folder = folder_of(path);
    // Links such as /dev/stdout may lead to a plain file, but must not be replaced by one.
    let real = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
    if ["/dev", "/proc", "/sys"]
        .iter()
        .any(|system| real.starts_with(system) && !real.starts_with("/dev/shm"))
    {
        return Err(Error::usage(format!("'{}' is not a place for files", path.display())));
    }
    let step = |op, at: &Path| fault::point(op, at).map_err(|e| write_error(path, e));
    step(Op::Create, path)?;
    let (mut temp, file) = Temp::create(folder, name, access).map_err(|e| write_error(path, e))?;
    let mut writer = BufWriter::with_capacity(1 << 18, file);
    let value = fill(&mut writer).map_err(|e| write_error(path, e))?;
    let file = writer.into_inner().map_err(|e| write_error(path, e.into_error()))?;
    step(Op::Sync, &temp.path)?;
    file.sync_all().map_err(|e| write_error(path, e))?;
    // No descriptor open for writing may outlive the rename: a reader would take it for a writer
    // and be refused its lease.
    drop(file);
    step(Op::Rename, path)?;
    std::fs::rename(&temp.path, path).map_err(|e| write_error(path, e))?;
    temp.renamed = true;
    sync_folder(folder).map_err(|e| write_error(path, e))?;
    Ok(value)
}

/// A new file in the folder of `path` that has lost its name already: descriptors to write and to read
/// it.
pub(super) fn nameless(path: &Path) -> Result<(File, File)> {
    let failed = |e| write_error(path, e);
    fault::point(Op::Create, path).map_err(failed)?;
    let name = path.file_name().unwrap_or(OsStr::new("scratch"));
    let (mut temp, file) = Temp::create(folder_of(path), name, Access::Private).map_err(failed)?;
    let read = temp.lock.take().map_or_else(|| File::open(&temp.path), Ok).map_err(failed)?;
    Ok((file, read))
}

/// Writes `bytes` to `path` as [`write_atomic`] does.
pub fn write_atomic_bytes(path: &Path, access: Access, bytes: &[u8]) -> Result<()> {
    write_atomic(path, access, |w| w.write_all(bytes))
}

/// Copies what is left of `from`. The kernel does it, and may be interrupted between two parts.
pub fn copy_all(mut from: &File, to: &mut impl Write) -> io::Result<()> {
    loop {
        match io::copy(&mut from, to) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// Makes renames, new names and removals in `folder` durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    fault::point(Op::SyncFolder, folder)?;
    match File::open(folder)?.sync_all() {
        // Some network and FUSE file systems have no fsync of folders.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => Ok(()),
        other => other,
    }
}

/// Removes temporary files of [`write_atomic`] in `folder` whose writer is gone (power cut, kill).
/// Those still being written are left alone. Returns how many were removed.
pub fn remove_stale_temps(folder: &Path) -> Result<usize> {
    sweep(folder, |_| true)
}

/// As [`remove_stale_temps`], those alone that were to become the file `path`: for folders that are
/// somebody else's too. One whose folder is missing has none.
pub fn remove_stale_temps_of(path: &Path) -> Result<usize> {
    let Some(name) = path.file_name() else { return Ok(0) };
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Ok(0);
    }
    sweep(folder, |temp| target_of(temp).is_some_and(|target| target == name.as_bytes()))
}

fn sweep(folder: &Path, ours: impl Fn(&OsStr) -> bool) -> Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let entry = entry.map_err(|e| Error::io(folder, e))?;
        let name = entry.file_name();
        if !is_temp_name(&name) || !ours(&name) {
            continue;
        }
        let path = entry.path();
        // Hold the lock over the removal: see `Temp::create`.
        let Ok(opened) = super::open_regular_no_link(&path, u64::MAX) else { continue };
        if opened.file.try_lock().is_ok() && std::fs::remove_file(&path).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

/// An error while writing `path`, in plain words for a full disk.
pub(super) fn write_error(path: &Path, error: io::Error) -> Error {
    let error = match error.downcast::<Error>() {
        Ok(ours) => return ours,
        Err(error) => error,
    };
    let path = path.display();
    match error.kind() {
        ErrorKind::StorageFull => {
            Error::failed(format!("no space left on device while writing '{path}'"))
                .because(Cause::Full)
        }
        ErrorKind::QuotaExceeded => {
            Error::failed(format!("disk quota exceeded while writing '{path}'"))
                .because(Cause::Full)
        }
        ErrorKind::ReadOnlyFilesystem => {
            Error::failed(format!("read-only file system while writing '{path}'"))
                .because(Cause::ReadOnly)
        }
        ErrorKind::NotFound => Error::failed(format!("folder of '{path}' does not exist")),
        ErrorKind::PermissionDenied => {
            Error::failed(format!("permission denied while writing '{path}'"))
        }
        _ => Error::failed(format!("{error} while writing '{path}'")),
    }
}

/// The folder that holds `path`.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A temporary file, removed when dropped before its rename.
struct Temp {
    path: PathBuf,
    /// Read-only, holding an exclusive lock that says the writer lives.
    lock: Option<File>,
    renamed: bool,
}

impl Temp {
    /// A new empty file in `folder`, and a descriptor to write it.
    fn create(folder: &Path, name: &OsStr, access: Access) -> io::Result<(Temp, File)> {
        loop {
            let path = folder.join(temp_name(name));
            let opened =
                OpenOptions::new().write(true).create_new(true).mode(access.mode()).open(&path);
            let file = match opened {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                other => other?,
            };
            let mut temp = Temp { path, lock: None, renamed: false };
            let lock = match File::open(&temp.path) {
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                other => other?,
            };
            let locked = lock.try_lock();
            temp.lock = Some(lock);
            // `remove_stale_temps` may have come between creation and lock; then it holds the lock
            // or has already unlinked the file.
            let lost =
                matches!(locked, Err(TryLockError::WouldBlock)) || file.metadata()?.nlink() == 0;
            if !lost {
                return Ok((temp, file));
            }
        }
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.renamed {
            // The file may be gone already; the next clean-up takes what stays.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// `.NAME.PID.N.tmp`, NAME cut where the whole would be too long.
fn temp_name(name: &OsStr) -> OsString {
    let tail = format!(".{}.{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let room = NAME_MAX.saturating_sub(tail.len() + 1);
    let mut bytes = vec![b'.'];
    bytes.extend(name.as_bytes().iter().take(room));
    bytes.extend(tail.as_bytes());
    OsString::from_vec(bytes)
}

/// Whether `name` has the form of [`temp_name`].
fn is_temp_name(name: &OsStr) -> bool {
    target_of(name).is_some()
}

/// NAME of a [`temp_name`].
fn target_of(name: &OsStr) -> Option<&[u8]> {
    let rest = name.as_bytes().strip_prefix(b".")?.strip_suffix(b".tmp")?;
    let digits = |part: Option<&[u8]>| {
        part.is_some_and(|p| !p.is_empty() && p.iter().all(u8::is_ascii_digit))
    };
    let mut parts = rest.rsplitn(3, |&b| b == b'.');
    let numbered = digits(parts.next()) && digits(parts.next());
    parts.next().filter(|name| numbered && !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind as Kind;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn writes_replace_and_set_access() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_atomic_bytes(&path, Access::Shared, b"one").unwrap();
        write_atomic_bytes(&path, Access::Private, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        write_atomic_bytes(&path, Access::ReadOnly, b"three").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o222, 0);
        assert_eq!(entries(dir.path()), ["a.bin"]);
    }

    #[test]
    fn a_failure_inside_leaves_the_old_file_and_no_temp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_atomic_bytes(&path, Access::Shared, b"old").unwrap();
        let e = write_atomic(&path, Access::Shared, |w| {
            w.write_all(&[1; 1 << 20])?;
            Err::<(), _>(io::Error::other(Error::mismatch("ours")))
        })
        .unwrap_err();
        assert_eq!((e.kind(), e.message()), (Kind::Mismatch, "ours"));
        let panicked = std::panic::catch_unwind(|| {
            write_atomic(&path, Access::Shared, |_| -> io::Result<()> { panic!("inside") })
        });
        assert!(panicked.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(dir.path()), ["a.bin"]);
    }

    #[test]
    fn devices_folders_and_missing_folders_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in [Path::new("/dev/null"), dir.path(), Path::new("/dev/stdout")] {
            let e = write_atomic_bytes(path, Access::Shared, b"x").unwrap_err();
            assert_eq!(e.kind(), Kind::Usage, "{e}");
        }
        let e = write_atomic_bytes(&dir.path().join("no/x"), Access::Shared, b"x").unwrap_err();
        assert!(e.message().contains("does not exist"), "{e}");
        assert!(write_atomic_bytes(Path::new(".."), Access::Shared, b"x").is_err());
    }

    #[test]
    fn long_names_fit_and_temp_names_are_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n".repeat(NAME_MAX));
        write_atomic_bytes(&path, Access::Shared, b"x").unwrap();
        assert!(is_temp_name(&temp_name(OsStr::new("model.base"))));
        for other in
            ["a.tmp", ".a.tmp", ".a.1.tmp", ".a.x.1.tmp", ".1.2.tmp", ".a.1.2", "a.1.2.tmp"]
        {
            assert!(!is_temp_name(OsStr::new(other)), "{other}");
        }
    }

    #[test]
    fn stale_temps_go_and_live_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        std::fs::write(dir.path().join(".a.bin.4000000.0.tmp"), b"left by a kill").unwrap();
        std::fs::write(dir.path().join(".hidden.tmp"), b"not ours").unwrap();
        std::fs::write(dir.path().join(".b.bin.4000000.0.tmp"), b"left by another's kill").unwrap();
        assert_eq!(remove_stale_temps_of(&dir.path().join("b.bin")).unwrap(), 1);
        assert_eq!(remove_stale_temps_of(&dir.path().join("no/b.bin")).unwrap(), 0);
        write_atomic(&path, Access::Shared, |w| {
            assert_eq!(remove_stale_temps(dir.path()).unwrap(), 1);
            w.write_all(b"whole")
        })
        .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(entries(dir.path()), [".hidden.tmp", "a.bin"]);
    }

    #[test]
    fn writers_and_cleaners_together_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for t in 0..3 {
                let dir = dir.path();
                scope.spawn(move || {
                    for i in 0..60u32 {
                        let path = dir.join(format!("f{t}"));
                        write_atomic_bytes(&path, Access::Shared, &i.to_le_bytes()).unwrap();
                        assert_eq!(std::fs::read(&path).unwrap(), i.to_le_bytes());
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..300 {
                    remove_stale_temps(dir.path()).unwrap();
                }
            });
        });
        assert_eq!(entries(dir.path()), ["f0", "f1", "f2"]);
    }

    #[test]
    fn a_full_device_is_said_in_plain_words() {
        let error = OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .and_then(|mut f| f.write_all(b"x"))
            .unwrap_err();
        let e = write_error(Path::new("x.base"), error);
        assert_eq!(e.message(), "no space left on device while writing 'x.base'");
        assert_eq!(e.kind(), Kind::Failed);
    }

    /// Runs in a child started by the two tests below; alone it does nothing.
    #[test]
    fn full_disk_child() {
        let Some(folder) = std::env::var_os("OFFSHOOT_TEST_FULL_DISK") else { return };
        let path = Path::new(&folder).join("a.bin");
        let e = write_atomic_bytes(&path, Access::Shared, &vec![7; 4 << 20]).unwrap_err();
        println!("child says: {e}");
    }

    /// Runs `full_disk_child` after `setup` in a shell, in `folder`.
    fn full_disk(folder: &Path, setup: &str) -> String {
        let out = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!(
                "{setup}\nexec \"$0\" --exact fs::atomic::tests::full_disk_child --nocapture"
            ))
            .arg(std::env::current_exe().unwrap())
            .env("OFFSHOOT_TEST_FULL_DISK", folder)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    #[test]
    fn a_write_cut_by_a_size_limit_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        write_atomic_bytes(&path, Access::Shared, b"old").unwrap();
        // 2048 blocks of 512 bytes; an ignored SIGXFSZ is inherited and makes write fail instead.
        let said = full_disk(dir.path(), "trap '' XFSZ; ulimit -f 2048");
        assert!(said.contains("while writing"), "{said}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(dir.path()), ["a.bin"]);
    }

    #[test]
    fn a_full_file_system_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("unshare")
            .args(["-m", "/bin/sh", "-c"])
            .arg(
                "mount -t tmpfs -o size=1m none \"$OFFSHOOT_TEST_FULL_DISK\" || exit 77
                 printf old > \"$OFFSHOOT_TEST_FULL_DISK/a.bin\"
                 \"$0\" --exact fs::atomic::tests::full_disk_child --nocapture || exit 1
                 cat \"$OFFSHOOT_TEST_FULL_DISK/a.bin\"; ls -A \"$OFFSHOOT_TEST_FULL_DISK\"",
            )
            .arg(std::env::current_exe().unwrap())
            .env("OFFSHOOT_TEST_FULL_DISK", dir.path())
            .output();
        let out = match mounted {
            Ok(out) if out.status.code() != Some(77) && !out.stdout.is_empty() => out,
            _ => {
                println!("skipped: a small tmpfs can't be mounted here (needs root)");
                return;
            }
        };
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{said}");
        assert!(said.contains("child says: no space left on device while writing '"), "{said}");
        assert!(said.ends_with("olda.bin\n"), "{said}");
    }
}
