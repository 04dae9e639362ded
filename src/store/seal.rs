//! Encryption of samples at rest: XChaCha20-Poly1305 under a key file.

use crate::error::{Cause, Error, Result};
use crate::fs::{Access, open_regular, write_atomic_bytes};
use chacha20poly1305::aead::{Aead, Generate, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a key.
const KEY: usize = 32;
/// Bytes of a nonce; random ones of this length never repeat.
const NONCE: usize = 24;

/// A key for samples, read from a file that the owner alone can read.
#[derive(Clone)]
pub struct Key([u8; KEY]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.id())
    }
}

impl Key {
    /// Reads a key file: 32 bytes, mode 0600 or 0400. systemd's credentials
    /// (`$CREDENTIALS_DIRECTORY`) guard their files otherwise and may be readable by the group.
    ///
    /// # Errors
    /// Bad input: no such file, another length, or others may read it.
    pub fn read(path: &Path) -> Result<Key> {
        let opened = open_regular(path, KEY as u64)?;
        let shown = path.display();
        let mode = opened.file.metadata().map_err(|e| Error::io(path, e))?.mode();
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
        let credential = credentials.is_some_and(|d| !d.is_empty() && path.starts_with(d));
        let open_to = mode & if credential { 0o037 } else { 0o077 };
        if open_to != 0 {
            return Err(Error::bad_input(format!(
                "key file '{shown}' has mode {:04o}: others can use it",
                mode & 0o7777
            ))
            .hint(format!("chmod 600 {shown}")));
        }
        let mut bytes = Vec::with_capacity(KEY);
        opened.file.take(KEY as u64 + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        let found = bytes.len();
        match bytes.try_into() {
            Ok(key) => Ok(Key(key)),
            Err(_) => Err(Error::bad_input(format!(
                "key file '{shown}' has {found} bytes, expected {KEY}"
            ))
            .hint(format!("head -c {KEY} /dev/urandom > {shown}"))),
        }
    }

    /// Makes a new key and writes it to `path`, which must not exist.
    pub fn create(path: &Path) -> Result<Key> {
        if path.symlink_metadata().is_ok() {
            return Err(Error::usage(format!("'{}' exists already", path.display())));
        }
        let key = random()?;
        write_atomic_bytes(path, Access::Private, &key)?;
        Ok(Key(key))
    }

    /// What names the key without telling it: 16 hex digits.
    pub fn id(&self) -> String {
        let mut id = blake3::derive_key("offshoot store key id v1", &self.0);
        id.iter_mut().skip(8).for_each(|b| *b = 0);
        let mut hex = blake3::Hash::from_bytes(id).to_hex().to_string();
        hex.truncate(16);
        hex
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&blake3::derive_key("offshoot store samples v1", &self.0).into())
    }

    /// `plain`, sealed: nonce, ciphertext, tag. Opens only with the same `context`.
    pub(super) fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let nonce = XNonce::try_generate().map_err(|e| no_random(&e))?;
        let sealed = self
            .cipher()
            .encrypt(&nonce, Payload { msg: plain, aad: context })
            .map_err(|_| Error::failed("a sample can't be encrypted"))?;
        let mut bytes = nonce.to_vec();
        bytes.extend(sealed);
        Ok(bytes)
    }

    /// What was sealed. Errors: another key or context, or damage (bad input).
    pub(super) fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let damaged = || {
            Error::bad_input("a sample can't be decrypted: it is damaged")
                .because(Cause::Unreadable)
        };
        let (nonce, message) = sealed.split_at_checked(NONCE).ok_or_else(damaged)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| damaged())?;
        self.cipher().decrypt(&nonce, Payload { msg: message, aad: context }).map_err(|_| damaged())
    }
}

/// Bytes from the system's generator.
pub(super) fn random() -> Result<[u8; KEY]> {
    let key = chacha20poly1305::Key::try_generate().map_err(|e| no_random(&e))?;
    Ok(key.into())
}

fn no_random(error: &dyn std::fmt::Display) -> Error {
    Error::failed(format!("the system gives no random numbers: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_sealed_opens_with_the_key_and_context_alone() {
        let (key, other) = (Key(random().unwrap()), Key(random().unwrap()));
        let sealed = key.seal(b"a", b"turn the light on").unwrap();
        assert_eq!(key.open(b"a", &sealed).unwrap(), b"turn the light on");
        assert_ne!(sealed, key.seal(b"a", b"turn the light on").unwrap());
        assert!(!sealed.windows(5).any(|w| w == b"light"));
        assert!(key.open(b"b", &sealed).is_err() && other.open(b"a", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(key.open(b"a", &bent).is_err(), "{at}");
        }
        assert!(key.open(b"a", &sealed[..20]).is_err() && key.open(b"a", b"").is_err());
        assert_ne!(key.id(), other.id());
        assert!(!format!("{key:?}").contains(&format!("{:?}", key.0)));
    }

    #[test]
    fn key_files_are_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(Key::read(&path).unwrap_err().message().starts_with("no such file"));
        let key = Key::create(&path).unwrap();
        assert_eq!(Key::read(&path).unwrap().id(), key.id());
        assert!(Key::create(&path).is_err());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        let error = Key::read(&path).unwrap_err();
        assert!(error.message().contains("mode 0640"), "{error}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        for wrong in [&b""[..], &[1; 31], &[1; 33]] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Key::read(&path).is_err());
        }
    }
}
