//! The tiny networks give ONNX Runtime's answers; each stands for one way to write a layer.

use crate::support::*;
use offshoot::adapters::TargetKind;
use offshoot::packing::{ImportOptions, PackOptions};
use offshoot::{Engine, Scheme};

/// The network and its reference. `sr` of `scalar_if` becomes a constant.
fn tiny(name: &str, scheme: Scheme) -> (Engine, Reference) {
    let mut reference = reference(&model(&format!("tiny/{name}.npz")));
    let mut import = ImportOptions::default();
    if let Some(at) = reference.inputs.iter().position(|(n, _)| n == "sr") {
        let (name, rate) = reference.inputs.remove(at);
        import.consts.push((name, rate.as_i64().unwrap()[0].to_string()));
    }
    let options = PackOptions { scheme, import, ..PackOptions::default() };
    (packed(&model(&format!("tiny/{name}.onnx")), &options), reference)
}

fn check(name: &str) {
    let (engine, reference) = tiny(name, Scheme::F32);
    for (output, found, expected) in answers(&engine, &reference) {
        let apart = max_difference(found.as_f32().unwrap(), expected.as_f32().unwrap());
        println!("{name} f32 '{output}': {apart:.1e}");
        assert!(apart <= 1e-4, "{name} f32 '{output}': {apart}");
    }
    for (scheme, least) in [(Scheme::F16, 0.99999), (Scheme::Q8, 0.999), (Scheme::Q4, 0.97)] {
        let (engine, _) = tiny(name, scheme);
        for (output, found, expected) in answers(&engine, &reference) {
            let cosine = cosine(found.as_f32().unwrap(), expected.as_f32().unwrap());
            println!("{name} {} '{output}': cosine {cosine:.5}", scheme.name());
            assert!(cosine >= least, "{name} {} '{output}': cosine {cosine}", scheme.name());
        }
    }
}

#[test]
fn mlp() {
    check("mlp");
}

#[test]
fn attention() {
    check("attention");
}

#[test]
fn convnet() {
    check("convnet");
}

#[test]
fn conv1d() {
    check("conv1d");
    let (engine, _) = tiny("conv1d", Scheme::F32);
    let conv = TargetKind::Conv { kernel: [1, 5], one_axis: true };
    assert!(
        engine.base().targets().iter().any(|t| t.kind == conv),
        "{:?}",
        engine.base().targets()
    );
}

#[test]
fn tied() {
    check("tied");
}

#[test]
fn bn() {
    check("bn");
}

#[test]
fn scalar_if() {
    check("scalar_if");
}

#[test]
fn group() {
    check("group");
}

#[test]
fn recurrent() {
    check("recurrent");
}

#[test]
fn recurrent_kinds() {
    check("recurrent_kinds");
}

#[test]
fn lstm() {
    check("lstm");
}

#[test]
fn primitives() {
    check("primitives");
}

#[test]
fn qdq() {
    check("qdq");
}

/// Weights that arrive as int8 stay those integers: q8 costs nothing but their scales in f16,
/// which the file's are exact in.
#[test]
fn integers_are_kept() {
    let (engine, reference) = tiny("qdq", Scheme::Q8);
    let base = engine.base();
    let mut kept = 0;
    for error in &base.record().errors {
        let target = &base.targets()[error.target as usize];
        println!("{} {} {}", target.module_path, error.scheme.name(), error.relative);
        assert!(error.relative < 1e-6, "{}: {}", target.module_path, error.relative);
        kept += usize::from(matches!(error.scheme, Scheme::Q8 | Scheme::Q8Wide));
    }
    assert!(kept > 0, "no target is large enough for q8");
    for (output, found, expected) in answers(&engine, &reference) {
        let apart = max_difference(found.as_f32().unwrap(), expected.as_f32().unwrap());
        println!("{output}: {apart}");
        let largest = expected.as_f32().unwrap().iter().fold(0f32, |a, v| a.max(v.abs()));
        // What integer kernels add: inputs of each product on a grid of their largest / 127.
        assert!(apart <= 0.02 * largest, "'{output}': {apart}");
    }
}

/// One table serves the gather and the last product.
#[test]
fn a_tied_table_is_stored_once() {
    for scheme in [Scheme::F32, Scheme::Q8] {
        let (engine, _) = tiny("tied", scheme);
        let targets = engine.base().targets();
        let table = targets.iter().find(|t| t.kind == TargetKind::Embedding).unwrap();
        let product = targets.iter().find(|t| t.node == "/lm_head/MatMul").unwrap();
        assert_eq!(table.weight, product.weight, "{targets:?}");
        assert_ne!(table.module_path, product.module_path);
    }
}

/// The other arm of the If is another network.
#[test]
fn a_constant_chooses_the_arm() {
    let (fast, reference) = tiny("scalar_if", Scheme::F32);
    let mut options = PackOptions { scheme: Scheme::F32, ..PackOptions::default() };
    options.import.consts.push(("sr".into(), "8000".into()));
    let slow = packed(&model("tiny/scalar_if.onnx"), &options);
    let fast = fast.run(&reference.inputs, None).unwrap();
    let slow = slow.run(&reference.inputs, None).unwrap();
    assert!(max_difference(fast[0].1.as_f32().unwrap(), slow[0].1.as_f32().unwrap()) > 0.1);
}
