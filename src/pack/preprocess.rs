//! How raw inputs become tensors, and what else of an export folder a base keeps.
//!
//! Stored with postcard like `record.rs`: the order of fields and variants is part of the format.

#![warn(clippy::arithmetic_side_effects)]

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a picture is brought to size before the middle of it is cut out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// To the final size, whatever its proportions.
    #[default]
    Stretch,
    /// To this height and width, whatever its proportions.
    Exact([u32; 2]),
    /// Until its shorter side has this length, in its proportions.
    Shortest(u32),
    /// A line of text: to the final height in its proportions, the rest at the right being zeros of the
    /// input; one that would be too wide is stretched to the final size.
    Line,
}

/// How a picture is resampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// A triangle.
    Bilinear,
    /// Cubic with a = -0.5.
    #[default]
    Bicubic,
    /// Lanczos of three lobes.
    Lanczos,
}

/// How a picture becomes the input tensor: resize, cut out the middle, then
/// `(value * scale - mean) / std` per channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Height and width, 1 to 16384.
    pub size: [u32; 2],
    /// How it is resized before `size` is cut out of its middle.
    pub fit: Fit,
    /// How it is resampled.
    pub filter: Filter,
    /// What the values 0 to 255 are multiplied by.
    pub scale: f32,
    /// Mean of red, green, blue.
    pub mean: [f32; 3],
    /// Standard deviation of red, green, blue; not zero.
    pub std: [f32; 3],
    /// Whether the tensor is (1, 3, height, width), else (1, height, width, 3).
    pub channels_first: bool,
    /// Whether the channels come as blue, green, red.
    pub bgr: bool,
}

impl Default for ImageSpec {
    /// 224 x 224, stretched, values of 0 to 1 less ImageNet's mean over its deviation, as most
    /// vision models are trained.
    fn default() -> ImageSpec {
        ImageSpec {
            size: [224, 224],
            fit: Fit::Stretch,
            filter: Filter::Bicubic,
            scale: 1.0 / 255.0,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            channels_first: true,
            bgr: false,
        }
    }
}

/// What the base's own scores say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// One class of several.
    Classes,
    /// Each class for itself.
    Tags,
    /// Numbers.
    Numbers,
    /// At each step one of the symbols of a text, or the blank, whose label is empty (CTC).
    Text,
    /// One class of several for each token.
    Tokens,
}

/// How raw inputs become tensors and outputs become names. The tokenizer has a section of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// For bases that take pictures.
    pub image: Option<ImageSpec>,
    /// Names of the classes that the base's own output has, in order; empty if unknown.
    pub labels: Vec<String>,
    /// What that output says, where it is known.
    pub problem: Option<Problem>,
    /// Longest token sequence that the base takes; at least 1.
    pub max_tokens: Option<u32>,
}

impl Preprocess {
    pub(super) fn check(&self) -> Result<()> {
        if let Some(image) = &self.image {
            let sides = match image.fit {
                Fit::Stretch | Fit::Line => vec![],
                Fit::Exact(sides) => sides.to_vec(),
                Fit::Shortest(side) => vec![side],
            };
            if image.size.iter().chain(&sides).any(|d| !(1..=16384).contains(d)) {
                return Err(Error::bad_input(format!(
                    "image size {:?} is not within 1 to 16384",
                    image.size
                )));
            }
            if image.mean.iter().any(|v| !v.is_finite())
                || image.std.iter().any(|v| !v.is_finite() || *v == 0.0)
                || !image.scale.is_finite()
            {
                return Err(Error::bad_input(format!(
                    "image mean {:?}, std {:?} or scale {} is not finite or is zero",
                    image.mean, image.std, image.scale
                )));
            }
        }
        let blanks = self.labels.iter().filter(|label| label.is_empty()).count();
        if self.problem == Some(Problem::Text) && blanks != 1 {
            return Err(Error::bad_input(format!("an alphabet with {blanks} blanks")));
        }
        if self.max_tokens == Some(0) {
            return Err(Error::bad_input("max_tokens is 0"));
        }
        Ok(())
    }
}

/// How the inputs of a target's product are quantized, where the processor multiplies integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// By the largest value of each block of 32.
    #[default]
    Block,
    /// By the largest value of each row.
    Row,
    /// By a range that was measured: what lies outside is cut off.
    Static {
        /// Least value.
        low: f32,
        /// Largest value; above `low`.
        high: f32,
    },
}

impl Activation {
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Activation::Static { low, high }
                if !(low.is_finite() && high.is_finite() && low < high) =>
            {
                Err(Error::bad_input(format!("activation range {low} to {high} is none")))
            }
            _ => Ok(()),
        }
    }
}

/// The directions of a target's inputs that the base's knowledge lives in: what training keeps
/// away from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subspace<'a> {
    /// Index in the target table.
    pub target: u32,
    /// Directions.
    pub rank: u32,
    /// Share of the inputs' energy that they hold, above 0 and at most 1.
    pub energy: f32,
    /// Orthonormal rows (rank, in_features), f16 little-endian.
    #[serde(borrow)]
    pub basis: &'a [u8],
}

impl Subspace<'_> {
    pub(super) fn check(&self, in_features: Option<u32>) -> Result<()> {
        let wanted =
            in_features.and_then(|n| u64::from(n).checked_mul(self.rank.into())?.checked_mul(2));
        let known = self.energy > 0.0 && self.energy <= 1.0 && self.rank > 0;
        if !known || wanted != Some(self.basis.len() as u64) {
            return Err(Error::bad_input(format!(
                "subspace of target {} has rank {}, energy {} and {} bytes",
                self.target,
                self.rank,
                self.energy,
                self.basis.len()
            )));
        }
        Ok(())
    }
}
