//! States that stay with the layers: they are found, and nothing but rounding tells.

use super::decoder::{Decoder, Past};
use crate::import::ImportOptions;
use crate::pack::Role;
use crate::quant::Scheme;
use crate::runtime::{Engine, GraphSource, PackOptions, pack_graphs};
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
fn logits(decoder: &Decoder, pieces: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut past = Past::behind(decoder.encoded(None).unwrap(), None);
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
    let one = logits(&decoder, &[&text]);
    let each: Vec<&[u32]> = text.chunks(1).collect();
    let steps = logits(&decoder, &each);
    let pieces = logits(&decoder, &[&text[..40], &text[40..41], &text[41..]]);
    assert_eq!(one[0], steps[69]);
    assert_eq!((&pieces[0], &pieces[2]), (&steps[39], &one[0]));
    // As the whole graph without a past has them.
    let whole = self::engine(&[("main", "tiny-lm/model.onnx")]);
    let want = logits(&Decoder::new(&whole).unwrap(), &[&text]);
    let apart = |(a, b): (&f32, &f32)| (a - b).abs();
    let apart = one[0].iter().zip(&want[0]).map(apart).fold(0.0, f32::max);
    assert!(apart < 1e-4, "{apart}");
}
