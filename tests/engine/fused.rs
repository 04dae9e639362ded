//! Fused steps: each rule matches on a real network, and what comes out is what the graph says; rows
//! of one batch carry adapters of their own.

use crate::support::*;
use offshoot::adapters::TargetKind;
use offshoot::packing::{ImportOptions, InputSpec, PackOptions};
use offshoot::{Array, Engine, ErrorKind, Named, Scheme};

fn count(found: &[(&'static str, usize)], rule: &str) -> usize {
    found.iter().find(|(name, _)| *name == rule).map_or(0, |(_, count)| *count)
}

fn minilm() -> Engine {
    packed(&model("minilm-l6.onnx"), &PackOptions { scheme: Scheme::Q8, ..PackOptions::default() })
}

/// `batch` sentences of 16 made-up tokens; those of row r are seeded by `first` + r.
fn sentences(batch: usize, first: usize) -> Named {
    let ids = (0..batch * 16).map(|i| ((first + i / 16) * 977 + i % 16 * 131) as i64 % 30_000 + 5);
    vec![
        ("input_ids".into(), Array::i64([batch, 16], ids.collect()).unwrap()),
        ("attention_mask".into(), Array::i64([batch, 16], vec![1; batch * 16]).unwrap()),
        ("token_type_ids".into(), Array::i64([batch, 16], vec![0; batch * 16]).unwrap()),
    ]
}

#[test]
fn every_rule_for_transformers_matches_on_minilm() {
    let engine = minilm();
    let found = engine.fused(&sentences(2, 0)).unwrap();
    for (rule, times) in [
        ("gelu-of-erf", 6),
        ("layer-norm", 13),
        ("layer-norm-scale", 13),
        ("layer-norm-shift", 13),
        ("activation", 6),
        ("residual", 12),
        ("linear-siblings", 6),
        ("attention", 6),
    ] {
        assert_eq!(count(&found, rule), times, "{rule} in {found:?}");
    }
}

/// `batch` made-up pictures; that of row r is seeded by `first` + r.
fn pictures(batch: usize, first: usize) -> Named {
    let size = 3 * 32 * 32;
    let value = |i: usize| ((first + i / size + 1) * (i % size) * 37 % 255) as f32 / 127.5 - 1.0;
    let x = (0..batch * size).map(value).collect();
    vec![("image".into(), Array::f32([batch, 3, 32, 32], x).unwrap())]
}

#[test]
fn each_row_answers_as_alone_with_its_adapter() {
    rows_answer_as_alone(&minilm(), sentences);
}

#[test]
fn each_picture_answers_as_alone_with_its_adapter() {
    for scheme in [Scheme::Q8, Scheme::F32] {
        let options = PackOptions { scheme, ..PackOptions::default() };
        rows_answer_as_alone(&packed(&model("tiny/convnet.onnx"), &options), pictures);
    }
}

fn rows_answer_as_alone(engine: &Engine, inputs: fn(usize, usize) -> Named) {
    let [one, two] = [1, 2].map(|seed| {
        adapter(engine, seed, |t| matches!(t.kind, TargetKind::Linear | TargetKind::Conv { .. }))
    });
    let one = engine.bind(&[(&one, 1.0)]).unwrap();
    let two = engine.bind(&[(&two, 1.0)]).unwrap();
    let rows = [None, Some(one.clone()), Some(one.clone()), Some(two), None, Some(one)];
    let together = engine.run_rows(&inputs(rows.len(), 0), &rows).unwrap();
    for (row, adapter) in rows.iter().enumerate() {
        let alone = engine.run(&inputs(1, row), adapter.as_ref()).unwrap();
        for ((name, all), (_, alone)) in together.iter().zip(&alone) {
            let alone = alone.as_f32().unwrap();
            let all = &all.as_f32().unwrap()[row * alone.len()..][..alone.len()];
            assert!(all == alone, "row {row} of '{name}'");
        }
    }
    // And the adapters do something.
    let base = engine.run(&inputs(rows.len(), 0), None).unwrap();
    assert_ne!(base, together);
    // Rows of one adapter are a plain run.
    let same = vec![rows[1].clone(); 2];
    let plain = engine.run(&inputs(2, 0), rows[1].as_ref()).unwrap();
    assert_eq!(engine.run_rows(&inputs(2, 0), &same).unwrap(), plain);
}

#[test]
fn rows_that_cannot_be_kept_apart_are_refused() {
    let engine = minilm();
    let one = adapter(&engine, 1, |t| t.kind == TargetKind::Linear);
    let bound = engine.bind(&[(&one, 1.0)]).unwrap();
    let error = engine.run_rows(&sentences(3, 0), &[Some(bound), None]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.message().contains("2 adapters for a batch of 3 rows"), "{error}");

    // A batch that is fixed can't be told from any other axis.
    let inputs = vec![InputSpec::parse("image=2x3x32x32,f32").unwrap()];
    let import = ImportOptions { inputs, ..ImportOptions::default() };
    let options = PackOptions { import, ..PackOptions::default() };
    let engine = packed(&model("tiny/convnet.onnx"), &options);
    let bound = engine.bind(&[(&adapter(&engine, 1, |_| true), 1.0)]).unwrap();
    let error = engine.run_rows(&pictures(2, 0), &[Some(bound), None]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("can't carry a different adapter"), "{error}");
}
