//! The models that ship, against references that ship: ONNX Runtime's answers, PyTorch's gradients and
//! training curve, PEFT's adapter. `tests/shipped/make_references.py` makes them.

use crate::support::*;
use offshoot::adapters::peft::{HeadSpec, ImportOptions, import};
use offshoot::adapters::{Pool, TargetKind};
use offshoot::data::Label;
use offshoot::packing::PackOptions;
use offshoot::testing::npy::read_npz;
use offshoot::training::{MicroBatch, TargetChoice, TrainOptions, Trainer};
use offshoot::{Array, Engine, Named, Scheme, apply_head};
use std::path::{Path, PathBuf};

/// What `docs/FIGURES.md` claims of gradients: |ours - theirs| / |theirs| of each tensor.
const GRADIENTS: f64 = 1e-5;

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shipped").join(name)
}

fn arrays(name: &str) -> Named {
    read_npz(shipped(name), 16 << 20).unwrap()
}

fn engine(name: &str, scheme: Scheme) -> Engine {
    packed(&model(name), &PackOptions { scheme, ..PackOptions::default() })
}

fn under(arrays: &Named, prefix: &str) -> Named {
    let strip = |(name, a): &(String, Array)| Some((name.strip_prefix(prefix)?.into(), a.clone()));
    arrays.iter().filter_map(strip).collect()
}

fn floats<'a>(arrays: &'a Named, name: &str) -> &'a [f32] {
    named(arrays, name).as_f32().unwrap()
}

/// |a - b| / |b|.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f32| f64::from(v).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

fn golden(model: &str, inputs: &Named, expected: &Named) {
    let exact = engine(model, Scheme::F32).run(inputs, None).unwrap();
    let coarse = engine(model, Scheme::Q8);
    let layers = &coarse.base().record().errors;
    let wide = layers.iter().filter(|l| l.scheme == Scheme::Q8Wide).count();
    println!("{model}: {wide} of {} layers have wide blocks", layers.len());
    let coarse = coarse.run(inputs, None).unwrap();
    for (name, expected) in expected {
        let apart = max_difference(floats(&exact, name), expected.as_f32().unwrap());
        let cosine = least_cosine(named(&coarse, name), expected);
        println!("{model} '{name}': f32 {apart:.1e}, q8 cosine {cosine:.5}");
        let largest = expected.as_f32().unwrap().iter().fold(1f32, |m, v| m.max(v.abs()));
        assert!(apart <= 1e-5 * largest, "{model} '{name}': {apart}");
        // Single tokens scatter more than what is pooled of them.
        let least = if expected.shape().len() == 3 { 0.999 } else { 0.9995 };
        assert!(cosine >= least, "{model} '{name}': cosine {cosine}");
    }
}

fn picture() -> Named {
    let image = Array::f32([1, 3, 224, 224], values(3 * 224 * 224, 1, 2.0)).unwrap();
    vec![("image".into(), image)]
}

#[test]
fn answers_are_onnx_runtimes() {
    let minilm = arrays("minilm.npz");
    golden("minilm-l6.onnx", &under(&minilm, "in."), &under(&minilm, "out."));
    golden("efficientnet-lite0.onnx", &picture(), &under(&arrays("efficientnet.npz"), "out."));
}

#[test]
fn an_adapter_that_peft_made_answers_and_trains_as_there() {
    let arrays = arrays("minilm.npz");
    let engine = engine("minilm-l6.onnx", Scheme::F32);
    let options = ImportOptions {
        base: Some(engine.base().fingerprint()),
        head: Some(HeadSpec {
            output: "last_hidden_state".into(),
            pool: Pool::Mean,
            labels: Some(["a", "b", "c"].map(String::from).to_vec()),
        }),
        ..ImportOptions::default()
    };
    let imported = import(&shipped("minilm_peft"), engine.base().targets(), &options).unwrap();
    let bound = engine.bind(&[(&imported.adapter, 1.0)]).unwrap();
    let inputs = under(&arrays, "in.");
    let found = engine.run(&inputs, Some(&bound)).unwrap();
    let mask = named(&inputs, "attention_mask").as_i64().unwrap();
    let expected = floats(&arrays, "peft.last_hidden_state").chunks(384);
    let tokens = floats(&found, "last_hidden_state").chunks(384).zip(expected).zip(mask);
    let kept = tokens.filter(|(_, keep)| **keep > 0).map(|((a, b), _)| max_difference(a, b));
    let hidden = kept.fold(0.0, f32::max);
    let keep = Some(named(&inputs, "attention_mask").view());
    let predictions = apply_head(&engine, bound.head.as_ref().unwrap(), keep, &found).unwrap();
    let logits: Vec<f32> = predictions.iter().flat_map(|p| p.logits.clone()).collect();
    let apart = max_difference(&logits, floats(&arrays, "peft.logits"));
    println!("PEFT's adapter: hidden states {hidden:.1e}, logits {apart:.1e}");
    assert!(hidden <= 2e-5 && apart <= 2e-5, "hidden states {hidden}, logits {apart}");

    let targets = r".*encoder\.layer\.\d+\..*(query|key|value|dense)".to_string();
    let options = TrainOptions {
        rank: 2,
        alpha: 4.0,
        targets: TargetChoice::Regex(targets),
        ..TrainOptions::default()
    };
    let labels = ["a", "b", "c"].map(String::from).to_vec();
    let mut trainer = Trainer::new(&engine, &options, labels).unwrap();
    trainer.start_from(&imported.adapter).unwrap();
    let batch = under(&arrays, "train.");
    let tokens = |name: &str| (name.to_string(), named(&batch, name).clone());
    let types = Array::i64([4, 16], vec![0; 64]).unwrap();
    let classes = named(&batch, "labels").as_i64().unwrap();
    let classes: Vec<Label> = classes.iter().map(|&c| Label::Class(c as usize)).collect();
    let batch = [MicroBatch {
        inputs: vec![
            tokens("input_ids"),
            tokens("attention_mask"),
            ("token_type_ids".into(), types),
        ],
        answers: trainer.answers(&classes).unwrap(),
    }];
    let gradients = trainer.gradients(&batch).unwrap();
    let mut worst = 0f64;
    let names: Vec<String> = trainer.parameters().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names.len(), 74);
    for (name, gradient) in names.iter().zip(&gradients.values) {
        let theirs = name.replace("head.", "classifier.");
        let theirs =
            theirs.replace(".lora_a", ".lora_A.weight").replace(".lora_b", ".lora_B.weight");
        let off = distance(gradient, floats(&arrays, &format!("train.gradient.{theirs}")));
        assert!(off <= GRADIENTS, "gradient of {name}: {off}");
        worst = worst.max(off);
    }
    let losses = floats(&arrays, "train.losses");
    let steps = if emulated() { 1 } else { losses.len() };
    let apart = losses[..steps].iter().map(|want| {
        (trainer.step(&batch, 1e-3).unwrap() - want).abs() // the rate of the references
    });
    let apart = apart.fold(0.0, f32::max);
    println!("gradients within {worst:.1e}, losses of {steps} steps within {apart:.1e}");
    assert!(apart <= 1e-4, "losses differ by {apart}");
}

#[test]
fn gradients_through_convolutions_are_pytorchs() {
    if emulated() {
        return; // minutes
    }
    let arrays = arrays("efficientnet.npz");
    let engine = engine("efficientnet-lite0.onnx", Scheme::F32);
    let table = engine.base().targets();
    let pointwise =
        table.iter().filter(|t| matches!(t.kind, TargetKind::Conv { kernel: [1, 1], .. }));
    let paths: Vec<String> = pointwise.map(|t| t.module_path.replace('.', r"\.")).collect();
    let options = TrainOptions {
        rank: 2,
        alpha: 4.0,
        head_from: Some("features".into()),
        targets: TargetChoice::Regex(paths.join("|")),
        ..TrainOptions::default()
    };
    let labels = ["a", "b", "c"].map(String::from).to_vec();
    let mut trainer = Trainer::new(&engine, &options, labels).unwrap();
    let names: Vec<(String, usize)> =
        trainer.parameters().map(|(name, v)| (name.to_string(), v.len())).collect();
    for (i, (name, len)) in names.iter().enumerate() {
        let (seed, spread) = match name.as_str() {
            "head.weight" => (7, 0.1),
            "head.bias" => (8, 0.1),
            _ => (i as u64 + 11, 0.2),
        };
        trainer.set_parameter(name, &values(*len, seed, spread)).unwrap();
    }
    let answers = trainer.answers(&[Label::Class(1)]).unwrap();
    let batch = [MicroBatch { inputs: picture(), answers }];
    let gradients = trainer.gradients(&batch).unwrap();
    let apart = (gradients.loss - floats(&arrays, "train.loss")[0]).abs();
    let mut worst = 0f64;
    for (i, ((name, _), gradient)) in names.iter().zip(&gradients.values).enumerate() {
        let theirs = match name.as_str() {
            "head.weight" | "head.bias" => name.clone(),
            _ if i % 2 == 0 => format!("{}.lora_a", i / 2),
            _ => format!("{}.lora_b", i / 2),
        };
        let off = distance(gradient, floats(&arrays, &format!("train.gradient.{theirs}")));
        assert!(off <= 5e-5, "gradient of {name}: {off}");
        worst = worst.max(off);
    }
    println!("{} gradients within {worst:.1e}, loss within {apart:.1e}", names.len());
    assert!(apart <= 1e-5, "the loss differs by {apart}");
}
