//! The ways a weight is stored.

use serde::{Deserialize, Serialize};

/// How a frozen weight is quantized. Blocks are consecutive columns (in_features) of one row. The order of
/// variants is part of the file format.
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
    /// 8-bit integers, one f16 scale per block of 64: fewer steps around the products, somewhat coarser.
    #[serde(rename = "q8-64")]
    Q8Wide,
}

impl Scheme {
    /// All of them, smallest error last.
    pub const ALL: [Scheme; 5] = [Scheme::Q4, Scheme::Q8Wide, Scheme::Q8, Scheme::F16, Scheme::F32];

    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Q8 => "q8",
            Scheme::Q4 => "q4",
            Scheme::F16 => "f16",
            Scheme::F32 => "f32",
            Scheme::Q8Wide => "q8-64",
        }
    }

    /// The scheme of this name.
    pub fn parse(name: &str) -> Option<Scheme> {
        Scheme::ALL.into_iter().find(|s| s.name() == name)
    }
}
