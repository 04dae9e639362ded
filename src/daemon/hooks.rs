//! `[[webhook]]`: who is told by HTTP of what happens.

use super::config::read_secret;
use crate::error::{Error, Result};
use crate::store::check_name;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A server's port where none is said.
const PORT: u16 = 80;
/// Longest address in bytes.
const MAX_URL: usize = 2000;
/// Most webhooks.
const MOST: usize = 16;

/// What can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// An answer.
    Answer,
    /// An answer to what is not known, or that is not sure.
    Doubtful,
    /// A candidate serves from now on.
    Promoted,
    /// The gate refused a candidate.
    Refused,
    /// Another generation serves, since one was worse, by hand, or after a crash.
    RolledBack,
    /// A trial went well.
    Trial,
    /// What kept a training from its end.
    Training,
    /// Samples were set aside, evicted or forgotten.
    Samples,
    /// Who administered, and what.
    Act,
    /// What a person should see to has changed: damage, what can't be served.
    Problem,
}

impl Happening {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Happening::Answer => "answer",
            Happening::Doubtful => "doubtful",
            Happening::Promoted => "promoted",
            Happening::Refused => "refused",
            Happening::RolledBack => "rolled_back",
            Happening::Trial => "trial",
            Happening::Training => "training",
            Happening::Samples => "samples",
            Happening::Act => "act",
            Happening::Problem => "problem",
        }
    }

    /// What an event of the state is.
    pub fn of_kind(kind: &str) -> Option<Happening> {
        Some(match kind {
            "promotion" => Happening::Promoted,
            "gate" => Happening::Refused,
            "rollback" | "interrupted" | "watch" => Happening::RolledBack,
            "confirmed" | "trial" => Happening::Trial,
            "train" => Happening::Training,
            "quarantine" | "release" | "eviction" | "forget" => Happening::Samples,
            "act" => Happening::Act,
            "lost" | "record" | "restored" | "clock" => Happening::Problem,
            _ => return None,
        })
    }
}

/// A `[[webhook]]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HookConfig {
    /// Its name in the status and the log.
    pub name: String,
    /// `http://HOST:PORT/PATH`.
    pub url: String,
    /// What is told.
    #[serde(default = "usual")]
    pub events: Vec<Happening>,
    /// The adapters that are told of. Empty: all.
    #[serde(default)]
    pub adapters: Vec<String>,
    /// An answer with less probability is doubtful.
    #[serde(default = "doubt_below")]
    pub doubt_below: f64,
    /// A file with the key of the signatures: 64 hexadecimal digits.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// How long the server may take.
    #[serde(default = "timeout_seconds")]
    pub timeout_seconds: f64,
    /// Messages that wait at most.
    #[serde(default = "queue")]
    pub queue: usize,
}

fn usual() -> Vec<Happening> {
    vec![Happening::Promoted, Happening::Refused, Happening::RolledBack, Happening::Problem]
}

fn doubt_below() -> f64 {
    0.6
}

fn timeout_seconds() -> f64 {
    10.0
}

fn queue() -> usize {
    1000
}

/// Where a webhook's server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or a number.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// As it stands in the `Host` header.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

/// An error that names the first value that can't be (bad input).
pub fn check(hooks: &[HookConfig]) -> Result<()> {
    if hooks.len() > MOST {
        let found = hooks.len();
        return Err(Error::bad_input(format!("webhook: expected {MOST} at most, found {found}")));
    }
    for (i, hook) in hooks.iter().enumerate() {
        hook.check()?;
        if hooks.iter().take(i).any(|other| other.name == hook.name) {
            return Err(hook.wrong("name", "another has it too"));
        }
    }
    Ok(())
}

impl HookConfig {
    fn wrong(&self, key: &str, why: &str) -> Error {
        Error::bad_input(format!("webhook '{}': {key}: {why}", self.name))
    }

    fn check(&self) -> Result<()> {
        check_name(&self.name)
            .map_err(|_| self.wrong("name", "expected 1 to 64 of a-z, 0-9, '.', '_' and '-'"))?;
        self.address()?;
        if self.events.is_empty() {
            return Err(self.wrong("events", "expected at least one"));
        }
        for name in &self.adapters {
            check_name(name).map_err(|e| self.wrong("adapters", e.message()))?;
        }
        if !(0.0..=1.0).contains(&self.doubt_below) {
            return Err(self.wrong("doubt_below", "expected 0 to 1"));
        }
        if !(0.05..=600.0).contains(&self.timeout_seconds) {
            return Err(self.wrong("timeout_seconds", "expected 0.05 to 600"));
        }
        if !(10..=10_000).contains(&self.queue) {
            return Err(self.wrong("queue", "expected 10 to 10000"));
        }
        Ok(())
    }

    /// Where its server is.
    ///
    /// # Errors
    /// No address of a server that can be told (bad input).
    pub fn address(&self) -> Result<Address> {
        let wrong = |why: &str| self.wrong("url", why);
        let Some(rest) = self.url.strip_prefix("http://") else {
            if self.url.starts_with("https://") {
                return Err(wrong("https: this program has no TLS").hint(
                    "use http in a network that you trust, or to a proxy on this machine that speaks https",
                ));
            }
            return Err(wrong("expected http://HOST:PORT/PATH"));
        };
        let plain = self.url.bytes().all(|b| b.is_ascii_graphic());
        if !plain || self.url.len() > MAX_URL || rest.contains('#') {
            return Err(wrong("expected visible ASCII characters without '#', 2000 at most"));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (host, port) = match authority.rsplit_once(':') {
            // An address of IPv6 stands in brackets, and has colons of its own.
            Some((host, port)) if !authority.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("expected a port after ':'"))?)
            }
            _ => (authority, PORT),
        };
        let numbers = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let name = numbers.unwrap_or(host);
        let odd: &[char] = if numbers.is_some() { &['@', '[', ']'] } else { &['@', '[', ']', ':'] };
        if name.is_empty() || port == 0 || name.contains(odd) {
            return Err(wrong("expected http://HOST:PORT/PATH"));
        }
        let path = match path.starts_with('/') {
            true => path.to_string(),
            false => format!("/{path}"),
        };
        Ok(Address { host: name.into(), port, authority: authority.into(), path })
    }

    /// The key of its signatures.
    ///
    /// # Errors
    /// The file can't be read, others can read it, it holds no key.
    pub fn key(&self) -> Result<Option<[u8; 32]>> {
        let Some(path) = &self.secret_file else { return Ok(None) };
        let text = read_secret(path)?;
        let key = blake3::Hash::from_hex(&text).map_err(|_| {
            self.wrong(
                "secret_file",
                &format!("'{}': expected 64 hexadecimal digits", path.display()),
            )
            .hint("openssl rand -hex 32 makes them")
        })?;
        Ok(Some(*key.as_bytes()))
    }

    /// Whether that is to be told.
    pub fn wants(&self, happening: Happening) -> bool {
        self.events.contains(&happening)
    }

    /// Whether that adapter, or what is about none, is told of.
    pub fn of(&self, adapter: Option<&str>) -> bool {
        adapter
            .is_none_or(|name| self.adapters.is_empty() || self.adapters.iter().any(|a| a == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(text: &str) -> HookConfig {
        toml::from_str(&format!("name = \"a\"\n{text}")).unwrap()
    }

    fn to(url: &str) -> HookConfig {
        hook(&format!("url = \"{url}\""))
    }

    #[test]
    fn an_address_is_of_one_server_without_tls() {
        for (url, host, port, path) in [
            ("http://box", "box", 80, "/"),
            ("http://box:8123/api/webhook/x?a=b", "box", 8123, "/api/webhook/x?a=b"),
            ("http://192.168.1.2?x", "192.168.1.2", 80, "/?x"),
            ("http://[fe80::1]:81/x", "fe80::1", 81, "/x"),
            ("http://[::1]/x:1", "::1", 80, "/x:1"),
        ] {
            let found = to(url).address().unwrap();
            assert_eq!((found.host.as_str(), found.port, found.path.as_str()), (host, port, path));
            assert!(url[7..].starts_with(&found.authority));
        }
        for url in [
            "",
            "box",
            "ftp://box",
            "http://",
            "http://:80",
            "http://box:0",
            "http://box:x",
            "http://a@box/",
            "http://box/#x",
            "http://box/a b",
            "http://[::1/",
            "http://box:80:80/",
            "http://b\u{fc}ro/",
        ] {
            let found = to(url).address();
            assert!(found.is_err(), "{url}: {found:?}");
        }
        let e = to("https://box/").address().unwrap_err();
        assert!(e.message().contains("webhook 'a'") && e.message().contains("no TLS"), "{e}");
    }

    #[test]
    fn what_cant_be_is_named() {
        let url = "url = \"http://box\"\n";
        assert!(check(&[hook(url)]).is_ok());
        for (text, part) in [
            ("events = []", "events"),
            ("adapters = [\"../x\"]", "adapters"),
            ("doubt_below = 2.0", "doubt_below"),
            ("timeout_seconds = 0.0", "timeout_seconds"),
            ("queue = 1", "queue"),
        ] {
            let e = check(&[hook(&format!("{url}{text}"))]).unwrap_err();
            assert!(e.message().contains(part), "{text}: {e}");
        }
        let twice = check(&[hook(url), hook(url)]).unwrap_err();
        assert!(twice.message().contains("another"), "{twice}");
        assert!(check(&vec![hook(url); 17]).unwrap_err().message().contains("16 at most"));
        assert!(
            toml::from_str::<HookConfig>("name = \"a\"\nurl = \"http://b\"\nevents = [\"all\"]")
                .is_err()
        );
    }

    #[test]
    fn all_events_but_those_of_the_daemons_own_have_a_name() {
        let names =
            ["promotion", "gate", "rollback", "confirmed", "train", "forget", "act", "record"];
        let told: Vec<_> =
            names.iter().map(|kind| Happening::of_kind(kind).unwrap().name()).collect();
        let expected = [
            "promoted",
            "refused",
            "rolled_back",
            "trial",
            "training",
            "samples",
            "act",
            "problem",
        ];
        assert_eq!(told, expected);
        assert_eq!(Happening::of_kind("else"), None);
        let one = hook("url = \"http://box\"\nadapters = [\"home\"]");
        assert!(one.of(None) && one.of(Some("home")) && !one.of(Some("hall")));
    }
}
