//! Read leases, on the systems whose constants are known.

use rustix::io::Errno;
use rustix::process::Signal;
use std::ffi::c_int;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

// From Linux's include/uapi/asm-generic/fcntl.h and include/uapi/linux/fcntl.h.
const F_SETSIG: c_int = 10;
const F_SETLEASE: c_int = 1024;
const F_GETLEASE: c_int = 1025;
const F_RDLCK: c_int = 0;

// A process that forks while it writes the file leaves a copy of the descriptor in its child,
// until that calls exec: a writer that is gone at once.
const RETRIES: usize = 20;
const RETRY_AFTER: Duration = Duration::from_millis(5);

unsafe extern "C" {
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
}

/// Somebody has the file open for writing.
pub(super) struct OpenWriter;

/// Takes a read lease; `false` where the system grants none (another owner's file, a file
/// system without leases).
pub(super) fn take(file: &File) -> Result<bool, OpenWriter> {
    // The signal of a broken lease is SIGIO by default, which ends the process; SIGURG is
    // ignored by default.
    if command(file, F_SETSIG, Signal::URG.as_raw()).is_err() {
        return Ok(false);
    }
    for _ in 0..RETRIES {
        match command(file, F_SETLEASE, F_RDLCK) {
            Ok(_) => return Ok(true),
            Err(Some(Errno::AGAIN | Errno::BUSY)) => std::thread::sleep(RETRY_AFTER),
            Err(_) => return Ok(false),
        }
    }
    Err(OpenWriter)
}

#[cfg(test)]
pub(super) fn give_up(file: &File) {
    const F_UNLCK: c_int = 2;
    let _ = command(file, F_SETLEASE, F_UNLCK);
}

/// Whether the lease stands and no writer waits for it.
pub(super) fn held(file: &File) -> bool {
    command(file, F_GETLEASE, 0) == Ok(F_RDLCK)
}

fn command(file: &File, command: c_int, argument: c_int) -> Result<c_int, Option<Errno>> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the three commands used
    // take an int (or ignore it) and touch no memory of ours.
    let result = unsafe { fcntl(file.as_raw_fd(), command, argument) };
    if result >= 0 {
        return Ok(result);
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()))
}
