//! What is in an ONNX file. Made in the worker process.

use crate::adapter::TargetKind;
use crate::error::Result;
use crate::graph::decided;
use crate::import::{ImportOptions, InputInfo, prepare};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Most targets and operations that are listed: the worker's answer is limited.
const MAX_LISTED: usize = 4096;

/// An ONNX file as the importer sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OnnxSummary {
    /// Length of the file.
    pub bytes: u64,
    /// blake3 of the file, hex.
    pub hash: String,
    /// Version of the default operator set.
    pub opset: i64,
    /// Inputs: name and dimensions.
    pub inputs: Vec<Io>,
    /// Outputs: name and dimensions.
    pub outputs: Vec<Io>,
    /// Dimensions of inputs that `--dim` can bind.
    pub free_dims: Vec<String>,
    /// Layers that can carry an adapter.
    pub targets: Vec<TargetLine>,
    /// Number of targets, those beyond the list included.
    pub target_count: usize,
    /// How often each other operation occurs in the main graph.
    pub operations: BTreeMap<String, usize>,
}

/// An input or output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Io {
    /// Its name.
    pub name: String,
    /// Numbers, names, or `?`.
    pub dims: Vec<String>,
}

/// A target without its weight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetLine {
    /// Its dotted name.
    pub module_path: String,
    /// `linear`, `conv 3x3` or `embedding`.
    pub kind: String,
    /// Columns of its weight.
    pub in_features: u32,
    /// Rows of its weight.
    pub out_features: u32,
}

/// Reads and checks `source`.
pub fn summary(source: &Path, options: &ImportOptions) -> Result<OnnxSummary> {
    let prepared = prepare(source, options, &decided)?;
    let io = |infos: &[InputInfo]| -> Vec<Io> {
        infos.iter().map(|i| Io { name: i.name.clone(), dims: i.dims.clone() }).collect()
    };
    let free: BTreeSet<String> = prepared
        .inputs
        .iter()
        .flat_map(|i| &i.dims)
        .filter(|d| d.parse::<i64>().is_err())
        .cloned()
        .collect();
    let mut operations = BTreeMap::new();
    for node in prepared.model.graph.iter().flat_map(|g| &g.node) {
        // Rewritten targets carry operations of ours.
        if operations.len() < MAX_LISTED && !node.op_type.starts_with("Offshoot") {
            *operations.entry(node.op_type.clone()).or_insert(0) += 1;
        }
    }
    Ok(OnnxSummary {
        bytes: prepared.source_bytes,
        hash: prepared.source_hash,
        opset: prepared.opset,
        inputs: io(&prepared.inputs),
        outputs: io(&prepared.outputs),
        free_dims: free.into_iter().collect(),
        target_count: prepared.targets.len(),
        targets: prepared
            .targets
            .iter()
            .take(MAX_LISTED)
            .map(|t| TargetLine {
                module_path: t.module_path.clone(),
                kind: kind_text(t.kind),
                in_features: t.in_features,
                out_features: t.out_features,
            })
            .collect(),
        operations,
    })
}

/// `linear`, `conv 3x3` or `embedding`.
fn kind_text(kind: TargetKind) -> String {
    match kind {
        TargetKind::Linear => "linear".into(),
        TargetKind::Conv { kernel: [_, w], one_axis: true } => format!("conv {w}"),
        TargetKind::Conv { kernel: [h, w], .. } => format!("conv {h}x{w}"),
        TargetKind::Embedding => "embedding".into(),
    }
}
