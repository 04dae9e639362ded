//! The tokens of the TCP port: each has a name and a role. Hashes of them are kept, in the state's folder;
//! a token itself is shown once, when it is made.

use super::roles::Role;
use crate::error::{Cause, Error, Result};
use crate::fs::{Access, read_limited, write_atomic_bytes};
use crate::store::check_name;
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

/// The file in the state's folder.
const FILE: &str = "tokens.json";
const VERSION: u32 = 1;
/// Most tokens.
const MOST: usize = 100;
/// Longest file in bytes.
const MAX_FILE: u64 = 64 << 10;
/// What tokens begin with: people and programs that look for leaked ones know it by that.
const PREFIX: &str = "offshoot_";

/// A token as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Whose it is, or what for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was made, in seconds since 1970-01-01 UTC.
    pub created: u64,
    /// Of the token, in hexadecimal digits. It has 256 random bits: no slow hash is needed.
    pub hash: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    tokens: Vec<Token>,
}

#[derive(Default)]
struct Known {
    tokens: Vec<Token>,
    /// Why the file can't be used.
    damage: Option<String>,
}

/// All of a state.
pub struct Tokens {
    path: PathBuf,
    known: RwLock<Known>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Tokens {
    /// Those of the state in `folder`. A file that can't be used lets nobody in: see [`Tokens::damage`].
    pub fn open(folder: &Path) -> Tokens {
        let path = folder.join(FILE);
        Tokens { known: RwLock::new(read(&path)), path, changing: Mutex::new(()) }
    }

    /// Reads the file anew.
    pub fn reload(&self) {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.set(read(&self.path));
    }

    fn set(&self, known: Known) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    fn with<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        look(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why there are none though there is a file, in words.
    pub fn damage(&self) -> Option<String> {
        self.with(|known| known.damage.clone())
    }

    /// All, in the order in which they were made.
    pub fn list(&self) -> Vec<Token> {
        self.with(|known| known.tokens.clone())
    }

    /// The one of this name.
    pub fn named(&self, name: &str) -> Option<Token> {
        self.with(|known| known.tokens.iter().find(|token| token.name == name).cloned())
    }

    /// The one that `given` is. Hashes are compared in constant time.
    pub fn find(&self, given: &str) -> Option<Token> {
        let hash = hash(given);
        let is = |token: &&Token| blake3::Hash::from_hex(&token.hash).is_ok_and(|h| h == hash);
        self.with(|known| known.tokens.iter().find(is).cloned())
    }

    /// Makes a token; it is valid, and on the medium, when this returns it.
    ///
    /// # Errors
    /// A bad name (usage), one that there is already ([`Cause::Moved`]), too many (refused), a file that
    /// can't be read or written.
    pub fn add(&self, name: &str, role: Role, created: u64) -> Result<String> {
        check_name(name).map_err(|_| {
            Error::usage(format!(
                "token name '{name}': expected 1 to 64 of a-z, 0-9, '.', '_' and '-'"
            ))
        })?;
        let token = format!(
            "{PREFIX}{}",
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(random()?)
        );
        let hash = hash(&token).to_hex().to_string();
        self.change(|tokens| {
            if tokens.iter().any(|token| token.name == name) {
                return Err(Error::refused(format!("there is a token '{name}' already"))
                    .because(Cause::Moved)
                    .hint("revoke it first, or choose another name"));
            }
            if tokens.len() >= MOST {
                return Err(Error::refused(format!(
                    "there are {MOST} tokens, the most that there can be"
                )));
            }
            tokens.push(Token { name: name.into(), role, created, hash });
            Ok(())
        })?;
        Ok(token)
    }

    /// Takes a token's rights away, at once and for good.
    ///
    /// # Errors
    /// There is none ([`Cause::NotFound`]); a file that can't be read or written.
    pub fn revoke(&self, name: &str) -> Result<Token> {
        self.change(|tokens| {
            let at = tokens.iter().position(|token| token.name == name).ok_or_else(|| {
                Error::usage(format!("there is no token '{name}'")).because(Cause::NotFound)
            })?;
            Ok(tokens.remove(at))
        })
    }

    fn change<T>(&self, how: impl FnOnce(&mut Vec<Token>) -> Result<T>) -> Result<T> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(damage) = self.damage() {
            return Err(
                Error::refused(damage).hint("mend or remove the file, then reload the daemon")
            );
        }
        let mut tokens = self.list();
        let done = how(&mut tokens)?;
        let kept = Kept { version: VERSION, tokens };
        let text = serde_json::to_vec_pretty(&kept)
            .map_err(|e| Error::failed(format!("tokens can't be written: {e}")))?;
        write_atomic_bytes(&self.path, Access::Private, &text)?;
        self.set(Known { tokens: kept.tokens, damage: None });
        Ok(done)
    }
}

fn read(path: &Path) -> Known {
    if std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Known::default();
    }
    match read_file(path) {
        Ok(tokens) => Known { tokens, damage: None },
        Err(e) => Known { tokens: vec![], damage: Some(e.message().to_string()) },
    }
}

fn read_file(path: &Path) -> Result<Vec<Token>> {
    let shown = path.display();
    let mode = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.mode();
    if mode & 0o077 != 0 {
        let mode = mode & 0o7777;
        return Err(Error::bad_input(format!("'{shown}' has mode {mode:04o}: expected 0600")));
    }
    let kept: Kept = serde_json::from_slice(&read_limited(path, MAX_FILE)?)
        .map_err(|e| Error::bad_input(format!("'{shown}' lists no tokens: {e}")))?;
    if kept.version != VERSION {
        let found = kept.version;
        return Err(Error::bad_input(format!(
            "'{shown}': expected version {VERSION}, found {found}"
        )));
    }
    Ok(kept.tokens)
}

fn hash(token: &str) -> blake3::Hash {
    blake3::Hash::from_bytes(blake3::derive_key("offshoot token v1", token.as_bytes()))
}

/// Bytes that nobody can guess.
///
/// # Errors
/// The system gives none (failed).
pub fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    read.map_err(|e| Error::io("/dev/urandom", e))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_kept_as_a_hash_until_it_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path());
        assert!(tokens.list().is_empty() && tokens.damage().is_none());
        let kitchen = tokens.add("kitchen", Role::Teach, 5).unwrap();
        let hall = tokens.add("hall", Role::Answer, 6).unwrap();
        assert!(kitchen.starts_with(PREFIX) && kitchen.len() == 52 && kitchen != hall);
        let path = dir.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&kitchen) && !text.contains(&kitchen[PREFIX.len()..]), "{text}");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        let e = tokens.add("kitchen", Role::Administer, 7).unwrap_err();
        assert_eq!(e.cause(), Some(Cause::Moved), "{e}");
        for bad in ["", "A", "a b", "../x"] {
            assert!(tokens.add(bad, Role::Answer, 7).is_err(), "{bad}");
        }
        // Another process, or the next start.
        let again = Tokens::open(dir.path());
        assert_eq!(again.list(), tokens.list());
        let found = again.find(&kitchen).unwrap();
        assert_eq!((found.name.as_str(), found.role, found.created), ("kitchen", Role::Teach, 5));
        for wrong in [&kitchen[1..], "", &found.hash, &format!("{kitchen}x")] {
            assert!(again.find(wrong).is_none(), "{wrong}");
        }
        assert_eq!(again.revoke("kitchen").unwrap().name, "kitchen");
        assert!(again.find(&kitchen).is_none() && again.find(&hall).is_some());
        assert_eq!(again.revoke("kitchen").unwrap_err().cause(), Some(Cause::NotFound));
        assert!(tokens.find(&kitchen).is_some(), "not read anew yet");
        tokens.reload();
        assert!(tokens.find(&kitchen).is_none());
    }

    #[test]
    fn a_file_that_cant_be_used_lets_nobody_in_and_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let tokens = Tokens::open(dir.path());
        let token = tokens.add("a", Role::Answer, 1).unwrap();
        let good = std::fs::read(&path).unwrap();
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&path, open).unwrap();
        tokens.reload();
        assert!(tokens.damage().unwrap().contains("mode 0644"));
        assert!(tokens.find(&token).is_none());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for bad in [&b"{"[..], b"", b"{\"version\": 2, \"tokens\": []}", b"\xff"] {
            std::fs::write(&path, bad).unwrap();
            tokens.reload();
            assert!(tokens.damage().is_some() && tokens.find(&token).is_none());
            assert!(tokens.add("b", Role::Answer, 1).is_err() && tokens.revoke("a").is_err());
            assert_eq!(std::fs::read(&path).unwrap(), bad);
        }
        std::fs::write(&path, good).unwrap();
        tokens.reload();
        assert!(tokens.find(&token).is_some());
        for i in 1..MOST {
            tokens.add(&format!("t{i}"), Role::Answer, 1).unwrap();
        }
        assert!(tokens.add("more", Role::Answer, 1).unwrap_err().message().contains("100"));
        let all = Tokens::open(dir.path());
        assert_eq!(all.list().len(), MOST, "{:?}", all.damage());
    }
}
