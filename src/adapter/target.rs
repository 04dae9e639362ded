//! Targets: the layers of a base that can carry an adapter.

use serde::{Deserialize, Serialize};

/// What kind of layer a target is; decides the shapes of its adapter tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TargetKind {
    /// y = x·Wᵀ; lora_a (R, in_features), lora_b (out_features, R).
    Linear,
    /// A convolution with one group. lora_a (R, in_channels, kh, kw), lora_b (out_channels, R, 1, 1)
    /// in PEFT's shapes; stored here as (R, kh·kw·in_channels), channels last, and (out_channels, R).
    /// Convolutions over one spatial axis have kh = 1.
    Conv {
        /// Kernel height and width.
        kernel: [u32; 2],
        /// Whether PEFT's Conv1d shapes (one spatial axis) apply.
        one_axis: bool,
    },
    /// A table of rows gathered by index: in_features = number of rows (vocabulary),
    /// out_features = row length.
    Embedding,
}

/// A layer of the base that can carry an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// PEFT's dotted name (`encoder.layer.0.attention.self.query`); unique within a base.
    pub module_path: String,
    /// The node's name in the ONNX file.
    pub node: String,
    /// What kind of layer.
    pub kind: TargetKind,
    /// Index of its frozen weight in the base's weight table (shared by tied layers).
    pub weight: u32,
    /// Input features: columns of the weight (for a convolution kh·kw·in_channels).
    pub in_features: u32,
    /// Output features: rows of the weight (output channels).
    pub out_features: u32,
}
