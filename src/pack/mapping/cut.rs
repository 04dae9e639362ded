//! What is said where a file is cut short under its mapping: to touch what is gone is a bus error.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Mappings that are known at once; of further ones nothing is said.
const PLACES: usize = 64;
/// `ErrorKind::BadInput`'s: a handler of signals can't ask for it.
const EXIT_CODE: c_int = 3;

/// A mapping that the handler knows.
struct Place {
    /// 0: free. 1: about to be taken.
    start: AtomicUsize,
    end: AtomicUsize,
    line: AtomicPtr<u8>,
    line_len: AtomicUsize,
}

static KNOWN: [Place; PLACES] = [const {
    Place {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        line: AtomicPtr::new(std::ptr::null_mut()),
        line_len: AtomicUsize::new(0),
    }
}; PLACES];

/// What was done about bus errors before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Says which mapping a bus error is about, while this lives.
#[derive(Debug)]
pub(super) struct Watched {
    place: usize,
    /// Read by the handler, while `place` is taken.
    _line: Box<[u8]>,
}

impl Watched {
    /// For the mapping `bytes` of the file `path`; `None` where too many are known.
    pub fn new(bytes: &[u8], path: &Path) -> Option<Watched> {
        let shown: String = path
            .display()
            .to_string()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let line = format!(
            "offshoot: '{shown}' was cut short while it was in use: a base is written beside and renamed, \
             never in place\n"
        );
        let line = line.into_bytes().into_boxed_slice();
        let free =
            |p: &Place| p.start.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let at = KNOWN.iter().position(free)?;
        let place = &KNOWN[at];
        let start = bytes.as_ptr().addr();
        place.end.store(start + bytes.len(), Ordering::Relaxed);
        place.line.store(line.as_ptr().cast_mut(), Ordering::Relaxed);
        place.line_len.store(line.len(), Ordering::Relaxed);
        place.start.store(start, Ordering::Release);
        Some(Watched { place: at, _line: line })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        KNOWN[self.place].start.store(0, Ordering::Release);
    }
}

/// From now on a bus error in a mapped base ends the process with one line and the exit code of a bad
/// input file. Others do what they did before. For programs; a library leaves its user's signals alone.
pub fn say_cut_files() {
    // SAFETY: an all-zero sigaction is one, which sigaction(2) then fills in. The handler does only what
    // signal-safety(7) allows. Where the system refuses, bus errors stay what they were.
    unsafe {
        let mut before = MaybeUninit::<libc::sigaction>::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr()) != 0
            || BEFORE.set(before.assume_init()).is_err()
        {
            return;
        }
        let mut ours = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        ours.sa_sigaction = on_bus_error as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut());
    }
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives a whole siginfo_t, whose address a bus error sets. write(2), _exit(2),
    // sigaction(2) and raise(3) may be called here. A line that is read belongs to a mapping that is in
    // use by this very thread, so that neither has gone.
    unsafe {
        let at = (*info).si_addr().addr();
        for place in &KNOWN {
            let start = place.start.load(Ordering::Acquire);
            if start > 1 && at >= start && at < place.end.load(Ordering::Relaxed) {
                let line = place.line.load(Ordering::Relaxed).cast::<c_void>();
                libc::write(2, line, place.line_len.load(Ordering::Relaxed));
                libc::_exit(EXIT_CODE);
            }
        }
        if let Some(before) = BEFORE.get() {
            libc::sigaction(libc::SIGBUS, before, std::ptr::null_mut());
        }
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Mapping;
    use super::*;
    use crate::error::ErrorKind;
    use std::process::Command;

    fn child(what: &str, folder: &Path) -> std::process::Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pack::mapping::cut::tests::cut_child", "--nocapture"])
            .env("OFFSHOOT_TEST_CUT", what)
            .env("OFFSHOOT_TEST_CUT_FILE", folder.join("model.base"))
            .output()
            .unwrap()
    }

    /// It ended by a signal, without a word.
    #[test]
    fn a_file_that_is_cut_short_ends_the_program_with_a_line() {
        if crate::common::emulated() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let out = child("mapped", folder.path());
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(ErrorKind::BadInput.exit_code().into()), "{said}");
        assert!(said.contains("model.base' was cut short while it was in use"), "{said}");
        let out = child("other", folder.path());
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code().is_none() && !said.contains("cut short"), "{said}");
    }

    /// Runs in a child started by the test above; alone it does nothing.
    #[test]
    fn cut_child() {
        let Some(what) = std::env::var_os("OFFSHOOT_TEST_CUT") else { return };
        let path = std::env::var_os("OFFSHOOT_TEST_CUT_FILE").unwrap();
        let path = Path::new(&path);
        say_cut_files();
        std::fs::write(path, vec![1; 1 << 20]).unwrap();
        if what == "mapped" {
            let mapping = Mapping::open(path).unwrap();
            mapping.give_up_lease();
            std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
            println!("{}", std::hint::black_box(mapping.bytes())[1 << 19]);
        } else {
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            // SAFETY: what is read of it is gone, which is what this process is for.
            let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
            file.set_len(0).unwrap();
            println!("{}", std::hint::black_box(&map[..])[1 << 19]);
        }
    }
}
