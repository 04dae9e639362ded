//! States that stay with the layers: they are found, and nothing but rounding tells.

use super::decoder::{Decoder, Past};
use crate::import::ImportOptions;
use crate::pack::Role;
use crate::quant::Scheme;
use crate::runtime::{Engine, GraphSource, PackOptions, pack_graphs};
use crate::shape::Array;
use std::path::Path;

fn engine(files: &[(&str, &str)]) -> Engine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("model.base");
    let source = |(name, file): &(&str, &str)| GraphSource {
        name: name.to_string(),
        path: folder.join(file),
        import: ImportOptions::default(),
    };
    let graphs: Vec<GraphSource> = files.iter().map(source).collect();
    let options = PackOptions { scheme: Scheme::F32, ..PackOptions::default() };
    pack_graphs(&graphs, &out, &options).unwrap();
    Engine::open(&out).unwrap()
}

/// The logits behind each of these pieces of a text.
fn logits(decoder: &Decoder, encoded: Option<Array>, pieces: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut past = Past::behind(decoder.encoded(encoded).unwrap(), None);
    let each = |piece: &&[u32]| {
        let mut logits = vec![];
        decoder.feed(&mut past, piece, None, &mut logits).unwrap();
        logits
    };
    pieces.iter().map(each).collect()
}

#[test]
fn all_states_of_a_language_model_stay_and_the_bits_dont_hang_on_the_pieces() {
    let engine = engine(&[("main", "tiny-lm/model_with_past.onnx")]);
    let states = engine.inputs().iter().filter(|s| matches!(s.role, Role::State(_))).count();
    let decoder = Decoder::new(&engine).unwrap();
    assert!(states > 0);
    assert_eq!(decoder.kept_states(), states);
    let text: Vec<u32> = (0..70).map(|i| (i * 37 + 11) % 200).collect();
    let one = logits(&decoder, None, &[&text]);
    let each: Vec<&[u32]> = text.chunks(1).collect();
    let steps = logits(&decoder, None, &each);
    let pieces = logits(&decoder, None, &[&text[..40], &text[40..41], &text[41..]]);
    assert_eq!(one[0], steps[69]);
    assert_eq!((&pieces[0], &pieces[2]), (&steps[39], &one[0]));
    // As the whole graph without a past has them.
    let whole = self::engine(&[("main", "tiny-lm/model.onnx")]);
    let want = logits(&Decoder::new(&whole).unwrap(), None, &[&text]);
    let apart = |(a, b): (&f32, &f32)| (a - b).abs();
    let apart = one[0].iter().zip(&want[0]).map(apart).fold(0.0, f32::max);
    assert!(apart < 1e-4, "{apart}");
}

/// Those of its own tokens, which grow, and those of what the encoder gave, which another graph begins.
#[test]
fn all_states_behind_an_encoder_stay() {
    let files = [
        ("encoder", "tiny-whisper/encoder.onnx"),
        ("decoder", "tiny-whisper/decoder.onnx"),
        ("step", "tiny-whisper/decoder_with_past.onnx"),
    ];
    let engine = engine(&files);
    let step = engine.graph_named("step").unwrap();
    let states = step.inputs().iter().filter(|s| matches!(s.role, Role::State(_))).count();
    let decoder = Decoder::new(&engine).unwrap();
    assert!(states > 0);
    assert_eq!(decoder.kept_states(), states);
    let graph = engine.graph_named("decoder").unwrap();
    let spec = graph.input(Role::Encoded).unwrap();
    let width = spec.dims[2].parse().unwrap();
    let frames = spec.dims[1].parse().unwrap_or(9);
    let value = |i: usize| ((i * 29 % 101) as f32 - 50.0) / 50.0;
    let values: Vec<f32> = (0..frames * width).map(value).collect();
    let encoded = || Some(Array::f32([1, frames, width], values.clone()).unwrap());
    let text: Vec<u32> = (0..20).map(|i| (i * 37 + 11) % 200).collect();
    let each: Vec<&[u32]> = text.chunks(1).collect();
    let steps = logits(&decoder, encoded(), &each);
    let pieces = logits(&decoder, encoded(), &[&text[..7], &text[7..]]);
    // As the graph without a past has them.
    let whole = self::engine(&files[..2]);
    let whole = Decoder::new(&whole).unwrap();
    for (at, found) in steps.iter().enumerate().chain([(19, &pieces[1])]) {
        let want = &logits(&whole, encoded(), &[&text[..=at]])[0];
        let apart = found.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-4, "{at}: {apart}");
    }
}
