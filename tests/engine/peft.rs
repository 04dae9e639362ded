//! Adapters that PEFT trained give PEFT's outputs.

use crate::support::*;
use offshoot::adapters::Pool;
use offshoot::adapters::peft::{HeadSpec, ImportOptions, import};
use offshoot::packing::PackOptions;
use offshoot::testing::npy::read_npz;
use offshoot::testing::pool;
use offshoot::{Array, Engine, Named, Scheme, apply_head};
use std::path::Path;
use std::sync::OnceLock;

fn minilm(shared: &Path) -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let options = PackOptions { scheme: Scheme::F32, ..PackOptions::default() };
    ENGINE.get_or_init(|| packed(&shared.join("models/minilm-l6.onnx"), &options))
}

/// The first quarter of the rows: on an emulated processor each takes seconds.
fn fewer_rows(arrays: Named) -> Named {
    let fewer = |array: Array| {
        let mut shape = array.shape().to_vec();
        shape[0] = shape[0].div_ceil(4);
        let count = shape.iter().product();
        match array.as_i64() {
            Ok(values) => Array::i64(shape, values[..count].to_vec()).unwrap(),
            Err(_) => Array::f32(shape, array.as_f32().unwrap()[..count].to_vec()).unwrap(),
        }
    };
    if !emulated() {
        return arrays;
    }
    arrays.into_iter().map(|(name, array)| (name, fewer(array))).collect()
}

/// What PEFT was asked and answered, and what it answered without the adapter.
fn peft_says(folder: &Path) -> (Reference, Array) {
    let file = folder.join("reference.npz");
    let Reference { inputs, outputs } = reference(&file);
    let expected = Reference { inputs: fewer_rows(inputs), outputs: fewer_rows(outputs) };
    let arrays = fewer_rows(read_npz(&file, 64 << 20).unwrap());
    (expected, named(&arrays, "base.last_hidden_state").clone())
}

/// Largest difference of two (B, T, F) arrays over the tokens that `mask` (B, T) keeps.
fn masked_difference(a: &Array, b: &Array, mask: &Array) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let width = a.shape()[2];
    let tokens = a.as_f32().unwrap().chunks(width).zip(b.as_f32().unwrap().chunks(width));
    let kept = tokens.zip(mask.as_i64().unwrap()).filter(|(_, keep)| **keep > 0);
    kept.map(|((a, b), _)| max_difference(a, b)).fold(0.0, f32::max)
}

fn check(directory: &str) {
    let Some(shared) = shared() else { return };
    let engine = minilm(&shared);
    let folder = shared.join("reference/minilm").join(directory);
    let (expected, base) = peft_says(&folder);
    let mask = named(&expected.inputs, "attention_mask");
    let head = HeadSpec { output: "last_hidden_state".into(), pool: Pool::Mean, labels: None };
    let options = ImportOptions {
        base: Some(engine.base().fingerprint()),
        head: Some(head),
        ..ImportOptions::default()
    };
    let imported = import(&folder, engine.base().targets(), &options).unwrap();
    println!("{directory}: {} modules, {:?}", imported.rows.len(), imported.warnings);
    let bound = engine.bind(&[(&imported.adapter, 1.0)]).unwrap();

    let found = engine.run(&expected.inputs, Some(&bound)).unwrap();
    let hidden = named(&found, "last_hidden_state");
    let apart = masked_difference(hidden, named(&expected.outputs, "last_hidden_state"), mask);
    println!("{directory} hidden: {apart:.1e}");
    assert!(apart <= 3e-5, "last_hidden_state: {apart}");

    let pooled = pool(Pool::Mean, hidden, Some(mask.view())).unwrap().concat();
    let expected_pooled = named(&expected.outputs, "pooled_mean").as_f32().unwrap();
    let apart = max_difference(&pooled, expected_pooled);
    println!("{directory} pooled: {apart:.1e}");
    assert!(apart <= 3e-5, "pooled_mean: {apart}");

    let head = bound.head.as_ref().unwrap();
    let predictions = apply_head(engine, head, Some(mask.view()), &found).unwrap();
    let logits: Vec<f32> = predictions.iter().flat_map(|p| p.logits.clone()).collect();
    let apart = max_difference(&logits, named(&expected.outputs, "logits").as_f32().unwrap());
    println!("{directory} logits: {apart:.1e}");
    assert!(apart <= 3e-5, "logits: {apart}");

    let off = engine.run(&expected.inputs, None).unwrap();
    let off = named(&off, "last_hidden_state");
    let apart = masked_difference(off, &base, mask);
    println!("{directory} adapter off: {apart:.1e}");
    assert!(apart <= 3e-5, "adapter off: {apart}");
    let effect = masked_difference(off, hidden, mask);
    assert!(effect > 1e-2, "the adapter moves nothing: {effect}");
}

#[test]
fn of_rank_8() {
    check("peft_adapter");
}

#[test]
fn of_rank_4() {
    check("peft_adapter_spam_r4");
}

/// A base in q8 takes the adapter's inputs as integers too. What PEFT answers in f32 must be as near
/// with the adapter as without: the update may not cost what the weights' own rounding does not.
#[test]
fn on_quantized_weights_the_adapter_costs_no_accuracy() {
    let Some(shared) = shared() else { return };
    let options = PackOptions { scheme: Scheme::Q8, ..PackOptions::default() };
    let engine = packed(&shared.join("models/minilm-l6.onnx"), &options);
    let folder = shared.join("reference/minilm/peft_adapter");
    let (expected, base) = peft_says(&folder);
    let mask = named(&expected.inputs, "attention_mask");
    let head = HeadSpec { output: "last_hidden_state".into(), pool: Pool::Mean, labels: None };
    let options = ImportOptions {
        base: Some(engine.base().fingerprint()),
        head: Some(head),
        ..ImportOptions::default()
    };
    let imported = import(&folder, engine.base().targets(), &options).unwrap();
    let bound = engine.bind(&[(&imported.adapter, 1.0)]).unwrap();
    let least = |adapter, wanted: &Array| {
        let found = engine.run(&expected.inputs, adapter).unwrap();
        let pooled = |hidden| pool(Pool::Mean, hidden, Some(mask.view())).unwrap();
        let pairs = pooled(named(&found, "last_hidden_state")).into_iter().zip(pooled(wanted));
        pairs.map(|(a, b)| cosine(&a, &b)).fold(1.0, f64::min)
    };
    let base = least(None, &base);
    let adapted = least(Some(&bound), named(&expected.outputs, "last_hidden_state"));
    println!("least cosine: base {base:.6}, adapted {adapted:.6}");
    assert!(1.0 - adapted <= 2.0 * (1.0 - base), "base {base}, adapted {adapted}");
}
