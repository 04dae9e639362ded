//! The task of models that spell texts: gradients and steps as PyTorch's and PEFT's, and texts that are learned.

use super::data::{Dataset, Label, Place, Sample, SampleInput, Spelled};
use super::progress::Silent;
use super::*;
use crate::common::{packed, shared};
use crate::npy::read_npz;
use crate::quant::Scheme;
use crate::runtime::{Alphabet, Engine, PackOptions};
use crate::shape::Array;
use std::collections::HashMap;
use std::path::Path;

fn alphabet(symbols: &[&str], blank: &str) -> PackOptions {
    let symbols = symbols.iter().map(|s| s.to_string()).collect();
    let alphabet = Some(Alphabet { symbols, blank: Some(blank.into()) });
    PackOptions { scheme: Scheme::F32, alphabet, ..PackOptions::default() }
}

fn task() -> Task {
    Task::parse("transcribe").unwrap()
}

fn options() -> TrainOptions {
    TrainOptions { task: task(), rank: 4, alpha: 8.0, threads: 1, ..TrainOptions::default() }
}

/// |a - b| over the largest |b|.
fn off(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |most, v| most.max(v.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest
}

/// PEFT's lora_A of a Conv1d (R, C, K) is (R, K, C) here.
fn taps_first(values: &[f32], shape: &[usize]) -> Vec<f32> {
    let &[rank, channels, taps] = shape else { return values.to_vec() };
    let at = |r: usize, t: usize, c: usize| values[(r * channels + c) * taps + t];
    let all =
        (0..rank).flat_map(|r| (0..taps).flat_map(move |t| (0..channels).map(move |c| (r, t, c))));
    all.map(|(r, t, c)| at(r, t, c)).collect()
}

/// Rows of seven and three symbols, the second of 22 of 30 steps.
#[test]
fn the_tiny_models_learn_as_peft_does() {
    let Some(shared) = shared() else { return };
    let letters: Vec<String> = (0..20u8).map(|at| char::from(b'a' + at).to_string()).collect();
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    for name in ["ctc_gru", "ctc_lstm"] {
        let path = shared.join(format!("reference/tiny-sequence/{name}_lora.npz"));
        let arrays: HashMap<String, Array> = read_npz(path, 1 << 20).unwrap().into_iter().collect();
        let model = shared.join(format!("models/tiny-sequence/{name}.onnx"));
        let engine = packed(&model, &alphabet(&letters, "first"));
        let chosen = TargetChoice::Regex("conv|output".into());
        let mut trainer =
            Trainer::new(&engine, &TrainOptions { targets: chosen, ..options() }, vec![]).unwrap();
        let theirs = |kind: &str, name: &str| {
            let name =
                name.replace(".lora_a", ".lora_A.weight").replace(".lora_b", ".lora_B.weight");
            let array = &arrays[&format!("{kind}.{name}")];
            let values = array.as_f32().unwrap();
            if name.contains("lora_A") {
                taps_first(values, array.shape())
            } else {
                values.to_vec()
            }
        };
        let names: Vec<String> = trainer.parameters().map(|(n, _)| n.to_string()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        for name in &names {
            trainer.set_parameter(name, &theirs("init", name)).unwrap();
        }
        let labels = arrays["labels"].as_i64().unwrap();
        let (longest, lengths) =
            (arrays["labels"].shape()[1], arrays["label_lengths"].as_i64().unwrap());
        let answers = (0..lengths.len()).map(|row| {
            let mut answer: Vec<f32> = labels[row * longest..][..lengths[row] as usize]
                .iter()
                .map(|l| *l as f32 + 1.0)
                .collect();
            answer.resize(arrays["step_lengths"].as_i64().unwrap()[row] as usize, 0.0);
            answer.resize(30, -1.0);
            Some(answer)
        });
        let inputs = vec![("features".to_string(), arrays["features"].clone())];
        let batch = [MicroBatch { inputs, answers: answers.collect() }];
        let gradients = trainer.gradients(&batch).unwrap();
        let mut worst = 0f32;
        for (name, gradient) in names.iter().zip(&gradients.values) {
            let apart = off(gradient, &theirs("grad1", name));
            assert!(apart < 1e-4, "gradient of {name}: {apart}");
            worst = worst.max(apart);
        }
        let mut apart = 0f32;
        for want in arrays["losses"].as_f32().unwrap() {
            apart = apart.max((trainer.step(&batch, 1e-2).unwrap() - want).abs());
        }
        println!("{name}: gradients within {worst:.1e}, ten losses within {apart:.1e}");
        assert!(apart < 1e-3, "{name}: losses differ by {apart}");
        for (name, values) in trainer.parameters() {
            let apart = off(values, &theirs("after10", name));
            assert!(apart < 1e-2, "{name} after ten steps: {apart}");
        }
    }
}

const LETTERS: [&str; 5] = ["a", "b", "c", "d", " "];

/// The model of the tree, whose last column is the blank.
fn small() -> Engine {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/ctc.onnx");
    packed(&model, &alphabet(&LETTERS, "last"))
}

/// A text in frames: two of each letter, a pattern of its own, and one of silence behind.
fn spoken(text: &str, variant: usize) -> Array {
    let mut values = vec![];
    for (at, letter) in text.chars().enumerate() {
        let place = LETTERS.iter().position(|l| l.starts_with(letter)).unwrap();
        for frame in 0..3 {
            let value = |i: usize| {
                let noise = ((at * 31 + frame * 17 + i * 7 + variant * 13) % 11) as f32 / 55.0;
                noise + if frame < 2 && i == place { 1.0 } else { 0.0 }
            };
            values.extend((0..6).map(value));
        }
    }
    Array::f32([3 * text.chars().count(), 6], values).unwrap()
}

fn dataset(texts: &[&str], count: usize) -> Dataset {
    let sample = |at: usize| {
        let text = texts[at % texts.len()];
        let input = SampleInput::Arrays(vec![("features".into(), spoken(text, at))]);
        let label = Label::Text(Spelled { text: text.into(), symbols: vec![] });
        Sample { input, label, place: Place::named(format!("sample {at}")) }
    };
    Dataset {
        samples: (0..count).map(sample).collect(),
        labels: vec![],
        splits: Default::default(),
        task: task(),
        why: None,
    }
}

fn thorough() -> TrainOptions {
    TrainOptions {
        rank: 8,
        alpha: 16.0,
        learning_rate: 5e-3,
        steps: Some(1500),
        holdout: 0.0,
        ..options()
    }
}

/// Texts of different lengths, and other texts to measure on; with a search they are read no worse.
#[test]
fn texts_are_learned_and_read() {
    let engine = small();
    let learned = dataset(&["ab", "cad", "bad dad", "aab", "dc cab"], 40);
    let other = dataset(&["dab", "bcad", "cc ab"], 9);
    let before = evaluate(&engine, None, &other, 4).unwrap();
    let trained = train(&engine, &learned, Some(&other), &thorough(), &mut Silent).unwrap();
    assert_eq!((trained.report.targets, trained.report.labels.len()), (2, 0));
    let bound = engine.bind(&[(&trained.adapter, 1.0)]).unwrap();
    let after = evaluate(&engine, Some(&bound), &other, 4).unwrap();
    let cer = |e: &Evaluation| e.metric("cer").unwrap();
    let known = evaluate(&engine, Some(&bound), &learned, 4).unwrap();
    println!("CER {} -> {}, of what was learned {}", cer(&before), cer(&after), cer(&known));
    // Frame by frame through random weights: doubled letters stay hard.
    assert!(cer(&before) > 0.5 && cer(&after) < 0.2 && cer(&known) < 0.2);
    assert!(after.labels.is_empty());
    let names: Vec<&str> = trained.report.after.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["loss", "cer", "wer", "exact"]);
    let searched = evaluate_with(&engine, Some(&bound), &other, 4, 10).unwrap();
    assert!(cer(&searched) <= cer(&after));
}

#[test]
fn what_can_not_be_learned_is_named() {
    let engine = small();
    let mut data = dataset(&["ab", "cad"], 6);
    data.samples[3].label = Label::Text(Spelled { text: "xyz".into(), symbols: vec![] });
    let wrong = |data: &Dataset| train(&engine, data, None, &thorough(), &mut Silent).unwrap_err();
    let e = wrong(&data);
    let text = format!("{e}");
    assert!(text.contains("sample 3") && text.contains("'x'"), "{e}");
    assert!(try_sample(&engine, &data, 3, None).is_err_and(|e| e.message().contains("'x'")));
    data.samples[3].label = Label::Text(Spelled { text: "aaaaaaaaaaaa".into(), symbols: vec![] });
    let e = wrong(&data);
    let text = format!("{e}");
    assert!(text.contains("sample 3") && text.contains("takes 23 steps"), "{e}");
    assert!(try_sample(&engine, &data, 3, None).is_err_and(|e| e.message().contains("23 steps")));
    assert!(try_sample(&engine, &data, 2, None).is_ok());
    // A base that doesn't know its symbols.
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/ctc.onnx");
    let plain = packed(&model, &PackOptions::default());
    let e = train(&plain, &data, None, &thorough(), &mut Silent).unwrap_err();
    assert!(e.message().contains("doesn't say which symbols"), "{e}");
}
