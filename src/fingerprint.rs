//! Names for contents: the blake3 hash that identifies a base.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Identifies a base: blake3 over its graph and weights sections. Every adapter carries one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BaseFingerprint(pub [u8; 32]);

impl BaseFingerprint {
    /// Reads `blake3:<64 hex digits>`.
    pub fn parse(text: &str) -> Result<BaseFingerprint> {
        let hex = text.strip_prefix("blake3:").unwrap_or("");
        match blake3::Hash::from_hex(hex) {
            Ok(hash) => Ok(BaseFingerprint(*hash.as_bytes())),
            Err(_) => Err(Error::bad_input(format!(
                "fingerprint '{text}' is not 'blake3:' and 64 hex digits"
            ))),
        }
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> String {
        let mut hex = blake3::Hash::from_bytes(self.0).to_hex().to_string();
        hex.truncate(12);
        hex
    }
}

impl fmt::Display for BaseFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for BaseFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_reads_back() {
        let f = BaseFingerprint(*blake3::hash(b"x").as_bytes());
        assert_eq!(BaseFingerprint::parse(&f.to_string()).unwrap(), f);
        assert_eq!(f.short().len(), 12);
        assert!(BaseFingerprint::parse("blake3:zz").is_err());
    }
}
