//! MiniLM against PyTorch and PEFT: the gradients, losses and tensors of 20 AdamW steps.

use super::*;
use crate::common::{emulated, packed, shared};
use crate::npy::read_npz;
use crate::quant::Scheme;
use crate::runtime::{Engine, Named, PackOptions};
use crate::shape::Array;
use std::collections::HashMap;
use std::path::Path;

const STEPS: usize = 20;

/// An emulated processor takes minutes for each.
fn steps() -> usize {
    if emulated() { 1 } else { STEPS }
}

struct Reference(HashMap<String, Array>);

impl Reference {
    fn read(shared: &Path) -> Reference {
        let path = shared.join("reference/minilm/lora_reference_nonzeroB.npz");
        Reference(read_npz(path, 64 << 20).unwrap().into_iter().collect())
    }

    /// `kind` is `init`, `grad1` or `after20`; `name` is ours.
    fn tensor(&self, kind: &str, name: &str) -> &[f32] {
        let theirs = match name {
            "head.weight" => "classifier.weight".to_string(),
            "head.bias" => "classifier.bias".to_string(),
            _ => {
                let name = name.replace(".lora_a", ".lora_A.weight");
                name.replace(".lora_b", ".lora_B.weight")
            }
        };
        self.0[&format!("{kind}.{theirs}")].as_f32().unwrap()
    }

    fn batch(&self, step: usize) -> [MicroBatch; 1] {
        let rows =
            |name: &str, len: usize| self.0[name].as_i64().unwrap()[step * len..][..len].to_vec();
        let shape = vec![8, 64];
        let tokens = |values| Array::i64(shape.clone(), values).unwrap();
        let inputs: Named = vec![
            ("input_ids".into(), tokens(rows("input_ids", 512))),
            ("attention_mask".into(), tokens(rows("attention_mask", 512))),
            ("token_type_ids".into(), tokens(vec![0; 512])),
        ];
        let one_hot = |c: i64| (0..3).map(|place| f32::from(u8::from(place == c))).collect();
        let answers = rows("labels", 8).into_iter().map(|c| Some(one_hot(c))).collect();
        [MicroBatch { inputs, answers }]
    }

    fn losses(&self) -> &[f32] {
        self.0["losses"].as_f32().unwrap()
    }
}

fn engine(shared: &Path, scheme: Scheme) -> Engine {
    let options = PackOptions { scheme, ..PackOptions::default() };
    packed(&shared.join("models/minilm-l6.onnx"), &options)
}

fn trainer(engine: &Engine, reference: &Reference) -> Trainer {
    let targets = r".*encoder\.layer\.\d+\..*(query|key|value|dense)";
    let options =
        TrainOptions { targets: TargetChoice::Regex(targets.into()), ..TrainOptions::default() };
    let labels = ["a", "b", "c"].map(String::from).to_vec();
    let mut trainer = Trainer::new(engine, &options, labels).unwrap();
    let names: Vec<String> = trainer.parameters().map(|(n, _)| n.to_string()).collect();
    assert_eq!(names.len(), 74);
    for name in names {
        trainer.set_parameter(&name, reference.tensor("init", &name)).unwrap();
    }
    trainer
}

/// |a - b| / |b|.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f32| f64::from(v).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

/// The largest difference of a step's loss.
fn losses(trainer: &mut Trainer, reference: &Reference) -> f32 {
    let steps = (0..steps()).map(|step| {
        let loss = trainer.step(&reference.batch(step), 1e-3).unwrap();
        (loss - reference.losses()[step]).abs()
    });
    steps.fold(0.0, f32::max)
}

#[test]
fn minilm_trains_as_pytorch_does() {
    let Some(shared) = shared() else { return };
    let reference = Reference::read(&shared);
    let engine = engine(&shared, Scheme::F32);
    let mut trainer = trainer(&engine, &reference);
    let gradients = trainer.gradients(&reference.batch(0)).unwrap();
    let mut worst = 0f64;
    for ((name, _), gradient) in trainer.parameters().zip(&gradients.values) {
        let off = distance(gradient, reference.tensor("grad1", name));
        assert!(off < 1e-5, "gradient of {name}: {off}");
        worst = worst.max(off);
    }
    let first = (gradients.loss - reference.losses()[0]).abs();
    assert!(first < 1e-5, "the first loss differs by {first}");
    if emulated() {
        return;
    }
    let loss = losses(&mut trainer, &reference);
    assert!(loss < 1e-4, "losses differ by {loss}");
    let mut moved = 0f64;
    for (name, values) in trainer.parameters() {
        let off = distance(values, reference.tensor("after20", name));
        assert!(off < 1e-2, "{name} after {STEPS} steps: {off}");
        moved = moved.max(off);
    }
    println!("f32: gradients within {worst:.1e}, losses {loss:.1e}, tensors {moved:.1e}");
}

#[test]
fn minilm_on_the_quantized_base_stays_close() {
    let Some(shared) = shared() else { return };
    let reference = Reference::read(&shared);
    let engine = engine(&shared, Scheme::Q8);
    let loss = losses(&mut trainer(&engine, &reference), &reference);
    println!("q8: losses within {loss:.1e}");
    assert!(loss < 5e-3, "losses differ by {loss}");
}
