//! Targets bear the names that PEFT gives them.

use crate::support::*;
use offshoot::adapters::{Target, TargetKind};
use offshoot::packing::ImportOptions;
use offshoot::testing::{decided, prepare};
use std::collections::BTreeSet;
use std::path::Path;

fn column(path: &Path, key: &str) -> BTreeSet<String> {
    let rows: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    rows.iter().map(|row| row[key].as_str().unwrap().to_string()).collect()
}

fn targets(source: &Path) -> Vec<Target> {
    prepare(source, &ImportOptions::default(), &decided).unwrap().targets
}

#[test]
fn minilm_has_the_36_modules() {
    let Some(shared) = shared() else { return };
    let expected = column(&shared.join("reference/minilm/lora_targets.json"), "peft");
    assert_eq!(expected.len(), 36);
    for source in [shared.join("models/minilm-l6.onnx"), model("minilm-l6.onnx")] {
        let targets = targets(&source);
        let linear = targets.iter().filter(|t| t.kind == TargetKind::Linear);
        let found: BTreeSet<String> = linear.map(|t| t.module_path.clone()).collect();
        assert_eq!(found, expected, "{}", source.display());
    }
}

#[test]
fn efficientnet_has_the_pointwise_nodes() {
    let Some(shared) = shared() else { return };
    let expected =
        column(&shared.join("reference/efficientnet_lite0/pointwise_targets.json"), "node");
    assert_eq!(expected.len(), 32);
    for source in [shared.join("models/efficientnet-lite0.onnx"), model("efficientnet-lite0.onnx")]
    {
        let targets = targets(&source);
        let pointwise = TargetKind::Conv { kernel: [1, 1], one_axis: false };
        let found = targets.iter().filter(|t| t.kind == pointwise);
        let found: BTreeSet<String> = found.map(|t| t.node.clone()).collect();
        assert_eq!(found, expected, "{}", source.display());
        let paths: BTreeSet<&str> = targets.iter().map(|t| t.module_path.as_str()).collect();
        assert_eq!(paths.len(), targets.len(), "names must be unique");
    }
}
