//! Where the daemon is: `unix:///PATH`, a path, or `http://ADDRESS:PORT`.

use super::config::SYSTEM_SOCKET;
use crate::error::{Error, Result};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// An address of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// Its Unix socket.
    Unix(PathBuf),
    /// Its loopback port.
    Tcp(SocketAddr),
}

impl Host {
    /// Reads an address. Errors: another form, an address of another machine (usage).
    pub fn parse(text: &str) -> Result<Host> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Host::unix(path);
        }
        if let Some(rest) = text.strip_prefix("http://") {
            let rest = rest.trim_end_matches('/').replace("localhost:", "127.0.0.1:");
            return match rest.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() => Ok(Host::Tcp(address)),
                _ => Err(Error::usage(format!(
                    "'{text}': expected http://127.0.0.1:PORT, the daemon has no other ports"
                ))),
            };
        }
        if text.contains("://") {
            return Err(Error::usage(format!("'{text}': expected unix:///PATH or http://…")));
        }
        Host::unix(text)
    }

    fn unix(path: &str) -> Result<Host> {
        match path {
            "" => Err(Error::usage("the daemon's address is empty")),
            path => Ok(Host::Unix(path.into())),
        }
    }

    /// `$OFFSHOOT_HOST`, else the user's socket if there is one, else the service's.
    pub fn default_host() -> Result<Host> {
        if let Some(text) = std::env::var_os("OFFSHOOT_HOST").filter(|t| !t.is_empty()) {
            return Host::parse(&text.to_string_lossy()).map_err(|e| e.at("OFFSHOOT_HOST"));
        }
        let own = Host::user_socket();
        Ok(Host::Unix(own.filter(|p| p.exists()).unwrap_or_else(|| SYSTEM_SOCKET.into())))
    }

    /// The socket of a daemon that a person runs: in `$XDG_RUNTIME_DIR`.
    pub fn user_socket() -> Option<PathBuf> {
        let folder = std::env::var_os("XDG_RUNTIME_DIR").filter(|f| Path::new(f).is_absolute())?;
        Some(PathBuf::from(folder).join("offshoot.sock"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Unix(path) => write!(f, "unix://{}", path.display()),
            Host::Tcp(address) => write!(f, "http://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let unix = |p: &str| Host::Unix(p.into());
        assert_eq!(Host::parse("unix:///run/o.sock").unwrap(), unix("/run/o.sock"));
        assert_eq!(Host::parse("o.sock").unwrap(), unix("o.sock"));
        let tcp = Host::parse("http://localhost:80/").unwrap();
        assert_eq!(
            (tcp.to_string(), tcp),
            ("http://127.0.0.1:80".into(), Host::Tcp(([127, 0, 0, 1], 80).into()))
        );
        for bad in [
            "",
            "unix://",
            "http://example.org:80",
            "http://8.8.8.8:80",
            "ftp://x",
            "http://127.0.0.1",
        ] {
            assert!(Host::parse(bad).is_err(), "{bad}");
        }
    }
}
