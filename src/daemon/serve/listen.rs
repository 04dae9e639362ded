//! The sockets: handed over by systemd, or made here.

use crate::daemon::config::ServeConfig;
use crate::error::{Error, Result};
use rustix::fs::{Gid, Mode};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener};

/// What the daemon listens on. Dropping it removes a socket's file that was made here.
pub struct Listeners {
    /// The Unix socket, until it is taken.
    pub unix: Option<UnixListener>,
    /// The loopback port, until it is taken.
    pub tcp: Option<TcpListener>,
    /// The socket's file, where it was made here: removed at the end.
    made: Option<Made>,
}

struct Made {
    path: PathBuf,
    inode: u64,
}

impl Listeners {
    /// Takes systemd's socket (`LISTEN_FDS`), or makes the configured one; and the TCP port.
    ///
    /// # Errors
    /// Another daemon answers on the socket (refused), its path is no socket (bad input), the port
    /// is taken, no such group (failed).
    pub fn open(config: &ServeConfig) -> Result<Listeners> {
        let mut handed = listenfd::ListenFd::from_env();
        let (mut unix, mut tcp) = (None, None);
        for i in 0..handed.len() {
            let twice = || Error::usage("systemd hands over two sockets of one kind");
            if let Ok(Some(listener)) = handed.take_unix_listener(i) {
                if unix.replace(listener).is_some() {
                    return Err(twice());
                }
            } else if let Ok(Some(listener)) = handed.take_tcp_listener(i) {
                let local = listener.local_addr().map_err(|e| Error::io("LISTEN_FDS", e))?;
                if config.tcp.is_none() {
                    return Err(Error::usage(format!(
                        "systemd hands over the port {local}, but serve.tcp is not set"
                    ))
                    .hint("set serve.tcp, or remove it from the socket unit"));
                }
                if tcp.replace(listener).is_some() {
                    return Err(twice());
                }
            } else {
                return Err(Error::usage("systemd hands over a socket of an unknown kind"));
            }
        }
        let (unix, made) = match unix {
            Some(listener) => (listener, None),
            None => {
                let (listener, made) = bind_unix(&config.socket, config.socket_group.as_deref())?;
                (listener, Some(made))
            }
        };
        let tcp = match (tcp, config.tcp) {
            (Some(listener), _) => Some(listener),
            (None, Some(address)) => Some(
                std::net::TcpListener::bind(address)
                    .map_err(|e| Error::failed(format!("port {address}: {e}")))?,
            ),
            (None, None) => None,
        };
        let wrong = |e| Error::io(&config.socket, e);
        unix.set_nonblocking(true).map_err(wrong)?;
        let tcp = match tcp {
            Some(listener) => {
                listener.set_nonblocking(true).map_err(wrong)?;
                Some(TcpListener::from_std(listener).map_err(wrong)?)
            }
            None => None,
        };
        let unix = Some(UnixListener::from_std(unix).map_err(wrong)?);
        Ok(Listeners { unix, tcp, made })
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // Not another daemon's, that was made at the same path since.
        if let Some(made) = &self.made
            && std::fs::symlink_metadata(&made.path).is_ok_and(|m| m.ino() == made.inode)
        {
            let _ = std::fs::remove_file(&made.path);
        }
    }
}

fn bind_unix(path: &Path, group: Option<&str>) -> Result<(std::os::unix::net::UnixListener, Made)> {
    let wrong = |e| Error::io(path, e);
    remove_dead(path)?;
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::failed(format!("{}: no such folder", path.display()))
            .hint("make it, or choose another with serve.socket"),
        _ => wrong(e),
    })?;
    if let Some(group) = group {
        let gid = group_id(group)?;
        rustix::fs::chown(path, None, Some(gid)).map_err(|e| {
            Error::failed(format!("{}: group '{group}': {e}", path.display()))
                .hint("the daemon's user must be a member of the group")
        })?;
    }
    rustix::fs::chmod(path, Mode::from_raw_mode(0o660)).map_err(|e| wrong(e.into()))?;
    let inode = std::fs::symlink_metadata(path).map_err(wrong)?.ino();
    Ok((listener, Made { path: path.into(), inode }))
}

/// Removes what lies at `path` if it is a socket that nobody answers on.
fn remove_dead(path: &Path) -> Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(path, e)),
    };
    if !meta.file_type().is_socket() {
        return Err(Error::bad_input(format!(
            "{}: expected a socket or nothing, found another file",
            path.display()
        )));
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|e| Error::io(path, e))
        }
        Ok(_) => Err(Error::refused(format!("{}: another daemon answers here", path.display()))
            .hint("stop it, or choose another socket")),
        Err(e) => Err(Error::io(path, e)),
    }
}

/// A group's number, from `/etc/group`.
fn group_id(name: &str) -> Result<Gid> {
    let text = crate::fs::read_text(Path::new("/etc/group"), 16 << 20)?;
    let number = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse::<u32>().ok()).flatten()
    });
    number
        .map(Gid::from_raw)
        .ok_or_else(|| Error::failed(format!("serve.socket_group: no group '{name}'")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind as Kind;

    fn open(path: &Path) -> Result<Listeners> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _in = runtime.enter();
        let config = ServeConfig { socket: path.into(), ..ServeConfig::default() };
        Listeners::open(&config)
    }

    #[test]
    fn only_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        let e = open(&path).err().unwrap();
        assert_eq!(e.kind(), Kind::Refused, "{e}");
        assert!(path.exists());
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(open(&path).unwrap());

        std::fs::write(&path, "precious").unwrap();
        let e = open(&path).err().unwrap();
        assert!(e.kind() == Kind::BadInput && std::fs::read(&path).unwrap() == b"precious", "{e}");
        assert!(open(&dir.path().join("none/s")).err().unwrap().message().contains("folder"));
        assert!(group_id("no such group").is_err());
    }
}
