//! What the store keeps: quotas, the share held out, and when a sample is not trusted.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How much is kept of each name. What is too much goes when something new comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Quota {
    /// Samples in use. The oldest of the largest class goes first, so that classes stay balanced.
    pub max_samples: u64,
    /// Bytes of their inputs, those in quarantine included.
    pub max_bytes: u64,
    /// Generations with a file. The active one and the one before it stay.
    pub max_generations: u64,
    /// Names in all. A further one is refused.
    pub max_names: u64,
    /// Bytes of the inputs of all names. What is past that is refused.
    pub max_total_bytes: u64,
}

impl Default for Quota {
    fn default() -> Quota {
        Quota {
            max_samples: 5000,
            max_bytes: 64 << 20,
            max_generations: 10,
            max_names: 256,
            max_total_bytes: 512 << 20,
        }
    }
}

/// The rules by which samples are taken in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// How much is kept.
    #[serde(flatten)]
    pub quota: Quota,
    /// Share of each class that training never sees, 0 to 0.5.
    pub hold_out: f64,
    /// The labels that there are; others go to quarantine. Empty: any label.
    pub labels: Vec<String>,
    /// New samples that one source may bring in an hour; more go to quarantine. 0: any number.
    pub source_per_hour: u32,
    /// Greatest share of the newest [`Rules::WINDOW`] samples of a name that one source may have
    /// where there are others; more go to quarantine. 1: any share.
    pub source_share: f64,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            quota: Quota::default(),
            hold_out: 0.2,
            labels: vec![],
            source_per_hour: 1000,
            source_share: 1.0,
        }
    }
}

impl Rules {
    /// Samples over which a source's share is taken.
    pub const WINDOW: u32 = 200;

    /// An error (usage) naming the value that makes no sense.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: &str, expected: &str| {
            Err(Error::usage(format!("{what} is out of range: expected {expected}")))
        };
        // Written so that NaN is refused.
        if !(self.hold_out >= 0.0 && self.hold_out <= 0.5) {
            return wrong("hold_out", "0 to 0.5");
        }
        if !(self.source_share > 0.0 && self.source_share <= 1.0) {
            return wrong("source_share", "more than 0, at most 1");
        }
        if self.quota.max_samples == 0 {
            return wrong("max_samples", "1 or more");
        }
        if self.quota.max_bytes == 0 {
            return wrong("max_bytes", "1 or more");
        }
        if self.quota.max_names == 0 {
            return wrong("max_names", "1 or more");
        }
        if self.quota.max_total_bytes == 0 {
            return wrong("max_total_bytes", "1 or more");
        }
        if self.quota.max_generations < 2 {
            return wrong("max_generations", "2 or more");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_whole_and_checked() {
        let read = |text: &str| serde_json::from_str::<Rules>(text);
        assert_eq!(read("{}").unwrap(), Rules::default());
        let rules = read(r#"{"max_samples": 30, "hold_out": 0.1, "labels": ["a"]}"#).unwrap();
        assert_eq!((rules.quota.max_samples, rules.hold_out), (30, 0.1));
        assert_eq!(rules.quota.max_bytes, Quota::default().max_bytes);
        rules.validate().unwrap();
        assert!(read(r#"{"max_sample": 30}"#).is_err(), "a misspelt name is no default");
        for wrong in [
            r#"{"hold_out": 0.6}"#,
            r#"{"hold_out": -0.1}"#,
            r#"{"source_share": 0}"#,
            r#"{"max_samples": 0}"#,
            r#"{"max_bytes": 0}"#,
            r#"{"max_names": 0}"#,
            r#"{"max_total_bytes": 0}"#,
            r#"{"max_generations": 1}"#,
        ] {
            let error = read(wrong).unwrap().validate().unwrap_err();
            let name = wrong.split('"').nth(1).unwrap();
            assert!(error.message().starts_with(name), "{error}");
        }
        let nan = Rules { hold_out: f64::NAN, ..Rules::default() };
        assert!(nan.validate().is_err());
    }
}
