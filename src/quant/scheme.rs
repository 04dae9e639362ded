//! The ways a weight is stored.

use serde::{Deserialize, Serialize};

/// How a frozen weight is quantized. Blocks are 32 consecutive columns (in_features) of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// 8-bit integers, one f16 scale per block of 32.
    Q8,
    /// 4-bit integers, one f16 scale per block of 32.
    Q4,
    /// 16-bit floats.
    F16,
    /// 32-bit floats.
    F32,
}

impl Scheme {
    /// All of them, smallest error last.
    pub const ALL: [Scheme; 4] = [Scheme::Q4, Scheme::Q8, Scheme::F16, Scheme::F32];

    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Q8 => "q8",
            Scheme::Q4 => "q4",
            Scheme::F16 => "f16",
            Scheme::F32 => "f32",
        }
    }

    /// The scheme of this name.
    pub fn parse(name: &str) -> Option<Scheme> {
        Scheme::ALL.into_iter().find(|s| s.name() == name)
    }
}
