//! Recurrent layers against PyTorch: the gradients of LoRA on every matrix. `models/tiny/make_recurrent.py`
//! makes the references.

use super::recompute::tests::same_bits;
use super::vjp::check;
use super::*;
use crate::common::{emulated, packed, shared};
use crate::graph::bind_dims;
use crate::npy::read_npz;
use crate::quant::Scheme;
use crate::runtime::{Engine, PackOptions};
use crate::shape::Array;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tract_core::internal::{SpecialOps, Tensor};

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny").join(name)
}

/// |a - b| / |b|.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f32| f64::from(v).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

/// Holds the loss and the gradient of each trained tensor against the reference's; gives the number of
/// tensors and how far the worst is off.
fn holds(model: &Path, reference: &str, input: &str, at_most: f64) -> (usize, f64) {
    let options = PackOptions { scheme: Scheme::F32, ..PackOptions::default() };
    let engine = packed(model, &options);
    let arrays: HashMap<String, Array> =
        read_npz(tiny(reference), 64 << 20).unwrap().into_iter().collect();
    let options = TrainOptions {
        rank: 2,
        alpha: 4.0,
        targets: TargetChoice::AllLinear,
        ..TrainOptions::default()
    };
    let labels = ["a", "b", "c"].map(String::from).to_vec();
    let mut trainer = Trainer::new(&engine, &options, labels).unwrap();
    let names: Vec<String> = trainer.parameters().map(|(n, _)| n.to_string()).collect();
    let expected = arrays.keys().filter(|name| name.starts_with("grad.")).count();
    assert_eq!(names.len(), expected, "{names:?}");
    for name in &names {
        let init = arrays[&format!("init.{name}")].as_f32().unwrap();
        trainer.set_parameter(name, init).unwrap();
    }
    let one_hot = |class: &i64| Some((0..3).map(|k| f32::from(k == *class)).collect());
    let answers = arrays["labels"].as_i64().unwrap().iter().map(one_hot).collect();
    let inputs = vec![(input.to_string(), arrays["in.x"].clone())];
    let batch = [MicroBatch { inputs, answers }];
    let found = trainer.gradients(&batch).unwrap();
    let loss = arrays["loss"].as_f32().unwrap()[0];
    assert!((found.loss - loss).abs() < 1e-5, "loss {} instead of {loss}", found.loss);
    let mut worst = 0f64;
    for (name, gradient) in names.iter().zip(&found.values) {
        let want = arrays[&format!("grad.{name}")].as_f32().unwrap();
        let off = apart(gradient, want);
        assert!(off < at_most, "gradient of {name}: {off:.1e}");
        worst = worst.max(off);
    }
    // A second run begins where the first did.
    assert_eq!(trainer.gradients(&batch).unwrap(), found);
    serves(&engine, &trainer, &arrays, input);
    same_bits(&mut trainer, &batch, reference);
    (names.len(), worst)
}

/// The adapter as it is served, on all rows and on one.
fn serves(engine: &Engine, trainer: &Trainer, arrays: &HashMap<String, Array>, input: &str) {
    let bound = engine.bind(&[(&trainer.adapter().unwrap(), 1.0)]).unwrap();
    let inputs = vec![(input.to_string(), arrays["in.x"].clone())];
    let apart = |found: &[f32], want: &[f32]| {
        assert_eq!(found.len(), want.len());
        found.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let (base, adapted) = (&arrays["out.y"], &arrays["adapted.y"]);
    let (base, adapted) = (base.as_f32().unwrap(), adapted.as_f32().unwrap());
    assert!(apart(base, adapted) > 1e-2, "the adapter changes little");
    for _ in 0..2 {
        let found = engine.run(&inputs, Some(&bound)).unwrap();
        assert!(apart(found[0].1.as_f32().unwrap(), adapted) < 1e-4);
        let found = engine.run(&inputs, None).unwrap();
        assert!(apart(found[0].1.as_f32().unwrap(), base) < 1e-4);
    }
    let found = engine.run_rows(&inputs, &[None, Some(bound), None]).unwrap();
    let width = base.len() / 3;
    let want = [&base[..width], &adapted[width..2 * width], &base[2 * width..]].concat();
    assert!(apart(found[0].1.as_f32().unwrap(), &want) < 1e-4);
}

#[test]
fn lstm_gru_and_rnn_train_as_in_pytorch() {
    let (count, worst) = holds(&tiny("recurrent.onnx"), "recurrent.npz", "x", 1e-5);
    println!("LSTM of two directions and layers, GRU, RNN: {count} gradients within {worst:.1e}");
}

#[test]
fn the_speaker_encoder_trains_as_in_pytorch() {
    let Some(shared) = shared().filter(|_| !emulated()) else { return };
    let model = shared.join("models/resemblyzer.onnx");
    let (count, worst) = holds(&model, "speaker.npz", "mels", 1e-4);
    println!("speaker encoder: {count} gradients within {worst:.1e}");
}

/// d loss / d features of a connectionist loss, from its gradient of the logits back through recurrent
/// layers of two directions and a convolution.
#[test]
fn a_gradient_of_outputs_reaches_the_inputs_as_in_pytorch() {
    let Some(shared) = shared() else { return };
    for name in ["ctc_lstm", "ctc_gru"] {
        let model = shared.join(format!("models/tiny-sequence/{name}.onnx"));
        let options = PackOptions { scheme: Scheme::F32, ..PackOptions::default() };
        let engine = packed(&model, &options);
        let path = shared.join(format!("reference/tiny-sequence/{name}_gradients.npz"));
        let arrays: HashMap<String, Array> =
            read_npz(path, 64 << 20).unwrap().into_iter().collect();
        let tensor = |name: &str| {
            let array = &arrays[name];
            Tensor::from_shape(array.shape(), array.as_f32().unwrap()).unwrap()
        };
        let dims = engine.binding(&[arrays["features"].view()]).unwrap();
        let dims: Vec<(String, i64)> = dims.into_iter().collect();
        let mut graph = bind_dims(engine.graph(), &dims).unwrap();
        let logits = graph.output_outlets().unwrap()[0];
        let wanted = graph.input_outlets().unwrap()[0];
        let seed = graph.add_const("seed", tensor("grad.logits")).unwrap();
        let found = gradient::backward(&mut graph, &[(logits, seed)], &[wanted]).unwrap();
        graph.select_output_outlets(&found).unwrap();
        let found = check::run(&graph, &[tensor("features")]).remove(0);
        let off = apart(check::slice(&found), arrays["grad.features"].as_f32().unwrap());
        println!("{name}: d loss / d features within {off:.1e}");
        assert!(off < 1e-4, "{name}: {off:.1e}");
    }
}
