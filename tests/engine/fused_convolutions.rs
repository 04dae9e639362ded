//! The rules of fusing for convolutions match on real networks. That fused answers are right,
//! `golden` shows.

use crate::support::*;
use offshoot::Array;
use offshoot::packing::{ImportOptions, InputSpec, PackOptions};
use std::path::Path;

/// How often `rule` matches in the network at `source`, over a picture of this shape.
fn matches(source: &Path, input: &str, shape: [usize; 4], rules: &[&str]) -> Vec<usize> {
    let dims = shape.map(|d| d.to_string()).join("x");
    let inputs = vec![InputSpec::parse(&format!("{input}={dims},f32")).unwrap()];
    let import = ImportOptions { inputs, ..ImportOptions::default() };
    let engine = packed(source, &PackOptions { import, ..PackOptions::default() });
    let x = Array::f32(shape, vec![0.5; shape.iter().product()]).unwrap();
    let found = engine.fused(&[(input.to_string(), x)]).unwrap();
    println!("{}: {found:?}", source.display());
    rules
        .iter()
        .map(|rule| found.iter().find(|(name, _)| name == rule).map_or(0, |(_, count)| *count))
        .collect()
}

#[test]
fn every_clip_sum_and_block_of_efficientnet_is_fused() {
    let rules = ["activation", "residual", "channels-last", "conv-depthwise", "narrowing"];
    let found = matches(&model("efficientnet-lite0.onnx"), "image", [1, 3, 224, 224], &rules);
    // 33 clips, each a maximum and a minimum; 9 sums; 16 blocks with a depthwise convolution.
    assert_eq!(found[..4], [66, 9, 1, 16]);
    // All blocks but the first, whose weights are f32; none where no integer kernels run.
    assert!([0, 15].contains(&found[4]), "{found:?}");
}

#[test]
fn a_pool_between_convolutions_is_fused() {
    let found = matches(&model("tiny/bn.onnx"), "image", [1, 3, 16, 16], &["max-pool"]);
    assert_eq!(found, [1]);
}

#[test]
fn hard_swishes_and_sums_of_a_text_recogniser_are_found() {
    let Some(shared) = shared() else { return };
    let source = shared.join("models/ppocr-cls.onnx");
    let rules = ["hard-swish", "residual"];
    let found = matches(&source, "x", [1, 3, 48, 192], &rules);
    assert!(found.iter().all(|count| *count > 0), "{rules:?}: {found:?}");
}
