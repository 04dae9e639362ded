//! Generating: greedy tokens equal ONNX Runtime's, with past states and without.

use crate::support::*;
use offshoot::packing::{ExportFolder, PackOptions, pack_graphs};
use offshoot::testing::npy::read_npz;
use offshoot::{Array, Ended, Engine, GenerateOptions, Generated, Generator, Sampling, Scheme};
use std::path::Path;

/// Prompts for the tiny model and ONNX Runtime 1.32's greedy tokens behind them; the least lead of a
/// chosen token over the next is 0.0016.
const PROMPTS: [(&[u32], &[u32]); 3] = [
    (
        &[3, 14, 15, 92],
        &[
            85, 148, 187, 187, 29, 7, 111, 186, 85, 43, 103, 156, 106, 176, 155, 177, 122, 122, 79,
            188, 114, 44, 81, 171, 44, 128, 53, 109, 188, 33, 97, 93, 99, 192, 85, 43, 56, 74, 99,
            32,
        ],
    ),
    (&[7], &[0, 114, 64, 73, 11, 63, 85, 85, 192, 35, 85, 85, 56, 92, 29, 85, 85, 85, 85, 24]),
    (
        &[100, 101, 102, 103, 104, 105, 106],
        &[
            116, 46, 61, 60, 46, 46, 46, 160, 114, 73, 188, 135, 144, 144, 144, 80, 76, 37, 121,
            107, 147, 5, 81, 46, 122, 44, 30, 153, 11, 116, 85, 30, 63, 13, 192, 187, 112, 192, 30,
            194,
        ],
    ),
];

fn tiny(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-lm").join(name)
}

fn exact() -> PackOptions {
    PackOptions { scheme: Scheme::F32, ..PackOptions::default() }
}

fn packed_folder(folder: &Path, options: PackOptions) -> Engine {
    let export = ExportFolder::read(folder).unwrap();
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("model.base");
    let tokenizer = export.tokenizer.map(|path| std::fs::read(path).unwrap());
    let options = PackOptions { tokenizer, texts: export.texts, ..options };
    pack_graphs(&export.graphs, &out, &options).unwrap();
    Engine::open(&out).unwrap()
}

fn greedy(generator: &Generator, prompt: &[u32], tokens: usize) -> Generated {
    let options = GenerateOptions { tokens, ..GenerateOptions::default() };
    generator.generate(prompt, None, &options, &mut |_| true).unwrap()
}

#[test]
fn greedy_tokens_are_onnx_runtimes_with_a_past_and_without() {
    for file in ["model.onnx", "model_with_past.onnx"] {
        let engine = packed(&tiny(file), &exact());
        // Nothing is bound: any length runs.
        assert!(engine.inputs()[0].dims.iter().all(|d| d.parse::<u64>().is_err()), "{file}");
        let generator = Generator::new(&engine).unwrap();
        for (prompt, want) in PROMPTS {
            let found = greedy(&generator, prompt, want.len());
            assert_eq!(found.ids, want, "{file}");
            assert_eq!((found.ended, found.prompt_tokens), (Ended::Tokens, prompt.len()));
        }
    }
}

#[test]
fn both_graphs_in_one_base_give_the_same_and_the_end_ends() {
    let engine = packed_folder(&tiny(""), exact());
    assert_eq!(engine.base().graphs().collect::<Vec<_>>(), ["main", "step"]);
    let generator = Generator::new(&engine).unwrap();
    let (prompt, want) = PROMPTS[0];
    assert_eq!(greedy(&generator, prompt, 40).ids, want);
    // Token 0 is `</s>`.
    let found = greedy(&generator, PROMPTS[1].0, 20);
    assert_eq!((found.ids.as_slice(), found.ended), (&[][..], Ended::End));
}

#[test]
fn long_texts_run_past_what_was_tried_when_packing() {
    let with = Generator::new(&packed(&tiny("model_with_past.onnx"), &exact()));
    let without = Generator::new(&packed(&tiny("model.onnx"), &exact()));
    let prompt: Vec<u32> = (0..150).map(|i| (i * 37 + 11) % 200).collect();
    let (with, without) = (with.unwrap(), without.unwrap());
    let long = greedy(&with, &prompt, 60);
    assert_eq!(long.ids.len(), 60);
    assert_eq!(long.ids[..12], greedy(&without, &prompt, 12).ids);
}

#[test]
fn text_streams_as_it_is_and_stops_before_a_stop_text() {
    let generator = Generator::new(&packed_folder(&tiny(""), exact())).unwrap();
    let prompt = generator.tokens("Hi, ").unwrap();
    assert_eq!(prompt.len(), 4);
    let mut heard = String::new();
    let options = GenerateOptions { tokens: 30, ..GenerateOptions::default() };
    let mut hear = |text: &str| {
        heard.push_str(text);
        true
    };
    let whole = generator.generate(&prompt, None, &options, &mut hear).unwrap();
    assert_eq!(heard, whole.text);
    assert_eq!(whole.text, generator.text_of(&whole.ids).unwrap());
    let characters: Vec<char> = whole.text.chars().collect();
    assert!(characters.len() > 8, "{whole:?}");
    let stop: String = characters[4..6].iter().collect();
    let cut = GenerateOptions { stop: vec![stop.clone()], ..options.clone() };
    let found = generator.generate(&prompt, None, &cut, &mut |_| true).unwrap();
    assert_eq!(found.ended, Ended::Stop);
    assert_eq!(found.text, whole.text.split(&stop).next().unwrap());
    // The listener may end it.
    let mut left = 3;
    let mut hear = |_: &str| {
        left -= 1;
        left > 0
    };
    let found = generator.generate(&prompt, None, &options, &mut hear).unwrap();
    assert_eq!((found.ids.len(), found.ended), (3, Ended::Listener));
}

#[test]
fn chance_follows_the_seed_and_wrong_options_are_refused() {
    let generator = Generator::new(&packed_folder(&tiny(""), exact())).unwrap();
    let drawn = |seed: u64| {
        let sampling = Sampling { temperature: 1.0, top_k: 50, seed, ..Sampling::default() };
        let options = GenerateOptions { tokens: 12, sampling, ..GenerateOptions::default() };
        generator.generate(&[5, 6], None, &options, &mut |_| true).unwrap().ids
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    let sampling = Sampling { top_p: 2.0, ..Sampling::default() };
    let options = GenerateOptions { sampling, ..GenerateOptions::default() };
    let e = generator.generate(&[5], None, &options, &mut |_| true).unwrap_err();
    assert!(e.message().contains("top-p is 2"), "{e}");
    let e = generator.generate(&[], None, &options, &mut |_| true).unwrap_err();
    assert_eq!(e.kind(), offshoot::ErrorKind::Usage);
}

/// An adapter bound to the base reaches both graphs.
#[test]
fn an_adapter_changes_what_is_generated() {
    use offshoot::Adapter;
    use offshoot::adapters::{TargetAdapter, TargetKind};
    let engine = packed_folder(&tiny(""), exact());
    let base = engine.base();
    let layer = base.targets().iter().find(|t| t.kind == TargetKind::Linear).unwrap();
    let a = (0..layer.in_features).map(|i| 0.5 - 0.1 * i as f32).collect();
    let b = (0..layer.out_features).map(|i| 0.3 * (i % 5) as f32).collect();
    let adapter = Adapter {
        base: Some(base.fingerprint()),
        targets: vec![TargetAdapter::lora(&layer.module_path, 1, 1.0, a, b)],
        ..Adapter::default()
    };
    let bound = engine.bind(&[(&adapter, 1.0)]).unwrap();
    let generator = Generator::new(&engine).unwrap();
    let alone = packed(&tiny("model.onnx"), &exact());
    let options = GenerateOptions { tokens: 10, ..GenerateOptions::default() };
    let (prompt, plain) = PROMPTS[2];
    let found = generator.generate(prompt, Some(&bound), &options, &mut |_| true).unwrap();
    assert_ne!(found.ids, plain[..10]);
    // Over the graph without a past it changes the same: that base has the same targets.
    let adapter = Adapter { base: Some(alone.base().fingerprint()), ..adapter };
    let bound = alone.bind(&[(&adapter, 1.0)]).unwrap();
    let without = Generator::new(&alone).unwrap();
    let again = without.generate(prompt, Some(&bound), &options, &mut |_| true).unwrap();
    assert_eq!(again.ids, found.ids);
}

#[test]
fn what_is_no_language_model_is_refused_by_what_it_lacks() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny");
    let refused = |file: &str| {
        let engine = packed(&models.join(file), &PackOptions::default());
        Generator::new(&engine).err().unwrap()
    };
    let e = refused("attention.onnx");
    assert!(e.message().contains("no logits of three axes"), "{e}");
    let e = refused("mlp.onnx");
    assert!(e.message().contains("no input of token ids"), "{e}");
    assert_eq!(e.kind(), offshoot::ErrorKind::Unsupported);
}

/// Without a past any length runs: outputs against PyTorch's.
#[test]
fn references_of_the_tiny_model() {
    let Some(shared) = shared() else { return };
    let engine = packed(&tiny("model.onnx"), &exact());
    for number in 0..3 {
        let file = shared.join(format!("reference/tiny-sequence/lm_{number}.npz"));
        for (output, found, expected) in answers(&engine, &reference(&file)) {
            let apart = max_difference(found.as_f32().unwrap(), expected.as_f32().unwrap());
            println!("lm_{number} '{output}': {apart:.1e}");
            assert!(apart <= 3e-5, "lm_{number} '{output}': {apart}");
        }
    }
}

/// Greedy text of five spoken sentences, as PyTorch's.
#[test]
fn whisper_writes_down_what_it_heard() {
    // Minutes of products, which other tests hold on emulated processors.
    let Some(shared) = shared().filter(|_| !emulated()) else { return };
    let [f32, q8] = [exact(), PackOptions::default()]
        .map(|options| packed_folder(&shared.join("models/whisper-tiny-en"), options));
    // Judged by noise in the place of texts, a third of its layers were stored in f16.
    assert!(q8.base().file_len() < 45_000_000, "{} bytes", q8.base().file_len());
    hears(&shared, &f32);
    hears(&shared, &q8);
}

fn hears(shared: &Path, engine: &Engine) {
    let generator = Generator::new(engine).unwrap();
    let folder = shared.join("reference/whisper");
    let features = read_npz(folder.join("features.npz"), 64 << 20).unwrap();
    let expected = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let prompt = generator.tokens("<|startoftranscript|><|notimestamps|>").unwrap();
    for (at, clip) in expected["clips"].as_array().unwrap().iter().enumerate() {
        let speech = named(&features, &format!("clip{at}.features"));
        let fill = named(&features, &format!("clip{at}.fill")).as_f32().unwrap()[0];
        let (rows, frames) = (speech.shape()[0], speech.shape()[1]);
        let mut mel = vec![fill; rows * 3000];
        for (to, from) in mel.chunks_mut(3000).zip(speech.as_f32().unwrap().chunks(frames)) {
            to[..frames].copy_from_slice(from);
        }
        let mel = vec![("input_features".to_string(), Array::f32([1, rows, 3000], mel).unwrap())];
        let encoded = generator.encode(&mel, None).unwrap();
        let options = GenerateOptions::default();
        let found =
            generator.generate_from(Some(encoded), &prompt, None, &options, &mut |_| true).unwrap();
        assert_eq!(found.text, clip["text"], "clip {at}");
        assert_eq!(found.ended, Ended::End);
    }
    let e = generator.generate(&prompt, None, &GenerateOptions::default(), &mut |_| true);
    assert!(e.unwrap_err().message().contains("needs the encoder's"));
}
