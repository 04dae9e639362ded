//! The task of decoders behind an encoder: gradients and steps as PyTorch's and PEFT's, and texts that are learned.

use super::data::{Dataset, LoadOptions, load};
use super::prefix::plain;
use super::progress::Silent;
use super::recompute::tests::same_bits;
use super::*;
use crate::adapter::{Adapter, TensorType};
use crate::common::{emulated, shared};
use crate::error::ErrorKind;
use crate::npy::read_npz;
use crate::pack::AudioSpec;
use crate::quant::Scheme;
use crate::runtime::{
    Engine, ExportFolder, GenerateOptions, Generator, PackOptions, Preprocessor, Sampling,
    pack_graphs,
};
use crate::shape::Array;
use std::collections::HashMap;
use std::f32::consts::TAU;
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

/// All graphs of a folder, in f32.
fn folder(folder: &Path, options: PackOptions) -> Engine {
    let export = ExportFolder::read(folder).unwrap();
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("model.base");
    let options = PackOptions { scheme: Scheme::F32, texts: export.texts, ..options };
    pack_graphs(&export.graphs, &out, &options).unwrap();
    Engine::open(&out).unwrap()
}

/// The tiny model: clips of a second, one token a character.
fn tiny() -> Engine {
    let audio = AudioSpec { samples: Some(16_000), ..AudioSpec::named("whisper").unwrap() };
    let tokenizer = Some(std::fs::read(model("tiny-lm/tokenizer.json")).unwrap());
    folder(
        &model("tiny-whisper"),
        PackOptions { tokenizer, audio: Some(audio), ..PackOptions::default() },
    )
}

fn options(targets: &str) -> TrainOptions {
    TrainOptions {
        task: Task::of_decoders(),
        rank: 2,
        alpha: 4.0,
        targets: TargetChoice::Regex(targets.into()),
        threads: 1,
        ..TrainOptions::default()
    }
}

/// |a - b| / |b| of a tensor as a whole.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    let square = |sum: f64, v: f32| sum + f64::from(v).powi(2);
    let differences = a.iter().zip(b).map(|(a, b)| a - b);
    (differences.fold(0.0, square) / b.iter().copied().fold(0.0, square)).sqrt() as f32
}

/// |a - b| over the largest |b|.
fn off(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |most, v| most.max(v.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest
}

/// A reference's batch: `ids` and `labels`, of which negative ones count for nothing.
fn batch(arrays: &HashMap<String, Array>, ids: &str) -> [MicroBatch; 1] {
    let labels = arrays["labels"].as_i64().unwrap();
    let length = arrays["labels"].shape()[1];
    let inputs = vec![
        ("input_features".to_string(), arrays["input_features"].clone()),
        ("input_ids".to_string(), arrays[ids].clone()),
    ];
    let target = |label: &i64| if *label < 0 { 0.0 } else { *label as f32 + 1.0 };
    let rows = labels.chunks(length).map(|row| Some(row.iter().map(target).collect()));
    [MicroBatch { inputs, answers: rows.collect() }]
}

/// Each value of a gradient within `near` of its tensor's largest, tensors as a whole nearer; the first of ten losses,
/// and what is there after all of them.
fn learns_as_theirs(
    engine: &Engine,
    chosen: &TrainOptions,
    batch: &[MicroBatch],
    losses: &[f32],
    theirs: &dyn Fn(&str, &str) -> Vec<f32>,
    near: f32,
) {
    let mut trainer = Trainer::new(engine, chosen, vec![]).unwrap();
    let names: Vec<String> = trainer.parameters().map(|(n, _)| n.to_string()).collect();
    for name in &names {
        trainer.set_parameter(name, &theirs("init", name)).unwrap();
    }
    let gradients = trainer.gradients(batch).unwrap();
    let (mut whole, mut single) = (0f32, 0f32);
    for (name, gradient) in names.iter().zip(&gradients.values) {
        let want = theirs("grad1", name);
        let found = (apart(gradient, &want), off(gradient, &want));
        println!("{name}: {:.1e}, of its largest {:.1e}", found.0, found.1);
        (whole, single) = (whole.max(found.0), single.max(found.1));
    }
    let mut of_losses = 0f32;
    for want in losses {
        let found = trainer.step(batch, chosen.learning_rate.into()).unwrap();
        of_losses = of_losses.max((found - want).abs());
    }
    println!(
        "{} tensors: gradients within {whole:.1e}, values within {single:.1e} of a tensor's largest; {} \
         losses within {of_losses:.1e}",
        names.len(),
        losses.len()
    );
    assert!(whole < 0.6 * near && single < near, "{whole} {single}");
    assert!(!losses.is_empty() && of_losses < 1e-3, "losses differ by {of_losses}");
    if losses.len() < 10 {
        return;
    }
    for (name, values) in trainer.parameters() {
        // Where a gradient is next to nothing, its sign alone decides a whole step of AdamW.
        let found = apart(values, &theirs("after10", name));
        assert!(found < 1e-2, "{name} after ten steps: {found}");
    }
}

#[test]
fn what_is_computed_twice_changes_no_bit() {
    let engine = tiny();
    let mut trainer = Trainer::new(&engine, &options(r".*(q|k|v|fc1)(_proj)?"), vec![]).unwrap();
    let path = model("tiny-whisper/lora.npz");
    let arrays: HashMap<String, Array> = read_npz(path, 1 << 20).unwrap().into_iter().collect();
    let (planned, _) = same_bits(&mut trainer, &batch(&arrays, "input_ids"), "tiny-whisper");
    // So small that what it is fed with is most of it.
    assert!(planned[1] < planned[0] && planned[2] <= planned[1], "{planned:?}");
}

/// Through the encoder, too; with the second row padded.
#[test]
fn the_tiny_model_learns_as_pytorch_does() {
    let path = model("tiny-whisper/lora.npz");
    let arrays: HashMap<String, Array> = read_npz(path, 1 << 20).unwrap().into_iter().collect();
    let theirs =
        |kind: &str, name: &str| arrays[&format!("{kind}.{name}")].as_f32().unwrap().to_vec();
    let chosen = TrainOptions { learning_rate: 1e-2, ..options(r".*(q|v)_proj") };
    let batch = batch(&arrays, "input_ids");
    let losses = arrays["losses"].as_f32().unwrap();
    assert_eq!(losses.len(), 10);
    learns_as_theirs(&tiny(), &chosen, &batch, losses, &theirs, 1e-4);
}

#[test]
fn whisper_begins_to_learn_as_peft_does() {
    whisper_learns(2);
}

#[test]
#[ignore = "four minutes: cargo test --lib whisper_learns -- --ignored --nocapture"]
fn whisper_learns_as_peft_does() {
    whisper_learns(10);
}

/// LoRA on queries and values of all 12 attentions of Whisper tiny.en, four clips a batch.
fn whisper_learns(steps: usize) {
    // Long products, which other tests hold on emulated processors.
    let Some(shared) = shared().filter(|_| !emulated()) else { return };
    let path = shared.join("reference/whisper/lora_reference.npz");
    let arrays: HashMap<String, Array> = read_npz(path, 64 << 20).unwrap().into_iter().collect();
    let table =
        std::fs::read_to_string(shared.join("reference/whisper/lora_targets.json")).unwrap();
    let table: HashMap<String, HashMap<String, String>> = serde_json::from_str(&table).unwrap();
    let theirs = |kind: &str, name: &str| {
        let (path, tensor) = name.rsplit_once('.').unwrap();
        let tensor = tensor.replace("lora_a", "lora_A").replace("lora_b", "lora_B");
        // The node's scope, as targets are called here: /layers.0/self_attn/q_proj/MatMul.
        let scope =
            |node: &str| node.trim_start_matches('/').trim_end_matches("/MatMul").replace('/', ".");
        let (module, _) = table.iter().find(|(_, at)| scope(&at["node"]) == path).unwrap();
        arrays[&format!("{kind}.{module}.{tensor}.weight")].as_f32().unwrap().to_vec()
    };
    let engine = folder(&shared.join("models/whisper-tiny-en"), PackOptions::default());
    let chosen = TrainOptions { rank: 8, alpha: 16.0, ..options(r".*(q|v)_proj") };
    let batch = batch(&arrays, "decoder_input_ids");
    let losses = &arrays["losses"].as_f32().unwrap()[..steps];
    // PyTorch's own gradients in f32 are up to 6e-4 from those in f64.
    learns_as_theirs(&engine, &chosen, &batch, losses, &theirs, 2e-3);
}

/// Clips of a second, each a tone of its own, with what they say.
fn clips(place: &Path, said: &[&str]) -> Dataset {
    let mut rows = String::new();
    for (at, text) in said.iter().enumerate() {
        let pitch = 300.0 * (at + 1) as f32;
        let tone = |t: u32| (8000.0 * (TAU * pitch * t as f32 / 16_000.0).sin()) as i16;
        let data: Vec<u8> = (0..16_000).flat_map(|t| tone(t).to_le_bytes()).collect();
        let mut wav = b"RIFF\0\0\0\0WAVEfmt ".to_vec();
        for part in [16u32, 0x1_0001, 16_000, 32_000, 0x10_0002] {
            wav.extend(part.to_le_bytes());
        }
        wav.extend(b"data");
        wav.extend((data.len() as u32).to_le_bytes());
        wav.extend(&data);
        let length = wav.len() as u32 - 8;
        wav[4..8].copy_from_slice(&length.to_le_bytes());
        std::fs::write(place.join(format!("{at}.wav")), wav).unwrap();
        rows += &format!("{{\"audio\": \"{at}.wav\", \"transcript\": \"{text}\"}}\n");
    }
    let path = place.join("clips.jsonl");
    std::fs::write(&path, rows).unwrap();
    let task = Some(Task::of_decoders());
    load(&path, &LoadOptions { task, ..LoadOptions::default() }).unwrap()
}

fn metric(evaluation: &Evaluation, name: &str) -> f32 {
    evaluation.metric(name).unwrap()
}

/// The base is measured, and what it learned is generated by all its graphs, after the file was written and read.
#[test]
fn clips_are_learned_by_heart_and_written_down() {
    let (engine, place) = (tiny(), tempfile::tempdir().unwrap());
    let data = clips(place.path(), &["Tea at five.", "No, later!"]);
    assert_eq!(Task::serving(None, engine.base()).unwrap(), data.task);
    let before = evaluate(&engine, None, &data, 2).unwrap();
    let names: Vec<&str> = before.metrics.0.iter().map(|m| m.name).collect();
    assert_eq!(names, ["loss", "cer", "wer", "exact"]);
    assert!(metric(&before, "loss") > 3.0 && metric(&before, "exact") == 0.0);
    let chosen = TrainOptions {
        rank: 8,
        alpha: 16.0,
        learning_rate: 1e-2,
        steps: Some(200),
        holdout: 0.0,
        targets: TargetChoice::AllLinear,
        ..options("")
    };
    let trained = train(&engine, &data, Some(&data), &chosen, &mut Silent).unwrap();
    // One loss, through the joined graph and through those that serve.
    let (first, whole) = (trained.report.loss_first, metric(&before, "loss"));
    assert!((first - whole).abs() < 1e-3 * whole, "{first} {whole}");
    // Of all linear layers that of the vocabulary is left out; convolutions are among them.
    assert_eq!(trained.report.skipped, ["proj_out"]);
    assert_eq!(trained.report.targets, 2 + 6 + 10);
    assert_eq!((trained.report.output.as_str(), &trained.report.after[1].0[..]), ("logits", "cer"));
    let bytes = trained.adapter.to_bytes(TensorType::F32).unwrap();
    let adapter = Adapter::from_bytes(&bytes).unwrap();
    let bound = engine.bind(&[(&adapter, 1.0)]).unwrap();
    let after = evaluate(&engine, Some(&bound), &data, 2).unwrap();
    let last = trained.report.loss_last;
    println!("loss {whole} -> {}, in training {last}", metric(&after, "loss"));
    assert!(metric(&after, "loss") < 0.3, "{:?}", after.metrics);
    assert_eq!((metric(&after, "wer"), metric(&after, "exact")), (0.0, 1.0));
    let generator = Generator::new(&engine).unwrap();
    let encoder = Preprocessor::new(&engine.graph_named("encoder").unwrap());
    let clip = encoder.audio(&place.path().join("1.wav")).unwrap();
    let encoded = generator.encode(&encoder.stack(&[&clip]).unwrap(), Some(&bound)).unwrap();
    let options = GenerateOptions { tokens: 20, ..GenerateOptions::default() };
    let (starts, mut hear) = (generator.starts(), |_: &str| true);
    assert_eq!(starts, [1, 199]);
    let found = generator.generate_from(Some(encoded), starts, Some(&bound), &options, &mut hear);
    assert_eq!(found.unwrap().text, "No, later!");
}

/// What `generation_config.json` forbids isn't written, however likely it is.
#[test]
fn suppressed_tokens_are_never_written() {
    let place = tempfile::tempdir().unwrap();
    let written = |config: &str| {
        let export = ExportFolder::read(&model("tiny-whisper")).unwrap();
        let out = place.path().join("model.base");
        let texts = vec![("generation_config.json".to_string(), config.to_string())];
        let options = PackOptions { scheme: Scheme::F32, texts, ..PackOptions::default() };
        pack_graphs(&export.graphs, &out, &options).unwrap();
        let generator = Generator::new(&Engine::open(&out).unwrap()).unwrap();
        let heard =
            [("input_features".to_string(), Array::f32([1, 80, 100], vec![0.5; 8000]).unwrap())];
        let encoded = generator.encode(&heard, None).unwrap();
        let options = GenerateOptions { tokens: 4, ..GenerateOptions::default() };
        let starts = generator.starts();
        generator.generate_from(Some(encoded), starts, None, &options, &mut |_| true).unwrap().ids
    };
    let config =
        |more: &str| format!(r#"{{"decoder_start_token_id": 1, "eos_token_id": 0{more}}}"#);
    let first = written(&config(""));
    let never = first[0];
    let other = written(&config(&format!(r#", "suppress_tokens": [{never}, 70000]"#)));
    assert!(first.contains(&never) && !other.contains(&never), "{first:?} {other:?}");
}

/// The likeliest tokens of random weights repeat themselves: such speech is written again by chance, always the same.
#[test]
fn a_loop_is_written_again() {
    let engine = tiny();
    let generator = Generator::new(&engine).unwrap();
    let heard =
        [("input_features".to_string(), Array::f32([1, 80, 100], vec![0.5; 8000]).unwrap())];
    let encoded = generator.encode(&heard, None).unwrap();
    let write = |temperature: f32, heard: &mut String| {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let options = GenerateOptions { tokens: 100, sampling, ..GenerateOptions::default() };
        let mut hear = |text: &str| {
            heard.push_str(text);
            true
        };
        let (encoded, starts) = (Some(encoded.clone()), generator.starts());
        generator.generate_from(encoded, starts, None, &options, &mut hear).unwrap()
    };
    // As good as none, but asked for: it stays.
    let looped = write(1e-4, &mut String::new());
    assert!(looped.temperature == 1e-4 && looped.ids.len() > 50);
    let mut texts = String::new();
    let again = write(0.0, &mut texts);
    assert!(again.temperature > 0.0 && again.text != looped.text);
    // Nothing of the tries before was told.
    assert_eq!(texts, again.text);
    assert_eq!(write(0.0, &mut String::new()).ids, again.ids);
}

/// With targets in the decoder alone the encoder runs once a clip and padded length, and that changes nothing.
#[test]
fn a_frozen_encoder_runs_once_a_clip() {
    let (engine, place) = (tiny(), tempfile::tempdir().unwrap());
    let data = clips(place.path(), &["abcdefgh", "abc", "ab"]);
    let chosen = TrainOptions {
        steps: Some(9),
        batch: 2,
        micro_batch: Some(2),
        holdout: 0.0,
        learning_rate: 1e-2,
        ..options(r"model\.decoder\..*_proj")
    };
    let kept = train(&engine, &data, None, &chosen, &mut Silent).unwrap();
    let report = kept.report.prefix.unwrap();
    println!("{report:?}");
    // All of the encoder, two padded lengths of three clips at most.
    assert!(report.layers >= 8 && report.rows_run <= 6 && report.rows_kept >= 8, "{report:?}");
    let anew = plain(&engine, &data, &chosen);
    for (one, other) in kept.adapter.targets.iter().zip(&anew.adapter.targets) {
        for (a, b) in one.tensors.iter().zip(&other.tensors) {
            let apart = off(&a.values, &b.values);
            assert!(apart < 1e-3, "{} {}: {apart}", one.module_path, a.name);
        }
    }
}

/// A target stands where its token is read; what the decoder begins with has none.
#[test]
fn the_loss_is_of_the_text_and_its_end() {
    let (engine, place) = (tiny(), tempfile::tempdir().unwrap());
    let data = clips(place.path(), &["ab", "c"]);
    let samples = samples::Samples::new(&engine, &data, &[], None).unwrap();
    // a is 2 of the vocabulary, `</s>` 0; a target is 1 + the token.
    assert_eq!(samples.target(0).unwrap(), [0.0, 3.0, 4.0, 1.0]);
    let inputs = samples.inputs(&[0, 1], 2).unwrap();
    let (name, ids) = inputs.last().unwrap();
    assert_eq!((name.as_str(), ids.shape()), ("input_ids", &[2, 8][..]));
    let ids = ids.as_i64().unwrap();
    assert_eq!((&ids[..8], &ids[8..11]), (&[1, 199, 2, 3, 0, 0, 0, 0][..], &[1, 199, 4][..]));
    // A text that is longer than what is taken is cut.
    let samples = samples::Samples::new(&engine, &data, &[], Some(3)).unwrap();
    assert_eq!(samples.target(0).unwrap(), [0.0, 3.0, 4.0]);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let (engine, place) = (tiny(), tempfile::tempdir().unwrap());
    let data = clips(place.path(), &["ab"]);
    let texts = place.path().join("texts.jsonl");
    std::fs::write(&texts, r#"{"text": "hello", "transcript": "ab"}"#).unwrap();
    let task = Some(Task::of_decoders());
    let texts = load(&texts, &LoadOptions { task, ..LoadOptions::default() }).unwrap();
    let e = evaluate(&engine, None, &texts, 1).unwrap_err();
    assert!(e.message().contains("learns of sounds and pictures"), "{e}");
    // Nobody says what the decoder begins with.
    let export = ExportFolder::read(&model("tiny-whisper")).unwrap();
    let out = place.path().join("bare.base");
    let tokenizer = Some(std::fs::read(model("tiny-lm/tokenizer.json")).unwrap());
    let options = PackOptions { tokenizer, scheme: Scheme::F32, ..PackOptions::default() };
    pack_graphs(&export.graphs, &out, &options).unwrap();
    let e = evaluate(&Engine::open(&out).unwrap(), None, &data, 1).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Usage);
    assert!(e.message().contains("which tokens its decoder begins with"), "{e}");
}
