//! Opening files that strangers may have put there: regular files only, never blocking, sizes
//! capped.

use crate::error::{Error, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A regular file opened for reading. Holding one proves that `len` was within the cap asked for.
#[derive(Debug)]
pub struct Opened {
    /// The open file, at its start.
    pub file: File,
    /// Its length in bytes when it was opened.
    pub len: u64,
}

/// Opens a regular file of at most `max_len` bytes for reading. FIFOs, devices, sockets and
/// folders are refused without blocking; symbolic links are followed.
///
/// Errors: missing, too large or no regular file (bad input), else what the system says (failed).
pub fn open_regular(path: &Path, max_len: u64) -> Result<Opened> {
    open_with(path, max_len, OFlags::empty())
}

/// As [`open_regular`], and refuses a symbolic link as the last part of `path`.
pub fn open_regular_no_link(path: &Path, max_len: u64) -> Result<Opened> {
    open_with(path, max_len, OFlags::NOFOLLOW)
}

/// Reads a whole regular file of at most `max_len` bytes. Errors as [`open_regular`].
pub fn read_limited(path: &Path, max_len: u64) -> Result<Vec<u8>> {
    let opened = open_regular(path, max_len)?;
    let mut bytes = Vec::new();
    usize::try_from(opened.len).ok().and_then(|len| bytes.try_reserve_exact(len).ok()).ok_or_else(
        || {
            Error::failed(format!(
                "no memory to read the {} bytes of '{}'",
                opened.len,
                path.display()
            ))
        },
    )?;
    // The file may grow while it is read.
    let read = opened.file.take(opened.len).read_to_end(&mut bytes);
    read.map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 != opened.len {
        return Err(Error::bad_input(format!("'{}' was cut while it was read", path.display())));
    }
    Ok(bytes)
}

/// Reads a whole UTF-8 text file of at most `max_len` bytes; a leading byte-order mark is dropped.
/// Errors as [`open_regular`], and bad input naming the first byte that is not UTF-8.
pub fn read_text(path: &Path, max_len: u64) -> Result<String> {
    let bytes = read_limited(path, max_len)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::bad_input(format!(
            "'{}' is not UTF-8 text (byte {})",
            path.display(),
            e.utf8_error().valid_up_to()
        ))
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

fn is(error: &std::io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn open_with(path: &Path, max_len: u64, extra: OFlags) -> Result<Opened> {
    let shown = path.display();
    // Without NONBLOCK the open of a FIFO waits for a writer for ever.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | extra;
    let mut options = File::options();
    options.read(true).custom_flags(flags.bits() as i32);
    // Tried again where it is interrupted.
    let file = match options.open(path) {
        Ok(file) => file,
        Err(e) => {
            return Err(match e.kind() {
                ErrorKind::NotFound => Error::bad_input(format!("no such file '{shown}'")),
                ErrorKind::NotADirectory => {
                    Error::bad_input(format!("'{shown}' goes through something that is no folder"))
                }
                _ if is(&e, Errno::LOOP) => {
                    Error::bad_input(format!("'{shown}' is a symbolic link"))
                }
                ErrorKind::WouldBlock => {
                    Error::refused(format!("'{shown}' is open for writing by another process"))
                }
                _ if is(&e, Errno::NXIO) => {
                    Error::bad_input(format!("'{shown}' is not a regular file (a socket)"))
                }
                _ => Error::io(path, e),
            });
        }
    };
    let meta = file.metadata().map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        let kind = if meta.is_dir() { "a folder" } else { "a device or pipe" };
        return Err(Error::bad_input(format!("'{shown}' is not a regular file ({kind})")));
    }
    if meta.len() > max_len {
        return Err(Error::bad_input(format!(
            "'{shown}' has {} bytes, at most {max_len} are read",
            meta.len()
        )));
    }
    Ok(Opened { file, len: meta.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let start = Instant::now();
        for path in [&fifo, &socket, &link, &dir.path().to_path_buf()] {
            let e = open_regular(path, 10).unwrap_err();
            assert!(e.message().contains("is not a regular file"), "{e}");
            assert_eq!(e.kind(), crate::error::ErrorKind::BadInput);
        }
        assert!(start.elapsed() < Duration::from_secs(1));
        let e = open_regular(&dir.path().join("none"), 10).unwrap_err();
        assert!(e.message().starts_with("no such file"), "{e}");
    }

    #[test]
    fn sizes_are_capped_and_links_refused_where_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"\xef\xbb\xbftext").unwrap();
        assert_eq!(read_limited(&path, 7).unwrap().len(), 7);
        assert_eq!(read_text(&path, 7).unwrap(), "text");
        assert!(read_limited(&path, 6).unwrap_err().message().contains("at most 6"));
        std::fs::write(&path, b"ab\xff").unwrap();
        assert!(read_text(&path, 9).unwrap_err().message().contains("byte 2"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(open_regular(&link, 9).is_ok());
        assert!(open_regular_no_link(&link, 9).unwrap_err().message().contains("symbolic link"));
    }
}
