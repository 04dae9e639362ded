//! What a graph's inputs and outputs are: decided once, when the base is packed.
//!
//! Stored with postcard like `record.rs`: the order of variants is part of the format.

use crate::shape::DType;
use serde::{Deserialize, Serialize};

/// What an input or output stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Nothing that is known here; given and read as an array.
    #[default]
    Other,
    /// Token ids, (batch, tokens).
    Ids,
    /// 1 for a token that counts, 0 for padding, (batch, tokens).
    Mask,
    /// Segment of each token, (batch, tokens).
    Types,
    /// Position of each token, (batch, tokens).
    Positions,
    /// Pictures, (batch, 3, height, width) or (batch, height, width, 3).
    Pixels,
    /// Raw audio, (batch, samples).
    Samples,
    /// Log-mel features, (batch, mels, frames).
    Mel,
    /// The encoder's output, as the decoder takes it.
    Encoded,
    /// Which of the encoder's rows count.
    EncodedMask,
    /// A state kept from run to run. An output of this number, of whichever graph of the base, is
    /// the next run's input of this number.
    State(u32),
    /// Features: one row for each token, frame or sample.
    Features,
    /// Features: one row for each sample, of the network's own pooling.
    Pooled,
    /// Scores of classes or of the vocabulary.
    Logits,
}

impl Role {
    /// The name used on the command line and in messages; a state's without its number.
    pub fn name(self) -> &'static str {
        match self {
            Role::Other => "other",
            Role::Ids => "ids",
            Role::Mask => "mask",
            Role::Types => "types",
            Role::Positions => "positions",
            Role::Pixels => "pixels",
            Role::Samples => "samples",
            Role::Mel => "mel",
            Role::Encoded => "encoded",
            Role::EncodedMask => "encoded_mask",
            Role::State(_) => "state",
            Role::Features => "features",
            Role::Pooled => "pooled",
            Role::Logits => "logits",
        }
    }

    /// All but states, which need a number.
    const ALL: [Role; 13] = [
        Role::Other,
        Role::Ids,
        Role::Mask,
        Role::Types,
        Role::Positions,
        Role::Pixels,
        Role::Samples,
        Role::Mel,
        Role::Encoded,
        Role::EncodedMask,
        Role::Features,
        Role::Pooled,
        Role::Logits,
    ];

    /// The names that [`Role::parse`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Role::ALL.into_iter().map(Role::name)
    }

    /// The role of this name; none for a state, which needs a number.
    pub fn parse(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|r| r.name() == name)
    }
}

/// One input or output of a graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoSpec {
    /// Its name in the ONNX file.
    pub name: String,
    /// Its safe identifier in the graph section.
    pub safe_name: String,
    /// Element type at the public interface.
    pub dtype: DType,
    /// Dimensions as text: a number or a symbol's expression.
    pub dims: Vec<String>,
    /// What it stands for.
    pub role: Role,
}
