//! `[wyoming]`: where Home Assistant's voice asks what a sentence means, and has a stream of sound heard.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// `[wyoming]`. Without `listen` nobody is listened to.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WyomingConfig {
    /// The address and port.
    pub listen: Option<SocketAddr>,
    /// Whether `listen` may be an address that other machines reach: the protocol has neither a login nor
    /// TLS.
    pub network: bool,
    /// The name that answers. Default: `serve.adapter`.
    pub adapter: Option<String>,
    /// Languages that clients are told of.
    pub languages: Vec<String>,
    /// An answer below it is no intent, and nothing that is heard.
    pub probability: f32,
    /// Whether labels of sounds are people, not words that wake.
    pub speakers: bool,
    /// Labels of sounds that nobody is told of: other speech, silence.
    pub ignore: Vec<String>,
    /// Share of sounds like nothing that was learned that may pass for a label; 0: as the head says by itself.
    pub reject: f32,
}

impl Default for WyomingConfig {
    fn default() -> WyomingConfig {
        WyomingConfig {
            listen: None,
            network: false,
            adapter: None,
            languages: vec!["en".into()],
            probability: 0.5,
            speakers: false,
            ignore: vec!["other".into()],
            reject: 0.0,
        }
    }
}

impl WyomingConfig {
    /// An error that names the first value that can't be (bad input).
    pub fn check(&self) -> Result<()> {
        let wrong = |key: &str, why: &str| Error::bad_input(format!("wyoming.{key}: {why}"));
        if let Some(address) = self.listen
            && !address.ip().is_loopback()
            && !self.network
        {
            let found = format!("expected a loopback address, found '{address}'");
            return Err(wrong("listen", &found).hint(
                "the protocol has neither a login nor TLS: set wyoming.network = true in a network that \
                 you trust",
            ));
        }
        if let Some(name) = &self.adapter {
            crate::store::check_name(name).map_err(|e| wrong("adapter", e.message()))?;
        }
        let tag = |tag: &String| {
            (1..=35).contains(&tag.len())
                && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_*".contains(&b))
        };
        if self.languages.is_empty()
            || self.languages.len() > 200
            || !self.languages.iter().all(tag)
        {
            return Err(wrong("languages", "expected 1 to 200 tags such as \"en\" or \"de-CH\""));
        }
        if !(0.0..=1.0).contains(&self.probability) {
            return Err(wrong("probability", "expected 0 to 1"));
        }
        if !(0.0..1.0).contains(&self.reject) {
            return Err(wrong("reject", "expected 0 to less than 1"));
        }
        Ok(())
    }
}
